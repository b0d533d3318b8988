"""The nodes of a file as ESP-DL's kernels compute them, slowly, and from the attributes that these read.

Written from what the kernels do, not from our engine: no ``ceil_mode``, no ``count_include_pad``, a Resize that knows a
mode and ``align_corners``, channels of DepthToSpace in the runtime's order. Everything is in the file's layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from narrowcast.chips.esp.file import EspdlFile, EspdlNode, unpack_filter

Array = np.ndarray
LIMITS = {"int8": (-128, 127), "int16": (-32768, 32767)}
F = np.float32


class Device:
    def __init__(self, file: EspdlFile, half_even: bool = True) -> None:
        self.file, self.half_even = file, half_even
        self.values: dict[str, Array] = {}

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Every tensor by name, for inputs in the file's layout."""
        self.values = {name: array.astype(np.int64) for name, array in inputs.items()}
        for node in self.file.nodes:
            results = RULES[node.op_type](self, node)
            for name, result in zip(node.outputs, results if isinstance(results, list) else [results], strict=True):
                assert result.shape == self.file.values[name].dims, (node, result.shape)
                self.values[name] = result
        return self.values

    def read(self, name: str) -> Array:
        return self.values[name] if name in self.values else self.file.tensors[name].array

    def exponent(self, name: str) -> int:
        return self.file.values[name].exponent if name in self.file.values else self.file.tensors[name].exponents[0]

    def round(self, values: Array) -> Array:
        return np.rint(values) if self.half_even else np.floor(values + F(0.5))

    def stored(self, node: EspdlNode, values: Array) -> Array:
        return np.clip(values, *LIMITS[self.file.values[node.outputs[0]].dtype]).astype(np.int64)

    def shifted(self, total: Array, shift: Array) -> Array:
        """Integers divided by powers of two and rounded; exact."""
        steps = np.broadcast_to(np.left_shift(np.int64(1), shift), total.shape)
        floor, rest = np.divmod(total, steps)
        up = (2 * rest > steps) | ((2 * rest == steps) & ((floor % 2 == 1) | (not self.half_even)))
        return floor + up


def convolution(device: Device, node: EspdlNode) -> Array:
    tensor, x = device.file.tensors[node.inputs[1]], device.read(node.inputs[0])
    group, (first, second) = node.integer("group"), tensor.dims[-2:]
    shape = (first, second, *tensor.dims[:-2]) if group > 1 else (second, first, *tensor.dims[:-2])
    assert group in (1, x.shape[-1]) and (group == 1 or shape[:2] == (group, 1)), "the runtime has no other groups"
    lanes = 8 if node.text("quant_type") == "S16" else 16
    weight = unpack_filter(tensor.data, shape, lanes, group > 1).astype(np.int64)
    (top, left, bottom, right), strides = node.integers("pads"), node.integers("strides")
    dilations, kernel = node.integers("dilations"), node.integers("kernel_shape")
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    height, width = device.file.values[node.outputs[0]].dims[1:3]
    total = np.zeros((1, height, width, shape[0]), np.int64)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows = slice(i * dilations[0], i * dilations[0] + (height - 1) * strides[0] + 1, strides[0])
            columns = slice(j * dilations[1], j * dilations[1] + (width - 1) * strides[1] + 1, strides[1])
            part, tap = padded[:, rows, columns], weight[:, :, i, j]
            total += part * tap[:, 0] if group > 1 else part @ tap.T
    if len(node.inputs) > 2:
        total += device.file.tensors[node.inputs[2]].data
    shift = device.exponent(node.outputs[0]) - np.asarray(tensor.exponents) - device.exponent(node.inputs[0])
    assert shift.min() >= 0 and shift.max() <= 31
    result = device.stored(node, device.shifted(total, shift))
    return np.maximum(result, 0) if node.text("activation") == "Relu" else result


def pool(device: Device, node: EspdlNode) -> Array:
    x, (kernel, strides) = device.read(node.inputs[0]), (node.integers("kernel_shape"), node.integers("strides"))
    top, left, bottom, right = node.integers("pads")
    height = (x.shape[1] + top + bottom - kernel[0]) // strides[0] + 1
    width = (x.shape[2] + left + right - kernel[1]) // strides[1] + 1
    result = np.zeros((1, height, width, x.shape[3]), np.int64)
    scale = F(2.0 ** (device.exponent(node.inputs[0]) - device.exponent(node.outputs[0]))) / F(kernel[0] * kernel[1])
    for i in range(height):
        for j in range(width):
            begin = i * strides[0] - top, j * strides[1] - left
            ends = begin[0] + kernel[0], begin[1] + kernel[1]
            window = x[:, max(begin[0], 0) : ends[0], max(begin[1], 0) : ends[1]]
            average = node.op_type == "AveragePool"
            result[:, i, j] = device.round(F(window.sum((1, 2))) * scale) if average else window.max((1, 2))
    return device.stored(node, result)


def resize(device: Device, node: EspdlNode) -> Array:
    x, (height, width) = device.read(node.inputs[0]), device.file.values[node.outputs[0]].dims[1:3]
    assert node.text("quant_type") == "S8", "the 16-bit kernel is empty"
    if len(node.inputs) > 3:
        scales = [F(out) / F(size) for out, size in zip((height, width), x.shape[1:3], strict=True)]
    else:
        scales = list(device.file.tensors[node.inputs[2]].data[2:])
    if node.text("mode") == "nearest":
        for axis, (scale, outputs) in enumerate(zip(scales, (height, width), strict=True), 1):
            place = (np.arange(outputs, dtype=F) * (F(1) / scale)).astype(int)
            x = np.take(x, np.minimum(place, x.shape[axis] - 1), axis)
        return x
    real = x.astype(F) * F(2.0 ** device.exponent(node.inputs[0]))
    aligned = node.text("coordinate_transformation_mode") == "align_corners"
    for axis, outputs, scale in ((2, width, scales[1]), (1, height, scales[0])):
        size = real.shape[axis]
        scale = F(outputs - 1) / F(size - 1) if aligned else scale
        rows = []
        for index in range(outputs):
            place = F(index) * (F(1) / scale) if aligned else (F(index) + F(0.5)) * (F(1) / scale) - F(0.5)
            low = int(np.floor(place))
            share = place - F(low)
            low, share = (0, F(0)) if low < 0 else (low, share)
            low, share = (size - 2, F(1)) if low >= size - 1 else (low, share)
            rows.append(np.take(real, low, axis) * (F(1) - share) + np.take(real, low + 1, axis) * share)
        real = np.stack(rows, axis)
    return device.stored(node, device.round(real * F(2.0 ** -device.exponent(node.outputs[0]))))


def depth_to_space(device: Device, node: EspdlNode) -> Array:
    x, block = device.read(node.inputs[0]), node.integer("blocksize")
    _, height, width, channels = x.shape
    out = channels // block**2
    result = np.full((1, height * block, width * block, out), -999, np.int64)
    for c in range(channels):
        if node.text("mode") == "CRD":
            row, column, to = c % block**2 // block, c % block, c // block**2
        else:
            row, column, to = c // block**2, c % block**2 // block, c % block
        result[0, row::block, column::block, to] = x[0, :, :, c]
    return result


def unary(device: Device, node: EspdlNode) -> Array:
    x = device.read(node.inputs[0])
    ratio = F(2.0 ** (device.exponent(node.inputs[0]) - device.exponent(node.outputs[0])))
    narrow = node.text("quant_type") == "S8"
    if node.text("lut") and (narrow or node.op_type == "LUT"):
        table = device.file.tensors[node.text("lut")]
        assert table.exponents[0] == device.exponent(node.outputs[0])
        step = 1 if narrow else 65536 // (table.data.size - 1)
        index = (x + (128 if narrow else 32768)) / step
        return table.data[(np.rint(index) if device.half_even else np.floor(index + 0.5)).astype(int)].astype(np.int64)
    if node.op_type == "Relu":
        return device.stored(node, np.maximum(device.round(x.astype(F) * ratio), 0))
    assert node.op_type == "Clip" and len(node.inputs) == 3
    low, high = (int(device.read(name).reshape(-1)[0]) for name in node.inputs[1:])
    return device.stored(node, device.round(np.clip(x, low, high).astype(F) * ratio))


def multiply(device: Device, node: EspdlNode) -> Array:
    left, right = (device.read(name).astype(np.int64) for name in node.inputs)
    shift = device.exponent(node.outputs[0]) - device.exponent(node.inputs[0]) - device.exponent(node.inputs[1])
    assert shift >= 0, "the vector unit shifts to the right only"
    if device.half_even:  # ESP32-P4
        return device.stored(node, device.shifted(left * right, np.asarray(shift)))
    return device.stored(node, device.round((left * right).astype(F) * F(2.0**-shift)))


def add(device: Device, node: EspdlNode) -> Array:
    assert len({device.exponent(name) for name in (*node.inputs, *node.outputs)}) == 1
    left, right = (device.read(name).astype(np.int64) for name in node.inputs)
    return device.stored(node, left + right if node.op_type == "Add" else left - right)


def requantize(device: Device, node: EspdlNode) -> Array:
    x, shift = device.read(node.inputs[0]), device.exponent(node.outputs[0]) - device.exponent(node.inputs[0])
    return device.stored(node, device.shifted(x, np.asarray(shift)) if shift >= 0 else x << -shift)


def split(device: Device, node: EspdlNode) -> list[Array]:
    ends = np.cumsum(device.read(node.inputs[1]))[:-1]
    return np.split(device.read(node.inputs[0]), ends, node.integer("axis"))


def insert_zeros(device: Device, node: EspdlNode) -> Array:
    x, (rows, columns) = device.read(node.inputs[0]), node.integers("stride")
    result = np.zeros(device.file.values[node.outputs[0]].dims, np.int64)
    result[:, : (x.shape[1] - 1) * rows + 1 : rows, : (x.shape[2] - 1) * columns + 1 : columns] = x
    return result


RULES: dict[str, Callable[[Device, EspdlNode], Any]] = {
    "Conv": convolution, "MaxPool": pool, "AveragePool": pool, "Resize": resize, "DepthToSpace": depth_to_space,
    "Relu": unary, "Clip": unary, "LUT": unary, "Silu": unary, "Swish": unary, "Sigmoid": unary, "Mul": multiply,
    "Add": add, "Sub": add, "RequantizeLinear": requantize, "Split": split, "InsertZeros": insert_zeros,
    "Reshape": lambda device, node: device.read(node.inputs[0]).reshape(device.read(node.inputs[1])),
    "Transpose": lambda device, node: device.read(node.inputs[0]).transpose(node.integers("perm")),
    "Gather": lambda device, node: np.take(*map(device.read, node.inputs), node.integer("axis")),
    "Concat": lambda device, node: np.concatenate([device.read(name) for name in node.inputs], node.integer("axis")),
}  # fmt: skip
