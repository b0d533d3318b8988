"""One class an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from narrowcast.tasks.errors import Quantity, TaskError
from narrowcast.tasks.objects import PROBABILITY
from narrowcast.tasks.task import Ends, Family, Outputs, Task, register
from narrowcast.vision.preprocess import Geometry
from narrowcast.vision.reader import OutputEncoding
from narrowcast.vision.types import Classification, Result

__all__ = ["Classify"]

#: Classes that a classifier is judged by, and the probability below which they are not told apart: the many unlikely
#: ones, which an 8-bit softmax rounds to 0, would otherwise outweigh them.
_BEST, _TOLD_APART = 5, 1e-3

TOP1 = Quantity("top1_disagreement", 80, "top-1 differs", 4, "of images get another best class", similarity=True,
                percent=True)  # fmt: skip
#: Kullback-Leibler divergence (its form for numbers that need not add up to 1) of the quantized from the float
#: probabilities, over the five best float classes, the best quantized one, and all others together.
DIVERGENCE = Quantity("divergence", 85, "KL", 4, "nats between the class probabilities (KL)", alone=True)


@register
@dataclass(frozen=True)
class Classify(Task):
    """One class an image: the graph gives class scores, as probabilities or as logits."""

    name: ClassVar[str] = "classify"
    known: ClassVar[bool] = True
    kept: ClassVar[str] = "classifier: the graph stays whole"
    one_answer: ClassVar[bool] = True
    resize: ClassVar[str] = "center-crop"
    last: ClassVar[str] = "Softmax"
    quantities: ClassVar[tuple[Quantity, ...]] = (PROBABILITY, TOP1, DIVERGENCE)
    families: ClassVar[tuple[Family, ...]] = (Family("classes", (DIVERGENCE.name,)),)
    labels: ClassVar[tuple[str, ...]] = ("--labels", "LABELS.txt")
    counted: ClassVar[str] = "images"
    sample: ClassVar[str] = "classify"
    columns: ClassVar[tuple[str, ...]] = ("class", "probability")
    parsers: ClassVar[Mapping[str, str]] = {"TROS": "classification"}

    @classmethod
    def whole(cls, ends: Ends) -> Task | None:
        dims = ends.outputs[0].shape
        flat = len(ends.outputs) == 1 and len(dims) >= 2 and math.prod(dims[2:]) == 1 and dims[1] > 1
        if ends.task != cls.name and not flat:
            return None
        return cls(softmax_missing=ends.outputs[0].operator != cls.last)

    @property
    def metrics(self) -> dict[str, tuple[str, str]]:
        return {"top1": ("classes", "top-1"), "top-1": ("classes", "top-1"), "top5": ("classes", "top-5")}

    def class_count(self, shapes: Sequence[tuple[int, ...]]) -> int:
        return math.prod(shapes[0])

    def decode(
        self,
        outputs: Outputs,
        geometry: Geometry,
        *,
        encodings: Mapping[str, OutputEncoding] | None = None,
        layout: str = "NCHW",
        top_k: int = 5,
        **options: Any,
    ) -> Classification:
        """The most likely classes of one image.

        Args:
            outputs: class scores, any shape with one axis above 1.
            geometry: does nothing.
            encodings: how integer scores are read.
            layout: does nothing.
            top_k: how many classes.
            options: of other tasks.
        """
        name, scores = next(iter(outputs.items()))
        encoding = (encodings or {}).get(name)
        values = np.asarray(scores if encoding is None else encoding.real(scores), np.float32).reshape(-1)
        if self.softmax_missing:
            values = np.exp(values - values.max())
            values = values / values.sum()
        best = np.argsort(-values, kind="stable")[:top_k]
        return Classification(best.astype(np.int64), values[best])

    def row(self, entry: Mapping[str, Any]) -> tuple[str, ...]:
        return str(entry["class"]), f"{entry['score']:.4f}"

    def summary(self, result: Result) -> dict[str, Any]:
        """The five best classes, enough for top-5."""
        assert isinstance(result, Classification)
        scores = [round(float(score), 7) for score in result.scores]
        return {"classes": [int(label) for label in result.class_ids], "scores": scores}

    def answer(self, entry: Mapping[str, Any]) -> Any:
        return entry["classes"][0]

    def scores(self, entries: Sequence[Mapping[str, Any]], labels: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        hits = np.array([entry["classes"] for entry in entries]) == labels[:, None]
        return {"top-1": hits[:, 0], "top-5": hits.any(axis=1)}

    def error(self, seen: Any, outputs: Outputs) -> TaskError:
        name = next(iter(seen))
        expected, actual = self._probabilities(seen[name]), self._probabilities(outputs[name])
        best = int(expected.argmax())
        kept = np.union1d(np.argsort(-expected, kind="stable")[:_BEST], [int(actual.argmax())])
        p, q = (np.maximum([*v[kept], 1 - v[kept].sum()], _TOLD_APART) for v in (expected, actual))
        values = {
            PROBABILITY.name: float(abs(actual[best] - expected[best])),
            TOP1.name: float(actual.argmax() != best),
            DIVERGENCE.name: max(0.0, float((p * np.log(p / q)).sum() - p.sum() + q.sum())),
        }
        return TaskError(1, 0, 1, values)

    def _probabilities(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        values = np.asarray(scores, np.float64).reshape(-1)
        if self.softmax_missing:
            values = np.exp(values - values.max())
            values /= values.sum()
        return np.asarray(values, np.float64)

    def loss(self, device: str = "cpu") -> Callable[[Mapping[str, Any], Mapping[str, Any]], Any]:
        """Divergence of the class probabilities, given logits; nats."""

        def divergence(outputs: Mapping[str, Any], teacher: Mapping[str, Any]) -> Any:
            (name,) = teacher
            expected, actual = (x[name].flatten().log_softmax(0) for x in (teacher, outputs))
            return (expected.exp() * (expected - actual)).sum()

        return divergence
