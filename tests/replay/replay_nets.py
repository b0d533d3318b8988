"""Twelve small networks that between them use every room: the embedded samples and ten that are built here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nets
import numpy as np
import onnx
from onnx import helper

from builders import constant, model, save, silu_net, weights
from narrowcast.zoo import sample

__all__ = ["NETS", "net_file"]

node = helper.make_node


def inverted_residual() -> onnx.ModelProto:
    """Expansion, depthwise with stride, ReLU6, projection, residual: MobileNetV2."""
    rng = np.random.default_rng(11)
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], name="stem", pads=[1] * 4, strides=[2, 2]),
        node("Clip", ["c0", "zero", "six"], ["a0"], name="relu6"),
        node("Conv", ["a0", "w1", "b1"], ["c1"], name="expand"),
        node("Clip", ["c1", "zero", "six"], ["a1"], name="relu6_1"),
        node("Conv", ["a1", "w2", "b2"], ["c2"], name="depthwise", pads=[1] * 4, group=16),
        node("Clip", ["c2", "zero", "six"], ["a2"], name="relu6_2"),
        node("Conv", ["a2", "w3", "b3"], ["c3"], name="project"),
        node("Add", ["c3", "a0"], ["sum"], name="residual"),
        node("GlobalAveragePool", ["sum"], ["g"], name="pool"),
        node("Flatten", ["g"], ["f"], name="flatten"),
        node("Gemm", ["f", "w4", "b4"], ["logits"], name="classifier", transB=1),
        node("Softmax", ["logits"], ["y"], name="softmax", axis=1),
    ]
    constants = [
        weights(rng, "w0", 8, 3, 3, 3), weights(rng, "b0", 8), weights(rng, "w1", 16, 8, 1, 1), weights(rng, "b1", 16),
        weights(rng, "w2", 16, 1, 3, 3), weights(rng, "b2", 16), weights(rng, "w3", 8, 16, 1, 1),
        weights(rng, "b3", 8), weights(rng, "w4", 5, 8), weights(rng, "b4", 5),
        constant("zero", np.float32(0)), constant("six", np.float32(6)),
    ]  # fmt: skip
    return model(nodes, constants)


def squeeze_excite() -> onnx.ModelProto:
    """Hard swish, and a gate computed from the mean: MobileNetV3, EfficientNet."""
    rng = np.random.default_rng(12)
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], name="stem", pads=[1] * 4),
        node("HardSwish", ["c0"], ["a0"], name="hardswish"),
        node("GlobalAveragePool", ["a0"], ["g"], name="squeeze"),
        node("Conv", ["g", "w1", "b1"], ["s1"], name="reduce"),
        node("Relu", ["s1"], ["r1"], name="relu"),
        node("Conv", ["r1", "w2", "b2"], ["s2"], name="expand"),
        node("HardSigmoid", ["s2"], ["gate"], name="gate", alpha=1 / 6),
        node("Mul", ["a0", "gate"], ["m"], name="excite"),
        node("Conv", ["m", "w3"], ["y"], name="last"),
    ]
    constants = [
        weights(rng, "w0", 8, 3, 3, 3), weights(rng, "b0", 8), weights(rng, "w1", 4, 8, 1, 1), weights(rng, "b1", 4),
        weights(rng, "w2", 8, 4, 1, 1), weights(rng, "b2", 8), weights(rng, "w3", 4, 8, 1, 1),
    ]  # fmt: skip
    return model(nodes, constants)


def upsampling() -> onnx.ModelProto:
    """Down and up again with a transposed convolution, a linear Resize and a skip: U-Net."""
    rng = np.random.default_rng(13)
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], name="down0", pads=[1] * 4),
        node("LeakyRelu", ["c0"], ["a0"], name="leaky", alpha=0.1),
        node("MaxPool", ["a0"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "w1", "b1"], ["c1"], name="down1", pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["c1"], ["a1"], name="relu"),
        node("ConvTranspose", ["a1", "w2", "b2"], ["t"], name="up0", strides=[2, 2], kernel_shape=[2, 2]),
        node("Resize", ["t", "", "scales"], ["r"], name="up1", mode="linear"),
        node("Concat", ["r", "a0"], ["cat"], name="skip", axis=1),
        node("Conv", ["cat", "w3", "b3"], ["y"], name="last"),
    ]
    constants = [
        weights(rng, "w0", 8, 3, 3, 3), weights(rng, "b0", 8), weights(rng, "w1", 16, 8, 3, 3), weights(rng, "b1", 16),
        weights(rng, "w2", 16, 8, 2, 2), weights(rng, "b2", 8), weights(rng, "w3", 3, 16, 1, 1),
        weights(rng, "b3", 3), constant("scales", np.asarray([1, 1, 2, 2], np.float32)),
    ]  # fmt: skip
    return model(nodes, constants)


def class_map() -> onnx.ModelProto:
    """A segmentation network that ends in ArgMax."""
    rng = np.random.default_rng(14)
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], name="first", pads=[1] * 4),
        node("Relu", ["c0"], ["a0"], name="relu"),
        node("Conv", ["a0", "w1"], ["logits"], name="last"),
        node("ArgMax", ["logits"], ["y"], name="argmax", axis=1, keepdims=0),
    ]
    proto = model(nodes, [weights(rng, "w0", 8, 3, 3, 3), weights(rng, "b0", 8), weights(rng, "w1", 4, 8, 1, 1)])
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.INT64, [1, 16, 16]))
    return proto


def patches() -> onnx.ModelProto:
    """Patches, a class token in front of them, positions, and a head on the token: ViT."""
    rng = np.random.default_rng(15)
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], name="patch", strides=[4, 4]),
        node("Reshape", ["c0", "flat"], ["f"], name="flatten"),
        node("Transpose", ["f"], ["t"], name="turn", perm=[0, 2, 1]),
        node("Concat", ["token", "t"], ["cat"], name="join", axis=1),
        node("Add", ["cat", "positions"], ["sum"], name="positions_add"),
        node("MatMul", ["sum", "w1"], ["m"], name="mix"),
        node("Gather", ["m", "first"], ["g"], name="take", axis=1),
        node("Gemm", ["g", "w2", "b2"], ["y"], name="head"),
    ]
    constants = [
        weights(rng, "w0", 16, 3, 4, 4), weights(rng, "b0", 16), weights(rng, "token", 1, 1, 16),
        weights(rng, "positions", 1, 17, 16), weights(rng, "w1", 16, 16), weights(rng, "w2", 16, 5),
        weights(rng, "b2", 5), constant("flat", np.asarray([1, 16, 16])), constant("first", np.asarray(0)),
    ]  # fmt: skip
    return model(nodes, constants)


def shared_head() -> onnx.ModelProto:
    """One head on two pyramid levels: FCOS, RetinaNet."""
    rng = np.random.default_rng(16)
    nodes = [
        node("Conv", ["x", "w0"], ["c0"], name="level3", pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["c0"], ["p3"], name="relu3"),
        node("Conv", ["p3", "w1"], ["c1"], name="level4", pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["c1"], ["p4"], name="relu4"),
        node("Conv", ["p3", "wh", "bh"], ["y"], name="head3"),
        node("Conv", ["p4", "wh", "bh"], ["z"], name="head4"),
    ]
    constants = [weights(rng, "w0", 8, 3, 3, 3), constant("w1", rng.normal(0, 0.02, (8, 8, 3, 3)).astype(np.float32)),
                 weights(rng, "wh", 4, 8, 1, 1), weights(rng, "bh", 4)]  # fmt: skip
    return model(nodes, constants, outputs=("y", "z"))


#: The samples do not fit a seed, so they are files; every other network is built.
NETS: dict[str, Callable[[], onnx.ModelProto] | Path] = {
    "pose": sample("pose").model,
    "classify": sample("classify").model,
    "silu": silu_net,
    "convolutions": nets.convolutions,
    "attention": nets.attention,
    "odd_layouts": nets.odd_layouts,
    "inverted_residual": inverted_residual,
    "squeeze_excite": squeeze_excite,
    "upsampling": upsampling,
    "class_map": class_map,
    "patches": patches,
    "shared_head": shared_head,
}


def net_file(name: str, folder: Path) -> Path:
    """The network's ONNX file, written where it is built."""
    made = NETS[name]
    return made if isinstance(made, Path) else save(made(), folder / f"{name}.onnx")
