"""QDQ graphs whose inputs and outputs are integers: the outermost QuantizeLinear and DequantizeLinear removed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from narrowcast.ops.builder import Op
from narrowcast.ops.net import copied
from narrowcast.plan.types import Encoding

__all__ = ["with_integer_input", "with_integer_outputs"]

#: Largest float32 below 2^31, so that a cast to int32 cannot overflow.
_LARGEST = 2147483520.0


def with_integer_outputs(proto: onnx.ModelProto, encodings: Mapping[str, Encoding]) -> onnx.ModelProto:
    """Let outputs leave as integers.

    Args:
        proto: from :func:`narrowcast.lower.lower_qdq`; not changed.
        encodings: graph output to its encoding in the plan.

    Returns:
        A copy in which these outputs keep their names and have the encodings' types. Outputs that the plan keeps in
        accumulators, which are real numbers in a QDQ graph, are divided by their scales and rounded half to even.
    """
    copy = copied(proto)
    graph = copy.graph
    for output in graph.output:
        encoding = encodings.get(output.name)
        if encoding is None:
            continue
        maker = next(node for node in graph.node if output.name in node.output)
        if encoding.dtype == "int32" or maker.op_type != Op.DEQUANTIZE:
            _append_rounding(graph, output.name, encoding, len(output.type.tensor_type.shape.dim))
        else:
            _expose_quantized(graph, maker, output.name)
        output.type.tensor_type.elem_type = getattr(TensorProto, encoding.dtype.upper())
    _drop_unused(graph)
    return copy


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _expose_quantized(graph: onnx.GraphProto, dequantize: onnx.NodeProto, name: str) -> None:
    quantized = dequantize.input[0]
    _rename(graph, name, f"{name}_dequantized")
    _rename(graph, quantized, name)
    if not any(f"{name}_dequantized" in node.input for node in graph.node):
        graph.node.remove(dequantize)


def _append_rounding(graph: onnx.GraphProto, name: str, encoding: Encoding, rank: int) -> None:
    real = f"{name}_real"
    _rename(graph, name, real)
    bounds = max(float(encoding.qmin), -_LARGEST), min(float(encoding.qmax), _LARGEST)
    constants = {
        "scale": encoding.broadcast(rank).astype(np.float32),
        "zero": np.float32(encoding.zero_point),
        "low": np.float32(bounds[0]),
        "high": np.float32(bounds[1]),
    }
    for stem, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{real}_{stem}"))
    steps = [(Op.DIV, [f"{real}_scale"]), (Op.ROUND, []), (Op.ADD, [f"{real}_zero"])]
    steps.append((Op.CLIP, [f"{real}_low", f"{real}_high"]))
    current = real
    for op_type, operands in steps:
        following = f"{real}_{op_type.lower()}"
        graph.node.append(helper.make_node(op_type, [current, *operands], [following], name=following))
        current = following
    kind = getattr(TensorProto, encoding.dtype.upper())
    graph.node.append(helper.make_node(Op.CAST, [current], [name], name=f"{name}_as_integers", to=kind))


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def with_integer_input(proto: onnx.ModelProto, encoding: Encoding) -> onnx.ModelProto:
    """Let the image enter as integers.

    Args:
        proto: from :func:`narrowcast.lower.lower_qdq`; not changed.
        encoding: of the graph's first input in the plan.

    Raises:
        ValueError: the input is not quantized first.
    """
    copy = copied(proto)
    graph, image = copy.graph, copy.graph.input[0]
    readers = [node for node in graph.node if image.name in node.input]
    if len(readers) != 1 or readers[0].op_type != Op.QUANTIZE:
        raise ValueError(f"{image.name} is not quantized first")
    quantized = readers[0].output[0]
    graph.node.remove(readers[0])
    for node in graph.node:
        node.input[:] = [image.name if name == quantized else name for name in node.input]
    image.type.tensor_type.elem_type = getattr(TensorProto, encoding.dtype.upper())
    _drop_unused(graph)
    return copy
