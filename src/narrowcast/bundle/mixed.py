"""Outputs that join quantities of different size (pixels, probabilities): found by their ranges, and cut apart.

Where no cut is made, something may be lost: columns of outputs, and parts that a graph joins inside, which vary in
float but not in the integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.engine.noise import beside
from narrowcast.graph.ends import cut_before, opened
from narrowcast.graph.model import Model
from narrowcast.graph.run import Runner
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.net import constant_of, dims, producer, with_outputs
from narrowcast.plan import Draft, Pins
from narrowcast.plan.structure import is_real
from narrowcast.tasks import Task

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


#: How a note begins that says which outputs stay mixed.
MIXED = "WARNING: mixed units"
_STEPS = {"int8": 2**8, "int16": 2**16}


@dataclass(frozen=True)
class _Range:
    """Least and largest of every element over the images."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @property
    def span(self) -> float:
        return float(self.high.max() - self.low.min())

    def sizes(self, axis: int) -> NDArray[np.float32]:
        """Largest magnitude of every column along an axis."""
        others = tuple(entry for entry in range(self.low.ndim) if entry != axis)
        return np.asarray(np.maximum(np.abs(self.low), np.abs(self.high)).max(axis=others))


def part(model: Model, drafted: Draft, inputs: Iterable[NDArray[np.float32]], threads: int = 0) -> Model:
    """Cut the outputs apart in which a part's numbers cover too few steps of the common scale.

    Args:
        model: whose graph ``drafted`` plans.
        drafted: says which tensors become integers, and of how many bits.
        inputs: a few model inputs.
        threads: of onnxruntime; 0 for all cores.

    Returns:
        The same model, or one whose graph is cut and whose ``join`` puts the parts together again in float.
    """
    outputs = {str(value.name): value for value in model.ir.graph.outputs}
    tails = {name: _tail(value) for name, value in outputs.items()}
    wanted = {str(value.name): value for values in tails.values() for value in values}
    if not any(_may_mix(value) for value in wanted.values()):
        return model
    ranges = _ranges(model, list(wanted), inputs, threads)
    parts: dict[str, list[str]] = {}
    said: list[str] = []
    for name, value in outputs.items():
        found, mixed = _apart(value, drafted, ranges)
        if mixed:
            parts[name] = [str(entry.name) for entry in found]
            said.append(f"{name} ({_listed(found, ranges)})")
    if not parts:
        return model
    reason = _unsafe(model, wanted, parts, drafted)
    if reason:
        notes = tuple(f"{MIXED}: {entry} shares one scale and stays whole, because {reason}" for entry in said)
        return replace(model, notes=(*model.notes, *notes))
    graph, join = cut_before(model.ir, parts)
    notes = tuple(
        f"{entry} joins quantities of different size: cut into {len(parts[name])} parts with a scale each, which are "
        "joined again in float"
        for name, entry in zip(parts, said, strict=True)
    )
    meaning = model.meaning if model.head is not None else Task()  # of outputs that the graph does not give any more
    return replace(
        model, ir=graph, original=ir.to_proto(graph), meaning=meaning, join=join, notes=(*model.notes, *notes), given={}
    )  # fmt: skip


def without(pins: Pins | None, before: ir.Graph, after: ir.Graph) -> Pins | None:
    """Pins without those of nodes and tensors that a cut took away."""
    if pins is None:
        return None
    gone = _names(before) - _names(after)
    return replace(
        pins,
        nodes={name: entry for name, entry in pins.nodes.items() if name not in gone},
        tensors={name: entry for name, entry in pins.tensors.items() if name not in gone},
    )


def _names(graph: ir.Graph) -> set[str]:
    values = {str(value.name) for node in graph for value in (*node.inputs, *node.outputs) if value is not None}
    return values | {str(node.name) for node in graph}


def _may_mix(value: ir.Value) -> bool:
    """Whether a value is made of several, or of one with a constant that differs from column to column."""
    node = value.producer()
    if node is None or not opened(value):
        return False
    constants = [constant for operand in node.inputs if (constant := constant_of(operand)) is not None]
    varied = facts(node).shifts_or_scales and any(constant.size > 1 for constant in constants)
    return varied or (facts(node).kind is Kind.JOIN and len(node.inputs) > 1)


def _tail(value: ir.Value) -> list[ir.Value]:
    """A value and what leads to it through nodes that could be left to a join."""
    found: dict[ir.Value, None] = {}
    stack = [value]
    while stack:
        current = stack.pop()
        if current not in found:
            found[current] = None
            stack.extend(opened(current) or ())
    return list(found)


def _ranges(
    model: Model, names: list[str], inputs: Iterable[NDArray[np.float32]], threads: int
) -> Mapping[str, _Range]:
    runner = Runner(with_outputs(model.to_proto(), names), threads, "basic")
    wanted = [name for name in names if name != runner.input_name]
    found: dict[str, _Range] = {}
    for tensor in inputs:
        values: dict[str, NDArray[Any]] = {**runner.run(tensor, wanted), runner.input_name: tensor}
        for name in names:
            array = np.asarray(values[name], np.float32)
            known = found.get(name, _Range(array, array))
            found[name] = _Range(np.minimum(known.low, array), np.maximum(known.high, array))
    return found


def _apart(value: ir.Value, drafted: Draft, ranges: Mapping[str, _Range]) -> tuple[list[ir.Value], bool]:
    """The values at which to cut so that no scale is shared by quantities too different, and whether that is needed."""
    operands = opened(value)
    if operands is None:
        return [value], False
    inner = [_apart(operand, drafted, ranges) for operand in operands]
    parts = list(dict.fromkeys(entry for found, _ in inner for entry in found))
    if any(mixed for _, mixed in inner) or _mixes(value, operands, drafted, ranges):
        return parts, True
    return [value], False


def _mixes(value: ir.Value, operands: list[ir.Value], drafted: Draft, ranges: Mapping[str, _Range]) -> bool:
    """Whether a node brings numbers into one integer tensor of which some then cover too few of its steps."""
    node, group = value.producer(), drafted.structure.of.get(str(value.name))
    if node is None or group is None:
        return False
    whole = ranges[str(value.name)]
    extent = max(float(whole.high.max()), 0.0) - min(float(whole.low.min()), 0.0)
    least = LEAST_STEPS * extent / _STEPS[group.type]
    if facts(node).kind is Kind.JOIN:
        spans = [_span(operand, ranges) for operand in operands]
        return len(node.inputs) > 1 and any(0 < span < least for span in spans)
    constant = next((c for operand in node.inputs if (c := constant_of(operand)) is not None), None)
    if not facts(node).shifts_or_scales or constant is None or constant.size == 1:
        return False
    before = ranges[str(operands[0].name)]
    return any(_shrinks(before, whole, axis) for axis in channel_axes(value))


def _shrinks(before: _Range, after: _Range, axis: int) -> bool:
    """Whether a constant a column makes some columns small beside others that were not before."""
    if before.low.shape != after.low.shape:
        return False
    old, new = (entry.sizes(axis) for entry in (before, after))
    least = LEAST_STEPS / _STEPS["int8"]
    return bool(((new > 0) & (new < least * new.max()) & (old >= least * old.max())).any())


def _span(value: ir.Value, ranges: Mapping[str, _Range]) -> float:
    """Largest minus least number of a value; of a bounded function, what it can give."""
    known, span = bounds(value), ranges[str(value.name)].span
    return known[1] - known[0] if known is not None and span > 0 else span


def _listed(parts: list[ir.Value], ranges: Mapping[str, _Range]) -> str:
    known = [ranges[str(entry.name)] for entry in parts]
    texts = dict.fromkeys(f"{float(entry.low.min()):.3g}..{float(entry.high.max()):.3g}" for entry in known)
    return ", ".join(list(texts)[:6]) + (", ..." if len(texts) > 6 else "")


def _unsafe(
    model: Model, values: Mapping[str, ir.Value], parts: Mapping[str, list[str]], drafted: Draft
) -> str:
    """Why the outputs cannot be cut apart, empty where they can."""
    for name in (name for group in parts.values() for name in group):
        value = values[name]
        if value.producer() is None:
            return f"{name} is the model's input"
        if value.dtype not in (None, ir.DataType.FLOAT):
            return f"{name} holds no float32 numbers"
    most = drafted.target.runtime.most_outputs
    kept = [str(value.name) for value in model.ir.graph.outputs if str(value.name) not in parts]
    count = len({*kept, *(name for group in parts.values() for name in group)})
    return f"{count} outputs are more than {drafted.target.name} takes" if most is not None and count > most else ""
