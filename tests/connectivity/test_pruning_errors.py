"""What the library refuses: in its own words, and in those of a program that uses it."""

import pickle

import pytest

from src.connectivity.budget import plan_widths
from src.connectivity.errors import PruningError
from src.connectivity.stage import PruningStage, StagePlan
from src.errors import UserError
from src.training.explained_errors import naming_options
from tests.support.training import build


def refusal(call, *args):
    """The library's error, as a notebook sees it, and the plug-in's line."""
    with pytest.raises(ValueError) as error:
        call(*args)
    with pytest.raises(UserError) as said, naming_options():
        call(*args)
    assert type(error.value) is PruningError
    return str(error.value), str(said.value)


def test_a_rate_out_of_reach():
    ours, theirs = refusal(plan_widths, build(), 0.05, 2)
    assert ours.startswith("compression_rate 0.05: at least ")
    assert "when one channel per head, one unit per feed-forward layer and two embedding" in ours
    assert ours.endswith("use a larger rate or start with stage 1")
    renamed = ours.replace("compression_rate", "--compression-rate")
    assert theirs == renamed.replace("stage 1", "--pruning-stage 1")


def test_a_stage_of_another_plan():
    model = build()
    state = PruningStage(StagePlan(0.5, 1, decreasing=None), model).state_dict()
    ours, theirs = refusal(PruningStage(StagePlan(0.5, 1), model).load_state_dict, state)
    assert ours == "decreasing sa: the state to go on with has None; give that"
    assert theirs == (
        "--decreasing sa: the stage to go on with in this folder has none (no --srp); give "
        "that, or another --save-dir"
    )


def test_scores_of_a_loss_without_gradient():
    model = build()
    stage = PruningStage(StagePlan(0.5, 1), model)
    scores = {"encoder.embedding": stage.model.encoder.embedding.connectivity * 0}
    ours, theirs = refusal(stage.begin, scores, 0)
    assert ours.startswith("importance fisher: every channel's is 0")
    assert ours.endswith("see that their targets are not empty")
    assert theirs.endswith("are not empty and that --ignore-prefix-size leaves some of them")


def test_errors_cross_processes_with_their_names():
    error = pickle.loads(pickle.dumps(PruningError("$stage 3: costs $5")))
    assert str(error) == "stage 3: costs $5"
    assert error.worded({"stage": "--pruning-stage"}) == "--pruning-stage 3: costs $5"
