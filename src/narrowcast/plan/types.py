"""What a plan is made of: encodings of tensors and placements of nodes, as plain data; and its file.

plan.json is readable, editable, validated.

The file has one line a tensor and one a node. A person edits it and reruns with ``--plan edited.json``:

* a node's ``"type"`` may be set to ``"int8"``, ``"int16"`` or ``"float32"``;
* a tensor's ``"dtype"`` may be changed, or its whole encoding fixed by adding ``"pinned": true``.
"""

from __future__ import annotations

import fnmatch
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError, closest
from narrowcast.base.reading import read_json, typed
from narrowcast.ops.net import all_names, named, written

#: Integer types with their smallest and largest value.
DTYPES: dict[str, tuple[int, int]] = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}
EIGHT_BITS = ("int8", "uint8")
#: Numbers that are quantized at once: a weight may be large, and float64 is eight times the result.
_BLOCK = 1 << 18


def round_real(x: NDArray[np.float64] | float, rounding: str) -> NDArray[np.float64]:
    """Round real numbers to integers (still float64).

    ``"half-even"``, ``"half-up"``, which is floor(x + 1/2), or ``"half-away"`` from zero.
    """
    values = np.asarray(x, np.float64)
    if rounding == "half-away":
        return np.asarray(np.copysign(np.floor(np.abs(values) + 0.5), values) + 0.0)
    return np.asarray(np.rint(values) if rounding == "half-even" else np.floor(values + 0.5))


@dataclass(frozen=True)
class Encoding:
    """How real numbers are represented as integers: ``x = (q - zero_point) * scale``.

    Attributes:
        dtype: key of :data:`DTYPES`.
        scale: real value of one step, > 0; a tuple holds one value per channel of ``axis``.
        zero_point: the integer that stands for 0.0 (one for all channels).
        axis: channel axis of a per-channel scale, ``None`` for per-tensor.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # for reading files

    dtype: str
    scale: float | tuple[float, ...]
    zero_point: int = 0
    axis: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown integer type {self.dtype!r}; use one of {', '.join(DTYPES)}")
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        if not scales or not all(math.isfinite(s) and s > 0 for s in scales):
            raise ValueError("a scale must be finite and above zero")
        if isinstance(self.scale, tuple) != (self.axis is not None):
            raise ValueError("a per-channel scale needs an axis, and a per-tensor scale has none")
        if not self.qmin <= self.zero_point <= self.qmax:
            raise ValueError(f"zero point {self.zero_point} is outside {self.dtype}")

    @property
    def qmin(self) -> int:
        """Smallest integer of the type."""
        return DTYPES[self.dtype][0]

    @property
    def qmax(self) -> int:
        """Largest integer of the type."""
        return DTYPES[self.dtype][1]

    @property
    def scales(self) -> NDArray[np.float64]:
        """The scale as an array: shape () per tensor, (C,) per channel."""
        return np.asarray(self.scale, np.float64)

    @property
    def exponents(self) -> NDArray[np.int64]:
        """log2 of the scale, shape () or (C,).

        Raises:
            ValueError: when a scale is not a power of two.
        """
        mantissa, exponent = np.frexp(self.scales)
        if not np.all(mantissa == 0.5):
            raise ValueError(f"scale {self.scale} is not a power of two")
        return (exponent - 1).astype(np.int64)

    def broadcast(self, rank: int) -> NDArray[np.float64]:
        """The scale shaped to broadcast against a tensor of ``rank`` axes."""
        if self.axis is None:
            return self.scales
        shape = [1] * rank
        shape[self.axis] = -1
        return self.scales.reshape(shape)

    def quantize(self, x: NDArray[Any], rounding: str = "half-even") -> NDArray[Any]:
        """Real values to integers of the type: ``clip(round(x / scale) + zero_point)`` (DESIGN rule 1)."""
        real = np.atleast_1d(x)
        scale = np.broadcast_to(self.broadcast(real.ndim), real.shape)
        result = np.empty_like(real, self.dtype)
        rows = max(1, _BLOCK * len(real) // max(1, real.size))
        for start in range(0, len(real), rows):
            part = slice(start, start + rows)
            q = round_real(np.divide(real[part], scale[part], dtype=np.float64), rounding)
            q += self.zero_point
            result[part] = np.clip(q, self.qmin, self.qmax, out=q)
        return result.reshape(np.shape(x))

    def dequantize(self, q: NDArray[Any]) -> NDArray[np.float32]:
        """Integers to real values (float32): ``(q - zero_point) * scale``."""
        real = (np.asarray(q, np.float64) - self.zero_point) * self.broadcast(np.ndim(q))
        return real.astype(np.float32)


@dataclass(frozen=True)
class Placement:
    """Where a node runs and how its outputs are represented.

    Attributes:
        unit: a unit of the target, e.g. ``"BPU"`` or ``"CPU"``.
        type: ``"int8"``, ``"int16"`` or ``"float32"``.
        reason: one clause a person can read.
    """

    unit: str
    type: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """How every tensor is represented and where every node runs.

    Attributes:
        target: name of the target.
        tensors: value name (activation, weight, bias, graph input) to its encoding. A value without an
            entry is float, or lives only inside a fused unit.
        edges: :func:`edge_key` to the encoding in which that consumer reads the tensor, where it is not
            the tensor's own: the chip requantizes on this edge.
        nodes: node name to its placement.
    """

    target: str
    tensors: dict[str, Encoding] = field(default_factory=dict)
    edges: dict[str, Encoding] = field(default_factory=dict)
    nodes: dict[str, Placement] = field(default_factory=dict)

    def __repr__(self) -> str:
        count = Counter(placement.type for placement in self.nodes.values())
        types = ", ".join(f"{number} {name}" for name, number in sorted(count.items()))
        return f"<Plan for {self.target}: {len(self.tensors)} tensors, {len(self.nodes)} nodes ({types})>"


def edge_key(node: str, index: int) -> str:
    """The key of input ``index`` of node ``node`` in :attr:`Plan.edges`."""
    return f"{node}#{index}"


def split_edge_key(key: str) -> tuple[str, int]:
    """The node and the index of its input, of a key of :attr:`Plan.edges`."""
    node, index = key.rsplit("#", 1)
    return node, int(index)


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
