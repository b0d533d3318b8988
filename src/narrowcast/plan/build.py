"""Ranges and a target give the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from narrowcast.calibrate.statistics import TensorStatistics
from narrowcast.errors import UserError
from narrowcast.graph.units import constant_of
from narrowcast.plan.parameters import bias_encoding, constant_encoding, weight_encoding
from narrowcast.plan.pins import Pins
from narrowcast.plan.ranging import choose_encoding
from narrowcast.plan.reading import accumulator_encoding, read_encoding, read_name
from narrowcast.plan.structure import ACCUMULATING, Group, Structure, activation_inputs, is_passive, structure
from narrowcast.plan.types import Encoding, Placement, Plan, edge_key
from narrowcast.targets.placement import place
from narrowcast.targets.schema import Target

__all__ = ["Draft", "draft", "finish"]


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
        return {str(node.name): node for node in self.graph}

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


def finish(
    drafted: Draft,
    statistics: Mapping[str, TensorStatistics],
    method: str,
    percentile: float = 99.99,
    chosen: Mapping[int, Encoding] | None = None,
) -> tuple[Plan, list[str]]:
    """Choose every encoding.

    Args:
        drafted: from :func:`draft`.
        statistics: of :meth:`Draft.wanted_statistics`.
        method: calibration method, one of :data:`narrowcast.calibrate.METHODS` or ``"auto"`` (the target's).
        percentile: for that method.
        chosen: encodings already decided, by index of the group in the structure.

    Returns:
        The plan, and notes a person should read.
    """
    target = drafted.target
    method = target.calibration if method == "auto" else method
    tensors: dict[str, Encoding] = {}
    by_group: dict[int, Encoding] = {}
    for index, group in enumerate(drafted.structure.groups):
        encoding = (chosen or {}).get(index) or _group_encoding(group, drafted, statistics, method, percentile)
        by_group[id(group)] = encoding
        tensors.update(dict.fromkeys(group.values, encoding))
    edges = {key: by_group[id(group)] for key, group in drafted.structure.edges.items()}
    edges.update(_type_edges(drafted, tensors, edges, statistics, method, percentile))
    nodes = drafted.nodes_by_name
    edges = {key: value for key, value in edges.items() if value != tensors.get(read_name(key, nodes))}
    notes: list[str] = []
    for node in drafted.graph:
        if drafted.placement[str(node.name)].type != "float32":
            _encode_parameters(node, drafted, tensors, edges, notes)
    for name, producer in drafted.structure.accumulators.items():
        tensors[name] = accumulator_encoding(producer, tensors, edges)
    return Plan(target.name, tensors, edges, dict(drafted.placement)), notes


def _group_encoding(
    group: Group, drafted: Draft, statistics: Mapping[str, TensorStatistics], method: str, percentile: float
) -> Encoding:
    pinned = next((pin for name in group.values if (pin := drafted.pins.tensors.get(name)) is not None), None)
    dtype = pinned.dtype if pinned is not None and pinned.dtype else group.type
    if pinned is not None and pinned.scale is not None:
        return Encoding(dtype, pinned.scale, pinned.zero_point)
    sources = [statistics[name] for name in group.sources]
    return choose_encoding(sources, drafted.target, dtype, method, percentile, group.through)


def _type_edges(
    drafted: Draft,
    tensors: Mapping[str, Encoding],
    edges: Mapping[str, Encoding],
    statistics: Mapping[str, TensorStatistics],
    method: str,
    percentile: float,
) -> dict[str, Encoding]:
    """Where all operands of a node must have its type, an input of another type is requantized on the edge."""
    result: dict[str, Encoding] = {}
    if not drafted.target.uniform_types:
        return result
    for node in drafted.graph:
        wanted = drafted.placement[str(node.name)].type
        if wanted == "float32":
            continue
        for index, value in activation_inputs(node):
            key = edge_key(str(node.name), index)
            current = read_encoding(node, index, tensors, edges)
            if current is None or current.dtype == wanted or drafted.is_passive(node):
                continue
            if wanted == "int16":  # every int8 value is an int16 value of a 256 times finer step
                result[key] = Encoding("int16", float(current.scales) / 256)
            else:
                group = drafted.structure.of[str(value.name)]
                sources = [statistics[name] for name in group.sources]
                result[key] = choose_encoding(sources, drafted.target, "int8", method, percentile)
    return result


def _encode_parameters(
    node: ir.Node, drafted: Draft, tensors: dict[str, Encoding], edges: Mapping[str, Encoding], notes: list[str]
) -> None:
    target = drafted.target
    type_ = drafted.placement[str(node.name)].type
    if node.op_type in ACCUMULATING and constant_of(node.inputs[1]) is not None:
        weight_name = str(node.inputs[1].name)
        dtype = target.weight.type_for(type_)
        pin = drafted.pins.tensors.get(weight_name)
        if pin is not None and pin.scale is not None:
            tensors[weight_name] = Encoding(pin.dtype or dtype, pin.scale, pin.zero_point)
        else:
            tensors[weight_name] = weight_encoding(node, target, dtype)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            _encode_bias(node, type_, target, tensors, edges, notes)
        return
    if node.op_type not in target.constant_operands:
        return
    for value in node.inputs:
        constant = constant_of(value)
        if value is None or constant is None or constant.dtype != np.float32:
            continue
        shared = target.shared.get(node.op_type) == "output"
        output = tensors.get(str(node.outputs[0].name))
        tensors[str(value.name)] = (
            output if shared and output is not None else constant_encoding(constant, target, type_)
        )


def _encode_bias(
    node: ir.Node,
    node_type: str,
    target: Target,
    tensors: dict[str, Encoding],
    edges: Mapping[str, Encoding],
    notes: list[str],
) -> None:
    source, weight, bias = (str(value.name) for value in node.inputs[:3] if value is not None)
    read = read_encoding(node, 0, tensors, edges)
    if read is None:
        raise AssertionError(f"{node.name} is quantized but its input {source} has no encoding")
    tensors[bias] = encoding = bias_encoding(read, tensors[weight])
    values = constant_of(node.inputs[2])
    if values is None:
        raise UserError(f"the bias of {node.name} is computed", "export the model with constant biases")
    bits = target.bias.bits_for(node_type)
    limit = 2 ** (bits - 1)
    beyond = int((np.abs(np.rint(values / encoding.broadcast(1))) > limit - 1).sum())
    if beyond:
        notes.append(f"{node.name}: {beyond} biases exceed {bits} bits and saturate")
