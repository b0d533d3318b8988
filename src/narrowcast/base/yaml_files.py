"""Strict YAML."""

from __future__ import annotations

import codecs
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from narrowcast.base.errors import UserError
from narrowcast.base.reading import check_depth, reading

__all__ = ["parse_yaml", "read_yaml"]


#: Characters and entries of a file, and lists in each other, at most; a settings file has a few hundred entries. The
#: time that PyYAML takes grows with the square of the depth.
_MOST_CHARACTERS, _MOST_ENTRIES, _DEEPEST = 200_000, 100_000, 64


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
