"""Run a graph node by node for several images at once, in float or under a plan.

Corrections need what every node reads in the quantized network after all nodes before it were corrected. Running the
whole network again for each node would cost the square of its depth; this walk computes every node once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper

from narrowcast.graph.run import open_session
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.functions import unary, unary_name
from narrowcast.ops.net import constant_of, only_reader
from narrowcast.ops.units import inline_units
from narrowcast.plan.types import Encoding, Plan, edge_key

Array = NDArray[Any]


def is_correctable(node: ir.Node) -> bool:
    """Whether the node multiplies its input with a constant weight of its own."""
    return facts(node).is_weighted and constant_of(node.inputs[1]) is not None


def fake_quantize(values: Array, encoding: Encoding) -> NDArray[np.float32]:
    """Real values to the nearest that the encoding holds; float32, same shape."""
    if encoding.dtype == "int32":
        return np.asarray(values, np.float32)  # an accumulator is exact
    scale = encoding.broadcast(values.ndim).astype(np.float32)
    steps = np.rint(values / scale)
    np.clip(steps, encoding.qmin - encoding.zero_point, encoding.qmax - encoding.zero_point, out=steps)
    steps *= scale
    return np.asarray(steps, np.float32)


class NodeRunner:
    """One node as an onnxruntime session; weight and bias of a correctable node are inputs."""

    def __init__(
        self, node: ir.Node, functions: Sequence[onnx.FunctionProto], opsets: Sequence[onnx.OperatorSetIdProto],
        threads: int = 0,
    ) -> None:  # fmt: skip
        open_inputs = (1, 2) if is_correctable(node) else ()
        self.inputs: list[tuple[int, str]] = []
        constants: list[onnx.TensorProto] = []
        declared: list[onnx.ValueInfoProto] = []
        for index, value in enumerate(node.inputs):
            if value is None or value.name in [known.name for known in (*constants, *declared)]:
                continue
            array = constant_of(value)
            if array is not None and index not in open_inputs:
                constants.append(onnx.numpy_helper.from_array(array, str(value.name)))
                continue
            self.inputs.append((index, str(value.name)))
            kind = TensorProto.FLOAT if value.dtype is None else int(value.dtype)
            declared.append(helper.make_tensor_value_info(str(value.name), kind, None))
        outputs = [helper.make_empty_tensor_value_info(str(output.name)) for output in node.outputs]
        graph = helper.make_graph([ir.serde.serialize_node(node)], "node", declared, outputs, constants)
        proto = helper.make_model(graph, opset_imports=list(opsets), functions=list(functions), ir_version=8)
        self.session = open_session(inline_units(proto), threads, "all")

    def run(self, operands: dict[int, Array]) -> list[Array]:
        """Outputs for operands by their position."""
        return list(self.session.run(None, {name: operands[index] for index, name in self.inputs}))


class Walk:
    """Values of one network for several images, node after node; without a plan in float."""

    def __init__(self, model: ir.Model, plan: Plan | None, inputs: Sequence[Array]) -> None:
        self.plan = plan
        self.values: dict[str, list[Array]] = {}
        self._last = {str(value.name): node for node in model.graph for value in node.inputs if value is not None}
        image = str(model.graph.inputs[0].name)
        self.values[image] = [self._encoded(image, tensor) for tensor in inputs]

    def _encoded(self, name: str, values: Array) -> Array:
        encoding = self.plan.tensors.get(name) if self.plan is not None else None
        return values if encoding is None else fake_quantize(values, encoding)

    def operand(self, node: ir.Node, index: int) -> list[Array]:
        """What the node reads at that position, one array an image."""
        value = node.inputs[index]
        assert value is not None
        values = self.values[str(value.name)]
        edge = self.plan.edges.get(edge_key(str(node.name), index)) if self.plan is not None else None
        return values if edge is None else [fake_quantize(each, edge) for each in values]

    def compute(self, node: ir.Node, runner: NodeRunner, weight: Array | None, bias: Array | None) -> list[list[Array]]:
        """Outputs of the node before they are encoded, one list of outputs an image."""
        fixed: dict[int, Array] = {}
        for index, own in ((1, weight), (2, bias)):
            if own is not None:
                fixed[index] = np.asarray(own, np.float32)
        computed = {
            index: self.operand(node, index)
            for index, value in enumerate(node.inputs)
            if value is not None and value.const_value is None
        }
        count = len(next(iter(self.values.values())))
        return [
            runner.run({**fixed, **{index: values[image] for index, values in computed.items()}})
            for image in range(count)
        ]

    def keep(self, node: ir.Node, outputs: Sequence[Sequence[Array]]) -> None:
        """Take the node's outputs in, encoded, and forget what nobody reads any more."""
        for position, output in enumerate(node.outputs):
            name = str(output.name)
            self.values[name] = [self._encoded(name, each[position]) for each in outputs]
        for value in node.inputs:
            if value is not None and self._last.get(str(value.name)) is node:
                self.values.pop(str(value.name), None)
        for output in node.outputs:
            if str(output.name) not in self._last and not output.is_graph_output():
                self.values.pop(str(output.name), None)


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

    def weights(self, weight: Array) -> Array:
        """(groups, output channels of a group, K)."""
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

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
    if facts(node).kind is Kind.LINEAR:
        plain = get.get_float("alpha", 1.0) == 1.0 and get.get_float("beta", 1.0) == 1.0
        return Layer(dense=True) if plain and get.get_int("transB", 0) and not get.get_int("transA", 0) else None
    if facts(node).kind is not Kind.CONVOLUTION or weight.ndim != 4 or get.get_string("auto_pad", "NOTSET") != "NOTSET":
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
    reader = only_reader(node.outputs[0])
    name = None if reader is None else unary_name(reader)
    return (lambda x: x) if name is None else unary(name)
