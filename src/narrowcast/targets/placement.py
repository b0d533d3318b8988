"""Where every node of a graph runs, and the table that shows it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from narrowcast.targets.schema import Target
from narrowcast.targets.support import Support, support

__all__ = ["CheckRow", "check_rows", "place", "subgraphs"]


@dataclass(frozen=True)
class CheckRow:
    """One line of ``narrowcast check``; columns as ``hb_mapper checker`` prints them, and two more."""

    node: str
    on: str
    subgraph: str
    type: str
    data_type: str
    reason: str
    remedy: str
    supported: bool


def place(graph: ir.Graph, target: Target, runtime: str | None = None) -> dict[str, Support]:
    """Judge every node; passive nodes follow the unit of the node whose bytes they move.

    Args:
        graph: prepared graph.
        target: the chip.
        runtime: version of its runtime; ``None`` for the newest known.

    Returns:
        Node name to verdict, in graph order.
    """
    verdicts: dict[str, Support] = {}
    for node in graph:
        verdict = support(node, target, runtime)
        source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if verdict.supported and source is not None and _moves_bytes(node, target):
            before = verdicts[str(source.name)]
            if before.unit != verdict.unit and before.types == ("float32",):
                verdict = Support(before.unit, ("float32",), f"follows {source.op_type} {source.name}")
        verdicts[str(node.name)] = verdict
    return verdicts


def _moves_bytes(node: ir.Node, target: Target) -> bool:
    """Only what follows a CPU node up to the graph's end stays there; before a quantized consumer it is quantized."""
    if node.op_type not in target.passive:
        return False
    stack = [*node.outputs]
    while stack:
        value = stack.pop()
        for use in value.uses():
            if use.node.op_type not in target.passive:
                return False
            stack.extend(use.node.outputs)
    return True


def subgraphs(graph: ir.Graph, target: Target, verdicts: dict[str, Support]) -> dict[str, str]:
    """Subgraph ids: nodes of the first unit, cut where a node of another unit lies on the way.

    A node's depth is the number of times that a path to it goes from another unit back to the first; nodes of one
    depth form one subgraph. Nodes of other units get ``"--"``.
    """
    first = target.units[0]
    depth: dict[str, int] = {}
    for node in graph:
        deepest = 0
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if producer is None:
                continue
            name = str(producer.name)
            leaves = verdicts[name].unit != first and verdicts[str(node.name)].unit == first
            deepest = max(deepest, depth[name] + (1 if leaves else 0))
        depth[str(node.name)] = deepest
    used = sorted({depth[name] for name, verdict in verdicts.items() if verdict.unit == first})
    number = {level: index for index, level in enumerate(used)}
    return {name: f"id({number[depth[name]]})" if verdict.unit == first else "--" for name, verdict in verdicts.items()}


def check_rows(graph: ir.Graph, target: Target, runtime: str | None = None) -> list[CheckRow]:
    """The table of ``narrowcast check``, one row a node in graph order."""
    verdicts = place(graph, target, runtime)
    ids = subgraphs(graph, target, verdicts)
    rows = []
    for node in graph:
        name = str(node.name)
        verdict = verdicts[name]
        kind = verdict.types[0] if verdict.types else "--"
        rows.append(
            CheckRow(
                name,
                verdict.unit or "--",
                ids[name],
                node.op_type,
                kind,
                verdict.reason,
                verdict.remedy,
                verdict.supported,
            )
        )
    return rows
