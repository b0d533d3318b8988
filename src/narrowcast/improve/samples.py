"""What a layer reads and gives at a few positions of each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.calibrate.unary import unary, unary_name
from narrowcast.ops.net import constant_of

__all__ = ["Layer", "function_behind", "layer_of", "positions", "take"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Layer:
    """Shape of a layer whose weights can be rounded: the operand becomes rows, the weight (groups, rows, K).

    Attributes:
        kernel, strides, dilations: height and width.
        pads: top, left, bottom, right.
        groups: of the convolution.
        dense: a Gemm: rows are the operand itself.
    """

    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    dense: bool = False

    def weights(self, weight: Array) -> NDArray[np.float64]:
        """(groups, output channels of a group, K)."""
        return np.asarray(weight, np.float64).reshape(self.groups, weight.shape[0] // self.groups, -1)

    def rows(self, x: Array, where: Array) -> NDArray[np.float32]:
        """(groups, P, K) inputs of the products at output positions ``where`` of one image."""
        if self.dense:
            return np.asarray(x, np.float32)[None]
        top, left, bottom, right = self.pads
        padded = np.pad(x[0], ((0, 0), (top, bottom), (left, right)))
        out_width = (padded.shape[2] - self.dilations[1] * (self.kernel[1] - 1) - 1) // self.strides[1] + 1
        y, x_ = np.divmod(where, out_width)
        down = (y * self.strides[0])[:, None, None] + np.arange(self.kernel[0])[None, :, None] * self.dilations[0]
        across = (x_ * self.strides[1])[:, None, None] + np.arange(self.kernel[1])[None, None, :] * self.dilations[1]
        patches = padded[:, down, across]  # (C, P, kh, kw)
        grouped = patches.reshape(self.groups, -1, *patches.shape[1:])
        return np.asarray(np.moveaxis(grouped, 2, 1).reshape(self.groups, len(where), -1), np.float32)


def layer_of(node: ir.Node) -> Layer | None:
    """How to lay out a node's operand as rows, ``None`` where this module cannot."""
    weight = constant_of(node.inputs[1])
    if weight is None:
        return None
    get = node.attributes
    if node.op_type == "Gemm":
        plain = get.get_float("alpha", 1.0) == 1.0 and get.get_float("beta", 1.0) == 1.0
        return Layer(dense=True) if plain and get.get_int("transB", 0) and not get.get_int("transA", 0) else None
    if node.op_type != "Conv" or weight.ndim != 4 or get.get_string("auto_pad", "NOTSET") != "NOTSET":
        return None

    def pair(name: str) -> tuple[int, int]:
        first, second = get.get_ints(name, (1, 1)) or (1, 1)
        return first, second

    top, left, bottom, right = get.get_ints("pads", (0, 0, 0, 0)) or (0, 0, 0, 0)
    kernel = (int(weight.shape[2]), int(weight.shape[3]))
    return Layer(kernel, pair("strides"), pair("dilations"), (top, left, bottom, right), get.get_int("group", 1) or 1)


def positions(shape: Sequence[int], most: int, seed: int) -> Array:
    """Indices of at most ``most`` positions of an output (1, C, H, W), sorted; a (1, C) output has one."""
    count = int(np.prod(shape[2:]))
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def take(values: Array, where: Array) -> NDArray[np.float32]:
    """(C, P) values of a (1, C, ...) tensor at the positions."""
    return np.asarray(values.reshape(values.shape[1], -1)[:, where], np.float32)


def function_behind(node: ir.Node) -> Callable[[Array], Array]:
    """The function that alone reads the node's output, or the identity."""
    users = [use.node for use in node.outputs[0].uses()]
    if len(users) != 1 or node.outputs[0].is_graph_output():
        return lambda x: x
    name = unary_name(users[0])
    return (lambda x: x) if name is None else unary(name)
