"""Outputs that join quantities of different size (pixels, probabilities): found by their ranges, and cut apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.bundle.columns import LEAST_STEPS, bounds, channel_axes
from narrowcast.graph.ends import cut_before, opened
from narrowcast.graph.model import Model
from narrowcast.graph.run import Runner
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.net import constant_of, with_outputs
from narrowcast.plan import Draft, Pins
from narrowcast.tasks import Task

__all__ = ["MIXED", "part", "without"]

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
        model, ir=graph, original=ir.to_proto(graph), meaning=meaning, join=join, notes=(*model.notes, *notes)
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
