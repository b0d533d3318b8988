"""Effects of parts: quantized alone, left in float, or at 16 bits.

And of every tensor that exists as integers: its noise so far, its histogram, and how well its scale fits.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.analyze.measure import Effect, measure
from narrowcast.analyze.subject import BACKBONE, Subject, macs, regions, subplan, with_activation
from narrowcast.base.errors import UserError
from narrowcast.base.progress import track
from narrowcast.calibrate.statistics import BINS, TensorStatistics, collect
from narrowcast.engine.noise import Noise, beside
from narrowcast.ops.net import written
from narrowcast.plan.drafting import draft_again
from narrowcast.plan.planning import replan
from narrowcast.plan.structure import is_passive
from narrowcast.plan.types import Encoding, Plan
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


#: A channel that reaches this many times as far as the median channel is an outlier.
OUTLIER = 8.0
#: Bars of a histogram.
_BARS = 64


@dataclass(frozen=True)
class Tensor:
    """One tensor over all images.

    Attributes:
        name, node, op: of the tensor and of the node that computes it.
        dtype: of its encoding.
        scale: of its encoding; the coarsest channel's.
        low, high: clip points, in the tensor's unit.
        minimum, maximum: of the float values.
        clipped: share of the float values beyond the clip points by more than half a step.
        unused_bits: log2 of the encoding's range over the range that the values fill; below 0 where they are clipped.
        outlier_channels: channels that reach 8 times as far as the median channel, the furthest first.
        own_db: SQNR in dB of quantizing this tensor alone.
        noise: cumulative, everything quantized, against the float tensor.
        edges: (65,) borders of the histogram's bars.
        counts: (64,) float values in each, of a sub-sample.
    """

    name: str
    node: str
    op: str
    dtype: str
    scale: float
    low: float
    high: float
    minimum: float
    maximum: float
    clipped: float
    unused_bits: float
    outlier_channels: tuple[int, ...]
    own_db: float
    noise: Noise
    edges: tuple[float, ...]
    counts: tuple[int, ...]


class _Watch:
    """Collects one tensor."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.statistics = TensorStatistics()
        self.total, self.own = Noise(), Noise()
        self.clipped = self.count = 0

    @property
    def limits(self) -> tuple[float, float]:
        """Clip points in the tensor's unit."""
        e = self.encoding
        scale = float(e.scales.max())
        return (e.qmin - e.zero_point) * scale, (e.qmax - e.zero_point) * scale

    def add(self, expected: NDArray[np.float32], actual: NDArray[Any], index: int) -> None:
        self.total.add(expected, actual)
        scale = self.encoding.broadcast(expected.ndim).astype(np.float32)
        steps = np.rint(expected / scale)
        least, most = self.encoding.qmin - self.encoding.zero_point, self.encoding.qmax - self.encoding.zero_point
        self.clipped += int(np.count_nonzero((steps < least) | (steps > most)))
        self.count += steps.size
        np.clip(steps, least, most, out=steps)
        steps *= scale
        self.own.add(expected, steps)
        self.statistics.add(expected, index * 7919, True)

    def result(self, name: str, node: ir.Node | None) -> Tensor:
        s = self.statistics
        low, high = self.limits
        # a symmetric range that is filled on one side only is not counted as waste: the chip allows no other
        reach = s.maximum - s.minimum
        if self.encoding.zero_point == 0:
            reach = 2 * max(abs(s.minimum), abs(s.maximum))
        edges, counts = _bars(s)
        return Tensor(
            name, str(node.name) if node is not None else "", node.op_type if node is not None else "input",
            self.encoding.dtype, float(self.encoding.scales.max()), low, high, s.minimum, s.maximum,
            self.clipped / max(1, self.count), math.log2((high - low) / reach) if reach > 0 else 0.0, _outliers(s),
            self.own.sqnr_db, self.total, edges, counts,
        )  # fmt: skip


def graphwise(subject: Subject, threads: int = 0) -> list[Tensor]:
    """Cumulative error of every tensor with everything quantized, and how well its encoding fits, in graph order.

    Results of nodes that only move bytes are left out."""
    made = {str(output.name): node for node in subject.model.graph for output in node.outputs}
    image = str(subject.model.graph.inputs[0].name)
    outputs = set(subject.output_names)
    watched: dict[str, _Watch] = {}
    for name in [image, *made]:
        encoding = subject.plan.tensors.get(name)
        if encoding is None or encoding.dtype == "int32":
            continue
        if name in made and is_passive(made[name], subject.target) and name not in outputs:
            continue
        watched[name] = _Watch(encoding)
    names = [name for name in watched if name != image]
    pairs = {name: name if name in outputs else f"{name}_dequantized" for name in names}
    tensors = track(subject.inputs, "graphwise", len(subject.inputs))
    for index, (expected, actual) in enumerate(
        beside(subject.float_graph, subject.quantized_graph, pairs, tensors, threads)
    ):
        if image in watched:
            tensor = subject.inputs[index]
            coded = watched[image].encoding
            expected[image], actual[image] = tensor, coded.dequantize(coded.quantize(tensor))
        for name, watch in watched.items():
            watch.add(np.asarray(expected[name], np.float32), actual[name], index)
    return [watch.result(name, made.get(name)) for name, watch in watched.items()]


def _outliers(statistics: TensorStatistics) -> tuple[int, ...]:
    low, high = statistics.channel_minimum, statistics.channel_maximum
    if low is None or high is None or len(low) < 4:
        return ()
    reach = np.maximum(np.abs(low), np.abs(high))
    typical = float(np.median(reach))
    far = np.flatnonzero(reach > OUTLIER * typical) if typical > 0 else np.zeros(0, np.int64)
    return tuple(int(index) for index in far[np.argsort(-reach[far], kind="stable")])


def _bars(statistics: TensorStatistics) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The histogram between minimum and maximum in a few bars."""
    histogram = statistics.histogram
    low, high = statistics.minimum, statistics.maximum
    if not high > low:
        high = low + 1.0
    borders = np.linspace(low, high, _BARS + 1)
    place = np.clip(((histogram.centers - low) / (high - low) * _BARS).astype(np.int64), 0, _BARS - 1)
    counts = np.zeros(_BARS, np.int64)
    np.add.at(counts, place[:BINS], histogram.counts)
    return tuple(float(v) for v in borders), tuple(int(v) for v in counts)
