"""A pruned run, and checkpoints that are averaged."""

import pytest
import torch

from src import average_checkpoints as averaging
from tests.support.training import RUN, TINY, run_training
from tests.support.translation import (
    quiet_logging,
)


def average(output, *arguments):
    """The tool's output file, loaded."""
    with quiet_logging():
        averaging.main([*map(str, arguments), "--output", str(output)])
    return torch.load(output)


def weights(path):
    return torch.load(path)["model"]


def edited(path, output, edit):
    """A copy of a checkpoint whose state ``edit`` has changed."""
    state = torch.load(path)
    edit(state)
    torch.save(state, output)
    return str(output)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="session")
def pruned(data, base, tmp_path_factory):
    """Folder of a run that is cut after its second epoch of five."""
    folder = tmp_path_factory.mktemp("pruned")
    run_training(
        [
            *(data, *TINY, *RUN, "--pretrained-model", base, "--save-dir", folder),
            *("--srp", "--compression-rate", "0.5", "--warming-up", "1"),
            *("--max-epoch", "5", "--save-interval-updates", "2"),
            "--weighted-layernorm",
        ]
    )
    return folder


def by_updates(folder):
    found = folder.glob("checkpoint_[0-9]*_*.pt")
    return sorted(found, key=lambda p: int(p.stem.split("_")[2]))
