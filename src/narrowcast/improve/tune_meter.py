"""Measure sets of nodes at 16 bits in task units, each set once, also across an interruption."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from narrowcast.analyze.incremental import Variant, run_variants
from narrowcast.analyze.subject import Subject
from narrowcast.analyze.task_error import TaskError, combine
from narrowcast.analyze.task_units import TaskJudge
from narrowcast.base.journal import Journal
from narrowcast.base.progress import track
from narrowcast.improve.tune_candidates import Costs
from narrowcast.improve.tune_plan import Widener

__all__ = ["OBJECTIVES", "TaskMeter", "objective"]

Nodes = frozenset[str]
Losses = tuple[float, ...]
#: What a metric depends on most, of :class:`TaskError`. The error of class probabilities is nearly half of the whole
#: task loss and moves AP little, because only the order of detections counts.
OBJECTIVES = {
    "keypoints": ("oks_loss",),
    "mask": ("mask_iou_loss", "iou_loss"),
    "box": ("iou_loss",),
    "classes": ("divergence",),
}
#: Weight of the whole task loss beside it.
_REST = 0.1
#: One image in so many screens candidates.
SCREEN = 3
#: Sets measured in one go: what an interruption loses.
CHUNK = 24


class TaskMeter:
    """:class:`narrowcast.improve.tune.Meter` by :class:`TaskJudge` on a few images.

    Args:
        widener: makes the plans.
        subject: the network to start from, and the images.
        costs: what the budget counts.
        judge: holds the float outputs of the images.
        journal: where measurements are kept.
        family: of the metric that counts, such as ``"keypoints"``; see :data:`OBJECTIVES`.
        workers: variants at the same time; 0 for one a core.
    """

    def __init__(
        self,
        widener: Widener,
        subject: Subject,
        costs: Costs,
        judge: TaskJudge,
        journal: Journal,
        family: str = "",
        workers: int = 0,
    ) -> None:
        self.widener, self.subject, self.costs = widener, subject, costs
        self.judge, self.inputs, self.journal, self.workers = judge, subject.inputs, journal, workers
        self.parts = OBJECTIVES.get(family, ())
        self._costs: dict[Nodes, float] = {}

    def cost(self, nodes: Nodes) -> float:
        """See :class:`narrowcast.improve.tune.Meter`."""
        if nodes not in self._costs:
            self._costs[nodes] = self.costs.of(self.widener.plan(nodes))
        return self._costs[nodes]

    def loss(self, nodes: Nodes) -> Losses:
        """See :class:`narrowcast.improve.tune.Meter`."""
        return self._losses(self._whole(nodes))

    def error(self, nodes: Nodes) -> TaskError:
        """Error of one set over all images, run as a whole."""
        return combine(_error(entry) for entry in self._whole(nodes))

    def _losses(self, records: Sequence[dict[str, Any]]) -> Losses:
        return tuple(objective(_error(entry), self.parts) for entry in records)

    def losses(self, base: Nodes, sets: Sequence[Nodes]) -> list[Losses]:
        """See :class:`narrowcast.improve.tune.Meter`."""
        start = self.loss(frozenset())
        return [tuple(np.subtract(start, each)) for each in self._alone(sets, len(self.inputs))]

    def screen(self, sets: Sequence[Nodes]) -> list[float]:
        """See :class:`narrowcast.improve.tune.Meter`: a third of the images."""
        return [float(np.mean(each)) for each in self._alone(sets, max(1, len(self.inputs) // SCREEN))]

    def _whole(self, nodes: Nodes) -> list[dict[str, Any]]:
        name = f"whole {_digest(nodes)}"
        if name not in self.journal.known:
            graph = self.widener.state(nodes).lower()[0]
            self._run(graph, {name: lambda: graph}, "measure", len(self.inputs), lambda outputs: outputs)
        return list(self.journal.known[name])

    def _alone(self, sets: Sequence[Nodes], images: int) -> list[Losses]:
        """Loss of the rounding that goes with each set, everything else in float."""
        names = [f"alone {images} {_digest(nodes)}" for nodes in sets]
        missing = {
            name: partial(self._removed, nodes)
            for name, nodes in zip(names, sets, strict=True)
            if name not in self.journal.known
        }
        if missing:
            self._run(self.subject.float_graph, missing, "16 bits", images, self.subject.true_outputs)
        return [self._losses(self.journal.known[name]) for name in names]

    def _removed(self, nodes: Nodes) -> onnx.ModelProto:
        return self.subject.lower(self.widener.removed(nodes))

    def _run(
        self,
        base: onnx.ModelProto,
        graphs: Mapping[str, Callable[[], onnx.ModelProto]],
        title: str,
        images: int,
        read: Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]],
    ) -> None:
        found: dict[str, dict[int, TaskError]] = {name: {} for name in graphs}

        def consume(name: str, index: int, outputs: dict[str, NDArray[Any]], same: set[str]) -> None:
            found[name][index] = self.judge.judge(index, read(outputs))
            if len(found[name]) == images:
                self.journal.put(name, [found[name][i].to_dict() for i in range(images)])

        def shown(variants: Iterable[Variant]) -> Iterable[Variant]:
            return track(variants, title, len(graphs)) if len(graphs) > 1 else variants

        variants = iter(shown([Variant(name, make) for name, make in graphs.items()]))
        while some := list(islice(variants, CHUNK)):
            run_variants(base, some, self.inputs[:images], consume, workers=self.workers)


def objective(error: TaskError, parts: Sequence[str]) -> float:
    """What is made small for one image: the parts, and a tenth of the task loss; the task loss without parts."""
    if not parts:
        return error.loss
    return sum(getattr(error, part) or 0.0 for part in parts) + _REST * error.loss


def _digest(nodes: Nodes) -> str:
    return hashlib.sha256("\n".join(sorted(nodes)).encode()).hexdigest()[:24]


def _error(record: dict[str, Any]) -> TaskError:
    known = {entry.name for entry in fields(TaskError)}
    return TaskError(**{name: value for name, value in record.items() if name in known})
