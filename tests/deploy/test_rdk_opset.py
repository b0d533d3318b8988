"""A prepared graph at opset 11 computes the same, and what cannot be said there is refused with its name."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import attention, convolutions
from onnx import TensorProto, helper

from builders import constant, model, silu_net, weights
from narrowcast.base.errors import UserError
from narrowcast.chips.rdk.opset import to_opset_11
from narrowcast.graph.run import Runner


def same(proto: onnx.ModelProto) -> onnx.ModelProto:
    converted = to_opset_11(proto)
    assert [(entry.domain, entry.version) for entry in converted.opset_import] == [("", 11)]
    assert converted.ir_version == 7
    tensor = np.random.default_rng(1).normal(size=Runner(proto).input_shape).astype(np.float32)
    expected, actual = Runner(proto, 1).run(tensor), Runner(converted, 1).run(tensor)
    assert list(actual) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    return converted


@pytest.mark.parametrize("build", [silu_net, convolutions, attention])
def test_whole_networks(build: object) -> None:
    same(build())  # type: ignore[operator]


def one(op_type: str, *constants: onnx.TensorProto, opset: int = 18, **attributes: object) -> onnx.ModelProto:
    inputs = ["x", *(tensor.name for tensor in constants)]
    node = helper.make_node(op_type, inputs, ["y"], name="node", **attributes)
    return model([node], constants, opset=opset, shape=(1, 3, 8, 6))


def ints(name: str, *values: int) -> onnx.TensorProto:
    return constant(name, np.asarray(values, np.int64))


@pytest.mark.parametrize(
    "proto",
    [
        one("ReduceMean", ints("axes", -1, 2), keepdims=1),
        one("ReduceMax", ints("axes", 1), keepdims=0),
        one("ReduceSum", noop_with_empty_axes=1),
        one("Softmax", axis=1),
        one("Softmax", axis=-1),
        one("LogSoftmax", axis=2),
        one("Unsqueeze", ints("axes", -1)),
        one("Split", axis=1, num_outputs=1),
        one("Pad", ints("pads", 1, 2, 0, 1), constant("value", np.float32(0.5)), ints("axes", 2, -1)),
        one("Resize", ints("roi"), constant("scales", np.asarray([1, 1, 2, 2], np.float32)), mode="linear"),
        one("Resize", ints("roi"), ints("scales"), ints("sizes", 1, 3, 12, 7), mode="nearest"),
        one("HardSwish"),
        one("Mish"),
        one("Gelu", opset=20),
        one("Gelu", opset=20, approximate="tanh"),
        one("LayerNormalization", constant("scale", np.arange(1, 7, dtype=np.float32)),
            constant("bias", np.ones(6, np.float32)), axis=-1),
        one("LayerNormalization", constant("scale", np.ones((8, 6), np.float32)), axis=2),
        one("AveragePool", kernel_shape=[2, 2], strides=[2, 2], opset=19, dilations=[1, 1]),
        one("Reshape", ints("shape", 1, -1), allowzero=0),
    ],
    ids=lambda proto: proto.graph.node[0].op_type,
)  # fmt: skip
def test_operators_that_changed(proto: onnx.ModelProto) -> None:
    if proto.graph.node[0].op_type == "Resize":  # the empty region is a float tensor, and so are absent factors
        empty = [index for index, tensor in enumerate(proto.graph.initializer) if not any(tensor.dims)]
        for index in empty:
            proto.graph.initializer[index].CopyFrom(
                constant(proto.graph.initializer[index].name, np.zeros(0, np.float32))
            )
    same(proto)


@pytest.mark.parametrize(
    ("proto", "words"),
    [
        (one("AveragePool", opset=19, kernel_shape=[2, 2], dilations=[2, 2]), "dilations"),
        (one("Pad", ints("pads", 0, 0, 1, 1, 0, 0, 1, 1), opset=19, mode="wrap"), "wrap"),
        (one("GroupNormalization", weights(np.random.default_rng(0), "s", 3), weights(np.random.default_rng(0), "b", 3),
             opset=21, num_groups=3, epsilon=1e-5), "GroupNormalization"),
    ],
)  # fmt: skip
def test_no_equivalent(proto: onnx.ModelProto, words: str) -> None:
    with pytest.raises(UserError, match=words):
        to_opset_11(proto)


def test_bounds_of_a_clip_are_scalars() -> None:
    """Exporters also write one number with an axis, which onnxruntime takes and hb_mapper 1.24.3 does not."""
    bounds = [constant("low", np.zeros(1, np.float32)), constant("high", np.full(1, 6, np.float32))]
    converted = same(one("Clip", *bounds))
    assert [list(tensor.dims) for tensor in converted.graph.initializer] == [[], []]


def test_half_precision_is_refused_with_the_node() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], name="shrink", to=TensorProto.FLOAT16),
        helper.make_node("Sigmoid", ["half"], ["gate"], name="sigmoid"),
        helper.make_node("Cast", ["gate"], ["y"], name="grow", to=TensorProto.FLOAT),
    ]
    with pytest.raises(UserError, match=r"shrink \(Cast\) computes with float16.*float32"):
        to_opset_11(model(nodes))


def test_another_domain_is_refused() -> None:
    proto = model([helper.make_node("Sigmoid", ["x"], ["y"], name="gelu")])
    proto.graph.node[0].domain = "com.microsoft"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(UserError, match=r"gelu is of the domain com\.microsoft"):
        to_opset_11(proto)
