"""Functions as tables: unary ones, and the powers of Softmax.

``table[q] = clip(round(f((q - z) * s) / s') + z')`` with f in float64 and the target's rounding (DESIGN, numeric
rule 3). Where f is infinite the table saturates; where it is undefined (the logarithm of a negative number) it holds
what real 0 is.

8 bits: all 256 entries. 16 bits: where the target has a nearest-neighbour table (2049 entries, step 32 for ESP-DL),
``table[round((q + 32768) / step)]``; elsewhere all 65536 entries.

The look-up is GatherElements, which in onnxruntime costs a tenth of Gather for single numbers; a negative index
counts from the end, so the table stands in the order 0, 1, ..., 127, -128, ..., -1.

Softmax is integers in, float32 inside, quantized at the end. ESP-DL, int8: ``e = exp(s * q)`` from a float32 table of
256 entries, without the largest value taken off first; sums in float32 one after the other along the axis; ``e / sum``;
then QuantizeLinear. Its int16 kernel takes the largest value off, and so do targets that do not say how they compute.
Here exp is the float64 function rounded to float32, and CumSum adds in the kernel's order.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.chips.schema import Table16, Target
from narrowcast.engine.integer.context import Context
from narrowcast.engine.integer.fixed import activation_step
from narrowcast.engine.integer.values import Integers, Reals, quantize, round_and_saturate
from narrowcast.ops.facts import Function
from narrowcast.ops.functions import unary_function
from narrowcast.ops.net import Op, dims
from narrowcast.plan.types import Encoding, round_real

Table = NDArray[np.int64]


def _encoded(function: Function, x: NDArray[np.float64], encoding: Encoding, target: Target) -> Table:
    with np.errstate(all="ignore"):
        if target.requantize.is_fixed_point:  # whose tool makes its tables in float32
            real = np.asarray(function(x.astype(np.float32).astype(np.float64)), np.float32)
            y = np.asarray(real / np.float32(_step(encoding, target)), np.float64)
        else:
            y = np.asarray(function(x), np.float64) / float(encoding.scales)
    y = np.clip(np.nan_to_num(y, nan=0.0, posinf=2.0**40, neginf=-(2.0**40)), -(2.0**40), 2.0**40)
    rounded = round_real(y, target.table_rounding or target.requantize.rounding) + encoding.zero_point
    return np.clip(rounded, encoding.qmin, encoding.qmax).astype(np.int64)


def _step(encoding: Encoding, target: Target) -> float:
    return activation_step(encoding) if target.requantize.is_fixed_point else float(encoding.scales)


def full_table(function: Function, source: Encoding, wanted: Encoding, target: Target) -> Table:
    """One entry for every integer of the input's type, ``qmin`` first.

    Args:
        function: of real numbers, see :func:`narrowcast.ops.functions.unary_function`.
        source: encoding of the input.
        wanted: encoding of the output.
        target: its rounding.

    Returns:
        int64, shape (256,) or (65536,); with a leading channel axis for a function per channel.
    """
    integers = np.arange(source.qmin, source.qmax + 1, dtype=np.float64)
    return _encoded(function, (integers - source.zero_point) * _step(source, target), wanted, target)


def stepped_table(function: Function, source: Encoding, wanted: Encoding, target: Target, rule: Table16) -> Table:
    """The 16-bit table with a step: entry i is the function at ``q = 32 i - 32768``; int64, shape (entries,)."""
    integers = np.arange(rule.entries, dtype=np.float64) * rule.step + source.qmin
    return _encoded(function, (integers - source.zero_point) * float(source.scales), wanted, target)


def lower_table(context: Context, node: ir.Node) -> None:
    """A unary node as a look-up."""
    function = unary_function(node)
    if function is None:
        raise UserError(f"{node.name}: {node.op_type} is no function of one value", "make its operands constant")
    lower_function(context, node, function)


def lower_function(context: Context, node: ir.Node, function: Function) -> None:
    """A function of one value as a look-up."""
    x, wanted = context.integers(node, 0), context.wanted(node)
    output = context.name(node.outputs[0])
    rule = context.target.table16
    stepped = rule is not None and x.encoding.dtype == "int16" and wanted.dtype == "int16"
    if stepped and rule is not None:
        table = stepped_table(function, x.encoding, wanted, context.target, rule)
        index = _stepped_index(context, x, rule, output)
    else:
        full = full_table(function, x.encoding, wanted, context.target)
        table = np.roll(full, x.encoding.qmin, axis=-1)  # index 0 first, negative integers at the end
        index = x.name
    if table.ndim == 2 and (len(x.shape) < 2 or x.shape[:2] != (1, len(table))):
        raise UserError(
            f"{node.name}: {node.op_type} has {len(table)} slopes for {x.shape}", "give one slope a channel"
        )
    look_up(context, index, table, x.shape, output)
    low, high = int(table.min()), int(table.max())
    context.store(node.outputs[0], Integers(output, wanted, x.shape, low, high))


def _stepped_index(context: Context, x: Integers, rule: Table16, stem: str) -> str:
    """``round((q + 32768) / step)``; the division by a power of two is exact in float32."""
    builder = context.builder
    shifted = builder.arithmetic(Op.ADD, x.name, float(-x.encoding.qmin), stem)
    scaled = builder.arithmetic(Op.MUL, shifted, 1.0 / rule.step, stem)
    return round_and_saturate(builder, scaled, rule.rounding, (0, rule.entries - 1), stem=stem)


def look_up(context: Context, index: str, table: NDArray[np.generic], shape: tuple[int, ...], output: str) -> str:
    """``table[index]`` for a tensor of integers, in rows so that onnxruntime shares the work between threads.

    Args:
        context: of the lowering.
        index: float32 tensor of integers; negative ones count from the end.
        table: shape (entries,), or (C, entries) with the index's shape (1, C, ...); stored as float32.
        shape: of the index.
        output: exact name of the result.
    """
    builder = context.builder
    count = int(np.prod(shape))
    if table.ndim == 1:
        limit = 8 if table.size <= 4096 else 1
        rows = next(rows for rows in (8, 4, 2, 1) if rows <= limit and count % rows == 0)
        table = np.broadcast_to(table, (rows, table.size))
    rows = table.shape[0]
    integers = builder.cast(index, "int32", output)
    flat = builder.add(Op.RESHAPE, [integers, builder.shape((rows, count // rows))], output)
    found = builder.add(Op.GATHER_ELEMENTS, [builder.constant(table), flat], output, axis=1)
    return builder.add(Op.RESHAPE, [found, builder.shape(shape)], output=output)


def lower_softmax(context: Context, node: ir.Node) -> None:
    """Softmax along one axis."""
    x, encoding = context.integers(node, 0), context.wanted(node)
    builder, output = context.builder, context.name(node.outputs[0])
    axis = node.attributes.get_int("axis", -1) % len(x.shape)
    direct = context.target.softmax.output == "float32" and x.encoding.dtype == "int8"
    exponentials = _direct(context, node, x, output) if direct else _relative(context, x, axis, output)
    sums = builder.add(Op.CUM_SUM, [exponentials, builder.constant(axis, np.int64)], output)
    last = [builder.shape([number]) for number in (x.shape[axis] - 1, x.shape[axis], axis)]
    total = builder.add(Op.SLICE, [sums, *last], output)
    share = Reals(builder.add(Op.DIV, [exponentials, total], output), dims(node.outputs[0]))
    context.store(node.outputs[0], quantize(builder, share, encoding, context.target, output))


def _direct(context: Context, node: ir.Node, x: Integers, stem: str) -> str:
    """``exp(s * q)``."""
    integers = np.arange(x.encoding.qmin, x.encoding.qmax + 1)
    with np.errstate(over="ignore"):
        table = np.exp(integers * float(x.encoding.scales)).astype(np.float32)
        overflows = not np.isfinite(table.sum(dtype=np.float64) * x.shape[-1])
    if overflows:
        raise UserError(
            f"{node.name}: exp of its largest input overflows float32 in the chip's Softmax table",
            f"pin {node.name} to int16, whose kernel takes the largest value off first",
        )
    return look_up(context, x.name, np.roll(table, x.encoding.qmin), x.shape, context.builder.fresh(f"{stem}.exp"))


def _relative(context: Context, x: Integers, axis: int, stem: str) -> str:
    """``exp(s * (q - max))``: an index from -(2^bits - 1) to 0."""
    builder = context.builder
    largest = builder.reduced(Op.REDUCE_MAX, x.name, [axis], stem)
    below = builder.add(Op.SUB, [largest, x.name], stem)
    count = x.encoding.qmax - x.encoding.qmin + 1
    table = np.exp(-np.arange(count) * float(x.encoding.scales)).astype(np.float32)
    return look_up(context, below, table, x.shape, builder.fresh(f"{stem}.exp"))
