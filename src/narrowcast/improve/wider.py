"""A finished plan with some nodes at 16 bits and everything else as it was, and which nodes may go there together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.analyze.subject import macs, with_activation
from narrowcast.base.errors import UserError
from narrowcast.calibrate.statistics import TensorStatistics
from narrowcast.chips.schema import Target
from narrowcast.engine.network import QuantizedNetwork
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.net import computed_inputs, constant_of, leads_to, only_reader, set_constant
from narrowcast.plan import Encoding, Plan, edge_key, replan
from narrowcast.plan.drafting import draft_again, read_encoding, weight_encoding

#: What stands between the two products of an attention.
_SCALING = (Kind.MULTIPLY, Kind.DIVIDE, Kind.SOFTMAX)
#: Room above the range seen, so that other images do not clip: 16 bits have it to spare.
_MARGIN = 1.5
_REASON = "16 bits, by tune"
#: What a budget may count.
BUDGET_UNITS = ("convolutions", "macs")


@dataclass
class Widener:
    """Makes plans with some nodes at 16 bits.

    Attributes:
        start: the graph and the plan to start from; not changed.
        statistics: range of every tensor in float; see :meth:`tensors`.
        runtime: version of the chip's runtime, ``None`` for the newest known.
        uncorrected: weights and biases as they were before they were rounded and corrected for 8 bits, by name, with
            the factors of outputs; a node whose weights widen goes back to them.
    """

    start: QuantizedNetwork
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

    @property
    def target(self) -> Target:
        """The chip's rules."""
        return self.start.target

    def network(self, wide: Collection[str]) -> QuantizedNetwork:
        """The network with these nodes at 16 bits; see :meth:`plan`."""
        plan = self.plan(wide)
        return replace(self.start, model=self._widened(plan), plan=plan)

    def _widened(self, plan: Plan) -> ir.Model:
        """The graph with the own weights of all nodes whose weights widen."""
        names = [
            [str(value.name) for value in node.inputs[1:3] if value is not None]
            for node in self.graph
            if facts(node).is_product and self._widens(node, plan)
        ]
        restored = [name for pair in names for name in pair if name in self.uncorrected]
        if not restored:
            return self.start.model
        copy = self.start.model.clone()
        for name in restored:
            set_constant(copy.graph.initializers[name], self.uncorrected[name])
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
        if not facts(node).is_product:
            continue
        read = [read_encoding(node, index, plan.tensors, plan.edges) for index, _ in computed_inputs(node)]
        written = plan.tensors.get(str(node.outputs[0].name))
        placement = plan.nodes.get(str(node.name))
        wide = placement is not None and placement.type == "int16"
        if wide or any(each is not None and each.dtype == "int16" for each in (*read, written)):
            found.append(str(node.name))
    return found


@dataclass(frozen=True)
class Candidate:
    """Nodes that go to 16 bits together, activations included."""

    name: str
    nodes: frozenset[str]


class Costs:
    """How much of a plan computes at 16 bits: convolutions (and Gemm), or multiplications (``"macs"``)."""

    def __init__(self, graph: ir.Graph, unit: str) -> None:
        self.graph, self.unit = graph, unit
        products = {str(node.name): node for node in graph if facts(node).is_product}
        self._weights = {
            name: (float(facts(node).is_weighted) if unit == "convolutions" else float(macs(node)))
            for name, node in products.items()
        }
        self.total = sum(self._weights.values())

    def of(self, plan: Plan) -> float:
        """Convolutions, or multiplications, at 16 bits."""
        return sum(self._weights[name] for name in wide_products(self.graph, plan))

    def share(self, plan: Plan) -> float:
        """The same as a share of all, 0..1."""
        return self.of(plan) / self.total if self.total else 0.0


def candidates(widener: Widener) -> list[Candidate]:
    """Everything worth trying, groups first, then convolutions in graph order.

    Args:
        widener: of the model.

    Returns:
        Candidates that the target can run at 16 bits, no two with the same nodes.

    Raises:
        UserError: the target can run none of them at 16 bits.
    """
    units = {name: frozenset(with_activation(node)) for name, node in _products(widener).items()}
    found = [*_branches(widener.graph, units), *_attention(widener)]
    found += [Candidate(name, nodes) for name, nodes in units.items()]
    kept: dict[frozenset[str], Candidate] = {}
    for candidate in found:
        if candidate.nodes and candidate.nodes not in kept and _possible(widener, candidate.nodes):
            kept[candidate.nodes] = candidate
    if not kept:
        raise UserError(
            f"{widener.target.name} has no 16-bit convolutions for this model",
            "tune needs a target with int16, such as bayes-e, esp32p4 or onnx",
        )
    return list(kept.values())


def _possible(widener: Widener, nodes: Collection[str]) -> bool:
    """Whether the chip runs these nodes, and the tensors that must follow them, at 16 bits."""
    if "int16" not in widener.target.activation.types:
        return False
    try:
        widener.plan(nodes)
    except UserError:  # a 16-bit version of one of them does not exist
        return False
    return True


def _products(widener: Widener) -> dict[str, ir.Node]:
    """Sums of products with a constant weight that compute in 8 bits."""
    return {
        str(node.name): node
        for node in widener.graph
        if facts(node).is_product
        and constant_of(node.inputs[1]) is not None
        and widener.base.nodes[str(node.name)].type == "int8"
    }


def _branches(graph: ir.Graph, units: dict[str, frozenset[str]]) -> list[Candidate]:
    """For every kind of output: its branch over all strides, the last two and the last convolutions of it."""
    reached = leads_to(graph, [str(value.name) for value in graph.outputs])
    kinds: dict[str, list[list[str]]] = {}
    for value in graph.outputs:
        name = str(value.name)
        own = [unit for unit in units if reached[unit] == {name}]
        if own and len(own) < len(units):
            kinds.setdefault(name.partition("_s")[0], []).append(own)
    result = []
    last: list[str] = []
    for kind, branches in kinds.items():
        last += [own[-1] for own in branches]
        result.append(_union(f"{kind}: whole branch", [name for own in branches for name in own], units))
        result.append(_union(f"{kind}: last two convolutions", [name for own in branches for name in own[-2:]], units))
        result.append(_union(f"{kind}: last convolutions", [own[-1] for own in branches], units))
    return [*result, _union("all last convolutions", last, units)]


def _union(name: str, members: Sequence[str], units: dict[str, frozenset[str]]) -> Candidate:
    return Candidate(name, frozenset().union(*(units[member] for member in members)))


def _attention(widener: Widener) -> list[Candidate]:
    """Each product of two computed operands, with the scaling and the Softmax that alone read it."""
    result = []
    for node in widener.graph:
        name = str(node.name)
        if facts(node).kind is not Kind.MATRIX or constant_of(node.inputs[1]) is not None:
            continue
        names, last = [name], node
        while (reader := only_reader(last.outputs[0])) is not None and facts(reader).kind in _SCALING:
            last = reader
            names.append(str(last.name))
        quantized = [each for each in names if widener.base.nodes[each].type == "int8"]
        if name in quantized:
            result.append(Candidate(name, frozenset(quantized)))
    return result
