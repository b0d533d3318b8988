"""One float type in a graph: float32.

Exporters write constants as Python numbers (``Constant(value_float)``), and simplifiers make float64 of them; others
compute a mask or a scale in float16 between two casts. Chips compute none of these, and onnxruntime mixes none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from narrowcast.ops.builder import Op

__all__ = ["only_float32"]

_OTHER_FLOATS = (TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
#: Attributes that name the type of a node's result.
_TYPE_ATTRIBUTES = ("to", "dtype")
_NUMBERS = ("value_float", "value_floats", "value_int", "value_ints")


def only_float32(model: onnx.ModelProto) -> None:
    """Make constants, casts and known types of other floats float32, in place, subgraphs included."""
    for graph in _graphs(model.graph):
        for tensor in graph.initializer:
            _narrow(tensor)
        for node in graph.node:
            _narrow_node(node)
        for value in (*graph.value_info, *graph.output):
            if value.type.tensor_type.elem_type in _OTHER_FLOATS:
                value.type.tensor_type.elem_type = TensorProto.FLOAT


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _narrow(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _OTHER_FLOATS:
        array = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _narrow_node(node: onnx.NodeProto) -> None:
    for attribute in list(node.attribute):
        if attribute.type == onnx.AttributeProto.TENSOR:
            _narrow(attribute.t)
        elif attribute.name in _TYPE_ATTRIBUTES and attribute.i in _OTHER_FLOATS:
            attribute.i = TensorProto.FLOAT
        elif node.op_type == Op.CONSTANT and attribute.name in _NUMBERS:
            kind: Any = np.float32 if "float" in attribute.name else np.int64
            array = np.asarray(helper.get_attribute_value(attribute), kind)
            node.attribute.remove(attribute)
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(array)))
