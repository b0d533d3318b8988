"""Sums of products: Conv, ConvTranspose, Gemm, MatMul, and the pools that are convolutions with ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.lower.integer.context import Context
from narrowcast.lower.integer.parameters import bias_integers
from narrowcast.lower.integer.sums import Array, Emit, ProductSum
from narrowcast.lower.integer.values import Integers
from narrowcast.ops.builder import Op
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.net import constant_of, dims

__all__ = ["constant_product", "dynamic_product", "window_sum"]


def constant_product(context: Context, node: ir.Node) -> ProductSum:
    """Conv, ConvTranspose, Gemm or MatMul with constant weights."""
    values = constant_of(node.inputs[1])
    if values is None or node.inputs[1] is None:
        raise UserError(f"{node.name}: the weights of {node.op_type} are computed", "pin it to float32")
    name = str(node.inputs[1].name)
    encoding = context.plan.tensors.get(name)
    if encoding is None:
        raise UserError(f"the plan has no encoding for {name}, the weight of {node.name}", "make the plan again")
    x, weight = context.integers(node, 0), encoding.quantize(values, context.target.quantize_rounding).astype(np.int32)
    weight -= encoding.zero_point
    entry, shape = facts(node), dims(node.outputs[0])
    emit = _EMITS[entry.kind](context, node)
    if entry.weight_axis is None:
        raise AssertionError(f"{node.op_type} has no weights")
    axis, output_axis = entry.weight_axis(node) % weight.ndim, entry.output_axis % len(shape)
    scale = x.encoding.scales * encoding.scales
    if encoding.axis is not None and encoding.axis % weight.ndim != axis:
        raise UserError(f"{node.name}: its weight is scaled along axis {encoding.axis}", "make the plan again")
    if scale.ndim and len(scale) != shape[output_axis]:
        raise UserError(f"{node.name}: a grouped {node.op_type} has one scale per tensor", "make the plan again")
    return ProductSum(context, str(node.name), emit, x, weight, axis, _bias(context, node), scale, shape, output_axis)


def _bias(context: Context, node: ir.Node) -> Array | None:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    values, encoding = constant_of(node.inputs[2]), context.plan.tensors.get(str(node.inputs[2].name))
    if values is None or encoding is None:
        raise UserError(f"{node.name}: its bias has no encoding", "make the plan again")
    channels = dims(node.outputs[0])[facts(node).output_axis]
    return bias_integers(
        np.broadcast_to(values.reshape(-1), (channels,)), encoding, context.target, context.node_type(node)
    )


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {attribute.name: attribute.value for attribute in node.attributes.values()}


def _convolution(context: Context, node: ir.Node) -> Emit:
    attributes = _attributes(node)

    def emit(x: str, w: str, bias: str | None) -> str:
        inputs = [x, w] if bias is None else [x, w, bias]
        return context.builder.add(node.op_type, inputs, str(node.name), **attributes)

    return emit


def _linear(context: Context, node: ir.Node) -> Emit:
    attributes = node.attributes
    if attributes.get_float("alpha", 1.0) != 1.0 or attributes.get_float("beta", 1.0) != 1.0:
        raise UserError(
            f"{node.name}: Gemm with alpha or beta is no fully connected layer", "fold them into the weights"
        )
    transposed = {"transA": attributes.get_int("transA", 0), "transB": attributes.get_int("transB", 0)}

    def emit(x: str, w: str, bias: str | None) -> str:
        inputs = [x, w] if bias is None else [x, w, bias]
        return context.builder.add(Op.GEMM, inputs, str(node.name), **transposed)

    return emit


def _matrix(context: Context, node: ir.Node) -> Emit:
    def emit(x: str, w: str, bias: str | None) -> str:
        name = context.builder.add(Op.MATMUL, [x, w], str(node.name))
        return name if bias is None else context.builder.add(Op.ADD, [name, bias], str(node.name))

    return emit


_EMITS: dict[Kind, Callable[[Context, ir.Node], Emit]] = {
    Kind.CONVOLUTION: _convolution,
    Kind.TRANSPOSED: _convolution,
    Kind.LINEAR: _linear,
    Kind.MATRIX: _matrix,
}


def dynamic_product(context: Context, node: ir.Node) -> ProductSum:
    """MatMul of two activations."""
    x, y = context.integers(node, 0), context.integers(node, 1)

    def emit(left: str, right: str, bias: str | None) -> str:
        return context.builder.add(Op.MATMUL, [left, right], str(node.name))

    scale = np.asarray(x.encoding.scales * y.encoding.scales)
    shape = dims(node.outputs[0])
    return ProductSum(context, str(node.name), emit, x, y, None, None, scale, shape, len(shape) - 1, x.shape[-1])


def window_sum(context: Context, node: ir.Node, x: Integers, kernel: Sequence[int], **geometry: Any) -> ProductSum:
    """Sums over windows of a pool: a depthwise convolution with ones.

    Args:
        context: of the lowering.
        node: the pool.
        x: its input, (N, C, spatial...).
        kernel: sides of the window.
        geometry: strides, pads, dilations as Conv takes them.
    """
    channels = x.shape[1]

    def emit(left: str, weight: str, bias: str | None) -> str:
        return context.builder.add(Op.CONV, [left, weight], str(node.name), group=channels, **geometry)

    ones = np.ones((channels, 1, *kernel), np.int64)
    return ProductSum(context, str(node.name), emit, x, ones, 0, None, x.encoding.scales, dims(node.outputs[0]), 1)
