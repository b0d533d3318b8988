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
from narrowcast.ops.net import computed_inputs, only_reader, producer, readers, scalar_at, written
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
    return _Grouping(graph, target, placement, narrow).found()


@dataclass
class _Grouping:
    graph: ir.Graph
    target: Target
    placement: Mapping[str, Placement]
    narrow: Collection[str]
    requantizing: set[ir.Node] = field(default_factory=set)
    result: Structure = field(default_factory=Structure)

    def found(self) -> Structure:
        """The groups, by union-find, and the edges between them."""
        parent = {value: value for value in self._values()}

        def root(value: ir.Value) -> ir.Value:
            while parent[value] is not value:
                parent[value] = parent[parent[value]]
                value = parent[value]
            return value

        shared: list[tuple[ir.Node, int, ir.Value]] = []
        for node in self.graph:
            if not all(is_real(value) for value in node.outputs):
                continue
            if self._passive(node):
                if node.name in self.narrow and self._is_wide(node.inputs[0]):
                    self.requantizing.add(node)
                    shared.append((node, 0, node.inputs[0]))
                    continue
                for output in node.outputs:
                    parent[root(output)] = root(node.inputs[0])
            elif self.target.shared.get(node.op_type) == "output" and self._quantized(node):
                for index, value in computed_inputs(node):
                    if self.target.adopt and self._may_adopt(value, self._type(node)):
                        parent[root(value)] = root(node.outputs[0])
                    else:
                        shared.append((node, index, value))
        members: dict[ir.Value, list[ir.Value]] = {}
        for value in parent:
            members.setdefault(root(value), []).append(value)
        for group in members.values():
            self._add(group)
        of = self.result.of
        for node, index, value in shared:
            mine, wanted = of.get(str(value.name)), of.get(str(node.outputs[0].name))
            if mine is not None and wanted is not None and mine is not wanted:
                self.result.edges[edge_key(str(node.name), index)] = wanted
        return self.result

    def _type(self, node: ir.Node) -> str:
        return self.placement[str(node.name)].type

    def _quantized(self, node: ir.Node) -> bool:
        return self._type(node) != "float32"

    def _passive(self, node: ir.Node) -> bool:
        return is_passive(node, self.target)

    def _values(self) -> list[ir.Value]:
        """Computed real values, in graph order, but for those inside a chain that the chip runs as one unit."""
        chains, inner = {tuple(chain) for chain in self.target.fusions}, set()
        for node in self.graph:
            user = only_reader(node.outputs[0])
            if user is None or len(node.outputs) != 1 or (node.op_type, user.op_type) not in chains:
                continue
            if self._quantized(node) and self._quantized(user):
                inner.add(node.outputs[0])
        every = [value for value in [*self.graph.inputs, *written(self.graph)] if value.const_value is None]
        return [value for value in every if is_real(value) and value not in inner]

    def _may_adopt(self, value: ir.Value, kind: str) -> bool:
        """A producer writes directly in its consumer's encoding when nobody else reads it and it can requantize."""
        node = value.producer()
        if node is None or self._passive(node) or not self._quantized(node) or only_reader(value) is None:
            return False
        return self._type(node) == kind or self.target.shared.get(node.op_type) != "output"  # the latter's operands too

    def _is_wide(self, value: ir.Value | None) -> bool:
        """Whether the node whose bytes a tensor holds writes 16 bits."""
        node = producer(value)
        while node is not None and self._passive(node):
            node = producer(node.inputs[0])
        return node is not None and self._type(node) == "int16"

    def _add(self, values: list[ir.Value]) -> None:
        """The group of these tensors, unless they leave as they are."""
        target, result = self.target, self.result
        makers = [node for value in values if (node := value.producer()) is not None and not self._passive(node)]
        consumers = [node for value in values for node in readers(value) if not self._passive(node)]
        leaves = not any(self._quantized(node) for node in consumers)
        types = {self._type(node) for node in makers if self._quantized(node)}
        if leaves and (not types or target.outputs.type == "float32"):
            return
        if leaves and target.outputs.type == "accumulator" and len(makers) == 1 and facts(makers[0]).is_product:
            for value in values:
                if value.is_graph_output() and value.producer() is makers[0]:
                    result.accumulators[str(value.name)] = makers[0]
            return
        functions = {unary_name(node) for node in consumers}
        alone = len(functions) == 1 and not any(value.is_graph_output() for value in values)
        group = Group(
            values=[str(value.name) for value in values],
            sources=[str(value.name) for value in self._sources(values)],
            type="int16" if "int16" in types else "int8",
            through=functions.pop() if alone else None,
        )
        result.groups.append(group)
        result.of.update(dict.fromkeys(group.values, group))

    def _sources(self, values: list[ir.Value]) -> list[ir.Value]:
        """Passive results repeat their input's values (but for a number padded), a Concat's those of its operands."""
        members = set(values)

        def repeated(value: ir.Value) -> bool:
            node = value.producer()
            if node is not None and self._passive(node) and node not in self.requantizing:
                return not (facts(node).kind is Kind.PAD and 0 < abs(_padded_number(node)) < np.inf)
            users = readers(value)
            return len(users) == 1 and facts(users[0]).kind is Kind.JOIN and users[0].outputs[0] in members

        return [value for value in values if not repeated(value)] or values[:1]
