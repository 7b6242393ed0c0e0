"""Which layers a pruner owns."""

import pytest
from sparsity_helpers import Bert
from torch import nn

from src.sparsity.errors import SparsityError
from src.sparsity.hooks import Pruning


def prune(model, *pruners, **config):
    pruning = Pruning({"target_sparsity": 0.5, **config, "pruners": list(pruners)})
    pruning.model = model
    return pruning


def owned(pruning):
    return [list(pruner.layers) for pruner in pruning.pruners]


def test_names_are_expressions_that_are_searched_for():
    model = Bert(layers=1)
    pruning = prune(
        model,
        {"names": ["que", r"\.key$"], "exclude_names": ["xyz"]},
        {"names": ["layer"], "exclude_names": "query|key|out.*"},
    )
    assert owned(pruning) == [
        ["layer.0.query", "layer.0.key"],
        ["layer.0.value", "layer.0.intermediate"],
    ]


def test_classes_are_matched_with_those_above():
    model = nn.Sequential(nn.MultiheadAttention(4, 1), nn.Conv1d(4, 4, 1), nn.Linear(4, 4))
    assert owned(prune(model, {})) == [["0.out_proj", "2"]]
    assert owned(prune(model, {"prune_layer_type": ["Conv1d"]})) == [["1"]]


def test_layers_that_nobody_or_two_own_are_refused():
    model = Bert()
    with pytest.raises(SparsityError, match="pruner 2: matches no layer.*'nothing'"):
        prune(model, {"names": ["query"]}, {"names": ["nothing"]})
    with pytest.raises(SparsityError, match="layer layer.0.key: pruners 1 and 2"):
        prune(model, {"names": ["key"]}, {"names": ["key", "value"]})
    with pytest.raises(SparsityError, match="layer 0: a LayerNorm|two dimensions"):
        prune(nn.Sequential(nn.LayerNorm(4)), {"prune_layer_type": ["LayerNorm"]})
    with pytest.raises(SparsityError, match="layer 0: a ConvTranspose2d"):
        convolution = nn.Sequential(nn.ConvTranspose2d(4, 4, 2))
        prune(convolution, {"prune_layer_type": ["ConvTranspose2d"]})
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(SparsityError, match="layer 0: .*no parameter"):
        prune(normed, {})


def test_shared_weights_count_once_and_follow_the_strictest_name():
    model = nn.ModuleDict(
        {"embed": nn.Embedding(8, 4), "out": nn.Linear(4, 8, bias=False)}
    )
    model["inner"] = nn.Linear(4, 4)
    model["out"].weight = model["embed"].weight
    model["again"] = model["inner"]
    pruning = prune(model, {"prune_layer_type": ["Linear", "Embedding"]})
    assert owned(pruning) == [["embed", "inner"]]
    assert pruning.pruners[0].elements == 32 + 16
    assert set(pruning.pruners[0].parameters) == {"embed.weight", "inner.weight"}
    assert owned(prune(model, {})) == [["out", "inner"]]
    assert owned(prune(model, {"not_to_prune_names": ["embed"]})) == [["inner"]]
    with pytest.raises(SparsityError, match="layer again: pruners 1 .as inner. and 2"):
        prune(model, {"names": ["inner"]}, {"names": ["again"]})
