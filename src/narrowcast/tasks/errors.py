"""The error of a quantized model in the units of its task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["QUANTITIES", "Quantity", "TaskError", "as_reals", "combine", "shown"]


@dataclass(frozen=True)
class Quantity:
    """One thing that an error is measured by.

    Attributes:
        name: in :attr:`TaskError.values` and in JSON.
        rank: what people care for first has the smallest.
        heading: of a column.
        digits: behind the point.
        words: what a number of it is.
        short: heading where there is little room; that of a column by default, ``"-"`` for no column there.
        sentence: names a value in a sentence; empty where no sentence does.
        by: what means are weighted by: ``"detections"``, ``"candidates"`` or ``"images"``.
        similarity: it is 1 - a similarity, which stands for the task's metric where nothing is labelled.
        weight: what it counts when steps of recovery are chosen; 0 for what is no part of the loss.
        alone: it is the whole loss, whatever else is known.
        percent: shown as a share.
    """

    name: str
    rank: int
    heading: str
    digits: int
    words: str
    short: str = ""
    sentence: str = ""
    by: str = "detections"
    similarity: bool = False
    weight: float = 0.0
    alone: bool = False
    percent: bool = False

    def text(self, value: float, digits: int | None = None) -> str:
        """A value as tables show it."""
        return f"{value:.1%}" if self.percent else f"{value:.{self.digits if digits is None else digits}f}"


#: Quantities of all tasks by name, in the order of JSON.
QUANTITIES: dict[str, Quantity] = {}


def shown(errors: Iterable[TaskError] | None = None) -> list[Quantity]:
    """Quantities in the order in which people read them: all, or those that some of the errors have."""
    names = set(QUANTITIES) if errors is None else {name for error in errors for name in error.values}
    return sorted((QUANTITIES[name] for name in names), key=lambda quantity: quantity.rank)


@dataclass(frozen=True)
class TaskError:
    """Means over what the float model found.

    Attributes:
        detections: objects that the means are over (images, for a classifier).
        candidates: pairs of class and cell that either graph thinks possible.
        images: how many.
        values: by the name of the quantity; what the task does not have, or nothing was found for, is absent.
    """

    detections: int
    candidates: int
    images: int
    values: Mapping[str, float]

    @property
    def loss(self) -> float:
        """One number to make small, 0 or more: the sum of the errors that the task's metric depends on.

        Objects: 1 - OKS or 1 - mask IoU, 1 - box IoU, and both probability errors. Where a quantity is the whole loss,
        as a classifier's divergence: that one.
        """
        return self._sum(lambda quantity: 1.0)

    @property
    def choosing_loss(self) -> float:
        """The loss with the weights by which steps of recovery are chosen."""
        return self._sum(lambda quantity: quantity.weight)

    def _sum(self, weight: Any) -> float:
        alone = [value for name, value in self.values.items() if QUANTITIES[name].alone]
        if alone:
            return alone[0]
        return float(sum(self.values[q.name] * weight(q) for q in shown([self]) if q.weight))

    @property
    def similarity_loss(self) -> float:
        """What stands for the drop of the metric without labels; the loss where there is no such thing."""
        found = [self.values[quantity.name] for quantity in shown([self]) if quantity.similarity]
        return float(found[0]) if found else self.loss

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the loss."""
        counts = {"detections": self.detections, "candidates": self.candidates, "images": self.images}
        return {**counts, **self.values, "loss": self.loss}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> TaskError:
        """The opposite of :meth:`to_dict`."""
        values = {name: record[name] for name in QUANTITIES if name in record}
        return cls(record["detections"], record["candidates"], record["images"], values)


def combine(errors: Iterable[TaskError]) -> TaskError:
    """The error over several images: means weighted by detections (or candidates, or images).

    Raises:
        ValueError: nothing to combine.
    """
    every = list(errors)
    if not every:
        raise ValueError("no errors to combine")
    counts = [sum(getattr(entry, name) for entry in every) for name in ("detections", "candidates", "images")]
    means: dict[str, float] = {}
    for name, quantity in QUANTITIES.items():
        known = [(getattr(e, quantity.by), e.values[name]) for e in every if name in e.values]
        if known:
            weight = sum(count for count, _ in known)
            means[name] = sum(count * value for count, value in known) / weight if weight else 0.0
    return TaskError(counts[0], counts[1], counts[2], means)


def as_reals(expected: NDArray[Any], actual: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two tensors of one shape as float32, flat, for measures of distance.

    Of whole numbers and truth values (class maps) only equality means something: they become ones, and ones where the
    two are equal. So noise to signal is the share of values that differ.
    """
    x, y = np.ascontiguousarray(expected).reshape(-1), np.ascontiguousarray(actual).reshape(-1)
    if x.dtype.kind in "iub":
        return np.ones(x.size, np.float32), (x == y).astype(np.float32)
    return x.astype(np.float32, copy=False), y.astype(np.float32, copy=False)
