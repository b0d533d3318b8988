"""How far a tensor is from the one that it stands for: one set of sums for all the measures that people know."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from narrowcast.graph.run import Runner, rest
from narrowcast.ops.net import with_outputs
from narrowcast.tasks.errors import as_reals

__all__ = ["Noise", "beside", "compare_tensors", "mean_sqnr"]

#: What ESP-PPQ adds to the signal power, so that an all-zero tensor does not divide by zero.
_LEAST_POWER = 1e-7
#: Better (and worse, below 0) than this does not count in a mean, so that no output outweighs the others; in dB.
_CAP = 60.0


@dataclass
class Noise:
    """Sums over one tensor of all images, which may arrive in any order."""

    signal: float = 0.0
    noise: float = 0.0
    other: float = 0.0
    product: float = 0.0
    ratios: float = 0.0
    absolute: float = 0.0
    max_abs: float = 0.0
    count: int = 0
    images: int = 0
    whole: bool = False

    def add(self, expected: NDArray[Any], actual: NDArray[Any]) -> None:
        """Take in the tensor of one image, both of the same shape; whole numbers count as :func:`as_reals` says."""
        self.whole = expected.dtype.kind in "iub"
        self.take(*as_reals(expected, actual))

    def take(self, x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]) -> None:
        """Take in flat real numbers, computing in their type."""
        difference = x - y
        signal, noise = float(np.dot(x, x)), float(np.dot(difference, difference))
        self.signal += signal
        self.noise += noise
        self.other += float(np.dot(y, y))
        self.product += float(np.dot(x, y))
        self.ratios += noise / (signal + _LEAST_POWER)
        np.abs(difference, out=difference)
        self.absolute += float(difference.sum(dtype=np.float64))
        self.max_abs = max(self.max_abs, float(difference.max(initial=0.0)))
        self.count += x.size
        self.images += 1

    @property
    def ratio(self) -> float:
        """Noise-to-signal power ratio, mean over images of sum((y - x)^2) / (sum(x^2) + 1e-7), as ESP-PPQ's ``snr``
        (``ppq/quantization/measure/norm.py``) defines it; 0 is equal."""
        return self.ratios / max(1, self.images)

    @property
    def sqnr_db(self) -> float:
        """Signal-to-quantization-noise ratio over all images, 10 log10(sum x^2 / sum (x - y)^2); infinite if equal."""
        quotient = self.signal / self.noise if self.noise else math.inf
        return 10 * math.log10(quotient) if quotient > 0 else -math.inf

    @property
    def cosine(self) -> float:
        """Cosine similarity over all images; 1 is equal."""
        norm = math.sqrt(self.signal * self.other)
        return min(1.0, self.product / norm) if norm else float(self.signal == self.other)

    @property
    def mean_abs(self) -> float:
        """Mean absolute difference, in the tensor's unit; of whole numbers, the share of values that differ."""
        return self.absolute / max(1, self.count)

    def to_dict(self) -> dict[str, float | None]:
        """JSON-ready, for an analysis; an infinite ratio is ``null``."""
        return {"noise_ratio": self.ratio, "sqnr_db": _finite(self.sqnr_db), "cosine": self.cosine}

    def row(self, name: str) -> dict[str, Any]:
        """JSON-ready, for a bundle; ``equal`` is the share of equal values of a tensor of whole numbers."""
        return {
            "name": name, "cosine": self.cosine, "sqnr_db": _finite(self.sqnr_db), "mean_abs": self.mean_abs,
            "max_abs": self.max_abs, "rms": math.sqrt(self.noise / max(1, self.count)),
            **({"equal": 1 - self.mean_abs} if self.whole else {}),
        }  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def beside(
    floating: onnx.ModelProto,
    quantized: onnx.ModelProto,
    pairs: Mapping[str, str],
    inputs: Iterable[NDArray[np.float32]],
    threads: int = 0,
) -> Iterator[tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]]:
    """Run two graphs side by side.

    Args:
        floating, quantized: the graphs.
        pairs: tensor of the first to the tensor of the second that stands for it.
        inputs: model inputs, consumed once.
        threads: of onnxruntime; 0 for all cores.

    Yields:
        For each input, tensors of both graphs by the name that they have in the first.
    """
    others = list(pairs.values())
    left = Runner(with_outputs(floating, list(pairs)), threads, "basic")
    right = Runner(with_outputs(quantized, others), threads, "basic")
    for tensor in inputs:
        expected = left.run(tensor, list(pairs))
        rest(floating)  # the weights of both would be in memory
        found = right.run(tensor, others)
        yield expected, {name: found[other] for name, other in pairs.items()}


def compare_tensors(
    floating: onnx.ModelProto,
    quantized: onnx.ModelProto,
    pairs: Mapping[str, str],
    inputs: Iterable[NDArray[np.float32]],
    threads: int = 0,
) -> dict[str, Noise]:
    """Noise of tensors of a quantized graph over all inputs, by name; arguments as :func:`beside`."""
    sums = {name: Noise() for name in pairs}
    for expected, actual in beside(floating, quantized, pairs, inputs, threads):
        for name, noise in sums.items():
            noise.add(expected[name], actual[name])
    return sums


def mean_sqnr(noises: Iterable[Noise]) -> float:
    """Mean over tensors of the signal-to-quantization-noise ratio in dB, each within 60 dB either way."""
    return float(np.mean([max(-_CAP, min(noise.sqnr_db, _CAP)) for noise in noises]))
