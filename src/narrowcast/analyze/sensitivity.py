"""What 16 bits buy: one node at int16, everything else as planned."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from narrowcast.analyze.measure import Effect, References, measure
from narrowcast.analyze.regions import BACKBONE, macs, regions
from narrowcast.analyze.subject import Subject
from narrowcast.base.errors import UserError
from narrowcast.calibrate.statistics import TensorStatistics, collect
from narrowcast.calibrate.unary import unary_name
from narrowcast.plan.drafting import draft_again
from narrowcast.plan.planning import replan
from narrowcast.plan.types import Plan

__all__ = ["Sensitivity", "choose", "sensitivity", "wider_plan"]

@dataclass(frozen=True)
class Sensitivity:
    """One node, or a group of nodes, at 16 bits.

    Attributes:
        name: of the node or the group.
        nodes: what is at 16 bits, activations after convolutions included.
        effect: on the outputs, everything else at 8 bits.
        gain: how much the task loss falls; below 0 where it rises, which is noise of few images.
        cost: share of the model's multiplications that move to 16 bits, 0..1.
        group: more than one convolution.
    """

    name: str
    nodes: tuple[str, ...]
    effect: Effect
    gain: float
    cost: float
    group: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "nodes": list(self.nodes),
            "gain": self.gain,
            "cost": self.cost,
            "group": self.group,
            "effect": self.effect.to_dict(),
        }


def wider_plan(subject: Subject, nodes: Collection[str], statistics: Mapping[str, TensorStatistics]) -> Plan:
    """The plan with some nodes at 16 bits; encodings that need not change stay.

    Args:
        subject: the model.
        nodes: names of the nodes.
        statistics: of every tensor of the graph; 16-bit ranges come from their minimum and maximum.

    Raises:
        UserError: the target cannot.
    """
    drafted = draft_again(subject.model.graph, subject.target, subject.plan, wide=nodes)
    return replan(drafted, subject.plan, statistics)[0]


def sensitivity(
    subject: Subject, references: References, everything: Effect, *, workers: int = 0, threads: int = 0
) -> list[Sensitivity]:
    """What every convolution, and every branch of the head, would gain from 16 bits.

    Args:
        subject: the model and its images.
        references: from :func:`narrowcast.analyze.measure.reference`.
        everything: effect of the plan as it is.
        workers: variants at the same time; 0 for one a core.
        threads: of onnxruntime in the pass that collects ranges.

    Returns:
        Groups first, then nodes in graph order. What the target cannot run at 16 bits is left out.
    """
    graph = subject.model.graph
    names = [str(value.name) for value in graph.inputs]
    names += [str(output.name) for node in graph for output in node.outputs]
    statistics = collect(subject.model_proto, names, subject.inputs, threads=threads)
    groups = _groups(subject)
    candidates = {**groups, **{name: [name] for name in subject.products()}}
    wide = {key: _with_activations(subject, chosen) for key, chosen in candidates.items()}
    plans: dict[str, Plan] = {}
    for key, nodes in wide.items():
        try:
            plans[key] = wider_plan(subject, nodes, statistics)
        except UserError:  # the chip has no 16-bit version of it, so there is nothing to gain
            continue
    effects = measure(subject, references, plans, subject.quantized_graph, title="int16", workers=workers)
    total = max(1, sum(macs(node) for node in graph))
    return [
        Sensitivity(
            key,
            tuple(wide[key]),
            effect,
            everything.task.loss - effect.task.loss,
            sum(macs(subject.nodes[name]) for name in candidates[key]) / total,
            key in groups,
        )
        for key, effect in effects.items()
    ]


def _groups(subject: Subject) -> dict[str, list[str]]:
    """Branches of the head, and the last convolutions of all."""
    if subject.head is None:
        return {}
    where, products = regions(subject), subject.products()
    found = {
        region: [name for name in products if where[name] == region]
        for region in dict.fromkeys(where.values())
        if region != BACKBONE
    }
    makers = [value.producer() for value in subject.model.graph.outputs]
    last = {str(node.name) for node in makers if node is not None}
    found["last convolutions"] = [name for name in products if name in last]
    return {name: nodes for name, nodes in found.items() if nodes}


def _with_activations(subject: Subject, nodes: Sequence[str]) -> list[str]:
    """The nodes, each with the one activation function that follows it."""
    result = []
    for name in nodes:
        result.append(name)
        output = subject.nodes[name].outputs[0]
        users = [use.node for use in output.uses()]
        if len(users) == 1 and unary_name(users[0]) is not None and not output.is_graph_output():
            result.append(str(users[0].name))
    return result


def choose(found: Sequence[Sensitivity], budget: float = 0.1) -> list[Sensitivity]:
    """Nodes by gain per cost while they fit the budget; an estimate, because gains do not simply add up.

    Args:
        found: from :func:`sensitivity`.
        budget: share of the multiplications that may run at 16 bits.
    """
    order = sorted(
        (s for s in found if s.gain > 0 and not s.group), key=lambda s: (-s.gain / max(s.cost, 1e-9), s.name)
    )
    chosen, spent = [], 0.0
    for entry in order:
        if spent + entry.cost <= budget:
            chosen.append(entry)
            spent += entry.cost
    return chosen
