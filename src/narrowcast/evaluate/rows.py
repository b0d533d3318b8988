"""Scores of several graphs to metrics with intervals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from narrowcast.evaluate.average_precision import weighted_average_precision
from narrowcast.evaluate.bootstrap import draw_weights, interval, retention_interval
from narrowcast.evaluate.coco_scores import CocoScores
from narrowcast.evaluate.report import Metrics

__all__ = ["compare_rows", "metrics_of_rows"]


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
