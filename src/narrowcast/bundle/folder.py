"""Write a folder whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from narrowcast.bundle.manifest import MANIFEST_FILE
from narrowcast.errors import UserError

__all__ = ["check_out", "new_folder"]


def check_out(out: str | Path, force: bool) -> Path:
    """Raise now if the folder cannot be written later, so that nobody waits for that news.

    Args:
        out: the folder to write.
        force: an existing bundle there may be replaced.

    Raises:
        UserError: it exists, or its parent is not writable.
    """
    path = Path(out)
    if path.exists() and not force:
        raise UserError(f"{path} exists", "choose another --out, or add --force to replace it")
    if path.exists() and not (path / MANIFEST_FILE).exists():
        raise UserError(f"{path} exists and is no bundle, so it is not replaced", "choose another --out")
    parent = path.absolute().parent
    existing = next(folder for folder in (parent, *parent.parents) if folder.exists())
    if not existing.is_dir():
        raise UserError(f"{existing} is a file", "choose another --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{existing} is not writable", "choose another --out")
    return path


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out`` that becomes ``out`` when the block ends without an exception.

    An existing ``out`` is kept until the new one is complete. On any exception (Ctrl-C and a full disk too) the
    temporary folder goes and ``out`` stays as it was.

    Raises:
        UserError: the file system refuses.
    """
    target = out.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}", "choose another --out") from error
    try:
        yield partial
        partial.chmod(0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
            target.rename(old / target.name)
            partial.rename(target)
            shutil.rmtree(old)
        else:
            partial.rename(target)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written: {error.strerror or error}", "free space or choose another --out"
        ) from error
    finally:
        if partial.exists():
            shutil.rmtree(partial, ignore_errors=True)
