"""Going on where a run stopped, and deciding alike."""

import copy
import io

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from src.sparsity.errors import SparsityError
from src.sparsity.pruning.hooks import Pruning
from src.sparsity.pruning.scores import SCORES
from tests.support.sparsity import adam, network, removed, start, train, trained

FEW = settings(max_examples=20, deadline=None)


@FEW
@given(
    st.integers(0, 10),
    st.sampled_from(sorted(SCORES)),
    st.sampled_from(["4x1", "2:4", "channelx1"]),
)
@example(4, "random", "4x1")
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(stop, prune_type, pattern):
    whole = trained(range(11), prune_type=prune_type, pattern=pattern)
    model, pruning, optimizer = trained(range(stop), None, prune_type, pattern)
    parts = {"model": model, "pruning": pruning, "optimizer": optimizer}
    file = io.BytesIO()
    torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    # another seed on the command line must not change what is drawn
    again = trained(range(stop, 11), state, prune_type, pattern, seed=9)
    for (name, a), b in zip(whole[0].state_dict().items(), again[0].state_dict().values()):
        assert torch.equal(a, b), name
    assert whole[1].masks.keys() == again[1].masks.keys()
    assert all(torch.equal(a, again[1].masks[n]) for n, a in whole[1].masks.items())
    assert whole[1].step == again[1].step == 11 and again[1].finished


def test_the_state_is_a_copy_that_training_on_leaves_alone():
    model, pruning, optimizer = trained(range(5))
    state = pruning.state_dict()
    before = copy.deepcopy(state)
    train(model, pruning, optimizer, range(5, 8))
    for old, new in zip(before["pruners"], state["pruners"]):
        for part in ("masks", "scores"):
            assert old[part] and old[part].keys() == new[part].keys()
            assert all(torch.equal(a, new[part][n]) for n, a in old[part].items())


def test_two_instances_decide_alike_and_seeds_decide_apart():
    masks = [trained(range(9))[1].masks for _ in range(2)]
    assert all(torch.equal(a, masks[1][name]) for name, a in masks[0].items())
    drawn = {}
    for seed in (1, 2):
        torch.manual_seed(seed * 77)  # the draws depend on the seed given alone
        first, second = (
            trained(range(9), prune_type="random", seed=seed)[1].masks for _ in range(2)
        )
        assert all(torch.equal(a, second[name]) for name, a in first.items())
        drawn[seed] = first
    assert any(not torch.equal(a, drawn[2][name]) for name, a in drawn[1].items())


def test_items_can_change_on_the_way_but_not_what_was_removed():
    model, pruning, optimizer = trained(range(6))
    early = removed(pruning)
    with pytest.raises(SparsityError, match="pattern: cannot change"):
        pruning.update_items_for_all_pruners(pattern="1x1")
    with pytest.raises(SparsityError, match="taget: unknown key"):
        pruning.update_items_for_all_pruners(taget=1)
    pruning.update_items_for_all_pruners(end_step=20, target_sparsity=0.6)
    train(model, pruning, optimizer, range(6, 21))
    assert pruning.finished and abs(pruning.sparsity - 0.6) < 0.02
    assert all((removed(pruning)[name] | ~gone).all() for name, gone in early.items())
    # a lower target brings nothing back
    pruning.update_items_for_all_pruners(end_step=30, target_sparsity=0.1)
    train(model, pruning, optimizer, range(21, 31))
    assert pruning.finished and abs(pruning.sparsity - 0.6) < 0.02
    # nor does one that is pruned already need another prune
    pruning.update_items_for_all_pruners(target_sparsity=0.5)
    assert pruning.finished


def test_states_of_other_runs_are_refused():
    _, pruning, _ = trained(range(6))
    state = pruning.state_dict()
    with pytest.raises(SparsityError, match="prune_type: the checkpoint .*'snip_mom"):
        trained([], {**_empty(), "pruning": state}, prune_type="snip")
    with pytest.raises(SparsityError, match="pruner 2: pattern: .*'4x1'.*'2x2'"):
        trained([], {**_empty(), "pruning": state}, pattern="2x2")
    other = start(network(), target_sparsity=0.5)
    with pytest.raises(SparsityError, match="pruners: .* with 2, the configuration has 1"):
        other.load_state_dict(state)
    with pytest.raises(SparsityError, match="another version"):
        other.load_state_dict({"step": 3})
    wide = start(network(width=12), target_sparsity=0.5)
    with pytest.raises(SparsityError, match="layer 2: .*shape .10, 20., .*.12, 20."):
        wide.load_state_dict(other.state_dict())
    narrow = start(network(), target_sparsity=0.5, exclude_names=["4"])
    with pytest.raises(SparsityError, match="layer 4: .*shape .7, 10., this one with None"):
        narrow.load_state_dict(other.state_dict())
    with pytest.raises(SparsityError, match="model: missing"):
        Pruning({"pruners": [{}]}).load_state_dict(state)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda state: state.pop("step"), "has no 'step': it is damaged"),
        (lambda state: state.pop("pruners"), "has no 'pruners': it is damaged"),
        (lambda state: state.update(step="6"), "state of pruning is damaged"),
        (lambda state: state.update(pruners=None), "state of pruning is damaged"),
        (lambda state: state["pruners"].append(state["pruners"].pop() and None), "pruner 2: "),
        (lambda state: state["pruners"][1].pop("masks"), "pruner 2: .*has no 'masks'"),
        (
            lambda state: state["pruners"][1]["masks"].update({"4": torch.ones(3, 3) > 0}),
            r"pruner 2: layer 4: the checkpoint's masks have shape .3, 3., .*.7, 10.",
        ),
        (
            lambda state: state["pruners"][1]["scores"].update({"5": torch.ones(3)}),
            "pruner 2: layer 5: the checkpoint's scores have shape .3., its weight None",
        ),
    ],
)
def test_damaged_states_are_refused_before_any_change(spoil, message):
    _, pruning, _ = trained(range(6))
    state = pruning.state_dict()
    state["pruners"] = [{**s, "masks": {**s["masks"]}} for s in state["pruners"]]
    spoil(state)
    _, other, _ = trained([])
    with pytest.raises(SparsityError, match=message):
        other.load_state_dict(state)
    assert not other.masks and other.step == 0


def test_a_higher_target_needs_a_prune_to_come():
    model, pruning, optimizer = trained(range(11))
    state = pruning.state_dict()
    for change in ({}, {"end_step": 5}):
        with pytest.raises(SparsityError, match="0.6 is more than the 0.25 .*step . leav"):
            pruning.update_items_for_all_pruners(target_sparsity=0.6, **change)
    with pytest.raises(SparsityError, match="pruner 1: target_sparsity: 0.6 .*end_step 8"):
        trained([], {**_empty(), "pruning": state}, target_sparsity=0.6)
    changes = {"target_sparsity": 0.6, "end_step": 14}
    trained([], {**_empty(), "pruning": state}, **changes)
    for old in state["pruners"]:  # from before the target was kept in it
        del old["reached"]
    trained([], {**_empty(), "pruning": state})
    pruning.update_items_for_all_pruners(**changes)
    train(model, pruning, optimizer, range(11, 15))
    assert pruning.finished and abs(pruning.sparsity - 0.6) < 0.02
    # in the midst of it an end that is past leaves the target as far away
    _, pruning, _ = trained(range(6))
    with pytest.raises(SparsityError, match="0.25 is more than the 0.1.* end_step 5 "):
        pruning.update_items_for_all_pruners(end_step=5)


def _empty():
    model = network()
    return {"model": model.state_dict(), "optimizer": adam(model).state_dict()}
