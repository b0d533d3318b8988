"""Known before calibration: placement, structure, what a weight alone wants, and how operands are read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.chips.placement import place
from narrowcast.chips.schema import Target
from narrowcast.ops.facts import Kind, facts, weight_axis
from narrowcast.ops.net import all_names, constant_of, named, only_reader
from narrowcast.plan.structure import Structure, is_passive, structure
from narrowcast.plan.types import DTYPES, Encoding, ExactPins, Pins, Placement, Plan, edge_key, split_edge_key

_SMALLEST = 2.0**-30
#: Weights whose scale is searched at once, at most, where rows can be taken apart.
_BLOCK = 1 << 20


def output_channels_axis(node: ir.Node, target: Target) -> int | None:
    """Axis of the weight along which the target scales per output channel, ``None`` for per tensor."""
    axis = target.weight.per_channel.get(node.op_type)
    if axis is None:
        return None
    if facts(node).kind is Kind.TRANSPOSED and node.attributes.get_int("group", 1) != 1:
        return None
    return weight_axis(node) if facts(node).kind is Kind.LINEAR else axis


def weight_encoding(node: ir.Node, target: Target, dtype: str, weight: NDArray[Any] | None = None) -> Encoding:
    """Symmetric encoding of a node's constant second input (or of another weight) with the least squared error."""
    weight = constant_of(node.inputs[1]) if weight is None else weight
    if weight is None:
        raise ValueError(f"{node.name} has no constant weight")
    axis = output_channels_axis(node, target)
    rows = weight.reshape(1, -1) if axis is None else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    qmin, qmax = DTYPES[dtype]
    if target.weight.restricted_range:
        qmin = -qmax
    count = max(1, _BLOCK // rows.shape[1])  # rows have nothing to do with each other, and float64 takes memory
    power_of_two = target.weight.scale == "power-of-two"
    scales = np.concatenate(
        [
            _least_error_scales(rows[start : start + count].astype(np.float64), qmin, qmax, power_of_two)
            for start in range(0, len(rows), count)
        ]
    )
    if axis is None:
        return Encoding(dtype, float(scales[0]))
    return Encoding(dtype, tuple(float(scale) for scale in scales), 0, axis)


def _least_error_scales(rows: NDArray[np.float64], qmin: int, qmax: int, power_of_two: bool) -> NDArray[np.float64]:
    """One scale a row: among the candidates below the full range, the one with the least squared error.

    Clipping one outlier by a few steps can pay for a finer grid everywhere else (Banner et al., ACIQ, 2018).
    """
    full = np.maximum(np.maximum(rows.max(axis=1) / qmax, rows.min(axis=1) / qmin), _SMALLEST)
    if power_of_two:
        exponent = np.ceil(np.log2(full) - 1e-9)
        candidates = [2.0 ** (exponent - lower) for lower in range(3)]
    else:
        candidates = [full * share for share in np.linspace(1.0, 0.7, 13)]
    best, best_error = candidates[0], np.full(len(rows), math.inf)
    for scales in candidates:
        values = rows / scales[:, None]
        np.clip(np.rint(values, out=values), qmin, qmax, out=values)
        values *= scales[:, None]
        values -= rows
        error = np.square(values, out=values).sum(axis=1)
        better = error < best_error
        best, best_error = np.where(better, scales, best), np.where(better, error, best_error)
    return np.asarray(best, np.float64)


def bias_encoding(input_encoding: Encoding, weight: Encoding) -> Encoding:
    """A bias is added to the accumulator, so its scale is the product of input and weight scale."""
    product = input_encoding.scales * weight.scales
    if weight.axis is None:
        return Encoding("int32", float(product))
    return Encoding("int32", tuple(float(scale) for scale in product), 0, 0)


def constant_encoding(value: NDArray[Any], target: Target, dtype: str) -> Encoding:
    """Symmetric per-tensor encoding of a constant operand (of Mul, Add, ...)."""
    qmin, qmax = DTYPES[dtype]
    if target.weight.restricted_range:
        qmin = -qmax
    rows = np.asarray(value, np.float64).reshape(1, -1)
    return Encoding(dtype, float(_least_error_scales(rows, qmin, qmax, target.activation.scale == "power-of-two")[0]))


@dataclass(frozen=True)
class Draft:
    """Everything about a plan that is known before calibration.

    Attributes:
        graph: the prepared graph.
        target: the chip's rules.
        placement: of every node.
        structure: groups of tensors.
        pins: what the person fixed.
    """

    graph: ir.Graph
    target: Target
    placement: dict[str, Placement]
    structure: Structure
    pins: Pins = field(default_factory=Pins)

    @cached_property
    def nodes_by_name(self) -> dict[str, ir.Node]:
        """Every node by its name."""
        return named(self.graph)

    @cached_property
    def _weights(self) -> dict[tuple[str, str], Encoding]:
        return {}

    def weight(self, node: ir.Node, dtype: str) -> Encoding:
        """The pinned encoding of a node's constant second input, or the one with the least error."""
        name = str(node.inputs[1].name) if node.inputs[1] is not None else ""
        pin = self.pins.tensors.get(name)
        if pin is not None and pin.scale is not None:
            return Encoding(pin.dtype or dtype, pin.scale, pin.zero_point, pin.axis)
        if (name, dtype) not in self._weights:
            self._weights[name, dtype] = weight_encoding(node, self.target, dtype)
        return self._weights[name, dtype]

    def on(self, graph: ir.Graph) -> Draft:
        """The same draft for a copy of the graph with other weights."""
        return replace(self, graph=graph)

    def is_passive(self, node: ir.Node) -> bool:
        """Whether the node only moves bytes."""
        return is_passive(node, self.target)

    def wanted_statistics(self) -> list[str]:
        """Names of the tensors whose statistics :func:`finish` needs, in graph order."""
        return list(dict.fromkeys(name for group in self.structure.groups for name in group.sources))


def draft(graph: ir.Graph, target: Target, pins: Pins | None = None, runtime: str | None = None) -> Draft:
    """Place the nodes and group the tensors.

    Args:
        graph: prepared graph.
        target: the chip's rules.
        pins: types and encodings that a person fixed.
        runtime: version of the chip's runtime; ``None`` for the newest that the target knows.

    Raises:
        UserError: a node that the chip cannot run, a pin that names nothing or asks for an unsupported type.
    """
    pins = pins or Pins()
    pins.check(graph)
    supports = place(graph, target, runtime, pins.type_of)
    placement: dict[str, Placement] = {}
    for node in graph:
        name = str(node.name)
        support = supports[name]
        if not support.supported:
            raise UserError(f"{target.name} cannot run {node.op_type} {name}: {support.reason}", support.remedy)
        wanted = pins.type_of(name) or ("int8" if "int8" in support.types else support.types[0])
        if wanted != "float32" and wanted not in support.types:
            allowed = ", ".join(support.types)
            raise UserError(f"{name} ({node.op_type}) cannot be {wanted} on {target.name}", f"it can be {allowed}")
        if wanted == "float32" and "float32" not in support.types and not target.float_nodes:
            raise UserError(f"{target.name} has no float unit for {name} ({node.op_type})", "pin it to int16 instead")
        reason = f"pinned to {wanted}" if pins.type_of(name) else support.reason
        unit = support.unit if wanted in support.types else target.units[-1]
        placement[name] = Placement(unit, wanted, reason)
    narrow = {name for name, verdict in supports.items() if "int16" not in verdict.types}
    return Draft(graph, target, placement, structure(graph, target, placement, narrow), pins)


def read_name(key: str, nodes: Mapping[str, ir.Node]) -> str:
    """Name of the value that a key of :attr:`narrowcast.plan.Plan.edges` reads; empty for an absent operand."""
    node, index = split_edge_key(key)
    value = nodes[node].inputs[index]
    return "" if value is None else str(value.name)


def read_encoding(
    node: ir.Node, index: int, tensors: Mapping[str, Encoding], edges: Mapping[str, Encoding]
) -> Encoding | None:
    """How a node reads an operand: requantized on the edge, or as the tensor is; ``None`` for float and for none."""
    edge = edges.get(edge_key(str(node.name), index))
    value = node.inputs[index]
    return tensors.get(str(value.name)) if edge is None and value is not None else edge


def operand_encoding(
    node: ir.Node, index: int, tensors: Mapping[str, Encoding], edges: Mapping[str, Encoding]
) -> Encoding:
    """As :func:`read_encoding`, for an operand that has to be quantized; refused where it is not."""
    found = read_encoding(node, index, tensors, edges)
    if found is None:
        raise UserError(f"operand {index} of {node.name} is not quantized", "quantize the model again")
    return found


def accumulator_encoding(node: ir.Node, tensors: Mapping[str, Encoding], edges: Mapping[str, Encoding]) -> Encoding:
    """Of an output that leaves as accumulator: scale = input scale * weight scale, channels on axis 1."""
    product = bias_encoding(*(operand_encoding(node, index, tensors, edges) for index in (0, 1)))
    return product if product.axis is None else replace(product, axis=1)


def written_value(
    node: ir.Node, tensors: Mapping[str, Encoding], target: Target, placement: Mapping[str, Placement]
) -> ir.Value | None:
    """The value into whose encoding a sum of products is requantized, ``None`` where it leaves as it is.

    That may be the result of the unit that the node begins, on a chip with fusions."""
    value = node.outputs[0]
    while str(value.name) not in tensors:
        user = only_reader(value)
        if user is None:
            return None
        fused = (node.op_type, user.op_type) in target.fusions and placement[str(user.name)].type != "float32"
        if not fused:
            return None
        node, value = user, user.outputs[0]
    return None if tensors[str(value.name)].dtype == "int32" else value


def draft_again(
    graph: ir.Graph, target: Target, plan: Plan, runtime: str | None = None, wide: Iterable[str] = (), reason: str = ""
) -> Draft:
    """A draft with the types of a plan.

    Args:
        graph: prepared graph.
        target: the chip's rules.
        plan: of the graph.
        runtime: as :func:`draft`.
        wide: names of nodes that get 16 bits instead.
        reason: of those, for the plan.

    Raises:
        UserError: as :func:`draft`.
    """
    types = {name: placement.type for name, placement in plan.nodes.items()}
    drafted = draft(graph, target, ExactPins({**types, **dict.fromkeys(wide, "int16")}), runtime)
    if reason:
        drafted.placement.update({name: replace(drafted.placement[name], reason=reason) for name in wide})
    return drafted


def restricted(plan: Plan, graph: ir.Graph, target: Target) -> Plan:
    """The plan for what is left of its graph; new outputs that are sums of products leave as accumulators."""
    nodes, values = named(graph), all_names(graph)
    tensors = {name: encoding for name, encoding in plan.tensors.items() if name in values}
    for value in graph.outputs:
        node = value.producer()
        if str(value.name) in tensors or node is None or target.outputs.type != "accumulator":
            continue
        if facts(node).is_product and plan.nodes[str(node.name)].type != "float32":
            tensors[str(value.name)] = accumulator_encoding(node, tensors, plan.edges)
    edges = {key: encoding for key, encoding in plan.edges.items() if split_edge_key(key)[0] in nodes}
    return replace(plan, tensors=tensors, edges=edges, nodes={n: p for n, p in plan.nodes.items() if n in nodes})
