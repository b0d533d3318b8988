"""Measure sets of nodes at 16 bits in task units, each set once, also across an interruption."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from narrowcast.analyze.incremental import Variant, run_variants
from narrowcast.analyze.subject import Subject
from narrowcast.analyze.task_error import TaskError, combine
from narrowcast.analyze.task_units import TaskJudge
from narrowcast.errors import UserError
from narrowcast.improve.tune_candidates import Costs
from narrowcast.improve.tune_plan import Widener
from narrowcast.progress import track

__all__ = ["OBJECTIVES", "Memo", "TaskMeter", "objective"]

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


class Memo:
    """Measurements in a file of JSON lines, so that an interrupted search goes on from there.

    The first line says what they depend on; a file of other work is started anew. A half-written line ends the usable
    part.

    Args:
        path: the file.
        key: JSON-ready description of everything that the measurements depend on.
    """

    def __init__(self, path: Path, key: dict[str, Any]) -> None:
        self.path = path
        self.digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.known: dict[str, Any] = {}
        self._file: IO[str] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Memo:
        lines = [json.dumps({"key": self.digest})]
        if self.path.exists():
            lines = self._usable(lines)
        partial = self.path.with_name(f"{self.path.name}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            os.replace(partial, self.path)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}", "choose another --out") from error
        return self

    def _usable(self, head: list[str]) -> list[str]:
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        if not lines or lines[0] != f"{head[0]}\n":
            return head
        for line in lines[1:]:
            try:
                name, value = json.loads(line)
            except (ValueError, TypeError):
                break
            if not line.endswith("\n"):
                break
            self.known[name] = value
            head.append(line.rstrip("\n"))
        return head

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """A known value, or one computed now and kept; JSON-ready."""
        if name not in self.known:
            self.put(name, compute())
        return self.known[name]

    def put(self, name: str, value: Any) -> None:
        """Keep a value."""
        with self._lock:
            self.known[name] = value
            if self._file is not None:
                self._file.write(json.dumps([name, value]) + "\n")
                self._file.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            if kind is None:
                self.path.unlink(missing_ok=True)


class TaskMeter:
    """:class:`narrowcast.improve.tune.Meter` by :class:`TaskJudge` on a few images.

    Args:
        widener: makes the plans.
        subject: the network to start from, and the images.
        costs: what the budget counts.
        judge: holds the float outputs of the images.
        memo: where measurements are kept.
        family: of the metric that counts, such as ``"keypoints"``; see :data:`OBJECTIVES`.
        workers: variants at the same time; 0 for one a core.
    """

    def __init__(
        self,
        widener: Widener,
        subject: Subject,
        costs: Costs,
        judge: TaskJudge,
        memo: Memo,
        family: str = "",
        workers: int = 0,
    ) -> None:
        self.widener, self.subject, self.costs = widener, subject, costs
        self.judge, self.inputs, self.memo, self.workers = judge, subject.inputs, memo, workers
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
        if name not in self.memo.known:
            graph = self.widener.state(nodes).lower()[0]
            self._run(graph, {name: lambda: graph}, "measure", len(self.inputs), lambda outputs: outputs)
        return list(self.memo.known[name])

    def _alone(self, sets: Sequence[Nodes], images: int) -> list[Losses]:
        """Loss of the rounding that goes with each set, everything else in float."""
        names = [f"alone {images} {_digest(nodes)}" for nodes in sets]
        missing = {
            name: partial(self._removed, nodes)
            for name, nodes in zip(names, sets, strict=True)
            if name not in self.memo.known
        }
        if missing:
            self._run(self.subject.float_graph, missing, "16 bits", images, self.subject.true_outputs)
        return [self._losses(self.memo.known[name]) for name in names]

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
                self.memo.put(name, [found[name][i].to_dict() for i in range(images)])

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
