"""Operators that move numbers about, on arrays of any type; and float operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from narrowcast.graph.run import open_session
from narrowcast.graph.validity import NEWEST_OPSET
from narrowcast.ops.units import DOMAIN, inline_units

__all__ = ["evaluate_float", "evaluate_moving", "evaluate_wide", "nearest_resize"]

Array = NDArray[Any]


def _single_node(node: ir.Node, opset: int, functions: list[onnx.FunctionProto]) -> onnx.ModelProto:
    proto = ir.serde.serialize_node(node)
    names = [name for name in proto.input if name]
    graph = helper.make_graph(
        [proto],
        "node",
        [helper.make_value_info(name, onnx.TypeProto()) for name in dict.fromkeys(names)],
        [helper.make_value_info(name, onnx.TypeProto()) for name in proto.output],
    )
    opsets = [helper.make_opsetid("", opset)]
    if functions:
        opsets.append(helper.make_opsetid(DOMAIN, 1))
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)


def evaluate_moving(node: ir.Node, inputs: dict[str, Array], opset: int) -> list[Array]:
    """One node by ONNX's own reference implementation, on integers."""
    results = ReferenceEvaluator(_single_node(node, opset, [])).run(None, inputs)
    return [np.asarray(result) for result in results]


def evaluate_wide(node: ir.Node, operands: list[Array], own: Sequence[type[OpRun]] = ()) -> list[Array]:
    """One node by ONNX's own reference implementation in the newest opset, on float64; some operators by ours."""
    proto = ir.serde.serialize_node(node)
    proto.domain = ""
    names = [f"x{index}" for index in range(len(operands))]
    proto.input[:] = names
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, None) for name in (*names, *proto.output)]
    graph = helper.make_graph([proto], "node", values[: len(names)], values[len(names) :])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", NEWEST_OPSET)])
    feed = dict(zip(names, operands, strict=True))
    with np.errstate(all="ignore"):
        return [np.asarray(result) for result in ReferenceEvaluator(model, new_ops=list(own)).run(None, feed)]


def evaluate_float(
    node: ir.Node, inputs: dict[str, Array], opset: int, functions: list[onnx.FunctionProto]
) -> list[Array]:
    """One float node by onnxruntime: no chip defines its last bits."""
    needed = functions if node.domain == DOMAIN else []
    model = _single_node(node, opset, needed)
    for value in model.graph.input:
        array = inputs[value.name]
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, array.shape))
    for value, known in zip(model.graph.output, node.outputs, strict=True):
        value.CopyFrom(helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, None))
        if known.dtype is not None:
            value.type.tensor_type.elem_type = int(known.dtype)
    session = open_session(inline_units(model) if needed else model, 0, "all")
    return [np.asarray(result) for result in session.run(None, inputs)]


def nearest_resize(x: Array, node: ir.Node, scales: list[float], outputs: tuple[int, ...]) -> Array:
    """Resize with mode nearest; positions are float32, and half a pixel is what is that within a millionth.

    Raises:
        ValueError: a transformation that no integers follow.
    """
    transformation = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    nearest = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    for axis, (size, count, scale) in enumerate(zip(x.shape, outputs, scales, strict=True)):
        place, half, factor = np.arange(count, dtype=np.float32), np.float32(0.5), np.float32(scale)
        if transformation == "align_corners":
            place = place * np.float32(size - 1) / np.float32(max(count - 1, 1))
        elif transformation == "asymmetric":
            place = place / factor
        elif transformation == "pytorch_half_pixel" and count == 1:
            place = np.zeros(1, np.float32)
        elif transformation in ("half_pixel", "pytorch_half_pixel"):
            place = (place + half) / factor - half
        else:
            raise ValueError(transformation)
        exact = place.astype(np.float64)
        index = {
            "round_prefer_floor": np.ceil(exact - 0.500001),
            "round_prefer_ceil": np.floor(exact + 0.500001),
            "floor": np.floor(place),
            "ceil": np.ceil(place),
        }[nearest]
        x = np.take(x, np.clip(index, 0, size - 1).astype(np.int64), axis=axis)
    return x
