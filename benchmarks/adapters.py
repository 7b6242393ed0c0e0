"""Adapters here against the public library, side by side, one layer at a time.

    pip install --no-deps --target LIBRARY structured-pruning-adapters==0.7.1 torch-pruning
    PYTHONPATH=LIBRARY python benchmarks/adapters.py --threads 1

Times of forward and backward pass in training, and of the forward pass in inference,
for a batch of tokens, all variants once a round in a new random order; figures are
medians of the ratios to a plain nn.Linear in the same round. "fused" is the layer that
to_module() returns. Memory is the largest sum of what PyTorch had allocated during one
training step beyond what was there before; "beyond linear" leaves out what a plain
Linear needs too. Without the library in PYTHONPATH its lines are left out.
"""

import re
import sys
from typing import Callable, Dict

import torch
from common import arguments, check, interleave, ratios, report, tensor_peak
from torch import nn

SETTINGS = {
    "SPLoRA r=8": ("SPLoRA", {"rank": 8}),
    "SPLoRA r=32": ("SPLoRA", {"rank": 32}),
    "SPLoPA N=64": ("SPLoPA", {"num_prototypes": 64}),
}


def layers(shape) -> Dict[str, nn.Module]:
    """The layer plain, and adapted by both, by name."""
    from src import adapters

    torch.manual_seed(1)
    plain = nn.Linear(*shape)
    found = {"linear": plain}
    try:
        import sp_adapters
    except ImportError:
        sp_adapters = None
        print("structured-pruning-adapters is not there: see --help", file=sys.stderr)
    for name, (kind, options) in SETTINGS.items():
        found[f"{name}, ours"] = getattr(adapters, kind)(plain, **options)
        if sp_adapters is not None:
            theirs = getattr(sp_adapters, kind)(plain, **options)
            found[f"{name}, library"] = theirs
    return found


def training_step(layer: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    layer.train()
    parameters = [p for p in layer.parameters() if p.requires_grad]

    def step() -> None:
        x.grad = None
        for parameter in parameters:
            parameter.grad = None
        layer(x).sum().backward()

    return step


def inference_step(layer: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    layer.eval()

    def step() -> None:
        with torch.no_grad():
            layer(x)

    return step


def main():
    parser = arguments(__doc__)
    parser.add_argument("--shapes", default="512x512,512x2048", help="inputs x outputs")
    parser.add_argument("--tokens", type=int, default=4096, help="rows of the batch")
    args = parser.parse_args()
    check(parser, args, tokens=1)
    for text in args.shapes.split(","):
        if not re.fullmatch("[1-9][0-9]*x[1-9][0-9]*", text):
            parser.error(f"--shapes {text}: must be INPUTSxOUTPUTS, as 512x2048")
    torch.set_num_threads(args.threads)
    rows = []
    for text in args.shapes.split(","):
        shape = tuple(map(int, text.split("x")))
        x = torch.randn(args.tokens, shape[0], requires_grad=True)
        constant = x.detach()
        both = layers(shape)
        training = {name: training_step(layer, x) for name, layer in both.items()}
        for step in training.values():
            step()  # what the first call alone allocates is not counted
        memory = {name: tensor_peak(step) for name, step in training.items()}
        times = interleave(training, args.rounds)
        trained = {row["variant"]: row for row in ratios(times, "linear")}
        inference = {name: inference_step(layer, constant) for name, layer in both.items()}
        for name, layer in both.items():
            if name != "linear":
                fused = layer.to_module()
                inference[f"{name}, fused"] = inference_step(fused, constant)
        times = interleave(inference, args.rounds)
        used = {row["variant"]: row for row in ratios(times, "linear")}
        for name in both:
            rows.append(
                {
                    "shape": text,
                    "layer": name,
                    "training": trained[name]["ratio"],
                    "quartiles": trained[name]["quartiles"],
                    "inference": used[name]["ratio"],
                    "fused": used.get(f"{name}, fused", {}).get("ratio"),
                    "memory MB": round(memory[name] / 1e6, 1),
                    "beyond linear MB": round((memory[name] - memory["linear"]) / 1e6, 1),
                }
            )
    report("Adapters", rows, args.output, tokens=args.tokens, rounds=args.rounds)


if __name__ == "__main__":
    main()
