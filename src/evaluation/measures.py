"""What is measured of a translation beside BLEU: speed, sizes, FLOPs."""

import io
import os
import platform
from typing import Any, Dict, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import nn

from ..adapters import adapted_layers
from ..adapters import report as adapter_report
from ..connectivity.budget import ParameterCount
from ..connectivity.groups import base_parameters
from ..connectivity.layers import widths_in_uncut
from ..decoding.translate import Step
from ..errors import UserError
from .flops import count_flops


def speed(steps: Sequence[Step]) -> Dict[str, Any]:
    """Speed of generation, without loading and printing.

    Where there are several batches, the first (of the shortest sentences) is a
    warm-up and not counted in ``tokens_per_second``.
    """
    timed = steps[1:] or steps
    seconds = sum(step.seconds for step in timed)
    tokens = sum(step.tokens for step in timed)
    return {
        "tokens_per_second": round(tokens / seconds, 2) if seconds else None,
        "warm_up_batches": len(steps) - len(timed),
        "sentences": sum(step.sentences for step in steps),
        "tokens": sum(step.tokens for step in steps),
        "seconds": round(sum(step.seconds for step in steps), 3),
    }


def processor() -> str:
    """The processor's name, as far as the system tells."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            for line in stream:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine() -> Dict[str, Any]:
    """What the time was measured on."""
    return {
        "machine": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def serialized_bytes(model: nn.Module) -> int:
    """Size of a file with the weights alone."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


def learned_parameters(model: nn.Module) -> int:
    """Parameters of adapters and the biases learned with them; 0 without adapters."""
    if not adapted_layers(model):
        return 0
    total = adapter_report(model)[-1]
    return total["adapter"] + total["biases"]


def sizes(model: nn.Module, path: str) -> Dict[str, Any]:
    """Parameters, bytes and widths of a model and its checkpoint.

    Returns:
        ``parameters`` and ``uncut_parameters`` (connectivity is not one; adapters
        are not counted, fused they are part of the weights), ``adapter_parameters``
        that were learned in their place, with biases, ``nonzero_parameters``,
        ``checkpoint_bytes`` as the file lies there (training's hold the
        optimizer's state too), ``model_bytes`` of the weights alone, and
        ``widths``: name of a group in the uncut model to [width, width there], 0 in
        layers that are gone.
    """
    count = ParameterCount(model)
    return {
        "parameters": sum(p.numel() for p in base_parameters(model)),
        "adapter_parameters": learned_parameters(model),
        "nonzero_parameters": sum(int(p.count_nonzero()) for p in base_parameters(model)),
        "uncut_parameters": count.uncut,
        "checkpoint_bytes": os.path.getsize(path),
        "model_bytes": serialized_bytes(model),
        "widths": widths_in_uncut(model),
    }


def check_countable(model: nn.Module, option: str) -> None:
    """Refuse a model whose FLOPs can't be counted.

    Raises:
        UserError: it is no encoder-decoder Transformer with a plain output projection.
    """
    try:
        count_flops(model, 1, 1)
    except (ValueError, AttributeError):
        raise UserError(
            f"{option}: has FLOPs, which are counted of encoder-decoder Transformers with "
            "cross-attention and a plain softmax; leave it out"
        ) from None


def _pytorch(cfg) -> str:
    """The name of this engine, with the options that change its speed."""
    options = {"--fp16": cfg.common.fp16}
    for name in ("cpu_bf16", "sparse_inference", "fairseq_search"):
        options[f"--{name.replace('_', '-')}"] = getattr(cfg.task, name, False)
    return " ".join(["pytorch", *(option for option, given in options.items() if given)])


def report_model(
    cfg,
    model: nn.Module,
    dataset,
    lengths: Tuple[Optional[int], Optional[int]],
    skipped: Sequence[int] = (),
) -> Dict[str, Any]:
    """What ``--report`` writes of the model.

    Args:
        cfg: fairseq's configuration of the run.
        model: as it was read; what makes translation faster can change its weights.
        dataset: the sentence pairs to translate.
        lengths: source and target tokens for FLOPs (default: the mean of
            those translated), which are of one sentence at beam 1, see ``flops_counter``.
        skipped: numbers of the sentences that are left out.
    """
    sources, targets = dataset.src_sizes, dataset.tgt_sizes
    targets = sources if targets is None else targets
    means = [float(np.mean(np.delete(x, list(skipped)))) for x in (sources, targets)]
    source, target = (given or round(mean) for given, mean in zip(lengths, means))
    flops = count_flops(model, source, target)
    return {
        "checkpoint": cfg.common_eval.path,
        **sizes(model, cfg.common_eval.path),
        "flops": flops.pop("total"),
        "flops_parts": flops,
        "flops_source_length": source,
        "flops_target_length": target,
    }


def report_translation(cfg, steps: Sequence[Step], engine=None) -> Dict[str, Any]:
    """What ``--report`` writes of the translation: speed, search, machine, engine.

    Args:
        cfg: fairseq's configuration of the run.
        steps: the time of each batch.
        engine: what translated instead of PyTorch, with ``facts()`` of its own.
    """
    has_gpu = torch.cuda.is_available() and not cfg.common.cpu
    return {
        **speed(steps),
        "beam": cfg.generation.beam,
        "lenpen": cfg.generation.lenpen,
        "batch_size": cfg.dataset.batch_size,
        "max_tokens": cfg.dataset.max_tokens,
        "gen_subset": cfg.dataset.gen_subset,
        "device": torch.cuda.get_device_name() if has_gpu else "cpu",
        **machine(),
        "engine": _pytorch(cfg),
        **(engine.facts() if engine else {}),
    }
