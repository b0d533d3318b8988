"""What the tasks that find objects share: the head of YOLOv8 and YOLO11, and the one decode of it.

Threshold first, then only what survives is decoded: integer outputs are compared with an integer threshold, and only
the survivors are dequantized. What is found in float is also what quantized outputs are judged at: they are read at
the cells that produced the float model's detections, without a second non-maximum suppression, so that the error
changes smoothly with the noise. Noise ratios say little about accuracy: one
step of a keypoint tensor at 39 dB can be 8 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from narrowcast.tasks.errors import Quantity, TaskError
from narrowcast.tasks.maps import maps_of, raw_head
from narrowcast.tasks.task import (
    Cut,
    Ends,
    Family,
    HeadSpec,
    Look,
    Outputs,
    Resolution,
    Rows,
    Task,
    largest,
    thinned,
)  # fmt: skip
from narrowcast.vision.preprocess import Geometry
from narrowcast.vision.reader import OutputEncoding, Reader, non_maximum_suppression
from narrowcast.vision.types import Detections

__all__ = ["Found", "Objects", "Role", "Seen", "distances", "every_cell", "overlaps", "sigmoid"]

#: Candidates that enter non-maximum suppression, at most (as Ultralytics' validation).
MOST_CANDIDATES = 30000
#: Steepest slope of the logistic function, and of the mean of two equally likely neighbouring bins.
STEEPEST = 0.25
#: Least class probability of a cell whose box, keypoints or mask coefficients matter.
LEAST_PROBABILITY = 0.02
#: Least step of a channel, as a share of the largest among the strides.
OTHER_STRIDES = 0.8

BOX_PIXELS = Quantity("box_pixels", 40, "box px", 2, "pixels: how far a box side moves",
                      sentence="{:.2f} pixels of a box side")  # fmt: skip
IOU_LOSS = Quantity("iou_loss", 50, "1 - IoU", 4, "lost box overlap (1 - IoU)", similarity=True, weight=0.5)
PROBABILITY = Quantity("probability", 60, "probability", 4, "of class probability", "prob.",
                       "{:.3f} of a probability", weight=0.25)  # fmt: skip
CANDIDATES = Quantity("candidate_probability", 70, "candidates", 4, "of probability on all candidates", "cand. prob.",
                      by="candidates", weight=0.25)  # fmt: skip
BOXES = Family("box", (IOU_LOSS.name,), "bbox")


@dataclass(frozen=True)
class Found:
    """Cells where something was found, n in number.

    Attributes:
        levels: (n,) number of the stride in the head.
        cells: (n,) row-major index in the map of that stride.
        x, y: (n,) float32 column and row of the cell.
        strides: (n,) float32 input pixels a cell.
        classes: (n,) int64.
        scores: (n,) float32 probability.
    """

    levels: NDArray[np.int64]
    cells: NDArray[np.int64]
    x: NDArray[np.float32]
    y: NDArray[np.float32]
    strides: NDArray[np.float32]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]

    def __getitem__(self, index: NDArray[Any]) -> Found:
        return Found(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.cells)


@dataclass(frozen=True)
class Seen:
    """What the float model finds in one image.

    Attributes:
        found: its detections, best first.
        boxes: (n, 4) float32 xyxy in input pixels, clipped to the input.
        logits: flattened ``cls_s*`` of every stride.
        likely: indices into them that reach the threshold of a candidate.
        candidate_logit: that threshold.
        how: it was looked at.
        extra: what the task adds.
    """

    found: Found
    boxes: NDArray[np.float32]
    logits: list[NDArray[np.float32]]
    likely: list[NDArray[np.int64]]
    candidate_logit: float
    how: Look
    extra: Any = None


@dataclass(frozen=True)
class Role:
    """What an output of a stride says, or one that all strides share.

    Attributes:
        stem: of its name.
        says: in words.
        branch: the part of the head that it comes from.
        parser: its stem in the files that ESP-DL's post-processors read.
        shape: of the channels.
        unit: of what one step is worth.
        step: what it is worth, of the scales of the channels and the stride.
        weights: of squared errors at cells that may be kept, given values, boxes (4 * bins, P) and the head.
        mirror: to the first of ``shape``, what each entry along it is in a mirror.
        steady: few images hold few objects, so that its steps are made to hold for others.
        also: other words for it in the names of exports; the last one is Ultralytics' own module.
    """

    stem: str
    says: str
    branch: str
    parser: str
    shape: Callable[[HeadSpec], tuple[int, ...]]
    unit: str = "raw"
    step: Callable[[HeadSpec, Rows, int], float] = lambda head, scales, stride: float(scales.max())
    weights: Callable[[Rows, NDArray[np.float32], HeadSpec], Rows] = lambda values, boxes, head: np.ones_like(values)
    mirror: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    steady: bool = False
    also: tuple[str, ...] = ()

    def channels(self, head: HeadSpec) -> int:
        """How many."""
        return math.prod(self.shape(head))


def _box_step(head: HeadSpec, scales: Rows, stride: int) -> float:
    """``scale * stride`` pixels, or with bins a quarter: one of two equally likely neighbours moves by a step."""
    return (STEEPEST if head.reg_max > 1 else 1.0) * stride * float(scales.max())


def _class_step(head: HeadSpec, scales: Rows, stride: int) -> float:
    """A quarter of the scale: the steepest slope of the logistic function."""
    return STEEPEST * float(scales.max())


def _box_weights(values: Rows, boxes: NDArray[np.float32], head: HeadSpec) -> Rows:
    """The squared slope of the distance that the softmax over the bins gives."""
    if head.reg_max == 1:
        return np.ones_like(values)
    bins = values.reshape(4, head.reg_max, -1)
    shares = np.exp(bins - bins.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    place = np.arange(head.reg_max, dtype=np.float64)[:, None]
    slope = shares * (place - (shares * place).sum(axis=1, keepdims=True))
    return np.asarray((np.square(slope) + 1e-6).reshape(values.shape))


BOX = Role("box", "box side", "box branch", "box", lambda head: (4, head.reg_max), "pixels", _box_step, _box_weights,
           {4: (2, 1, 0, 3)}, steady=True, also=("bbox", "reg", "cv2"))  # fmt: skip
CLASS = Role("cls", "class", "class branch", "score", lambda head: (head.num_classes,), "probability", _class_step,
             also=("class", "cv3"))  # fmt: skip


def sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logistic function without overflow, float32."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)), np.float32)


def logit(probability: float) -> float:
    """The opposite of :func:`sigmoid`."""
    return -math.log(1 / probability - 1)


def distances(logits: NDArray[np.float32], reg_max: int) -> NDArray[np.float32]:
    """Distribution focal loss decode (Li et al., 2020): expected bin of a softmax.

    Args:
        logits: (4 * reg_max, N).
        reg_max: bins a side.

    Returns:
        (4, N) left, top, right, bottom in cells.
    """
    if reg_max == 1:
        return logits
    bins = logits.reshape(4, reg_max, -1)
    weights = np.exp(bins - bins.max(axis=1, keepdims=True))
    moments = np.stack([np.ones(reg_max), np.arange(reg_max)]).astype(np.float32) @ weights  # sum and first moment
    return np.asarray(moments[:, 1] / moments[:, 0], np.float32)


def overlaps(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """(n,) intersection over union of (n, 4) boxes, pair by pair; 1 where both are empty."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    common = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0).prod(axis=1)
    areas = [np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1) for boxes in (a, b)]
    union = areas[0] + areas[1] - common
    return np.asarray(np.where(union > 0, common / np.maximum(union, 1e-12), 1.0), np.float64)


def every_cell(level: int, stride: int, height: int, width: int) -> Found:
    """All cells of the map of a stride, row-major; of no class and no score."""
    count = height * width
    y, x = (place.astype(np.float32) for place in np.divmod(np.arange(count), width))
    none = np.zeros(count, np.int64)
    return Found(
        np.full(count, level), np.arange(count), x, y, np.full(count, stride, np.float32), none, none.astype(np.float32)
    )


@dataclass(frozen=True)
class Objects(Task):
    """A task that finds objects; a subclass says what there is beside boxes and classes.

    Attributes:
        roles: of the outputs of a stride, boxes and classes first.
        shared: of outputs that all strides share.
    """

    known: ClassVar[bool] = True
    quantities: ClassVar[tuple[Quantity, ...]] = (BOX_PIXELS, IOU_LOSS, PROBABILITY, CANDIDATES)
    families: ClassVar[tuple[Family, ...]] = (BOXES,)
    labels: ClassVar[tuple[str, ...]] = ("--annotations", "ANNOTATIONS.json")
    columns: ClassVar[tuple[str, ...]] = ("class", "score", "left", "top", "right", "bottom")
    tolerances: ClassVar[Mapping[str, float]] = {
        "box px": 0.05, "keypoint px": 0.05, "score": 1e-4, "keypoint score": 1e-4, "mask": 1e-3, "output": 1e-3,
    }  # fmt: skip
    roles: ClassVar[tuple[Role, ...]] = (BOX, CLASS)
    shared: ClassVar[tuple[Role, ...]] = ()

    @property
    def spec(self) -> HeadSpec:
        """The layout of the outputs, which such a task always has."""
        assert self.head is not None
        return self.head

    @classmethod
    def fit(cls, extra: int, ends: Ends, shared: Sequence[int]) -> list[dict[str, Any]] | str | None:
        """What a head says besides, given the channels of its third output.

        Args:
            extra: 0 without a third output.
            ends: of the graph.
            shared: channels of the outputs that all strides share.

        Returns:
            Entries of :class:`HeadSpec`, likely ones first; a clause that says what is wrong, or ``None`` where it is
            another task's.
        """
        return None

    @classmethod
    def usual(cls, head: HeadSpec) -> bool:
        """Whether a head is what exports usually have, so that its shapes alone say what it is."""
        return head.reg_max == HeadSpec.reg_max

    def __post_init__(self) -> None:
        if self.head is None:
            raise ValueError(f"a {self.name} model needs a head")

    @classmethod
    def cut(cls, ends: Ends) -> Cut | str | None:
        maps = maps_of(ends)
        if maps is not None:
            return maps if isinstance(maps, str) else raw_head(cls, maps, ends)
        found = _levels(ends)
        if isinstance(found, str):
            return found
        levels, rows = found
        channels = tuple(shape[1] for _, shape in next(iter(levels.values())))
        if len(channels) not in (2, 3) or channels[0] % 4:
            return f"{len(channels)} last convolutions a stride with {channels} channels fit no known head"
        box, classes, extra = channels[0], channels[1], channels[2] if len(channels) == 3 else 0
        if rows != 4 + classes + extra:
            return f"{rows} output rows fit no head with {channels} channels"
        shared = [output for output in ends.outputs if len(output.shape) == 4]
        fitting = cls.fit(extra, ends, [output.shape[1] for output in shared])
        if fitting is None or isinstance(fitting, str):
            return fitting
        head = HeadSpec(cls.name, tuple(levels), classes, box // 4, **fitting[0])
        stems = [role.stem for role in cls.roles]
        values = {
            f"{stem}_s{stride}": name
            for stride, convolutions in levels.items()
            for stem, (name, _) in zip(stems, convolutions, strict=False)
        }
        return Cut(cls(head), values | ({"proto": shared[0].name} if shared else {}))

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        head = self.spec
        if not head.strides or min(head.strides) < 1:
            raise ValueError(f"a {head.task} head with the strides {head.strides} is not known")
        if min(head.num_classes, head.reg_max) < 1 or head.num_masks < 0:
            raise ValueError("a head has classes and bins")
        self._check_extra(head)
        channels = {role.stem: role.channels(head) for role in self.roles}
        wanted = {f"{stem}_s{stride}": count for stride in head.strides for stem, count in channels.items()}
        wanted |= {role.stem: role.channels(head) for role in self.shared}
        for name, count in wanted.items():
            found = shapes.get(name, ())
            if len(found) != 4 or found[0] != 1 or found[1] != count:
                raise ValueError(f"the head needs the output {name} with {count} channels, it is {found or 'missing'}")
        for stride in head.strides:
            sizes = {shapes[f"{stem}_s{stride}"][2:] for stem in channels}
            if len(sizes) > 1:
                raise ValueError(f"the outputs of the stride {stride} differ in size")

    def _check_extra(self, head: HeadSpec) -> None:
        """That the head has what the task needs and nothing else."""
        if head.keypoint_shape is not None:
            raise ValueError(f"a {head.task} head with keypoints {head.keypoint_shape} is not known")
        if head.num_masks:
            raise ValueError(f"a {head.task} head with {head.num_masks} masks is not known")

    def class_count(self, shapes: Any) -> int:
        return self.spec.num_classes

    def row(self, entry: Mapping[str, Any]) -> tuple[str, ...]:
        return str(entry["class"]), f"{entry['score']:.3f}", *(f"{value:.1f}" for value in entry["box"])

    def decode(  # type: ignore[override]  # an option that nobody knows is a mistake
        self,
        outputs: Outputs,
        geometry: Geometry,
        *,
        encodings: Mapping[str, OutputEncoding] | None = None,
        layout: str = "NCHW",
        confidence: float = 0.25,
        iou: float = 0.7,
        max_detections: int = 300,
        class_agnostic: bool = False,
        multi_label: bool = False,
        masks: bool = True,
        top_k: int | None = None,
    ) -> Detections:
        """Decode raw head outputs of one image.

        Args:
            outputs: by name, (1, C, H, W) or (1, H, W, C); float logits, or integers with ``encodings``.
            geometry: where the image lies in the input.
            encodings: how integer outputs are read.
            layout: ``"NCHW"`` or ``"NHWC"``.
            confidence: least class probability, 0..1 exclusive.
            iou: boxes of a class that overlap more than this are one object.
            max_detections: kept at most, best first.
            class_agnostic: suppress across classes too.
            multi_label: an anchor may be several classes (validation protocol) instead of its best one.
            masks: give the masks of a segmentation model. They are computed when they are used, so this only saves
                keeping the prototypes.
            top_k: of classifiers; does nothing here.

        Returns:
            Detections in pixels of the original image, clipped to it.

        Raises:
            ValueError: an output is missing or has another shape than the head says, an integer output has no encoding,
                or an option is out of range.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"a confidence of {confidence} is outside 0..1")
        reader = Reader(outputs, encodings or {}, layout)
        found = self._candidates(reader, logit(confidence), multi_label)
        found, boxes = self._kept(reader, found, iou, max_detections, None if class_agnostic else found.classes)
        detections = Detections(geometry.undo_boxes(boxes), found.scores, found.classes)
        return self._completed(detections, reader, found, geometry, masks)

    def _completed(
        self, detections: Detections, reader: Reader, found: Found, geometry: Geometry, masks: bool
    ) -> Detections:
        """With what the task finds beside boxes."""
        return detections

    def _candidates(self, reader: Reader, threshold: float, multi_label: bool) -> Found:
        """Cells whose best class logit, or every class logit, reaches the threshold; by stride, then by cell."""
        head, rows = self.spec, []
        for level, stride in enumerate(head.strides):
            name = f"cls_s{stride}"
            classes, cells = reader.at_least(name, head.num_classes, threshold)
            height, width = reader.size(name)
            if multi_label or head.num_classes == 1:
                logits = reader.pick(name, classes, cells)
            else:
                lit = np.zeros(height * width, np.bool_)
                lit[cells] = True
                cells = np.flatnonzero(lit)
                every = reader.take(name, head.num_classes, cells)
                classes = every.argmax(axis=0)
                logits = every[classes, np.arange(len(cells))]
            y, x = np.divmod(cells, width)
            rows.append((np.full(len(cells), level), cells, x, y, np.full(len(cells), stride), classes, logits))
        levels, cells, x, y, strides, classes, logits = (np.concatenate(column) for column in zip(*rows, strict=True))
        x, y, strides = x.astype(np.float32), y.astype(np.float32), strides.astype(np.float32)
        return Found(levels, cells, x, y, strides, classes, sigmoid(logits))

    def _kept(
        self,
        reader: Reader,
        found: Found,
        iou: float,
        most: int,
        classes: NDArray[np.int64] | None,
        limits: NDArray[np.float32] | None = None,
    ) -> tuple[Found, NDArray[np.float32]]:
        """The best of every group of overlapping candidates, best first, and their (n, 4) boxes in input pixels.

        Args:
            reader: of the outputs.
            found: candidates.
            iou: boxes that overlap more than this are one object.
            most: kept at most.
            classes: (n,) only boxes of a class suppress each other; ``None`` for all.
            limits: right and bottom to which boxes are clipped first, twice.
        """
        order = np.argsort(-found.scores, kind="stable")[:MOST_CANDIDATES]
        if len(found) > MOST_CANDIDATES:
            order.sort()
            found, classes = found[order], None if classes is None else classes[order]
            order = np.argsort(-found.scores, kind="stable")
        boxes = self.boxes(reader, found)
        if limits is not None:
            boxes = np.clip(boxes, 0, limits).astype(np.float32)
        kept = non_maximum_suppression(boxes[order], None if classes is None else classes[order], iou, most)
        return found[order[kept]], boxes[order[kept]]

    def gathered(self, reader: Reader, role: Role, found: Found) -> NDArray[np.float32]:
        """(channels, n) float32 values of an output family at the cells."""
        parts = [
            reader.take(f"{role.stem}_s{stride}", role.channels(self.spec), found.cells[found.levels == level])
            for level, stride in enumerate(self.spec.strides)
        ]
        joined = np.concatenate(parts, axis=1)
        if (found.levels[1:] >= found.levels[:-1]).all():
            return joined
        result = np.empty_like(joined)
        result[:, np.argsort(found.levels, kind="stable")] = joined
        return result

    def boxes(self, reader: Reader, found: Found) -> NDArray[np.float32]:
        """(n, 4) xyxy in input pixels."""
        left, top, right, bottom = distances(self.gathered(reader, BOX, found), self.spec.reg_max)
        x, y = found.x + np.float32(0.5), found.y + np.float32(0.5)
        sides = np.stack([x - left, y - top, x + right, y + bottom], axis=1)
        return np.asarray(sides * found.strides[:, None], np.float32)

    def dense(self, outputs: Outputs) -> NDArray[np.float32]:
        """Decode every cell, as the stock export does.

        Args:
            outputs: float raw outputs (1, C, H, W) by name.

        Returns:
            (4 + classes + extra, cells): centre x, centre y, width, height in input pixels; class probabilities; what
            the task adds. Cells by stride, then row-major.
        """
        head, columns = self.spec, []
        for level, stride in enumerate(head.strides):
            box, logits = outputs[f"box_s{stride}"][0], outputs[f"cls_s{stride}"][0]
            found = every_cell(level, stride, *box.shape[1:])
            left, top, right, bottom = distances(box.reshape(len(box), -1), head.reg_max)
            centre = found.x + 0.5 + (right - left) / 2, found.y + 0.5 + (bottom - top) / 2
            rows = [
                np.stack([*centre, left + right, top + bottom]) * stride,
                sigmoid(logits.reshape(head.num_classes, -1)),
            ]
            for role in self.roles[2:]:
                extra = outputs[f"{role.stem}_s{stride}"][0]
                rows.append(self._dense_extra(extra.reshape(len(extra), -1), found))
            columns.append(np.concatenate(rows))
        return np.concatenate(columns, axis=1).astype(np.float32)

    def _dense_extra(self, raw: NDArray[np.float32], found: Found) -> NDArray[np.float32]:
        """The third output of a stride as the stock export writes it."""
        return raw

    def differences(self, expected: Outputs, actual: Outputs) -> dict[str, float]:
        decoded = next((value[0] for value in expected.values() if value.ndim == 3), None)
        if decoded is None:
            raise ValueError("no output holds what the head gives: (1, rows, anchors)")
        rows, first = self.dense(actual), 4 + self.spec.num_classes
        found = {"box px": largest(rows[:4], decoded[:4]), "score": largest(rows[4:first], decoded[4:first])}
        return found | self._extra_differences(rows[first:], decoded[first:], expected, actual)

    def _extra_differences(
        self, rows: NDArray[Any], wanted: NDArray[Any], expected: Outputs, actual: Outputs
    ) -> dict[str, float]:
        """Those of what the task adds, given its dense rows."""
        return {}

    def look(self, reference: Outputs, how: Look) -> Seen:
        reader, limit = Reader(reference, {}, "NCHW"), logit(how.candidate)
        found = self._candidates(reader, logit(how.confidence), False)
        found, boxes = self._kept(reader, found, how.overlap, how.most, found.classes, _limits(how))
        logits = [np.asarray(reference[f"cls_s{stride}"][0], np.float32).reshape(-1) for stride in self.spec.strides]
        likely = [np.flatnonzero(flat >= limit) for flat in logits]
        seen = Seen(found, boxes, logits, likely, limit, how)
        return Seen(found, boxes, logits, likely, limit, how, self._extra_seen(seen, reader))

    def _extra_seen(self, seen: Seen, reader: Reader) -> Any:
        """What the task adds to :class:`Seen`, or to what quantized outputs say at the same cells."""
        return None

    def counts(self, seen: Seen) -> tuple[int, int]:
        return len(seen.found), sum(map(len, seen.likely))

    def error(self, seen: Seen, outputs: Outputs) -> TaskError:
        found = seen.found
        candidates, missed = self._candidate_error(seen, outputs)
        if not len(found):
            return TaskError(0, candidates, 1, {CANDIDATES.name: missed})
        reader = Reader(outputs, {}, "NCHW")
        boxes = np.clip(self.boxes(reader, found), 0, _limits(seen.how)).astype(np.float32)
        logits = self.gathered(reader, CLASS, found)[found.classes, np.arange(len(found))]
        values = {
            BOX_PIXELS.name: float(np.abs(boxes - seen.boxes).mean()),
            IOU_LOSS.name: float(1 - overlaps(seen.boxes, boxes).mean()),
            PROBABILITY.name: float(np.abs(sigmoid(logits) - found.scores).mean()),
            CANDIDATES.name: missed,
        }
        return TaskError(len(found), candidates, 1, values | self._extra_error(seen, reader))

    def _extra_error(self, seen: Seen, reader: Reader) -> dict[str, float]:
        """Errors of what the task adds."""
        return {}

    def _candidate_error(self, seen: Seen, outputs: Outputs) -> tuple[int, float]:
        """How many (class, cell) pairs either graph thinks possible, and their mean probability error."""
        parts = []
        for stride, reference, likely in zip(self.spec.strides, seen.logits, seen.likely, strict=True):
            actual = np.asarray(outputs[f"cls_s{stride}"], np.float32).reshape(-1)
            pairs = np.union1d(likely, np.flatnonzero(actual >= seen.candidate_logit))
            parts.append(np.abs(sigmoid(actual[pairs]) - sigmoid(reference[pairs])))
        errors = np.concatenate(parts)
        return len(errors), float(errors.mean()) if len(errors) else 0.0

    def loss(self, device: str = "cpu") -> Callable[[Mapping[str, Any], Mapping[str, Any]], Any]:
        from narrowcast.tasks.teaching import HeadLoss

        return HeadLoss(self, device)

    def taught_cells(self, new: Any, old: Any, stride: int, cells: Any, sides: Any) -> Any:
        """What finetuning adds to the loss of each cell, (n,) tensors; ``sides`` are the float model's (4, n)."""
        return None

    def taught_whole(self, outputs: Any, teacher: Any, weights: Any) -> Any:
        """What finetuning adds to the loss of all strides together, with the weight of every cell of each."""
        return None

    def _role(self, output: str) -> tuple[Role | None, int | None]:
        """What an output says, and its stride."""
        stem, _, tail = output.partition("_s")
        stride = int(tail) if tail.isdecimal() else None
        known = self.shared if stride is None else self.roles
        return next((role for role in known if role.stem == stem), None), stride

    def resolution(self, encodings: Mapping[str, Any]) -> list[Resolution]:
        rows = []
        for name, encoding in encodings.items():
            role, stride = self._role(name)
            scales = np.atleast_1d(np.asarray(encoding.scale, np.float64))
            if role is None:
                rows += super().resolution({name: encoding})
                continue
            per_step = role.step(self.spec, scales, stride or 1)
            rows.append(Resolution(name, encoding.dtype, stride, role.says, role.unit, per_step))
        return rows

    def branch(self, output: str) -> str:
        role, _ = self._role(output)
        return role.branch if role is not None else output

    def relevant(self, name: str, outputs: Outputs) -> tuple[Rows, Rows]:
        """Class logits: the squared slope of the probability. Of other outputs only the cells that decode may keep
        matter, each by its probability and by what its role says.
        """
        role, stride = self._role(name)
        if role is None or stride is None:
            return super().relevant(name, outputs)
        values = np.asarray(outputs[name][0], np.float64).reshape(outputs[name].shape[1], -1)
        if role is CLASS:
            values = thinned(values)
            chance = sigmoid(values.astype(np.float32)).astype(np.float64)
            return values, np.square(chance * (1 - chance)) + 1e-8
        logits = np.asarray(outputs[f"cls_s{stride}"][0], np.float32).reshape(self.spec.num_classes, -1)
        chance = sigmoid(logits.max(axis=0)).astype(np.float64)
        cells = np.flatnonzero(chance >= LEAST_PROBABILITY)
        boxes = np.asarray(outputs[f"box_s{stride}"][0], np.float32).reshape(4 * self.spec.reg_max, -1)
        values, chance = values[:, cells], chance[cells]
        return values, role.weights(values, boxes[:, cells], self.spec) * chance

    def steady(self, steps: Mapping[str, Rows]) -> dict[str, Rows]:
        """A keypoint beyond its range is off by many steps. In a mirror the left wrist is the right one, and the same
        pose at another size meets another stride. So both sides get the larger step, and no stride gets much less than
        another. On yolo11n-pose, 48 other images, 1 - OKS of these outputs alone: from 9 calibration images 0.027
        without and 0.012 with this, from 33 images 0.0069 and 0.0050, from 45 images 0.0023 and 0.0026.
        """
        result = dict(steps)
        for role in self.roles:
            shape, prefix = role.shape(self.spec), f"{role.stem}_s"
            own = {name: each.reshape(shape) for name, each in steps.items() if name.startswith(prefix)}
            if not role.steady or not own:
                continue
            mirrored = role.mirror.get(shape[0])
            if mirrored is not None:
                own = {name: np.maximum(each, each[list(mirrored)]) for name, each in own.items()}
            least = OTHER_STRIDES * np.max(list(own.values()), axis=0)
            result.update({name: np.maximum(each, least).reshape(-1) for name, each in own.items()})
        return result


def _limits(how: Look) -> NDArray[np.float32]:
    height, width = how.size
    return np.asarray([width, height, width, height], np.float32)


def _levels(ends: Ends) -> tuple[dict[int, list[tuple[str, tuple[int, ...]]]], int] | str:
    """Name and shape of the last convolutions of each stride, ascending, and the rows of the decoded output.

    One clause that says what is wrong where these are not the ends of such a head.
    """
    decoded = [output for output in ends.outputs if len(output.shape) == 3]
    if len(decoded) != 1:
        return "no single decoded output with three axes (1, rows, anchors)"
    rows, anchors = decoded[0].shape[1:]
    if isinstance(decoded[0].convolutions, str):
        return decoded[0].convolutions
    height, width = ends.size
    levels: dict[int, list[tuple[str, tuple[int, ...]]]] = {}
    for name, dims in decoded[0].convolutions:
        if len(dims) != 4 or height % dims[2] or height // dims[2] != width // dims[3] or width % dims[3]:
            return f"{name} has the shape {list(dims)}, which is no whole stride of the input"
        levels.setdefault(height // dims[2], []).append((name, dims))
    levels = dict(sorted(levels.items()))
    cells = sum(each[0][1][2] * each[0][1][3] for each in levels.values())
    if cells != anchors:
        return f"the last convolutions have {cells} cells, the output {anchors} anchors"
    if len({tuple(shape[1] for _, shape in each) for each in levels.values()}) != 1:
        return "the strides differ in their channels"
    return levels, rows
