"""What the checkpoint of --pretrained-model knows need not be given again."""

from argparse import Namespace

import pytest
from omegaconf import OmegaConf

from src import pruning
from src.errors import UserError
from src.training.inherited_options import known_options, with_inherited
from tests.support.runs import assert_identical, final_state
from tests.support.training import RUN, TINY
from tests.support.translation import run_tool

KNOWN = {"--task", "--criterion", "--label-smoothing"}
NEW = [a for i, a in enumerate(RUN) if a not in KNOWN and RUN[i - 1] not in KNOWN]
CUT = ["--compression-rate", "0.4", "--max-epoch", "1"]


def test_pruning_without_what_the_checkpoint_knows(data, base, tmp_path):
    for name, options in (("short", NEW), ("whole", [*TINY, *RUN])):
        command = [data, *options, *CUT, "--pretrained-model", base]
        run_tool(pruning.main, [*command, "--save-dir", str(tmp_path / name)])
    assert_identical(final_state(tmp_path / "short"), final_state(tmp_path / "whole"))


def test_what_is_given_wins(base):
    given = ["DATA", f"--pretrained-model={base}", "--dropout=0.3", "-s", "nl"]
    added = with_inherited([*given, "--encoder-layers", "3", "--label-smoothing", "0.2"])[
        len(given) + 4 :
    ]
    assert not {"--dropout", "--source-lang", "--encoder-layers", "--label-smoothing"} & set(added)
    assert added[added.index("--target-lang") + 1] == "en"
    assert added[added.index("--decoder-layers") + 1] == "2"


def test_an_architecture_that_is_given_has_its_dimensions(base):
    arguments = ["DATA", "--pretrained-model", base]
    added = with_inherited([*arguments, "-a", "srp_demo_de_en"])
    assert "--encoder-embed-dim" not in added and "--label-smoothing" in added
    assert "--encoder-embed-dim" in with_inherited([*arguments, "--arch", "srp"])


def test_a_contradiction_is_refused(data, base, tmp_path):
    command = [data, *NEW, *CUT, "--pretrained-model", base, "--save-dir", str(tmp_path)]
    with pytest.raises(UserError, match=r"its model has --encoder-layers 2 \(not 3\); give"):
        run_tool(pruning.main, [*command, "--encoder-layers", "3"])


@pytest.mark.parametrize("form", ["namespace", "configuration"])
def test_a_model_of_stock_fairseq_becomes_an_srp_model(form):
    """Options in one level, as --arch has them, or in parts, as fairseq-hydra-train has."""
    if form == "namespace":
        model = Namespace(
            arch="transformer_iwslt_de_en",
            **{"encoder_embed_dim": 64, "encoder_learned_pos": True, "dropout": 0.3},
            **{"share_all_embeddings": True, "activation_fn": "gelu", "decoder_layers": 1},
        )
    else:
        structured = {
            "_name": "transformer",
            "encoder": {"embed_dim": 64, "learned_pos": True},
            "decoder": {"layers": 1, "embed_dim": 64},
            **{"dropout": 0.3, "share_all_embeddings": True, "activation_fn": "gelu"},
        }
        model = OmegaConf.create(structured)
    criterion = {"_name": "label_smoothed_cross_entropy", "label_smoothing": 0.2}
    task = Namespace(source_lang="de", target_lang="en")
    state = {"cfg": {"model": model, "criterion": criterion, "task": task}}
    assert known_options(state, None, None) == {
        **{"arch": "srp", "encoder_embed_dim": 64, "decoder_embed_dim": 64},
        **{"decoder_layers": 1, "dropout": 0.3},
        **{"encoder_learned_pos": True, "share_decoder_input_output_embed": True},
        **{"share_all_embeddings": True, "activation_fn": "gelu", "criterion": "srp"},
        **{"label_smoothing": 0.2, "source_lang": "de", "target_lang": "en"},
    }
    # another loss or architecture may lack the option
    known = known_options(state, "lstm", "cross_entropy")
    assert known == {"source_lang": "de", "target_lang": "en"}
