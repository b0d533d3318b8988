"""Where a bundle may be written."""

from __future__ import annotations

from pathlib import Path

from narrowcast.bundle.manifest import MANIFEST_FILE
from narrowcast.writing import Place, check_folder

__all__ = ["check_out"]


def check_out(out: str | Path, force: bool) -> Place:
    """The place of a bundle; see :func:`narrowcast.writing.check_folder`."""
    return check_folder(out, MANIFEST_FILE, force)
