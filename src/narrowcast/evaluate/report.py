"""What an evaluation found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Metrics", "Report", "Row"]


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
