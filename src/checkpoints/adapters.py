"""Adapters in translation models: insertion from options, files of adapters alone."""

import hashlib
import logging
import math
import os
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from ..adapters import (
    AdapterBank,
    AdapterError,
    SPLoPA,
    SPLoRA,
    adapted_layers,
    adapter_state_dict,
    load_adapter_state_dict,
    report,
)
from ..adapters.masks import pack, unpack
from ..checkpoint_utils import read_tensors
from ..connectivity.cut import cut
from ..connectivity.groups import ChannelGroup, channel_groups
from ..connectivity.layers import layer_groups
from ..errors import UserError
from ..files import atomic_write
from . import dictionary_record
from .pretrained import set_layernorm

logger = logging.getLogger(__name__)

FORMAT = "adapters-1"
_DEFAULT_RANK = {"splora": 16, "splopa": 1}


def _patterns(text: Optional[str]) -> List[str]:
    return [p for p in (text or "").replace(" ", "").split(",") if p]


def _tied_projections(model: nn.Module) -> List[str]:
    """Linear layers whose weight is an embedding's: an update would untie them."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) in tables
    ]


def insert(model: nn.Module, cfg) -> None:
    """Insert what the task's options ask for, in place; the rest is frozen.

    Raises:
        UserError: the options don't fit the model.
    """
    kind = str(cfg.adapter)
    rank = _DEFAULT_RANK[kind] if cfg.adapter_rank is None else cfg.adapter_rank
    rank = int(rank) if rank >= 1 else rank
    layers = dict(
        include=_patterns(cfg.adapter_include) or None,
        exclude=[*_patterns(cfg.adapter_exclude), *_tied_projections(model)] or None,
        inplace=True,
    )
    try:
        if kind == "splora":
            SPLoRA(model, rank=rank, **layers)
        else:
            if cfg.adapter_block_size is not None:
                layers["block_size"] = cfg.adapter_block_size
            if cfg.adapter_prototypes is not None:
                layers["num_prototypes"] = cfg.adapter_prototypes
            SPLoPA(model, rank=rank, **layers)
    except AdapterError as error:
        raise UserError(f"--adapter {kind}: {error}") from None
    total = report(model)[-1]
    logger.info(
        f"{kind}: {len(adapted_layers(model))} layers adapted; "
        f"{total['adapter'] + total['biases']:,} learned parameters "
        f"({total['percent']:.2f} % of {total['base']:,}), of them {total['biases']:,} "
        f"biases; {total['bytes']:,} bytes in a file"
    )
    if total["exceeds"]:
        logger.warning(f"--adapter {kind}: {total['note']}")


def base_digest(model: nn.Module, learned: Dict[str, Tensor]) -> str:
    """A fingerprint of everything in a model that its adapters leave as it is."""
    digest = hashlib.sha256()
    # all layers there: as fingerprints were before layers could go
    whole = {
        f"{name}.{buffer}"
        for name, group in layer_groups(channel_groups(model)).items()
        if group.width == group.original_width
        for buffer, _ in group.named_buffers()
    }
    for name, value in sorted(model.state_dict().items()):
        if name not in learned and name not in whole:
            value = value.detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_adapters(model: nn.Module, path: str, state: Mapping[str, Any]) -> None:
    """Write the adapters of a model and the biases learned with them, nothing else.

    Which channels of the uncut model there are is written too, one bit each: the
    adapters of a model that was pruned with them apply to its unpruned base.

    Args:
        state: the checkpoint that the model is of.
    """
    learned = adapter_state_dict(model)
    kept = {}
    for name, group in channel_groups(model).items():
        kept[name] = torch.zeros(group.original_width, dtype=torch.bool)
        kept[name][group.channel_ids.long()] = True
    content = {
        "format": FORMAT,
        "base": base_digest(model, learned),
        "weighted_layernorm": bool(model.cfg.weighted_layernorm),
        "channels": {name: [len(bits), pack(bits)] for name, bits in kept.items()},
        "adapters": learned,
        "extra_state": dictionary_record.kept(state),
    }
    with atomic_write(path, "wb") as stream:
        torch.save(content, stream)


def read_adapters(path: str, option: str) -> Dict[str, Any]:
    """The content of a file of adapters.

    Raises:
        UserError: no such file, damaged, or not a file of adapters.
    """
    content = read_tensors(path, option)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(
            f"{option} {path}: holds no adapters; make the file with export_adapters.py"
        )
    wrong = _wrong_part(content)
    if wrong:
        raise UserError(
            f"{option} {path}: its {wrong} is not what export_adapters.py writes; make it anew"
        )
    return content


def _wrong_part(content: Dict[str, Any]) -> Optional[str]:
    """The part of a file of adapters that has another form, None without one."""
    kinds = {"base": str, "weighted_layernorm": bool, "channels": dict, "adapters": dict}
    for name, kind in kinds.items():
        if type(content.get(name)) is not kind:
            return name
    for channels in content["channels"].values():
        if not (isinstance(channels, (list, tuple)) and len(channels) == 2):
            return "channels"
        size, bits = channels
        packed = torch.is_tensor(bits) and bits.dtype == torch.uint8 and bits.dim() == 1
        if type(size) is not int or not packed or 8 * len(bits) < size:
            return "channels"
    return None if all(map(torch.is_tensor, content["adapters"].values())) else "adapters"


def adapter_files(text: str) -> List[Tuple[str, float]]:
    """The files that --adapter-path names, each with its weight.

    Args:
        text: a file, or several with commas between; ``:0.7`` after one is its weight, else 1.

    Raises:
        UserError: a weight is no finite number, or a name is empty.
    """
    if os.path.isfile(text):
        return [(text, 1.0)]
    files = []
    for item in text.split(","):
        path, colon, number = item.rpartition(":")
        if not colon or os.path.isfile(item):
            path, number = item, "1"
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not path or not math.isfinite(weight):
            raise UserError(
                f"--adapter-path {text}: expected a file, or several with weights, as "
                f"a.pt:0.7,b.pt:0.3, not {item!r}"
            )
        files.append((path, weight))
    return files


def _cut_to_channels(model: nn.Module, content: Dict[str, Any], origin: str) -> None:
    """Cut the base to the channels that the adapters were trained with."""
    # layers first: the others have their numbers from then on
    cut(model, _positions(layer_groups(channel_groups(model)), content, origin))
    keep = _positions(channel_groups(model), content, origin)
    weighted = content["weighted_layernorm"]
    if bool(model.cfg.weighted_layernorm) != weighted:
        uncut = all(g.width == g.original_width for g in channel_groups(model).values())
        if not uncut:
            raise UserError(f"{origin}: is of a model with another layer normalization")
        set_layernorm(model, weighted)
    cut(model, keep)


def _positions(groups: Mapping[str, ChannelGroup], content: Dict[str, Any], origin: str):
    """Where the channels of groups are that the adapters were trained with."""
    keep = {}
    for name, group in groups.items():
        if group.kind == "layer" and name not in content["channels"]:
            continue  # written before layers could go
        size, bits = content["channels"].get(name, (0, None))
        if size != group.original_width:
            raise UserError(f"{origin}: is of a model of another shape ({name})")
        ids = unpack(bits, size).nonzero()[:, 0]
        present = torch.isin(group.channel_ids.cpu().long(), ids)
        if int(present.sum()) != len(ids):
            raise UserError(
                f"{origin}: was trained with channels of {name} that the checkpoint lost; "
                "give the base that was its --pretrained-model"
            )
        if not present.all():
            keep[name] = present.nonzero()[:, 0]
    return keep


def apply_adapters(model: nn.Module, content: Dict[str, Any], origin: str) -> None:
    """Add adapters from a file to the base that they were trained on, in place.

    A base with more channels is cut to theirs.

    Args:
        origin: option and file, for messages.

    Raises:
        UserError: the model is another base, or has adapters already.
    """
    if adapted_layers(model):
        raise UserError(f"{origin}: the checkpoint has adapters already; give their base")
    _cut_to_channels(model, content, origin)
    try:
        load_adapter_state_dict(model, content["adapters"])
    except AdapterError as error:
        raise UserError(f"{origin}: does not fit the checkpoint ({error})") from None
    _check_base(model, content, origin)


def apply_weighted_adapters(
    model: nn.Module, contents: Sequence[Tuple[Dict[str, Any], float, str]]
) -> None:
    """Add a weighted sum of adapters to the base that all of them were trained on, in place.

    Args:
        contents: what a file holds, its weight, and option and file for messages.

    Raises:
        UserError: as :func:`apply_adapters`, or adapters that can't be added up.
    """
    first, weight, origin = contents[0]
    if len(contents) == 1 and weight == 1:
        return apply_adapters(model, first, origin)
    if adapted_layers(model):
        raise UserError(f"{origin}: the checkpoint has adapters already; give their base")
    _cut_to_channels(model, first, origin)
    bank, weights = AdapterBank(model), {}
    for number, (content, weight, origin) in enumerate(contents):
        if not _same_channels(content, first):
            raise UserError(
                f"{origin}: was pruned to other channels than {contents[0][2]}; adapters of one "
                "model can be added up, each other one applies alone"
            )
        name = str(number)
        try:
            bank.add(name, content["adapters"])
            bank.set_active(name)
            _check_base(model, content, origin)
            weights[name] = weight
            bank.set_active(weights)
        except AdapterError as error:
            raise UserError(
                f"{origin}: does not fit the checkpoint or the others ({error})"
            ) from None


def _same_channels(content: Dict[str, Any], other: Dict[str, Any]) -> bool:
    ours, theirs = content["channels"], other["channels"]
    return ours.keys() == theirs.keys() and all(
        size == theirs[name][0] and torch.equal(bits, theirs[name][1])
        for name, (size, bits) in ours.items()
    )


def _check_base(model: nn.Module, content: Dict[str, Any], origin: str) -> None:
    """Refuse adapters that were trained on another base than a model that has them now."""
    if base_digest(model, adapter_state_dict(model)) != content["base"]:
        raise UserError(
            f"{origin}: was trained on another base checkpoint (same shapes, other weights); "
            "give the one that was its --pretrained-model"
        )
