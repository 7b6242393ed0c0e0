"""What the benchmarks share: models on a synthetic corpus, interleaved timing, reports."""

import argparse
import json
import logging
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

logging.basicConfig(level=logging.WARNING)  # before fairseq sets the root logger to INFO


def write_synthetic_data(folder: Path, types: int = 4000, sentences: int = 64) -> None:
    """Dictionaries and a tiny binarized corpus of random sentences."""
    from fairseq.data import Dictionary
    from fairseq.data.indexed_dataset import make_builder

    generator = random.Random(1)
    for language in ("de", "en"):
        dictionary = Dictionary()
        for i in range(types - dictionary.nspecial):
            dictionary.add_symbol(f"w{i}", n=types - i)
        dictionary.save(str(folder / f"dict.{language}.txt"))
        for split in ("train", "valid"):
            prefix = str(folder / f"{split}.de-en.{language}")
            builder = make_builder(prefix + ".bin", "mmap", vocab_size=types)
            for _ in range(sentences):
                length = generator.randint(5, 30)
                words = [generator.randrange(4, types) for _ in range(length)]
                builder.add_item(torch.tensor(words + [2]))
            builder.finalize(prefix + ".idx")


def synthetic_batch(tokens: int, length: int, source_types: int, target_types: int) -> Dict:
    """A training batch of about ``tokens`` target tokens, one sentence in five shorter."""
    generator = torch.Generator().manual_seed(1)
    sentences = tokens // length
    source = torch.randint(4, source_types, (sentences, length), generator=generator)
    target = torch.randint(4, target_types, (sentences, length), generator=generator)
    source[::5, : length // 4] = 1
    target[::5, -(length // 4) :] = 1
    previous = torch.cat([torch.full((sentences, 1), 2), target[:, :-1]], dim=1)
    return {
        "id": torch.arange(sentences),
        "nsentences": sentences,
        "ntokens": int(target.ne(1).sum()),
        "net_input": {
            "src_tokens": source,
            "src_lengths": source.ne(1).sum(1),
            "prev_output_tokens": previous,
        },
        "target": target,
    }


def build_trainer(data: str, extra: List[str], device: str = "cpu"):
    """A fairseq trainer as ``src/train.py`` would make it."""
    from fairseq import options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    import src  # noqa: F401  registers the plug-in
    from src.trainer import SRPTrainer

    parser = options.get_training_parser()
    arguments = [data, "--max-tokens", "4096", *extra, *(["--cpu"] if device == "cpu" else [])]
    args = options.parse_args_and_arch(parser, arguments)
    args.tpu = False  # fairseq takes --bf16 for a TPU
    cfg = convert_namespace_to_omegaconf(args)
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(1)
    model = task.build_model(cfg.model)
    criterion = task.build_criterion(cfg.criterion)
    return SRPTrainer(cfg, task, model, criterion)


def tensor_peak(step: Callable[[], None]) -> int:
    """Bytes that the tensors allocated in a call of ``step`` take at once, at most."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        step()
    events = [
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    present = peak = 0
    for _, size in sorted(events):
        present += size
        peak = max(peak, present)
    return peak


def wait(device: str) -> None:
    """Wait until what was asked of a device is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def moved(sample: Dict, device: str) -> Dict:
    """A batch on the device that it is for."""
    from fairseq.utils import move_to_cuda

    return move_to_cuda(sample) if device == "cuda" else sample


def interleave(
    variants: Dict[str, Callable[[], None]], rounds: int, warmup: int = 2
) -> Dict[str, List[float]]:
    """Seconds per call, every variant once a round, in a new random order each time."""
    from src.planning.timing import interleave as side_by_side

    return side_by_side(variants, rounds, warmup)


def ratios(times: Dict[str, List[float]], base: str) -> List[Dict]:
    """Median of the ratios to ``base`` taken round by round, with quartiles."""
    rows = []
    for name, values in times.items():
        quotient = sorted(v / b for v, b in zip(values, times[base]))
        quartiles = statistics.quantiles(quotient, n=4)
        rows.append(
            {
                "variant": name,
                "seconds": round(statistics.median(values), 4),
                "ratio": round(statistics.median(quotient), 3),
                "quartiles": f"{quartiles[0]:.3f}-{quartiles[2]:.3f}",
            }
        )
    return rows


# Rows, inputs and outputs of the probe's products: a layer of the IWSLT shape, and the output
# projection of Multi30k's.
PROBES = ((1024, 512, 1024), (512, 256, 4096))


def product_rates(rounds: int = 15) -> Dict[str, str]:
    """GFLOP/s of matrix products in each library, which is what most ratios here depend on.

    The best of some rounds, at the number of threads that is set; half a second.
    """
    import torch.nn.functional as F

    from src.modules.torch_private import has_onednn, onednn_linear

    # PyTorch's own choice is MKL on x86
    routes = {"PyTorch float32": (F.linear, torch.float32), "bfloat16": (F.linear, torch.bfloat16)}
    if has_onednn():
        routes["oneDNN float32"] = (onednn_linear, torch.float32)
    rates = {}
    for name, (product, dtype) in routes.items():
        best = []
        for rows, inputs, outputs in PROBES:
            x, weight = torch.full((rows, inputs), 0.5), torch.full((outputs, inputs), 0.5)
            x, weight = x.to(dtype), weight.to(dtype)
            least = float("inf")
            with torch.no_grad():
                for _ in range(rounds):
                    begin = time.perf_counter()
                    product(x, weight)
                    least = min(least, time.perf_counter() - begin)
            best.append(f"{2e-9 * rows * inputs * outputs / least:.0f}")
        rates[f"GFLOP/s {name}"] = "/".join(best)
    return rates


def machine() -> Dict:
    from src.evaluation.measures import processor

    return {
        **product_rates(),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def report(title: str, rows: List[Dict], output: str, **conditions) -> None:
    """Print a Markdown table; write it and the JSON to ``output``.{md,json}."""
    import pandas as pd

    cells = pd.DataFrame(rows).astype(object)
    table = cells.where(cells.notna(), "").to_markdown(index=False)
    facts = {**conditions, **machine()}
    text = (
        f"# {title}\n\n{table}\n\n"
        + ", ".join(f"{k} {v}" for k, v in facts.items() if v is not None)
        + "\n"
    )
    print(text)
    if output:
        os.makedirs(os.path.dirname(output) or ".", exist_ok=True)
        Path(output + ".md").write_text(text, encoding="utf-8")
        Path(output + ".json").write_text(
            json.dumps({"title": title, "rows": rows, "conditions": facts}, indent=1)
        )


class _Help(argparse.RawDescriptionHelpFormatter):
    """The description as it is written, and the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if "default" in text or action.default in (None, "", False, argparse.SUPPRESS):
            return text
        return f"{text} (default: %(default)s)"


def arguments(
    description: str, rounds: Optional[int] = 15, gpu: bool = False
) -> argparse.ArgumentParser:
    """Options that benchmarks have in common.

    Args:
        rounds: how often everything is timed by default; None where nothing is.
        gpu: whether the benchmark runs on a GPU, too.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=_Help)
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help="timed rounds")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    if gpu:
        parser.add_argument(
            "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: the first GPU"
        )
    parser.add_argument(
        "--output", default="", help="write OUTPUT.md and OUTPUT.json (default: print only)"
    )
    return parser


def check(parser: argparse.ArgumentParser, args: argparse.Namespace, **least: int) -> None:
    """Refuse numbers that are too small, before anything is timed.

    Args:
        least: of a script's own options; quartiles need two rounds.
    """
    for name, value in {"rounds": 2, "threads": 1, **least}.items():
        found = getattr(args, name, None)
        if found is not None and found < value:
            parser.error(f"--{name.replace('_', '-')} {found}: must be at least {value}")
    if getattr(args, "device", "cpu") == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU; leave it out")


def numbers(parser: argparse.ArgumentParser, option: str, text: str) -> List[float]:
    """Rates from a list with commas, each between 0 and 1."""
    found = []
    for part in text.split(","):
        try:
            found.append(float(part))
        except ValueError:
            parser.error(f"{option} {part}: is no number")
        if not 0 < found[-1] < 1:
            parser.error(f"{option} {part}: must be between 0 and 1")
    return found


def temporary_data() -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory()
    write_synthetic_data(Path(folder.name))
    return folder
