"""Float and quantized side by side on images that calibration has not seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from narrowcast.graph.run import Runner, as_reals
from narrowcast.graph.weights import rest
from narrowcast.ops.net import with_outputs

__all__ = ["Comparison", "compare_tensors", "mean_sqnr"]


@dataclass(frozen=True)
class Comparison:
    """How far a quantized tensor is from the float one, over all images.

    Attributes:
        name: of the tensor.
        cosine: cosine similarity, 1 is equal.
        sqnr_db: signal-to-quantization-noise ratio, 10 log10(sum x^2 / sum (x - y)^2), in dB; infinite when equal.
        mean_abs, max_abs: absolute difference, in the tensor's unit.
        rms: root of the mean squared difference, in the tensor's unit.
        equal: share of equal values of a tensor of whole numbers (a class map), whose other measures count differing
            values; ``None`` for real ones.
    """

    name: str
    cosine: float
    sqnr_db: float
    mean_abs: float
    max_abs: float
    rms: float = 0.0
    equal: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an infinite ratio is ``null``."""
        data = asdict(self)
        if self.equal is None:
            del data["equal"]
        return {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in data.items()}


class _Sums:
    """Running sums for one tensor."""

    def __init__(self) -> None:
        self.signal = self.noise = self.other = self.product = self.absolute = self.largest = 0.0
        self.count, self.whole = 0, False

    def add(self, x: NDArray[Any], y: NDArray[Any]) -> None:
        a, b = as_reals(x, y)
        self.whole = x.dtype.kind in "iub"
        difference = a - b
        self.signal += float(np.dot(a, a))
        self.other += float(np.dot(b, b))
        self.noise += float(np.dot(difference, difference))
        self.product += float(np.dot(a, b))
        np.abs(difference, out=difference)
        self.absolute += float(difference.sum(dtype=np.float64))
        self.largest = max(self.largest, float(difference.max(initial=0.0)))
        self.count += a.size

    def result(self, name: str) -> Comparison:
        norm = math.sqrt(self.signal * self.other)
        cosine = min(1.0, self.product / norm) if norm else float(self.signal == self.other)
        ratio = self.signal / self.noise if self.noise else math.inf
        sqnr = 10 * math.log10(ratio) if ratio > 0 else -math.inf
        count = max(1, self.count)
        mean = self.absolute / count
        equal = 1 - mean if self.whole else None
        return Comparison(name, cosine, sqnr, mean, self.largest, math.sqrt(self.noise / count), equal)


def compare_tensors(
    float_model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    pairs: Mapping[str, str],
    inputs: Iterable[NDArray[np.float32]],
    threads: int = 0,
) -> list[Comparison]:
    """Run both graphs and compare tensors.

    Args:
        float_model: the prepared graph.
        quantized: its QDQ lowering.
        pairs: tensor of the float graph to the tensor of the quantized graph that stands for it.
        inputs: model inputs, consumed once.
        threads: of onnxruntime; 0 for all cores.

    Returns:
        One comparison a pair, in order.
    """
    left = Runner(with_outputs(float_model, list(pairs)), threads, "basic")
    right = Runner(with_outputs(quantized, list(pairs.values())), threads, "basic")
    sums = {name: _Sums() for name in pairs}
    for tensor in inputs:
        expected = left.run(tensor, list(pairs))
        rest(float_model)  # the weights of both would be in memory
        actual = right.run(tensor, list(pairs.values()))
        for name, other in pairs.items():
            sums[name].add(expected[name], actual[other])
    return [entry.result(name) for name, entry in sums.items()]


def mean_sqnr(comparisons: Sequence[Comparison]) -> float:
    """Mean over tensors of the signal-to-quantization-noise ratio, each capped at 60 dB."""
    return float(np.mean([min(entry.sqnr_db, 60.0) for entry in comparisons]))
