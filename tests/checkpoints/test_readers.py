"""What reads a checkpoint refuses the same files in one line, ours and fairseq's alike."""

import argparse
import logging
import os
import random
import shutil
import zipfile

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.checkpoint_utils import load_checkpoint_to_cpu as fairseq_reads
from fairseq.dataclass.configs import EMAConfig, FairseqBMUFConfig
from fairseq.logging.meters import AverageMeter
from omegaconf import OmegaConf

from src.checkpoint_utils import damage, load_checkpoint
from src.checkpoints import averaging, dictionary_record, fallback
from src.checkpoints.adapters import read_adapters
from src.checkpoints.pretrained import read_model_config
from src.connectivity.errors import PruningError
from src.connectivity.stage import PruningStage, StagePlan
from src.errors import UserError
from src.evaluation.results import append_result, read_results
from tests.support.readers import DIRECTED, READERS, WITH_DATA
from tests.support.training import RUN, TINY, build, make_dictionary, run_training


class Payload:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("harm-was-done",))


def edited(base, path, edit):
    state = torch.load(base)
    edit(state)
    torch.save(state, path)
    return str(path)


def flipped(base, path, part="data/2", position=0.5):
    """A copy with one other bit in a part of its archive."""
    content = bytearray(open(base, "rb").read())
    with zipfile.ZipFile(base) as archive:
        at = next(x for x in archive.infolist() if x.filename.endswith(part))
    start = at.header_offset + 30 + sum(content[at.header_offset + x] for x in (26, 28))
    start += 256 * sum(content[at.header_offset + x] for x in (27, 29))
    content[start + int(at.file_size * position)] ^= 4
    path.write_bytes(content)
    return str(path)


def refused(name, data, path, out, match):
    """A reader's one line."""
    out.mkdir()
    with pytest.raises(UserError, match=match) as error:
        READERS[name](data, path, out)
    assert "\n" not in str(error.value) and os.path.basename(path) in str(error.value)
    assert not os.listdir(out)


@pytest.mark.parametrize("name", READERS)
def test_one_flipped_bit_and_pickled_code(name, data, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = flipped(base, tmp_path / "flipped.pt")
    refused(name, data, path, tmp_path / "one", "its part archive/data/2 is damaged")
    state = {"surprise": Payload()}
    path = edited(base, tmp_path / "unsafe.pt", lambda s: s["extra_state"].update(state))
    refused(name, data, path, tmp_path / "two", r"could run code on loading \((posix|os)\.mkdir\)")
    assert not os.path.exists("harm-was-done")


# -- dictionaries and languages -----------------------------------------------------------


@pytest.fixture(scope="module")
def other_data(data, tmp_path_factory):
    """The same data with another dictionary of as many types."""
    folder = tmp_path_factory.mktemp("other") / "data"
    shutil.copytree(data, folder)
    dictionary = folder / "dict.de.txt"
    first, second, *rest = dictionary.read_text().splitlines()
    dictionary.write_text("\n".join([second, first, *rest]) + "\n")
    return str(folder)


@pytest.mark.parametrize("name", WITH_DATA)
def test_other_dictionaries_of_the_same_size_and_the_other_direction(
    name, data, other_data, base, tmp_path, caplog
):
    refused(name, other_data, base, tmp_path / "one", "its source dictionary is another one")

    def reverse(state):
        state["extra_state"]["dictionaries"]["languages"].reverse()

    path = edited(base, tmp_path / "reversed.pt", reverse)
    if name == "--finetune-from-model":  # a start from another task's model
        with caplog.at_level(logging.WARNING):
            READERS[name](data, path, tmp_path / "two")
        assert "reversed.pt: translates en to de, the data is read as de to en" in caplog.text
    elif name in DIRECTED:  # whose data are then read so
        refused(name, data, path, tmp_path / "two", "its source dictionary")
    else:
        refused(name, data, path, tmp_path / "two", "translates en to de.*--source-lang en")


def test_checkpoints_of_before_dictionaries_were_noted(other_data, base, tmp_path):
    path = edited(base, tmp_path / "old.pt", lambda s: s["extra_state"].pop("dictionaries"))
    (tmp_path / "out").mkdir()
    for name in ("generate.py", "fairseq-validate", "--finetune-from-model"):
        READERS[name](other_data, path, tmp_path / "out")


def test_what_is_made_of_a_checkpoint_keeps_its_note(data, base, tmp_path):
    dictionaries = make_dictionary("de"), make_dictionary("en")
    expected = dictionary_record.describe(dictionaries, ("de", "en"))
    made = {"average_checkpoints.py": "average.pt", "export_sparse.py": "x.safetensors"}
    for name, output in made.items():
        READERS[name](data, base, tmp_path)
        state = load_checkpoint(str(tmp_path / output), "--path")
        assert dictionary_record.kept(state) == expected, name


def test_inputs_of_an_average_have_one_pair_of_dictionaries(base, tmp_path):
    def change(state):
        state["extra_state"]["dictionaries"]["target"] = "0" * 64

    other = edited(base, tmp_path / "other.pt", change)
    with pytest.raises(UserError, match="other.pt: was trained with other dictionaries"):
        averaging.average_checkpoints([base, other])


# -- options of all releases --------------------------------------------------------------


def with_args(state, data):
    """As fairseq 0.6 to 0.9 wrote them."""
    model, task = state["cfg"]["model"], {"task": "translation", "data": [data]}
    options = {**vars(model), "arch": "srp", **task, "source_lang": "de", "target_lang": "en"}
    state["args"], state["cfg"] = argparse.Namespace(**options), None


def with_meters(state, data):
    """Old releases pickled objects of their own with the state of training."""
    state["extra_state"]["train_meters"] = {"loss": AverageMeter()}


def with_dict_config(state, data):
    """As fairseq wrote it when its options became omegaconf's, nodes of any type included."""
    config = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
    config.bmuf = OmegaConf.structured(FairseqBMUFConfig())
    config.ema = OmegaConf.structured(EMAConfig(ema_decay=0.5))
    state["cfg"] = config


OPTIONS = [with_args, with_meters, with_dict_config]


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("edit", OPTIONS)
def test_options_of_all_releases_are_read_without_their_code(
    edit, old_format, data, base, tmp_path, caplog
):
    state, path = torch.load(base), str(tmp_path / "checkpoint.pt")
    edit(state, data)
    torch.save(state, path, _use_new_zipfile_serialization=not old_format)
    with caplog.at_level(logging.WARNING):
        found, _ = load_checkpoint(path, "--path"), load_checkpoint(path, "--path")
    warnings = [r for r in caplog.records if "has no checksums" in r.message]
    assert len(warnings) == old_format
    expected = load_checkpoint(base, "--path")
    assert read_model_config(found) == read_model_config(expected)
    assert all(torch.equal(found["model"][n], w) for n, w in expected["model"].items())


@pytest.mark.parametrize("place", ["_parent", "_content"])
def test_code_inside_of_options_is_refused(place, data, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state, path = torch.load(base), str(tmp_path / "checkpoint.pt")
    with_dict_config(state, data)
    vars(state["cfg"])[place] = Payload()
    torch.save(state, path)
    with pytest.raises(UserError, match="could run code"):
        load_checkpoint(path, "--path")
    assert not os.path.exists("harm-was-done")


# -- going on from a run ------------------------------------------------------------------


def test_damaged_directories_are_damage_or_change_nothing(base, tmp_path):
    """One flipped bit each in the list of an archive's parts, and in what ends the file."""
    with zipfile.ZipFile(base) as archive:
        start = archive.start_dir
    content, generator = open(base, "rb").read(), random.Random(1)
    expected, noticed = load_checkpoint(base, "--path")["model"], 0
    for number in range(120):
        flipped = bytearray(content)
        flipped[generator.randrange(start, len(content))] ^= 1 << generator.randrange(8)
        path = tmp_path / f"{number}.pt"
        path.write_bytes(flipped)
        if damage(str(path)):
            noticed += 1
        else:
            found = load_checkpoint(str(path), "--path")["model"]
            assert all(torch.equal(found[name], value) for name, value in expected.items())
        path.unlink()
    assert noticed > 60


def test_a_run_falls_back_on_what_it_wrote_itself(data, base, tmp_path, caplog):
    def of_this_run(state):
        state["cfg"]["checkpoint"]["save_dir"] = str(tmp_path)

    last = tmp_path / "checkpoint_last.pt"
    last.write_bytes(open(base, "rb").read()[:-1])
    shutil.copy(base, tmp_path / "checkpoint3.pt")
    with pytest.raises(UserError, match="there is no other that this run has written"):
        run_training([data, *TINY, *RUN, "--max-epoch", "4", "--save-dir", tmp_path])
    own = edited(base, tmp_path / "checkpoint2.pt", of_this_run)
    os.utime(own, (0, 0))  # older than the other run's
    for name in ("copy.pt", "checkpoint1.pt"):
        edited(base, tmp_path / name, lambda s: (of_this_run(s), s.update(averaged={})))
    assert fallback.undamaged(str(last), str(tmp_path)) == own
    trainer = run_training([data, *TINY, *RUN, "--max-epoch", "4", "--save-dir", tmp_path])
    assert f"going on from {own}" in caplog.text
    assert trainer.get_num_updates() > torch.load(own)["optimizer_history"][-1]["num_updates"]


EDITS = {
    "a list of weights": ("model", [1]),
    "a weight that is none": ("model.encoder.layers.0.fc1.weight", [1.0]),
    "options": ("cfg", [1]),
    "history": ("optimizer_history", [3]),
    "task's own": ("task_state", [1]),
    "state": ("extra_state", []),
    "best": ("extra_state.best", "low"),
    "iterator": ("extra_state.train_iterator", 3),
    "epoch": ("extra_state.train_iterator.epoch", "two"),
    "patience": ("extra_state.patience", []),
    "note": ("extra_state.dictionaries", "de"),
    "task": ("extra_state.SRPTranslationTask", [1]),
    "stage": ("extra_state.SRPTranslationTask", {"stage": 3}),
}


@pytest.mark.parametrize("case", EDITS)
def test_states_of_other_types(case, data, base, tmp_path):
    """Whatever wrote them, in the same line for those who go on and those who translate."""

    def edit(state):
        place, value = EDITS[case]
        *outer, last = place.split(".", 1) if place.startswith("model") else place.split(".")
        for name in outer:
            state = state[name]
        state[last] = value

    path = edited(base, tmp_path / "checkpoint_last.pt", edit)
    for read in (lambda: load_checkpoint(path, "--path"), lambda: fairseq_reads(path)):
        with pytest.raises(UserError, match="checkpoint_last.pt: can't be read as a fairseq"):
            read()


@pytest.mark.parametrize("place", ["cfg", "cfg.task"])
def test_no_options_to_rebuild_a_model_with(place, base, tmp_path):
    def edit(state):
        if place == "cfg":
            state["cfg"] = None
        else:
            state["cfg"]["task"] = []

    path = edited(base, tmp_path / "checkpoint.pt", edit)
    with pytest.raises(UserError, match="checkpoint.pt: has no options of its run"):
        checkpoint_utils.load_model_ensemble_and_task([path])


@pytest.mark.parametrize(
    "part, value",
    [
        *[("step", "1"), ("steps", None), ("removed", []), ("finished_iterations", 1.5)],
        *[("removed", {"encoder.embedding": [1]}), ("removed", {"nothing": torch.tensor([1])})],
        *[("removed", {"encoder.embedding": torch.tensor([99])}), ("start_layers", 2)],
        ("plan", "all"),
    ],
)
def test_stages_of_other_types(part, value):
    stage = PruningStage(StagePlan(compression_rate=0.5), build())
    state = stage.state_dict()
    stage.load_state_dict(state)
    with pytest.raises(PruningError, match=f"is damaged: its {part} "):
        stage.load_state_dict({**state, part: value})


@pytest.mark.parametrize(
    "text",
    [
        *["a;b\n1;2\n", "num_updates,bleu\nsoon,1\n", "num_updates,bleu\n3,high\n", "x\n1\n"],
        *["num_updates\n\0", "num_updates\n\xff\n"],
    ],
)
def test_results_that_another_program_has_changed(text, data, base, tmp_path):
    """Refused before the training that would add to them."""
    path = tmp_path / "results.csv"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="results.csv: can't be read as the results") as error:
        run_training([data, *TINY, *RUN, "--max-epoch", "1", "--save-dir", tmp_path])
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == ["results.csv"]


def test_results_with_a_byte_order_mark_go_on(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("num_updates,bleu\n3,1.5\n", encoding="utf-8-sig")
    append_result(str(path), {"num_updates": 5, "bleu": 2.0})
    assert [row["num_updates"] for row in read_results(str(path))] == ["3", "5"]


@pytest.mark.parametrize(
    "part, value",
    [
        *[("base", 3), ("weighted_layernorm", "yes"), ("adapters", []), ("channels", None)],
        *[("adapters", {"x": 3}), ("channels", {"x": 3}), ("channels", {"x": [9, None]})],
        *[("channels", {"x": [9, torch.zeros(1, dtype=torch.uint8)]})],
        *[("channels", {"x": ["9", torch.zeros(2, dtype=torch.uint8)]})],
    ],
)
def test_files_of_adapters_that_another_program_has_changed(part, value, tmp_path):
    channels = {"x": [9, torch.zeros(2, dtype=torch.uint8)]}
    content = {"format": "adapters-1", "base": "0", "weighted_layernorm": False}
    content.update({"channels": channels, "adapters": {"x": torch.zeros(2)}})
    path = str(tmp_path / "adapters.pt")
    torch.save(content, path)
    assert read_adapters(path, "--adapter-path")["base"] == "0"
    torch.save({**content, part: value}, path)
    with pytest.raises(UserError, match=f"adapters.pt: its {part} is not what"):
        read_adapters(path, "--adapter-path")
