"""Write a file or a folder whole or not at all, whoever else writes there and whatever ends the program.

Everything temporary is named ``.narrowcast-XXXXXXXX.partial`` (or ``.old``), lies beside what is written, and is locked
while its writer lives. What a killed run left is thus known, and goes when something is next written to that folder."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from narrowcast.base.errors import UserError

try:
    import fcntl
except ImportError:  # a system without such locks: nothing is waited for, and leftovers stay
    fcntl = None  # type: ignore[assignment]

__all__ = ["Place", "check_file", "check_folder", "inside", "new_file", "new_folder", "write_file"]

_TEMPORARY = re.compile(r"\.narrowcast-[0-9a-f]{16}\.(partial|old)(\.\w+)?")
#: Seconds that a writer waits for its turn, which others need for a moment; then one of them was stopped in it.
_PATIENCE = 5.0
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


@dataclass(frozen=True)
class Place:
    """A folder that may be written; made by :func:`check_folder`.

    Attributes:
        path: as the person named it.
        before: device and inode of the folder that it replaces, ``None`` for a new one.
    """

    path: Path
    before: tuple[int, int] | None


def check_file(path: Path, force: bool, option: str = "--out") -> None:
    """Raise now if a file cannot be written later, so that nobody waits for that news.

    Args:
        path: file to write.
        force: an existing file may be replaced. A link is replaced itself; nothing is written to where it points.
        option: what the person may change.

    Raises:
        UserError: it exists, or is a folder or device.
    """
    if not os.path.lexists(path):
        return
    if not path.is_symlink() and not path.is_file():
        raise UserError(f"{path} is no file", f"choose another {option}")
    if not force:
        raise UserError(f"{path} exists", f"choose another {option}, or add --force")


def write_file(path: Path, data: bytes | str, *, force: bool, option: str = "--out") -> Path:
    """Write a file under a temporary name beside it and rename it, so that nobody ever finds half of it.

    Args:
        path: file to write; folders above it are made.
        data: its content; text is written as UTF-8.
        force: replace an existing file.
        option: what the person may change when this fails.

    Raises:
        UserError: the file exists, or the file system refuses.
    """
    with new_file(path, force=force, option=option) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@contextlib.contextmanager
def new_file(path: Path, *, force: bool, option: str = "--out", suffix: str = "") -> Iterator[Path]:
    """An empty temporary file beside ``path`` that becomes ``path`` when the block ends without an exception.

    Args:
        path: file to write; folders above it are made.
        force: replace an existing file.
        option: what the person may change when this fails.
        suffix: of the temporary name, for writers that go by it.

    Raises:
        UserError: the file exists, or the file system refuses.
    """
    check_file(path, force, option)
    folder = path.absolute().parent
    with contextlib.ExitStack() as stack:
        stack.enter_context(_refusals(path, option))
        folder.mkdir(parents=True, exist_ok=True)
        _tidy(folder)
        with _alone(folder):
            partial = _temporary(folder, f".partial{suffix}")
            # the kernel applies the person's umask, which tempfile.mkstemp does not
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666))
            stack.callback(partial.unlink, missing_ok=True)
            stack.enter_context(_locked(partial))
        yield partial
        with _alone(folder):
            check_file(path, force, option)
            partial.replace(path)


def check_folder(out: str | Path, marker: str, force: bool, option: str = "--out") -> Place:
    """Raise now if a folder cannot be written later, so that nobody waits for that news.

    Args:
        out: the folder to write.
        marker: a file that only a folder of this kind has; anything else is never replaced.
        force: such a folder may be replaced.
        option: what the person may change.

    Returns:
        What :func:`new_folder` takes.

    Raises:
        UserError: it exists, or its parent is not writable.
    """
    path = Path(out)
    parent = path.absolute().parent
    existing = next(folder for folder in (parent, *parent.parents) if folder.exists())
    if not existing.is_dir():
        raise UserError(f"{existing} is a file", f"choose another {option}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{existing} is not writable", f"choose another {option}")
    if existing == parent:
        _tidy(parent)
    if os.path.lexists(path):
        if path.is_symlink():
            raise UserError(f"{path} is a link, so it is not replaced", f"choose another {option}")
        if not (path / marker).is_file():
            raise UserError(f"{path} exists and holds no {marker}, so it is not replaced", f"choose another {option}")
        if not force:
            raise UserError(f"{path} exists", f"choose another {option}, or add --force to replace it")
    return Place(path, _identity(path))


@contextlib.contextmanager
def new_folder(place: Place, option: str = "--out") -> Iterator[Path]:
    """A temporary folder that becomes that of ``place`` when the block ends without an exception.

    An existing folder is kept until the new one is complete, and both change names in one step where the system can; a
    kill between two steps is mended by the next run. On any exception (Ctrl-C and a full disk too) the temporary folder
    goes and the old one stays as it was.

    Args:
        place: of the folder; folders above it are made.
        option: what the person may change when this fails.

    Raises:
        UserError: the file system refuses, or somebody else wrote there since :func:`check_folder`.
    """
    target = place.path.absolute()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_refusals(place.path, option))
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.parent):
            partial = _temporary(target.parent, ".partial")
            partial.mkdir()
            stack.callback(shutil.rmtree, partial, ignore_errors=True)  # then perhaps the old one
            stack.enter_context(_locked(partial))
        yield partial
        with _alone(target.parent):
            if _identity(target) != place.before:
                raise UserError(f"{place.path} was written by another run meanwhile", f"choose another {option}")
            if place.before is None:
                partial.rename(target)
            elif not _exchanged(partial, target):
                _replace_in_steps(partial, target)


def inside(folder: Path, name: str) -> Path:
    """The path of a plain file name in a folder.

    Raises:
        UserError: the name leads elsewhere.
    """
    if name in ("", ".", "..") or any(letter in name for letter in "/\\:\0"):
        raise UserError(f"{name!r} is no plain file name", "nothing is written outside of the output")
    return folder / name


@contextlib.contextmanager
def _refusals(path: Path, option: str) -> Iterator[None]:
    """Turn what the file system refuses into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}", f"free space or choose another {option}"
        ) from error


def _temporary(folder: Path, ending: str) -> Path:
    return folder / f".narrowcast-{secrets.token_hex(8)}{ending}"


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _lock(path: Path, wait: bool) -> int | None:
    """A handle that locks a file or folder until it is closed; ``None`` where another has it or there are no locks."""
    if fcntl is None:
        return None
    handle = os.open(path, os.O_RDONLY | _NO_LINK)
    end = time.monotonic() + (_PATIENCE if wait else 0)
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() < end:
                time.sleep(0.01)
                continue
        except OSError:  # a file system without locks
            pass
        os.close(handle)
        return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = _lock(path, wait=True)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _alone(folder: Path) -> contextlib.AbstractContextManager[None]:
    """The moment of making and renaming, which the writers to a folder take in turn."""
    return _locked(folder)


def _tidy(folder: Path) -> None:
    """Remove what killed runs left in a folder, and give back a bundle that one had moved out of the way."""
    dead: list[tuple[Path, int]] = []
    with contextlib.suppress(OSError), _alone(folder):
        for entry in sorted(folder.iterdir()):
            found = _TEMPORARY.fullmatch(entry.name)
            with contextlib.suppress(OSError):  # another's: it stays
                handle = _lock(entry, wait=False) if found and not entry.is_symlink() else None
                if found is None or handle is None:
                    continue
                dead.append((entry, handle))
                if found[1] == "old":
                    _give_back(entry, folder)
    for entry, handle in dead:
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                entry.unlink()
        os.close(handle)


def _give_back(old: Path, folder: Path) -> None:
    for entry in old.iterdir():
        if not os.path.lexists(folder / entry.name):
            entry.rename(folder / entry.name)


def _exchanged(first: Path, second: Path) -> bool:
    """Let two names change places in one step; whether the system did."""
    names = os.fsencode(first), os.fsencode(second)
    here, swap = -100, 2  # AT_FDCWD; RENAME_EXCHANGE and RENAME_SWAP alike
    try:
        library = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return int(library.renamex_np(*names, swap)) == 0
        return int(library.renameat2(here, names[0], here, names[1], swap)) == 0
    except (AttributeError, OSError, TypeError):  # no such call
        return False


def _replace_in_steps(partial: Path, target: Path) -> None:
    """The same in two steps. A kill between them leaves the old folder where :func:`_tidy` finds it."""
    old = _temporary(target.parent, ".old")
    old.mkdir()
    try:
        target.rename(old / target.name)
        partial.rename(target)
    except BaseException:
        _give_back(old, target.parent)
        raise
    finally:
        if os.path.lexists(target):
            shutil.rmtree(old, ignore_errors=True)
