"""Parts, windows and shapes, written and read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.chips.esp.assembly import Assembly, Chain, Stored, own_attributes
from narrowcast.chips.esp.file import EspdlNode, Order, channels_last, identity, inverse, moves_nothing, reordered, then
from narrowcast.chips.esp.restoring import Family, Restoring
from narrowcast.engine.integer.values import saturating_integer
from narrowcast.graph.windows import windows
from narrowcast.ops.net import dims, integers_at

__all__ = ["MOVING", "explicit_pads", "window_attribute"]


# parts of a tensor


def _write_slice(assembly: Assembly, node: ir.Node) -> None:
    x = assembly.operand(node, 0)
    rank = len(x.shape)
    starts, ends, axes, steps = (assembly.integers(node, index) for index in range(1, 5))
    axes = [axis % rank for axis in axes or range(len(starts))]
    ends = [max(-size - 1, min(end, size)) for end, size in zip(ends, (x.shape[a] for a in axes), strict=True)]
    places = [x.order.index(axis) for axis in axes]
    parts = {"starts": starts, "ends": ends, "axes": places, "steps": steps or [1] * len(starts)}
    operands = [assembly.numbers(f"{node.name}/{key}", numbers) for key, numbers in parts.items()]
    assembly.move(node, x, x.order, operands)


def _write_pad(assembly: Assembly, node: ir.Node) -> None:
    x = assembly.operand(node, 0)
    rank, mode = len(x.shape), node.attributes.get_string("mode", "constant")
    if mode == "wrap":
        raise UserError(f"{node.name}: Pad with mode wrap", "use constant, reflect or edge")
    pads, axes = assembly.integers(node, 1), assembly.integers(node, 3) or list(range(rank))
    everywhere = np.zeros((2, rank), np.int64)
    everywhere[:, [axis % rank for axis in axes]] = np.reshape(pads, (2, -1))
    sizes = assembly.numbers(f"{node.name}/pads", everywhere[:, list(x.order)].ravel().tolist())
    constant = assembly.constant(node, 2)
    number = float(constant.reshape(-1)[0]) if constant is not None and constant.size else 0.0
    filled = saturating_integer(number, x.encoding, assembly.target.quantize_rounding)
    value = assembly.encoded(f"{node.name}/value", np.asarray([filled]), x.encoding)
    assembly.move(node, x, x.order, [sizes, value], mode=mode)


def _write_reduce(assembly: Assembly, node: ir.Node) -> None:
    x = assembly.operand(node, 0)
    rank, keep = len(x.shape), node.attributes.get_int("keepdims", 1)
    axes = [axis % rank for axis in integers_at(node, "axes", 1) or range(rank)]
    if not keep:
        x = assembly.ordered(x, identity(rank))
    numbers = assembly.numbers(f"{node.name}/axes", sorted(x.order.index(axis) for axis in axes))
    order = x.order if keep else identity(len(dims(node.outputs[0])))
    assembly.compute(node, [x.name, numbers], order, keepdims=keep, noop_with_empty_axes=0)


def _write_gather(assembly: Assembly, node: ir.Node) -> None:
    x = assembly.operand(node, 0)
    x = assembly.ordered(x, identity(len(x.shape)))
    indices = assembly.constant(node, 1)
    if indices is None:
        raise UserError(f"{node.name}: Gather without indices", "mend the model")
    axis = node.attributes.get_int("axis", 0) % len(x.shape)
    # the runtime knows no index from the end
    name = assembly.plain(f"{node.name}/indices", np.atleast_1d(indices % x.shape[axis]).astype(np.int64))
    shape = dims(node.outputs[0])
    if indices.ndim or not shape:
        assembly.move(node, x, identity(len(shape)), [name], axis=axis)
        return
    taken = (*x.shape[:axis], 1, *x.shape[axis + 1 :])  # a list of one index, and its axis dropped
    kept = assembly.extra("Gather", (f"{node.name}/take", f"{node.name}/taken"), [x.name, name], x, taken, axis=axis)
    sizes = assembly.numbers(f"{node.name}/shape", shape)
    assembly.move(node, kept, identity(len(shape)), [sizes], "Reshape", allowzero=0)


# windows


def window_attribute(node: ir.Node, name: str, count: int, default: int) -> tuple[int, ...]:
    """A list of a node, or the default for each of ``count`` places."""
    return tuple(int(size) for size in node.attributes.get_ints(name, []) or [default] * count)


def explicit_pads(node: ir.Node, kernel: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Padding at the begin of every axis, then at the ends; ``auto_pad`` and ``ceil_mode``, which the runtime does
    not read, are part of it.

    Args:
        node: a Conv or pool.
        kernel: its window.
        sizes: of the input's spatial axes.
    """
    each = windows(node, sizes, dims(node.outputs[0])[2:], kernel)
    return (*(w.begin for w in each), *(max(w.end, w.needed_end) for w in each))


def _write_pool(assembly: Assembly, node: ir.Node) -> None:
    """Pools; there is no GlobalMaxPool, but a MaxPool whose window is the whole plane."""
    x = assembly.ordered(assembly.operand(node, 0), channels_last(len(dims(node.outputs[0]))))
    attributes = {} if node.op_type == "GlobalAveragePool" else _window_attributes(node, x.shape[2:])
    if "Max" in node.op_type:
        assembly.move(node, x, x.order, [], "MaxPool", **attributes)
    else:
        assembly.compute(node, [x.name], x.order, **attributes)


def _window_attributes(node: ir.Node, sizes: tuple[int, ...]) -> dict[str, Any]:
    everything = sizes if node.op_type == "GlobalMaxPool" else ()
    kernel = everything or tuple(int(size) for size in node.attributes.get_ints("kernel_shape", []) or [])
    own = {"count_include_pad": node.attributes.get_int("count_include_pad", 0)}
    return {
        "ceil_mode": 0,
        "kernel_shape": kernel,
        "pads": explicit_pads(node, kernel, sizes),
        "strides": window_attribute(node, "strides", len(kernel), 1),
        **(own if node.op_type == "AveragePool" else {"dilations": (1,) * len(kernel)}),
    }


def _read_pool(restoring: Restoring, node: EspdlNode) -> None:
    """The runtime does not read ``ceil_mode``, and divides by the whole kernel, whoever wrote the file."""
    changed = {"ceil_mode": 0} if "ceil_mode" in node.attributes else {}
    average = {"ceil_mode": 0, "count_include_pad": 1}
    restoring.take_last(node, **(average if node.op_type == "AveragePool" else changed))


def _write_resize(assembly: Assembly, node: ir.Node) -> None:
    """Scales and sizes stay in the order N, C, H, W: the runtime reads them so."""
    shape = dims(node.outputs[0])
    x = assembly.ordered(assembly.operand(node, 0), channels_last(len(shape)))
    if assembly.encoding(node.outputs[0], node).dtype != "int8":
        raise UserError(f"{node.name}: the 16-bit Resize of ESP-DL computes nothing", "pin the node to int8")
    given = [assembly.constant(node, index) for index in range(1, len(node.inputs))]
    scales = given[1] if len(given) > 1 and given[1] is not None and given[1].size == len(shape) else None
    if scales is None:
        operands = ["", "", assembly.numbers(f"{node.name}/sizes", shape)]
    else:
        operands = ["", assembly.plain(f"{node.name}/scales", scales.astype(np.float32))]
    attributes = {
        "coordinate_transformation_mode": "half_pixel", "cubic_coeff_a": -0.75, "mode": "nearest",
        "nearest_mode": "round_prefer_floor", **own_attributes(node),
    }  # fmt: skip
    if attributes["mode"] == "nearest":
        assembly.move(node, x, x.order, operands, None, **attributes)
    else:
        assembly.compute(node, [x.name, *operands], x.order, **attributes)


def _read_resize(restoring: Restoring, node: EspdlNode) -> None:
    """The runtime reads the mode and whether corners are aligned, no more, whoever wrote the file."""
    if node.text("mode", "nearest") == "nearest":
        restoring.take_last(node, coordinate_transformation_mode="asymmetric", nearest_mode="floor")
        return
    aligned = node.text("coordinate_transformation_mode") == "align_corners"
    restoring.take_last(node, coordinate_transformation_mode="align_corners" if aligned else "half_pixel")


def _write_blocks(assembly: Assembly, node: ir.Node) -> None:
    """DepthToSpace and SpaceToDepth. The runtime orders channels as ONNX only in mode CRD; the other two swap the
    axes (block, width) of a channels-last tensor (height, block, width, block * channels)."""
    x = assembly.ordered(assembly.operand(node, 0), channels_last(4))
    block, whole = node.attributes.get_int("blocksize", 1), node.op_type == "SpaceToDepth"
    if node.attributes.get_string("mode", "DCR") == "CRD":
        assembly.move(node, x, x.order, [], None, **own_attributes(node))
        return
    _, channels, height, width = x.shape
    inner = (height // block, block, width // block, block * channels)
    inner = inner if whole else (height, width, block, channels // block)
    chain = Chain(assembly, f"{node.name}/blocks")
    stored = Stored(x.name, reordered(x.shape, x.order), identity(4), x.encoding)
    turned = chain.transpose(chain.reshape(stored, inner), (0, 2, 1, 3))
    sizes = assembly.numbers(f"{node.name}/shape", reordered(dims(node.outputs[0]), x.order))
    assembly.move(node, turned, x.order, [sizes], "Reshape", allowzero=0)


def _read_blocks(restoring: Restoring, node: EspdlNode) -> None:
    if node.op_type == "SpaceToDepth" or node.text("mode", "DCR") != "CRD":
        raise ValueError("the runtime orders its channels otherwise")
    restoring.take_last(node)


# shapes


def _write_transpose(assembly: Assembly, node: ir.Node) -> None:
    x, value = assembly.operand(node, 0), node.outputs[0]
    rank = len(x.shape)
    permutation = tuple(axis % rank for axis in node.attributes.get_ints("perm", []) or reversed(range(rank)))
    turned = Stored(x.name, dims(value), then(inverse(permutation), x.order), x.encoding)
    _rename(assembly, node, turned, identity(rank))


def _write_identity(assembly: Assembly, node: ir.Node) -> None:
    x = assembly.operand(node, 0)
    _rename(assembly, node, x, x.order)


def _rename(assembly: Assembly, node: ir.Node, source: Stored, order: Order) -> None:
    """The same tensor under another name; a node only where the network's output or another encoding needs one."""
    value = node.outputs[0]
    name, leaves, wanted = str(value.name), value.is_graph_output(), assembly.encoding(value, node)
    if wanted != source.encoding:
        ordered = assembly.ordered(source, order) if leaves else source
        assembly.stored[name] = assembly.requantized(ordered, wanted, name)
    else:
        assembly.stored[name] = assembly.ordered(source, order, name) if leaves else source


def _read_transpose(restoring: Restoring, node: EspdlNode) -> None:
    """The file's transposition and the one from the model's order into the file's, as one.

    ESP-PPQ states the shape before the transposition for those that it inserted.
    """
    x = restoring.known[node.inputs[0]]
    rank = len(x.shape)
    permutation = tuple(axis % rank for axis in node.integers("perm")) or tuple(reversed(range(rank)))
    whole = then(x.order, permutation)
    restoring.store(node.outputs[0], identity(rank), reordered(x.shape, whole))
    restoring.emit("Transpose", node.name, [x.name], [node.outputs[0]], perm=list(whole))


def _write_reshape(assembly: Assembly, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze, with the shape that comes out."""
    x, shape = assembly.operand(node, 0), dims(node.outputs[0])
    if not moves_nothing(x.shape, x.order):
        x = assembly.ordered(x, identity(len(x.shape)))
    if not shape:
        raise UserError(f"{node.name}: a result without axes", "keep one axis")
    order, last = identity(len(shape)), channels_last(len(shape))
    if moves_nothing(shape, last) and assembly.wants_last(node.outputs[0]):
        order = last
    sizes = assembly.numbers(f"{node.name}/shape", reordered(shape, order))
    assembly.move(node, x, order, [sizes], "Reshape", allowzero=0)


MOVING = (
    Family(("Slice",), Restoring.take, _write_slice),
    Family(("Pad",), Restoring.take, _write_pad),
    Family(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), Restoring.take, _write_reduce),
    Family(("Gather",), Restoring.take, _write_gather),
    Family(("AveragePool", "GlobalAveragePool", "MaxPool", "GlobalMaxPool"), _read_pool, _write_pool, "last"),
    Family(("Resize",), _read_resize, _write_resize, "last"),
    Family(("DepthToSpace", "SpaceToDepth"), _read_blocks, _write_blocks, "last"),
    Family(("Transpose",), _read_transpose, _write_transpose),
    Family(("Identity",), Restoring.take, _write_identity),
    Family(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), Restoring.take, _write_reshape),
)  # fmt: skip
