"""A finished plan with some nodes at 16 bits and everything else as it was."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.calibrate.statistics import TensorStatistics
from narrowcast.chips.schema import Target
from narrowcast.improve.state import State
from narrowcast.ops.net import computed_inputs
from narrowcast.plan import Encoding, Plan, edge_key, replan
from narrowcast.plan.drafting import draft_again, read_encoding, weight_encoding
from narrowcast.plan.structure import ACCUMULATING

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
        drafted = draft_again(self.graph, self.target, self.base, self.runtime, wide, _REASON)
        return replan(drafted, self.base, self.statistics, room=_MARGIN, own_weight=self._own_weight)[0]

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
            for index, value in computed_inputs(node):
                key, name = edge_key(str(node.name), index), str(value.name)
                before = read_encoding(node, index, base.tensors, base.edges)
                widened = not narrow(other.tensors.get(name)) and not narrow(other.edges.get(key))
                if before is not None and narrow(before) and widened and name not in tensors:
                    edges[key] = before
        return replace(base, tensors=tensors, edges=edges)

    def _own_weight(self, node: ir.Node, dtype: str) -> Encoding:
        name = str(node.inputs[1].name)
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
        read = [read_encoding(node, index, plan.tensors, plan.edges) for index, _ in computed_inputs(node)]
        written = plan.tensors.get(str(node.outputs[0].name))
        placement = plan.nodes.get(str(node.name))
        wide = placement is not None and placement.type == "int16"
        if wide or any(each is not None and each.dtype == "int16" for each in (*read, written)):
            found.append(str(node.name))
    return found
