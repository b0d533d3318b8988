"""What an evaluation found, and how sure it is: a metric is computed again and again on images drawn with replacement.

Two graphs are compared on the same draws, so that the interval of their ratio is that of the difference between the
graphs and not that of the choice of images (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.evaluate.coco_scores import CocoScores, weighted_average_precision


@dataclass(frozen=True)
class Metrics:
    """One family of metrics of one graph.

    Attributes:
        family: ``"box"``, ``"mask"``, ``"keypoints"`` or ``"classes"``.
        values: by name (``"AP"``, ``"AP50"``, ..., or ``"top-1"``), 0..1; ``None`` where no object is of that kind.
            ``"agreement"`` is the share of images whose first class is that of the first row.
        interval: 95 % bootstrap interval over images of the first value.
        retention: the first value as a share of the first row's; ``None`` for the first row, or where that is 0.
        retention_interval: 95 % interval of the retention: both graphs see the same resampled images.
    """

    family: str
    values: dict[str, float | None]
    interval: tuple[float, float]
    retention: float | None = None
    retention_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """One graph.

    Attributes:
        name: e.g. ``"float"`` or ``"esp32p4"``.
        metrics: one of each family.
        images_per_second: end to end: reading, preprocessing, inference, decoding. 0 when all came from an
            interrupted run.
        found: detections (or classified images) in all.
    """

    name: str
    metrics: tuple[Metrics, ...]
    images_per_second: float
    found: int


@dataclass(frozen=True)
class Report:
    """Rows with what was measured on.

    Attributes:
        rows: the reference first.
        images: number of images.
        protocol: options of decoding, empty for classifiers.
        notes: one sentence each.
        unreadable: number of labelled images that cannot be read and are in no metric.
    """

    rows: tuple[Row, ...]
    images: int
    protocol: dict[str, Any]
    notes: tuple[str, ...]
    unreadable: int = 0

    def __repr__(self) -> str:
        found = []
        for row in self.rows:
            for metrics in row.metrics[:1]:
                name, value = next(iter(metrics.values.items()))
                found.append(f"{row.name} {metrics.family} {name} {'-' if value is None else f'{value:.3f}'}")
        return f"<Report on {self.images} images: {', '.join(found)}>"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def metric(self, row: str, family: str, name: str | None = None) -> float | None:
        """One value, e.g. ``report.metric("esp32p4", "keypoints", "AP")``; the first of the family by default."""
        for entry in self.rows:
            for metrics in entry.metrics:
                if entry.name == row and metrics.family == family:
                    return metrics.values[name or next(iter(metrics.values))]
        raise KeyError(f"there is no {family} of {row}")


DRAWS = 200


def draw_weights(images: int, seed: int, draws: int = DRAWS) -> NDArray[np.float32]:
    """(draws, images) how often each image is in each draw; rows sum to ``images``."""
    chosen = np.random.default_rng(seed).integers(0, images, (draws, images))
    weights = np.zeros((draws, images), np.float32)
    np.add.at(weights, (np.arange(draws)[:, None], chosen), 1)
    return weights


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of what the draws gave; draws without a value (NaN) do not count."""
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 0.0
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def retention_interval(values: NDArray[np.float64], reference: NDArray[np.float64]) -> tuple[float, float] | None:
    """The same for the ratio of two graphs on the same draws; ``None`` when the reference is always 0."""
    ratio = np.divide(values, reference, out=np.full_like(values, np.nan), where=reference > 0)
    return interval(ratio) if np.isfinite(ratio).any() else None


def metrics_of_rows(scores: Mapping[str, CocoScores], images: int, seed: int) -> dict[str, tuple[Metrics, ...]]:
    """Metrics of every graph, each family compared with that of the first graph."""
    weights = draw_weights(images, seed)
    rows: dict[str, list[Metrics]] = {name: [] for name in scores}
    for family in next(iter(scores.values())).values:
        values = {name: found.values[family] for name, found in scores.items()}
        draws = {name: weighted_average_precision(found.matches[family], weights) for name, found in scores.items()}
        for name, metrics in compare_rows(family, values, draws).items():
            rows[name].append(metrics)
    return {name: tuple(metrics) for name, metrics in rows.items()}


def compare_rows(
    family: str, values: Mapping[str, dict[str, float | None]], draws: Mapping[str, NDArray[np.float64]]
) -> dict[str, Metrics]:
    """One family of every graph.

    Args:
        family: of the metrics.
        values: metrics of each graph.
        draws: the first metric of each graph on the same bootstrap draws.
    """
    reference = next(iter(values))
    rows = {}
    for name, found in values.items():
        first, base = next(iter(found.values())), next(iter(values[reference].values()))
        if name == reference or not base or first is None:
            rows[name] = Metrics(family, found, interval(draws[name]))
        else:
            spread = retention_interval(draws[name], draws[reference])
            rows[name] = Metrics(family, found, interval(draws[name]), first / base, spread)
    return rows
