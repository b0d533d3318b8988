"""plan.json: readable, editable, validated.

The file has one line a tensor and one a node. A person edits it and reruns with ``--plan edited.json``:

* a node's ``"type"`` may be set to ``"int8"``, ``"int16"`` or ``"float32"``;
* a tensor's ``"dtype"`` may be changed, or its whole encoding fixed by adding ``"pinned": true``.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from narrowcast.base.errors import UserError, closest
from narrowcast.base.reading import read_json, typed
from narrowcast.ops.net import all_names, named, written
from narrowcast.plan.types import DTYPES, Encoding, Placement, Plan, split_edge_key

NODE_TYPES = ("int8", "int16", "float32")
VERSION = 1
_SECTIONS = ("version", "target", "nodes", "tensors", "edges")


@dataclass(frozen=True)
class TensorPin:
    """A fixed type, or a fixed type and scale, of one tensor (and of those that share its encoding)."""

    dtype: str | None = None
    scale: float | tuple[float, ...] | None = None
    zero_point: int = 0
    axis: int | None = None


@dataclass(frozen=True)
class Pins:
    """Fixed decisions.

    Attributes:
        nodes: node name or pattern (``*`` and ``?``) to ``"int8"``, ``"int16"`` or ``"float32"``; a later entry
            wins over an earlier one.
        tensors: tensor name to its pin.
    """

    nodes: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, TensorPin] = field(default_factory=dict)

    def type_of(self, node: str) -> str | None:
        """The pinned type of a node, if any."""
        found = None
        for pattern, wanted in self.nodes.items():
            if pattern == node or fnmatch.fnmatchcase(node, pattern):
                found = wanted
        return found

    def fixed(self, tensors: Iterable[str]) -> str | None:
        """The first of these tensors whose scale is pinned."""
        return next((name for name in tensors if name in self.tensors and self.tensors[name].scale is not None), None)

    def merged(self, other: Pins) -> Pins:
        """These pins with ``other`` on top."""
        return Pins({**self.nodes, **other.nodes}, {**self.tensors, **other.tensors})

    def check(self, graph: ir.Graph) -> None:
        """Raise when a pin names nothing in the graph, with the nearest name."""
        nodes, values = list(named(graph)), all_names(graph)
        for pattern, wanted in self.nodes.items():
            if wanted not in NODE_TYPES:
                raise UserError(f"{pattern} is pinned to {wanted!r}", f"use one of {', '.join(NODE_TYPES)}")
            if pattern not in nodes and not fnmatch.filter(nodes, pattern):
                raise _unknown("node", pattern, nodes)
        for name in self.tensors:
            if name not in values:
                raise _unknown("tensor", name, sorted(values))


class ExactPins(Pins):
    """Pins by whole names, for names that no person wrote: they may hold characters that patterns use."""

    def type_of(self, node: str) -> str | None:
        """The pinned type of a node, if any."""
        return self.nodes.get(node)


def _unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    near = closest(name, known, 0.3)
    return UserError(f"no {kind} of this model is named {name}", f"did you mean {near}?" if near else "see inspect")


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
    """Read a plan as it is; refused where it is no JSON, of another version, or has an impossible entry."""
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
    """What an edited plan fixes: the type of every node, the type of tensors whose type is not their node's, and the
    encodings marked ``"pinned": true``; refused as by :func:`read_plan`."""
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


def check_fit(plan: Plan, graph: ir.Graph, where: str | Path) -> None:
    """Raise when a plan names what the graph lacks, says nothing of a node, or has scales for other channels."""
    nodes = named(graph)
    values = {str(value.name): value for value in (*graph.inputs, *graph.initializers.values(), *written(graph))}
    lost = [name for name in nodes if name not in plan.nodes]
    if lost:
        raise _wrong(where, f"says nothing of the node {lost[0]}")
    other = [f"node {name}" for name in plan.nodes if name not in nodes]
    other += [f"tensor {name}" for name in plan.tensors if name not in values]
    if other:
        raise _wrong(where, f"names the {other[0]}, which the model does not have")
    for name, encoding in plan.tensors.items():
        _check_channels(encoding, values[name], f"{where}: tensor {name}")
    for key, encoding in plan.edges.items():
        node, index = split_edge_key(key) if key.rpartition("#")[2].isdecimal() else (key, -1)
        operands = nodes[node].inputs if node in nodes else ()
        value = operands[index] if 0 <= index < len(operands) else None
        if value is None:
            raise _wrong(where, f"names the edge {key}, which the model does not have")
        _check_channels(encoding, value, f"{where}: edge {key}")


def _check_channels(encoding: Encoding, value: ir.Value, where: str) -> None:
    if encoding.axis is None or value.shape is None:
        return
    shape, count = [int(size) for size in value.shape], len(encoding.scales)
    if not 0 <= encoding.axis < len(shape) or shape[encoding.axis] != count:
        raise _wrong(where, f"has {count} scales along axis {encoding.axis}, its shape is {shape}")


def _wrong(where: str | Path, problem: str) -> UserError:
    return UserError(f"{where} {problem}", "take the plan.json of this model's bundle")
