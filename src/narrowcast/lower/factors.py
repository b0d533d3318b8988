"""Factors of the channels of an output, folded into the last convolution and divided out again behind the chip.

A chip gives an output one scale, however different the ranges of its channels are. A factor a channel in the weights
and the bias that make the output costs nothing there, and whoever reads the integers reads them with a scale a channel:
``real = (integer - zero point) * scale / factor``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from narrowcast.lower.integer.lowering import IntegerGraph
from narrowcast.ops.builder import Op
from narrowcast.ops.net import copied
from narrowcast.plan.types import Encoding

__all__ = ["Factors", "factored", "undo_factors", "with_factors"]

#: Output name to its factors, (C,) float64, above 0.
Factors = Mapping[str, NDArray[np.float64]]


def factored(encoding: Encoding, factors: NDArray[Any]) -> Encoding:
    """How an output that left with factors is read: the per-tensor scale becomes one a channel of axis 1."""
    scales = np.broadcast_to(encoding.scales / np.asarray(factors, np.float64), np.shape(factors))
    return replace(encoding, scale=tuple(float(scale) for scale in scales), axis=1)


def with_factors(graph: IntegerGraph, factors: Factors) -> IntegerGraph:
    """The same integers, whose outputs mean what the float model's outputs mean.

    Args:
        graph: lowered from a model into which the factors are folded.
        factors: of some outputs.
    """
    outputs = dict(graph.outputs)
    for name, values in factors.items():
        encoding = outputs[name]
        if encoding is not None:
            outputs[name] = factored(encoding, values)
    return replace(graph, outputs=outputs)


def undo_factors(proto: onnx.ModelProto, factors: Factors) -> onnx.ModelProto:
    """A graph whose real outputs are divided by the factors; itself where there are none.

    Args:
        proto: a graph with float outputs (1, C, ...), lowered from a model into which the factors are folded.
        factors: of some outputs.
    """
    if not factors:
        return proto
    copy = copied(proto)
    ranks = {output.name: len(output.type.tensor_type.shape.dim) for output in copy.graph.output}
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    for name, values in factors.items():
        last = next(node for node in copy.graph.node if name in node.output)
        if last.op_type == Op.DEQUANTIZE and last.input[1] in constants:
            _dequantize_per_channel(copy.graph, last, constants, values)
        else:
            _divide(copy.graph, name, values, ranks[name])
    return copy


def _dequantize_per_channel(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    constants: Mapping[str, onnx.TensorProto],
    factors: NDArray[np.float64],
) -> None:
    """Put the factors into the scale of the last DequantizeLinear."""
    scale = onnx.numpy_helper.to_array(constants[node.input[1]]).astype(np.float64)
    zero = onnx.numpy_helper.to_array(constants[node.input[2]])
    stem = f"{node.output[0]}_channels"
    new = {
        f"{stem}_scale": (scale / factors).astype(np.float32),
        f"{stem}_zero_point": np.full(len(factors), zero, zero.dtype),
    }
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in new.items())
    node.input[1:3] = list(new)
    node.attribute.append(onnx.helper.make_attribute("axis", 1))


def _divide(graph: onnx.GraphProto, name: str, factors: NDArray[np.float64], rank: int) -> None:
    scaled, inverse = f"{name}_with_factors", f"{name}_inverse_factors"
    for node in graph.node:
        node.output[:] = [scaled if output == name else output for output in node.output]
        node.input[:] = [scaled if entry == name else entry for entry in node.input]
    array = (1 / np.asarray(factors, np.float64)).astype(np.float32).reshape(-1, *[1] * (rank - 2))
    graph.initializer.append(onnx.numpy_helper.from_array(array, inverse))
    graph.node.append(onnx.helper.make_node(Op.MUL, [scaled, inverse], [name], name=f"{name}_undo_factors"))
