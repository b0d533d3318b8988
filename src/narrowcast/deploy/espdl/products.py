"""Sums of products in the file: Conv, ConvTranspose, Gemm, MatMul, with packed weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.deploy.espdl.assembly import Assembly, Stored, exponents, shape_of
from narrowcast.deploy.espdl.layouts import channels_last, identity, reordered
from narrowcast.deploy.espdl.packing import filter_layout, pack_filter, pack_matrix
from narrowcast.deploy.espdl.types import EspdlTensor
from narrowcast.errors import UserError
from narrowcast.graph.units import constant_of
from narrowcast.lower.integer import bias_integers, constant_integers
from narrowcast.plan.types import Encoding

__all__ = ["add_convolution", "add_fully_connected", "add_matmul", "add_transposed_convolution", "fused_relu"]


def fused_relu(assembly: Assembly, node: ir.Node) -> ir.Node | None:
    """The Relu that the runtime does in the same step as a sum of products, if there is one."""
    output = node.outputs[0]
    users = list(output.uses())
    chained = len(users) == 1 and (node.op_type, users[0].node.op_type) in assembly.target.fusions
    inner = str(output.name) not in assembly.plan.tensors and not output.is_graph_output()
    return users[0].node if chained and inner and users[0].node.op_type == "Relu" else None


def _output(assembly: Assembly, node: ir.Node) -> tuple[ir.Value, Encoding, str]:
    """The value that a sum of products writes, its encoding, and the activation on the way."""
    relu = fused_relu(assembly, node)
    value = node.outputs[0] if relu is None else relu.outputs[0]
    return value, assembly.encoding(value, node), "Linear" if relu is None else "Relu"


def _weight_encoding(assembly: Assembly, node: ir.Node, wanted: Encoding) -> Encoding:
    name = str(node.inputs[1].name) if node.inputs[1] is not None else ""
    encoding = assembly.plan.tensors.get(name)
    if encoding is None:
        raise UserError(f"the plan has no encoding for {name}, the weight of {node.name}", "make the plan again")
    if encoding.dtype != wanted.dtype:
        raise UserError(f"{node.name} has {encoding.dtype} weights and {wanted.dtype} results", "make the plan again")
    return encoding


def _input(assembly: Assembly, node: ir.Node, index: int, wanted: Encoding) -> Stored:
    stored = assembly.operand(node, index)
    if stored.encoding is None or stored.encoding.dtype != wanted.dtype:
        kind = "float32" if stored.encoding is None else stored.encoding.dtype
        raise UserError(f"{node.name} reads {kind} and writes {wanted.dtype}", "make the plan again")
    return stored


def _lanes(encoding: Encoding) -> int:
    return 16 if encoding.dtype == "int8" else 8


def _bias(assembly: Assembly, node: ir.Node, channels: int, kind: Encoding) -> list[str]:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return []
    array, encoding = constant_of(value), assembly.plan.tensors.get(str(value.name))
    if array is None or encoding is None:
        raise UserError(f"{node.name}: its bias is computed or has no encoding", "make the plan again")
    integers = bias_integers(
        np.broadcast_to(array.reshape(-1), (channels,)),
        encoding,
        assembly.target,
        assembly.plan.nodes[str(node.name)].type,
    )
    stored = integers.astype(np.int64 if kind.dtype == "int16" else np.int32)
    name = str(value.name)
    return [assembly.add_tensor(EspdlTensor(name, (channels,), stored, exponents(encoding, name), "UNK"))]


def _filter(
    assembly: Assembly, name: str, integers: NDArray[np.int64], encoding: Encoding, depthwise: bool = False
) -> str:
    """Store integers (N, C, ...) packed, with logical dims HWCN, or HWNC of a depthwise filter."""
    lanes, spatial = _lanes(encoding), integers.ndim - 2
    window = tuple(range(2, integers.ndim))
    dims = reordered(integers.shape, (*window, 0, 1) if depthwise else (*window, 1, 0))
    data = pack_filter(integers.astype(encoding.dtype), lanes, depthwise)
    layout = filter_layout(len(integers), spatial, lanes)
    return assembly.add_tensor(EspdlTensor(name, dims, data, exponents(encoding, name), layout))


def _window(node: ir.Node, name: str, count: int, default: int) -> tuple[int, ...]:
    return tuple(int(size) for size in node.attributes.get_ints(name, []) or [default] * count)


def explicit_pads(
    node: ir.Node, kernel: tuple[int, ...], sizes: tuple[int, ...], outputs: tuple[int, ...]
) -> list[int]:
    """Padding at the begin of every axis, then at the ends; ``auto_pad`` written out.

    Args:
        node: a Conv or pool.
        kernel: its window.
        sizes: of the input's spatial axes.
        outputs: of the output's.
    """
    count = len(kernel)
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        return list(node.attributes.get_ints("pads", []) or [0] * (2 * count))
    strides, dilations = _window(node, "strides", count, 1), _window(node, "dilations", count, 1)
    begins, ends = [], []
    for axis in range(count):
        reach = (outputs[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        total = max(reach - sizes[axis], 0)
        begins.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
        ends.append(total - begins[-1])
    return [*begins, *ends]


def _integers(assembly: Assembly, node: ir.Node, encoding: Encoding) -> NDArray[np.int64]:
    array = assembly.constant(node, 1)
    if array is None:
        raise UserError(f"{node.name} has no weights", "mend the model")
    return constant_integers(array, encoding, assembly.target)


def _check_groups(node: ir.Node, group: int, channels: int, outputs: int) -> None:
    if group not in (1, channels) or (group > 1 and outputs != channels):
        raise UserError(
            f"{node.name}: {group} groups of {channels} channels, ESP-DL has only 1 or all",
            "use 1 group or a depthwise convolution",
        )


def add_convolution(assembly: Assembly, node: ir.Node) -> None:
    """Conv."""
    value, wanted, activation = _output(assembly, node)
    encoding = _weight_encoding(assembly, node, wanted)
    integers = _integers(assembly, node, encoding)
    kernel, count = integers.shape[2:], integers.ndim - 2
    x = assembly.ordered(_input(assembly, node, 0, wanted), channels_last(integers.ndim))
    group = node.attributes.get_int("group", 1)
    _check_groups(node, group, x.shape[1], len(integers))
    weight = _filter(assembly, str(node.inputs[1].name), integers, encoding, group > 1)
    inputs = [x.name, weight, *_bias(assembly, node, len(integers), wanted)]
    output = assembly.result(value, channels_last(integers.ndim), wanted)
    pads = explicit_pads(node, kernel, x.shape[2:], shape_of(node.outputs[0])[2:])
    assembly.emit(
        "Conv", str(node.name), inputs, [output.name], activation=activation, group=group, kernel_shape=kernel,
        dilations=_window(node, "dilations", count, 1), pads=tuple(pads), strides=_window(node, "strides", count, 1),
    )  # fmt: skip


def add_transposed_convolution(assembly: Assembly, node: ir.Node) -> None:
    """ConvTranspose: zeros between the pixels, then a Conv with the mirrored filter."""
    value, wanted, activation = _output(assembly, node)
    encoding = _weight_encoding(assembly, node, wanted)
    integers = _integers(assembly, node, encoding)  # (C, N / group, ...)
    count, kernel = integers.ndim - 2, integers.shape[2:]
    x = assembly.ordered(_input(assembly, node, 0, wanted), channels_last(integers.ndim))
    group = node.attributes.get_int("group", 1)
    _check_groups(node, group, x.shape[1], integers.shape[1] * group)
    mirrored = np.flip(integers, tuple(range(2, integers.ndim)))
    if group == 1:
        mirrored = np.moveaxis(mirrored, 1, 0)
    strides, dilations = _window(node, "strides", count, 1), _window(node, "dilations", count, 1)
    pads, extra = _transposed_pads(node, x.shape[2:], kernel)
    if encoding.axis is not None:
        encoding = Encoding(encoding.dtype, encoding.scale, encoding.zero_point, 0)
    name = str(node.inputs[1].name)
    weight = _filter(assembly, f"{name}__mirrored", mirrored, encoding, group > 1)
    inputs = [weight, *_bias(assembly, node, shape_of(value)[1], wanted)]
    spread = tuple((size - 1) * stride + 1 + e for size, stride, e in zip(x.shape[2:], strides, extra, strict=True))
    zeros = Stored(assembly.fresh(f"{node.name}/spread"), (*x.shape[:2], *spread), x.order, x.encoding)
    assembly.declare(zeros)
    name = assembly.fresh_node(f"{node.name}/InsertZeros")
    assembly.emit("InsertZeros", name, [x.name], [zeros.name], stride=strides, output_padding=extra)
    output = assembly.result(value, channels_last(integers.ndim), wanted)
    assembly.emit(
        "Conv", str(node.name), [zeros.name, *inputs], [output.name], activation=activation, group=group,
        kernel_shape=kernel, dilations=dilations, pads=pads, strides=(1,) * count,
    )  # fmt: skip


def _transposed_pads(
    node: ir.Node, sizes: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding of the Conv that does a ConvTranspose's work, and zeros behind the last pixel."""
    count = len(kernel)
    strides, dilations = _window(node, "strides", count, 1), _window(node, "dilations", count, 1)
    pads = _window(node, "pads", 2 * count, 0)
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        raise UserError(f"{node.name}: ConvTranspose with auto_pad", "export it with explicit pads")
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    begins = [r - p for r, p in zip(reach, pads[:count], strict=True)]
    ends = [r - p for r, p in zip(reach, pads[count:], strict=True)]
    outputs = shape_of(node.outputs[0])[2:]
    extra = []
    for axis in range(count):
        natural = (sizes[axis] - 1) * strides[axis] + 1 + begins[axis] + ends[axis] - reach[axis]
        extra.append(outputs[axis] - natural)
    if min([*begins, *ends, *extra]) < 0:
        raise UserError(f"{node.name}: ConvTranspose with padding beyond its kernel", "use less padding and a Slice")
    return (*begins, *ends), tuple(extra)


def add_fully_connected(assembly: Assembly, node: ir.Node) -> None:
    """Gemm: its weights are those of a 1x1 convolution."""
    attributes = node.attributes
    alpha, beta = attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0)
    if alpha != 1.0 or beta != 1.0 or attributes.get_int("transA", 0):
        raise UserError(f"{node.name}: Gemm with alpha, beta or transA", "fold them into the weights")
    value, wanted, activation = _output(assembly, node)
    encoding = _weight_encoding(assembly, node, wanted)
    integers = _integers(assembly, node, encoding)
    matrix = integers if attributes.get_int("transB", 0) else integers.T
    x = assembly.ordered(_input(assembly, node, 0, wanted), identity(2))
    weight = _filter(assembly, str(node.inputs[1].name), matrix[:, :, None, None], encoding)
    inputs = [x.name, weight, *_bias(assembly, node, len(matrix), wanted)]
    output = assembly.result(value, identity(2), wanted)
    assembly.emit(
        "Gemm", str(node.name), inputs, [output.name], activation=activation, alpha=1.0, beta=1.0, transB=0
    )  # fmt: skip


def add_matmul(assembly: Assembly, node: ir.Node) -> None:
    """MatMul, by a constant or by another activation; the runtime reads the right operand as a packed filter."""
    value, wanted, activation = _output(assembly, node)
    left = _input(assembly, node, 0, wanted)
    left = assembly.ordered(left, identity(len(left.shape)))
    if constant_of(node.inputs[1]) is not None:
        encoding = _weight_encoding(assembly, node, wanted)
        integers = _integers(assembly, node, encoding).astype(encoding.dtype)
        name, lanes = str(node.inputs[1].name), _lanes(encoding)
        layout = filter_layout(integers.shape[-1], 2, lanes)
        data = pack_matrix(integers, lanes)
        right = assembly.add_tensor(EspdlTensor(name, integers.shape, data, exponents(encoding, name), layout))
    else:
        stored = _input(assembly, node, 1, wanted)
        right = _packed(assembly, assembly.ordered(stored, identity(len(stored.shape))), _lanes(wanted), str(node.name))
    output = assembly.result(value, identity(len(shape_of(value))), wanted)
    assembly.emit("MatMul", str(node.name), [left.name, right], [output.name], activation=activation)


def _packed(assembly: Assembly, matrix: Stored, lanes: int, stem: str) -> str:
    """Nodes that put a computed (..., C, N) into the order of a packed 1x1 filter, with the same shape."""
    *batch, rows, columns = matrix.shape
    axes, full = len(batch), columns // lanes * lanes
    chain = _Chain(assembly, f"{stem}/pack")
    if full == columns:
        blocks = chain.reshape(matrix, (*batch, rows, columns // lanes, lanes))
        turned = chain.transpose(blocks, (*range(axes), axes + 1, axes, axes + 2))
        return chain.reshape(turned, matrix.shape).name
    turned = chain.transpose(matrix, (*range(axes), axes + 1, axes))  # (..., N, C)
    if full:
        blocks = chain.reshape(chain.cut(turned, axes, 0, full), (*batch, full // lanes, lanes, rows))
        aligned = chain.reshape(chain.transpose(blocks, (*range(axes), axes, axes + 2, axes + 1)), (*batch, full, rows))
        turned = chain.join(aligned, chain.cut(turned, axes, full, columns), axes)
    return chain.reshape(turned, matrix.shape).name


class _Chain:
    """Nodes on tensors in the model's own order, named after one node."""

    def __init__(self, assembly: Assembly, stem: str) -> None:
        self.assembly, self.stem = assembly, stem

    def _result(self, source: Stored, shape: tuple[int, ...]) -> Stored:
        name = self.assembly.fresh(f"{self.stem}_output")
        return self.assembly.declare(Stored(name, shape, identity(len(shape)), source.encoding))

    def _emit(self, op_type: str, inputs: list[str], output: Stored, **attributes: int | tuple[int, ...]) -> Stored:
        name = self.assembly.fresh_node(f"{self.stem}_{op_type}")
        self.assembly.emit(op_type, name, inputs, [output.name], **attributes)
        return output

    def reshape(self, source: Stored, shape: tuple[int, ...]) -> Stored:
        sizes = self.assembly.numbers(f"{self.stem}_shape", shape)
        return self._emit("Reshape", [source.name, sizes], self._result(source, shape), allowzero=0)

    def transpose(self, source: Stored, permutation: tuple[int, ...]) -> Stored:
        output = self._result(source, reordered(source.shape, permutation))
        return self._emit("Transpose", [source.name], output, perm=permutation)

    def cut(self, source: Stored, axis: int, start: int, end: int) -> Stored:
        shape = tuple(end - start if index == axis else size for index, size in enumerate(source.shape))
        parts = (("start", start), ("end", end), ("axis", axis), ("step", 1))
        numbers = [self.assembly.numbers(f"{self.stem}_{kind}", [number]) for kind, number in parts]
        return self._emit("Slice", [source.name, *numbers], self._result(source, shape))

    def join(self, first: Stored, second: Stored, axis: int) -> Stored:
        sizes = list(first.shape)
        sizes[axis] += second.shape[axis]
        return self._emit("Concat", [first.name, second.name], self._result(first, tuple(sizes)), axis=axis)
