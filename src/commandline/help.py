"""Help of the commands that have fairseq's options, and hints at options that lack a part.

What this plug-in adds is read from fairseq's registries, filled when a parser is made.
"""

import argparse
from typing import Optional, Set

from fairseq.criterions import CRITERION_REGISTRY
from fairseq.models import MODEL_REGISTRY
from fairseq.optim import OPTIMIZER_REGISTRY
from fairseq.tasks import TASK_REGISTRY

TASK = "SRPtranslation"
ARCHITECTURES = "srp, srp_iwslt_de_en, srp_multi30k_de_en"


def _options(part: type) -> Set[str]:
    """The options of a task, model or criterion."""
    parser = argparse.ArgumentParser(add_help=False)
    part.add_args(parser)
    return set(parser._option_string_actions)


def missing_part(message: str) -> Optional[str]:
    """What has to be chosen before fairseq knows the options that a message names.

    None if they are no options of this plug-in.
    """
    for choice, part in (
        (f"--task {TASK}", TASK_REGISTRY[TASK]),
        (f"an --arch of this plug-in: {ARCHITECTURES}", MODEL_REGISTRY["srp"]),
        ("--criterion srp", CRITERION_REGISTRY["srp"]),
    ):
        of_fairseq = next(c for c in part.__mro__ if c.__module__.startswith("fairseq."))
        ours = _options(part) - _options(of_fairseq)
        for option in message.replace("=", " ").split():
            if option in ours:
                return f"{option} needs {choice}"
    return None


def show_help(parser, training: bool = False) -> None:
    """Print this plug-in's options, then fairseq's; fairseq's --help leaves ours out.

    Ours are shown with their defaults, except a model's, which depend on --arch. Tools
    that translate accept the task's options for training, but don't show them.
    """
    of_fairseq = list(parser._action_groups)
    purpose = "pruning and translation" if training else "translation"
    parts = {f"{purpose} (--task {TASK})": TASK_REGISTRY[TASK]}
    if training:
        parts[f"model (--arch {ARCHITECTURES}, srp_demo_de_en)"] = MODEL_REGISTRY["srp"]
        parts["loss and distillation (--criterion srp)"] = CRITERION_REGISTRY["srp"]
        parts["optimizer (--optimizer srp_adam)"] = OPTIMIZER_REGISTRY["srp_adam"]
    for title, part in parts.items():
        part.add_args(parser.add_argument_group(title))
    ours = [group for group in parser._action_groups if group not in of_fairseq]
    shown = TASK_REGISTRY[TASK].options_for_translation
    for action in (action for group in ours for action in group._group_actions):
        if not training and action.dest not in shown:
            action.help = argparse.SUPPRESS
            continue
        unsaid = action.help and "default" not in action.help
        if unsaid and not isinstance(action.default, (bool, type(None))):
            action.help += " (default: %(default)s)"
    parser._action_groups[:] = ours + of_fairseq
    parser.print_help()
