"""A finished plan with some nodes at 16 bits and everything else as it was.

Planning again from statistics would move ranges that calibration chose with care. So every encoding is taken from the
plan, and only what changes its type is made anew: a 16-bit tensor takes the whole range that float needs, a 16-bit
weight its own least-error scale, and a bias the product of the scales around it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.calibrate.statistics import TensorStatistics
from narrowcast.improve.state import State
from narrowcast.plan import Draft, Encoding, ExactPins, Plan, draft, edge_key
from narrowcast.plan.following import follow
from narrowcast.plan.parameters import weight_encoding
from narrowcast.plan.ranging import choose_encoding
from narrowcast.plan.reading import read_encoding
from narrowcast.plan.structure import ACCUMULATING, Group, activation_inputs
from narrowcast.targets.schema import Target

__all__ = ["Widener", "wide_products"]

#: Room above the range seen, so that other images do not clip: 16 bits have it to spare.
_MARGIN = 1.5
_REASON = "16 bits, by tune"


@dataclass
class Widener:
    """Makes plans with some nodes at 16 bits.

    Attributes:
        start: the graph and the plan to start from; not changed.
        target: the chip's rules.
        statistics: range of every tensor in float; see :meth:`tensors`.
        runtime: version of the chip's runtime, ``None`` for the newest known.
        uncorrected: weights and biases as they were before they were rounded and corrected for 8 bits, by name, with
            the factors of outputs; a node whose weights widen goes back to them.
    """

    start: State
    target: Target
    statistics: Mapping[str, TensorStatistics]
    runtime: str | None = None
    uncorrected: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    _weights: dict[str, Encoding] = field(default_factory=dict)

    @property
    def graph(self) -> ir.Graph:
        """The prepared graph."""
        return self.start.model.graph

    @property
    def base(self) -> Plan:
        """The plan to start from."""
        return self.start.plan

    def state(self, wide: Collection[str]) -> State:
        """The network with these nodes at 16 bits; see :meth:`plan`."""
        start, plan = self.start, self.plan(wide)
        return State(self._widened(plan), plan, start.notes, start.factors, changed=start.changed)

    def _widened(self, plan: Plan) -> ir.Model:
        """The graph with the own weights of all nodes whose weights widen."""
        names = [
            [str(value.name) for value in node.inputs[1:3] if value is not None]
            for node in self.graph
            if node.op_type in ACCUMULATING and self._widens(node, plan)
        ]
        restored = [name for pair in names for name in pair if name in self.uncorrected]
        if not restored:
            return self.start.model
        copy = self.start.model.clone()
        for name in restored:
            copy.graph.initializers[name].const_value = ir.tensor(self.uncorrected[name], name=name)
        return copy

    def _widens(self, node: ir.Node, plan: Plan) -> bool:
        name = str(node.inputs[1].name) if node.inputs[1] is not None else ""
        before, after = self.base.tensors.get(name), plan.tensors.get(name)
        return before is not None and after is not None and before.dtype != after.dtype

    @staticmethod
    def tensors(graph: ir.Graph) -> list[str]:
        """Names of the tensors whose range may be needed: everything that is computed, and the input."""
        computed = [value for node in graph for value in node.outputs if value.dtype in (None, ir.DataType.FLOAT)]
        return [str(value.name) for value in [*graph.inputs, *computed]]

    def plan(self, wide: Collection[str]) -> Plan:
        """The plan with these nodes at 16 bits.

        Args:
            wide: node names.

        Returns:
            A plan whose other encodings are those of :attr:`base`; :attr:`base` itself for no nodes.

        Raises:
            UserError: a node that the chip cannot run with 16 bits.
        """
        if not wide:
            return self.base
        types = {name: placement.type for name, placement in self.base.nodes.items()}
        pins = ExactPins({**types, **dict.fromkeys(wide, "int16")})
        drafted = draft(self.graph, self.target, pins, self.runtime)
        tensors = dict(self.base.tensors)
        encodings = {id(group): self._encoding(group) for group in drafted.structure.groups}
        for group in drafted.structure.groups:
            tensors.update(dict.fromkeys(group.values, encodings[id(group)]))
        edges = {key: encodings[id(group)] for key, group in drafted.structure.edges.items()}
        edges.update(self._type_edges(drafted, tensors, edges))
        follow(drafted, tensors, edges, self._weight)
        nodes = {
            name: self.base.nodes[name] if kind == placement.type else replace(placement, reason=_REASON)
            for (name, kind), placement in zip(types.items(), drafted.placement.values(), strict=True)
        }
        return replace(self.base, tensors=tensors, edges=edges, nodes=nodes)

    def removed(self, wide: Collection[str]) -> Plan:
        """The rounding that goes when these nodes get 16 bits, and nothing else; a partial plan of the same graph.

        That is the rounding of their weights where these widen too, and of what is read at 16 bits instead of 8. A
        tensor that 8-bit nodes go on reading is rounded for them as before; what 8-bit nodes wrote stays 8 bits fine.
        """
        base, other = self.base, self.plan(wide)

        def narrow(encoding: Encoding | None) -> bool:
            return encoding is not None and encoding.dtype in ("int8", "uint8")

        tensors = {}
        for value in [*self.graph.initializers.values(), *self.graph.outputs]:
            name = str(value.name)
            before, after = base.tensors.get(name), other.tensors.get(name)
            if before is not None and narrow(before) and after is not None and not narrow(after):
                tensors[name] = before
        edges = {}
        for node in self.graph:
            for index, value in activation_inputs(node):
                key, name = edge_key(str(node.name), index), str(value.name)
                before = read_encoding(node, index, base.tensors, base.edges)
                widened = not narrow(other.tensors.get(name)) and not narrow(other.edges.get(key))
                if before is not None and narrow(before) and widened and name not in tensors:
                    edges[key] = before
        return replace(base, tensors=tensors, edges=edges)

    def _encoding(self, group: Group) -> Encoding:
        """The plan's encoding where the type stays, else the float range of all members."""
        known = [self.base.tensors[name] for name in group.values if name in self.base.tensors]
        same = [encoding for encoding in known if encoding.dtype == group.type]
        if same:
            return same[0]
        sources = [self.statistics[name] for name in group.sources]
        found = choose_encoding(sources, self.target, group.type, "minmax", through=group.through)
        if group.type == "int16" and self.target.activation.scale == "free":
            return replace(found, scale=float(found.scales) * _MARGIN)
        return found

    def _type_edges(
        self, drafted: Draft, tensors: Mapping[str, Encoding], edges: Mapping[str, Encoding]
    ) -> dict[str, Encoding]:
        """Operands of another type than their node's, on targets where they must have it."""
        result: dict[str, Encoding] = {}
        for node in self.graph if self.target.uniform_types else ():
            wanted = drafted.placement[str(node.name)].type
            if wanted == "float32" or drafted.is_passive(node):
                continue
            for index, value in activation_inputs(node):
                key = edge_key(str(node.name), index)
                current = read_encoding(node, index, tensors, edges)
                if current is None or current.dtype == wanted:
                    continue
                if wanted == "int16":  # every int8 value is an int16 value of a 256 times finer step
                    result[key] = Encoding("int16", float(current.scales) / 256)
                else:
                    result[key] = self._narrow(key, value, drafted)
        return result

    def _narrow(self, key: str, value: ir.Value, drafted: Draft) -> Encoding:
        """How 8-bit readers see a 16-bit tensor: as it was in 8 bits."""
        name = str(value.name)
        before = self.base.edges.get(key, self.base.tensors.get(name))
        if before is not None and before.dtype == "int8":
            return before
        sources = drafted.structure.of[name].sources
        return choose_encoding([self.statistics[each] for each in sources], self.target, "int8", "minmax")

    def _weight(self, node: ir.Node, dtype: str) -> Encoding:
        name = str(node.inputs[1].name)
        before = self.base.tensors.get(name)
        if before is not None and before.dtype == dtype:
            return before
        if name not in self._weights:
            self._weights[name] = weight_encoding(node, self.target, dtype, self.uncorrected.get(name))
        return self._weights[name]


def wide_products(graph: ir.Graph, plan: Plan) -> list[str]:
    """Names of the sums of products with a constant weight that compute at 16 bits, in graph order.

    Such a node is pinned to 16 bits, or reads or writes a 16-bit tensor: the chip then runs its 16-bit kernel. Nodes
    with two computed operands (MatMul of attention) count too.
    """
    found = []
    for node in graph:
        if node.op_type not in ACCUMULATING:
            continue
        read = [read_encoding(node, index, plan.tensors, plan.edges) for index, _ in activation_inputs(node)]
        written = plan.tensors.get(str(node.outputs[0].name))
        placement = plan.nodes.get(str(node.name))
        wide = placement is not None and placement.type == "int16"
        if wide or any(each is not None and each.dtype == "int16" for each in (*read, written)):
            found.append(str(node.name))
    return found
