"""Sums of products and windows, exact."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["convolve", "convolve_transposed", "exact_matmul", "max_pool", "spatial", "window_totals"]

Array = NDArray[Any]


def exact_matmul(left: Array, right: Array) -> Array:
    """Integer matrix product through float64: exact, because no sum can pass 2^53.

    Raises:
        AssertionError: when one could.
    """
    if left.size == 0 or right.size == 0:
        return np.zeros((*np.broadcast_shapes(left.shape[:-2], right.shape[:-2]), left.shape[-2], right.shape[-1]))
    reach = left.shape[-1] * float(np.abs(left).max()) * float(np.abs(right).max())
    if reach >= 2.0**53:
        raise AssertionError(f"a sum of {left.shape[-1]} products may reach {reach}")
    product: Array = np.matmul(left.astype(np.float64), right.astype(np.float64)).astype(np.int64)
    return product


def spatial(node: ir.Node, sizes: tuple[int, ...], kernel: tuple[int, ...]) -> dict[str, list[int]]:
    """Strides, dilations and both pads of a convolution or pool, ``auto_pad`` worked out."""
    count = len(sizes)
    strides = list(node.attributes.get_ints("strides", []) or [1] * count)
    dilations = list(node.attributes.get_ints("dilations", []) or [1] * count)
    pads = list(node.attributes.get_ints("pads", []) or [0] * (2 * count))
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto.startswith("SAME"):
        for axis in range(count):
            outputs = -(-sizes[axis] // strides[axis])
            total = max((outputs - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - sizes[axis], 0)
            less, more = total // 2, total - total // 2
            pads[axis], pads[axis + count] = (less, more) if auto == "SAME_UPPER" else (more, less)
    return {"strides": strides, "dilations": dilations, "begin": pads[:count], "end": pads[count:]}


def _last(*index: int | slice) -> tuple[Any, ...]:
    """An index of the last axes."""
    return (..., *index)


def _taps(x: Array, kernel: tuple[int, ...], geometry: dict[str, list[int]], outputs: tuple[int, ...]) -> Any:
    """For each kernel position, its index and the inputs under it for all outputs."""
    for position in itertools.product(*(range(size) for size in kernel)):
        window = tuple(
            slice(p * d, p * d + (o - 1) * s + 1, s)
            for p, d, s, o in zip(position, geometry["dilations"], geometry["strides"], outputs, strict=True)
        )
        yield position, x[_last(*window)]


def _padded(
    x: Array, geometry: dict[str, list[int]], kernel: tuple[int, ...], outputs: tuple[int, ...], value: int
) -> Array:
    widths = [(0, 0), (0, 0)]
    for axis, size in enumerate(x.shape[2:]):
        reach = (outputs[axis] - 1) * geometry["strides"][axis] + (kernel[axis] - 1) * geometry["dilations"][axis] + 1
        begin = geometry["begin"][axis]
        widths.append((begin, max(reach - size - begin, 0)))
    return np.pad(x, widths, constant_values=value)


def convolve(x: Array, weight: Array, node: ir.Node, outputs: tuple[int, ...]) -> Array:
    """Conv of integers, any number of spatial axes and groups; no bias.

    Args:
        x: (1, C, spatial...).
        weight: (O, C / groups, kernel...).
        node: for strides, pads, dilations and groups.
        outputs: spatial sizes of the output.
    """
    kernel, groups = weight.shape[2:], node.attributes.get_int("group", 1)
    geometry = spatial(node, x.shape[2:], kernel)
    x = _padded(x, geometry, kernel, outputs, 0)
    each = weight.shape[0] // groups
    total = np.zeros((groups, each, int(np.prod(outputs))), np.int64)
    for position, part in _taps(x, kernel, geometry, outputs):
        columns = part.reshape(groups, weight.shape[1], -1)
        rows = weight[_last(*position)].reshape(groups, each, weight.shape[1])
        total += exact_matmul(rows, columns)
    return total.reshape(1, weight.shape[0], *outputs)


def convolve_transposed(x: Array, weight: Array, node: ir.Node, outputs: tuple[int, ...]) -> Array:
    """ConvTranspose of integers, no bias; weight (C, O / groups, kernel...)."""
    kernel, groups = weight.shape[2:], node.attributes.get_int("group", 1)
    geometry = spatial(node, x.shape[2:], kernel)
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    sizes = x.shape[2:]
    steps, spread = geometry["strides"], geometry["dilations"]
    full = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(sizes, steps, kernel, spread, strict=True)]
    begin = geometry["begin"]
    if auto.startswith("SAME"):
        extra = [max(f - o, 0) for f, o in zip(full, outputs, strict=True)]
        begin = [e // 2 if auto == "SAME_UPPER" else e - e // 2 for e in extra]
    room = [max(f, b + o) for f, b, o in zip(full, begin, outputs, strict=True)]
    canvas = np.zeros((groups, weight.shape[1], *room), np.int64)
    columns = x.reshape(groups, x.shape[1] // groups, -1)
    for position in itertools.product(*(range(size) for size in kernel)):
        tap: Array = weight[_last(*position)]
        rows = tap.reshape(groups, -1, weight.shape[1]).swapaxes(1, 2)
        spot: tuple[slice, ...] = tuple(
            slice(p * d, p * d + (n - 1) * s + 1, s) for p, d, n, s in zip(position, spread, sizes, steps, strict=True)
        )
        canvas[_last(*spot)] += exact_matmul(rows, columns).reshape(groups, -1, *sizes)
    canvas = canvas.reshape(1, -1, *room)
    return np.asarray(canvas[_last(*(slice(b, b + o) for b, o in zip(begin, outputs, strict=True)))])


def max_pool(x: Array, node: ir.Node, outputs: tuple[int, ...]) -> Array:
    """MaxPool of integers; padding never wins."""
    kernel = tuple(node.attributes.get_ints("kernel_shape", []) or [])
    geometry = spatial(node, x.shape[2:], kernel)
    padded = _padded(x, geometry, kernel, outputs, np.iinfo(np.int64).min)
    return np.asarray(np.max([part for _, part in _taps(padded, kernel, geometry, outputs)], axis=0))


def window_totals(x: Array, node: ir.Node, outputs: tuple[int, ...]) -> tuple[Array, Array]:
    """Sums over the windows of an AveragePool, and how many positions count in each (spatial shape)."""
    kernel = tuple(node.attributes.get_ints("kernel_shape", []) or [])
    geometry = spatial(node, x.shape[2:], kernel)
    inside = np.ones((1, 1, *x.shape[2:]), np.int64)
    if node.attributes.get_int("count_include_pad", 0):
        pads = [(0, 0), (0, 0), *zip(geometry["begin"], geometry["end"], strict=True)]
        x, inside = np.pad(x, pads), np.ones((1, 1, *np.pad(inside, pads).shape[2:]), np.int64)
        geometry = {**geometry, "begin": [0] * len(kernel)}
    total = sum(part for _, part in _taps(_padded(x, geometry, kernel, outputs, 0), kernel, geometry, outputs))
    counts = sum(part for _, part in _taps(_padded(inside, geometry, kernel, outputs, 0), kernel, geometry, outputs))
    return np.asarray(total), np.asarray(counts)[0, 0]
