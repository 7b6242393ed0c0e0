"""Checkpoints as sparse files, and translation with sparse products."""
# ruff: noqa: F811  (fixtures are imported)

import json
import os
import random

import pytest
import torch
from fairseq_cli import generate as fairseq_generate
from fairseq_cli import interactive as fairseq_interactive

from src import (
    average_checkpoints,
    export,
    export_adapters,
    export_sparse,
    flops_counter,
    sparsity_report,
)
from src.acceleration.constant_products import ConstantLinear, PackedLinear
from src.checkpoint_utils import load_checkpoint
from src.errors import UserError
from src.sparsity.execution.layouts import ByRows
from tests.support.training import RUN
from tests.support.training import run_training as run_fairseq_training
from tests.support.translation import (
    ARCH,
    SEARCH,
    USER_DIR,
    hypotheses,
    make_trainer,
    random_pairs,
    run_tool,
    save,
    sentence_lines,
    stock_loss,
    translate,
    write_data,
)


def make_sparse(model, density, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                mask = torch.rand(parameter.shape, generator=generator) < density
                parameter.mul_(mask)


@pytest.fixture(scope="module")
def sparse(corpus, tmp_path_factory):
    """(checkpoint of a model with 80 % zeros, the same as a sparse file)."""
    folder = tmp_path_factory.mktemp("sparse")
    trainer = make_trainer(corpus, ARCH)
    make_sparse(trainer.get_model(), 0.2)
    path = save(trainer, folder / "pruned.pt")
    output = str(folder / "pruned.safetensors")
    export_sparse.main(["--path", path, "--output", output])
    return path, output


def test_every_bit_comes_back_and_zeros_take_no_room(sparse):
    before, after = (load_checkpoint(path, "--path") for path in sparse)
    assert list(before["model"]) == list(after["model"])
    for name, value in before["model"].items():
        assert torch.equal(value, after["model"][name]), name
        assert value.dtype == after["model"][name].dtype
    tied = after["model"]
    embedding, projection = "decoder.embed_tokens.weight", "decoder.output_projection.weight"
    assert tied[embedding].data_ptr() == tied[projection].data_ptr()
    assert str(before["cfg"]["model"]) == str(after["cfg"]["model"])
    dense = sum(v.numel() * 4 for n, v in before["model"].items() if n != projection)
    assert os.path.getsize(sparse[1]) < 0.35 * dense


@pytest.mark.parametrize("kind", ["gated", "cut"])
def test_translates_as_the_checkpoint(corpus, checkpoints, tmp_path, kind):
    path, output = getattr(checkpoints, kind), str(tmp_path / "sparse.safetensors")
    export_sparse.main(["--path", path, "--output", output])
    expected = sentence_lines(translate(corpus, path))
    assert sentence_lines(translate(corpus, output)) == expected
    stock = [corpus, "--path", output, *SEARCH, "--remove-bpe", "--user-dir", USER_DIR]
    stock += ["--required-batch-size-multiple", "1", "--task", "SRPtranslation"]
    assert sentence_lines(run_tool(fairseq_generate.cli_main, stock)) == expected


def test_every_tool_reads_a_sparse_file(corpus, sparse, tmp_path, capsys):
    path, output = sparse
    text = "ein Mann läuft .\n"
    (tmp_path / "text.de").write_text(text)
    export.main(
        [corpus, "--path", output, "--output", str(tmp_path / "ct2"), "--quantization", "float32"]
    )
    counts = [str(p) for p in (flops_counter.load_model(q, False) for q in sparse)]
    assert counts[0] == counts[1]
    sparsity_report.main(["--path", output, "--output", str(tmp_path)])
    assert (tmp_path / "sparsity.png").stat().st_size > 1000
    average_checkpoints.main(["--inputs", output, path, "--output", str(tmp_path / "average.pt")])
    averaged = load_checkpoint(str(tmp_path / "average.pt"), "--path")["model"]
    weights = load_checkpoint(path, "--path")["model"]
    assert all(torch.allclose(averaged[name].float(), weights[name].float()) for name in weights)


def test_stock_tools_read_a_sparse_file(corpus, sparse, tmp_path):
    lines = [source for source, _ in random_pairs(1)]
    text = tmp_path / "input.de"
    text.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    found = []
    for path in sparse:
        arguments = [corpus, "--path", path, *SEARCH, "--remove-bpe", "--input", str(text)]
        arguments += ["--buffer-size", "20", "--user-dir", USER_DIR, "--task", "SRPtranslation"]
        output = run_tool(fairseq_interactive.cli_main, arguments)
        found.append((hypotheses(output), stock_loss(corpus, path)))
    assert found[0] == found[1] and len(found[0][0]) == len(lines)


def test_adapters_of_a_sparse_file(corpus, checkpoints, tmp_path):
    """A base kept as a sparse file is adapted, its adapters written and used beside it."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "valid"):
        write_data(folder, random_pairs(1, 20), split)
    base = str(tmp_path / "base.safetensors")
    export_sparse.main(["--path", checkpoints.cut, "--output", base])
    run = [folder, *ARCH, *RUN, "--pretrained-model", base, "--adapter", "splora"]
    run_fairseq_training([*run, "--max-epoch", "1", "--save-dir", tmp_path, "--lr", "0.02"])
    last, adapted = str(tmp_path / "checkpoint_last.pt"), str(tmp_path / "adapted.safetensors")
    export_sparse.main(["--path", last, "--output", adapted])
    files = []
    for path in (last, adapted):
        files.append(str(tmp_path / f"adapters{len(files)}.pt"))
        export_adapters.main(["--path", path, "--output", files[-1]])
    contents = [torch.load(path, weights_only=True) for path in files]
    assert str(contents[0]) == str(contents[1])
    expected = sentence_lines(translate(corpus, last))
    assert sentence_lines(translate(corpus, adapted)) == expected
    assert sentence_lines(translate(corpus, base, "--adapter-path", files[1])) == expected


def test_training_starts_from_a_sparse_file(corpus, sparse, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "valid"):
        write_data(folder, random_pairs(1, 20), split)
    for option in ("--pretrained-model", "--finetune-from-model"):
        run = [*RUN, *("--max-epoch", "1", "--save-dir", tmp_path / option[2:])]
        trainer = run_fairseq_training(
            [folder, *ARCH, *run, option, sparse[1], "--lr", "1e-9", "--weight-decay", "0"]
        )
        weights = load_checkpoint(sparse[0], "--path")["model"]
        for name, value in trainer.get_model().state_dict().items():
            assert torch.allclose(value.float(), weights[name].float(), atol=1e-6), name


def test_damage_is_refused_in_one_line(corpus, sparse, tmp_path, capsys):
    content = bytearray(open(sparse[1], "rb").read())
    generator = random.Random(1)
    for number in range(10):
        damaged = bytearray(content)
        place = generator.randrange(len(content) // 2, len(content))
        damaged[place] ^= 1 << generator.randrange(8)
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(bytes(damaged) if number else bytes(content[: len(content) // 2]))
        with pytest.raises(UserError) as refusal:
            translate(corpus, str(path))
        assert str(path) in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_weights_that_are_no_numbers_are_refused(sparse, tmp_path):
    state = torch.load(sparse[0])
    state["model"]["encoder.layers.0.fc1.weight"][3, 4] = float("nan")
    torch.save(state, tmp_path / "diverged.pt")
    output = tmp_path / "sparse.safetensors"
    with pytest.raises(UserError, match="encoder.layers.0.fc1.weight holds NaN"):
        export_sparse.main(["--path", str(tmp_path / "diverged.pt"), "--output", str(output)])
    assert not output.exists()


def test_a_sparse_file_of_something_else_is_refused(corpus, tmp_path):
    from src.sparsity import save_sparse

    path = str(tmp_path / "weights.safetensors")
    save_sparse(path, {"weight": torch.ones(3)})
    with pytest.raises(UserError, match="holds no checkpoint"):
        translate(corpus, path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--output", "/no/such/folder/file"], "there is no folder"),
        (["--output", "PATH"], "is --path"),
    ],
)
def test_output_is_checked_first(sparse, arguments, message):
    arguments = [sparse[0] if a == "PATH" else a for a in arguments]
    with pytest.raises(UserError, match=message):
        export_sparse.main(["--path", sparse[0], *arguments])


# -- --sparse-inference -------------------------------------------------------------------


def test_sparse_products_give_the_same_hypotheses(corpus, sparse, tmp_path, monkeypatch):
    expected = sentence_lines(translate(corpus, sparse[0]), "H")
    used = {"sparse": 0, "dense": 0}

    def only_csr(*args, **kwargs):
        used["sparse"] += 1
        return ByRows(*args, **kwargs, candidates=["csr"])

    monkeypatch.setattr("src.acceleration.constant_products.ByRows", only_csr)
    found = sentence_lines(translate(corpus, sparse[0], "--sparse-inference"), "H")
    # every product of encoder and decoder, the output projection included
    assert used["sparse"] >= 2 * 6 + 2 * 7 + 1

    def rounded(lines):
        parts = [line.split("\t") for line in lines]
        return [(p[0], p[2]) for p in parts], [float(p[1]) for p in parts]

    assert rounded(found)[0] == rounded(expected)[0]
    assert rounded(found)[1] == pytest.approx(rounded(expected)[1], abs=1e-4)


def test_choice_by_timing_translates_too(corpus, sparse):
    expected = translate(corpus, sparse[0])
    found = translate(corpus, sparse[0], "--sparse-inference")
    same = zip(sentence_lines(expected, "D"), sentence_lines(found, "D"))
    assert all(a.split("\t")[2] == b.split("\t")[2] for a, b in same)


def test_dense_weights_stay_packed(corpus, checkpoints):
    from src.acceleration.constant_products import constant_product

    dense = torch.randn(64, 64)
    assert isinstance(constant_product(dense), PackedLinear)
    assert isinstance(constant_product(dense * (torch.rand(64, 64) < 0.5)), ByRows)
    layer = torch.nn.Linear(8, 5)
    x = torch.randn(3, 2, 8)
    assert torch.allclose(ConstantLinear(layer)(x), layer(x), atol=1e-6)


@pytest.mark.parametrize(
    "option", [["--cpu-bf16"], ["--fairseq-search"], ["--engine", "ctranslate2"]]
)
def test_sparse_inference_is_refused_where_it_has_no_part(corpus, checkpoints, option):
    with pytest.raises(UserError, match="--sparse-inference|--cpu-bf16: this processor"):
        translate(corpus, checkpoints.cut, "--sparse-inference", *option)


def test_report_counts_what_is_not_zero(corpus, sparse, tmp_path):
    report = tmp_path / "report.json"
    translate(corpus, sparse[1], "--report", str(report))
    facts = json.loads(report.read_text())
    assert 0.15 < facts["nonzero_parameters"] / facts["parameters"] < 0.35
    assert facts["checkpoint_bytes"] < facts["model_bytes"]
