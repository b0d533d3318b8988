"""The edge at which files come in: whatever is wrong with one ends in one line that says what, where and what to do.

Every loader reads inside :func:`reading`, so that a check that somebody forgot still names the file. What is read is
plain data of known types: :func:`read_json` takes no NaN, no key twice, no number that no field can hold, and
:func:`typed` compares the data with the annotations of a class. YAML is as strict.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import math
from collections.abc import Hashable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import yaml

from narrowcast.base.errors import UserError

if TYPE_CHECKING:
    from pydantic import TypeAdapter


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


#: Characters and entries of a file, and lists in each other, at most; a settings file has a few hundred entries. The
#: time that PyYAML takes grows with the square of the depth.
_MOST_CHARACTERS, _MOST_ENTRIES = 200_000, 100_000


class _Loader(yaml.SafeLoader):
    """YAML in which no key is given twice with two values; PyYAML alone would quietly take the last one."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.notes: list[str] = []

    def fetch_flow_collection_start(self, kind: Any) -> None:
        if self.flow_level >= _DEEPEST:
            raise RecursionError
        super().fetch_flow_collection_start(kind)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                twice = f"{name} is given twice, again in line {key.start_mark.line + 1}"
                if self.construct_object(seen[name], deep=True) != self.construct_object(value, deep=True):
                    raise yaml.constructor.ConstructorError(None, None, f"{twice}, with another value", None)
                self.notes.append(f"{twice}, with the same value")
            seen[name] = value
        return super().construct_mapping(node, deep)


def _check_size(node: yaml.Node | None) -> None:
    """Raise when aliases make a short file long, or a table part of itself.

    Raises:
        ValueError: more than :data:`_MOST_ENTRIES` entries once every alias is written out.
    """
    sizes: dict[yaml.Node, int] = {}

    def size(entry: yaml.Node) -> int:
        if entry not in sizes:
            sizes[entry] = _MOST_ENTRIES  # of an entry that is met inside itself
            parts = entry.value if isinstance(entry.value, list) else []
            inner = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
            sizes[entry] = 1 + sum(map(size, inner))
        return sizes[entry]

    if node is not None and size(node) > _MOST_ENTRIES:
        raise ValueError(f"more than {_MOST_ENTRIES:,} entries once its aliases are written out")


def read_yaml(file: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The settings in a YAML file: UTF-8, or UTF-16 that says so in its first bytes.

    Returns:
        The settings, and what a person should know of how they are written.

    Raises:
        UserError: it cannot be read, is not YAML, gives a key twice with two values, or is no table.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", "check the path of --config") from error
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        where = f"{file} is not written in {'UTF-16' if wide else 'UTF-8'} (line {line})"
        remedy = "save it as UTF-8 (editors on Windows may choose another encoding, such as GBK)"
        raise UserError(where, remedy) from error
    return parse_yaml(text, str(file))


def parse_yaml(text: str, where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """As :func:`read_yaml`, of text; ``where`` names it in messages."""
    try:
        with reading(where, "mend it", "is not valid YAML"):
            if len(text) > _MOST_CHARACTERS:
                raise ValueError(f"more than {_MOST_CHARACTERS:,} characters")
            loader = _Loader(text)  # a SafeLoader
            node = loader.get_single_node()
            _check_size(node)
            data = loader.construct_document(node) if node is not None else None
            check_depth(data)
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, yaml.YAMLError):  # which names the line
            raise UserError(f"{where} is not valid YAML: {str(cause)[:400]}", "mend the line it names") from cause
        raise
    if not isinstance(data, dict):
        raise UserError(f"{where} is no table of settings", "write lines such as 'target: esp32p4'")
    return data, tuple(dict.fromkeys(loader.notes))
