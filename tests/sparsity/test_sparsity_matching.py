"""Which layers a pruner owns."""

import pytest
import torch
from torch import nn

from src.sparsity.errors import SparsityError
from src.sparsity.pruning.hooks import Pruning
from tests.support.sparsity import Bert, network, start


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
    model = nn.ModuleDict({"embed": nn.Embedding(8, 4), "out": nn.Linear(4, 8, bias=False)})
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


class Wrapper(nn.Module):
    """As DistributedDataParallel and its like are."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


def compiled(module):
    return torch.compile(module, backend="eager")


def compiled_inside(model):
    model[2] = compiled(model[2])
    return model


@pytest.mark.parametrize(
    "wrap", [Wrapper, compiled, lambda m: Wrapper(compiled(Wrapper(m))), compiled_inside]
)
def test_a_wrapped_model_is_pruned_as_it_is_without(wrap):
    plain, wrapped = network(), wrap(network())
    settings = {"prune_type": "random", "names": ["^[24]$"], "target_sparsity": 0.5}
    one, two = (start(model, pattern="1x1", **settings) for model in (plain, wrapped))
    for pruning in (one, two):
        pruning.on_before_optimizer_step()
        pruning.on_after_optimizer_step()
    assert owned(one) == owned(two) == [["2", "4"]]
    parameters = dict(wrapped.named_parameters())
    for (name, first), (other, second) in zip(one.masks.items(), two.masks.items()):
        assert torch.equal(first, second) and name.split(".")[0] in other
        assert torch.equal(parameters[other] != 0, second)
    again = start(network(), pattern="1x1", **settings)
    again.load_state_dict(two.state_dict())
    assert again.masks.keys() == one.masks.keys()
    excluded = prune(wrapped, {"exclude_names": ["^[02]"]})
    assert owned(excluded) == [["4"]]


def test_a_layer_that_is_called_module_keeps_its_name():
    model = nn.ModuleDict({"module": nn.Linear(4, 4), "out": nn.Linear(4, 4)})
    assert owned(prune(model, {})) == [["module", "out"]]
    alone = Wrapper(nn.Linear(4, 4))
    alone.scale = nn.Parameter(torch.ones(()))
    assert owned(prune(alone, {})) == [["module"]]


def test_layers_without_weights_are_left_out():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 0), nn.Linear(0, 8))
    pruning = start(model, target_sparsity=0.5, prune_type="magnitude")
    pruning.on_before_optimizer_step()
    assert owned(pruning) == [["0"]] and pruning.sparsity == 0.5
    with pytest.raises(SparsityError, match="matches no layer"):
        prune(model[1:], {})


@pytest.mark.parametrize(
    "layer, message",
    [
        (lambda: nn.LazyLinear(3), "layer 0: its weight has no values yet; load"),
        (lambda: nn.Linear(3, 3, device="meta"), "layer 0: its weight has no values yet"),
        (lambda: nn.Embedding(9, 4, sparse=True), "layer 0: Embedding with sparse=True"),
        (lambda: nn.EmbeddingBag(9, 4, sparse=True), "make it with sparse=False"),
    ],
)
def test_weights_that_cannot_be_pruned_are_refused(layer, message):
    types = ["Linear", "Embedding", "EmbeddingBag"]
    with pytest.raises(SparsityError, match=message):
        prune(nn.Sequential(layer()), {"prune_layer_type": types})
    both = nn.Sequential(layer(), nn.Linear(4, 4))
    assert owned(prune(both, {"prune_layer_type": types, "names": ["1"]})) == [["1"]]


def test_the_log_names_expressions_that_are_found_nowhere(caplog):
    model = nn.ModuleDict({"fc1": nn.Linear(4, 4), "fc2": nn.Linear(4, 4)})
    config = {"names": ["fc[12]", "fc3"], "exclude_names": "fc2", "not_to_prune_names": "out"}
    prune(model, config)
    assert [record.message for record in caplog.records] == [
        "names: 'fc3' is found in no layer's name",
        "not_to_prune_names: 'out' is found in no layer's name",
    ]
