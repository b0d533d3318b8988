"""Stops a program at any one of its file operations."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import narrowcast.base.writing as writing

fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@contextlib.contextmanager
def counted(at: int, stop: Callable[[], None]) -> Iterator[list[int]]:
    """Call ``stop`` before the file operation of a number, whichever it is; counts operations."""
    count = [0]

    def wrapped(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **more: object) -> object:
            count[0] += 1
            if count[0] == at:
                stop()
            return real(*arguments, **more)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "mkdir", "rename", "replace", "unlink", "rmdir", "lstat", "scandir"):
            patch.setattr(os, name, wrapped(getattr(os, name)))
        patch.setattr(writing, "_exchanged", wrapped(writing._exchanged))
        patch.setattr(shutil, "rmtree", wrapped(shutil.rmtree))
        patch.setattr("io.open", wrapped(open))
        yield count
