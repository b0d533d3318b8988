"""What a plan is made of: encodings of tensors and placements of nodes, as plain data."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["DTYPES", "EIGHT_BITS", "Encoding", "Placement", "Plan", "edge_key", "round_real", "split_edge_key"]

#: Integer types with their smallest and largest value.
DTYPES: dict[str, tuple[int, int]] = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}
EIGHT_BITS = ("int8", "uint8")
#: Numbers that are quantized at once: a weight may be large, and float64 is eight times the result.
_BLOCK = 1 << 18


def round_real(x: NDArray[np.float64] | float, rounding: str) -> NDArray[np.float64]:
    """Round real numbers to integers (still float64), ``"half-even"`` or ``"half-up"``, which is floor(x + 1/2)."""
    values = np.asarray(x, np.float64)
    return np.asarray(np.rint(values) if rounding == "half-even" else np.floor(values + 0.5))


@dataclass(frozen=True)
class Encoding:
    """How real numbers are represented as integers: ``x = (q - zero_point) * scale``.

    Attributes:
        dtype: key of :data:`DTYPES`.
        scale: real value of one step, > 0; a tuple holds one value per channel of ``axis``.
        zero_point: the integer that stands for 0.0 (one for all channels).
        axis: channel axis of a per-channel scale, ``None`` for per-tensor.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # for reading files

    dtype: str
    scale: float | tuple[float, ...]
    zero_point: int = 0
    axis: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown integer type {self.dtype!r}; use one of {', '.join(DTYPES)}")
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        if not scales or not all(math.isfinite(s) and s > 0 for s in scales):
            raise ValueError("a scale must be finite and above zero")
        if isinstance(self.scale, tuple) != (self.axis is not None):
            raise ValueError("a per-channel scale needs an axis, and a per-tensor scale has none")
        if not self.qmin <= self.zero_point <= self.qmax:
            raise ValueError(f"zero point {self.zero_point} is outside {self.dtype}")

    @property
    def qmin(self) -> int:
        """Smallest integer of the type."""
        return DTYPES[self.dtype][0]

    @property
    def qmax(self) -> int:
        """Largest integer of the type."""
        return DTYPES[self.dtype][1]

    @property
    def scales(self) -> NDArray[np.float64]:
        """The scale as an array: shape () per tensor, (C,) per channel."""
        return np.asarray(self.scale, np.float64)

    @property
    def exponents(self) -> NDArray[np.int64]:
        """log2 of the scale, shape () or (C,).

        Raises:
            ValueError: when a scale is not a power of two.
        """
        mantissa, exponent = np.frexp(self.scales)
        if not np.all(mantissa == 0.5):
            raise ValueError(f"scale {self.scale} is not a power of two")
        return (exponent - 1).astype(np.int64)

    def broadcast(self, rank: int) -> NDArray[np.float64]:
        """The scale shaped to broadcast against a tensor of ``rank`` axes."""
        if self.axis is None:
            return self.scales
        shape = [1] * rank
        shape[self.axis] = -1
        return self.scales.reshape(shape)

    def quantize(self, x: NDArray[Any], rounding: str = "half-even") -> NDArray[Any]:
        """Real values to integers of the type: ``clip(round(x / scale) + zero_point)`` (DESIGN rule 1)."""
        real = np.atleast_1d(x)
        scale = np.broadcast_to(self.broadcast(real.ndim), real.shape)
        result = np.empty_like(real, self.dtype)
        rows = max(1, _BLOCK * len(real) // max(1, real.size))
        for start in range(0, len(real), rows):
            part = slice(start, start + rows)
            q = round_real(np.divide(real[part], scale[part], dtype=np.float64), rounding)
            q += self.zero_point
            result[part] = np.clip(q, self.qmin, self.qmax, out=q)
        return result.reshape(np.shape(x))

    def dequantize(self, q: NDArray[Any]) -> NDArray[np.float32]:
        """Integers to real values (float32): ``(q - zero_point) * scale``."""
        real = (np.asarray(q, np.float64) - self.zero_point) * self.broadcast(np.ndim(q))
        return real.astype(np.float32)


@dataclass(frozen=True)
class Placement:
    """Where a node runs and how its outputs are represented.

    Attributes:
        unit: a unit of the target, e.g. ``"BPU"`` or ``"CPU"``.
        type: ``"int8"``, ``"int16"`` or ``"float32"``.
        reason: one clause a person can read.
    """

    unit: str
    type: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """How every tensor is represented and where every node runs.

    Attributes:
        target: name of the target.
        tensors: value name (activation, weight, bias, graph input) to its encoding. A value without an
            entry is float, or lives only inside a fused unit.
        edges: :func:`edge_key` to the encoding in which that consumer reads the tensor, where it is not
            the tensor's own: the chip requantizes on this edge.
        nodes: node name to its placement.
    """

    target: str
    tensors: dict[str, Encoding] = field(default_factory=dict)
    edges: dict[str, Encoding] = field(default_factory=dict)
    nodes: dict[str, Placement] = field(default_factory=dict)

    def __repr__(self) -> str:
        count = Counter(placement.type for placement in self.nodes.values())
        types = ", ".join(f"{number} {name}" for name, number in sorted(count.items()))
        return f"<Plan for {self.target}: {len(self.tensors)} tensors, {len(self.nodes)} nodes ({types})>"


def edge_key(node: str, index: int) -> str:
    """The key of input ``index`` of node ``node`` in :attr:`Plan.edges`."""
    return f"{node}#{index}"


def split_edge_key(key: str) -> tuple[str, int]:
    """The node and the index of its input, of a key of :attr:`Plan.edges`."""
    node, index = key.rsplit("#", 1)
    return node, int(index)
