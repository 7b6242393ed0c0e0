"""fairseq's models with one table for both sides, and data with two dictionaries."""

import shutil

import pytest
import torch

from src import distill_data, export, generate
from src.checkpoint_utils import DICTIONARIES
from src.errors import UserError
from tests.support.translation import make_trainer, save, write_data


@pytest.fixture(scope="module")
def joined(corpus, tmp_path_factory):
    """Data with one dictionary, and a stock checkpoint that notes no dictionaries."""
    folder = tmp_path_factory.mktemp("joined")
    data, path = folder / "data", folder / "stock.pt"
    shutil.copytree(corpus, data)
    shutil.copy(data / "dict.de.txt", data / "dict.en.txt")
    options = ["--arch", "transformer", "--encoder-layers", "1", "--decoder-layers", "1"]
    for side in ("encoder", "decoder"):
        options += [f"--{side}-embed-dim", "8", f"--{side}-attention-heads", "2"]
        options += [f"--{side}-ffn-embed-dim", "8"]
    save(make_trainer(str(data), [*options, "--share-all-embeddings"]), path)
    state = torch.load(path)
    state["extra_state"].pop(DICTIONARIES, None)
    torch.save(state, path)
    return data, str(path)


@pytest.mark.parametrize("tool", [generate, export, distill_data])
def test_other_dictionaries_are_refused(tool, corpus, joined, tmp_path):
    data, path = joined
    two = tmp_path / "two"
    shutil.copytree(corpus, two)
    write_data(two, [("ein Hund", "a dog")], "train")
    output = [] if tool is generate else ["--output", str(tmp_path / "new")]
    with pytest.raises(
        UserError, match="one dictionary for both sides .*, the data has two"
    ) as error:
        tool.main([str(two), "--path", path, "-s", "de", "-t", "en", *output])
    assert "\n" not in str(error.value) and f"--path {path}" in str(error.value)


def test_its_own_dictionary_is_not(joined, tmp_path):
    data, path = joined
    generate.main([str(data), "--path", path, "--cpu", "--quiet", "--max-len-b", "2"])
