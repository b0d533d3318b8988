"""Which part of a graph is trained, and what it reads from the rest."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.improve.finetune.settings import SCOPES

__all__ = ["Region", "features", "region"]


@dataclass(frozen=True)
class Region:
    """A part of a graph.

    Attributes:
        before: nodes that come first and stay as they are, in graph order.
        trained: the rest, in graph order.
        frontier: values that the second part reads from the first or from the input.
    """

    before: list[ir.Node]
    trained: list[ir.Node]
    frontier: tuple[str, ...]


def region(graph: ir.Graph, outputs: Sequence[str], scope: str) -> Region:
    """Split a graph.

    Args:
        graph: prepared graph.
        outputs: values that the loss reads.
        scope: ``"all"``, or ``"branches"`` for the nodes that serve one output only. What serves several stays, and
            is computed once for each image. With one output both are the same.

    Raises:
        UserError: another scope.
    """
    if scope not in SCOPES:
        raise UserError(f"unknown scope {scope!r}", f"use {' or '.join(SCOPES)}")
    reached: dict[ir.Node, set[str]] = {}
    for node in reversed(list(graph)):
        mine = {str(output.name) for output in node.outputs if output.name in outputs}
        for output in node.outputs:
            for use in output.uses():
                mine |= reached.get(use.node, set())
        reached[node] = mine
    useful = [node for node in graph if reached[node]]
    single = scope == "all" or len(outputs) == 1
    trained = [node for node in useful if single or len(reached[node]) == 1]
    before = [node for node in useful if node not in set(trained)]
    made = {str(output.name) for node in trained for output in node.outputs}
    read = [
        str(value.name) for node in trained for value in node.inputs if value is not None and value.const_value is None
    ]
    return Region(before, trained, tuple(dict.fromkeys(name for name in read if name not in made)))


def features(graph: ir.Graph, known: Container[str], outputs: Sequence[str]) -> tuple[str, ...]:
    """Values inside a graph that several nodes read, in graph order: what every later part depends on.

    Nothing that keeps the float network as it is (equalization, output factors) changes them, so they can be compared
    with the user's model.

    Args:
        graph: prepared graph.
        known: values that the user's model has too.
        outputs: left out.
    """
    return tuple(
        str(output.name)
        for node in graph
        for output in node.outputs
        if len(output.uses()) > 1 and output.name in known and output.name not in outputs
    )
