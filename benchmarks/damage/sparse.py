"""Sparse files of a small model, of this release's format and of the one before."""

import json
import random
import shutil
import zlib
from pathlib import Path
from typing import Any, Dict, List

import torch
from common import ROOT, build_trainer, write_synthetic_data

from damage.kind import Damage, Kind

SMALL = ["--task", "SRPtranslation", "--arch", "srp", "--criterion", "srp"]
SMALL += ["--optimizer", "srp_adam", "--encoder-embed-dim", "32", "--encoder-layers", "1"]
SMALL += ["--encoder-ffn-embed-dim", "64", "--decoder-layers", "1"]
SMALL += ["--encoder-attention-heads", "2", "--decoder-attention-heads", "2"]
SMALL += ["--share-decoder-input-output-embed"]


def checkpoint(folder: Path) -> Path:
    """A checkpoint of a small model, most of whose weights are zero."""
    from src.sparsity import prune_by_pct

    data = folder / "data"
    data.mkdir()
    write_synthetic_data(data, types=300, sentences=8)
    trainer = build_trainer(str(data), [*SMALL, "--save-dir", str(folder)])
    prune_by_pct(trainer.get_model(), 0.8)
    path = folder / "small.pt"
    trainer.consolidate_optimizer()
    trainer.save_checkpoint(str(path), {"train_iterator": {"epoch": 2}})
    return path


def header_of(data: bytearray) -> int:
    """Where the buffers begin."""
    return 8 + int.from_bytes(data[:8], "little")


def edit_header(data: bytearray, r: random.Random) -> None:
    """A character of the header becomes another that may stand there."""
    place = r.randrange(8, header_of(data))
    data[place] = r.choice(b'0123456789abcdef{}[]",: \\')


def enlarge_header(data: bytearray, r: random.Random) -> None:
    """The header's length is another."""
    length = int.from_bytes(data[:8], "little")
    length = r.choice((0, length - 8, length + 8, 2 * length, 2**31, 2**63 - 1, r.randrange(2**64)))
    data[:8] = length.to_bytes(8, "little")


WRONG = (0, 1, -1, 255, 10**6, 2**31, 2**40, 2**63, 10**30, 1.5, True, None, "", "gaps", "bitmap")
WRONG += ("float64", "bool", "00", [], [0], [[0, 4, 4]], [2**16, 2**15], {}, {"constant": "00"})


def places_in(node: Any) -> List:
    """Every (mapping or list, key) of nested ones."""
    places = []
    for key in node if isinstance(node, dict) else range(len(node)):
        places.append((node, key))
        if isinstance(node[key], (dict, list)):
            places += places_in(node[key])
    return places


def forge(data: bytearray, r: random.Random) -> None:
    """Something of the description becomes something else, and the checksum fits."""
    start = header_of(data)
    header = json.loads(data[8:start])
    facts = header["__metadata__"]
    if "sparse_file" not in facts:  # of the format before: damaged only
        data[r.randrange(start)] ^= 1
        return
    content = json.loads(facts["sparse_file"].partition(" ")[2])
    for _ in range(r.choice((1, 1, 1, 3))):
        node, key = r.choice(places_in(content["tensors"]))
        node[key] = json.loads(json.dumps(r.choice(WRONG)))
    text = json.dumps(content)
    facts["sparse_file"] = f"{zlib.crc32(text.encode()):08x} {text}"
    written = json.dumps(header, separators=(",", ":")).encode()
    data[:start] = len(written).to_bytes(8, "little") + written


def kind(folder: Path) -> Kind:
    from fairseq import checkpoint_utils as fairseq_checkpoints

    from src.checkpoint_utils import load_checkpoint, read_config, write_sparse
    from src.checkpoints.averaging import average_checkpoints
    from src.checkpoints.rebuild import load_model
    from src.errors import UserError
    from src.sparsity import load_sparse, read_metadata

    def config(path: str) -> Any:
        found = read_config(path)
        if found is None:  # what it gives for files that are refused when they are loaded
            raise UserError("None")
        return found

    path = checkpoint(folder)
    new, old = folder / "new.safetensors", folder / "old.safetensors"
    write_sparse(load_checkpoint(str(path), "--path"), str(new), f"--path {path}")
    shutil.copy(ROOT / "tests" / "sparsity" / "data" / "version_1.safetensors", old)
    readers = {
        "load_sparse": load_sparse,
        "read_metadata": read_metadata,
        "load_checkpoint": lambda p: load_checkpoint(p, "--path"),
        "fairseq's load_checkpoint_to_cpu": fairseq_checkpoints.load_checkpoint_to_cpu,
        "fairseq's load_model_ensemble": lambda p: states(
            fairseq_checkpoints.load_model_ensemble_and_task([p])[0]
        ),
        "load_model": lambda p: load_model(p).state_dict(),
        "average_checkpoints": lambda p: average_checkpoints([p, p])["model"],
        "read_config": config,
    }
    damages: Dict[str, Damage] = {"header": edit_header, "header's length": enlarge_header}
    return Kind([new, old], readers, damages, {"forged": forge})


def states(models: List[torch.nn.Module]) -> List[Dict]:
    return [dict(model.state_dict()) for model in models]
