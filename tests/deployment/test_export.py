"""Export: the CTranslate2 model is the same function, and appears complete or not."""
# ruff: noqa: F811  (fixtures are imported)

import copy
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from src import export
from src.connectivity.cut import cut
from src.connectivity.groups import channel_groups
from src.deployment import comparison as ctranslate2_check
from src.deployment import export as deployment
from src.deployment import spec as ctranslate2_spec
from src.deployment.comparison import deviation, load_translator
from src.deployment.model import QUANTIZATIONS, build_spec, vocabulary
from src.errors import UserError, ending_program
from tests.support.cuts import VARIANTS
from tests.support.exports import SHORT, dictionaries, exported, found_deviation
from tests.support.training import build
from tests.support.translation import (
    random_cut,
    random_pairs,
    run_tool,
    write_data,
)

# -- the same function -----------------------------------------------------------------


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("is_cut", [False, True], ids=["uncut", "cut"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_same_log_probabilities(variant, is_cut, weighted, tmp_path):
    options = VARIANTS[variant]
    shared = options.get("share_all_embeddings", False)
    model = build(shared=shared, weighted_layernorm=weighted, **options)
    if is_cut:
        cut(model, random_cut(model, minimum=0.2))
        widths = [
            (layer.self_attn.qk.width, layer.self_attn.vo.width)
            for layer in (*model.encoder.layers, *model.decoder.layers)
        ]
        assert any(qk > vo for qk, vo in widths) and any(qk < vo for qk, vo in widths)
    translator = exported(model, tmp_path, shared=shared)
    found = found_deviation(translator, model, shared)  # the model is in float64
    assert found.largest <= 1e-5 and found.tokens > 200


@pytest.mark.parametrize("variant", ["post-norm", "mixed norm", "narrow decoder", "gelu"])
def test_fairseqs_transformer(variant, tmp_path):
    model = build("transformer", **VARIANTS[variant])
    assert found_deviation(exported(model, tmp_path), model).largest <= 1e-5


@pytest.mark.parametrize("name", ["gelu_accurate", "gelu_fast", "tanh"])
def test_other_activations(name, tmp_path):
    model = build(activation_fn=name)
    assert found_deviation(exported(model, tmp_path), model).largest <= 1e-5


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_whole_missing_heads(side, tmp_path):
    """Sub-layers with fewer heads than others beside them."""
    model = build(encoder_attention_heads=4, decoder_attention_heads=4)
    layer = getattr(model, side).layers[1]
    attention = layer.self_attn if side == "encoder" else layer.encoder_attn
    groups = (attention.qk, attention.vo)
    channel_groups(model)
    gone = {group.name: torch.arange(4, 8) for group in groups}
    keep = {name: torch.tensor([*range(4), *range(8, 16)]) for name in gone}
    before = found_deviation(exported(model, tmp_path / "before"), model)
    gated = copy.deepcopy(model)
    close_one = channel_groups(gated)
    for name, positions in gone.items():
        connectivity = torch.ones(16, dtype=torch.float64)
        connectivity[positions] = 0
        close_one[name].set_connectivity(connectivity)
    cut(model, keep)
    assert attention.num_heads == 3
    translator = exported(model, tmp_path / "after")
    found = found_deviation(translator, model)
    assert max(before.largest, found.largest) <= 1e-5
    # and it is what closing that head's gates gives
    assert found_deviation(translator, gated).largest <= 1e-5


def test_norms_over_the_uncut_width_keep_it(tmp_path):
    """Without weighted layer normalization the uncut width stays, with it the cut one."""
    widths = {}
    for weighted in (True, False):
        model = build(weighted_layernorm=weighted)
        cut(model, random_cut(model))
        kept = model.encoder.embedding.width
        spec = build_spec(model, *dictionaries(), "model", (SHORT, SHORT))
        widths[weighted] = spec.encoder.embeddings[0].weight.shape[1]
    assert widths == {True: kept, False: 16}


def test_position_tables_reach_to_their_last_row(tmp_path):
    model = build(encoder_learned_pos=True, decoder_learned_pos=True)
    translator = exported(model, tmp_path, length=12)
    source, target = dictionaries()
    full = [([5] * 11, [6] * 11)]  # and the ends of sentence
    assert deviation(translator, model, source, target, full).largest <= 1e-5
    too_long = [source[5]] * 12
    with pytest.raises((ValueError, RuntimeError)):
        translator.score_batch([too_long], [[]])


# -- quantization ----------------------------------------------------------------------


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_quantized_models(quantization, tmp_path):
    model = build(encoder_embed_dim=64, decoder_embed_dim=64).float()
    before = copy.deepcopy(model.state_dict())
    translator = exported(model, tmp_path / "model", quantization, length=SHORT)
    for name, value in model.state_dict().items():
        # the quantizer works in place: on a view of the weights it would change them
        assert torch.equal(value, before[name]), name
    found = found_deviation(translator, model)
    size = os.path.getsize(tmp_path / "model" / "model.bin")
    exported(model, tmp_path / "full", length=SHORT)
    full = os.path.getsize(tmp_path / "full" / "model.bin")
    positions = 2 * SHORT * 64 * 4
    if quantization == "float32":
        assert found.largest <= 1e-5 and size == full
    else:
        # without these instructions oneDNN's products of 8 bits saturate (and those of 16 are
        # of 8), which random weights show more than trained ones
        precise = "vnni" in Path("/proc/cpuinfo").read_text() or os.environ.get("CT2_USE_MKL")
        assert 1e-4 < found.largest and found.mean < (0.1 if precise else 0.4)
        share = 0.3 if "int8" in quantization else 0.55
        assert size - positions <= share * (full - positions) + 8000
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["quantization"] == quantization


# -- vocabularies ----------------------------------------------------------------------


def test_every_type_keeps_its_number(tmp_path):
    """Also where a later entry of the dictionary takes over a symbol."""
    source, target = dictionaries()
    twice = source.symbols[7]
    source.symbols[20] = twice
    source.indices[twice] = 20
    target.symbols[9] = "madeupword0000"
    target.indices["madeupword0000"] = 9
    names = vocabulary(source)
    assert len(set(names)) == len(names) and names.index(twice) == 20
    model = build()
    with torch.no_grad():
        model.encoder.embed_tokens.weight[20] *= -3
    folder = tmp_path / "model"
    folder.mkdir()
    deployment.export(model, (source, target), str(folder), max_length=SHORT)
    translator = load_translator(str(folder), "model")
    pairs = [([20, 7, 5], [9, 8]), ([7], [])]
    assert deviation(translator, model, source, target, pairs).largest <= 1e-5


# -- the check -------------------------------------------------------------------------


def wrong_heads(monkeypatch):
    right = deployment.build_spec

    def wrong(*args):
        spec = right(*args)
        spec.encoder.num_heads.array = np.int16(1)
        return spec

    monkeypatch.setattr(deployment, "build_spec", wrong)


def wrong_scale(monkeypatch):
    right = ctranslate2_spec.SpecBuilder._attention

    def wrong(self, spec, attention, *args):
        right(self, spec, attention, *args)
        spec.queries_scale = float(len(attention.q_proj.weight) / 2) ** -0.5

    monkeypatch.setattr(ctranslate2_spec.SpecBuilder, "_attention", wrong)


def gross_mismatch(monkeypatch):
    monkeypatch.setattr(ctranslate2_check, "GROSS", 0.0)


@pytest.mark.parametrize("mistake", [wrong_heads, wrong_scale, gross_mismatch])
def test_what_differs_is_not_kept(mistake, checkpoints, corpus, tmp_path, monkeypatch):
    mistake(monkeypatch)
    path = str(tmp_path / "model")
    arguments = [corpus, "--path", checkpoints.cut, "--output", path]
    with pytest.raises(UserError, match="not the same: log-probabilities"):
        run_export([*arguments, "--quantization", "int8"])
    assert os.listdir(tmp_path) == []


def test_nan_is_a_difference(tmp_path):
    model = build()
    with torch.no_grad():
        model.decoder.layers[0].fc1.bias[0] = float("nan")
    with pytest.raises(UserError, match="not the same"):
        exported(model, tmp_path)


# -- the command line ------------------------------------------------------------------


def run_export(arguments) -> str:
    return run_tool(lambda: export.main(list(arguments)), arguments)


def test_force_replaces_only_a_model(corpus, checkpoints, tmp_path):
    path = tmp_path / "model"
    arguments = [corpus, "--path", checkpoints.dense, "--output", str(path)]
    output = run_export([*arguments, "--max-length", "80", "--check-subset", "test"])
    first = (path / "model.bin").stat().st_size
    assert f"in {first:,} bytes (float32)" in output
    assert "computes in" not in output
    stored = ["--quantization", "int8_float16", "--force"]  # which no CPU computes in
    output = run_export([*arguments, "--max-length", "80", *stored])
    assert re.search("stored in int8_float16: on this CPU CTranslate2 computes in ", output)
    assert (path / "model.bin").stat().st_size < 0.6 * first
    (path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds more than a CTranslate2 model"):
        run_export([*arguments, "--force"])
    assert (path / "notes.txt").exists()


def damaged(checkpoints, place):
    path = place / "truncated.pt"
    path.write_bytes(Path(checkpoints.cut).read_bytes()[:-5000])
    return str(path)


def other_data(place):
    place.mkdir()
    write_data(place, random_pairs(3))
    with open(place / "dict.de.txt", "a", encoding="utf-8") as stream:
        stream.write("neu 1\n")
    return str(place)


REFUSALS = {
    "existing folder": (["--output", "{here}"], ["--output", "exists", "--force"]),
    "file in the way": (["--output", "{file}", "--force"], ["is no folder"]),
    "no parent": (["--output", "{here}/a/b"], ["--output", "there is no folder"]),
    "no data": (["data={here}/none"], ["none", "no such folder"]),
    "other data": (["data={other}"], ["source dictionary has 21 types", "22"]),
    "no checkpoint": (["--path", "no.pt"], ["--path no.pt", "no such file"]),
    "damaged": (["--path", "{damaged}"], ["--path", "truncated"]),
    "gated": (["--path", "{gated}"], ["stage that is not finished", "after the cut"]),
    "nan": (["--path", "{nan}"], ["--path", "decoder.layers.0.fc1.weight holds NaN"]),
    "no subset": (["--check-subset", "dev"], ["--check-subset dev", "no such set"]),
    "damaged subset": (["data={short}"], ["--check-subset", "de-en.en.idx is truncated"]),
    "damaged dictionary": (["data={latin}"], ["dict.de.txt", "can't be read"]),
    "too short": (["--max-length", "1"], ["--max-length 1", "at least 2"]),
    "too long": (["--max-length", "9999"], ["--max-length 9999", "limit is 1024"]),
    "quantization": (["--quantization", "int4"], ["--quantization", "int4", "int8"]),
    "not installed": (["missing=ctranslate2"], ["pip install ctranslate2=="]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_in_one_line(case, corpus, checkpoints, tmp_path, capsys, monkeypatch):
    given, expected = REFUSALS[case]
    (tmp_path / "file").write_text("")
    places = {
        "here": str(tmp_path),
        "file": str(tmp_path / "file"),
        "gated": checkpoints.gated,
        "damaged": damaged(checkpoints, tmp_path),
        "other": other_data(tmp_path / "other"),
        "nan": str(tmp_path / "nan.pt"),
    }
    state = torch.load(checkpoints.cut)
    state["model"]["decoder.layers.0.fc1.weight"][0, 0] = float("nan")
    torch.save(state, places["nan"])
    for name, file, content in (
        ("short", "valid.de-en.en.idx", b"MMIDIDX"),
        ("latin", "dict.de.txt", b"\xe4 5\n"),
    ):
        places[name] = shutil.copytree(corpus, tmp_path / name)
        (tmp_path / name / file).write_bytes(content)
    arguments = {"data": corpus, "--path": checkpoints.cut, "--output": f"{tmp_path}/out"}
    given = [a.format(**places) for a in given]
    if given[0] == "missing=ctranslate2":
        monkeypatch.setitem(__import__("sys").modules, "ctranslate2", None)
    elif given[0].startswith("data="):
        arguments["data"] = given[0][5:]
    else:
        arguments[given[0]] = given[1]
    line = [arguments.pop("data"), *[a for pair in arguments.items() for a in pair]]
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(SystemExit) as stopped, ending_program():
        run_export([*line, *given[2:]])
    assert stopped.value.code == 2
    messages = [m for m in capsys.readouterr().err.split("\n") if m.startswith("error: ")]
    assert len(messages) == 1
    for part in expected:
        assert part in messages[0]
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    "options, expected",
    [
        (dict(activation_fn="relu_squared"), "--activation-fn relu_squared"),
        (dict(activation_fn="linear"), "--activation-fn linear"),
        (dict(arch="transformer", decoder_output_dim=12), "--decoder-output-dim"),
        (dict(arch="transformer", no_cross_attention=True), "no cross-attention"),
    ],
)
def test_models_that_ctranslate2_lacks(options, expected, tmp_path):
    with pytest.raises(UserError, match=expected):
        exported(build(**options), tmp_path)
