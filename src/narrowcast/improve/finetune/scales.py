"""Which scales of activations may be trained, and the plan that trained scales give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from narrowcast.graph.units import constant_of
from narrowcast.plan import Draft, Encoding, ExactPins, Plan, draft
from narrowcast.plan.parameters import bias_encoding
from narrowcast.plan.reading import accumulator_encoding, operand_encoding, read_name
from narrowcast.plan.structure import ACCUMULATING
from narrowcast.targets.schema import Target

__all__ = ["Tied", "tie"]


@dataclass(frozen=True)
class Tied:
    """Scales that may move.

    Attributes:
        drafted: structure of the plan.
        plan: to start from, with every requantizing edge written out, also those that now change nothing.
        groups: value names and edge keys that share a scale, one list a scale.
    """

    drafted: Draft
    plan: Plan
    groups: list[list[str]]

    def encodings(self) -> dict[str, Encoding]:
        """Of every key in the groups."""
        return {key: self.plan.edges.get(key) or self.plan.tensors[key] for group in self.groups for key in group}

    def planned(self, scales: Sequence[float]) -> Plan:
        """The plan with these scales, one a group."""
        tensors, edges = dict(self.plan.tensors), dict(self.plan.edges)
        for group, scale in zip(self.groups, scales, strict=True):
            for key in group:
                place = edges if key in edges else tensors
                place[key] = replace(place[key], scale=scale)
        edges = {
            key: value
            for key, value in edges.items()
            if value != tensors.get(read_name(key, self.drafted.nodes_by_name))
        }
        for node in self.drafted.graph:
            _follow(node, tensors, edges)
        for name, node in self.drafted.structure.accumulators.items():
            tensors[name] = accumulator_encoding(node, tensors, edges)
        return replace(self.plan, tensors=tensors, edges=edges)


def tie(graph: ir.Graph, plan: Plan, target: Target, runtime: str | None, trained: Sequence[ir.Node]) -> Tied:
    """Find the scales that may be trained: 8 bits, made and shared by trained nodes only.

    Args:
        graph: prepared graph.
        plan: of it.
        target: of the plan.
        runtime: version of the chip's runtime; ``None`` for the newest known.
        trained: nodes whose values may change.
    """
    types = {name: placement.type for name, placement in plan.nodes.items()}
    drafted = draft(graph, target, ExactPins(types), runtime)
    made = {str(output.name) for node in trained for output in node.outputs}
    structure = drafted.structure
    shared = {key: plan.tensors[group.values[0]] for key, group in structure.edges.items()}
    fixed = {
        read_name(key, drafted.nodes_by_name) for key in plan.edges if key not in shared
    }  # follow the type of their reader
    groups = []
    for group in structure.groups:
        found = {plan.tensors.get(name) for name in group.values}
        encoding = next(iter(found))
        if encoding is None or len(found) > 1 or encoding.axis is not None or encoding.dtype not in ("int8", "uint8"):
            continue
        if made.issuperset(group.values) and fixed.isdisjoint(group.values):
            groups.append([*group.values, *(key for key, other in structure.edges.items() if other is group)])
    return Tied(drafted, replace(plan, edges={**plan.edges, **shared}), groups)


def _follow(node: ir.Node, tensors: dict[str, Encoding], edges: Mapping[str, Encoding]) -> None:
    """The scale of a bias is the product of those of input and weight."""
    if node.op_type not in ACCUMULATING or len(node.inputs) < 3 or node.inputs[2] is None:
        return
    bias = str(node.inputs[2].name)
    if bias in tensors and constant_of(node.inputs[1]) is not None:
        tensors[bias] = bias_encoding(
            operand_encoding(node, 0, tensors, edges), operand_encoding(node, 1, tensors, edges)
        )
