"""What may go to 16 bits together: single convolutions, branches of the head, last convolutions, attention."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from narrowcast.analyze.regions import macs
from narrowcast.base.errors import UserError
from narrowcast.calibrate.unary import unary_name
from narrowcast.improve.tune_plan import Widener, wide_products
from narrowcast.ops.net import constant_of
from narrowcast.plan.structure import ACCUMULATING
from narrowcast.plan.types import Plan

__all__ = ["BUDGET_UNITS", "Candidate", "Costs", "candidates"]

#: What a budget may count.
BUDGET_UNITS = ("convolutions", "macs")


@dataclass(frozen=True)
class Candidate:
    """Nodes that go to 16 bits together.

    Attributes:
        name: of the convolution, or of the group.
        nodes: their names, activations included.
    """

    name: str
    nodes: frozenset[str]


class Costs:
    """How much of a plan computes at 16 bits.

    Args:
        graph: prepared graph.
        unit: ``"convolutions"`` (Conv, ConvTranspose, Gemm) or ``"macs"`` (multiplications, attention included).
    """

    def __init__(self, graph: ir.Graph, unit: str) -> None:
        self.graph, self.unit = graph, unit
        products = {str(node.name): node for node in graph if node.op_type in ACCUMULATING}
        self._weights = {
            name: (float(node.op_type != "MatMul") if unit == "convolutions" else float(macs(node)))
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
    units = {name: _unit(node) for name, node in _products(widener).items()}
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
        if node.op_type in ACCUMULATING
        and constant_of(node.inputs[1]) is not None
        and widener.base.nodes[str(node.name)].type == "int8"
    }


def _unit(node: ir.Node) -> frozenset[str]:
    """A convolution with the activation function that alone reads it."""
    names = [str(node.name)]
    output = node.outputs[0]
    users = [use.node for use in output.uses()]
    if len(users) == 1 and unary_name(users[0]) is not None and not output.is_graph_output():
        names.append(str(users[0].name))
    return frozenset(names)


def _branches(graph: ir.Graph, units: dict[str, frozenset[str]]) -> list[Candidate]:
    """For every kind of output: its branch over all strides, the last two and the last convolutions of it."""
    reached = _reached(graph)
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


def _reached(graph: ir.Graph) -> dict[str, set[str]]:
    """Names of the graph outputs that every node leads to."""
    reached: dict[str, set[str]] = {}
    for node in reversed(list(graph)):
        found: set[str] = set()
        for output in node.outputs:
            if output.is_graph_output():
                found.add(str(output.name))
            for use in output.uses():
                found |= reached[str(use.node.name)]
        reached[str(node.name)] = found
    return reached


def _attention(widener: Widener) -> list[Candidate]:
    """Each product of two computed operands, with the scaling and the Softmax that alone read it."""
    result = []
    for node in widener.graph:
        name = str(node.name)
        if node.op_type != "MatMul" or constant_of(node.inputs[1]) is not None:
            continue
        names, last = [name], node
        while len(users := [use.node for use in last.outputs[0].uses()]) == 1:
            if users[0].op_type not in ("Mul", "Div", "Softmax"):
                break
            last = users[0]
            names.append(str(last.name))
        quantized = [each for each in names if widener.base.nodes[each].type == "int8"]
        if name in quantized:
            result.append(Candidate(name, frozenset(quantized)))
    return result
