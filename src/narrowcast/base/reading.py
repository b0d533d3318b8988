"""The edge at which files come in: whatever is wrong with one ends in one line that says what, where and what to do.

Every loader reads inside :func:`reading`, so that a check that somebody forgot still names the file. What is read is
plain data of known types: :func:`read_json` takes no NaN, no key twice, no number that no field can hold, and
:func:`typed` compares the data with the annotations of a class."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from narrowcast.base.errors import UserError

if TYPE_CHECKING:
    from pydantic import TypeAdapter


__all__ = [
    "check_depth", "check_plain_names", "is_plain_name", "parse_json", "read_json", "read_text", "reading", "reason",
    "typed",
]  # fmt: skip

Kind = TypeVar("Kind")

#: Mistakes of our own, which no file excuses.
_OURS = (UserError, AssertionError, ImportError)
#: Tables and lists in each other, at most: no file of narrowcast or COCO has more than ten.
_DEEPEST = 64
#: Digits of a whole number, at most: those of the largest 64-bit integers.
_DIGITS = 20
#: Characters of a library's own words that are repeated.
_WORDS = 200
#: Names that mean devices on Windows, whatever suffix they have.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}


def reason(error: BaseException) -> str:
    """What a library says is wrong, in at most one line of reasonable length."""
    problems = getattr(error, "errors", None)
    if callable(problems):  # pydantic
        first = problems()[0]
        place = ".".join(str(part) for part in first["loc"])
        words = "is missing" if first["type"] == "missing" else f": {first['msg']}"
        text = f"{place} {words}".replace(" : ", ": ").strip(": ")
    elif isinstance(error, KeyError):
        text = f"{error} is missing"
    else:
        text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text if len(text) <= _WORDS else f"{text[:_WORDS]} ..."


@contextlib.contextmanager
def reading(where: str | Path, remedy: str, what: str = "is damaged") -> Iterator[None]:
    """Inside the block, whatever fails is the fault of what is being read.

    Our own mistakes (:class:`AssertionError`) pass, and so do errors that say more already. Only
    what reads and checks belongs into the block, never work on what was read.

    Args:
        where: the file, or the part of one.
        remedy: what a person should do.
        what: is wrong with it, when nothing better is known.

    Raises:
        UserError: something failed.
    """
    try:
        yield
    except _OURS:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{where} does not exist", remedy) from error
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or reason(error)}", remedy) from error
    except MemoryError as error:
        raise UserError(f"{where} needs more memory than there is", remedy) from error
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply", remedy) from error
    except Exception as error:  # loaders of other people raise types of their own
        raise UserError(f"{where} {what} ({reason(error)})", remedy) from error


def read_text(file: Path, remedy: str) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        UserError: it cannot be read or is no text.
    """
    with reading(file, remedy):
        data = file.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no UTF-8 text (byte {error.start})", remedy) from error


def read_json(file: Path, remedy: str) -> Any:
    """The content of a JSON file; see :func:`parse_json`."""
    return parse_json(read_text(file, remedy), file, remedy)


def parse_json(text: str, where: str | Path, remedy: str) -> Any:
    """JSON as plain data whose numbers are finite.

    Args:
        text: of the file.
        where: for messages.
        remedy: what a person should do when it is wrong.

    Raises:
        UserError: no JSON, NaN or infinite, a number of more than 20 digits, a key twice, nested over 64 deep.
    """
    with reading(where, remedy, "is no JSON"):
        data = json.loads(
            text, parse_constant=_no_number, parse_float=_finite, parse_int=_whole, object_pairs_hook=_table
        )
        check_depth(data)
        return data


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a whole number has {len(text)} digits")
    return int(text)


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} is given twice")
    return found


def check_depth(data: Any) -> None:
    """Raise :class:`RecursionError` when tables and lists are nested over 64 deep, cycles among them."""
    level, depth = [data], 0
    while level:
        depth += 1
        if depth > _DEEPEST:
            raise RecursionError
        level = [
            child
            for entry in level
            for child in (entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ())
            if isinstance(child, (dict, list))
        ]


def typed(kind: type[Kind], data: Any, where: str | Path, remedy: str) -> Kind:
    """Plain data as a class, its entries compared with the annotations.

    Args:
        kind: a dataclass or a model of pydantic.
        data: as :func:`parse_json` gives it.
        where: for messages.
        remedy: what a person should do when it does not fit.

    Raises:
        UserError: naming the first entry that does not fit.
    """
    with reading(where, remedy):
        found: Kind = _adapter(cast("Any", kind)).validate_python(data)
        return found


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def is_plain_name(name: str) -> bool:
    """Whether a name from a file names a file in one folder, on every system: no path, no device, nothing hidden."""
    stem = name.split(".")[0].rstrip().lower()
    return (
        0 < len(name.encode("utf-8", "replace")) <= 255
        and not name.startswith(".")
        and not name.endswith((".", " "))
        and not set(name) & set('/\\:*?"<>|')
        and name.isprintable()
        and stem not in _DEVICES
    )


def check_plain_names(names: Iterable[str], where: str | Path, remedy: str) -> None:
    """Raise when a name is not one of a file in the same folder; see :func:`is_plain_name`."""
    for name in names:
        if not is_plain_name(name):
            raise UserError(f"{where} names the file {name[:80]!r}, which is no plain file name", remedy)
