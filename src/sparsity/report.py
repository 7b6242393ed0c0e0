"""How sparse a model is, layer by layer, as a table."""

import re
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import pandas as pd
import torch
from torch import Tensor, nn

from .errors import SparsityError
from .execution.layers import to_dense
from .execution.stored import StoredWeight, check_model
from .prunable import PRUNABLE, Layers, prunable_layers
from .pruning.patterns import Pattern, parse_pattern

OVER_PRUNABLE, OVER_ALL = "over prunable weights", "over all weights"
MISSING = "–"
COLUMNS = ["layer", "type", "shape", "pattern", "parameters", "remaining", "sparsity"]
COLUMNS += ["block_sparsity", "dense_bytes", "sparse_bytes"]
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

ABOUT_ELEMENTS = (
    "element sparsity: share of the weights that are zero; the others are the remaining"
)
ABOUT_BLOCKS = (
    "block sparsity: share of the pattern's blocks that are all zero, for N:M of the "
    "groups of M inputs with at least N zeros; each layer counts by its weights, and "
    "what has no blocks counts as none"
)
ABOUT_TOTALS = (
    f"{OVER_PRUNABLE}: of the layers listed, without their biases; {OVER_ALL}: of every "
    "parameter, once, so also of embeddings, biases and norms"
)
ABOUT_BYTES = (
    "dense: what the values take in memory; sparse: what they take in a sparse file, "
    "without its header"
)


def sparsity_report(
    model: nn.Module,
    pattern: Union[None, str, Mapping[str, str]] = None,
    names: Union[None, str, Sequence[str]] = None,
    bytes: bool = True,
    types: Sequence[str] = PRUNABLE,
) -> pd.DataFrame:
    """Element sparsity, block sparsity and sizes of each prunable layer and in total.

    Layers that store their values only count as the dense ones that they stand for.

    Args:
        model: any model; see :func:`.prunable.prunable_layers` for what is prunable.
        pattern: of the blocks, such as ``4x1`` or ``2:4``, for all layers, or one for
            each of some layers by their names. None counts no blocks.
        names: regular expressions; only prunable layers whose name one of them is
            found in. The row over all weights stays over all.
        bytes: measure what the weights take in memory and in a sparse file.
        types: classes of prunable layers, by name.

    Returns:
        One row for each layer, then ``over prunable weights`` and ``over all
        weights``. Columns: ``layer``, ``type``, ``shape``, ``pattern``,
        ``parameters``, ``remaining`` (not zero), ``sparsity`` (share of zeros),
        ``block_sparsity``, ``dense_bytes``, ``sparse_bytes``. Of a layer they are of
        its weight, without the bias. What doesn't apply is missing.

    Raises:
        SparsityError: nothing prunable, a name that is found in no layer, no such
            pattern, or a parameter without values.
    """
    check_model(model)
    if any(isinstance(module, StoredWeight) for module in model.modules()):
        model = to_dense(model)
    types = [types] if isinstance(types, str) else types
    layers = _selected(prunable_layers(model, types), names)
    patterns = _patterns(pattern, layers)
    for name, parameter in model.named_parameters():
        if parameter.is_meta or nn.parameter.is_lazy(parameter):
            raise SparsityError(f"parameter {name}: has no values yet; load them first")
    parameters = list(model.parameters())
    sizes = {id(p): sparse_bytes(p) for p in parameters} if bytes else {}

    rows = []
    in_zero_blocks = 0.0
    weights = {name: layer.get_parameter("weight") for name, layer in layers.items()}
    for name, layer in layers.items():
        weight = weights[name]
        row = {
            "layer": name,
            "type": type(layer).__name__,
            "shape": "x".join(map(str, weight.shape)),
            **_elements([weight], sizes),
        }
        if name in patterns:
            row["pattern"] = patterns[name].text
            row["block_sparsity"] = blocks = block_sparsity(weight.detach(), patterns[name])
            in_zero_blocks += (blocks or 0) * weight.numel()
        rows.append(row)
    used = {each.text for each in patterns.values()}
    common = used.pop() if len(used) == 1 else None
    for title, tensors in ((OVER_PRUNABLE, list(weights.values())), (OVER_ALL, parameters)):
        row = {"layer": title, **_elements(tensors, sizes)}
        if patterns and row["parameters"]:
            row["pattern"] = common
            row["block_sparsity"] = in_zero_blocks / row["parameters"]
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def block_sparsity(weight: Tensor, pattern: Pattern) -> Optional[float]:
    """Share of a weight's blocks that are all zero; None for a weight without blocks.

    For N:M, the share of the groups in which at least N weights are zero (in a smaller
    last group at least as many as the pattern removes of it).
    """
    if not weight.numel():
        return None
    matrix = pattern.matrix(weight.abs())
    counted = pattern.block_sizes(matrix.shape) > 0
    # of N:M the block is the N lowest, so their largest tells whether all of them are 0
    largest = pattern.block_scores(matrix, reduce="max").cpu()
    number = int(counted.sum())
    return int((largest == 0)[counted].sum()) / number if number else None


def sparse_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor's values take in a sparse file, from encoding them.

    The file's header, which names and describes the tensor, is not counted.
    """
    from .files.encodings import encode

    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    words = tensor.detach().cpu().contiguous().flatten().view(WORDS[tensor.itemsize])
    unsigned = words.numpy().view(f"<u{tensor.itemsize}")
    _, parts = encode(unsigned, tensor.is_floating_point(), "full")
    return sum(part.nbytes for part in parts)


def _elements(tensors: Sequence[Tensor], sizes: Mapping[int, int]) -> Dict[str, Any]:
    number = sum(tensor.numel() for tensor in tensors)
    remaining = sum(int(tensor.count_nonzero()) for tensor in tensors)
    row: Dict[str, Any] = {
        "parameters": number,
        "remaining": remaining,
        "sparsity": (number - remaining) / number if number else 0.0,
    }
    if sizes:
        row["dense_bytes"] = sum(tensor.nbytes for tensor in tensors)
        row["sparse_bytes"] = sum(sizes[id(tensor)] for tensor in tensors)
    return row


def _selected(layers: Layers, names: Union[None, str, Sequence[str]]) -> Layers:
    if names is None:
        return layers
    expressions = [names] if isinstance(names, str) else list(names)
    selected: Layers = {}
    for expression in expressions:
        try:
            matching = re.compile(expression)
        except re.error as error:
            raise SparsityError(
                f"names: {expression!r} is no regular expression ({error})"
            ) from None
        of_this = {name: layer for name, layer in layers.items() if matching.search(name)}
        if not of_this:
            raise SparsityError(
                f"names: {expression!r} is found in none of the {len(layers)} prunable "
                f"layers, such as {', '.join(list(layers)[:3])}"
            )
        selected.update(of_this)
    return {name: layer for name, layer in layers.items() if name in selected}


def _patterns(pattern: Union[None, str, Mapping[str, str]], layers: Layers) -> Dict[str, Pattern]:
    if pattern is None:
        return {}
    if not isinstance(pattern, Mapping):
        return dict.fromkeys(layers, parse_pattern(pattern))
    unknown = [name for name in pattern if name not in layers]
    if unknown:
        raise SparsityError(
            f"pattern: {unknown[0]} is none of the {len(layers)} layers of this report, "
            f"such as {', '.join(list(layers)[:3])}"
        )
    return {name: parse_pattern(text) for name, text in pattern.items()}


def readable(report: pd.DataFrame) -> pd.DataFrame:
    """The report for people: titles with units, few digits, no empty column."""

    def column(name: str, pattern: str, unit: float = 1.0) -> List[str]:
        values = report[name]
        return [MISSING if pd.isna(v) else pattern.format(v / unit) for v in values]

    def words(name: str) -> List[str]:
        return [MISSING if pd.isna(value) else str(value) for value in report[name]]

    columns = {
        "layer": report["layer"].tolist(),
        "type": words("type"),
        "shape": words("shape"),
        "pattern": words("pattern"),
        "parameters": column("parameters", "{:,.0f}"),
        "remaining": column("remaining", "{:,.0f}"),
        "element sparsity": column("sparsity", "{:.2%}"),
        "block sparsity": column("block_sparsity", "{:.2%}"),
        "dense kB": column("dense_bytes", "{:,.1f}", 1e3),
        "sparse kB": column("sparse_bytes", "{:,.1f}", 1e3),
    }
    empty = {MISSING}
    return pd.DataFrame({k: v for k, v in columns.items() if set(v) != empty})


def notes(report: pd.DataFrame) -> List[str]:
    """Explanations of the columns and last rows that a report has."""
    lines = [ABOUT_ELEMENTS]
    if report["block_sparsity"].notna().any():
        lines.append(ABOUT_BLOCKS)
    lines.append(ABOUT_TOTALS)
    if report["sparse_bytes"].notna().any():
        lines.append(ABOUT_BYTES)
    return lines


def to_markdown(report: pd.DataFrame) -> str:
    """The readable table and its notes, in Markdown."""
    shown = readable(report)
    text = ("layer", "type", "shape", "pattern")
    aligned = ["left" if name in text else "right" for name in shown]
    table = shown.to_markdown(index=False, colalign=aligned, disable_numparse=True)
    return f"{table}\n\n" + "".join(f"- {note}\n" for note in notes(report))
