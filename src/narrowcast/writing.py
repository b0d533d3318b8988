"""Write a file whole or not at all."""

from __future__ import annotations

import contextlib
from pathlib import Path

from narrowcast.errors import UserError

__all__ = ["write_file"]


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
    if path.exists() and not force:
        raise UserError(f"{path} exists", f"choose another {option}, or add --force")
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", f"choose another {option}") from error
    finally:
        with contextlib.suppress(OSError):  # the error above is the one to tell
            partial.unlink(missing_ok=True)
    return path
