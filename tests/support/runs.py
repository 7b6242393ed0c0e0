"""Runs that are compared bit by bit."""

import os

import pytest
import torch
from fairseq_cli import train as fairseq_train

from src.trainer import SRPTrainer
from tests.support.training import run_training


def final_state(folder):
    state = torch.load(os.path.join(folder, "checkpoint_last.pt"))
    return {
        "model": state["model"],
        "optimizer": state["last_optimizer_state"]["state"],
        "updates": state["optimizer_history"][-1]["num_updates"],
    }


def assert_identical(a, b, path=""):
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_identical(a[key], b[key], f"{path}/{key}")
    elif torch.is_tensor(a):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


class Stop(Exception):
    pass


def stop_at(update, command, monkeypatch, main=None):
    """Run a training until it has made so many updates and begins the next."""

    class Fragile(SRPTrainer):
        def train_step(self, samples, raise_oom=False):
            if self.get_num_updates() == update:
                raise Stop
            return super().train_step(samples, raise_oom)

    with monkeypatch.context() as patch:
        patch.setattr("src.trainer.SRPTrainer", Fragile)
        with pytest.raises(Stop):
            run_training(command, main)


SCRIPT = """
import os, sys
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from tests.support.training import run_training
rank = sys.argv[sys.argv.index("--distributed-rank") + 1]
from fairseq.distributed import utils
from fairseq_cli import train
trainer = run_training(sys.argv[1:], main=lambda cfg: utils.call_main(cfg, train.main))
torch.save(trainer.get_model().state_dict(), os.environ["WEIGHTS"] + rank)
"""


def in_precision(option):
    """fairseq's training in half precision on a CPU, where command lines are refused it."""

    def main(cfg):
        cfg.common.tpu = False
        setattr(cfg.common, option, True)
        if option == "memory_efficient_fp16":
            cfg.common.fp16 = True
        fairseq_train.main(cfg)

    return main
