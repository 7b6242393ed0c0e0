"""Files of checkpoints: they appear complete or not at all, and run no code when read."""

from .reading import UnsafeCheckpoint as UnsafeCheckpoint
from .reading import comparing as comparing
from .reading import damage as damage
from .reading import load_checkpoint as load_checkpoint
from .reading import read_config as read_config
from .reading import read_tensors as read_tensors
from .reading import reading_checked as reading_checked
from .reading import unsafe as unsafe
from .safe_pickle import SAFE_GLOBALS as SAFE_GLOBALS
from .safe_pickle import TRUST as TRUST
from .safe_pickle import trusted_pickle as trusted_pickle
from .sparse_checkpoint import DICTIONARIES as DICTIONARIES
from .sparse_checkpoint import VOCABULARY as VOCABULARY
from .sparse_checkpoint import check_equal as check_equal
from .sparse_checkpoint import read_sparse as read_sparse
from .sparse_checkpoint import write_sparse as write_sparse
from .writing import DurablePathManager as DurablePathManager
from .writing import saving_durably as saving_durably
