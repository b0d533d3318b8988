"""Is a model file what the rest of the program may rely on? Everything that reads graphs trusts what passes here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from google.protobuf.message import Message  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, numpy_helper

from narrowcast.base.errors import UserError
from narrowcast.base.reading import reading
from narrowcast.graph.weights import without_weights
from narrowcast.ops.builder import Op

__all__ = ["MOST_VALUES", "check_file", "check_sizes", "model_opset"]

OLDEST_OPSET, NEWEST_OPSET = 11, 22
#: Values of a tensor, at most: 1 GiB in float32, or 16 channels of 4096 x 4096.
MOST_VALUES = 1 << 28
#: Cells that a window pads, strides or spans on a side, at most: a small file must not ask for hours of work.
MOST_STEPS = 4096
_STEPS = ("pads", "strides", "dilations", "kernel_shape", "output_padding")
_AGAIN = "export it again"


def model_opset(model: onnx.ModelProto) -> int:
    """Version of the default operator set, 0 when it is not imported."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def check_file(model: onnx.ModelProto, file: Path) -> None:
    """Check a model as it is in its file.

    Raises:
        UserError: no ONNX file, an opset that is too old or too new, no float32 model, weights that are not finite or
            not as many as their shape says, no outputs, control flow, windows of more than :data:`MOST_STEPS` cells.
    """
    graph = model.graph
    if not graph.node or not graph.input:
        raise UserError(f"{file} is truncated or not an ONNX file", _AGAIN)
    opset = model_opset(model)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise UserError(f"{file} has opset {opset}", f"export it with an opset from {OLDEST_OPSET} to {NEWEST_OPSET}")
    if not graph.output:
        raise UserError(f"{file} has no outputs", _AGAIN)
    for value in (*graph.input, *graph.output):
        kind = value.type.WhichOneof("value")
        if kind not in (None, "tensor_type"):
            raise UserError(f"{file}: {value.name} is no tensor but a {kind.removesuffix('_type')}", _AGAIN)
        if value.type.tensor_type.elem_type not in TensorProto.DataType.values():
            raise UserError(f"{file}: {value.name} has no known type", _AGAIN)
    for tensor in graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
            raise UserError(f"{file} holds 16-bit float weights ({tensor.name})", "export it in float32 (half=False)")
        values = _values(tensor, file)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise UserError(f"{file} holds NaN or infinite weights in {tensor.name}", "train or export it again")
    _check_nodes(model, file)
    _check_texts(model, file)
    with reading(file, _AGAIN, "is not valid ONNX"):
        onnx.checker.check_model(without_weights(model))


def _values(tensor: TensorProto, file: Path) -> NDArray[Any]:
    """The numbers of a constant, as many as its shape says."""
    shape = tuple(tensor.dims)
    if any(size < 0 for size in shape) or math.prod(shape) > MOST_VALUES:
        raise UserError(f"{file}: the constant {tensor.name} has the impossible shape {shape}", _AGAIN)
    with reading(f"{file}: the constant {tensor.name} of shape {shape}", _AGAIN):
        values: NDArray[Any] = numpy_helper.to_array(tensor)
        return values


def _check_texts(message: Message, file: Path) -> None:
    """Names and other texts are UTF-8: protobuf hands over bytes where they are not."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        for entry in [value] if isinstance(value, (str, bytes, Message)) else value:
            if isinstance(entry, bytes):
                raise UserError(f"{file}: a {field.name} is no UTF-8 text", _AGAIN)
            if isinstance(entry, Message):
                _check_texts(entry, file)


def _check_nodes(model: onnx.ModelProto, file: Path) -> None:
    for node in model.graph.node:
        if node.op_type == Op.DEQUANTIZE:
            raise UserError(f"{file} is already quantized", "give the float model")
        for attribute in node.attribute:
            if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
                raise UserError(
                    f"{file} decides while it runs what it computes ({node.op_type} {node.name})",
                    "export it without control flow and without NMS (nms=False)",
                )
            if attribute.name in _STEPS and max(attribute.ints, default=0) > MOST_STEPS:
                raise UserError(f"{file}: {attribute.name} of {node.op_type} {node.name} is impossible", _AGAIN)
            with reading(f"{file}: {attribute.name} of {node.op_type} {node.name}", _AGAIN, "is no text"):
                _ = [text.decode() for text in (attribute.s, *attribute.strings)]
            if attribute.type == AttributeProto.TENSOR:
                _values(attribute.t, file)


def check_sizes(model: onnx.ModelProto, source: str) -> None:
    """Check the shapes of all tensors of a model whose inputs have static shapes, before anything computes them.

    Raises:
        UserError: shapes that contradict each other, or a tensor of more than :data:`MOST_VALUES` values.
    """
    with reading(source, _AGAIN, "has shapes that contradict each other"):
        graph = onnx.shape_inference.infer_shapes(model, check_type=True, data_prop=True).graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if any(size < 0 for size in shape) or math.prod(shape) > MOST_VALUES:
            text = "x".join(map(str, shape))
            raise UserError(
                f"{source}: {value.name} would hold {text} values, the most is {MOST_VALUES:,} (1 GiB)",
                "export the model for a smaller input",
            )
