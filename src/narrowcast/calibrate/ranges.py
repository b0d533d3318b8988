"""From statistics to an encoding: which real values the integers span.

Every method answers the same question for a group of tensors that share one encoding. With power-of-two scales
the candidates are the exponents themselves and each is scored, instead of rounding a free scale up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from narrowcast.calibrate.statistics import Histogram, TensorStatistics
from narrowcast.calibrate.unary import unary

__all__ = ["METHODS", "RangeSpec", "choose_range", "quantization_error"]

METHODS = ("minmax", "mean-minmax", "percentile", "kl", "mse", "lp")
#: Exponents of the error of the methods that minimise one. The ranges of heavy-tailed tensors, such as the first SiLU
#: outputs of a YOLO, are too wide under the squared error and too narrow under the absolute one; 1.5 was measured best
#: on all targets (docs/calibration.md). After LAPQ (Nahshan et al., 2019), which tunes this exponent.
ERROR_EXPONENTS = {"mse": 2.0, "lp": 1.5}
#: Smallest scale given out; an all-zero tensor still needs one.
SMALLEST_SCALE = 2.0**-24


@dataclass(frozen=True)
class RangeSpec:
    """What integers there are to spend.

    Attributes:
        qmin, qmax: integer limits.
        symmetric: the zero point is 0.
        power_of_two: the scale is 2**e.
        method: one of :data:`METHODS`.
        percentile: for the method of that name, in percent of the values on each side.
    """

    qmin: int
    qmax: int
    symmetric: bool
    power_of_two: bool
    method: str
    percentile: float = 99.99


def choose_range(
    statistics: Sequence[TensorStatistics], spec: RangeSpec, through: str | None = None
) -> tuple[float, int]:
    """Scale and zero point for tensors that share one encoding.

    Args:
        statistics: of each tensor.
        spec: the integers and the method.
        through: name of the unary function (:func:`narrowcast.calibrate.unary.unary_name`) that is all that
            ever reads the tensors. ``mse`` and ``lp`` then measure the error behind it, because the flat side of
            SiLU forgives what its steep side does not.

    Returns:
        (scale > 0, zero point within the integers).
    """
    merged = statistics[0]
    for other in statistics[1:]:
        merged = merged.merge(other)
    if not max(abs(merged.minimum), abs(merged.maximum)) > 0:
        return SMALLEST_SCALE, 0 if spec.symmetric else max(spec.qmin, min(0, spec.qmax))
    if spec.method in ERROR_EXPONENTS:
        if spec.power_of_two:
            return _best_exponent(merged, spec, through), 0
        return _best_free(merged, spec, through)
    low, high = _limits(merged, spec)
    if spec.power_of_two and spec.method == "kl":
        return 2.0 ** round(math.log2(_scale(low, high, spec))), 0
    if spec.power_of_two:
        return 2.0 ** math.ceil(math.log2(_scale(low, high, spec)) - 1e-9), 0
    return _encode(low, high, spec)


def _limits(statistics: TensorStatistics, spec: RangeSpec) -> tuple[float, float]:
    if spec.method == "minmax":
        return statistics.minimum, statistics.maximum
    if spec.method == "mean-minmax":
        return statistics.mean_minimum, statistics.mean_maximum
    if spec.method == "percentile":
        return _percentile(statistics.histogram, spec.percentile)
    if spec.method == "kl":
        clip = _entropy_clip(statistics.histogram)
        return max(statistics.minimum, -clip), min(statistics.maximum, clip)
    raise ValueError(f"unknown calibration method {spec.method!r}; use one of {', '.join(METHODS)}")


def _scale(low: float, high: float, spec: RangeSpec) -> float:
    """Free scale that spans low..high."""
    if spec.symmetric:
        return max(-low / -spec.qmin if spec.qmin else 0.0, high / spec.qmax, SMALLEST_SCALE)
    return max((max(high, 0.0) - min(low, 0.0)) / (spec.qmax - spec.qmin), SMALLEST_SCALE)


def _encode(low: float, high: float, spec: RangeSpec) -> tuple[float, int]:
    scale = _scale(low, high, spec)
    if spec.symmetric:
        return scale, 0
    zero_point = round(spec.qmin - min(low, 0.0) / scale)
    return scale, max(spec.qmin, min(zero_point, spec.qmax))


def _percentile(histogram: Histogram, percent: float) -> tuple[float, float]:
    """Values that leave out ``100 - percent`` percent on each side."""
    shares = np.cumsum(histogram.counts) / max(1, histogram.counts.sum())
    edges = histogram.centers + histogram.limit / len(histogram.counts)
    low = edges[np.searchsorted(shares, 1 - percent / 100)] - 2 * histogram.limit / len(histogram.counts)
    high = edges[min(int(np.searchsorted(shares, percent / 100)), len(edges) - 1)]
    return float(low), float(high)


def _entropy_clip(histogram: Histogram, levels: int = 128) -> float:
    """Clip magnitude with the least Kullback-Leibler divergence (Migacz, 8-bit inference with TensorRT, 2017)."""
    half = len(histogram.counts) // 2
    magnitudes = (histogram.counts[half:] + histogram.counts[:half][::-1]).astype(np.float64)
    magnitudes[0] = 0.0  # exact zeros carry no information on the range
    best, best_clip = math.inf, histogram.limit
    for stop in range(levels, half + 1, levels // 8):
        reference = magnitudes[:stop].copy()
        reference[-1] += magnitudes[stop:].sum()
        edges = np.linspace(0, stop, levels + 1).astype(int)
        filled = (magnitudes[:stop] > 0).astype(np.float64)
        sums = np.add.reduceat(magnitudes[:stop], edges[:-1])
        counts = np.add.reduceat(filled, edges[:-1])
        average = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
        coarse = np.repeat(average, np.diff(edges)) * filled
        divergence = _divergence(reference, coarse)
        if divergence < best:
            best, best_clip = divergence, histogram.limit * stop / half
    return best_clip


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    if p.sum() == 0 or q.sum() == 0:
        return math.inf
    p, q = p / p.sum(), q / q.sum()
    mask = p > 0
    return float(np.sum(p[mask] * np.log(p[mask] / np.maximum(q[mask], 1e-12))))


def quantization_error(
    histogram: Histogram, scale: float, zero_point: int, spec: RangeSpec, through: str | None = None
) -> float:
    """Sum over the counted values of |error| ** exponent under an encoding, behind ``through`` if given."""
    used = np.flatnonzero(histogram.counts)
    values = histogram.centers[used]
    restored = (np.clip(np.rint(values / scale) + zero_point, spec.qmin, spec.qmax) - zero_point) * scale
    if through is not None:
        function = unary(through)
        values, restored = function(values), function(restored)
    errors = np.abs(restored - values) ** ERROR_EXPONENTS.get(spec.method, 2.0)
    return float(histogram.counts[used] @ errors)


def _best_exponent(statistics: TensorStatistics, spec: RangeSpec, through: str | None) -> float:
    """The power of two with the least error among those from full range down to 1/16 of it."""
    full = math.ceil(math.log2(_scale(statistics.minimum, statistics.maximum, spec)) - 1e-9)
    candidates = [2.0**exponent for exponent in range(full, full - 5, -1)]
    errors = [quantization_error(statistics.histogram, s, 0, spec, through) for s in candidates]
    return candidates[int(np.argmin(errors))]


def _best_free(
    statistics: TensorStatistics, spec: RangeSpec, through: str | None, steps: int = 48
) -> tuple[float, int]:
    """Least error over clip candidates; with a free zero point one side after the other."""
    low, high = statistics.minimum, statistics.maximum
    shares = np.geomspace(1.0, 0.05, steps)

    def error(bounds: tuple[float, float]) -> float:
        scale, zero_point = _encode(*bounds, spec)
        return quantization_error(statistics.histogram, scale, zero_point, spec, through)

    if spec.symmetric:
        best = min(((low * share, high * share) for share in shares), key=error)
        return _encode(*best, spec)
    best_high = min((high * share for share in shares), key=lambda value: error((low, value)))
    best_low = min((low * share for share in shares), key=lambda value: error((value, best_high)))
    return _encode(best_low, best_high, spec)
