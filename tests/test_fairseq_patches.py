"""What is replaced inside fairseq still exists there, and is replaced once."""

import inspect
import subprocess
import sys
from importlib import import_module

import pytest
import torch

from src import fairseq_patches
from src.checkpoint_utils import TRUST, trusted_pickle
from src.fairseq_patches import MEMORIES, PATCHES

# What our replacements rely on, in the source of the one that they replace.
RELIED_ON = {
    "load_model_ensemble_and_task": (
        "filenames,",
        "task.load_state_dict",
        "return ensemble, cfg, task",
    ),
    "load_checkpoint_to_cpu": ("(path, arg_overrides=None, load_on_all_ranks=False)", "torch.load"),
    "torch_persistent_save": ("async_write",),
    "PathManager": ("def copy(", "def supports_rename(", "def path_requires_pathmanager("),
    "Trainer": ("def train_step(", "def load_checkpoint(", "def get_train_iterator("),
}


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_the_target_exists_and_is_what_is_replaced(patch, monkeypatch):
    original = fairseq_patches._originals[patch]
    source = inspect.getsource(original)
    assert all(part in source for part in RELIED_ON[patch.name])
    module = import_module(patch.module)
    assert getattr(module, patch.name) is not original
    # what fairseq no longer has is missed by name
    monkeypatch.delattr(module, patch.name)
    monkeypatch.setattr(fairseq_patches, "_originals", {})
    with pytest.raises(ImportError, match=f"{patch.module}.*: this fairseq has no such thing"):
        fairseq_patches.install(dict.fromkeys(RELIED_ON, lambda original: original), [])


def test_nothing_is_replaced_twice():
    before = [getattr(import_module(patch.module), patch.name) for patch in PATCHES]
    fairseq_patches.install(dict.fromkeys(RELIED_ON, lambda original: None), [])
    assert before == [getattr(import_module(patch.module), patch.name) for patch in PATCHES]


@pytest.mark.parametrize("module, name, attributes", MEMORIES)
def test_fairseq_remembers_validations_on_functions(module, name, attributes, monkeypatch):
    function = getattr(import_module(module), name)
    source = inspect.getsource(function)
    assert all(f"{name}.{attribute}" in source for attribute in attributes)
    assert function in fairseq_patches.memories()
    monkeypatch.delattr(import_module(module), name)
    with pytest.raises(ImportError, match=name):
        fairseq_patches.memories()


@pytest.mark.filterwarnings("ignore:Environment variable TORCH")
def test_torch_reads_what_is_trusted_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(TRUST, raising=False)
    torch.save(Unsafe(), tmp_path / "file")
    for trust in (False, True, False):
        with trusted_pickle(trust):
            if trust:
                assert isinstance(torch.load(tmp_path / "file"), Unsafe)
            else:
                with pytest.raises(Exception, match="Unsafe"):
                    torch.load(tmp_path / "file")


class Unsafe:
    """A class that no allow-list has."""


def test_scores_of_classifiers_are_imported_when_they_are_called():
    """In a process of its own: here fairseq may have been imported before."""
    program = (
        "import sys, src; from fairseq.criterions import sentence_prediction as criterion; "
        "from fairseq.tasks import audio_classification as task; "
        "assert not {'sklearn', 'pandas'} & set(sys.modules); "
        "assert criterion.f1_score([1, 0], [1, 0]) == 1 and 'sklearn.metrics' in sys.modules; "
        "assert task.sklearn_metrics.f1_score([1, 0], [1, 0]) == 1; "
        "import sklearn; assert sklearn.__version__"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_is_imported_stays():
    with fairseq_patches.deferring("json", "wave.nothing"):
        assert sys.modules["json"].loads("1") == 1
        import wave.nothing as nothing
    assert "wave.nothing" not in sys.modules
    with pytest.raises(ImportError):
        nothing.function()
