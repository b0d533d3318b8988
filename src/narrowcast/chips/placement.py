"""Where every node of a graph runs, and the table that shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.chips.schema import Target
from narrowcast.chips.support import Support, support

__all__ = ["CheckRow", "RuntimeRow", "check_rows", "place", "subgraphs"]


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


@dataclass(frozen=True)
class RuntimeRow:
    """What a version of a chip's runtime would refuse or compute wrongly.

    Attributes:
        node: its name; of an input for the model as a whole.
        op_type: operator, ``"Input"`` for an input.
        type: representation that the finding is about, ``"--"`` when it does not matter.
        severity: ``"error"``: it would not run or compute something else; ``"warning"``: it may.
        problem: one clause.
        remedy: what to do.
    """

    node: str
    op_type: str
    type: str
    severity: Literal["error", "warning"]
    problem: str
    remedy: str


def place(
    graph: ir.Graph,
    target: Target,
    runtime: str | None = None,
    wanted: Callable[[str], str | None] | None = None,
) -> dict[str, Support]:
    """Judge every node; passive nodes follow the unit of the node whose bytes they move.

    Args:
        graph: prepared graph.
        target: the chip.
        runtime: version of its runtime; ``None`` for the newest known.
        wanted: node name to the type to which a person pinned it, if any (:meth:`narrowcast.plan.Pins.type_of`).

    Returns:
        Node name to verdict, in graph order.

    Raises:
        UserError: more outputs than the runtime takes.
    """
    most = target.runtime.most_outputs
    if most is not None and len(graph.outputs) > most:
        raise UserError(f"{len(graph.outputs)} outputs are more than the {most} of {target.name}", "concatenate some")
    verdicts: dict[str, Support] = {}
    for node in graph:
        verdict = support(node, target, runtime, wanted(str(node.name)) if wanted is not None else None)
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


def check_rows(
    graph: ir.Graph,
    target: Target,
    runtime: str | None = None,
    wanted: Callable[[str], str | None] | None = None,
) -> list[CheckRow]:
    """The table of ``narrowcast check``, one row a node in graph order, and those that the vendor's tool adds.

    Args:
        graph, target, runtime, wanted: as in :func:`place`.
    """
    verdicts = place(graph, target, runtime, wanted)
    ids = subgraphs(graph, target, verdicts)
    rows = []
    for node in graph:
        name = str(node.name)
        verdict = verdicts[name]
        asked = wanted(name) if wanted is not None else None
        kind = asked if asked in verdict.types else verdict.types[0] if verdict.types else "--"
        rows.append(
            CheckRow(
                name,
                verdict.unit or "--",
                ids[name],
                node.op_type,
                str(kind),
                verdict.reason,
                "" if verdict.supported and verdict.unit == target.units[0] else verdict.remedy,
                verdict.supported,
            )
        )
        if verdict.tail and verdict.unit == target.units[0] and _ends(node, target, verdicts):
            rows.append(_tail_row(node, verdict.tail, target))
    return rows


def _ends(node: ir.Node, target: Target, verdicts: dict[str, Support]) -> bool:
    """Whether nothing of the first unit reads the node."""
    readers = [use.node for output in node.outputs for use in output.uses()]
    return not any(verdicts[str(reader.name)].unit == target.units[0] for reader in readers)


def _tail_row(node: ir.Node, tail: str, target: Target) -> CheckRow:
    name = f"{node.name}_transpose_output_{tail.lower()}"  # as the vendor's tool names it
    reason = f"the tool adds it behind {node.op_type}"
    return CheckRow(name, target.units[-1], "--", tail, "float32", reason, "none needed, it only renames axes", True)
