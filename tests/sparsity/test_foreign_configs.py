"""Files of the Pytorch Pruner and of neural-compressor 2 say the same in other words."""

import pytest
import torch
from torch import nn

from src.sparsity.errors import SparsityError
from src.sparsity.pruning.allocation import allocate
from src.sparsity.pruning.config import load_config
from src.sparsity.pruning.hooks import Pruning
from src.sparsity.pruning.patterns import parse_pattern
from src.sparsity.pruning.schedules import DECAYS, Schedule

PYTORCH_PRUNER = """
pruning:
  approach:
    weight_compression_pytorch:
      initial_sparsity: 0.0
      target_sparsity: 0.9
      start_step: 0
      end_step: 10.0
      excluded_names: ["classifier"]
      update_frequency_on_step: 1
      pruners:
        - !Pruner
            prune_type: "magnitude"
            extra_excluded_names: ['layer2.*']
            pattern: "tile_pattern_4x1"
        - !Pruner
            start_step: 1
            end_step: 1e0
            target_sparsity: 0.5
            update_frequency: 2
            names: ['layer2.*']
            pattern: "tile_pattern_2:4"
"""
NEURAL_COMPRESSOR_2 = """
pruning:
  approach:
    weight_compression:
      target_sparsity: 0.8
      pruning_frequency: 5
      excluded_op_names: ["downsample.*"]
      pruning_scope: "local"
      min_sparsity_ratio_per_op: 0.1
      max_sparsity_ratio_per_op: 0.95
      pruning_op_types: ['Conv', 'Linear']
      pruners:
        - !Pruner
            op_names: ['layer1.*']
            pruning_type: "snip"
            reduce_type: "max"
            pruning_scope: "global"
"""


def load(tmp_path, text):
    path = tmp_path / "foreign.yaml"
    path.write_text(text)
    return load_config(path).pruners


def test_a_file_of_the_pytorch_pruner(tmp_path):
    first, second = load(tmp_path, PYTORCH_PRUNER)
    assert (first.pattern, first.end_step, first.initial_sparsity) == ("4x1", 10, 0.0)
    assert first.not_to_prune_names == ("layer2.*",) and first.exclude_names == ("classifier",)
    assert (second.pattern, second.update_frequency_on_step, second.end_step) == ("2:4", 2, 1)
    assert type(second.end_step) is int


def test_a_file_of_neural_compressor_2(tmp_path):
    (pruner,) = load(tmp_path, NEURAL_COMPRESSOR_2)
    assert (pruner.prune_type, pruner.prune_domain, pruner.reduce) == ("snip", "global", "max")
    assert pruner.names == ("layer1.*",) and pruner.exclude_names == ("downsample.*",)
    assert pruner.update_frequency_on_step == 5
    assert pruner.min_sparsity_ratio_per_layer == 0.1
    assert pruner.max_sparsity_ratio_per_layer == 0.95
    assert pruner.prune_layer_type == ("Conv1d", "Conv2d", "Conv3d", "Linear")
    listed = {"target_sparsity": 0.5, "pruning_configs": [{"pattern": "1x1"}]}
    assert load_config(listed).pruners[0].pattern == "1x1"


@pytest.mark.parametrize("prefix", ["tile", "oc", "ic"])
@pytest.mark.parametrize("pattern", ["4x1", "2:4", "channelx1", "1xchannel"])
def test_patterns_with_a_prefix(prefix, pattern):
    assert parse_pattern(f"{prefix}_pattern_{pattern}").text == pattern


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"pattern": "row_pattern_4x1"}, "pattern: 'row_pattern_4x1' is unknown"),
        ({"start_step": 1.5}, "start_step: 1.5 is not valid; give an int"),
        ({"end_step": float("inf")}, "end_step: inf is not valid; give an int"),
        ({"end_step": float("nan")}, "end_step: nan is not valid; give an int"),
        ({"pruning_scope": "all"}, "^pruning_scope: 'all' is not valid; choose from global"),
        ({"pruning_type": "best"}, "^pruning_type: 'best': it is unknown"),
        ({"op_names": ["a"], "names": ["b"]}, "given twice, as names too"),
        ({"initial_sparsity": 0.6, "target_sparsity": 0.5}, "initial_sparsity: 0.6 is more than"),
        ({"min_sparsity_ratio_per_op": 0.6, "target_sparsity": 0.5}, "0.6 is more than target"),
    ],
)
def test_refused(settings, message):
    with pytest.raises(SparsityError, match=message):
        load_config({"pruners": [settings]})


def test_two_lists_of_pruners_are_refused():
    with pytest.raises(SparsityError, match="pruning_configs: given twice"):
        load_config({"pruners": [{}], "pruning_configs": [{}]})


@pytest.mark.parametrize("decay", DECAYS)
def test_the_curve_begins_at_the_initial_sparsity(decay):
    plain = Schedule(0, 9, 1, 0.8, decay)
    begun = Schedule(0, 9, 1, 0.8, decay, initial=0.5)
    curve = [begun.sparsity_after(step) for step in range(10)]
    assert begun.sparsity_after(-1) == 0 and curve[-1] == 0.8
    assert all(0.5 < a < b for a, b in zip(curve, curve[1:]))
    assert all(a > plain.sparsity_after(step) for step, a in enumerate(curve[:-1]))
    if decay == "zhu_gupta":  # equation 1: s_f + (s_i - s_f)(1 - p)^3
        assert curve[3] == pytest.approx(0.8 + (0.5 - 0.8) * (1 - 0.4) ** 3)


def test_every_layer_gives_the_least_share():
    """One layer's scores are all higher: without a minimum it gives nothing."""
    scores = [torch.arange(100.0), 1000 + torch.arange(100.0)]
    given = scores, [torch.ones(100, dtype=torch.long)] * 2
    gone = [torch.zeros(100, dtype=torch.bool)] * 2
    for least, expected in ((0.0, [80, 0]), (0.1, [70, 10]), (0.4, [40, 40])):
        chosen = allocate(*given, gone, [100, 100], 0.4, min_sparsity=least)
        assert [int(block.sum()) for block in chosen] == expected
        assert all(block[: int(block.sum())].all() for block in chosen)  # the lowest


def test_a_training_with_their_hooks_and_a_least_share():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    with torch.no_grad():
        model[1].weight.mul_(100)
    pruner = {"pattern": "tile_pattern_1x1", "pruning_type": "magnitude"}
    pruner.update(target_sparsity=0.5, end_step=4.0, min_sparsity_ratio_per_op=0.2)
    pruning = Pruning({"pruners": [pruner]})
    pruning.model = model
    pruning.on_train_begin()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(5):
        pruning.on_step_begin(local_step=step)
        model(torch.randn(3, 20)).sum().backward()
        pruning.on_before_optimizer_step()
        optimizer.step()
        pruning.on_after_optimizer_step()
    zeros = [int((layer.weight == 0).sum()) for layer in model]
    assert zeros == [320, 80]
    with torch.no_grad():
        model[0].weight.fill_(1)
    pruning.on_before_eval()
    assert int((model[0].weight == 0).sum()) == 320
    pruning.on_after_eval()
