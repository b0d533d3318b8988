"""What is trained: a person's settings, the part of the graph, and the scales that may move; none of it needs torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.chips.schema import Target
from narrowcast.ops.net import computed_inputs, leads_to
from narrowcast.plan import Draft, Encoding, Plan, replan
from narrowcast.plan.drafting import draft_again, read_name

#: ``"branches"``: what serves one output only; ``"all"``: every weight.
SCOPES = ("branches", "all")
#: With fewer images there is nothing to judge by.
LEAST_IMAGES = 8


@dataclass(frozen=True)
class Settings:
    """How to finetune.

    Attributes:
        steps: of the optimizer.
        batch: images a step.
        scope: one of :data:`SCOPES`.
        rate: largest change of a weight in a step of the optimizer, in steps of its encoding.
        scale_rate: the same for the binary logarithm of the scales of activations; 0 leaves them as they are.
        vary: show other parts of the images at every visit, larger and smaller, brighter and darker, mirrored.
        checks: how often the result so far is judged.
        seed: of the order of the images and of what is shown of them.
        device: of torch; ``"auto"`` for a GPU where torch sees one.
    """

    steps: int = 200
    batch: int = 4
    scope: str = "all"
    rate: float = 0.01
    scale_rate: float = 0.0
    vary: bool = True
    checks: int = 4
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"{self.steps} steps change nothing", "give 1 or more")
        if self.batch < 1:
            raise UserError(f"a batch of {self.batch} images is empty", "give 1 or more")
        if not 0 < self.rate <= 1:
            raise UserError(f"a rate of {self.rate} is outside 0..1", "use 0.002 to 0.02")
        if not 0 <= self.scale_rate <= 1:
            raise UserError(f"a scale rate of {self.scale_rate} is outside 0..1", "use 0 to 0.01")
        if self.scope not in SCOPES:
            raise UserError(f"unknown scope {self.scope!r}", f"use {' or '.join(SCOPES)}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def require_torch() -> None:
    """Raise now if torch is missing."""
    if importlib.util.find_spec("torch") is None:
        raise UserError("finetune needs torch", "pip install 'narrowcast[finetune]'")


@dataclass(frozen=True)
class Region:
    """A part of a graph: the nodes before it, its own, in graph order, and the values that it reads from outside."""

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
    reached = leads_to(graph, outputs)
    useful = [node for node in graph if reached[str(node.name)]]
    single = scope == "all" or len(outputs) == 1
    trained = [node for node in useful if single or len(reached[str(node.name)]) == 1]
    before = [node for node in useful if node not in set(trained)]
    made = {str(output.name) for node in trained for output in node.outputs}
    read = [str(value.name) for node in trained for _, value in computed_inputs(node)]
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
        """The plan with these scales, one a group, for a graph with other weights; coarser where biases need room."""
        tensors, edges = dict(self.plan.tensors), dict(self.plan.edges)
        for group, scale in zip(self.groups, scales, strict=True):
            for key in group:
                place = edges if key in edges else tensors
                place[key] = replace(place[key], scale=scale)
        return replan(self.drafted.on(graph), replace(self.plan, tensors=tensors, edges=edges))[0]


def tie(graph: ir.Graph, plan: Plan, target: Target, runtime: str | None, trained: Sequence[ir.Node]) -> Tied:
    """Find the scales that may be trained: 8 bits, made and shared by trained nodes only."""
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
