"""From hb_mapper's YAML to ours and back, and a schema that lets editors complete ours."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from narrowcast.base.reading import reading
from narrowcast.base.yaml_files import read_yaml
from narrowcast.config.hb_back import from_settings
from narrowcast.config.hb_mapper import is_hb_mapper, parse_hb_mapper, write_hb_mapper
from narrowcast.config.hb_translate import to_settings
from narrowcast.config.settings import QuantizeSettings, explained

__all__ = ["Converted", "convert", "settings_schema"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True)
class Converted:
    """A settings file in the other form.

    Attributes:
        text: YAML.
        form: whose it is now.
        notes: what was approximated or could not be said.
    """

    text: str
    form: Literal["narrowcast", "hb_mapper"]
    notes: tuple[str, ...]


def settings_schema() -> str:
    """JSON schema of ``narrowcast.yaml``, as text.

    Nothing is required in it, because whatever the file does not say may be given on the command line.
    """
    schema: dict[str, Any] = QuantizeSettings.model_json_schema(by_alias=True)
    schema.pop("required", None)
    schema = {
        "$schema": _DIALECT,
        **schema,
        "title": "narrowcast.yaml",
        "description": "Settings of narrowcast quantize",
    }
    for name, entry in schema["properties"].items():
        entry.pop("title", None)
        if "format" in entry and entry["format"] == "path":  # no format that editors know
            del entry["format"]
        entry.setdefault("description", name)
    return json.dumps(schema, indent=2) + "\n"


def convert(file: Path) -> Converted:
    """Write a settings file in the other form: hb_mapper's becomes ours, ours becomes hb_mapper's.

    Args:
        file: YAML; relative paths in it stay as they are, so the result belongs beside it.

    Raises:
        UserError: the file is wrong, or asks for what the other form cannot say.
    """
    data, written = read_yaml(file)
    with reading(file, "see docs/rdk-x5.md", "is not understood"):
        return _converted(data, written, file)


def _converted(data: dict[str, Any], written: tuple[str, ...], file: Path) -> Converted:
    if is_hb_mapper(data):
        settings, notes = to_settings(parse_hb_mapper(data, str(file)), Path())
        notes = (*written, *notes)
        return Converted(_yaml(settings, notes), "narrowcast", notes)
    try:
        settings = QuantizeSettings.model_validate(data)
    except ValidationError as error:
        raise explained(error.errors()[0], file) from error
    config, notes = from_settings(settings)
    return Converted(_comments(notes) + write_hb_mapper(config), "hb_mapper", notes)


def _comments(notes: tuple[str, ...]) -> str:
    return "".join(f"# {note}\n" for note in notes)


def _yaml(settings: QuantizeSettings, notes: tuple[str, ...]) -> str:
    """Ours, without what is the default."""
    defaults = QuantizeSettings.model_fields
    data: dict[str, Any] = {}
    for name, field in defaults.items():
        value = getattr(settings, name)
        if not field.is_required() and value == field.default:
            continue
        if isinstance(value, Path):
            value = value.as_posix()
        elif isinstance(value, tuple):
            value = list(value)
        data[field.alias or name] = value
    return _comments(notes) + str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110))
