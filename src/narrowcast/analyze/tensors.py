"""Every tensor that exists as integers: its noise so far, its histogram, and how well its scale fits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.analyze.subject import Subject
from narrowcast.base.progress import track
from narrowcast.calibrate.statistics import BINS, TensorStatistics
from narrowcast.engine.noise import Noise, beside
from narrowcast.plan.structure import is_passive
from narrowcast.plan.types import Encoding

__all__ = ["Tensor", "graphwise"]

#: A channel that reaches this many times as far as the median channel is an outlier.
OUTLIER = 8.0
#: Bars of a histogram.
_BARS = 64


@dataclass(frozen=True)
class Tensor:
    """One tensor over all images.

    Attributes:
        name, node, op: of the tensor and of the node that computes it.
        dtype: of its encoding.
        scale: of its encoding; the coarsest channel's.
        low, high: clip points, in the tensor's unit.
        minimum, maximum: of the float values.
        clipped: share of the float values beyond the clip points by more than half a step.
        unused_bits: log2 of the encoding's range over the range that the values fill; below 0 where they are clipped.
        outlier_channels: channels that reach 8 times as far as the median channel, the furthest first.
        own_db: SQNR in dB of quantizing this tensor alone.
        noise: cumulative, everything quantized, against the float tensor.
        edges: (65,) borders of the histogram's bars.
        counts: (64,) float values in each, of a sub-sample.
    """

    name: str
    node: str
    op: str
    dtype: str
    scale: float
    low: float
    high: float
    minimum: float
    maximum: float
    clipped: float
    unused_bits: float
    outlier_channels: tuple[int, ...]
    own_db: float
    noise: Noise
    edges: tuple[float, ...]
    counts: tuple[int, ...]


class _Watch:
    """Collects one tensor."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.statistics = TensorStatistics()
        self.total, self.own = Noise(), Noise()
        self.clipped = self.count = 0

    @property
    def limits(self) -> tuple[float, float]:
        """Clip points in the tensor's unit."""
        e = self.encoding
        scale = float(e.scales.max())
        return (e.qmin - e.zero_point) * scale, (e.qmax - e.zero_point) * scale

    def add(self, expected: NDArray[np.float32], actual: NDArray[Any], index: int) -> None:
        self.total.add(expected, actual)
        scale = self.encoding.broadcast(expected.ndim).astype(np.float32)
        steps = np.rint(expected / scale)
        least, most = self.encoding.qmin - self.encoding.zero_point, self.encoding.qmax - self.encoding.zero_point
        self.clipped += int(np.count_nonzero((steps < least) | (steps > most)))
        self.count += steps.size
        np.clip(steps, least, most, out=steps)
        steps *= scale
        self.own.add(expected, steps)
        self.statistics.add(expected, index * 7919, True)

    def result(self, name: str, node: ir.Node | None) -> Tensor:
        s = self.statistics
        low, high = self.limits
        # a symmetric range that is filled on one side only is not counted as waste: the chip allows no other
        reach = s.maximum - s.minimum
        if self.encoding.zero_point == 0:
            reach = 2 * max(abs(s.minimum), abs(s.maximum))
        edges, counts = _bars(s)
        return Tensor(
            name, str(node.name) if node is not None else "", node.op_type if node is not None else "input",
            self.encoding.dtype, float(self.encoding.scales.max()), low, high, s.minimum, s.maximum,
            self.clipped / max(1, self.count), math.log2((high - low) / reach) if reach > 0 else 0.0, _outliers(s),
            self.own.sqnr_db, self.total, edges, counts,
        )  # fmt: skip


def graphwise(subject: Subject, threads: int = 0) -> list[Tensor]:
    """Cumulative error of every tensor with everything quantized, and how well its encoding fits, in graph order.

    Results of nodes that only move bytes are left out."""
    made = {str(output.name): node for node in subject.model.graph for output in node.outputs}
    image = str(subject.model.graph.inputs[0].name)
    outputs = set(subject.output_names)
    watched: dict[str, _Watch] = {}
    for name in [image, *made]:
        encoding = subject.plan.tensors.get(name)
        if encoding is None or encoding.dtype == "int32":
            continue
        if name in made and is_passive(made[name], subject.target) and name not in outputs:
            continue
        watched[name] = _Watch(encoding)
    names = [name for name in watched if name != image]
    pairs = {name: name if name in outputs else f"{name}_dequantized" for name in names}
    tensors = track(subject.inputs, "graphwise", len(subject.inputs))
    for index, (expected, actual) in enumerate(
        beside(subject.float_graph, subject.quantized_graph, pairs, tensors, threads)
    ):
        if image in watched:
            tensor = subject.inputs[index]
            coded = watched[image].encoding
            expected[image], actual[image] = tensor, coded.dequantize(coded.quantize(tensor))
        for name, watch in watched.items():
            watch.add(np.asarray(expected[name], np.float32), actual[name], index)
    return [watch.result(name, made.get(name)) for name, watch in watched.items()]


def _outliers(statistics: TensorStatistics) -> tuple[int, ...]:
    low, high = statistics.channel_minimum, statistics.channel_maximum
    if low is None or high is None or len(low) < 4:
        return ()
    reach = np.maximum(np.abs(low), np.abs(high))
    typical = float(np.median(reach))
    far = np.flatnonzero(reach > OUTLIER * typical) if typical > 0 else np.zeros(0, np.int64)
    return tuple(int(index) for index in far[np.argsort(-reach[far], kind="stable")])


def _bars(statistics: TensorStatistics) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The histogram between minimum and maximum in a few bars."""
    histogram = statistics.histogram
    low, high = statistics.minimum, statistics.maximum
    if not high > low:
        high = low + 1.0
    borders = np.linspace(low, high, _BARS + 1)
    place = np.clip(((histogram.centers - low) / (high - low) * _BARS).astype(np.int64), 0, _BARS - 1)
    counts = np.zeros(_BARS, np.int64)
    np.add.at(counts, place[:BINS], histogram.counts)
    return tuple(float(v) for v in borders), tuple(int(v) for v in counts)
