"""Columns of outputs that vary in float and are constant in the integers: what they say is lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.engine.noise import beside
from narrowcast.ops.facts import Kind, facts
from narrowcast.plan.structure import is_real

__all__ = ["LOST", "LostColumns", "channel_axes", "lost_columns"]

#: How the note on such columns begins.
LOST = "WARNING: lost"
#: A float column varies when its numbers differ by more than this share of the largest; float32 sums err by less.
_VARIES = 1e-5
#: A column of fewer steps is lost too where the error is above half of what it varies by (both root mean square).
_FEW = 8


@dataclass(frozen=True)
class LostColumns:
    """Columns of one output along one axis.

    Attributes:
        output: name.
        node: that writes it.
        axis: of the columns.
        count: columns along that axis.
        columns: indices of those that are lost.
        varies_by: the largest difference of two numbers of such a column in float, in the output's unit.
        constant: they are constant in the integers; otherwise they cover a few steps and say little.
    """

    output: str
    node: str
    axis: int
    count: int
    columns: tuple[int, ...]
    varies_by: float
    constant: bool = True

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "columns": list(self.columns)}

    def __str__(self) -> str:
        which = f"all {self.count} columns" if len(self.columns) == self.count else f"columns {_runs(self.columns)}"
        if self.count == 1:
            which = "all numbers"
        what = "are constant in the integers" if self.constant else f"cover less than {_FEW} steps of the integers"
        return (
            f"{LOST}: {which} of {self.output} (axis {self.axis}, {len(self.columns)} of {self.count}) vary by up to "
            f"{self.varies_by:.3g} in float and {what}; try --int16 {self.node}"
        )


def _runs(columns: tuple[int, ...]) -> str:
    """``4..6, 9``, at most eight runs."""
    runs: list[list[int]] = []
    for column in columns:
        if runs and column == runs[-1][1] + 1:
            runs[-1][1] = column
        else:
            runs.append([column, column])
    texts = [f"{first}..{last}" if last > first else str(first) for first, last in runs]
    return ", ".join(texts[:8]) + (", ..." if len(texts) > 8 else "")


def channel_axes(value: ir.Value) -> tuple[int, ...]:
    """Axes of an output along which its columns mean different things.

    A map's channels are known from the convolution that it comes from. Elsewhere the shape must tell: of three axes the
    shorter one is not the anchors (both, where they are nearly as long); of five or more, all count.
    """
    dims = [int(dim) for dim in value.shape or ()]
    if len(dims) < 3:
        return (len(dims) - 1,) if dims else ()
    if len(dims) == 3:
        short, long = sorted((1, 2), key=lambda axis: dims[axis])
        return (short, long) if dims[long] < 2 * dims[short] else (short,)
    if len(dims) > 4:
        return tuple(range(1, len(dims)))
    orders: list[list[int]] = []
    node = value.producer()
    while node is not None and ((entry := facts(node)).keeps_axes or entry.kind is Kind.TURN):
        if entry.kind is Kind.TURN:
            orders.append([int(entry) for entry in node.attributes.get_ints("perm", None) or (3, 2, 1, 0)])
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    axis = 1
    for order in reversed(orders):
        axis = order.index(axis)
    return (axis,)


class _Spread:
    """Least and largest number of every column along an axis."""

    def __init__(self) -> None:
        self.low: NDArray[Any] | None = None
        self.high: NDArray[Any] | None = None
        self.count = 0
        self.sum: Any = 0.0
        self.squares: Any = 0.0

    @property
    def deviation(self) -> NDArray[Any]:
        """Standard deviation of every column."""
        mean = self.sum / self.count
        return np.asarray(np.sqrt(np.maximum(self.squares / self.count - mean * mean, 0.0)))

    @property
    def size(self) -> NDArray[Any]:
        """Root of the mean square of every column."""
        return np.asarray(np.sqrt(self.squares / self.count))

    def add(self, values: NDArray[Any], axis: int) -> None:
        others = tuple(entry for entry in range(values.ndim) if entry != axis)
        self.count += values.size // values.shape[axis]
        self.sum = self.sum + values.sum(axis=others, dtype=np.float64)
        self.squares = self.squares + np.square(values, dtype=np.float64).sum(axis=others)
        low, high = values.min(axis=others), values.max(axis=others)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)

    @property
    def span(self) -> NDArray[Any]:
        assert self.low is not None and self.high is not None
        return np.asarray(self.high - self.low)

    @property
    def largest(self) -> NDArray[Any]:
        assert self.low is not None and self.high is not None
        return np.asarray(np.maximum(np.abs(self.low), np.abs(self.high)))


def lost_columns(
    graph: ir.Graph,
    floating: onnx.ModelProto,
    quantized: onnx.ModelProto,
    inputs: Iterable[NDArray[np.float32]],
    threads: int = 0,
    steps: Mapping[str, float] | None = None,
) -> list[LostColumns]:
    """Run both graphs and find the columns.

    Args:
        graph: prepared graph of the model.
        floating: the same as ONNX.
        quantized: gives outputs of the same names, dequantized.
        inputs: model inputs, consumed once.
        threads: of onnxruntime; 0 for all cores.
        steps: scale of the outputs that have one for all their numbers.
    """
    outputs = [value for value in graph.outputs if is_real(value)]  # class maps have no columns to lose
    axes = {(str(value.name), axis): value for value in outputs for axis in channel_axes(value)}
    names = {name: name for name, _ in axes}
    spreads = {key: (_Spread(), _Spread(), _Spread()) for key in axes}
    for expected, actual in beside(floating, quantized, names, inputs, threads):
        for (name, axis), (wanted, given, error) in spreads.items():
            real, restored = np.asarray(expected[name]), np.asarray(actual[name])
            wanted.add(real, axis)
            given.add(restored, axis)
            error.add(restored - real, axis)
    rows: list[LostColumns] = []
    for (name, axis), value in axes.items():
        wanted, given, error = spreads[name, axis]
        if wanted.low is None or value.dtype not in (None, ir.DataType.FLOAT):
            continue
        varies = wanted.span > _VARIES * wanted.largest
        constant = varies & (given.span == 0)
        few = wanted.span < _FEW * (steps or {}).get(name, 0.0)
        coarse = varies & ~constant & few & (error.size > 0.5 * wanted.deviation)
        node = value.producer()
        maker = str(node.name) if node is not None else ""
        for lost, still in ((constant, True), (coarse, False)):
            # a class that a few images do not show is no quantity of its own
            if lost.any() and (still or len(value.shape or ()) > 2):
                columns = tuple(int(index) for index in np.flatnonzero(lost))
                span = float(wanted.span[lost].max())
                rows.append(LostColumns(name, maker, axis, lost.size, columns, span, still))
    return rows
