"""Which scales of activations may be trained, and the plan that trained scales give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from narrowcast.chips.schema import Target
from narrowcast.plan import Draft, Encoding, Plan
from narrowcast.plan.drafting import draft_again, read_name
from narrowcast.plan.planning import replan

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

    def planned(self, graph: ir.Graph, scales: Sequence[float]) -> Plan:
        """The plan with these scales, one a group.

        Args:
            graph: with the trained weights and biases.
            scales: trained; where biases and shifts leave them no room, they become coarser.
        """
        tensors, edges = dict(self.plan.tensors), dict(self.plan.edges)
        for group, scale in zip(self.groups, scales, strict=True):
            for key in group:
                place = edges if key in edges else tensors
                place[key] = replace(place[key], scale=scale)
        return replan(self.drafted.on(graph), replace(self.plan, tensors=tensors, edges=edges))[0]


def tie(graph: ir.Graph, plan: Plan, target: Target, runtime: str | None, trained: Sequence[ir.Node]) -> Tied:
    """Find the scales that may be trained: 8 bits, made and shared by trained nodes only.

    Args:
        graph: prepared graph.
        plan: of it.
        target: of the plan.
        runtime: version of the chip's runtime; ``None`` for the newest known.
        trained: nodes whose values may change.
    """
    drafted = draft_again(graph, target, plan, runtime)
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
