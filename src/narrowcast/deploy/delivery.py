"""What a kit is given and what it hands over."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Delivery"]


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
