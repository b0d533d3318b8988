"""How sure a metric is: it is computed again and again on images drawn with replacement.

Two graphs are compared on the same draws, so that the interval of their ratio is that of the difference between the
graphs and not that of the choice of images (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["DRAWS", "draw_weights", "interval", "retention_interval"]

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
