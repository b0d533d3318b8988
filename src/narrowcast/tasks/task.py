"""What the outputs of a model mean. This file is of outputs that nobody knows; every other task is a file beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from narrowcast.tasks.errors import QUANTITIES, Quantity, TaskError, as_reals
from narrowcast.vision.preprocess import Geometry
from narrowcast.vision.reader import OutputEncoding
from narrowcast.vision.types import Result

Outputs = Mapping[str, NDArray[Any]]
Rows = NDArray[np.float64]
_Some = TypeVar("_Some", bound="type[Task]")


@dataclass(frozen=True)
class HeadSpec:
    """Layout of raw outputs ``box_s8, cls_s8, kpt_s8 | mask_s8, ..., proto``.

    Attributes:
        task: name of the task.
        strides: input pixels a cell, ascending.
        num_classes: channels of ``cls_s*``, logits.
        reg_max: bins of each box side in ``box_s*`` (4 * reg_max channels); 1 means plain distances.
        keypoint_shape: (keypoints, 2 or 3 values) of ``kpt_s*``, or ``None``.
        num_masks: coefficients in ``mask_s*`` and channels of ``proto``; 0 without masks.
    """

    task: str
    strides: tuple[int, ...]
    num_classes: int
    reg_max: int = 16
    keypoint_shape: tuple[int, int] | None = None
    num_masks: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        data = asdict(self)
        data["strides"] = list(self.strides)
        data["keypoint_shape"] = list(self.keypoint_shape) if self.keypoint_shape else None
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HeadSpec:
        """The opposite of :meth:`to_dict`."""
        shape = data.get("keypoint_shape")
        values = {**data, "strides": tuple(data["strides"]), "keypoint_shape": tuple(shape) if shape else None}
        return cls(**values)


@dataclass(frozen=True)
class Tail:
    """One output of a graph.

    Attributes:
        name, shape: of the output.
        operator: of the node that writes it; empty without one.
        convolutions: name and shape of what the convolutions give that are first met when walking back, in the order of
            the operands; one clause that says why there are none.
        source: tensor before a last Transpose that puts the channels last; without one, the output.
        maker: operator that writes ``source``; empty without one.
        layout: of the output, where the nodes before it say it: ``"NCHW"`` or ``"NHWC"``, else empty.
        words: names of the output and of the nodes that lead to it alone.
    """

    name: str
    shape: tuple[int, ...]
    operator: str
    convolutions: tuple[tuple[str, tuple[int, ...]], ...] | str
    source: str
    maker: str
    layout: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Ends:
    """What a task is recognised by.

    Attributes:
        size: height and width of the input.
        outputs: in order.
        task: that the file or the person says; empty where nobody says one.
        keypoint_shape: (keypoints, 2 or 3) where somebody says it.
        classes: how many, where the file says it; else 0.
        named: what the person says of outputs: name in :class:`HeadSpec` to the name in the file.
    """

    size: tuple[int, int]
    outputs: tuple[Tail, ...]
    task: str = ""
    keypoint_shape: tuple[int, int] | None = None
    classes: int = 0
    named: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """An output of the user's graph that is raw already; ``last``: its channels are the last axis."""

    name: str
    last: bool


@dataclass(frozen=True)
class Cut:
    """A recognised head.

    Attributes:
        task: what remains means.
        values: new output name to the tensor at which the graph is cut.
        given: of a head that was cut off before, new output name to the user's output.
    """

    task: Task
    values: dict[str, str]
    given: dict[str, Given] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """Metrics that are computed together.

    Attributes:
        name: e.g. ``"keypoints"``.
        objective: quantities of the error that the first metric depends on most. The error of class probabilities is
            nearly half of a loss and moves AP little, because only the order of detections counts.
        coco: what COCO's scorer calls it; empty where there is one class an image.
        field, things: what annotations need for it, and its plural in a sentence; empty for boxes, which all have.
    """

    name: str
    objective: tuple[str, ...] = ()
    coco: str = ""
    field: str = ""
    things: str = ""


@dataclass(frozen=True)
class Look:
    """How the float model's outputs are looked at.

    Attributes:
        size: height and width of the model input in pixels; boxes are clipped to it.
        confidence: least probability of what counts as found by the float model.
        candidate: least probability, float or quantized, of a cell whose class probability is compared.
        most: detections an image at most.
        overlap: above which two boxes of a class are one object; 1 keeps every cell that is sure enough, which gives
            several times as many samples of the same image.
    """

    size: tuple[int, int]
    confidence: float = 0.15
    candidate: float = 0.1
    most: int = 60
    overlap: float = 0.7


class _Scaled(Protocol):
    @property
    def dtype(self) -> str: ...
    @property
    def scale(self) -> Any: ...


@dataclass(frozen=True)
class Resolution:
    """What one step of an output's encoding is worth.

    Attributes:
        name: of the output.
        dtype: of its encoding.
        stride: input pixels a cell, ``None`` where it has none.
        quantity: what the output says, e.g. ``"keypoint"``.
        unit: ``"pixels"``, ``"probability"`` or ``"raw"``.
        per_lsb: what one step is worth in that unit; with a scale a channel, the coarsest channel's.
    """

    name: str
    dtype: str
    stride: int | None
    quantity: str
    unit: str
    per_lsb: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


NOISE = Quantity("noise_ratio", 90, "noise/signal", 5, "noise-to-signal ratio of the outputs", "-",
                 "a noise-to-signal ratio of {:.2g}", by="images", alone=True)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What a model's outputs mean; of this one, nothing is known but their noise.

    A subclass says what is different. The class attributes are the answers that need no model.

    Attributes:
        head: layout of the raw outputs, ``None`` for a whole graph.
        softmax_missing: class scores leave as logits.
        name: in manifests and on the command line.
        known: results can be read from the outputs.
        kept: why the graph stays whole, for a note; empty where a head is cut off.
        kind: in words, for a note on a head that was recognised.
        one_answer: it says one thing of an image, which one label can score.
        resize: how images become model inputs, unless the file says.
        last: operator at the end without which errors are judged, where it stands there.
        quantities: that its errors are measured by, in the order of JSON.
        families: of its metrics, the one that the task is judged by first.
        labels: option of the command line that names labels, and a file for it; empty where nothing can be scored.
        counted: what :attr:`TaskError.detections` counts, in words.
        sample: embedded sample whose images suit it.
        columns: headings of a table of results.
        judged: cells of an image that are looked at when steps of recovery are chosen, at most. Every cell that decode
            might keep counts, not only the best of each object: a few images hold too few objects to tell methods
            apart.
        parsers: what vendors' programs call the parser of such outputs, by program.
        tolerances: largest difference allowed to the user's graph, by quantity: pixels of the model input, probability,
            and for other outputs a share of their largest value. float32 sums in another order differ by about 1e-6.
    """

    head: HeadSpec | None = None
    softmax_missing: bool = False

    name: ClassVar[str] = "generic"
    known: ClassVar[bool] = False
    kept: ClassVar[str] = ""
    kind: ClassVar[str] = ""
    one_answer: ClassVar[bool] = False
    resize: ClassVar[str] = "letterbox"
    last: ClassVar[str] = ""
    quantities: ClassVar[tuple[Quantity, ...]] = (NOISE,)
    families: ClassVar[tuple[Family, ...]] = ()
    labels: ClassVar[tuple[str, ...]] = ()
    counted: ClassVar[str] = "objects that the float model finds"
    sample: ClassVar[str] = "pose"
    columns: ClassVar[tuple[str, ...]] = ()
    judged: ClassVar[int] = 300
    parsers: ClassVar[Mapping[str, str]] = {}
    tolerances: ClassVar[Mapping[str, float]] = {"output": 1e-3}

    @classmethod
    def cut(cls, ends: Ends) -> Cut | str | None:
        """The head at the end of a graph; one clause that says why there is none; ``None`` for a task without heads."""
        return None

    @classmethod
    def whole(cls, ends: Ends) -> Task | None:
        """The task of a graph that stays whole, ``None`` where it is not this one."""
        return None

    def record(self) -> dict[str, Any]:
        """What a file keeps of it, see :func:`narrowcast.tasks.meaning_of`; JSON-ready but for the head."""
        return {"task": self.name, "head": self.head, "softmax_missing": self.softmax_missing}

    def without(self, operator: str) -> Task:
        """What the outputs mean when that operator was taken off the end."""
        return replace(self, softmax_missing=True) if operator and operator == self.last else self

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Compare with outputs.

        Args:
            shapes: of the outputs, by name; maps are (1, C, H, W).

        Raises:
            ValueError: a head that does not exist, an output that is missing or has another shape.
        """
        if self.head is not None:
            raise ValueError(f"a {self.name} model has no head")

    @property
    def metrics(self) -> dict[str, tuple[str, str]]:
        """What a person may call a metric, with its family and name in a report; the usual one first."""
        return {f"{family.name}.{name}": (family.name, name) for family in self.families for name in _PRECISIONS}

    @property
    def points(self) -> int:
        """Keypoints of an object."""
        return 0

    @property
    def skeleton(self) -> tuple[tuple[int, int], ...]:
        """Limbs as pairs of keypoints, where they are known."""
        return ()

    def class_count(self, shapes: Sequence[tuple[int, ...]]) -> int:
        """How many classes are told apart, given the shapes of the outputs; 0 where there are none."""
        return 0

    def decode(
        self,
        outputs: Outputs,
        geometry: Geometry,
        *,
        encodings: Mapping[str, OutputEncoding] | None = None,
        layout: str = "NCHW",
        **options: Any,
    ) -> Result:
        """The result of one image.

        Args:
            outputs: by name, as the graph gives them; integers with ``encodings``.
            geometry: where the image lies in the input.
            encodings: how integer outputs are read.
            layout: of maps, ``"NCHW"`` or ``"NHWC"``.
            options: of the task; those of other tasks do nothing.

        Raises:
            ValueError: nothing is known of the outputs, or they are not what the task says.
        """
        raise ValueError("the outputs of this model are not known")

    def row(self, entry: Mapping[str, Any]) -> tuple[str, ...]:
        """Cells below :attr:`columns` of one entry of a result."""
        return ()

    def answer(self, entry: Mapping[str, Any]) -> Any:
        """Of a result's :meth:`summary`, what graphs agree on or not; for tasks with one label an image."""
        return None

    def summary(self, result: Result) -> dict[str, Any]:
        """What evaluation keeps of a result, JSON-ready; for tasks with one label an image."""
        raise ValueError(f"a {self.name} model gives no answer an image")

    def scores(self, entries: Sequence[Mapping[str, Any]], labels: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Metric to the value of each image, given summaries and labels; the first metric is what counts."""
        return {}

    def differences(self, expected: Outputs, actual: Outputs) -> dict[str, float]:
        """Largest absolute differences to what the user's graph gives, by quantity (:attr:`tolerances`)."""
        pairs = zip(expected.values(), actual.values(), strict=True)
        return {"output": max(relative(x, y) for x, y in pairs)}

    def look(self, reference: Outputs, how: Look) -> Any:
        """What the float model says of one image, as :meth:`error` takes it."""
        return reference

    def counts(self, seen: Any) -> tuple[int, int]:
        """Objects and candidates that :meth:`look` found."""
        return 1, 0

    def error(self, seen: Any, outputs: Outputs) -> TaskError:
        """Error of one image.

        Args:
            seen: from :meth:`look`.
            outputs: quantized outputs as float32, by the same names and in the same shapes.
        """
        ratios = []
        for name, expected in seen.items():
            x, y = (values.astype(np.float64) for values in as_reals(expected, outputs[name]))
            ratios.append(float(np.square(y - x).sum() / (np.square(x).sum() + 1e-7)))
        return TaskError(0, 0, 1, {NOISE.name: float(np.mean(ratios))})

    def loss(self, device: str = "cpu") -> Callable[[Mapping[str, Any], Mapping[str, Any]], Any]:
        """The error of one image as finetuning takes it, differentiable in torch: of outputs and the float model's."""
        from narrowcast.tasks import teaching

        return teaching.noise

    def resolution(self, encodings: Mapping[str, _Scaled]) -> list[Resolution]:
        """What one step of every output's encoding is worth, in the order of ``encodings``."""
        return [Resolution(n, e.dtype, None, "value", "raw", float(np.max(e.scale))) for n, e in encodings.items()]

    def branch(self, output: str) -> str:
        """The part of the head that an output comes from."""
        return output

    def relevant(self, name: str, outputs: Outputs) -> tuple[Rows, Rows]:
        """Values of an output in one image, and the weight of a squared error of each; (C, P) both.

        Args:
            name: of the output.
            outputs: float outputs of one image (1, C, H, W) by name.
        """
        values = thinned(np.asarray(outputs[name][0], np.float64).reshape(outputs[name].shape[1], -1))
        return values, np.ones_like(values)

    def steady(self, steps: Mapping[str, Rows]) -> dict[str, Rows]:
        """Steps of the channels of outputs, (C,) each, that hold for other objects than those of a few images."""
        return dict(steps)


#: Names of COCO's metrics that may be asked for.
_PRECISIONS = ("AP", "AP50", "AP75")
#: Values of a channel of one image that are looked at, at most.
_MOST = 4096
#: Every task by name.
TASKS: dict[str, type[Task]] = {}


def register(task: _Some) -> _Some:
    """Make a task known: for use as a decorator of its class."""
    TASKS[task.name] = task
    QUANTITIES.update({quantity.name: quantity for quantity in task.quantities})
    return task


def thinned(values: Rows) -> Rows:
    """Every so many columns of (C, P) values, so that not too many remain."""
    return values[:, :: max(1, -(-values.shape[1] // _MOST))]


def largest(first: NDArray[Any], second: NDArray[Any]) -> float:
    """The largest absolute difference, 0 of nothing."""
    return float(np.abs(first.astype(np.float64) - second.astype(np.float64)).max(initial=0.0))


def relative(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    """The largest difference as a share of the largest expected value; infinite for other shapes."""
    if expected.shape != actual.shape:
        return float("inf")
    return largest(expected, actual) / max(1e-6, largest(expected, np.zeros(())))


class TaskJudge:
    """Compares quantized outputs with float ones in the units of the task.

    Args:
        meaning: of the outputs.
        references: float model outputs of each image by name: raw head tensors (1, C, H, W) float32, or class scores.
        how: they are looked at.

    Attributes:
        meaning: the task that is judged by: noise where the float model finds nothing in any image.
        references: as given.
        detections: how many objects the float model finds in each image.
    """

    def __init__(self, meaning: Task, references: Sequence[Outputs], how: Look) -> None:
        self.meaning, self.references = meaning, references
        self.seen = [meaning.look(entry, how) for entry in references]
        counts = [meaning.counts(seen) for seen in self.seen]
        self.detections = [count for count, _ in counts]
        if not any(map(any, counts)):
            self.meaning, self.seen = Task(), list(references)

    def judge(self, index: int, outputs: Outputs) -> TaskError:
        """Error of one image.

        Args:
            index: of the image in the references.
            outputs: quantized outputs as float32, by the same names and in the same shapes.
        """
        return self.meaning.error(self.seen[index], outputs)
