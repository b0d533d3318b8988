"""Effects of parts: quantized alone, left in float, or at 16 bits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from narrowcast.analyze.measure import Effect, measure
from narrowcast.analyze.subject import BACKBONE, Subject, macs, regions, subplan, with_activation
from narrowcast.base.errors import UserError
from narrowcast.calibrate.statistics import TensorStatistics, collect
from narrowcast.ops.net import written
from narrowcast.plan.drafting import draft_again
from narrowcast.plan.planning import replan
from narrowcast.plan.types import Plan
from narrowcast.tasks import TaskJudge

EVERYTHING, WEIGHTS, ACTIVATIONS, OUTPUTS = "everything", "weights", "activations", "outputs"


@dataclass(frozen=True)
class Ablation:
    """A part such as ``"keypoint branch"``: nothing quantized but it, and everything but it (where that was asked)."""

    part: str
    only: Effect
    without: Effect | None = None


def ablate(subject: Subject, judge: TaskJudge, workers: int = 0) -> list[Ablation]:
    """Effect of weights, of activations, of the outputs' own encodings, and of every region; everything comes first.

    A part that is not quantized at all is left out."""
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
    names = [BACKBONE, *sorted(set(where.values()) - {BACKBONE})] if subject.meaning.head is not None else []
    members = {name: [node for node in nodes if where[node] == name] for name in names}
    if len(names) > 1:
        head = [node for node in nodes if where[node] != BACKBONE]
        members = {BACKBONE: members[BACKBONE], "head": head, **{n: members[n] for n in names if n != BACKBONE}}
        parts.update({name: subplan(subject, chosen) for name, chosen in members.items()})
    parts = {name: plan for name, plan in parts.items() if plan.tensors or plan.edges}
    only = measure(subject, judge, parts, subject.float_graph, title="ablation", workers=workers)
    rest = {
        name: subplan(subject, [node for node in nodes if node not in set(members[name])])
        for name in parts
        if len(names) > 1 and name in members
    }
    without = measure(subject, judge, rest, subject.quantized_graph, title="ablation", workers=workers)
    return [Ablation(name, effect, without.get(name)) for name, effect in only.items()]


def output_kinds(subject: Subject) -> dict[str, list[str]]:
    """What outputs say (``"keypoint"``, ...) to their names; empty for a graph without a head."""
    kinds: dict[str, list[str]] = {}
    if subject.meaning.head is not None:
        for row in subject.meaning.resolution(subject.output_encodings):
            kinds.setdefault(row.quantity, []).append(row.name)
    return kinds


def _outputs(subject: Subject, names: Collection[str]) -> Plan:
    """Only the encodings in which some outputs leave."""
    plan = subject.plan
    tensors = {name: encoding for name, encoding in plan.tensors.items() if name in names and encoding.dtype != "int32"}
    return replace(plan, tensors=tensors, edges={})


@dataclass(frozen=True)
class Sensitivity:
    """One node, or a group of nodes, at 16 bits.

    Attributes:
        name: of the node or the group.
        nodes: what is at 16 bits, activations after convolutions included.
        gain: how much the task loss falls; below 0 where it rises, which is noise of few images.
        cost: share of the model's multiplications that move to 16 bits, 0..1.
        group: more than one convolution.
        effect: on the outputs, everything else at 8 bits.
    """

    name: str
    nodes: tuple[str, ...]
    gain: float
    cost: float
    group: bool
    effect: Effect


def wider_plan(subject: Subject, nodes: Collection[str], statistics: Mapping[str, TensorStatistics]) -> Plan:
    """The plan with some nodes at 16 bits; only encodings that have to change are made of ``statistics``."""
    drafted = draft_again(subject.model.graph, subject.target, subject.plan, wide=nodes)
    return replan(drafted, subject.plan, statistics)[0]


def sensitivity(
    subject: Subject, judge: TaskJudge, everything: Effect, *, workers: int = 0, threads: int = 0
) -> list[Sensitivity]:
    """What every convolution, and every branch of the head, would gain from 16 bits.

    Args:
        subject: the model and its images.
        judge: from :func:`narrowcast.analyze.measure.reference`.
        everything: effect of the plan as it is.
        workers: variants at the same time; 0 for one a core.
        threads: of onnxruntime in the pass that collects ranges.

    Returns:
        Groups first, then nodes in graph order. What the target cannot run at 16 bits is left out.
    """
    graph = subject.model.graph
    names = [str(value.name) for value in [*graph.inputs, *written(graph)]]
    statistics = collect(subject.model_proto, names, subject.inputs, threads=threads)
    groups = _groups(subject)
    candidates = {**groups, **{name: [name] for name in subject.products()}}
    wide = {
        key: [each for name in chosen for each in with_activation(subject.nodes[name])]
        for key, chosen in candidates.items()
    }
    plans: dict[str, Plan] = {}
    for key, nodes in wide.items():
        try:
            plans[key] = wider_plan(subject, nodes, statistics)
        except UserError:  # the chip has no 16-bit version of it, so there is nothing to gain
            continue
    effects = measure(subject, judge, plans, subject.quantized_graph, title="int16", workers=workers)
    total = max(1, sum(macs(node) for node in graph))
    return [
        Sensitivity(
            key,
            tuple(wide[key]),
            everything.task.loss - effect.task.loss,
            sum(macs(subject.nodes[name]) for name in candidates[key]) / total,
            key in groups,
            effect,
        )
        for key, effect in effects.items()
    ]


def _groups(subject: Subject) -> dict[str, list[str]]:
    """Branches of the head, and the last convolutions of all."""
    if subject.meaning.head is None:
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


def choose(found: Sequence[Sensitivity], budget: float = 0.1) -> list[Sensitivity]:
    """Nodes by gain per cost while they fit the budget, a share of the multiplications.

    An estimate, because gains do not simply add up."""
    order = sorted(
        (s for s in found if s.gain > 0 and not s.group), key=lambda s: (-s.gain / max(s.cost, 1e-9), s.name)
    )
    chosen, spent = [], 0.0
    for entry in order:
        if spent + entry.cost <= budget:
            chosen.append(entry)
            spent += entry.cost
    return chosen
