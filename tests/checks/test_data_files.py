"""Damaged data are noticed before anything is trained or translated with them."""

import logging

import numpy as np
import pytest
from fairseq.data import Dictionary

from src.checks import checksums
from src.checks.data_files import check_set, check_side
from src.errors import UserError
from src.evaluation.bleu import read_references
from src.tasks.srp_translation import SRPTranslationConfig, SRPTranslationTask
from tests.support.translation import random_pairs, write_data


@pytest.fixture
def data(tmp_path):
    write_data(tmp_path, random_pairs(1, 40), "train")
    return tmp_path


def config(data):
    return SRPTranslationConfig(
        data=str(data), source_lang="de", target_lang="en", train_subset="train",
        dataset_impl=None, required_seq_len_multiple=1,
    )  # fmt: skip


def load(data):
    task = SRPTranslationTask.setup_task(config(data))
    task.load_dataset("train")
    return task.dataset("train")


def damaged(content, random):
    """The bytes with one damage, or None where nothing has changed."""
    content = bytearray(content)
    place, kind = int(random.integers(len(content))), random.integers(4)
    if kind == 0:
        content[place] ^= 1 << int(random.integers(8))
    elif kind == 1:
        del content[place:]
    elif kind == 2:
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    else:
        content += b"\0" * int(random.integers(1, 9))
    return bytes(content)


def test_every_damage_to_files_with_checksums_is_noticed(data):
    """300 of them, in each of the files that a training reads."""
    checksums.write(str(data))
    whole = {p.name: p.read_bytes() for p in data.iterdir() if p.name != checksums.NAME}
    assert len(load(data)) == 40
    random = np.random.default_rng(1)
    for number in range(300):
        name = sorted(whole)[number % len(whole)]
        content = damaged(whole[name], random)
        if content == whole[name]:
            continue
        (data / name).write_bytes(content)
        with pytest.raises(UserError, match=f"data.*{name.split('.')[0]}"):
            load(data)
        (data / name).write_bytes(whole[name])
    load(data)
    (data / checksums.NAME).write_text("what\n")
    with pytest.raises(UserError, match="its SHA256SUMS is damaged"):
        load(data)


def test_what_shows_without_checksums(data):
    """Of an index everything, of the data numbers without a type and ends that are gone."""
    whole = {p.name: p.read_bytes() for p in data.iterdir()}
    random = np.random.default_rng(2)
    for _ in range(100):
        for name in ("train.de-en.de.idx", "train.de-en.en.bin"):
            content = damaged(whole[name], random)
            if content == whole[name]:
                continue
            (data / name).write_bytes(content)
            try:
                load(data)
            except UserError as error:
                assert "\n" not in str(error) and "train.de-en" in str(error)
            else:  # a type took another's place
                assert name.endswith(".bin") and len(content) == len(whole[name])
            (data / name).write_bytes(whole[name])
    numbers = np.frombuffer(whole["train.de-en.en.bin"], np.uint16).copy()
    numbers[5] = 500
    (data / "train.de-en.en.bin").write_bytes(numbers.tobytes())
    with pytest.raises(UserError, match="holds type 500, its dictionary has"):
        load(data)
    numbers[2:30] = 0
    (data / "train.de-en.en.bin").write_bytes(numbers.tobytes())
    with pytest.raises(UserError, match="sentence 1 does not end like others|sentence 2"):
        load(data)
    numbers[:] = 0
    (data / "train.de-en.en.bin").write_bytes(numbers.tobytes())
    with pytest.raises(UserError, match="train.de-en.en.bin holds only zeros"):
        load(data)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda text: text + text.splitlines(True)[-1], "Duplicate word"),
        (lambda text: text.replace("Mann 98", "Männer 98").encode("latin-1"), "encoding"),
        (lambda text: text.replace("Mann 98", "Mann"), "Incorrect dictionary format"),
        (lambda text: "\0" * 50, "can't be read"),
    ],
)
def test_damaged_dictionaries(data, change, said):
    path = data / "dict.de.txt"
    changed = change(path.read_text())
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    with pytest.raises(
        UserError, match=f"data {path}: can't be read as a dictionary.*{said}|{said}"
    ):
        SRPTranslationTask.setup_task(config(data))


def test_empty_and_tiny_training_sets(tmp_path, caplog):
    write_data(tmp_path, [], "train")
    with pytest.raises(UserError, match="data train: has no sentences"):
        load(tmp_path)
    write_data(tmp_path, random_pairs(1, 1), "train")
    with caplog.at_level(logging.WARNING):
        assert len(load(tmp_path)) == 1
    assert "has one sentence to train on" in caplog.text


def test_parts_and_sides(data):
    for part in ("bin", "idx"):
        content = (data / f"train.de-en.de.{part}").read_bytes()
        (data / f"train1.de-en.de.{part}").write_bytes(content)
        (data / f"train1.de-en.en.{part}").write_bytes(content)
    task = SRPTranslationTask.setup_task(config(data))
    check_set(task, str(data), "train", "data")
    (data / "train1.de-en.de.bin").write_bytes(b"\0\0")
    with pytest.raises(UserError, match="train1.de-en.de.bin has 2 bytes, but"):
        load(data)
    write_data(data, random_pairs(1, 39), "train1")
    for part in ("bin", "idx"):
        content = (data / f"train.de-en.de.{part}").read_bytes()
        (data / f"train1.de-en.de.{part}").write_bytes(content)
    with pytest.raises(UserError, match="has 40 source and 39 target sentences"):
        load(data)


def test_other_formats_are_left_to_fairseq(data):
    for magic, known in ((b"TNTIDX\0\0", True), (b"what is it", False)):
        (data / "train.de-en.de.idx").write_bytes(magic + b"1" * 40)
        if known:
            assert check_side(str(data / "train.de-en.de"), "data") is None
        else:
            with pytest.raises(UserError, match="no index of fairseq's"):
                check_side(str(data / "train.de-en.de"), "data")


def test_byte_order_marks(tmp_path, caplog):
    write_data(tmp_path, random_pairs(1), "train")
    dictionary = Dictionary()
    dictionary.add_symbol("\ufeffDer", n=3)
    dictionary.save(str(tmp_path / "dict.de.txt"))
    with caplog.at_level(logging.WARNING):
        SRPTranslationTask.setup_task(config(tmp_path))
    assert "begins with a byte order mark" in caplog.text
    (tmp_path / "references").write_bytes("\ufeffOne.\nTwo.\n".encode())
    assert read_references(str(tmp_path / "references"), 2) == ["One.", "Two."]
