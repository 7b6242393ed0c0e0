"""The table and the picture of a model's sparsity, and the tool that makes them."""
# ruff: noqa: F811, F401  (fixtures are imported)

import re

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from src import export_adapters
from src import sparsity_report as tool
from src.checkpoint_utils import write_sparse
from src.checkpoints.rebuild import load_model
from src.errors import UserError, ending_program
from src.sparsity import report
from src.sparsity.errors import SparsityError
from src.sparsity.execution.layers import to_sparse
from src.sparsity.files.storage import save_sparse
from src.sparsity.magnitude import prune_by_pct, random_prune_by_pct
from src.sparsity.prunable import prunable_layers
from src.sparsity.pruning.patterns import parse_pattern
from src.sparsity.report import OVER_ALL, OVER_PRUNABLE, block_sparsity, sparsity_report
from tests.support.translation import make_trainer, quiet_logging, save


class Small(nn.Module):
    """Prunable are 54, 35 and 55 weights, the latter also the embedding's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(11, 5)
        self.norm = nn.LayerNorm(7)
        self.conv = nn.Conv2d(3, 2, 3)
        self.linear = nn.Linear(7, 5)
        self.output = nn.Linear(5, 11, bias=False)
        self.output.weight = self.embedding.weight


def rows(table):
    return table.set_index("layer")


def test_counts_are_of_each_parameter_once():
    model = Small()
    nn.init.constant_(model.norm.bias, 0.5)
    prune_by_pct(model, [0.5, 0, 0.2])
    table = sparsity_report(model)
    assert table["layer"].tolist() == ["conv", "linear", "output", OVER_PRUNABLE, OVER_ALL]
    assert table["type"].tolist()[:3] == ["Conv2d", "Linear", "Linear"]
    assert table["shape"].tolist()[:3] == ["2x3x3x3", "5x7", "11x5"]
    # biases and norm: 2 + 5 + 14
    assert table["parameters"].tolist() == [54, 35, 55, 144, 165]
    assert table["remaining"].tolist() == [27, 35, 44, 106, 127]
    expected = [27 / 54, 0, 11 / 55, 38 / 144, 38 / 165]
    assert table["sparsity"].tolist() == pytest.approx(expected, abs=1e-12)
    assert table["dense_bytes"].tolist() == [4 * n for n in table["parameters"]]
    assert table["block_sparsity"].isna().all() and table["pattern"].isna().all()


def test_other_layers_can_be_prunable_and_share_with_them():
    model = Small()
    table = sparsity_report(model, "1xchannel", types=["Embedding", "Linear"])
    # the embedding comes first, so the shared weight is its own
    assert table["layer"].tolist()[:-2] == ["embedding", "linear"]
    assert table["parameters"].tolist() == [55, 35, 90, 165]
    with torch.no_grad():
        model.output.weight[:2] = 0
    table = sparsity_report(model, "1xchannel", types=["Embedding"])
    assert table["block_sparsity"][0] == 2 / 11
    with pytest.raises(SparsityError, match="has no layer of Conv3d"):
        sparsity_report(model, types=["Conv3d"])


@pytest.mark.parametrize("stored", [[0], [0, 1]])
def test_layers_that_store_values_count_as_the_dense_ones(stored):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4, bias=False))
    prune_by_pct(model, 0.75)
    table = sparsity_report(model, "1x1")
    for number in stored:
        model[number] = to_sparse(model[number])
    random = torch.get_rng_state()
    pd.testing.assert_frame_equal(sparsity_report(model, "1x1"), table)
    assert torch.equal(torch.get_rng_state(), random)  # a report in a training changes none


def blocks_by_hand(matrix, text):
    """(met, blocks), element by element."""
    height, width = len(matrix), len(matrix[0])
    if ":" in text:
        wanted, size = map(int, text.split(":"))
        groups = [row[start : start + size] for row in matrix for start in range(0, width, size)]
        groups = [(g, wanted * len(g) // size) for g in groups]
        groups = [(g, needed) for g, needed in groups if needed]
        return sum(g.count(0.0) >= needed for g, needed in groups), len(groups)
    down, across = (
        {"channelx1": (height, 1), "1xchannel": (1, width)}.get(text)
        or map(int, text.split("x"))
    )  # fmt: skip
    blocks = [
        [v for row in matrix[top : top + down] for v in row[left : left + across]]
        for top in range(0, height, down)
        for left in range(0, width, across)
    ]
    return sum(not any(block) for block in blocks), len(blocks)


PATTERNS = ["1x1", "4x1", "1x4", "2x3", "2:4", "1:4", "3:4", "1:2", "5:8", "channelx1"]
PATTERNS += ["1xchannel"]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(PATTERNS), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99),
    st.floats(0.2, 1), st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_block_sparsity_is_what_counting_by_hand_gives(text, n, m, seed, share, dtype):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, m, generator=generator).to(dtype)
    weight[torch.rand(n, m, generator=generator) < share] = 0
    met, blocks = blocks_by_hand(weight.tolist(), text)
    expected = met / blocks if blocks else None
    assert block_sparsity(weight, parse_pattern(text)) == expected


def test_blocks_of_a_convolution_are_of_channels_at_one_place():
    weight = torch.ones(4, 4, 2, 2)
    weight[:, :, 0, 1] = 0
    assert block_sparsity(weight, parse_pattern("1x4")) == 0.25
    assert block_sparsity(weight, parse_pattern("2:4")) == 0.25
    weight = torch.ones(4, 4, 2, 2)
    weight[:, 0] = 0  # one input channel at every place: no whole group
    assert block_sparsity(weight, parse_pattern("1x4")) == 0
    assert block_sparsity(weight, parse_pattern("4x1")) == 0.25


def test_totals_weigh_block_sparsity_by_weights():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight[:, :6] = 0  # 6 of 8 blocks
        model[1].weight[:2] = 0  # half of every block
    table = sparsity_report(model, "4x1", bytes=False)
    assert table["block_sparsity"].tolist() == [0.75, 0, 24 / 48, 24 / 56]
    assert table["sparsity"].tolist() == [0.75, 0.5, 32 / 48, pytest.approx(32 / 56)]
    assert set(table["pattern"]) == {"4x1"}
    assert table["sparse_bytes"].isna().all()
    table = sparsity_report(model, {"0": "4x1"}, bytes=False)
    assert table["block_sparsity"].tolist()[2:] == [24 / 48, 24 / 56]
    assert pd.isna(table["block_sparsity"][1]) and pd.isna(table["pattern"][1])
    table = sparsity_report(model, {"0": "4x1", "1": "1x4"}, bytes=False)
    assert table["block_sparsity"].tolist()[:2] == [0.75, 0.5]
    assert pd.isna(table["pattern"][2])


@pytest.mark.parametrize("share", [0, 0.5, 0.95, 1.0])
def test_bytes_are_those_of_a_sparse_file_without_header(share, tmp_path):
    model = nn.Sequential(nn.Linear(60, 50), nn.Conv2d(3, 20, 5), nn.Linear(50, 60))
    model[2].bfloat16()
    random_prune_by_pct(model, share, seed=1)
    table = rows(sparsity_report(model))
    save_sparse(str(tmp_path / "model"), dict(model.named_parameters()))
    content = (tmp_path / "model").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert table.sparse_bytes[OVER_ALL] == len(content) - header
    layers = table.sparse_bytes[["0", "1", "2"]]
    assert table.sparse_bytes[OVER_PRUNABLE] == layers.sum()
    if share >= 0.5:
        assert (layers < (1.15 - share) * table.dense_bytes[["0", "1", "2"]]).all()


def test_bytes_of_complex_numbers_are_those_of_a_sparse_file(tmp_path):
    model = nn.Linear(30, 20, dtype=torch.complex128)
    random_prune_by_pct(model, 0.9, seed=1)
    save_sparse(str(tmp_path / "model"), {"weight": model.weight})
    content = (tmp_path / "model").read_bytes()
    size = len(content) - 8 - int.from_bytes(content[:8], "little")
    assert sparsity_report(model)["sparse_bytes"][0] == size


def test_names_select_layers_and_the_last_row_is_over_all():
    model = Small()
    whole, part = sparsity_report(model), sparsity_report(model, names=["^out", "in.ar"])
    assert part["layer"].tolist()[:2] == ["linear", "output"]
    assert rows(part).parameters[OVER_PRUNABLE] == 90
    assert rows(part).parameters[OVER_ALL] == rows(whole).parameters[OVER_ALL]
    assert sparsity_report(model, names="conv")["layer"][0] == "conv"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(names=["conv", "fc1"]), "names: 'fc1' is found in none of the 3 prunable"),
        (dict(names="("), r"names: '\(' is no regular expression"),
        (dict(pattern="4y1"), "pattern: '4y1' is unknown"),
        (dict(pattern={"linear": "4:2"}), "pattern: '4:2' would remove"),
        (dict(pattern=4), "pattern: '4' is unknown"),
        (dict(types="Liner"), "model Small: has no layer of Liner;"),
        (dict(pattern={"fc1": "4x1"}), "pattern: fc1 is none of the 3 layers"),
    ],
)
def test_impossible_questions_are_refused(arguments, message):
    with pytest.raises(SparsityError, match=message):
        sparsity_report(Small(), **arguments)


def test_models_without_weights_to_count():
    with pytest.raises(SparsityError, match="no layer of Linear"):
        sparsity_report(nn.LayerNorm(3))
    table = sparsity_report(nn.Sequential(nn.Linear(0, 4), nn.Linear(2, 2)), "4x1")
    assert table["parameters"].tolist() == [0, 4, 4, 10]
    assert table["block_sparsity"].tolist()[1:] == [0, 0, 0]
    assert pd.isna(table["block_sparsity"][0])
    for other in (nn.LayerNorm(3, device="meta"), nn.LazyConv1d(3, 3)):
        with pytest.raises(SparsityError, match="parameter 1.weight: has no values yet"):
            sparsity_report(nn.Sequential(nn.Linear(3, 3), other))
    table = sparsity_report(nn.Sequential(nn.Linear(0, 4, bias=False)), "4x1")
    assert table["sparsity"].tolist() == [0, 0, 0] and table["block_sparsity"].isna().all()


def test_readable_form_has_units_and_no_empty_columns():
    model = nn.Sequential(nn.Linear(50, 40), nn.Conv2d(50, 20, 1))
    prune_by_pct(model, [0.8, 0.125])
    text = report.to_markdown(sparsity_report(model, "2:4"))
    head, rule, first, second, *_ = text.split("\n")
    titles = [cell.strip() for cell in head.strip("|").split("|")]
    assert titles[4:8] == ["parameters", "remaining", "element sparsity", "block sparsity"]
    assert titles[8:] == ["dense kB", "sparse kB"]
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells[:7] == ["0", "Linear", "40x50", "2:4", "2,000", "400", "80.00%"]
    assert cells[8] == "8.0"
    assert "12.50%" in second
    for note in (report.ABOUT_BLOCKS, report.ABOUT_BYTES):
        assert note in text
    text = report.to_markdown(sparsity_report(model, bytes=False))
    for absent in ("pattern", "block", "kB", "sparse file"):
        assert absent not in text


# -- the tool -------------------------------------------------------------------------


def call(*arguments):
    with quiet_logging():
        tool.main([str(a) for a in arguments])


def pruned(path, share, target, dtype=torch.float32):
    """A copy of a checkpoint with a share of every layer's weights pruned."""
    state = torch.load(path)
    model = load_model(path)
    prune_by_pct(model, share)
    state["model"] = {name: value.to(dtype) for name, value in model.state_dict().items()}
    torch.save(state, target)
    return target


@pytest.fixture(scope="module")
def stock(corpus, tmp_path_factory):
    """Checkpoint of fairseq's own Transformer."""
    options = ["--arch", "transformer", "--encoder-layers", "1", "--decoder-layers", "1"]
    options += ["--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "24"]
    options += ["--encoder-attention-heads", "2", "--decoder-attention-heads", "2"]
    folder = tmp_path_factory.mktemp("stock")
    return save(make_trainer(corpus, options), folder / "stock.pt")


@pytest.mark.parametrize("kind", ["dense", "cut", "stock"])
def test_tool_reports_any_checkpoint(kind, checkpoints, stock, tmp_path, capsys):
    path = stock if kind == "stock" else getattr(checkpoints, kind)
    call("--path", pruned(path, 0.75, tmp_path / "pruned.pt"), "--pattern", "2:4")
    numbers = pd.read_csv(tmp_path / "sparsity.csv")
    model = load_model(path)
    layers = prunable_layers(model)
    assert numbers["layer"].tolist() == [*layers, OVER_PRUNABLE, OVER_ALL]
    sizes = [layer.weight.numel() for layer in layers.values()]
    remaining = [size - size * 3 // 4 for size in sizes]
    assert numbers["remaining"].tolist()[:-1] == [*remaining, sum(remaining)]
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert numbers["parameters"].tolist() == [*sizes, sum(sizes), whole]
    assert (numbers["sparse_bytes"] < 0.5 * numbers["dense_bytes"])[:-1].all()
    assert (numbers["block_sparsity"].between(0.5, 1)).all()
    printed = capsys.readouterr().out
    markdown = (tmp_path / "sparsity.md").read_text(encoding="utf-8")
    for text in (printed, markdown):
        for figure in (f"{sizes[0]:,}", f"{whole:,}", OVER_ALL, "2:4"):
            assert figure in text
    assert "(sparsity.png)" in markdown
    assert (tmp_path / "sparsity.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.tmp"))


def test_tool_counts_bytes_in_the_precision_that_is_stored(stock, tmp_path):
    path = pruned(stock, 0.5, tmp_path / "half.pt", torch.float16)
    call("--path", path, "--names", "fc1", "encoder.*fc2", "--output", tmp_path / "a" / "b")
    numbers = pd.read_csv(tmp_path / "a" / "b" / "sparsity.csv")
    names = ["encoder.layers.0.fc1", "encoder.layers.0.fc2", "decoder.layers.0.fc1"]
    assert numbers["layer"].tolist()[:-2] == names
    assert numbers["dense_bytes"].tolist() == (2 * numbers["parameters"]).tolist()
    assert numbers["sparsity"].tolist()[:-1] == [0.5] * 4
    assert not list(tmp_path.glob("sparsity.*"))


def test_tool_reads_weights_under_their_names_of_old(stock, tmp_path):
    path = pruned(stock, 0.5, tmp_path / "new.pt")
    call("--path", path)
    expected = (tmp_path / "sparsity.csv").read_bytes()
    state = torch.load(path)
    for kind in ("weight", "bias"):  # of one matrix, as of fairseq before 0.9
        name = "encoder.layers.0.self_attn.{}_proj." + kind
        parts = [state["model"].pop(name.format(part)) for part in "qkv"]
        state["model"][f"encoder.layers.0.self_attn.in_proj_{kind}"] = torch.cat(parts)
    torch.save(state, tmp_path / "old.pt")
    call("--path", tmp_path / "old.pt")
    assert (tmp_path / "sparsity.csv").read_bytes() == expected


def test_a_sparse_file_gives_the_same_report(stock, tmp_path):
    path = pruned(stock, 0.9, tmp_path / "pruned.pt")
    write_sparse(torch.load(path), str(tmp_path / "pruned.sparse"), "--path")
    tables = []
    for name in ("pruned.pt", "pruned.sparse"):
        call("--path", tmp_path / name, "--layer-types", "Linear", "--pattern", "4x1")
        tables.append((tmp_path / "sparsity.csv").read_bytes())
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["--path", "nothing.pt"], ["--path nothing.pt", "no such file"]),
        (["--path", __file__], ["--path", "no PyTorch checkpoint"]),
        (["--pattern", "4x1"], ["--path"]),
        (["--path", "GOOD", "--pattern", "4y1"], ["--pattern", "'4y1'", "4x1", "2:4"]),
        (["--path", "GOOD", "--names", "("], ["--names (", "regular expression"]),
        (["--path", "GOOD", "--names", "fc3"], ["--names: 'fc3'", "such as encoder."]),
        (
            ["--path", "GOOD", "--layer-types", "Linear", "Liner"],
            ["--layer-types Liner: ", "Embedding, ", "Linear"],
        ),
        (["--path", "GOOD", "--output", __file__], ["--output", "is no folder"]),
        (["--path", "GOOD", "--output", "x" * 300], ["--output xxx", "can't be made"]),
        (
            ["--path", "GOOD", "--output", f"{__file__}/a/b"],
            [f"--output {__file__}/a/b: {__file__} is no folder"],
        ),
        (["--path", "GOOD", "--patern", "4x1"], ["--patern"]),
    ],
)
def test_refused_in_one_line(arguments, parts, stock, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped, ending_program():
        call(*(stock if a == "GOOD" else a for a in arguments))
    assert stopped.value.code == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message and "Traceback" not in message
    for part in parts:
        assert (stock if part == "GOOD" else part) in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", [tool, export_adapters])
def test_weights_that_do_not_fit_name_the_option(module, stock, tmp_path):
    state = torch.load(stock)
    del state["model"]["encoder.layers.0.fc1.weight"]
    path = str(tmp_path / "lacking.pt")
    torch.save(state, path)
    with pytest.raises(UserError, match=f"^--path {path}: its weights are not those"):
        module.main(["--path", path, "--output", str(tmp_path / "out")])


def test_help_teaches_the_patterns(capsys):
    with pytest.raises(SystemExit) as stopped, ending_program():
        call("--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for word in ("--path", "--pattern", "--names", "--output", "NxM", "N:M", "sparsity.csv"):
        assert word in text
    assert re.search(r"channelx1 +an input", text)
