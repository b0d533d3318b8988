"""One streaming pass over the images collects every statistic that was asked for.

Nothing is kept of an image but counts, so memory does not grow with their number. Minimum and maximum are exact;
histograms see a deterministic sub-sample.
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
from narrowcast.ops.net import with_outputs

__all__ = ["BINS", "Histogram", "TensorStatistics", "collect"]

#: Bins of a histogram over [-limit, limit): 16 a step of an int8 range that fills it.
BINS = 4096
#: Values of one tensor of one image that go into its histogram, at most.
SAMPLES = 1 << 13


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


