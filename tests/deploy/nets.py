"""Small networks that use every way in which a file stores things, with plans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from builders import constant, model, save, weights
from narrowcast.calibrate import collect
from narrowcast.chips import Target, load_target
from narrowcast.chips.esp.codec import decode_espdl, encode_espdl
from narrowcast.chips.esp.model import EspdlRunner, build_espdl, make_test_vectors
from narrowcast.graph import load
from narrowcast.plan import Pins, Plan, draft, finish


@dataclass(frozen=True)
class Net:
    """A prepared model with a plan."""

    model: ir.Model
    plan: Plan
    target: Target
    image: np.ndarray


def planned(proto: onnx.ModelProto, folder: Path, target: str, int16: tuple[str, ...] = ()) -> Net:
    loaded = load(save(proto, folder / "net.onnx"), keep_head=True)
    chip = load_target(target)
    drafted = draft(loaded.ir.graph, chip, Pins(dict.fromkeys(int16, "int16")))
    shape = [int(size) for size in loaded.ir.graph.inputs[0].shape]
    images = [np.random.default_rng(seed).normal(size=shape).astype(np.float32) for seed in range(3)]
    statistics = collect(loaded.to_proto(), drafted.wanted_statistics(), images)
    plan, _ = finish(drafted, statistics, "minmax")
    return Net(loaded.ir, plan, chip, images[0])


def round_trip(net: Net, **options: Any) -> EspdlRunner:
    """Write, read, run: the integers of the test vectors come out again."""
    for vector in make_test_vectors(net.model, net.plan, net.target, [net.image, -net.image], 1):
        data = encode_espdl(build_espdl(net.model, net.plan, net.target, test_vector=vector, **options))
        runner = EspdlRunner(decode_espdl(data), net.target, 1)
        checks = runner.check_vectors()
        assert len(checks) == len(net.model.graph.outputs)
        assert all(check.differing == 0 and check.count > 0 for check in checks), checks
    assert runner.differing_tables() == {}
    return runner


def convolutions() -> onnx.ModelProto:
    """Filters of 20, 24 and 3 channels, depthwise, transposed; Relu inside and outside of the unit."""
    rng = np.random.default_rng(3)
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], name="first", pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["c0"], ["r0"], name="relu"),
        node("Conv", ["r0", "w1"], ["c1"], name="depthwise", group=20, auto_pad="SAME_UPPER"),
        node("Relu", ["c1"], ["r1"], name="relu1"),
        node("Sigmoid", ["c1"], ["s1"], name="gate"),
        node("Mul", ["r1", "s1"], ["m1"], name="product"),
        node("ConvTranspose", ["m1", "w2", "b2"], ["t"], name="up", strides=[2, 2], pads=[1] * 4,
             output_padding=[1, 1]),
        node("MaxPool", ["t"], ["p"], name="pool", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
        node("AveragePool", ["t"], ["a"], name="mean", kernel_shape=[2, 2], strides=[2, 2]),
        node("Concat", ["p", "a", "r0"], ["cat"], name="cat", axis=1),
        node("Resize", ["cat", "", "scales"], ["big"], name="resize", mode="nearest",
             coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        node("Conv", ["big", "w3", "b3"], ["y"], name="last"),
        node("GlobalAveragePool", ["big"], ["g"], name="all"),
        node("Flatten", ["g"], ["f"], name="flat"),
        node("Gemm", ["f", "w4", "b4"], ["z"], name="fully", transB=1),
    ]  # fmt: skip
    constants = [
        weights(rng, "w0", 20, 3, 3, 3), weights(rng, "b0", 20), weights(rng, "w1", 20, 1, 3, 3),
        constant("w2", rng.normal(0, 3, (20, 24, 3, 3)).astype(np.float32)), weights(rng, "b2", 24),
        weights(rng, "w3", 3, 68, 1, 1), weights(rng, "b3", 3), weights(rng, "w4", 5, 68), weights(rng, "b4", 5),
        constant("scales", np.asarray([1, 1, 2, 2], np.float32)),
    ]  # fmt: skip
    return model(nodes, constants, outputs=("y", "z"))


def attention(size: int = 4) -> onnx.ModelProto:
    """Split, Reshape, Transpose, two MatMul of activations, Softmax, Mul by a constant, Add of two layouts."""
    rng = np.random.default_rng(4)
    node, count = helper.make_node, size * size
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c"], name="embed"),
        node("Split", ["c", "parts"], ["head", "rest"], name="split", axis=1),
        node("Reshape", ["rest", "flat"], ["r"], name="flatten"),
        node("Split", ["r", "halves"], ["q", "k"], name="split2", axis=1),
        node("Transpose", ["q"], ["qt"], name="turn", perm=[0, 2, 1]),
        node("MatMul", ["qt", "k"], ["scores"], name="scores"),
        node("Mul", ["scores", "half"], ["scaled"], name="scale"),
        node("Softmax", ["scaled"], ["share"], name="softmax", axis=-1),
        node("Transpose", ["share"], ["st"], name="turn2", perm=[0, 2, 1]),
        node("MatMul", ["k", "st"], ["mix"], name="mix"),
        node("Reshape", ["mix", "plane"], ["m"], name="unflatten"),
        node("Add", ["m", "head"], ["sum"], name="add"),
        node("Slice", ["sum", "one", "three", "one"], ["cut"], name="slice"),
        node("Pad", ["cut", "pads"], ["padded"], name="pad"),
        node("Conv", ["padded", "w1", "b1"], ["y"], name="last"),
        node("ReduceMean", ["sum"], ["mean"], name="reduce", axes=[2, 3], keepdims=0),
        node("MatMul", ["mean", "w2"], ["z"], name="fixed"),
    ]  # fmt: skip
    whole = {
        "parts": [6, 12], "flat": [1, 12, count], "halves": [6, 6], "plane": [1, 6, size, size], "one": [1],
        "three": [4], "pads": [0, 0, 1, 0, 0, 0, 0, 2],
    }  # fmt: skip
    constants = [
        weights(rng, "w0", 18, 3, 1, 1), weights(rng, "b0", 18), weights(rng, "w1", 16, 3, 2, 2),
        weights(rng, "b1", 16),
        weights(rng, "w2", 6, 18), constant("half", np.asarray(0.5, np.float32)),
        *(constant(name, np.asarray(values, np.int64)) for name, values in whole.items()),
    ]  # fmt: skip
    return model(nodes, constants, shape=(1, 3, size, size), outputs=("y", "z"))


def odd_layouts() -> onnx.ModelProto:
    """Channels-last input, transpositions that cancel, 1-D convolutions, shapes, and other functions of one value."""
    rng = np.random.default_rng(5)
    node = helper.make_node
    nodes = [
        node("Transpose", ["x"], ["nchw"], name="to_nchw", perm=[0, 3, 1, 2]),
        node("Conv", ["nchw", "w0"], ["c"], name="conv", pads=[1] * 4),
        node("LeakyRelu", ["c"], ["l"], name="leaky", alpha=0.2),
        node("Transpose", ["l"], ["nhwc"], name="to_nhwc", perm=[0, 2, 3, 1]),
        node("Clip", ["nhwc", "low", "high"], ["k"], name="clip"),
        node("Transpose", ["k"], ["back"], name="back", perm=[0, 3, 1, 2]),
        node("PRelu", ["back", "slope"], ["p"], name="prelu"),
        node("DepthToSpace", ["p"], ["d"], name="blocks", blocksize=2),
        node("Sub", ["d", "offset"], ["s"], name="sub"),
        node("Transpose", ["s"], ["swapped"], name="swap", perm=[0, 1, 3, 2]),
        node("Transpose", ["l"], ["y"], name="result", perm=[0, 2, 3, 1]),
        node("GlobalMaxPool", ["swapped"], ["g"], name="top"),
        node("Squeeze", ["g", "last"], ["q"], name="squeeze"),
        node("Conv", ["q", "w1"], ["one"], name="conv1d"),
        node("Relu", ["one"], ["r"], name="relu"),
        node("Unsqueeze", ["r", "last"], ["u"], name="unsqueeze"),
        node("Conv", ["u", "w2"], ["z"], name="end"),
        node("Gather", ["s", "rows"], ["t"], name="pick", axis=2),
        node("Tanh", ["t"], ["v"], name="tanh"),
    ]
    constants = [
        weights(rng, "w0", 16, 3, 3, 3), weights(rng, "w1", 9, 4, 1), weights(rng, "w2", 2, 9, 1, 1),
        constant("slope", np.full((1, 1, 1), 0.25, np.float32)), weights(rng, "offset", 1, 4, 1, 1),
        constant("low", np.asarray(-0.5, np.float32)), constant("high", np.asarray(0.75, np.float32)),
        constant("last", np.asarray([3], np.int64)), constant("rows", np.asarray([2, 0], np.int64)),
    ]  # fmt: skip
    return model(nodes, constants, shape=(1, 6, 6, 3), outputs=("y", "z", "v"))
