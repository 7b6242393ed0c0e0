"""Structured pruning of channels: declare groups, score, select, shrink, cut.

For any ``nn.Module`` that declares which of its channels can go, and exact: a cut model
computes what the model computed whose channels were shrunk to nothing. This package needs
torch and nothing else.
"""

from .budget import ParameterCount, plan_widths
from .cut import cut, cut_optimizer_state, resize_to
from .errors import PruningError
from .freeze import Freezer
from .groups import ChannelGroup, channel_groups
from .importance import score
from .scoring import IMPORTANCE, ScoringBatch
from .selection import select
from .shrink import SCHEDULES
from .stage import PruningStage, StagePlan

__all__ = [
    "IMPORTANCE",
    "SCHEDULES",
    "ChannelGroup",
    "Freezer",
    "ParameterCount",
    "PruningError",
    "PruningStage",
    "ScoringBatch",
    "StagePlan",
    "channel_groups",
    "cut",
    "cut_optimizer_state",
    "plan_widths",
    "resize_to",
    "score",
    "select",
]
