"""The configuration: the Pytorch Pruner's file, every key, every refusal."""

import pytest
import torch
from torch import nn

from src.sparsity.errors import SparsityError
from src.sparsity.pruning.config import load_config
from src.sparsity.pruning.hooks import Pruning
from src.sparsity.pruning.settings import KEYS, PrunerSettings
from tests.support.sparsity import Bert

# as it stands in the Pytorch Pruner's README
README = """
version: 1.0

model:
  name: "bert-mini"
  framework: "pytorch"

pruning:
  approach:
    weight_compression_pytorch:
      # Global settings
      # if start step equals to end step, oneshot pruning scheduler is enabled. Otherwise the API automatically implements iterative pruning scheduler.
      start_step: 0 # step which pruning process begins
      end_step: 0 # step which pruning process ends
      not_to_prune_names: ["classifier", "pooler", ".*embeddings*"] # a global announcement of layers which you do not wish to prune. 
      prune_layer_type: ["Linear"] # the module type which you want to prune (Linear, Conv2d, etc.)
      target_sparsity: 0.9 # the sparsity you want the model to be pruned.
      max_sparsity_ratio_per_layer: 0.98 # the sparsity ratio's maximum which one layer can reach.

      pruners: # below each "Pruner" defines a pruning process for a group of layers. This enables us to apply different pruning methods for different layers in one model.
        # Local settings
        - !Pruner
            exclude_names: [".*query", ".*key", ".*value"] # list of regular expressions, containing the layer names you wish not to be included in this pruner
            pattern: "1x1" # pattern type, we support "NxM" and "N:M"
            update_frequency_on_step: 100 # if use iterative pruning scheduler, this define the pruning frequency.
            prune_domain: "global" # one in ["global", "local"], refers to the score map is computed out of entire parameters or its corresponding layer's weight.
            prune_type: "snip_momentum" # pruning algorithms, refer to pytorch_pruner/pruner.py
            sparsity_decay_type: "exp" # ["linear", "cos", "exp", "cube"] ways to determine the target sparsity during iterative pruning.
        - !Pruner
            exclude_names: [".*output", ".*intermediate"]
            pattern: "4x1"
            update_frequency_on_step: 100
            prune_domain: "global"
            prune_type: "snip_momentum"
            sparsity_decay_type: "exp"
"""


def template(config, do_prune, epochs=3, iterations=7, warm_epochs=1):
    """The README's coding template."""
    torch.manual_seed(0)
    model = Bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = [(torch.randn(4, 5, 16), torch.randint(3, (4,))) for _ in range(iterations)]
    total_iterations = epochs * iterations
    pruner = Pruning(str(config))
    if do_prune:
        pruner.update_items_for_all_pruners(
            start_step=int(warm_epochs * iterations), end_step=int(total_iterations)
        )
    else:
        pruner.update_items_for_all_pruners(
            start_step=total_iterations + 1, end_step=total_iterations + 1
        )
    pruner.model = model
    pruner.on_train_begin()
    for epoch in range(epochs):
        model.train()
        pruner.on_epoch_begin(epoch)
        for step, batch in enumerate(batches):
            pruner.on_step_begin(step)
            model(*batch).backward()
            pruner.on_before_optimizer_step()
            optimizer.step()
            pruner.on_after_optimizer_step()
            optimizer.zero_grad()
            pruner.on_step_end()
        pruner.on_epoch_end()
    pruner.on_train_end()
    return model, pruner


@pytest.fixture
def readme(tmp_path):
    path = tmp_path / "bert_mini.yaml"
    path.write_text(README)
    return path


def share_of_zeros(layers):
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers)
    return zeros, sum(layer.weight.numel() for layer in layers)


@pytest.mark.parametrize("frequency", [100, 7, 3])
def test_the_readmes_file_and_template_prune_to_the_target(tmp_path, frequency):
    path = tmp_path / "bert_mini.yaml"
    path.write_text(README.replace("on_step: 100", f"on_step: {frequency}"))
    model, pruner = template(path, do_prune=True)
    attention = [b[n] for b in model.layer for n in ("query", "key", "value")]
    names = ("output", "intermediate", "output_dense")
    others = [b[n] for b in model.layer for n in names]
    zeros, elements = share_of_zeros(others)
    assert zeros == int(0.9 * elements + 0.5)
    zeros, elements = share_of_zeros(attention)
    assert abs(zeros - 0.9 * elements) < 4
    for layer in attention:  # in blocks of four outputs
        blocks = (layer.weight == 0).view(4, 4, 16).sum(1)
        assert set(blocks.unique().tolist()) <= {0, 4}
    untouched = [model.embeddings["project"], model.pooler, model.classifier]
    assert share_of_zeros(untouched)[0] == 0
    assert pruner.finished and abs(pruner.sparsity - 0.9) < 1e-3
    names = {name for name, _ in model.named_parameters()}
    assert set(pruner.masks) < names and len(pruner.masks) == 12


def test_the_readmes_idiom_switches_pruners_off(readme):
    model, pruner = template(readme, do_prune=False)
    assert share_of_zeros(m for m in model.modules() if isinstance(m, nn.Linear))[0] == 0
    assert not pruner.masks and pruner.sparsity == 0 and not pruner.finished
    plain = Bert()
    assert set(plain.state_dict()) == set(model.state_dict())


def test_the_readmes_file_is_read_as_it_stands(readme):
    config = load_config(readme)
    first, second = config.pruners
    common = dict(
        not_to_prune_names=("classifier", "pooler", ".*embeddings*"),
        prune_layer_type=("Linear",),
        target_sparsity=0.9,
        update_frequency_on_step=100,
    )
    assert first == PrunerSettings(
        exclude_names=(".*query", ".*key", ".*value"), pattern="1x1", **common
    )
    assert second == PrunerSettings(
        exclude_names=(".*output", ".*intermediate"), pattern="4x1", **common
    )


# key: (global, local): none of them the default
VALUES = {
    "initial_sparsity": (0.1, 0.2),
    "min_sparsity_ratio_per_layer": (0.1, 0.2),
    "start_step": (3, 4),
    "end_step": (30, 40),
    "target_sparsity": (0.3, 0),
    "max_sparsity_ratio_per_layer": (0.5, 0.6),
    "update_frequency_on_step": (5, 6),
    "prune_domain": ("local", "global"),
    "prune_type": ("snip", "magnitude"),
    "sparsity_decay_type": ("cos", "cube"),
    "pattern": ("2:4", "2x2"),
    "reduce": ("sum", "max"),
    "prune_layer_type": (["Conv2d"], ["Linear"]),
    "names": (["a"], ["b"]),
    "exclude_names": (["a"], []),
    "not_to_prune_names": (["a"], ["b"]),
}


@pytest.mark.parametrize("key", KEYS)
def test_local_wins_over_global_and_global_over_the_default(key):
    first, second = VALUES[key]
    base = {"end_step": 50} if key == "start_step" else {"target_sparsity": 0.5}
    base = base if key != "target_sparsity" else {}
    config = load_config({**base, key: first, "pruners": [{}, {key: second}, {key: None}]})

    def plain(value):
        return tuple(value) if isinstance(value, list) else value

    found = [getattr(settings, key) for settings in config.pruners]
    assert found == [plain(first), plain(second), plain(first)]
    assert getattr(PrunerSettings(), key) != plain(first)
    updated = config.replace(**base, **{key: second})
    assert {getattr(s, key) for s in updated.pruners} == {plain(second)}


def test_defaults():
    (settings,) = load_config({"pruners": [{}]}).pruners
    assert settings == PrunerSettings(
        0, 0, 0.0, 0.98, 1, "global", "snip_momentum", "exp", "4x1", "mean",
        ("Linear", "Conv2d"), (), (), (), 0.0, 0.0,
    )  # fmt: skip


def test_names_of_neural_compressor_1_14_1_and_the_alias_weight():
    (settings,) = load_config(
        {
            "excluded_names": ["a"],
            "pruners": [{"extra_excluded_names": "b", "prune_type": "weight"}],
        }
    ).pruners
    assert settings.exclude_names == ("a",)
    assert settings.not_to_prune_names == ("b",)
    assert settings.prune_type == "magnitude"


def test_yaml_reads_patterns_and_numbers_as_people_mean_them(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "target_sparsity: 1e-1\nend_step: 010\npruners:\n- !Pruner\n  pattern: 2:4\n"
        "- !Pruner {pattern: 1:2, names: [x], target_sparsity: .25}\n- !Pruner\n"
    )
    first, second, third = load_config(path).pruners
    assert (first.pattern, first.target_sparsity, first.end_step) == ("2:4", 0.1, 10)
    assert (second.pattern, second.names, second.target_sparsity) == ("1:2", ("x",), 0.25)
    assert third.pattern == "4x1"


BAD_VALUES = [
    ("start_step", -1),
    ("start_step", 1.5),
    ("start_step", True),
    ("end_step", "7"),
    ("target_sparsity", 1),
    ("target_sparsity", 1.0),
    ("target_sparsity", -0.1),
    ("target_sparsity", True),
    ("target_sparsity", "0.5"),
    ("target_sparsity", float("nan")),
    ("max_sparsity_ratio_per_layer", 1.5),
    ("max_sparsity_ratio_per_layer", 1.0),
    ("update_frequency_on_step", 0),
    ("update_frequency_on_step", 2.5),
    ("prune_domain", "everywhere"),
    ("prune_type", "lrp"),
    ("prune_type", "gut feeling"),
    ("prune_type", 3),
    ("sparsity_decay_type", "square"),
    ("sparsity_decay_type", ["exp"]),
    ("pattern", "4x"),
    ("pattern", "4:2"),
    ("pattern", 124),
    ("reduce", "median"),
    ("prune_layer_type", []),
    ("prune_layer_type", [3]),
    ("names", ["("]),
    ("names", {"a": 1}),
    ("exclude_names", ["*a"]),
    ("not_to_prune_names", ["[a"]),
]


@pytest.mark.parametrize("key, value", BAD_VALUES)
def test_values_that_are_not_valid_are_refused_wherever_they_stand(key, value):
    for content in ({key: value, "pruners": [{}]}, {"pruners": [{key: value}]}):
        with pytest.raises(SparsityError, match=f"^{key}: ") as error:
            load_config(content)
        shown = value[0] if isinstance(value, list) and value else value
        assert repr(shown)[:4] in str(error.value)
    pruning = Pruning({"pruners": [{}]})
    with pytest.raises(SparsityError, match=f"^{key}: "):
        pruning.update_items_for_all_pruners(**{key: value})


@pytest.mark.parametrize(
    "content, name",
    [
        ({"pruners": [{"taget_sparsity": 0.5}]}, "taget_sparsity: unknown key"),
        ({"Pruners": [{}]}, "Pruners: unknown key"),
        ({3: 4, "pruners": [{}]}, "3: unknown key"),
        ({}, "pruners: missing"),
        ({"pruners": []}, "pruners: missing"),
        ({"pruners": {"a": 1}}, "pruners: missing"),
        ({"pruners": ["x"]}, "pruners: 'x'"),
        ({"pruners": [{"start_step": 5, "end_step": 4}]}, "end_step: 4 lies before"),
        ({"start_step": 5, "pruners": [{}]}, "end_step: 0 lies before start_step 5"),
        ({"pruners": [{}, {"a": 1}]}, "pruner 2: a: unknown key"),
        (
            {"pruners": [{"excluded_names": [], "exclude_names": []}]},
            "exclude_names: given twice",
        ),
        (
            {"pruners": [{"pattern": "2:4", "target_sparsity": 0.6}]},
            "target_sparsity: 0.6 is more than 0.5",
        ),
        (
            {"pruners": [{"target_sparsity": 0.99}]},
            "target_sparsity: 0.99 is more than 0.98",
        ),
    ],
)
def test_mappings_that_make_no_sense_are_refused(content, name):
    with pytest.raises(SparsityError) as error:
        load_config(content)
    assert str(error.value).startswith(name)


@pytest.mark.parametrize("source", [None, [{"pattern": "1x1"}], 5])
def test_what_is_no_configuration_is_refused(source):
    with pytest.raises(SparsityError, match=f"configuration: a {type(source).__name__} is"):
        Pruning(source)


@pytest.mark.parametrize(
    "old, new, name",
    [
        ("version: 1.0", "version: new", "version"),
        ("version: 1.0", "versions: 1.0", "versions: unknown key"),
        ('framework: "pytorch"', 'framework: "jax"', "model.framework: 'jax'"),
        ('name: "bert-mini"', "name: 3", "model.name: 3"),
        ("  name:", "  nam:", "model.nam: unknown key"),
        ("approach:", "approaches:", "pruning.approaches: unknown key"),
        ("weight_compression_pytorch:", "other:", "pruning.approach.other: unknown key"),
        ("target_sparsity: 0.9 #", "end_step: 0 #", "end_step: given twice"),
        ('pattern: "1x1"', 'pattern: "1y1"', "pruner 1: pattern: '1y1'"),
        ("!Pruner", "!Trimmer", "is no valid YAML"),
        ("!Pruner", "!!python/object/apply:os.getcwd", "is no valid YAML"),
        ("[", "{", "is no valid YAML"),
    ],
)
def test_files_that_make_no_sense_are_refused_by_name(tmp_path, old, new, name):
    assert old in README
    path = tmp_path / "bad.yaml"
    path.write_text(README.replace(old, new))
    with pytest.raises(SparsityError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}: {name}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"- 3", b"\xff\xfe\xff", b"a: \x00", b"[" * 600])
def test_files_that_hold_no_settings_are_refused_by_name(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(SparsityError, match="bad.yaml"):
        load_config(path)
    with pytest.raises(SparsityError, match="none.yaml: cannot be read"):
        load_config(tmp_path / "none.yaml")
