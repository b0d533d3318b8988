"""What a kit is given and what it hands over."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from narrowcast.bundle.folder import check_out
from narrowcast.errors import UserError

__all__ = ["Delivery", "check_folder"]


@dataclass(frozen=True)
class Delivery:
    """What was written.

    Attributes:
        path: file or folder.
        files: names inside the folder, sorted; empty for a single file.
        steps: what to do next, in order: commands or short sentences.
        notes: what a person should know.
        facts: numbers and names by what they are, JSON-ready.
    """

    path: Path
    files: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def check_folder(out: Path, marker: str, force: bool) -> None:
    """Raise now if the folder cannot be written later.

    Args:
        out: the folder to write.
        marker: a file that only a folder of this kit has; anything else is never replaced.
        force: such a folder may be replaced.

    Raises:
        UserError: it exists, or its parent is not writable.
    """
    if not out.exists():
        check_out(out, force)
        return
    if not (out / marker).is_file():
        raise UserError(f"{out} exists and holds no {marker}, so it is not replaced", "choose another --out")
    if not force:
        raise UserError(f"{out} exists", "choose another --out, or add --force to replace it")
    check_out(out.with_name(f".{out.name}.partial"), force)  # the parent must be writable
