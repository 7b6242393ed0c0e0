"""A pruning run whose budget is speed: what it chooses, keeps, and refuses."""

import csv
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from src.connectivity.stage import StagePlan
from src.errors import UserError
from src.options import SRPTranslationConfig
from src.planning.rows import Candidate, Row
from src.planning.timing import Ratio
from src.training.channel_pruning import ChannelPruning
from src.training.speed_budget import SpeedBudget
from tests.support.runs import assert_identical, final_state, stop_at
from tests.support.training import ROOT, RUN, TINY, build, run_named, run_training

PLAN = StagePlan(1.0, iterations=2)


def rows(*found):
    """(decoder layers, rate, speed-up) of models with as many parameters as these say."""
    given = Row("clock", Candidate(2, 2, 1.0), True, 999, 1.0, 1, 1, None, 1, Ratio(1, 1, 1))
    return [given] + [
        Row("clock", Candidate(2, layers, rate), False, int(900 * rate * layers / 2), rate, 1, 1,
            None, 1, Ratio(speed, speed, speed))
        for layers, rate, speed in found
    ]  # fmt: skip


MEASURED = rows((2, 0.5, 1.5), (2, 0.3, 2.0), (1, 1.0, 1.8), (1, 0.5, 2.5))


def budget(speed_up, measure_for=lambda *_: (MEASURED, lambda asked: []), **layers):
    cfg = SRPTranslationConfig(speed_up=speed_up, speed_engine="pytorch", **layers)
    return SpeedBudget(cfg, measure_for)


def fake_trainer(model, rank=0, world=1):
    return SimpleNamespace(
        data_parallel_rank=rank,
        data_parallel_world_size=world,
        device=torch.device("cpu"),
        get_model=lambda: model,
    )


@pytest.mark.parametrize(
    "speed_up, rate, layers", [(1.4, 0.5, None), (1.6, 1.0, 1), (1.9, 0.3, None), (2.2, 0.5, 1)]
)
def test_the_stage_is_that_of_the_largest_fast_candidate(speed_up, rate, layers):
    model = build()
    plan = budget(speed_up).choose(fake_trainer(model), PLAN)
    assert (plan.compression_rate, plan.keep_decoder_layers) == (rate, layers)
    assert plan.keep_encoder_layers is None and plan.iterations == 2


def test_a_choice_is_kept_in_the_state():
    model, first = build(), budget(2.2)
    run = ChannelPruning(PLAN, model, first)
    plan = first.choose(fake_trainer(model), PLAN)

    def never(*_):
        raise AssertionError("planned again")

    other = ChannelPruning(PLAN, build(), budget(2.2, never))
    other.load_state_dict(run.state_dict() | {"speed": first.state_dict()} | run_plan(plan))
    assert other.stage.plan == plan and other.budget.choice == first.choice
    assert other.results() == {
        "speed_up": 2.2,
        "speed_engine": "pytorch",
        "speed_baseline": "uncut",
        "planned_speed_up": 2.5,
        "planned_rate": 0.5,
        "planned_layers": "2+1",
    }


def run_plan(plan):
    """What a run's state says of its plan once that is chosen."""
    return {"plan": ChannelPruning(plan, build()).state_dict()["plan"]}


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"speed_up": 3.0}, "--speed-up 3.0: the stage to go on with in this folder has 2.2"),
        ({"speed_baseline": "fairseq"}, "--speed-baseline fairseq: the stage .* has uncut"),
        ({"keep_decoder_layers": 1}, "--keep-decoder-layers 1: the stage .* has none"),
    ],
)
def test_going_on_with_another_budget_is_refused(asked, message):
    model, first = build(), budget(2.2)
    plan = first.choose(fake_trainer(model), PLAN)
    state = ChannelPruning(plan, model).state_dict() | {"speed": first.state_dict()}
    with pytest.raises(UserError, match=message):
        ChannelPruning(PLAN, build(), budget(**{"speed_up": 2.2, **asked})).load_state_dict(state)
    del state["speed"]
    with pytest.raises(UserError, match="--speed-up 2.2: the stage .* has --compression-rate 0.5"):
        ChannelPruning(PLAN, build(), budget(2.2)).load_state_dict(state)


PROCESS = """
import sys
sys.path.insert(0, {root!r})
rank, place = int(sys.argv[1]), sys.argv[2]
import torch
from tests.training.test_speed_budget import MEASURED, PLAN, build, budget, fake_trainer
torch.distributed.init_process_group("gloo", f"file://{{place}}", rank=rank, world_size=2)
def first_alone(*_):
    assert rank == 0
    return MEASURED, lambda asked: []
trainer = fake_trainer(build(), rank, 2)
for speed_up in (2.2, 9.0):
    try:
        print(budget(speed_up, first_alone).choose(trainer, PLAN))
    except Exception as error:
        print(error)
"""


@pytest.mark.slow
def test_the_first_of_several_processes_plans_for_all(tmp_path):
    code = PROCESS.format(root=str(ROOT))
    place = str(tmp_path / "rendezvous")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), place],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    first, second = (p.communicate(timeout=120)[0].strip().splitlines()[-2:] for p in processes)
    assert first[0] == second[0] and "compression_rate=0.5" in first[0]
    assert first[1].startswith("--speed-up 9: out of reach on this machine")
    assert second[1].startswith("--speed-up 9: the first process has found nothing")


def command(data, base, folder, *more):
    return [
        *(data, *TINY, *RUN, "--pretrained-model", base, "--save-dir", folder),
        *("--srp", "--pruning-period", "1", "--max-epoch", "2", "--weighted-layernorm"),
        *("--save-interval-updates", "2", *more),
    ]


SPEED = ["--speed-up", "1.05", "--speed-engine", "pytorch", "--keep-encoder-layers", "1"]


@pytest.mark.training
def test_a_run_plans_once_and_prunes_as_with_the_rate(data, base, tmp_path, monkeypatch):
    """Stopped after it has planned, resumed without, it ends as the run that is told the rate."""
    stop_at(3, command(data, base, tmp_path / "planned", *SPEED), monkeypatch)

    def never(*_):
        raise AssertionError("planned again")

    with monkeypatch.context() as patch:
        patch.setattr("src.tasks.srp_translation.measure_for", never)
        trainer = run_training(command(data, base, tmp_path / "planned", *SPEED))
    choice = run_named(trainer, "stage").budget.choice
    assert choice["measured"] >= 1.05 and choice["encoder_layers"] == 1
    told = ["--compression-rate", choice["rate"], "--keep-encoder-layers", "1"]
    if choice["decoder_layers"] < 2:
        told += ["--keep-decoder-layers", choice["decoder_layers"]]
    run_training(command(data, base, tmp_path / "told", *told))
    assert_identical(final_state(tmp_path / "planned"), final_state(tmp_path / "told"))
    with open(tmp_path / "planned" / "results.csv", newline="") as stream:
        last = list(csv.DictReader(stream))[-1]
    assert float(last["speed_up"]) == 1.05 and float(last["planned_rate"]) == choice["rate"]


@pytest.mark.training
@pytest.mark.parametrize(
    "options, message",
    [
        ("--speed-up 2", "--speed-up 2: needs --speed-engine, what the model is for: pytorch"),
        ("--speed-engine pytorch", "--speed-engine pytorch: needs --speed-up"),
        ("--speed-up 1 --speed-engine pytorch", "--speed-up 1: must be above 1, which is"),
        ("--speed-up 2 --speed-engine fast", "--speed-engine fast: must be one of pytorch, "),
        (
            "--speed-up 2 --speed-engine pytorch --compression-rate 0.5",
            "--speed-up 2: --compression-rate 0.5 is given too",
        ),
        (
            "--speed-up 2 --speed-engine pytorch --keep-decoder-layers 1 --pruning-stage 1",
            "--keep-decoder-layers 1: needs --pruning-stage 0 or 2",
        ),
    ],
)
def test_refusals(options, message, data, base, tmp_path):
    arguments = [data, *TINY, *RUN, "--pretrained-model", base, "--save-dir", tmp_path]
    with pytest.raises(UserError, match=message):
        run_training([*arguments, *options.split()])


@pytest.mark.training
def test_more_refusals(data, tmp_path, base, monkeypatch):
    speed = ["--speed-up", "500", "--speed-engine", "pytorch"]
    with pytest.raises(UserError, match="--speed-up 500: pruning needs --pretrained-model"):
        run_training([data, *TINY, *RUN, "--save-dir", tmp_path, *speed])
    with pytest.raises(UserError, match="--speed-up 500: out of reach on this machine; the fast"):
        run_training(command(data, base, tmp_path, *speed, "--keep-decoder-layers", "1"))
    assert not os.path.exists(tmp_path / "checkpoint_last.pt")
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(UserError, match="--speed-engine ctranslate2-int8: needs the package"):
        run_training(command(data, base, tmp_path, *speed[:3], "ctranslate2-int8"))
