"""Checkpoints as others have trained them: read with what they know, pruned, translated with."""

import pytest
import torch
from fairseq import models

from src import generate, pruning
from src.checkpoint_utils import load_checkpoint
from src.checkpoints.pretrained import srp_arguments
from tests.support.published import CASES, Task, write_checkpoint, write_data
from tests.support.training import RUN, batch
from tests.support.translation import hypotheses, run_tool


@pytest.mark.parametrize("name", CASES)
def test_read_as_it_is_pruned_and_translated_with(name, data, tmp_path):
    case, path = CASES[name], str(tmp_path / "checkpoint.pt")
    folder = write_data(case, data, tmp_path / "data")
    stock = write_checkpoint(case, folder, path)

    # the same function, with the dimensions that the checkpoint knows
    state = load_checkpoint(path, "--pretrained-model")
    ours = models.build_model(srp_arguments(state), Task(folder)).eval()
    ours.load_state_dict(state["model"], strict=True)
    sample = batch()
    with torch.no_grad():
        expected, found = (model(*sample)[0] for model in (stock, ours))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)

    command = [folder, *RUN, "--compression-rate", "0.6", "--pretrained-model", path]
    command += ["--disable-validation", "--save-dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stopped:
        run_tool(pruning.main, command)
    assert stopped.value.code == 0
    last = str(tmp_path / "run" / "checkpoint_last.pt")
    pruned = load_checkpoint(last, "--path")["model"]
    assert sum(w.numel() for w in pruned.values()) < 0.75 * sum(
        w.numel() for w in state["model"].values()
    )
    arguments = [folder, "--path", last, "--beam", "2", "--max-len-b", "5", "--cpu"]
    assert len(hypotheses(run_tool(lambda: generate.main(arguments), arguments))) == 9


def test_layers_that_layerdrop_may_leave_out_are_exported(data, tmp_path):
    case, path = CASES["M2M"], str(tmp_path / "checkpoint.pt")
    folder = write_data(case, data, tmp_path / "data")
    write_checkpoint(case, folder, path)
    state = torch.load(path, weights_only=False)
    state["cfg"]["model"].decoder_layerdrop = 0.9
    torch.save(state, path)
    arguments = [folder, "--path", path, "-s", "de", "-t", "en", "--max-len-b", "5", "--cpu"]
    found = [
        hypotheses(run_tool(lambda: generate.main(words), words))
        for words in (arguments, [*arguments, "--engine", "ctranslate2"])
    ]
    assert found[0] == found[1] and len(found[0]) == 9
