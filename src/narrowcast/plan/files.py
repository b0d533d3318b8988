"""plan.json: readable, editable, validated.

The file has one line a tensor and one a node. A person edits it and reruns with ``--plan edited.json``:

* a node's ``"type"`` may be set to ``"int8"``, ``"int16"`` or ``"float32"``;
* a tensor's ``"dtype"`` may be changed, or its whole encoding fixed by adding ``"pinned": true``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from narrowcast.base.errors import UserError
from narrowcast.base.reading import read_json, typed
from narrowcast.plan.pins import NODE_TYPES, Pins, TensorPin
from narrowcast.plan.types import DTYPES, Encoding, Placement, Plan

__all__ = ["plan_from_json", "plan_to_json", "read_pins", "read_plan"]

VERSION = 1
_SECTIONS = ("version", "target", "nodes", "tensors", "edges")


def _encoding_to_json(encoding: Encoding) -> dict[str, Any]:
    scale = list(encoding.scale) if isinstance(encoding.scale, tuple) else encoding.scale
    return {"dtype": encoding.dtype, "scale": scale, "zero_point": encoding.zero_point, "axis": encoding.axis}


def plan_to_json(plan: Plan) -> str:
    """The plan as text, one line an entry, in graph order."""

    def section(name: str, entries: dict[str, Any]) -> str:
        lines = ",\n".join(f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items())
        return f'  "{name}": {{\n{lines}\n  }}' if lines else f'  "{name}": {{}}'

    nodes = {name: {"unit": p.unit, "type": p.type, "reason": p.reason} for name, p in plan.nodes.items()}
    parts = [
        f'  "version": {VERSION}',
        f'  "target": {json.dumps(plan.target)}',
        section("nodes", nodes),
        section("tensors", {name: _encoding_to_json(e) for name, e in plan.tensors.items()}),
        section("edges", {name: _encoding_to_json(e) for name, e in plan.edges.items()}),
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _load(path: Path) -> dict[str, Any]:
    document = read_json(path, "give a plan.json, or mend the line")
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise UserError(f"{path} is no plan of version {VERSION}", "start from the plan.json of a bundle")
    unknown = sorted(set(document) - set(_SECTIONS))
    if unknown:
        raise UserError(f"{path} has an unknown section {unknown[0]!r}", f"known are {', '.join(_SECTIONS)}")
    for name in ("nodes", "tensors", "edges"):
        if not isinstance(document.setdefault(name, {}), dict):
            raise UserError(f"{path}: {name} is not a table", "start from the plan.json of a bundle")
    return document


def _encoding(entry: Any, where: str) -> Encoding:
    remedy = "an encoding is dtype, scale, zero_point and axis"
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not an encoding", remedy)
    return typed(Encoding, {key: value for key, value in entry.items() if key != "pinned"}, where, remedy)


def _node_entry(entry: Any, where: str) -> tuple[str, str, str]:
    if not isinstance(entry, dict) or entry.get("type") not in list(NODE_TYPES):
        raise UserError(f"{where}: 'type' is not one of {', '.join(NODE_TYPES)}", "mend the line")
    return str(entry.get("unit", "")), str(entry["type"]), str(entry.get("reason", ""))


def read_plan(path: str | Path) -> Plan:
    """Read a plan as it is.

    Raises:
        UserError: no JSON, another version, an impossible entry.
    """
    return plan_from_json(_load(Path(path)), str(path))


def plan_from_json(document: dict[str, Any], where: str) -> Plan:
    """A plan from the parsed text of :func:`plan_to_json`."""
    return Plan(
        target=str(document.get("target", "")),
        tensors={name: _encoding(entry, f"{where}: tensor {name}") for name, entry in document["tensors"].items()},
        edges={name: _encoding(entry, f"{where}: edge {name}") for name, entry in document["edges"].items()},
        nodes={name: Placement(*_node_entry(e, f"{where}: node {name}")) for name, e in document["nodes"].items()},
    )


def read_pins(path: str | Path) -> Pins:
    """What an edited plan fixes: the type of every node, the type of tensors whose type is not their node's,
    and the encodings marked ``"pinned": true``.

    Raises:
        UserError: as :func:`read_plan`.
    """
    file = Path(path)
    document = _load(file)
    nodes = {name: _node_entry(entry, f"{file}: node {name}")[1] for name, entry in document["nodes"].items()}
    tensors = {}
    for name, entry in document["tensors"].items():
        where = f"{file}: tensor {name}"
        if isinstance(entry, dict) and entry.get("dtype") not in list(DTYPES):
            raise UserError(f"{where}: unknown dtype {entry.get('dtype')!r}", f"use one of {', '.join(DTYPES)}")
        encoding = _encoding(entry, where)
        tensors[name] = TensorPin(encoding.dtype)
        if entry.get("pinned") is True:
            tensors[name] = TensorPin(encoding.dtype, encoding.scale, encoding.zero_point, encoding.axis)
    return Pins(nodes, tensors)
