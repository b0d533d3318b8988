"""Strict YAML."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from narrowcast.errors import UserError

__all__ = ["parse_yaml", "read_yaml"]


class _Loader(yaml.SafeLoader):
    """YAML in which no key is given twice; PyYAML alone would quietly take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name} is given twice, again in line {key.start_mark.line + 1}", None
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        UserError: it cannot be read, is not YAML, gives a key twice, or is no table.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", "check the path of --config") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not valid YAML: {error}", "mend the line it names") from error
    return parse_yaml(text, str(file))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """The settings in YAML text; ``where`` names it in messages.

    Raises:
        UserError: as :func:`read_yaml`.
    """
    try:
        data = yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {error}", "mend the line it names") from error
    if not isinstance(data, dict):
        raise UserError(f"{where} is no table of settings", "write lines such as 'target: esp32p4'")
    return data
