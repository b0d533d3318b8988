"""Pools, reductions, Resize, Concat, Pad, Softmax, and everything that moves bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from harness import ALL_TARGETS, compare, encodings, graph_of, integers, plan_of, power, seeds, targets
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from narrowcast.base.errors import UserError
from narrowcast.chips import load_target
from narrowcast.engine.integer import lower_integer
from narrowcast.plan import Encoding

quick = settings(max_examples=30, deadline=None)
types = st.sampled_from(["int8", "int16"])


def run(data: st.DataObject, target: str, node: onnx.NodeProto, shape: tuple[int, ...], dtype: str, seed: int,
        constants: dict[str, np.ndarray] | None = None, same: bool = False, opset: int = 17) -> None:  # fmt: skip
    """One node of one input, with random encodings."""
    source, wanted = data.draw(encodings(target, dtype)), data.draw(encodings(target, dtype))
    wanted = source if same else wanted
    model = graph_of([node], shape, constants, opset=opset)
    plan = plan_of(model, target, {"x": source, "y": wanted})
    compare(model, plan, target, integers(shape, source, seed, extreme=data.draw(st.booleans())))


@quick
@given(data=st.data(), target=targets, dtype=types, seed=seeds, average=st.booleans())
def test_pools(data: st.DataObject, target: str, dtype: str, seed: int, average: bool) -> None:
    kernel = [data.draw(st.integers(1, 3)) for _ in range(2)]
    attributes: dict[str, Any] = {"strides": [data.draw(st.integers(1, side)) for side in kernel]}
    if data.draw(st.booleans()):
        attributes["pads"] = [data.draw(st.integers(0, kernel[axis % 2] - 1)) for axis in range(4)]
    elif data.draw(st.booleans()):
        attributes["auto_pad"] = data.draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    if average:
        attributes["count_include_pad"] = data.draw(st.integers(0, 1))
    if "auto_pad" not in attributes:
        attributes["ceil_mode"] = data.draw(st.integers(0, 1))
    shape = (1, 3, data.draw(st.integers(3, 8)), data.draw(st.integers(3, 8)))
    if attributes.get("ceil_mode"):
        # onnx and onnxruntime count a last window that begins behind the image differently
        pads = attributes.get("pads", [0] * 4)
        for axis, (side, stride) in enumerate(zip(kernel, attributes["strides"], strict=True)):
            size = shape[2 + axis] + pads[axis]
            assume(-(-(size + pads[2 + axis] - side) // stride) * stride < size)
    op_type = "AveragePool" if average else "MaxPool"
    node = helper.make_node(op_type, ["x"], ["y"], name="pool", kernel_shape=kernel, **attributes)
    run(data, target, node, shape, dtype, seed, same=not average)


@quick
@given(data=st.data(), target=targets, dtype=types, seed=seeds, size=st.sampled_from([1, 7, 12, 40]))
def test_global_average(data: st.DataObject, target: str, dtype: str, seed: int, size: int) -> None:
    node = helper.make_node("GlobalAveragePool", ["x"], ["y"], name="pool")
    run(data, target, node, (1, 2, size, size), dtype, seed)


@quick
@given(
    data=st.data(), target=targets, dtype=types, seed=seeds, opset=st.sampled_from([17, 18]),
    op_type=st.sampled_from(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"]),
    axes=st.sampled_from([[1], [2, 3], [-1], [1, 2, 3]]), keep=st.integers(0, 1),
)  # fmt: skip
def test_reductions(
    data: st.DataObject, target: str, dtype: str, seed: int, opset: int, op_type: str, axes: list[int], keep: int
) -> None:
    operand = op_type == "ReduceSum" or opset >= 18
    attributes: dict[str, Any] = {} if operand else {"axes": axes}
    constants = {"axes": np.array(axes, np.int64)} if operand else None
    names = ["x", "axes"] if operand else ["x"]
    node = helper.make_node(op_type, names, ["y"], name="reduce", keepdims=keep, **attributes)
    run(data, target, node, (1, 3, 5, 7), dtype, seed, constants, opset=opset)


@quick
@given(
    data=st.data(), target=targets, seed=seeds, mode=st.sampled_from(["nearest", "linear"]),
    transformation=st.sampled_from(["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"]),
    scales=st.sampled_from([(2.0, 2.0), (3.0, 2.0), (1.5, 0.5), (1.0, 2.0), (0.7, 1.3)]),
)  # fmt: skip
def test_resize(
    data: st.DataObject, target: str, seed: int, mode: str, transformation: str, scales: tuple[float, float]
) -> None:
    constants = {"roi": np.zeros(0, np.float32), "scales": np.array([1, 1, *scales], np.float32)}
    attributes = (
        {"nearest_mode": data.draw(st.sampled_from(["floor", "round_prefer_floor"]))} if mode == "nearest" else {}
    )
    node = helper.make_node(
        "Resize", ["x", "roi", "scales"], ["y"], name="resize", mode=mode,
        coordinate_transformation_mode=transformation, **attributes,
    )  # fmt: skip
    shape = (1, 2, data.draw(st.integers(2, 6)), data.draw(st.integers(2, 6)))
    run(data, target, node, shape, "int8", seed, constants, same=mode == "nearest")


def moves() -> list[tuple[onnx.NodeProto, dict[str, np.ndarray]]]:
    def node(
        op_type: str, constants: dict[str, Any], **attributes: Any
    ) -> tuple[onnx.NodeProto, dict[str, np.ndarray]]:
        made = helper.make_node(op_type, ["x", *constants], ["y"], name="move", **attributes)
        return made, {name: np.asarray(value) for name, value in constants.items()}

    whole = np.int64
    return [
        node("Identity", {}),
        node("Transpose", {}, perm=[0, 2, 3, 1]),
        node("Flatten", {}, axis=1),
        node("Reshape", {"shape": np.array([1, -1, 4], whole)}),
        node("Squeeze", {"axes": np.array([0], whole)}),
        node("Unsqueeze", {"axes": np.array([0], whole)}),
        node("Slice", {"starts": np.array([1], whole), "ends": np.array([3], whole), "axes": np.array([1], whole)}),
        node("Gather", {"indices": np.array([3, 0, 0], whole)}, axis=1),
        node("DepthToSpace", {}, blocksize=2),
        node("SpaceToDepth", {}, blocksize=2),
        node("GlobalMaxPool", {}),
        node("Expand", {"shape": np.array([2, 4, 4, 6], whole)}),
        node("Tile", {"repeats": np.array([1, 2, 1, 1], whole)}),
        node("Pad", {"pads": np.array([0, 0, 1, 2, 0, 0, 0, 1], whole), "value": np.float32(0.8)}),
        node("Pad", {"pads": np.array([0, 0, 1, 2, 0, 0, 0, 1], whole)}, mode="reflect"),
    ]


@pytest.mark.parametrize(("node", "constants"), moves(), ids=lambda entry: getattr(entry, "op_type", ""))
@pytest.mark.parametrize("target", ALL_TARGETS)
def test_bytes_move(node: onnx.NodeProto, constants: dict[str, np.ndarray], target: str) -> None:
    model = graph_of([node], (1, 4, 4, 6), constants)
    code = power(-3) if target.startswith("esp") else Encoding("int8", 0.11, 0 if target == "bayes-e" else 9)
    compare(model, plan_of(model, target, {"x": code, "y": code}), target, integers((1, 4, 4, 6), code, 0))


def test_split_gives_several() -> None:
    node = helper.make_node("Split", ["x", "parts"], ["y", "z"], name="split", axis=1)
    model = graph_of([node], (1, 5, 2, 2), {"parts": np.array([2, 3], np.int64)}, outputs=("y", "z"))
    plan = plan_of(model, "esp32p4", {name: power(-2) for name in "xyz"})
    compare(model, plan, "esp32p4", integers((1, 5, 2, 2), power(-2), 0))


@quick
@given(
    data=st.data(), target=targets, dtype=types, axis=st.sampled_from([-1, 1, 2]), seed=seeds, length=st.integers(1, 50)
)
def test_softmax(data: st.DataObject, target: str, dtype: str, axis: int, seed: int, length: int) -> None:
    exponent = data.draw(st.integers(-7, -2)) - (8 if dtype == "int16" else 0)
    source = power(exponent, dtype)
    wanted = data.draw(encodings(target, dtype)) if target == "onnx" else power(-7 if dtype == "int8" else -15, dtype)
    shape = (1, length, 3, length)
    model = graph_of([helper.make_node("Softmax", ["x"], ["y"], name="softmax", axis=axis)], shape)
    plan = plan_of(model, target, {"x": source, "y": wanted})
    compare(model, plan, target, integers(shape, source, seed))


def test_softmax_that_overflows_on_the_chip() -> None:
    model = graph_of([helper.make_node("Softmax", ["x"], ["y"], name="softmax")], (1, 4))
    plan = plan_of(model, "esp32p4", {"x": power(0), "y": power(-7)})
    with pytest.raises(UserError, match="overflows float32"):
        lower_integer(model, plan, load_target("esp32p4"))


@pytest.mark.parametrize("target", ALL_TARGETS)
def test_float_islands(target: str) -> None:
    """A float node between integers: dequantized before, quantized after."""
    nodes = [
        helper.make_node("Sqrt", ["x"], ["f"], name="root"),
        helper.make_node("MaxPool", ["f"], ["y"], name="pool", kernel_shape=[2, 2]),
    ]
    model = graph_of(nodes, (1, 2, 4, 4))
    tensors = {"x": power(-3), "f": power(-4), "y": power(-4)}
    plan = plan_of(model, target, tensors, floats=("root",))
    x = np.abs(integers((1, 2, 4, 4), power(-3), 0)).clip(0)
    graph = compare(model, plan, target, np.maximum(x, 0))
    assert "Sqrt" in {node.op_type for node in graph.proto.graph.node}


@pytest.mark.parametrize("target", ALL_TARGETS)
def test_float_images_are_quantized_first(target: str) -> None:
    model = graph_of([helper.make_node("MaxPool", ["x"], ["y"], name="pool", kernel_shape=[1, 1])], (1, 3, 8, 8))
    code = power(-7) if target.startswith("esp") else Encoding("int8", 1 / 255, 0 if target == "bayes-e" else -128)
    plan = plan_of(model, target, {"x": code, "y": code})
    pixels = np.arange(192, dtype=np.float32).reshape(1, 3, 8, 8) / 255
    ties = (np.arange(192, dtype=np.float32).reshape(1, 3, 8, 8) - 96 + 0.5) * np.float32(code.scales)
    for x in (pixels, ties, -pixels, np.full_like(pixels, np.inf)):
        compare(model, plan, target, x)


def test_an_operator_without_a_rule_is_named() -> None:
    model = graph_of([helper.make_node("LpNormalization", ["x"], ["y"], name="norm")], (1, 4))
    plan = plan_of(model, "esp32p4", {"x": power(0), "y": power(-7)})
    with pytest.raises(UserError, match="norm: there is no integer rule for LpNormalization: rewrite"):
        lower_integer(model, plan, load_target("esp32p4"))
    plan = plan_of(model, "bayes-e", {"x": power(0), "y": power(-7)})
    with pytest.raises(UserError, match="pin it to float32"):
        lower_integer(model, plan, load_target("bayes-e"))
