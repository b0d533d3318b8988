"""The one exception that a person sees: what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = ["UserError", "closest", "nearest", "printable"]

#: Characters of what is wrong, and of what to do: names come from files and may have any length.
_LONGEST = 700
#: Known names that a message lists, at most.
_LISTED = 20
#: What a terminal may take for a command, a new line or another direction of writing; and halves of characters.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """Something in the user's input that only the user can mend.

    The command line prints it as one line and exits with code 2.

    Args:
        what: what is wrong and where, e.g. ``"model.onnx is truncated"``.
        remedy: what to do about it, e.g. ``"export it again"``.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what, self.remedy = _short(what), _short(remedy)
        super().__init__(f"{self.what}: {self.remedy}" if self.remedy else self.what)


def _short(text: str) -> str:
    """In one line, without the middle of what nobody would read to the end."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 100]} ... {line[-90:]}"


def printable(text: str) -> str:
    """One line that a terminal shows and does not obey: names come from files that somebody else made.

    What it would obey is written as JSON does it, ``\\u001b``.
    """
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def closest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known name that looks most like an unknown one, if any does.

    Args:
        name: as a person wrote it.
        known: what it may be; letter case counts only where that finds one.
        cutoff: least likeness, 0..1, of :func:`difflib.get_close_matches`.
    """
    choices = [entry for entry in known if entry]
    near = difflib.get_close_matches(name, choices, n=1, cutoff=cutoff)
    if not near:
        folded = {entry.lower(): entry for entry in choices}
        near = [folded[entry] for entry in difflib.get_close_matches(name.lower(), folded, n=1, cutoff=cutoff)]
    return near[0] if near else None


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """What to do about an unknown name: take the closest known one, or one of those listed; see :func:`closest`."""
    choices = [entry for entry in known if entry]
    near = closest(name, choices, cutoff)
    rest = ", ..." if len(choices) > _LISTED else ""
    return f"did you mean {near}?" if near else f"known are {', '.join(choices[:_LISTED])}{rest}"
