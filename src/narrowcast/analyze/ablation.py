"""Quantize parts of the model only, or all but a part."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from narrowcast.analyze.measure import Effect, References, measure
from narrowcast.analyze.regions import BACKBONE, regions
from narrowcast.analyze.resolution import pixels_per_lsb
from narrowcast.analyze.subject import Subject, subplan
from narrowcast.plan.types import Plan

__all__ = ["EVERYTHING", "OUTPUTS", "WEIGHTS", "Ablation", "ablate"]

EVERYTHING, WEIGHTS, ACTIVATIONS, OUTPUTS = "everything", "weights", "activations", "outputs"


@dataclass(frozen=True)
class Ablation:
    """One part.

    Attributes:
        part: e.g. ``"keypoint branch"``.
        only: with nothing quantized but this part.
        without: with everything quantized but this part; ``None`` where that was not asked.
    """

    part: str
    only: Effect
    without: Effect | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        without = self.without.to_dict() if self.without is not None else None
        return {"part": self.part, "only": self.only.to_dict(), "without": without}


def ablate(subject: Subject, references: References, workers: int = 0) -> list[Ablation]:
    """Effect of weights, of activations, of the outputs' own encodings, and of every region of the network.

    Returns:
        Everything first, then as listed; a part that is not quantized at all is left out.
    """
    nodes = list(subject.nodes)
    parts: dict[str, Plan] = {
        EVERYTHING: subject.plan,
        WEIGHTS: subplan(subject, nodes, activations=False),
        ACTIVATIONS: subplan(subject, nodes, weights=False),
        OUTPUTS: _outputs(subject, subject.output_names),
    }
    for kind, names in output_kinds(subject).items():
        parts[f"{kind} {OUTPUTS}"] = _outputs(subject, names)
    where = regions(subject)
    names = [BACKBONE, *sorted(set(where.values()) - {BACKBONE})] if subject.head is not None else []
    members = {name: [node for node in nodes if where[node] == name] for name in names}
    if len(names) > 1:
        head = [node for node in nodes if where[node] != BACKBONE]
        members = {BACKBONE: members[BACKBONE], "head": head, **{n: members[n] for n in names if n != BACKBONE}}
        parts.update({name: subplan(subject, chosen) for name, chosen in members.items()})
    parts = {name: plan for name, plan in parts.items() if plan.tensors or plan.edges}
    only = measure(subject, references, parts, subject.float_graph, title="ablation", workers=workers)
    rest = {
        name: subplan(subject, [node for node in nodes if node not in set(members[name])])
        for name in parts
        if len(names) > 1 and name in members
    }
    without = measure(subject, references, rest, subject.quantized_graph, title="ablation", workers=workers)
    return [Ablation(name, effect, without.get(name)) for name, effect in only.items()]


def output_kinds(subject: Subject) -> dict[str, list[str]]:
    """What outputs say (``"keypoint"``, ...) to their names; empty for a graph without a head."""
    kinds: dict[str, list[str]] = {}
    if subject.head is not None:
        for row in pixels_per_lsb(subject.head, subject.output_encodings):
            kinds.setdefault(row.quantity, []).append(row.name)
    return kinds


def _outputs(subject: Subject, names: Collection[str]) -> Plan:
    """Only the encodings in which some outputs leave."""
    plan = subject.plan
    tensors = {name: encoding for name, encoding in plan.tensors.items() if name in names and encoding.dtype != "int32"}
    return replace(plan, tensors=tensors, edges={})
