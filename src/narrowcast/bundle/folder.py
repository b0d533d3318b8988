"""Where a bundle may be written."""

from __future__ import annotations

from pathlib import Path

from narrowcast.base.writing import Place, check_folder
from narrowcast.bundle.manifest import MANIFEST_FILE

__all__ = ["check_out"]


def check_out(out: str | Path, force: bool) -> Place:
    """The place of a bundle; see :func:`narrowcast.base.writing.check_folder`."""
    return check_folder(out, MANIFEST_FILE, force)
