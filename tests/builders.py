"""Small ONNX models built for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def constant(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def model(
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[onnx.TensorProto] = (),
    *,
    shape: Sequence[int | str] = (1, 3, 16, 16),
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    metadata: dict[str, str] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        list(constants),
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    for key, value in (metadata or {}).items():
        proto.metadata_props.add(key=key, value=value)
    inferred = onnx.shape_inference.infer_shapes(proto)
    if all(value.type.tensor_type.HasField("shape") for value in inferred.graph.output):
        del proto.graph.output[:]
        proto.graph.output.extend(inferred.graph.output)
    return proto


def weights(rng: np.random.Generator, name: str, *shape: int) -> onnx.TensorProto:
    return constant(name, rng.normal(0, 0.3, shape).astype(np.float32))


def silu_net(opset: int = 17, shape: Sequence[int | str] = (1, 3, 16, 16)) -> onnx.ModelProto:
    """Conv, SiLU, Conv, a residual Add, Concat, Conv: the joints that planning has to get right."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], name="conv0", pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["c0"], ["s0"], name="sigmoid0"),
        helper.make_node("Mul", ["c0", "s0"], ["a0"], name="silu0"),
        helper.make_node("Conv", ["a0", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["a0", "c1"], ["sum"], name="add"),
        helper.make_node("MaxPool", ["sum"], ["pool"], name="pool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Concat", ["pool", "c1"], ["cat"], name="concat", axis=1),
        helper.make_node("Conv", ["cat", "w2", "b2"], ["y"], name="conv2"),
    ]
    constants = [
        weights(rng, "w0", 8, 3, 3, 3), weights(rng, "b0", 8), weights(rng, "w1", 8, 8, 3, 3), weights(rng, "b1", 8),
        weights(rng, "w2", 4, 16, 1, 1), weights(rng, "b2", 4),
    ]  # fmt: skip
    return model(nodes, constants, opset=opset, shape=shape)


def save(proto: onnx.ModelProto, path: Path) -> Path:
    onnx.save(proto, str(path))
    return path
