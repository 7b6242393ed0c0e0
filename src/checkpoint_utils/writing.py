"""Checkpoints that appear complete or not at all."""

import functools
import os
import shutil
from typing import Callable

import torch
from fairseq.file_io import PathManager

from ..files import atomic_write


class DurablePathManager(PathManager):
    """fairseq's file access, with copies that are complete or not there at all."""

    @staticmethod
    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        if not (PathManager.supports_rename(src_path) and PathManager.supports_rename(dst_path)):
            return PathManager.copy(src_path, dst_path, overwrite)
        if os.path.exists(dst_path) and not overwrite:
            return False
        with open(src_path, "rb") as source, atomic_write(dst_path, "wb") as stream:
            shutil.copyfileobj(source, stream)
        return True


def saving_durably(save: Callable) -> Callable:
    """fairseq's writer of checkpoints, without its three attempts where the disk is full."""

    @functools.wraps(save)
    def write(state, path, async_write=False):
        if async_write or not PathManager.supports_rename(path):
            return save(state, path, async_write)
        with atomic_write(path, "wb") as stream:
            torch.save(state, stream)

    return write
