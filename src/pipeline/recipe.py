"""The steps from a trained model to a compressed one: what the study found best for a size."""

import os
from argparse import Namespace
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import List, NamedTuple, Optional, Tuple

import torch

from ..checks.speed import QUANTIZATIONS
from ..checks.text import read_lines
from ..deployment import text
from ..errors import UserError
from .base import CODES, PIECES, Base
from .goal import PLAN, Goal, given_goal
from .options import teachers
from .steps import Step, relative_command

COMMANDS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
EPOCHS, QUICK_EPOCHS = 30, 3
# Above this share of the parameters a model still learns the data by heart, and needs the
# dropout of the base; below the other, widths go in several iterations with new scores.
LARGE, SMALL = 0.35, 0.15
ITERATIONS, QUICK_ITERATIONS = 4, 2
WARM_UP = 100
DATA, MODEL, EXPORT, TEXT, REPORT = "data", "model.pt", "ctranslate2", "generate.txt", "report.json"
SPEED = "speed.json"
BEST, LAST = "checkpoint_best.pt", "checkpoint_last.pt"


class Pruning(NamedTuple):
    """A training that prunes.

    Attributes:
        name: of its step.
        options: of pruning.py beside those that all trainings share.
        epochs: passes over its data.
        dropout: of the training.
    """

    name: str
    options: Tuple[str, ...]
    epochs: int
    dropout: float


def schedule(goal: Goal, dropout: float, epochs: int, quick: bool = False) -> List[Pruning]:
    """How a model is pruned to a size.

    Two stages, embeddings and then the other widths, where not much is cut; below a share of
    ``SMALL``, or where layers go, everything in several iterations with new scores each time.

    Args:
        dropout: of the base's training.
        epochs: of all stages together.
    """
    first, second = ((2 / 3, 1 / 3), (1, 1))[goal.rate >= LARGE]
    rate = ("--compression-rate", f"{goal.rate:g}")
    if goal.rate >= SMALL and not goal.cuts_layers:
        period = max(1, epochs // 2)
        stages = (("prune-embeddings", "1", first), ("prune-rest", "2", second))
        return [
            Pruning(
                name,
                (*rate, "--pruning-stage", stage, "--pruning-period", str(period)),
                period,
                dropout * share,
            )
            for name, stage, share in stages
        ]
    layers = tuple(
        word
        for side in ("encoder", "decoder")
        if getattr(goal, f"{side}_layers") is not None
        for word in (f"--keep-{side}-layers", str(getattr(goal, f"{side}_layers")))
    )
    iterations = QUICK_ITERATIONS if quick else ITERATIONS
    period = max(1, epochs // (iterations + 1))
    options = (*rate, *layers, "--pruning-stage", "0", "--pruning-iter", str(iterations))
    options += ("--pruning-period", str(period))
    return [Pruning("prune", options, max(epochs, iterations * period), dropout * first)]


@dataclass
class Recipe:
    """Makes the steps of a pipeline.

    Args:
        args: compress.py's options.
        base: what it starts from.
    """

    args: Namespace
    base: Base

    def __post_init__(self):
        self.exports = exports()
        self.engine = self.args.speed_engine or usual_engine(self.args.quantization)
        self.maps = self.engine != "pytorch" and not self.args.no_vocabulary_map
        self._quick_timing = ("--rounds", "2", "--sentences", "16") if self.args.quick else ()
        self.steps: List[Step] = []
        self.epochs: List[float] = []  # of each training, of the data as they are given

    # -- pieces ------------------------------------------------------------------------

    def _add(self, name: str, script: str, *arguments: str, files=(), **kwargs) -> str:
        """Append a step; returns its folder.

        Args:
            files: that it reads, beside those whose names are arguments.
        """
        name = f"{len(self.steps) + 1}-{name}"
        folder = os.path.join(self.args.output, name)
        arguments = [word.replace("{here}", folder) for word in arguments]
        given = {self.base.data, self.base.path, *filter(None, (self._reference,))}
        given |= {self.args.bpe_codes, self.args.sentencepiece_model, *self.args.source_text}
        files = tuple(dict.fromkeys([*(word for word in arguments if word in given), *files]))
        before = tuple(s.name for s in self.steps if any(self._in(s.name, a) for a in arguments))
        if self.args.trust_checkpoint and self.base.path in arguments:
            arguments.append("--trust-checkpoint")
        command = relative_command(os.path.join(COMMANDS, script), arguments)
        self.steps.append(Step(name, command, files, before, **kwargs))
        return folder

    def _in(self, name: str, argument: str) -> bool:
        return argument.startswith(os.path.join(self.args.output, name, ""))

    @property
    def _languages(self) -> Tuple[str, ...]:
        source, target = self.base.languages
        return "-s", source, "-t", target

    @property
    def _remove_bpe(self) -> Tuple[str, ...]:
        return {CODES: ("--remove-bpe",), PIECES: ("--remove-bpe", "sentencepiece")}.get(
            self.base.splitting, ()
        )

    @property
    def _reference(self) -> Optional[str]:
        """Raw references of the test set: as given, or where scripts put them."""
        if self.args.reference:
            return self.args.reference
        name = f"raw.{self.args.gen_subset}.{self.base.languages[1]}"
        path = os.path.join(self.base.data, name)
        return path if os.path.isfile(path) else None

    @cached_property
    def _times(self) -> float:
        """Sentences of the translated data, in those of the data."""
        paths = self.args.source_text
        lines = sum(1 for path in paths for _ in read_lines(path, "--source-text"))
        return 2 + lines / len(self.base.train)

    # -- trainings ---------------------------------------------------------------------

    def batch(self) -> Tuple[Optional[int], Optional[int], int]:
        """Tokens and sentences of a batch, and batches of an update."""
        found = {
            "--max-tokens": self.base.max_tokens,
            "--batch-size": self.base.batch_size,
            "--update-freq": self.base.update_freq,
        }
        extra = self.args.training
        for number, word in enumerate(extra):
            option, _, value = word.partition("=")
            if option in found:
                value = value or (extra[number + 1] if number + 1 < len(extra) else "")
                if not value.isdecimal() or int(value) < 1:
                    raise UserError(f"{option} {value}: must be a whole number of at least 1")
                found[option] = int(value)
        return tuple(found.values())

    def _training(self, dropout: float, epochs: int) -> List[str]:
        """Options that every training has; what is missing the checkpoint knows."""
        base = self.base
        tokens, sentences, frequency = self.batch()
        options = [*self._languages, "--optimizer", "srp_adam", "--adam-betas", base.betas]
        options += ["--weight-decay", f"{base.weight_decay:g}", "--clip-norm", "0.0"]
        options += ["--lr", f"{base.lr:g}", "--dropout", f"{dropout:.2g}"]
        for option, value, usual in (
            ("--max-tokens", tokens, None),
            ("--batch-size", sentences, None),
            ("--update-freq", frequency, 1),
        ):
            if value != usual:
                options += [option, str(value)]
        search = '{"beam": 1, "max_len_a": 1.2, "max_len_b": 10}'
        options += ["--max-epoch", str(epochs), "--eval-bleu", "--eval-bleu-args", search]
        options += ["--eval-bleu-detok", "space" if base.splitting == PIECES else "moses"]
        if base.splitting != "words":
            options += ["--eval-bleu-remove-bpe"]
            options += ["sentencepiece"] if base.splitting == PIECES else []
        options += ["--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric"]
        options += ["--no-epoch-checkpoints", "--save-dir", "{here}", "--log-format", "simple"]
        if self.args.quick:
            options += ["--scoring-batches", "10"]
        return options

    # -- the whole ---------------------------------------------------------------------

    def plan(self, goal: Optional[Goal]) -> Step:
        """The first step: what sizes and layers bring on this machine.

        Args:
            goal: None to choose one by what is measured.
        """
        args, self.steps = self.args, []
        options = ["--engines", self.engine, "--beam", str(args.beam)]
        if self.maps:
            options += ["--vocabulary-map"]
        if args.speed_up is not None:
            options += ["--speed-up", f"{args.speed_up:g}"]
            options += ["--speed-baseline", args.speed_baseline] if args.speed_baseline else []
        else:
            depths = (goal or Goal(1.0)).depths(self.base)
            options += ["--depths", depths]
        if goal is not None:
            options += ["--rates", f"{goal.rate:g}"]
        self._add("plan", "plan.py", self.base.data, "--path", self.base.path, *self._languages,
            *options, *self._quick_timing, "--json", f"{{here}}/{PLAN}",
            results=(PLAN,), output="plan.txt")  # fmt: skip
        return self.steps[0]

    def build(self, goal: Goal) -> List[Step]:
        """All steps, in order, that of the plan first."""
        args, base = self.args, self.base
        self.steps = [self.plan(given_goal(args))]
        epochs = args.epochs or (QUICK_EPOCHS if args.quick else EPOCHS)
        pruning_epochs = max(2, round(epochs / 3))
        finetuning_epochs = max(1, epochs - pruning_epochs)

        here = self._add("translate", "distill_data.py", base.data, "--path",
            args.teacher or base.path, *self._languages, "--output", f"{{here}}/{DATA}",
            "--beam", str(args.beam), "--batch-size", "256", *self._fast_engine(),
            *self._further_text(), files=teachers(args),
            results=(DATA,), resumes=True, whole=True)  # fmt: skip
        # as long as two epochs of the data, since every sentence is in it twice
        translated, data, start = os.path.join(here, DATA), base.data, base.path
        finetuning_epochs = max(1, round(finetuning_epochs / 2))
        times = self._times
        updates = round(times * finetuning_epochs * base.updates_in_epoch(*self.batch()))
        if args.max_types is not None:
            here = self._trim(translated)
            translated = data = os.path.join(here, DATA)
            start = os.path.join(here, MODEL)
            pruning_epochs = max(2, round(pruning_epochs / 2))
        self.epochs = [times * finetuning_epochs]
        for part in schedule(goal, base.dropout, pruning_epochs, args.quick):
            here = self._add(part.name, "pruning.py", data, "--pretrained-model", start,
                *self._training(part.dropout, part.epochs), "--srp", "--weighted-layernorm",
                *part.options, "--validate-interval", str(part.epochs), *args.training,
                results=(LAST, BEST), resumes=True)  # fmt: skip
            start = os.path.join(here, LAST)
            self.epochs.append(part.epochs * (1 if args.max_types is None else times))
        dropout = base.dropout if goal.rate >= LARGE else base.dropout / 3
        here = self._add("finetune", "finetuning.py", translated, "--pretrained-model", start,
            *self._training(dropout, finetuning_epochs),
            "--lr-scheduler", "polynomial_decay", "--total-num-update", str(updates),
            "--warmup-updates", str(min(WARM_UP, max(1, updates // 10))), *args.training,
            results=(LAST, BEST), resumes=True)  # fmt: skip
        # without the optimizer's state
        best = os.path.join(here, BEST)
        here = self._add("model", "average_checkpoints.py", "--inputs", best,
            "--output", f"{{here}}/{MODEL}", results=(MODEL,))  # fmt: skip
        model = os.path.join(here, MODEL)
        engine: Tuple[str, ...] = ()
        if self.exports:
            engine = self._export(translated, model)
        self._test("test-base", base.data, base.path)
        self._test("test", translated, model, *engine)
        folders = [os.path.join(args.output, step.name) for step in self.steps[-2:]]
        scripts = ("pruning.py", "finetuning.py")
        names = [s.name for s in self.steps if os.path.basename(s.command[0]) in scripts]
        trainings = [os.path.join(args.output, name, "") for name in names]
        self._speed(goal, translated, model)
        self._add("report", "report.py", *(os.path.join(f, "") for f in folders),
            "--output", "{here}", "--trainings", *trainings, results=("report.html",))  # fmt: skip
        return self.steps

    def _fast_engine(self) -> Tuple[str, ...]:
        """Options of translation, for the fastest engine that is here."""
        ensemble = len(teachers(self.args)) > 1
        if self.exports and not torch.cuda.is_available() and not ensemble:
            return "--engine", "ctranslate2", "--quantization", "int8"
        return ()

    def _further_text(self) -> Tuple[str, ...]:
        """Options of distill_data.py for --source-text."""
        if not self.args.source_text:
            return ()
        return "--source-text", *self.args.source_text, *text.as_arguments(self.args)

    def _trim(self, data: str) -> str:
        args = self.args
        splitter = ()
        if args.bpe_codes or args.sentencepiece_model:
            option = "--bpe-codes" if args.bpe_codes else "--sentencepiece-model"
            splitter = (option, args.bpe_codes or args.sentencepiece_model)
        return self._add("trim", "trim_vocabulary.py", data, "--path", self.base.path,
            *self._languages, "--output", f"{{here}}/{DATA}",
            "--output-checkpoint", f"{{here}}/{MODEL}", "--max-types", str(args.max_types),
            *splitter, results=(DATA, MODEL))  # fmt: skip

    def _export(self, data: str, model: str) -> Tuple[str, ...]:
        """Add the export; returns options of translation with it."""
        args = self.args
        candidates = () if args.no_vocabulary_map else ("--vocabulary-map",)
        here = self._add("export", "export.py", data, "--path", model, *self._languages,
            "--output", f"{{here}}/{EXPORT}", "--quantization", args.quantization,
            *candidates, *text.as_arguments(args), results=(EXPORT,), whole=True)  # fmt: skip
        return "--engine", "ctranslate2", "--ctranslate2-model", os.path.join(here, EXPORT)

    def _speed(self, goal: Goal, data: str, model: str) -> None:
        """Time the compressed model beside the uncut one and stock fairseq."""
        engines = ["pytorch"] + ([self.engine] if self.engine != "pytorch" else [])
        candidates = ("--vocabulary-map",) if self.maps else ()
        args = self.args
        self._add("speed", "plan.py", data, "--path", model, *self._languages,
            "--engines", ",".join(engines), *candidates, "--depths", goal.depths(self.base),
            "--rates", "1", "--gen-subset", args.gen_subset, "--beam", str(args.beam),
            *self._quick_timing, "--json", f"{{here}}/{SPEED}",
            results=(SPEED,), output="speed.txt")  # fmt: skip

    def _test(self, name: str, data: str, model: str, *engine: str) -> None:
        args = self.args
        reference = ("--reference", self._reference) if self._reference else ()
        lowercase = ("--sacrebleu-lowercase",) if args.lowercase else ()
        detok = ("--detok", "none") if self.base.splitting == PIECES else ()
        self._add(name, "generate.py", data, "--path", model, *self._languages,
            "--gen-subset", args.gen_subset, "--beam", str(args.beam), "--batch-size", "128",
            *self._remove_bpe, *detok, *lowercase, *reference, *engine,
            "--report", f"{{here}}/{REPORT}", results=(TEXT, REPORT), output=TEXT)  # fmt: skip


def usual_engine(quantization: str) -> str:
    """What the compressed model will run in, as far as it can be timed."""
    names = {kind: name for name, kind in QUANTIZATIONS.items()}
    return names.get(quantization, "pytorch") if exports() else "pytorch"


def exports() -> bool:
    """Whether the engine for deployment is installed."""
    return find_spec("ctranslate2") is not None
