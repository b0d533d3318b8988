"""Columns of outputs, and parts that a graph joins inside, which vary in float but not in the integers: lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.engine.noise import beside
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.net import dims, producer
from narrowcast.plan.structure import is_real

__all__ = ["LEAST_STEPS", "LOST", "LostColumns", "bounds", "channel_axes", "lost_columns", "lost_parts"]

#: How the note on such columns begins.
LOST = "WARNING: lost"
#: A float column varies when its numbers differ by more than this share of the largest; float32 sums err by less.
_VARIES = 1e-5
#: A column of fewer steps is lost too where the error is above half of what it varies by (both root mean square).
_FEW = 8
#: Steps of a common scale that the numbers of a part should cover. 32 of 256: below, three bits and more are lost.
LEAST_STEPS = 32


@dataclass(frozen=True)
class LostColumns:
    """Columns of one output, or of a tensor inside, along one axis.

    Attributes:
        output: name of the tensor.
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

    def note(self, option: str) -> str:
        """One line for a person, with the option of ``quantize`` that gives the node more bits."""
        which = f"all {self.count} columns" if len(self.columns) == self.count else f"columns {_runs(self.columns)}"
        if self.count == 1:
            which = "all numbers"
        what = "are constant in the integers" if self.constant else f"cover less than {_FEW} steps of the integers"
        return (
            f"{LOST}: {which} of {self.output} (axis {self.axis}, {len(self.columns)} of {self.count}) vary by up to "
            f"{self.varies_by:.3g} in float and {what}; try {option} {self.node}"
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
    shape = dims(value)
    if len(shape) < 3:
        return (len(shape) - 1,) if shape else ()
    if len(shape) == 3:
        short, long = sorted((1, 2), key=lambda axis: shape[axis])
        return (short, long) if shape[long] < 2 * shape[short] else (short,)
    if len(shape) > 4:
        return tuple(range(1, len(shape)))
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
    """Of every column along an axis: least and largest number, sum and sum of squares."""

    count = 0
    sum: Any = 0.0
    squares: Any = 0.0
    low: Any = np.inf
    high: Any = -np.inf

    def add(self, values: NDArray[Any], axis: int) -> None:
        others = tuple(entry for entry in range(values.ndim) if entry != axis)
        self.count += values.size // values.shape[axis]
        self.sum = self.sum + values.sum(axis=others, dtype=np.float64)
        self.squares = self.squares + np.square(values, dtype=np.float64).sum(axis=others)
        self.low = np.minimum(self.low, values.min(axis=others))
        self.high = np.maximum(self.high, values.max(axis=others))


def lost_columns(
    graph: ir.Graph,
    floating: onnx.ModelProto,
    quantized: onnx.ModelProto,
    inputs: Iterable[NDArray[np.float32]],
    threads: int = 0,
    steps: Mapping[str, float] | None = None,
) -> list[LostColumns]:
    """Run both graphs and find the columns of outputs.

    Args:
        graph: prepared graph of the model.
        floating: the same as ONNX.
        quantized: gives outputs of the same names, dequantized.
        inputs: model inputs, consumed once.
        threads: of onnxruntime; 0 for all cores.
        steps: scale of the outputs that have one for all their numbers.
    """
    outputs = [value for value in graph.outputs if is_real(value)]  # class maps have no columns to lose
    places = [(value, axis) for value in outputs for axis in channel_axes(value)]
    names = {str(value.name): str(value.name) for value in outputs}
    rows: list[LostColumns] = []
    watched = _watched(places, beside(floating, quantized, names, inputs, threads))
    for (value, axis), found in zip(places, watched, strict=True):
        for lost, still in zip(found.lost((steps or {}).get(str(value.name), 0.0)), (True, False), strict=True):
            # a class that a few images do not show is no quantity of its own
            if lost.any() and (still or len(value.shape or ()) > 2):
                rows.append(_row(value, axis, found, lost, still))
    return rows


def lost_parts(
    graph: ir.Graph, floating: onnx.ModelProto, quantized: onnx.ModelProto, pairs: Mapping[str, str],
    inputs: Iterable[NDArray[np.float32]], threads: int, steps: Mapping[str, float],
) -> list[LostColumns]:  # fmt: skip
    """Operands that a graph joins inside, of which the integers keep nothing beside the larger ones of the same scale.

    Arguments as :func:`lost_columns`; ``pairs`` gives the names in both graphs of the tensors that exist as integers.
    """
    inner = [node for node in graph if facts(node).kind is Kind.JOIN and not node.outputs[0].is_graph_output()]
    joins = [node for node in inner if len(node.inputs) > 1 and str(node.outputs[0].name) in pairs]
    places = [(node.outputs[0], node.attributes["axis"].as_int() % len(dims(node.outputs[0]))) for node in joins]
    names = {str(value.name): pairs[str(value.name)] for value, _ in places}
    rows: list[LostColumns] = []
    watched = _watched(places, beside(floating, quantized, names, inputs, threads))
    for node, (value, axis), found in zip(joins, places, watched, strict=True):
        constant, coarse = found.lost(steps.get(str(value.name), 0.0))
        low, high = found.wanted.low, found.wanted.high
        lost, first = np.zeros_like(constant), 0
        for operand in node.inputs:
            part = slice(first, first := first + dims(operand)[axis])
            least, most = bounds(operand) or (low[part].min(), high[part].max())
            small = most - least < LEAST_STEPS / 2**8 * (max(high.max(), 0.0) - min(low.min(), 0.0))
            lost[part] = small and (constant | coarse)[part].all()
        if lost.any():
            rows.append(_row(value, axis, found, lost, bool(constant[lost].all())))
    return rows


def bounds(value: ir.Value | None) -> tuple[float, float] | None:
    """What a function of known range can give, whatever a few images show of it; ``None`` for others."""
    node = producer(value)
    while node is not None and facts(node).kind in (Kind.MOVE, Kind.TURN):
        node = producer(node.inputs[0])
    return facts(node).bounds if node is not None else None


class _Watched:
    """Columns of a tensor along one axis: in float, in the integers, and their difference."""

    def __init__(self) -> None:
        self.wanted, self.given, self.error = _Spread(), _Spread(), _Spread()

    def lost(self, step: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Columns that vary in float and are constant in the integers; and those of a few steps, which say little."""
        real, error = self.wanted, np.sqrt(self.error.squares / self.error.count)
        deviation = np.sqrt(np.maximum(real.squares / real.count - np.square(real.sum / real.count), 0.0))
        span = real.high - real.low
        varies = span > _VARIES * np.maximum(np.abs(real.low), np.abs(real.high))
        constant = varies & (self.given.high == self.given.low)
        return constant, varies & ~constant & (span < _FEW * step) & (error > 0.5 * deviation)


def _watched(places: Sequence[tuple[ir.Value, int]], runs: Iterable[tuple[Any, Any]]) -> list[_Watched]:
    """What :func:`beside` gives of these tensors along these axes."""
    found = [_Watched() for _ in places]
    for expected, actual in runs if places else ():
        for (value, axis), entry in zip(places, found, strict=True):
            real, restored = np.asarray(expected[str(value.name)]), np.asarray(actual[str(value.name)])
            entry.wanted.add(real, axis)
            entry.given.add(restored, axis)
            entry.error.add(restored - real, axis)
    return found


def _row(value: ir.Value, axis: int, found: _Watched, lost: NDArray[np.bool_], constant: bool) -> LostColumns:
    span = float((found.wanted.high - found.wanted.low)[lost].max())
    name = "" if (node := value.producer()) is None else str(node.name)
    return LostColumns(str(value.name), name, axis, lost.size, tuple(np.flatnonzero(lost).tolist()), span, constant)
