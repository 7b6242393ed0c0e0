"""One pair out of a model of NLLB-600M's shape: trimmed, pruned, exported, translated.

    python benchmarks/vocabulary_nllb.py

The model has random weights in half precision: one dictionary of 256,000 types with tags
(eng_Latn), tables of 1,024, 12+12 layers of 4,096 feed-forward units. The data are random
sentences of its most frequent types. trim_vocabulary.py, pruning.py (one shot), export.py
and generate.py run as a user runs them, each in a process of its own; "peak" is the most
memory that the process had resident, as the kernel counts it, mapped files too. Random
weights translate nothing: what is shown is that every step takes the model.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import ROOT

TAGS = ["eng_Latn", "deu_Latn", "fra_Latn", "zho_Hans"]


def write_data(folder: Path, types: int, used: int, sentences: int) -> None:
    """Sentences of the ``used`` first types, each with the tag of its language."""
    from fairseq.data import Dictionary
    from fairseq.data.indexed_dataset import make_builder

    words = Dictionary()
    for number in range(types - words.nspecial - len(TAGS)):
        words.add_symbol(f"\N{LOWER ONE EIGHTH BLOCK}w{number}", types - number)
    for tag in TAGS:
        words.add_symbol(tag, 1)
    generator = torch.Generator().manual_seed(1)
    for language, tag in (("de", "deu_Latn"), ("en", "eng_Latn")):
        words.save(str(folder / f"dict.{language}.txt"))
        every = torch.arange(words.nspecial, words.nspecial + used)
        for split, number in (("train", sentences), ("valid", 8), ("test", 8)):
            prefix = str(folder / f"{split}.de-en.{language}")
            builder = make_builder(f"{prefix}.bin", "mmap", len(words))
            for i in range(number):
                if split == "train":  # every type is used at least once
                    text = every[i * used // number : (i + 1) * used // number]
                else:
                    text = every[torch.randint(used, (12,), generator=generator)]
                builder.add_item(torch.tensor([words.index(tag), *text.tolist(), words.eos()]))
            builder.finalize(f"{prefix}.idx")


def write_model(data: str, path: str, args) -> None:
    """A checkpoint in half precision, without an optimizer's state."""
    from fairseq import options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from omegaconf import OmegaConf

    import src  # noqa: F401  registers the plug-in

    arguments = [data, "--task", "SRPtranslation", "--user-dir", str(ROOT / "src"), *shape(args)]
    parser = options.get_training_parser()
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, arguments))
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(1)
    torch.set_default_dtype(torch.float16)
    model = task.build_model(cfg.model)
    torch.set_default_dtype(torch.float32)
    state = {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "model": model.half().state_dict(),
        "criterion": None,
        "optimizer_history": [
            {"num_updates": 0, "optimizer_name": "SRPAdam", "lr_scheduler_state": {}}
        ],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1}},
    }
    torch.save(state, path)


def make(data: str, model: str, args) -> None:
    write_data(Path(data), args.types, args.used, args.sentences)
    write_model(data, model, args)


def shape(args) -> list:
    sides = []
    for side in ("encoder", "decoder"):
        sides += [f"--{side}-embed-dim", args.width, f"--{side}-ffn-embed-dim", 4 * args.width]
        sides += [f"--{side}-layers", args.layers, f"--{side}-attention-heads", 16]
        sides += [f"--{side}-normalize-before"]
    return ["--arch", "srp", "--share-all-embeddings", *map(str, sides)]


def step(name: str, *command) -> None:
    """Run a command of the plug-in in a process of its own; print its time and memory."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "src" / command[0]), *map(str, command[1:])],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name} failed:\n{output[-3000:]}")
    peak = usage.ru_maxrss * 1024
    print(f"{name}: {time.perf_counter() - begin:.0f} s, peak {peak / 1e9:.2f} GB", flush=True)
    for line in output.splitlines():
        if line.startswith(("parameters:", "source types", "bytes of", "wrote")):
            print(f"    {line}")


def translate(folder: str) -> None:
    """Translate with the exported model, the language's tag as the target's beginning."""
    import ctranslate2

    begin = time.perf_counter()
    translator = ctranslate2.Translator(folder, intra_threads=2)
    space = "\N{LOWER ONE EIGHTH BLOCK}"
    sources = [["deu_Latn", *(f"{space}w{7 * i + k}" for k in range(12))] for i in range(8)]
    results = translator.translate_batch(
        sources, target_prefix=[["eng_Latn"]] * len(sources), max_decoding_length=20
    )
    first = {result.hypotheses[0][0] for result in results}
    if first != {"eng_Latn"}:
        raise SystemExit(f"translations begin with {first}")
    seconds = time.perf_counter() - begin
    print(f"translate with CTranslate2: {len(sources)} sentences, all eng_Latn, {seconds:.1f} s")


def size(path: str) -> int:
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(path, name)) for name in os.listdir(path))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--types", type=int, default=256_000, help="of the dictionary (default: %(default)s)"
    )
    parser.add_argument(
        "--used", type=int, default=29_992, help="types that the pair uses (default: %(default)s)"
    )
    parser.add_argument(
        "--width", type=int, default=1024, help="of the tables (default: %(default)s)"
    )
    parser.add_argument(
        "--layers", type=int, default=12, help="of either side (default: %(default)s)"
    )
    parser.add_argument(
        "--sentences", type=int, default=2000, help="of the training data (default: %(default)s)"
    )
    parser.add_argument(
        "--rate", type=float, default=0.5, help="--compression-rate (default: %(default)s)"
    )
    parser.add_argument("--folder", help="where to work (default: a temporary folder)")
    parser.add_argument("--trim-only", action="store_true", help="end after the first step")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        data, model = Path(folder) / "data", f"{folder}/model.pt"
        data.mkdir()
        # in a process of its own: a child's peak begins with what its parent holds
        maker = multiprocessing.get_context("spawn").Process(
            target=make, args=(str(data), model, args)
        )
        maker.start()
        maker.join()
        before = size(model)
        print(f"model: {before:,} bytes", flush=True)
        new, trimmed = f"{folder}/trimmed", f"{folder}/trimmed.pt"
        step(
            "trim", "trim_vocabulary.py", data, "--path", model,
            "--output", new, "--output-checkpoint", trimmed,
        )  # fmt: skip
        print(f"trimmed: {size(trimmed):,} bytes ({size(trimmed) / before:.1%})", flush=True)
        if args.trim_only:
            return
        os.remove(model)
        run, exported = f"{folder}/pruned", f"{folder}/ctranslate2"
        step(
            "prune", "pruning.py", new, *shape(args), "--task", "SRPtranslation", "--cpu",
            "--pretrained-model", trimmed, "--compression-rate", args.rate, "--criterion", "srp",
            "--optimizer", "srp_adam", "--lr", "1e-5", "--max-tokens", "64", "--max-update", "1",
            "--scoring-batches", "1", "--scoring-tokens", "64", "--save-dir", run,
            "--no-epoch-checkpoints", "--no-save-optimizer-state", "--disable-validation",
        )  # fmt: skip
        checkpoint = f"{run}/checkpoint_last.pt"
        print(f"pruned: {size(checkpoint):,} bytes in float32", flush=True)
        step(
            "export", "export.py", new, "--path", checkpoint, "--output", exported,
            "--quantization", "int8", "--max-length", "128",
        )  # fmt: skip
        print(
            f"exported: {size(exported):,} bytes in int8 ({size(exported) / before:.1%})",
            flush=True,
        )
        step(
            "translate with PyTorch", "generate.py", new, "--path", checkpoint,
            "--prefix-size", "1", "--max-len-b", "20", "--max-len-a", "0", "--cpu",
        )  # fmt: skip
        translate(exported)


if __name__ == "__main__":
    main()
