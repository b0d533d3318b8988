"""One streaming pass over the images collects every statistic, and a range is chosen from them.

Nothing is kept of an image but counts, so memory does not grow with their number. Minimum and maximum are exact;
histograms see a deterministic sub-sample. Every method of choosing answers the same question for a group of tensors
that share one encoding: which real values the integers span. With power-of-two scales the candidates are the exponents
themselves and each is scored, instead of rounding a free scale up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from narrowcast.graph.run import Runner
from narrowcast.ops.functions import unary
from narrowcast.ops.net import with_outputs

#: Bins of a histogram over [-limit, limit): 16 a step of an int8 range that fills it.
BINS = 4096
#: Values of one tensor of one image that go into its histogram, at most.
SAMPLES = 1 << 13
METHODS = ("minmax", "mean-minmax", "percentile", "kl", "mse", "lp")
#: Exponents of the error of the methods that minimise one. The ranges of heavy-tailed tensors, such as the first SiLU
#: outputs of a YOLO, are too wide under the squared error and too narrow under the absolute one; 1.5 was measured best
#: on all targets (docs/calibration.md). After LAPQ (Nahshan et al., 2019), which tunes this exponent.
ERROR_EXPONENTS = {"mse": 2.0, "lp": 1.5}
#: Smallest scale given out; an all-zero tensor still needs one.
SMALLEST_SCALE = 2.0**-24


@dataclass
class Histogram:
    """Counts over ``[-limit, limit)``; ``limit`` is a power of two that grows, so bins only ever merge in pairs."""

    limit: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    @property
    def centers(self) -> NDArray[np.float64]:
        """Middle of every bin, shape (BINS,), in the tensor's unit."""
        return np.asarray((np.arange(BINS) + 0.5) * (2 * self.limit / BINS) - self.limit, np.float64)

    def grow(self, limit: float) -> None:
        """Widen to at least ``limit``."""
        if limit <= self.limit or limit == 0.0:
            return
        wanted = 2.0 ** math.ceil(math.log2(limit))
        if self.limit == 0.0:
            self.limit = wanted
        while self.limit < wanted:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
            self.limit *= 2

    def add(self, values: NDArray[np.float32], largest: float) -> None:
        """Count ``values``, none of which is above ``largest`` in magnitude."""
        self.grow(max(largest, 2.0**-60))
        index = (values * np.float32(BINS / 2 / self.limit)).astype(np.int32)
        index = np.where(values < 0, index - 1, index) + BINS // 2  # floor, and cheaper than np.floor
        self.counts += np.bincount(np.clip(index, 0, BINS - 1), minlength=BINS)

    def merge(self, other: Histogram) -> Histogram:
        """Counts of both over the wider range; neither is changed."""
        result = Histogram(self.limit, self.counts.copy())
        addend = Histogram(other.limit, other.counts.copy())
        result.grow(addend.limit)
        addend.grow(result.limit)
        result.counts += addend.counts
        return result


@dataclass
class TensorStatistics:
    """What calibration knows of one tensor.

    Attributes:
        minimum, maximum: exact, over all images.
        minima, maxima: sums over images of each image's minimum and maximum.
        images: number of images seen.
        histogram: of a sub-sample.
        channel_minimum, channel_maximum: per channel (axis 1), where asked for.
    """

    minimum: float = math.inf
    maximum: float = -math.inf
    minima: float = 0.0
    maxima: float = 0.0
    images: int = 0
    histogram: Histogram = field(default_factory=Histogram)
    channel_minimum: NDArray[np.float32] | None = None
    channel_maximum: NDArray[np.float32] | None = None

    @property
    def mean_minimum(self) -> float:
        """Mean over images of each image's minimum."""
        return self.minima / max(1, self.images)

    @property
    def mean_maximum(self) -> float:
        """Mean over images of each image's maximum."""
        return self.maxima / max(1, self.images)

    def add(self, values: NDArray[np.float32], offset: int, per_channel: bool) -> None:
        """Take in the tensor of one more image.

        Args:
            values: float32, any shape.
            offset: where sub-sampling starts; varies by image so that all positions are seen.
            per_channel: also keep minimum and maximum of each channel (axis 1).

        Raises:
            FloatingPointError: NaN or infinity.
        """
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise FloatingPointError("NaN or infinite activations")
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self.minima += low
        self.maxima += high
        self.images += 1
        flat = values.reshape(-1)
        step = _step(flat.size)
        self.histogram.add(flat[offset % step :: step], max(-low, high))
        if per_channel and values.ndim > 1:
            axes = tuple(axis for axis in range(values.ndim) if axis != 1)
            lows, highs = values.min(axis=axes), values.max(axis=axes)
            if self.channel_minimum is not None and self.channel_maximum is not None:
                lows, highs = np.minimum(self.channel_minimum, lows), np.maximum(self.channel_maximum, highs)
            self.channel_minimum, self.channel_maximum = lows, highs

    def merge(self, other: TensorStatistics) -> TensorStatistics:
        """Statistics of both tensors taken together (for tensors that share an encoding)."""
        return TensorStatistics(
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            minima=min(self.mean_minimum, other.mean_minimum),
            maxima=max(self.mean_maximum, other.mean_maximum),
            images=1,
            histogram=self.histogram.merge(other.histogram),
        )


def _step(size: int) -> int:
    """Stride of sub-sampling: odd and no multiple of 5, so that it does not fall in step with image rows."""
    step = max(1, size // SAMPLES)
    while step > 1 and (step % 2 == 0 or step % 5 == 0):
        step += 1
    return step


def collect(
    proto: onnx.ModelProto,
    names: Sequence[str],
    inputs: Iterable[NDArray[np.float32]],
    *,
    per_channel: Sequence[str] = (),
    threads: int = 0,
) -> dict[str, TensorStatistics]:
    """Run every input once and gather the statistics of the named tensors.

    Args:
        proto: a float graph with one input.
        names: tensors, among them the graph's input if wanted.
        inputs: model inputs, consumed once.
        per_channel: the tensors that need per-channel minimum and maximum.
        threads: of onnxruntime; 0 for all cores.

    Returns:
        Statistics by tensor name, in the order of ``names``.

    Raises:
        FloatingPointError: a tensor is NaN or infinite; the message names it.
    """
    runner = Runner(with_outputs(proto, names), threads=threads, level="basic")
    wanted = [name for name in names if name != runner.input_name]
    statistics = {name: TensorStatistics() for name in names}
    channels = set(per_channel)

    def take(tensors: dict[str, NDArray[np.float32]], index: int) -> None:
        for name in names:
            try:
                statistics[name].add(tensors[name], index * 7919, name in channels)
            except FloatingPointError as error:
                raise FloatingPointError(f"{error} in {name}, image {index + 1}") from error

    # Counting one image overlaps with inference on the next; at most two images' tensors are alive.
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending: Future[None] | None = None
        for index, tensor in enumerate(inputs):
            tensors = runner.run(tensor, wanted)
            tensors[runner.input_name] = tensor
            if pending is not None:
                pending.result()
            pending = pool.submit(take, tensors, index)  # type: ignore[arg-type]
            del tensors
        if pending is not None:
            pending.result()
    return statistics


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
        through: name of the unary function (:func:`narrowcast.ops.functions.unary_name`) that is all that
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
