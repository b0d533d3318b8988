"""Find, read and validate target files."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from narrowcast.base.errors import UserError, closest
from narrowcast.base.reading import is_plain_name, parse_json, read_text, reading, typed
from narrowcast.base.yaml_files import parse_yaml
from narrowcast.chips.schema import Target

__all__ = ["load_target", "read_target", "target_names", "write_target"]

_FOLDER = Path(__file__).parent


def target_names() -> tuple[str, ...]:
    """Names of the targets that come with the package, sorted."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.yaml")))


@cache
def load_target(name: str) -> Target:
    """Read a target.

    Args:
        name: of a target that comes with the package, or the path of a ``.yaml`` file.

    Raises:
        UserError: unknown name, or a file that breaks the schema.
    """
    if name in target_names():
        return _validated(_FOLDER / f"{name}.yaml")
    if name.endswith((".yaml", ".yml")):
        return _validated(Path(name))
    near = closest(name, target_names(), 0.4)
    hint = f"did you mean {near}? " if near else ""
    raise UserError(f"there is no target named {name!r}", f"{hint}known are {', '.join(target_names())}")


def read_target(file: Path) -> Target:
    """Read a file that :func:`write_target` made.

    Raises:
        UserError: a file that cannot be read or breaks the schema.
    """
    where, remedy = f"target file {file}", "quantize again, or see docs/targets.md for the schema"
    return typed(Target, parse_json(read_text(file, remedy), where, remedy), where, remedy)


def write_target(target: Target) -> str:
    """The target as JSON (YAML would take 0.1 s to read back), whole: nothing is left to a file that it extends."""
    return target.model_dump_json(indent=1, exclude_defaults=True) + "\n"


def _validated(file: Path) -> Target:
    return typed(Target, _read(file, ()), file, "see docs/targets.md for the schema")


def _read(file: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """A file's entries on top of those of the file it extends."""
    data, _ = parse_yaml(read_text(file, "check the path"), f"target file {file}")
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str) or not is_plain_name(base):
        raise UserError(f"{file} extends {base!r}, which is no name", f"known are {', '.join(target_names())}")
    parent = file.parent / f"{base}.yaml"
    if not parent.exists():
        parent = _FOLDER / f"{base}.yaml"
    if not parent.exists() or parent in seen:
        raise UserError(f"{file} extends {base!r}, which is not there", f"known are {', '.join(target_names())}")
    below = _read(parent, (*seen, file))
    with reading(f"target file {file}", "see docs/targets.md for the schema"):
        return _merge(below, data)


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Tables are merged, everything else (an empty table too) is replaced.

    ``first_ops`` come before the base's own ``ops``, so that they win.
    """
    merged = dict(base)
    for key, value in top.items():
        if key == "first_ops":
            merged["ops"] = [*value, *base.get("ops", [])]
        elif value and isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _merge(base[key], value)
        else:
            merged[key] = value
    return merged
