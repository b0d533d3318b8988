"""The walk over the graph: every node, every rule, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.chips.schema import Target
from narrowcast.engine.reference import fixed
from narrowcast.engine.reference.arithmetic import (
    Accumulator,
    Steps,
    Unrounded,
    float_rounded,
    to_encoding,
)
from narrowcast.engine.reference.sums import (
    convolve,
    convolve_transposed,
    encoded,
    evaluate_float,
    evaluate_moving,
    evaluate_wide,
    exact_matmul,
    max_pool,
    nearest_resize,
    real_of,
    tabulated,
    window_totals,
)
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.functions import clip_bounds
from narrowcast.ops.net import constant_at, constant_of, dims, integers_at
from narrowcast.plan.types import Encoding, Plan, edge_key

__all__ = ["run_reference"]

Array = NDArray[Any]


def run_reference(
    model: ir.Model, plan: Plan, target: Target, inputs: Mapping[str, Array], given: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """Compute every integer tensor of a graph slowly.

    Args:
        model: prepared graph.
        plan: its encodings.
        target: the chip's rules.
        inputs: graph input to a float32 array, or to integers where its type is an integer one.
        given: value name or edge key to integers that consumers read instead of what this function computed for it
            ("teacher forcing": a wrong node does not spoil those behind it).

    Returns:
        Value name or edge key (a requantized input) to the integers, in the type of their encoding. What a node
        computes is returned even where consumers read a given tensor.

    Raises:
        UserError: an operator without a rule.
    """
    walk = _Walk(model, plan, target, dict(given or {}))
    for value in model.graph.inputs:
        walk.enter(value, np.asarray(inputs[str(value.name)]))
    last = {str(value.name): node for node in model.graph for value in node.inputs if value is not None}
    for node in model.graph:
        walk.visit(node)
        for value in node.inputs:
            if value is not None and last[str(value.name)] is node:
                walk.values.pop(str(value.name), None)  # 8 bytes a number: a whole network of them is too much
    return walk.results


@dataclass
class _Walk:
    model: ir.Model
    plan: Plan
    target: Target
    given: dict[str, Array]
    results: dict[str, Array] = field(default_factory=dict)
    values: dict[str, Array | Unrounded] = field(default_factory=dict)

    def enter(self, value: ir.Value, array: Array) -> None:
        encoding = self.plan.tensors.get(str(value.name))
        if encoding is not None and array.dtype.kind in "iu":
            self._keep(value, array.astype(np.int64), encoding)
        else:
            self.finish(value, array.astype(np.float32))

    def finish(
        self, value: ir.Value, result: Array | Unrounded, low: int | None = None, high: int | None = None
    ) -> None:
        """Keep a result: float arrays and unrounded sums are quantized where the plan has an encoding.

        Integer arrays are in the plan's encoding already, not saturated.
        """
        encoding = self.plan.tensors.get(str(value.name))
        if encoding is None:
            self.values[str(value.name)] = result
            if not isinstance(result, Unrounded) and result.dtype.kind in "iub":
                self.results[str(value.name)] = result  # indices and truth values are what they are
            return
        if isinstance(result, Unrounded):
            result = result.rounded(encoding, self.target)
        elif result.dtype.kind == "f":
            steps = np.asarray(result, np.float32) / np.float32(encoding.scales)
            result = float_rounded(steps, self.target.quantize_rounding) + encoding.zero_point
        bottom, top = encoding.qmin if low is None else low, encoding.qmax if high is None else high
        self._keep(value, np.clip(result, bottom, top).astype(np.int64), encoding)

    def _keep(self, value: ir.Value, integers: Array, encoding: Encoding) -> None:
        name = str(value.name)
        self.results[name] = integers.astype(encoding.dtype)
        self.values[name] = np.asarray(self.given.get(name, integers)).astype(np.int64)

    def visit(self, node: ir.Node) -> None:
        if self._runs_in_float(node):
            self._float(node)
            return
        rule = _RULES.get(facts(node).kind)
        if rule is None:
            raise UserError(f"{node.name}: the reference has no rule for {node.op_type}", "pin it to float32")
        rule(self, node)

    def encoding(self, node: ir.Node) -> Encoding:
        return self.plan.tensors[str(node.outputs[0].name)]

    def read(self, node: ir.Node, index: int) -> tuple[Array, Encoding]:
        """An operand's integers (int64, zero point included) and their encoding."""
        value = node.inputs[index]
        if value is None:
            raise AssertionError(f"{node.name} has no input {index}")
        name, constant = str(value.name), constant_of(value)
        source = self.plan.tensors[name]
        if constant is not None:
            return self._stored(constant, source), source
        integers = self.values[name]
        if isinstance(integers, Unrounded):
            raise AssertionError(f"{name} was not rounded")
        key = edge_key(str(node.name), index)
        wanted = self.plan.edges.get(key, source)
        if wanted == source:
            return integers, source
        changed = to_encoding(integers, source, wanted, self.target)
        self.results[key] = changed.astype(wanted.dtype)
        return np.asarray(self.given.get(key, changed)).astype(np.int64), wanted

    def _stored(self, constant: Array, encoding: Encoding) -> Array:
        steps = constant.astype(np.float64) / encoding.broadcast(constant.ndim)
        rounded = np.rint(steps) if self.target.quantize_rounding == "half-even" else np.floor(steps + 0.5)
        stored: Array = np.clip(rounded + encoding.zero_point, encoding.qmin, encoding.qmax).astype(np.int64)
        return stored

    def real(self, value: ir.Value) -> Array:
        """Any operand as it enters a float node."""
        constant, name = constant_of(value), str(value.name)
        if constant is not None:
            return constant
        current, encoding = self.values[name], self.plan.tensors.get(name)
        if isinstance(current, Unrounded):
            return current.real()
        if encoding is None:
            return current
        centred = (current - encoding.zero_point).astype(np.float32)
        return np.asarray(centred * encoding.broadcast(current.ndim).astype(np.float32))

    @property
    def is_fixed(self) -> bool:
        """Whether the chip multiplies by fixed-point numbers."""
        return self.target.requantize.is_fixed_point

    def least_shift(self, source: Encoding) -> int:
        """Of a sum of products with constant weights."""
        return 8 if self.is_fixed and source.dtype == "int16" else 0

    def step(self, source: Encoding, code: Encoding, constant: bool) -> Array:
        """Of the sum of products of two operands, the second of which is constant or not."""
        if not self.is_fixed:
            return np.asarray(source.scales * code.scales)
        if constant:
            return fixed.product_step(source, code)
        return np.asarray(fixed.activation_step(source) * fixed.activation_step(code))

    def bias(self, node: ir.Node, channels: int, step: Array) -> Array:
        """Integers of a bias, int64 (C,)."""
        value = node.inputs[2] if len(node.inputs) > 2 else None
        constant = constant_of(value)
        if value is None or constant is None:
            return np.zeros(channels, np.int64)
        encoding, limit = self.plan.tensors[str(value.name)], 2 ** (self._bias_bits(node) - 1)
        scale = step if self.is_fixed else encoding.broadcast(1)
        steps = np.broadcast_to(constant.astype(np.float64).reshape(-1), channels) / scale
        rounded = np.rint(steps) if self.target.quantize_rounding == "half-even" else np.floor(steps + 0.5)
        return np.clip(rounded, -limit, limit - 1).astype(np.int64)

    def _bias_bits(self, node: ir.Node) -> int:
        wide = self.target.bias.int16_bits
        return wide if wide and self.plan.nodes[str(node.name)].type == "int16" else self.target.bias.bits

    def _runs_in_float(self, node: ir.Node) -> bool:
        if self.plan.nodes[str(node.name)].type == "float32":
            return True
        encoded = all(str(value.name) in self.plan.tensors for value in node.outputs)
        for value in node.inputs:
            if value is None or constant_of(value) is not None or str(value.name) in self.plan.tensors:
                continue
            waiting = isinstance(self.values[str(value.name)], Unrounded)
            if not (waiting and encoded and facts(node).is_clip):
                return True
        return not encoded and not facts(node).waits

    def _float(self, node: ir.Node) -> None:
        inputs = {str(value.name): self.real(value) for value in node.inputs if value is not None}
        functions = [ir.serde.serialize_function(function) for function in self.model.functions.values()]
        results = evaluate_float(node, inputs, self.model.opset_imports[""], functions)
        for value, result in zip(node.outputs, results, strict=True):
            self.finish(value, result)


def _convolution(walk: _Walk, node: ir.Node) -> None:
    (x, source), (weight, code) = walk.read(node, 0), walk.read(node, 1)
    kernel = convolve if facts(node).kind is Kind.CONVOLUTION else convolve_transposed
    shape = dims(node.outputs[0])
    total = kernel(x - source.zero_point, weight - code.zero_point, node, shape[2:])
    total = total + walk.bias(node, shape[1], walk.step(source, code, True)).reshape(-1, *[1] * (len(shape) - 2))
    walk.finish(node.outputs[0], Accumulator(total, walk.step(source, code, True), 1, True, walk.least_shift(source)))


def _matrix(walk: _Walk, node: ir.Node) -> None:
    (x, source), (y, code) = walk.read(node, 0), walk.read(node, 1)
    x, y = x - source.zero_point, y - code.zero_point
    total: Array
    if facts(node).kind is Kind.LINEAR:
        x = x.T if node.attributes.get_int("transA", 0) else x
        y = y.T if node.attributes.get_int("transB", 0) else y
        total = exact_matmul(x, y) + walk.bias(node, y.shape[1], walk.step(source, code, True))
    else:
        total = exact_matmul(x, y)
    constant = constant_of(node.inputs[1]) is not None
    walk.finish(
        node.outputs[0],
        Accumulator(
            total,
            walk.step(source, code, constant),
            total.ndim - 1,
            constant,
            walk.least_shift(source) if constant else 0,
        ),
    )


def _sum(walk: _Walk, node: ir.Node) -> None:
    (x, source), (y, code) = walk.read(node, 0), walk.read(node, 1)
    sign = -1 if facts(node).kind is Kind.DIFFERENCE else 1
    terms = ((x - source.zero_point, source, 1), (y - code.zero_point, code, sign))
    walk.finish(node.outputs[0], Steps(terms))


def _product(walk: _Walk, node: ir.Node) -> None:
    (x, source), (y, code) = walk.read(node, 0), walk.read(node, 1)
    wanted = walk.encoding(node)
    whole = (x - source.zero_point) * (y - code.zero_point)
    if walk.is_fixed:
        factor = np.asarray(walk.step(source, code, False) / fixed.activation_step(wanted))
        walk.finish(node.outputs[0], fixed.multiplied(whole, factor, wanted.qmax, False, 1, True))
        return
    if walk.target.int16_products == "exact" and source.dtype == code.dtype == wanted.dtype == "int16":
        walk.finish(node.outputs[0], Accumulator(whole, source.scales * code.scales, 0))
        return
    both = whole.astype(np.float32)
    steps = both * np.float32(float(source.scales) * float(code.scales) / float(wanted.scales))
    walk.finish(node.outputs[0], _whole(walk, steps, wanted))


def _quotient(walk: _Walk, node: ir.Node) -> None:
    (x, source), (y, code) = walk.read(node, 0), walk.read(node, 1)
    wanted = walk.encoding(node)
    x, y = np.broadcast_arrays(x - source.zero_point, y - code.zero_point)
    factor = np.float32(float(source.scales) / (float(code.scales) * float(wanted.scales)))
    steps = x.astype(np.float32) * factor / np.where(y == 0, 1, y).astype(np.float32)
    whole = np.where(y == 0, np.sign(x) * 2**30, _whole(walk, steps, wanted) - wanted.zero_point)
    walk.finish(node.outputs[0], whole + wanted.zero_point)


def _whole(walk: _Walk, steps: Array, wanted: Encoding) -> Array:
    """Float steps of the output as integers, not saturated to its type yet."""
    steps = np.clip(steps, -(2.0**30), 2.0**30)
    return float_rounded(steps, walk.target.requantize.rounding).astype(np.int64) + wanted.zero_point


def _extreme(walk: _Walk, node: ir.Node) -> None:
    wanted = walk.encoding(node)
    sides = [to_encoding(*walk.read(node, index), wanted, walk.target) for index in (0, 1)]
    walk.finish(node.outputs[0], (np.maximum if facts(node).kind is Kind.LARGER else np.minimum)(*sides))


def _clip(walk: _Walk, node: ir.Node) -> None:
    wanted, rounding = walk.encoding(node), walk.target.requantize.rounding
    integers = []
    for bound in clip_bounds(node):
        step = min(max(bound / float(wanted.scales), -1e9), 1e9)
        whole = np.rint(step) if rounding == "half-even" else np.floor(step + 0.5)
        integers.append(int(min(max(whole + wanted.zero_point, wanted.qmin), wanted.qmax)))
    value = node.inputs[0]
    current = walk.values[str(value.name)] if value is not None else None
    if walk.is_fixed and not isinstance(current, Unrounded) and walk.read(node, 0)[1] != wanted:
        x, source = walk.read(node, 0)
        real = np.clip(real_of(x - source.zero_point, source, walk.target), *clip_bounds(node))
        walk.finish(node.outputs[0], encoded(real, wanted, walk.target))
        return
    if not isinstance(current, Unrounded):
        current = to_encoding(*walk.read(node, 0), wanted, walk.target)
    walk.finish(node.outputs[0], current, *integers)


def _average(walk: _Walk, node: ir.Node) -> None:
    x, source = walk.read(node, 0)
    wanted = walk.encoding(node)
    x = x - source.zero_point
    if facts(node).kind is Kind.GLOBAL_AVERAGE:
        axes = tuple(range(2, x.ndim))
        total, counts = x.sum(axis=axes, keepdims=True), np.asarray(np.prod(x.shape[2:]))
    else:
        total, counts = window_totals(x, node, dims(node.outputs[0])[2:])
    if walk.is_fixed:
        if facts(node).kind is Kind.GLOBAL_AVERAGE:
            mean = fixed.multiplied(total, np.asarray(1 / float(counts)), source.qmax, False)
        else:
            mean = fixed.averaged(total, int(np.prod(node.attributes.get_ints("kernel_shape", []) or [])))
        saturated = np.clip(mean, source.qmin, source.qmax)
        walk.finish(node.outputs[0], to_encoding(saturated, source, wanted, walk.target))
        return
    factor = np.float32(1) / counts.astype(np.float32) * np.float32(float(source.scales) / float(wanted.scales))
    walk.finish(node.outputs[0], _whole(walk, total.astype(np.float32) * factor, wanted))


def _reduction(walk: _Walk, node: ir.Node) -> None:
    x, source = walk.read(node, 0)
    wanted = walk.encoding(node)
    kind, listed = facts(node).kind, integers_at(node, "axes", 1)
    axes = tuple(range(x.ndim)) if listed is None else tuple(axis % x.ndim for axis in listed)
    keep = bool(node.attributes.get_int("keepdims", 1))
    if kind in (Kind.LARGEST, Kind.LEAST):
        pick = np.max if kind is Kind.LARGEST else np.min
        integers = to_encoding(pick(x, axis=axes, keepdims=keep), source, wanted, walk.target)
        walk.finish(node.outputs[0], integers)
        return
    whole = np.asarray((x - source.zero_point).sum(axis=axes, keepdims=keep))
    if walk.is_fixed:
        share = 1 if kind is Kind.TOTAL else int(np.prod([x.shape[axis] for axis in axes]))
        walk.finish(node.outputs[0], Accumulator(whole, np.asarray(fixed.activation_step(source) / share), 0))
        return
    total = whole.astype(np.float32)
    if kind is Kind.TOTAL:
        steps = total * np.float32(float(source.scales) / float(wanted.scales))
    else:
        count = np.float32(np.prod([x.shape[axis] for axis in axes]))
        steps = total * np.float32(source.scales) / count * (np.float32(1) / np.float32(wanted.scales))
    walk.finish(node.outputs[0], _whole(walk, np.asarray(steps), wanted))


def _concatenation(walk: _Walk, node: ir.Node) -> None:
    wanted = walk.encoding(node)
    parts = [to_encoding(*walk.read(node, index), wanted, walk.target) for index in range(len(node.inputs))]
    walk.finish(node.outputs[0], np.concatenate(parts, axis=node.attributes.get_int("axis", 0)))


def _max_pool(walk: _Walk, node: ir.Node) -> None:
    x, source = walk.read(node, 0)
    pooled = max_pool(x, node, dims(node.outputs[0])[2:])
    walk.finish(node.outputs[0], to_encoding(pooled, source, walk.encoding(node), walk.target))


def _softmax(walk: _Walk, node: ir.Node) -> None:
    x, source = walk.read(node, 0)
    axis = node.attributes.get_int("axis", -1) % x.ndim
    if not (walk.target.softmax.output == "float32" and source.dtype == "int8"):
        x = x - x.max(axis=axis, keepdims=True)
    powers = np.exp(x * float(source.scales)).astype(np.float32)
    total = np.zeros(np.take(powers, [0], axis=axis).shape, np.float32)
    for index in range(x.shape[axis]):
        total = total + np.take(powers, [index], axis=axis)
    walk.finish(node.outputs[0], powers / total)


def _linear_resize(walk: _Walk, node: ir.Node) -> None:
    x, source = walk.read(node, 0)
    wanted, shape = walk.encoding(node), dims(node.outputs[0])
    final = wanted
    if walk.is_fixed:
        wanted = source
    transformation = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    grid = (x - source.zero_point).astype(np.float32) * np.float32(float(source.scales) / float(wanted.scales))
    scales = _scales(node, x.shape, shape)
    one, half = np.float32(1), np.float32(0.5)
    for axis in range(x.ndim - 1, -1, -1):
        size, count = x.shape[axis], shape[axis]
        if size == count:
            continue
        mixed = []
        for index in range(count):
            place, inverse = np.float32(index), np.float32(1 / scales[axis])
            if transformation == "align_corners":
                wide = np.float32((count - 1) / (size - 1) if size > 1 else 0)
                place = place * (np.float32(1) / wide if wide else np.float32(0))
            elif transformation == "asymmetric":
                place = place * inverse
            elif transformation == "pytorch_half_pixel" and count == 1:
                place = np.float32(0)
            else:
                place = (place + half) * inverse - half
            left = int(np.floor(place))
            share = place - np.float32(left)
            if left < 0:
                left, share = 0, np.float32(0)
            if left >= size - 1:
                left, share = max(size - 2, 0), one if size > 1 else np.float32(0)
            right = min(left + 1, size - 1)
            mixed.append(np.take(grid, left, axis=axis) * (one - share) + np.take(grid, right, axis=axis) * share)
        grid = np.stack(mixed, axis=axis)
    integers = np.clip(_whole(walk, grid, wanted), wanted.qmin, wanted.qmax)
    walk.finish(node.outputs[0], to_encoding(integers, wanted, final, walk.target) if walk.is_fixed else integers)


def _scales(node: ir.Node, source: tuple[int, ...], wanted: tuple[int, ...]) -> list[float]:
    constant = constant_at(node, 2)
    if constant is not None and constant.size == len(source):
        return [float(scale) for scale in constant]
    return [float(np.float32(count / size)) for size, count in zip(source, wanted, strict=True)]


def _nearest_resize(walk: _Walk, node: ir.Node) -> None:
    x, source = walk.read(node, 0)
    shape = dims(node.outputs[0])
    moved = nearest_resize(x, node, _scales(node, x.shape, shape), shape)
    walk.finish(node.outputs[0], to_encoding(moved, source, walk.encoding(node), walk.target))


def _moved(walk: _Walk, node: ir.Node) -> None:
    x, source = walk.read(node, 0)
    inputs: dict[str, Array] = {str(node.inputs[0].name): x} if node.inputs[0] is not None else {}
    for value in node.inputs[1:]:
        constant = constant_of(value)
        if value is not None and constant is not None:
            inputs[str(value.name)] = constant
    results = evaluate_moving(node, inputs, walk.model.opset_imports[""])
    for value, result in zip(node.outputs, results, strict=True):
        wanted = walk.plan.tensors[str(value.name)]
        walk.finish(value, to_encoding(result, source, wanted, walk.target))


def _pad(walk: _Walk, node: ir.Node) -> None:
    """Pad with the integer of the padded number, or with the tensor's own values, in the encoding of the result."""
    source = walk.encoding(node)
    x = to_encoding(*walk.read(node, 0), source, walk.target)
    constants = [constant_of(value) for value in node.inputs[1:]] + [None] * 3
    number = 0.0 if constants[1] is None else float(np.reshape(constants[1], -1)[0])
    steps = number / float(source.scales)
    whole = np.rint(steps) if walk.target.quantize_rounding == "half-even" else np.floor(steps + 0.5)
    filling = int(np.clip(whole + source.zero_point, source.qmin, source.qmax))
    pads = [int(pad) for pad in np.reshape(constants[0], -1)] if constants[0] is not None else []
    axes = range(x.ndim) if constants[2] is None else [int(axis) % x.ndim for axis in np.reshape(constants[2], -1)]
    widths = [(0, 0)] * x.ndim
    for place, axis in enumerate(axes):
        widths[axis] = (pads[place], pads[place + len(pads) // 2])
    x = x[tuple(slice(max(-low, 0), n - max(-high, 0)) for n, (low, high) in zip(x.shape, widths, strict=True))]
    widths = [(max(low, 0), max(high, 0)) for low, high in widths]
    mode: Any = node.attributes.get_string("mode", "constant")
    padded = np.pad(x, widths, constant_values=filling) if mode == "constant" else np.pad(x, widths, mode=mode)
    walk.finish(node.outputs[0], padded)


def _global_max(walk: _Walk, node: ir.Node) -> None:
    x, source = walk.read(node, 0)
    largest = x.max(axis=tuple(range(2, x.ndim)), keepdims=True)
    walk.finish(node.outputs[0], to_encoding(largest, source, walk.encoding(node), walk.target))


def _function(walk: _Walk, node: ir.Node) -> None:
    x, source = walk.read(node, 0)
    walk.finish(node.outputs[0], tabulated(node, x, source, walk.encoding(node), walk.target))


def _real(walk: _Walk, node: ir.Node) -> None:
    operands = []
    for index, value in enumerate(node.inputs):
        constant = constant_of(value)
        if constant is not None and value is not None and str(value.name) not in walk.plan.tensors:
            operands.append(constant.astype(np.float64))
        else:
            x, source = walk.read(node, index)
            operands.append((x - source.zero_point).astype(np.float64) * float(source.scales))
    walk.finish(node.outputs[0], evaluate_wide(node, operands)[0].astype(np.float32))


def _resize(walk: _Walk, node: ir.Node) -> None:
    linear = node.attributes.get_string("mode", "nearest") == "linear"
    (_linear_resize if linear else _nearest_resize)(walk, node)


_RULES: dict[Kind, Callable[[_Walk, ir.Node], None]] = {
    Kind.CONVOLUTION: _convolution,
    Kind.TRANSPOSED: _convolution,
    Kind.LINEAR: _matrix,
    Kind.MATRIX: _matrix,
    Kind.FUNCTION: _function,
    Kind.CLIP: _clip,
    Kind.TURN: _moved,
    Kind.MOVE: _moved,
    Kind.JOIN: _concatenation,
    Kind.PAD: _pad,
    Kind.SUM: _sum,
    Kind.DIFFERENCE: _sum,
    Kind.MULTIPLY: _product,
    Kind.DIVIDE: _quotient,
    Kind.LARGER: _extreme,
    Kind.SMALLER: _extreme,
    Kind.AVERAGE_POOL: _average,
    Kind.GLOBAL_AVERAGE: _average,
    Kind.MAX_POOL: _max_pool,
    Kind.GLOBAL_MAX: _global_max,
    Kind.MEAN: _reduction,
    Kind.TOTAL: _reduction,
    Kind.LARGEST: _reduction,
    Kind.LEAST: _reduction,
    Kind.SOFTMAX: _softmax,
    Kind.RESIZE: _resize,
    Kind.REAL: _real,
}
