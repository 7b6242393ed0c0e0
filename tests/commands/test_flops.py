"""FLOPs from the declared structure are those of real forward passes."""
# ruff: noqa: F811, F401  (fixtures are imported)

import argparse

import pytest
import torch
from fairseq import models
from fairseq.data import Dictionary
from fairseq.sequence_generator import SequenceGenerator
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from src.checkpoints.rebuild import load_model
from src.connectivity.cut import cut
from src.errors import UserError
from src.evaluation.flops import count_flops
from src.flops_counter import main
from tests.support.flops import (
    FUSED,
    SMALL,
    DictionariesTask,
    attention_flops,
    build,
    counter,
    teacher_forced,
    tokens,
)
from tests.support.translation import quiet_logging, random_cut

VARIANTS = {
    "post-norm": {},
    "pre-norm": dict(encoder_normalize_before=True, decoder_normalize_before=True),
    "weighted": dict(weighted_layernorm=True, share_decoder_input_output_embed=True),
    "unequal": dict(decoder_embed_dim=24, decoder_layers=3, decoder_attention_heads=2),
    "shared": dict(share_all_embeddings=True),
    "learned": dict(encoder_learned_pos=True, decoder_learned_pos=True),
}


def variant(name, is_cut):
    model = build(**{**SMALL, **VARIANTS[name]})
    if is_cut:
        cut(model, random_cut(model, seed=len(name)))
    return model


@pytest.mark.parametrize("is_cut", [False, True], ids=["dense", "cut"])
@pytest.mark.parametrize("name", VARIANTS)
def test_teacher_forced_is_what_torch_counts(name, is_cut):
    model = variant(name, is_cut)
    counted = count_flops(model, 13, 9, incremental=False)
    assert counted["total"] == teacher_forced(model, 13, 9).get_total_flops()


@pytest.mark.parametrize("is_cut", [False, True], ids=["dense", "cut"])
def test_each_part_is_what_torch_counts_in_its_modules(is_cut):
    model = variant("unequal", is_cut)
    counted = count_flops(model, 13, 9, incremental=False)
    by_module = {
        name: sum(flops.values())
        for name, flops in teacher_forced(model, 13, 9).get_flop_counts().items()
    }

    def total(*ends):
        return sum(v for name, v in by_module.items() if name.endswith(ends))

    def projections_and_scores(side, attention):
        names = [name for name in by_module if f"{side}.layers" in name and f"{attention}" in name]
        whole = sum(by_module[n] for n in names if n.endswith(attention))
        projections = sum(by_module[n] for n in names if n.endswith("_proj"))
        return projections, whole - projections

    assert by_module["SRPModel"] == counted["total"]
    assert total("output_projection") == counted["output_projection"]
    for side in ("encoder", "decoder"):
        ffn = sum(v for n, v in by_module.items() if side in n and n.endswith(("fc1", "fc2")))
        assert ffn == counted[f"{side}_ffn"]
    for side, attention, part in (
        ("encoder", "self_attn", "encoder"),
        ("decoder", "self_attn", "decoder_self"),
        ("decoder", "encoder_attn", "decoder_cross"),
    ):
        expected = counted[f"{part}_projections"], counted[f"{part}_scores"]
        assert projections_and_scores(side, attention) == expected


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("is_cut", [False, True], ids=["dense", "cut"])
def test_incremental_is_what_a_decoding_loop_takes(is_cut, beam):
    model = variant("unequal", is_cut)
    source, target = 11, 7
    with counter() as flops, torch.no_grad():
        memory = model.encoder(tokens(1, source), torch.tensor([source]))
        model.decoder.set_beam_size(beam)
        memory = model.encoder.reorder_encoder_out(memory, torch.zeros(beam).long())
        state = {}
        previous = tokens(beam, target)
        for step in range(1, target + 1):
            model.decoder(previous[:, :step], memory, incremental_state=state)
    assert count_flops(model, source, target, beam=beam)["total"] == flops.get_total_flops()


@pytest.mark.parametrize("beam", [1, 4])
def test_incremental_is_what_fairseqs_beam_search_takes(beam):
    model = variant("pre-norm", is_cut=True)
    source, target, sentences = 6, 8, 2
    dictionary = DictionariesTask(60, 60).target_dictionary
    # fairseq asks the model for this method, which Transformers have on the decoder only
    model.decoder.set_beam_size(beam)
    generator = SequenceGenerator(
        [model], dictionary, beam_size=beam, max_len_a=0, max_len_b=target - 1,
        min_len=target - 1,
    )  # fmt: skip
    sample = {
        "net_input": {
            "src_tokens": tokens(sentences, source),
            "src_lengths": torch.full((sentences,), source),
        }
    }
    with counter() as flops, torch.no_grad():
        found = generator(sample)
    assert {len(beams[0]["tokens"]) for beams in found} == {target}
    counted = count_flops(model, source, target, beam=beam)["total"]
    assert sentences * counted == flops.get_total_flops()


def test_known_figure_of_the_iwslt_architecture():
    with torch.device("meta"):
        model = build("srp_iwslt_de_en", 8848, 6632, share_decoder_input_output_embed=True)
    flops = count_flops(model, 50, 50)
    assert round(flops["total"] / 1e9, 2) == 3.56
    assert flops["total"] == sum(v for name, v in flops.items() if name != "total")


def test_fairseqs_transformer_takes_as_much_as_the_srp_model():
    plain = build("transformer", **SMALL)
    assert count_flops(plain, 5, 6) == count_flops(build(**SMALL), 5, 6)


def test_a_narrower_output_is_counted_with_its_projection():
    model = build("transformer", **SMALL, decoder_output_dim=28)
    found = count_flops(model, 5, 6)["output_projection"]
    assert found == 2 * 6 * (32 * 28 + 28 * 60)


def test_cutting_one_kind_lowers_its_parts_only():
    parts = {
        "self_attn.vo": {"encoder_projections", "encoder_scores",
                         "decoder_self_projections", "decoder_self_scores"},
        "encoder_attn.qk": {"decoder_cross_projections", "decoder_cross_scores"},
        "encoder.embedding": {"encoder_projections", "encoder_ffn",
                              "decoder_cross_projections"},
        "decoder.embedding": {"decoder_self_projections", "decoder_cross_projections",
                              "decoder_ffn", "output_projection"},
    }  # fmt: skip
    for ending, expected in parts.items():
        model = build(**SMALL)
        before = count_flops(model, 12, 10)
        keep = random_cut(model)
        cut(model, {name: k for name, k in keep.items() if name.endswith(ending)})
        after = count_flops(model, 12, 10)
        assert {p for p in before if after[p] < before[p]} == expected | {"total"}
        assert all(after[p] <= before[p] for p in before)


def test_impossible_questions_are_refused():
    model = build(**SMALL)
    for arguments in ((0, 5), (5, 0), (5, 5, True, 0), (5, 5, False, 2)):
        with pytest.raises(ValueError):
            count_flops(model, *arguments)


def test_tool_prints_the_total_of_a_checkpoint(checkpoints, capsys):
    with quiet_logging():
        main([checkpoints.cut, "--source-length", "10", "--target-length", "8"])
    printed = capsys.readouterr().out.split("\n")
    total = next(line for line in printed if line.startswith("total"))
    expected = count_flops(load_model(checkpoints.cut), 10, 8)["total"]
    assert float(total.split()[1]) == pytest.approx(expected / 1e6, abs=1e-3)
    dense = count_flops(load_model(checkpoints.dense), 10, 8)["total"]
    assert expected < dense


@pytest.mark.parametrize("name", ["decoder.embed_tokens.weight", "encoder.layers.0.fc1.bias"])
def test_tool_refuses_what_lacks_a_weight(checkpoints, tmp_path, name):
    state = torch.load(checkpoints.cut)
    del state["model"][name]
    torch.save(state, tmp_path / "lacks.pt")
    words = f"lacks.pt: its weights are not those of an SRP model.*{name}"
    with pytest.raises(UserError, match=words), quiet_logging():
        main([str(tmp_path / "lacks.pt")])


def test_tool_counts_the_whole_target_at_once(checkpoints, capsys):
    with quiet_logging():
        main([checkpoints.cut, "--teacher-forced"])
    printed = capsys.readouterr().out.split("\n")
    assert printed[0] == "source 50 tokens, target 50, teacher-forced"
    total = next(line for line in printed if line.startswith("total"))
    expected = count_flops(load_model(checkpoints.cut), 50, 50, incremental=False)["total"]
    assert float(total.split()[1]) == pytest.approx(expected / 1e6, abs=1e-3)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--source-length", "0"], "--source-length 0: must be at least 1"),
        (["--target-length", "-1"], "--target-length -1: must be at least 1"),
        (["--beam", "0"], "--beam 0: must be at least 1"),
        (["--beam", "2", "--teacher-forced"], "--beam 2: --teacher-forced has no beam"),
    ],
)
def test_tool_refuses_impossible_questions(options, words):
    with pytest.raises(UserError, match=words), quiet_logging():
        main(["no.pt", *options])
