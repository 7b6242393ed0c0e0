"""Translate a test set: fairseq-generate, then BLEU and a report.

    python src/generate.py data-bin/multi30k.de-en --path checkpoints/base/checkpoint_best.pt \\
        --batch-size 128 --beam 5 --remove-bpe --report checkpoints/base/report.json

Options and output lines are fairseq-generate's (log lines go to standard error);
then follows BLEU of the detokenized text with sacreBLEU's signature. What
differs: this plug-in and its task are the defaults, and so is
--required-batch-size-multiple 1, because fairseq's 8 leaves out the sentences of
an incomplete last batch.

References are the data's target side, detokenized, where words outside the
dictionary stand as <<unk>> and match nothing; --reference takes the raw text
instead. A sentence whose source line is empty is translated like any other and
keeps its number. Sentences longer than the model's position tables are refused;
with --skip-invalid-size-inputs-valid-test they are left out of the output and
count as empty translations in BLEU.
"""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(FOLDER.parent)  # this folder is a package, not a module path
    sys.exit(importlib.import_module(f"{FOLDER.name}.generate").main())

import argparse  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import shlex  # noqa: E402
from contextlib import nullcontext  # noqa: E402
from typing import Any, Dict, List, Optional  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from fairseq import checkpoint_utils, options, tasks, utils  # noqa: E402
from fairseq.dataclass.utils import convert_namespace_to_omegaconf  # noqa: E402
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY  # noqa: E402
from fairseq_cli import generate as fairseq_generate  # noqa: E402

from . import cli, evaluation  # noqa: E402
from .checkpoint_utils import atomic_write, load_checkpoint, trusted_pickle  # noqa: E402
from .errors import UserError  # noqa: E402
from .flops_counter import count_flops  # noqa: E402
from .pretrained import STRUCTURE, inherit_layernorm, read_model_config  # noqa: E402

logger = logging.getLogger(__name__)

# What an --arch stands for; the README's commands name nothing else of the model.
DIMENSIONS = tuple(
    f"{side}_{name}"
    for side in ("encoder", "decoder")
    for name in ("embed_dim", "ffn_embed_dim", "layers", "attention_heads")
)
# With these options of the model, the command line means the task's of the same name.
_OF_THE_TASK = ("max_source_positions", "max_target_positions")


# -- options ------------------------------------------------------------------------


def _known_arch(name: str) -> str:
    if name not in ARCH_MODEL_REGISTRY:
        known = ", ".join(n for n in ARCH_MODEL_REGISTRY if n.startswith("srp"))
        raise argparse.ArgumentTypeError(f"{name} is unknown; SRP's are {known}")
    return name


def get_parser() -> argparse.ArgumentParser:
    """fairseq-generate's options and this tool's own."""
    parser = options.get_generation_parser(default_task="SRPtranslation")
    parser.set_defaults(required_batch_size_multiple=1)
    group = parser.add_argument_group("checks against the checkpoint")
    group.add_argument(
        "--arch",
        "-a",
        metavar="ARCH",
        type=_known_arch,
        default=argparse.SUPPRESS,
        help="architecture that the checkpoint is expected to have",
    )
    group.add_argument(
        "--weighted-layernorm",
        action="store_true",
        help="expect weighted layer normalization; a cut model keeps its own kind",
    )
    group.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="unpickle any object in --path: for old checkpoints of your own, since "
        "a pickle can run code",
    )
    group = parser.add_argument_group("BLEU and report")
    group.add_argument(
        "--detok",
        choices=("moses", "none"),
        help="how the output becomes text for BLEU (default: moses; none with --tokenizer, "
        "which does it already)",
    )
    group.add_argument(
        "--reference",
        metavar="FILE",
        help="raw references, one a line in the order of the test set (default: the "
        "data's target side, detokenized)",
    )
    group.add_argument(
        "--sacrebleu-lowercase", action="store_true", help="BLEU of lower-cased text"
    )
    group.add_argument(
        "--tokenized-bleu",
        action="store_true",
        help="also BLEU of the tokens against the data's target side",
    )
    group.add_argument(
        "--report",
        metavar="FILE.json",
        help="write BLEU, parameters, FLOPs, bytes and speed to this file",
    )
    for side in ("source", "target"):
        group.add_argument(
            f"--flops-{side}-length",
            type=int,
            metavar="N",
            help=f"{side} tokens of a sentence for FLOPs (default: the test set's mean)",
        )
    return parser


# -- checks before any work ------------------------------------------------------------


def check_options(args, cfg) -> None:
    """Refuse what the command line alone rules out.

    Raises:
        UserError: names the option, its value and what is valid.
    """
    if not cfg.common_eval.path:
        raise UserError("--path: missing; give the checkpoint to translate with")
    paths = utils.split_paths(cfg.common_eval.path)
    if args.report:
        folder = os.path.dirname(args.report) or "."
        if not os.path.isdir(folder):
            raise UserError(f"--report {args.report}: there is no folder {folder}")
        if os.path.isdir(args.report):
            raise UserError(f"--report {args.report}: is a folder; give a file name")
        if len(paths) > 1:
            raise UserError("--report: is about one model; --path names several")
    if args.reference and not os.path.isfile(args.reference):
        raise UserError(f"--reference {args.reference}: no such file")
    for option, value in (
        ("--flops-source-length", args.flops_source_length),
        ("--flops-target-length", args.flops_target_length),
        ("--beam", cfg.generation.beam),
    ):
        if value is not None and value < 1:
            raise UserError(f"{option} {value}: must be at least 1")
    if args.tokenized_bleu and cfg.tokenizer is not None:
        raise UserError("--tokenized-bleu: --tokenizer undoes the tokens; leave it out")
    if cfg.generation.sampling and cfg.generation.nbest != cfg.generation.beam:
        raise UserError(f"--sampling: needs --nbest {cfg.generation.beam}, as --beam is")
    if cfg.generation.replace_unk is not None and cfg.dataset.dataset_impl != "raw":
        raise UserError("--replace-unk: needs --dataset-impl raw")
    shards = cfg.distributed_training.distributed_world_size
    if shards != 1:
        raise UserError(
            f"--distributed-world-size {shards}: BLEU is of the whole test set; translate "
            "shards with fairseq-generate"
        )
    if cfg.common.fp16 and (cfg.common.cpu or not torch.cuda.is_available()):
        raise UserError("--fp16: needs a GPU; on a CPU leave it out")
    for folder in utils.split_paths(cfg.task.data or ""):
        if not os.path.isdir(folder):
            raise UserError(f"data {folder}: there is no such folder of binarized data")


def set_up_task(cfg):
    """The task with its dictionaries and the set to translate.

    Raises:
        UserError: the data's folder lacks a file.
    """
    try:
        task = tasks.setup_task(cfg.task)
        task.load_dataset(cfg.dataset.gen_subset)
    except FileNotFoundError as error:
        raise UserError(f"data {cfg.task.data}: {error}; run fairseq-preprocess") from None
    except Exception as error:  # fairseq raises a plain Exception for this one
        if "infer language pair" not in str(error):
            raise
        raise UserError(
            f"data {cfg.task.data}: its files name no languages; give --source-lang and "
            "--target-lang"
        ) from None
    if not len(task.dataset(cfg.dataset.gen_subset)):
        raise UserError(f"--gen-subset {cfg.dataset.gen_subset}: has no sentences")
    return task


def check_checkpoint(args, task, state: Dict[str, Any], path: str) -> None:
    """Compare a checkpoint with the data and with what --arch promises.

    Raises:
        UserError: names the first dictionary or option that differs.
    """
    for side, dictionary in (
        ("encoder", task.source_dictionary),
        ("decoder", task.target_dictionary),
    ):
        table = state["model"].get(f"{side}.embed_tokens.weight")
        if table is None:
            raise UserError(
                f"--path {path}: is no SRP model or fairseq Transformer; translate with "
                "fairseq-generate"
            )
        if len(table) != len(dictionary):
            language = "source" if side == "encoder" else "target"
            raise UserError(
                f"--path {path}: its {language} dictionary has {len(table)} types, the "
                f"data's has {len(dictionary)}; use the data it was trained on (or "
                "preprocess yours with its dictionaries)"
            )
    if args.weighted_layernorm:
        inherit_layernorm(argparse.Namespace(weighted_layernorm=True), state, path)
    if not hasattr(args, "arch"):
        return
    config, usual = read_model_config(state), argparse.Namespace()
    ARCH_CONFIG_REGISTRY[args.arch](usual)
    for name in STRUCTURE:
        asked = getattr(args, name, None)
        given = asked != getattr(usual, name, None)  # an option beside --arch
        if name in _OF_THE_TASK or not (given or name in DIMENSIONS):
            continue
        its = getattr(config, name)
        if str(asked) != str(its):
            option = name.replace("_", "-")
            raise UserError(
                f"--arch {args.arch}: has --{option} {asked}, {path} has {its}; give the "
                "--arch it was trained with, or leave --arch out"
            )


def check_lengths(cfg, task, models) -> List[int]:
    """Find sentences that are too long for the model.

    Returns:
        Numbers of the sentences that will be left out, as the user allowed.

    Raises:
        UserError: names the first such sentence, the limit and what to do.
    """
    subset = cfg.dataset.gen_subset
    dataset = task.dataset(subset)
    limits = utils.resolve_max_positions(
        task.max_positions(), *[model.max_positions() for model in models]
    )
    kept, skipped = dataset.filter_indices_by_size(np.arange(len(dataset)), limits)
    if skipped and not cfg.dataset.skip_invalid_size_inputs_valid_test:
        first = skipped[0]
        lengths = dataset.size(first)
        side = 0 if lengths[0] > limits[0] else 1
        raise UserError(
            f"--gen-subset {subset}: the {('source', 'target')[side]} of sentence {first} "
            f"(line {first + 1}) has {lengths[side]} tokens, the limit is {limits[side]}; "
            "shorten it, or leave such sentences out (here "
            f"{len(skipped)}) with --skip-invalid-size-inputs-valid-test"
        )
    max_tokens = cfg.dataset.max_tokens
    if max_tokens is None and cfg.dataset.batch_size is None:
        max_tokens = 12000  # fairseq's default
    longest = max(kept.tolist(), key=dataset.num_tokens, default=None)
    if max_tokens and longest is not None and dataset.num_tokens(longest) > max_tokens:
        raise UserError(
            f"--max-tokens {max_tokens}: sentence {longest} (line {longest + 1}) has "
            f"{dataset.num_tokens(longest)} tokens; raise it"
        )
    return skipped


# -- translation, BLEU, report -------------------------------------------------------------


def target_side(cfg, task) -> Optional[List[str]]:
    """The data's target sentences as fairseq-generate prints them; None without any."""
    dataset = task.dataset(cfg.dataset.gen_subset)
    if dataset.tgt is None:
        return None
    bpe, tokenizer = task.build_bpe(cfg.bpe), task.build_tokenizer(cfg.tokenizer)
    lines = []
    for tokens in dataset.tgt:
        line = task.target_dictionary.string(
            tokens, cfg.common_eval.post_process, escape_unk=True
        )
        line = line if bpe is None else bpe.decode(line)
        lines.append(line if tokenizer is None else tokenizer.decode(line))
    return lines


def score(args, cfg, task, hypotheses, targets, references) -> Dict[str, Any]:
    """BLEU scores of the translations; see ``evaluation.corpus_bleu``.

    Args:
        hypotheses: one a sentence, in order.
        targets: the data's target side, or None.
        references: raw ones, or None for the target side.

    Returns:
        ``bleu`` and, if asked for, ``tokenized_bleu``.
    """
    scores = {}
    if any("@@ " in line for line in hypotheses):
        logger.warning("the translations hold pieces of words (@@): add --remove-bpe")
    name = args.detok or ("moses" if cfg.tokenizer is None else "none")
    detokenize = evaluation.detokenizer(name, task.cfg.target_lang)
    if references is None and targets is not None:
        references = [detokenize(line) for line in targets]
    if references is not None:
        scores["bleu"] = evaluation.corpus_bleu(
            [detokenize(line) for line in hypotheses],
            references,
            args.sacrebleu_lowercase,
        )
    if args.tokenized_bleu and targets is not None:
        scores["tokenized_bleu"] = evaluation.corpus_bleu(
            hypotheses, targets, args.sacrebleu_lowercase, tokenize="none"
        )
    return scores


def make_report(args, cfg, task, model, scores, steps, skipped, updates) -> Dict:
    """Everything that ``--report`` writes; FLOPs are of one sentence at beam 1."""
    dataset = task.dataset(cfg.dataset.gen_subset)
    source, target = args.flops_source_length, args.flops_target_length
    lengths = dataset.src_sizes if dataset.tgt_sizes is None else dataset.tgt_sizes
    source = source or max(1, round(float(np.mean(dataset.src_sizes))))
    target = target or max(1, round(float(np.mean(lengths))))
    flops = count_flops(model, source, target)
    report = {}
    for name in ("bleu", "tokenized_bleu"):
        if name in scores:
            report[name] = round(scores[name]["score"], 4)
            report[f"{name}_signature"] = scores[name]["signature"]
    return {
        "bleu": None,
        **report,
        **evaluation.sizes(model, cfg.common_eval.path),
        "flops": flops.pop("total"),
        "flops_parts": flops,
        "flops_source_length": source,
        "flops_target_length": target,
        **evaluation.speed(steps),
        "skipped_sentences": len(skipped),
        "beam": cfg.generation.beam,
        "lenpen": cfg.generation.lenpen,
        "batch_size": cfg.dataset.batch_size,
        "max_tokens": cfg.dataset.max_tokens,
        "gen_subset": cfg.dataset.gen_subset,
        "device": "cpu" if cfg.common.cpu or not torch.cuda.is_available() else "cuda",
        **evaluation.machine(),
        "num_updates": updates,
        "command": args.command,
    }


def run(args, cfg) -> Dict[str, Any]:
    """Check everything, translate, score and report.

    Returns:
        The scores, see :func:`score`.

    Raises:
        UserError: a mistake in an option or file, before any translation.
    """
    check_options(args, cfg)
    paths = utils.split_paths(cfg.common_eval.path)
    states = [load_checkpoint(p, "--path", args.trust_checkpoint) for p in paths]
    task = set_up_task(cfg)
    dataset = task.dataset(cfg.dataset.gen_subset)
    references = None
    if args.reference:
        references = evaluation.read_references(args.reference, len(dataset))
    for path, state in zip(paths, states):
        check_checkpoint(args, task, state, path)
    history = states[0].get("optimizer_history") or [{}]
    updates = history[-1].get("num_updates")
    models = []
    while states:
        loaded, _ = checkpoint_utils.load_model_ensemble(
            [paths[len(models)]], task=task, state=states.pop(0)
        )
        models += loaded
    skipped = check_lengths(cfg, task, models)

    quiet, cfg.common_eval.quiet = cfg.common_eval.quiet, False
    results = cfg.common_eval.results_path
    if results is not None:
        os.makedirs(results, exist_ok=True)
        name = os.path.join(results, f"generate-{cfg.dataset.gen_subset}.txt")
        output = atomic_write(name, encoding="utf-8")
    else:
        output = nullcontext(sys.stdout)
    with output as stream:
        lines = evaluation.OutputLines(stream, quiet)
        with trusted_pickle(args.trust_checkpoint):
            with evaluation.timed_inference(type(task)) as steps:
                fairseq_generate._main(cfg, lines)
        hypotheses = [lines.hypotheses.get(i, "") for i in range(len(dataset))]
        targets = target_side(cfg, task)
        scores = score(args, cfg, task, hypotheses, targets, references)
        notes = [result["line"] for result in scores.values()]
        if skipped:
            notes.append(f"{len(skipped)} sentences too long: left out, empty in BLEU")
        if not scores:
            notes.append("no BLEU: the data has no target side and there is no --reference")
        for note in notes:
            print(note, file=stream)
            if results is not None:
                print(note)
    if args.report:
        report = make_report(
            args, cfg, task, models[0], scores, steps, skipped, updates
        )
        with atomic_write(args.report, encoding="utf-8") as stream:
            json.dump(report, stream, indent=1)
            stream.write("\n")
    return scores


def main(arguments: Optional[List[str]] = None) -> None:
    """The command line tool.

    Args:
        arguments: instead of the process's own.
    """
    cli.set_up_logging(sys.stderr)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    args = cli.parse(get_parser(), arguments)
    args.command = shlex.join(["python", sys.argv[0], *arguments])
    cfg = convert_namespace_to_omegaconf(args)
    try:
        run(args, cfg)
    except KeyboardInterrupt:
        print("interrupted: nothing was reported", file=sys.stderr)
        sys.exit(130)
