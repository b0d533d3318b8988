"""Which tensors exist as integers on the chip, and which of them must share one encoding.

The answer depends on the graph, the target's rules and the placement of the nodes, not on any number.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from narrowcast.chips.schema import Target
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.functions import unary_name
from narrowcast.ops.net import computed_inputs, only_reader, readers, scalar_at, written
from narrowcast.plan.types import Placement, edge_key

__all__ = ["Group", "Structure", "is_passive", "is_real", "structure"]

@dataclass
class Group:
    """Tensors that share one encoding.

    Attributes:
        values: their names, in graph order.
        sources: those whose statistics decide the range.
        type: ``"int8"`` or ``"int16"``.
        through: name of the one unary function that reads the tensors, where nothing else does.
    """

    values: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    type: str = "int8"
    through: str | None = None


@dataclass
class Structure:
    """What :func:`structure` finds.

    Attributes:
        groups: in graph order.
        of: value name to its group.
        edges: :func:`~narrowcast.plan.types.edge_key` to the group in whose encoding that input is read.
        accumulators: graph outputs that leave as int32 accumulators, with the producing node.
    """

    groups: list[Group] = field(default_factory=list)
    of: dict[str, Group] = field(default_factory=dict)
    edges: dict[str, Group] = field(default_factory=dict)
    accumulators: dict[str, ir.Node] = field(default_factory=dict)


def is_real(value: ir.Value) -> bool:
    """Whether a value holds real numbers: indices and truth values are what they are, on every chip."""
    return value.dtype in (None, ir.DataType.FLOAT)


def is_passive(node: ir.Node, target: Target) -> bool:
    """Whether the node only moves bytes, so that its output carries its input's encoding.

    So does a Pad with infinity, before a MaxPool: no range holds it, and the least integer of any will do.
    """
    kind = facts(node).kind
    if kind is Kind.PAD and np.isinf(_padded_number(node)):
        return True
    if kind is Kind.RESIZE:
        nearest = node.attributes.get_string("mode", "nearest") == "nearest"
        return nearest and f"{node.op_type}:nearest" in target.passive
    return node.op_type in target.passive


def _padded_number(node: ir.Node) -> float:
    """What a Pad puts around its operand; 0 where it repeats the operand's own values."""
    own = node.attributes.get_string("mode", "constant") != "constant"
    return 0.0 if own else scalar_at(node, 2) or 0.0


def structure(
    graph: ir.Graph, target: Target, placement: Mapping[str, Placement], narrow: Collection[str] = ()
) -> Structure:
    """Group the tensors of a prepared graph.

    Args:
        graph: prepared graph.
        target: the chip's rules.
        placement: of every node.
        narrow: names of nodes that the chip cannot run with 16 bits. One that moves the bytes of a 16-bit tensor
            reads them requantized.
    """
    inner = _inside_units(graph, target, placement)
    values = [value for value in _values(graph) if value not in inner]
    parent: dict[ir.Value, ir.Value] = {value: value for value in values}

    def root(value: ir.Value) -> ir.Value:
        while parent[value] is not value:
            parent[value] = parent[parent[value]]
            value = parent[value]
        return value

    shared: list[tuple[ir.Node, int, ir.Value]] = []
    requantizing: set[ir.Node] = set()
    for node in graph:
        if not all(is_real(value) for value in node.outputs):
            continue
        if is_passive(node, target):
            if node.name in narrow and _is_wide(node.inputs[0], target, placement):
                requantizing.add(node)
                shared.append((node, 0, node.inputs[0]))
                continue
            for output in node.outputs:
                parent[root(output)] = root(node.inputs[0])
        elif target.shared.get(node.op_type) == "output" and placement[node.name or ""].type != "float32":
            for index, value in computed_inputs(node):
                if target.adopt and _may_adopt(value, target, placement):
                    parent[root(value)] = root(node.outputs[0])
                else:
                    shared.append((node, index, value))
    members: dict[ir.Value, list[ir.Value]] = {}
    for value in values:
        members.setdefault(root(value), []).append(value)
    result = Structure()
    for group_values in members.values():
        _add_group(result, group_values, target, placement, requantizing)
    for node, index, value in shared:
        mine, wanted = result.of.get(str(value.name)), result.of.get(str(node.outputs[0].name))
        if mine is not None and wanted is not None and mine is not wanted:
            result.edges[edge_key(str(node.name), index)] = wanted
    return result


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [value for value in [*graph.inputs, *written(graph)] if value.const_value is None and is_real(value)]


def _inside_units(graph: ir.Graph, target: Target, placement: Mapping[str, Placement]) -> set[ir.Value]:
    """Tensors between the nodes of a chain that the chip runs as one unit."""
    chains = {tuple(chain) for chain in target.fusions}
    inner: set[ir.Value] = set()
    for node in graph:
        output = node.outputs[0]
        user = only_reader(output)
        if user is None or len(node.outputs) != 1:
            continue
        quantized = "float32" not in (placement[node.name or ""].type, placement[user.name or ""].type)
        if quantized and (node.op_type, user.op_type) in chains:
            inner.add(output)
    return inner


def _may_adopt(value: ir.Value, target: Target, placement: Mapping[str, Placement]) -> bool:
    """A producer writes directly in its consumer's encoding when nobody else reads it and it can requantize."""
    producer = value.producer()
    return (
        producer is not None
        and not is_passive(producer, target)
        and placement[producer.name or ""].type != "float32"
        and len(list(value.uses())) == 1
        and not value.is_graph_output()
    )


def _is_wide(value: ir.Value | None, target: Target, placement: Mapping[str, Placement]) -> bool:
    """Whether the node whose bytes a tensor holds writes 16 bits."""
    node = value.producer() if value is not None else None
    while node is not None and is_passive(node, target):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node is not None and placement[str(node.name)].type == "int16"


def _add_group(
    result: Structure,
    values: list[ir.Value],
    target: Target,
    placement: Mapping[str, Placement],
    requantizing: Collection[ir.Node],
) -> None:
    producers = [node for value in values if (node := value.producer()) is not None and not is_passive(node, target)]
    consumers = [use.node for value in values for use in value.uses() if not is_passive(use.node, target)]
    quantized_consumers = [node for node in consumers if placement[node.name or ""].type != "float32"]
    quantized_producers = [node for node in producers if placement[node.name or ""].type != "float32"]
    if not quantized_producers and not quantized_consumers:
        return
    leaves = not quantized_consumers
    accumulated = len(producers) == 1 and facts(producers[0]).is_product
    if leaves and target.outputs.type == "float32":
        return
    if leaves and target.outputs.type == "accumulator" and accumulated:
        for value in values:
            if value.is_graph_output() and value.producer() is producers[0]:
                result.accumulators[str(value.name)] = producers[0]
        return
    types = {placement[node.name or ""].type for node in quantized_producers}
    group = Group(
        values=[str(value.name) for value in values],
        sources=[str(value.name) for value in _sources(values, target, requantizing)],
        type="int16" if "int16" in types else "int8",
        through=_only_reader(values, consumers),
    )
    result.groups.append(group)
    for name in group.values:
        result.of[name] = group


def _only_reader(values: list[ir.Value], consumers: list[ir.Node]) -> str | None:
    names = {unary_name(node) for node in consumers}
    name = names.pop() if len(names) == 1 else None
    return None if any(value.is_graph_output() for value in values) else name


def _sources(values: list[ir.Value], target: Target, requantizing: Collection[ir.Node]) -> list[ir.Value]:
    """Passive results repeat their input's values (but for a number padded), a Concat's those of its operands."""
    members = set(values)

    def repeated(value: ir.Value) -> bool:
        producer = value.producer()
        if producer is not None and is_passive(producer, target) and producer not in requantizing:
            return not (facts(producer).kind is Kind.PAD and 0 < abs(_padded_number(producer)) < np.inf)
        users = readers(value)
        return len(users) == 1 and facts(users[0]).kind is Kind.JOIN and users[0].outputs[0] in members

    return [value for value in values if not repeated(value)] or values[:1]
