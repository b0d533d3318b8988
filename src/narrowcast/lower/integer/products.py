"""Sums of products: Conv, ConvTranspose, Gemm, MatMul, and the pools that are convolutions with ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.lower.integer.context import Context
from narrowcast.lower.integer.parameters import bias_integers
from narrowcast.lower.integer.sums import Array, Emit, Sum
from narrowcast.lower.integer.values import Integers
from narrowcast.ops.net import constant_of, dims

__all__ = ["constant_product", "dynamic_product", "window_sum"]


def constant_product(context: Context, node: ir.Node) -> Sum:
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
    axis, output_axis, emit = _LAYOUTS[node.op_type](context, node, weight)
    scale = x.encoding.scales * encoding.scales
    if encoding.axis is not None and encoding.axis % weight.ndim != axis:
        raise UserError(f"{node.name}: its weight is scaled along axis {encoding.axis}", "make the plan again")
    shape = dims(node.outputs[0])
    if scale.ndim and len(scale) != shape[output_axis]:
        raise UserError(f"{node.name}: a grouped {node.op_type} has one scale per tensor", "make the plan again")
    return Sum(context, str(node.name), emit, x, weight, axis, _bias(context, node), scale, shape, output_axis)


def _bias(context: Context, node: ir.Node) -> Array | None:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    values, encoding = constant_of(node.inputs[2]), context.plan.tensors.get(str(node.inputs[2].name))
    if values is None or encoding is None:
        raise UserError(f"{node.name}: its bias has no encoding", "make the plan again")
    channels = dims(node.outputs[0])[1 if node.op_type != "Gemm" else -1]
    return bias_integers(
        np.broadcast_to(values.reshape(-1), (channels,)), encoding, context.target, context.node_type(node)
    )


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {attribute.name: attribute.value for attribute in node.attributes.values()}


def _convolution(context: Context, node: ir.Node, weight: Array) -> tuple[int, int, Emit]:
    attributes = _attributes(node)

    def emit(x: str, w: str, bias: str | None) -> str:
        inputs = [x, w] if bias is None else [x, w, bias]
        return context.builder.add(node.op_type, inputs, str(node.name), **attributes)

    return (1 if node.op_type == "ConvTranspose" else 0), 1, emit


def _gemm(context: Context, node: ir.Node, weight: Array) -> tuple[int, int, Emit]:
    attributes = node.attributes
    if attributes.get_float("alpha", 1.0) != 1.0 or attributes.get_float("beta", 1.0) != 1.0:
        raise UserError(
            f"{node.name}: Gemm with alpha or beta is no fully connected layer", "fold them into the weights"
        )
    transposed = {"transA": attributes.get_int("transA", 0), "transB": attributes.get_int("transB", 0)}

    def emit(x: str, w: str, bias: str | None) -> str:
        inputs = [x, w] if bias is None else [x, w, bias]
        return context.builder.add("Gemm", inputs, str(node.name), **transposed)

    return (0 if transposed["transB"] else 1), 1, emit


def _matmul(context: Context, node: ir.Node, weight: Array) -> tuple[int, int, Emit]:
    def emit(x: str, w: str, bias: str | None) -> str:
        name = context.builder.add("MatMul", [x, w], str(node.name))
        return name if bias is None else context.builder.add("Add", [name, bias], str(node.name))

    return weight.ndim - 1, len(dims(node.outputs[0])) - 1, emit


_LAYOUTS: dict[str, Callable[[Context, ir.Node, Array], tuple[int, int, Emit]]] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "Gemm": _gemm,
    "MatMul": _matmul,
}


def dynamic_product(context: Context, node: ir.Node) -> Sum:
    """MatMul of two activations."""
    x, y = context.integers(node, 0), context.integers(node, 1)

    def emit(left: str, right: str, bias: str | None) -> str:
        return context.builder.add("MatMul", [left, right], str(node.name))

    scale = np.asarray(x.encoding.scales * y.encoding.scales)
    shape = dims(node.outputs[0])
    return Sum(context, str(node.name), emit, x, y, None, None, scale, shape, len(shape) - 1, x.shape[-1])


def window_sum(context: Context, node: ir.Node, x: Integers, kernel: Sequence[int], **geometry: Any) -> Sum:
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
        return context.builder.add("Conv", [left, weight], str(node.name), group=channels, **geometry)

    ones = np.ones((channels, 1, *kernel), np.int64)
    return Sum(context, str(node.name), emit, x, ones, 0, None, x.encoding.scales, dims(node.outputs[0]), 1)
