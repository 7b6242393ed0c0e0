"""When is pruned, and how much by then."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.sparsity.errors import SparsityError
from src.sparsity.pruning.schedules import DECAYS, Schedule

FEW = settings(max_examples=150, deadline=None)
schedules = st.builds(
    lambda start, length, frequency, target, decay: Schedule(
        start, start + length, frequency, target, decay
    ),
    st.integers(0, 50),
    st.integers(0, 300),
    st.integers(1, 400),
    st.floats(0, 0.99),
    st.sampled_from(sorted(DECAYS)),
)


@pytest.mark.parametrize(
    "decay, half",
    [
        ("linear", 0.4),
        ("cos", 0.8 * (1 - math.sqrt(0.5))),
        ("exp", 1 - math.sqrt(0.2)),
        ("cube", 0.1),
        ("zhu_gupta", 0.7),
    ],
)
def test_each_decay_halfway(decay, half):
    schedule = Schedule(10, 30, 20, 0.8, decay)
    assert list(schedule.steps) == [10, 30]
    assert schedule.sparsity_after(9) == 0
    assert schedule.sparsity_after(10) == pytest.approx(half, abs=1e-12)
    assert schedule.sparsity_after(29) == pytest.approx(half, abs=1e-12)
    assert schedule.sparsity_after(30) == 0.8


@FEW
@given(schedules)
def test_the_last_prune_lands_on_the_target_for_any_frequency(schedule):
    steps = [s for s in range(schedule.end + 2) if schedule.due(s)]
    assert steps == list(schedule.steps)
    assert steps[0] == schedule.start
    assert steps[-1] == schedule.last <= schedule.end
    assert schedule.end - schedule.last < schedule.frequency
    assert schedule.sparsity_after(schedule.last) == schedule.target
    assert schedule.sparsity_after(schedule.end + 1000) == schedule.target


@FEW
@given(schedules)
def test_sparsity_grows_at_prunes_only(schedule):
    past = 0.0
    for step in range(schedule.end + 2):
        now = schedule.sparsity_after(step)
        assert past - 1e-12 <= now <= schedule.target + 1e-12
        if not schedule.due(step):
            assert now == past
        latest = [s for s in schedule.steps if s <= step]
        assert schedule.latest(step) == (latest[-1] if latest else -1)
        past = now


def test_one_shot_prunes_once():
    schedule = Schedule(7, 7, 100, 0.5, "exp")
    assert list(schedule.steps) == [7]
    assert [schedule.sparsity_after(s) for s in (6, 7, 8)] == [0, 0.5, 0.5]


@pytest.mark.parametrize(
    "arguments, name",
    [
        ((5, 4, 1, 0.5, "exp"), "end_step"),
        ((0, 4, 0, 0.5, "exp"), "update_frequency_on_step"),
        ((0, 4, 1, 0.5, "square"), "sparsity_decay_type"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(arguments, name):
    with pytest.raises(SparsityError, match=name):
        Schedule(*arguments)
