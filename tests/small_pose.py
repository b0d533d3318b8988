"""A network with everything that the embedded pose network has, at a tenth of its time: for what needs no real people.

Three pyramid levels joined up and down again, SiLU everywhere, a branch for boxes, classes and keypoints at each
stride; its weights are drawn, so what it finds means nothing, but it finds something.
"""

from __future__ import annotations

import json

import numpy as np
import onnx
from onnx import helper

from builders import constant, model

#: Height and width of the input.
SIDE = 64
_WIDE = 12
_HEAD = {"task": "pose", "strides": [8, 16, 32], "num_classes": 1, "reg_max": 16, "keypoint_shape": [17, 3],
         "num_masks": 0}  # fmt: skip
_CHANNELS = {"box": 64, "cls": 1, "kpt": 51}


class _Net:
    """Collects nodes and constants."""

    def __init__(self) -> None:
        self.rng, self.nodes, self.constants = np.random.default_rng(7), [], []  # type: ignore[var-annotated]
        self.channels = {"x": 3}

    def conv(self, source: str, name: str, channels: int, kernel: int = 3, stride: int = 1, bias: float = 0.0) -> str:
        shape = (channels, self.channels[source], kernel, kernel)
        deviation = 1.6 / np.sqrt(np.prod(shape[1:]))
        self.constants += [
            constant(f"{name}_w", self.rng.normal(0, deviation, shape).astype(np.float32)),
            constant(f"{name}_b", self.rng.normal(bias, 0.2, channels).astype(np.float32)),
        ]
        self.nodes.append(
            helper.make_node(
                "Conv", [source, f"{name}_w", f"{name}_b"], [name], name=f"/{name}/Conv", pads=[kernel // 2] * 4,
                strides=[stride] * 2,
            )
        )  # fmt: skip
        self.channels[name] = channels
        return name

    def silu(self, source: str) -> str:
        self.nodes += [
            helper.make_node("Sigmoid", [source], [f"{source}_s"], name=f"/{source}/Sigmoid"),
            helper.make_node("Mul", [source, f"{source}_s"], [f"{source}_a"], name=f"/{source}/Mul"),
        ]
        self.channels[f"{source}_a"] = self.channels[source]
        return f"{source}_a"

    def block(self, source: str, name: str, kernel: int = 3, stride: int = 1) -> str:
        return self.silu(self.conv(source, name, _WIDE, kernel, stride))

    def join(self, one: str, other: str, name: str) -> str:
        self.nodes.append(helper.make_node("Concat", [one, other], [name], name=f"/{name}/Concat", axis=1))
        self.channels[name] = self.channels[one] + self.channels[other]
        return name

    def up(self, source: str) -> str:
        name = f"{source}_up"
        self.nodes.append(
            helper.make_node("Resize", [source, "", "twice"], [name], name=f"/{name}/Resize", mode="nearest",
                             coordinate_transformation_mode="asymmetric", nearest_mode="floor")
        )  # fmt: skip
        self.channels[name] = self.channels[source]
        return name


def small_pose() -> onnx.ModelProto:
    net = _Net()
    net.constants.append(constant("twice", np.asarray([1, 1, 2, 2], np.float32)))
    half = net.block(net.block("x", "stem", stride=2), "down4", stride=2)
    levels = []
    for name in ("down8", "down16", "down32"):
        half = net.block(half, name, stride=2)
        levels.append(half)
    p8, p16, p32 = levels
    p16 = net.block(net.join(net.up(p32), p16, "cat16"), "neck16", 1)
    p8 = net.block(net.join(net.up(p16), p8, "cat8"), "neck8", 1)
    outputs = []
    for stride, level in zip(_HEAD["strides"], (p8, p16, p32), strict=True):  # type: ignore[call-overload]
        for role, channels in _CHANNELS.items():
            bias = -1.0 if role == "cls" else 0.0
            hidden = net.block(level, f"{role}{stride}", 1)
            outputs.append(net.conv(hidden, f"{role}_s{stride}", channels, 1, bias=bias))
    metadata = {"narrowcast.head": json.dumps(_HEAD), "names": "{0: 'person'}"}
    return model(net.nodes, net.constants, shape=(1, 3, SIDE, SIDE), outputs=outputs, metadata=metadata)
