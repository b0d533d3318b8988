"""All other operators in the file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.deploy.espdl.assembly import QUANT_TYPES, Assembly, Stored, exponents
from narrowcast.deploy.espdl.file import AttributeValue, EspdlTensor
from narrowcast.deploy.espdl.layouts import (
    Order,
    channels_last,
    identity,
    inverse,
    moves_nothing,
    reordered,
    then,
)
from narrowcast.deploy.espdl.products import (
    Chain,
    add_convolution,
    add_fully_connected,
    add_matmul,
    add_transposed_convolution,
    explicit_pads,
)
from narrowcast.lower.integer import constant_integers, full_table, stepped_table
from narrowcast.lower.integer.clipping import clip_bounds, integer_bounds
from narrowcast.lower.integer.functions import unary_function
from narrowcast.lower.integer.parameters import saturating_integer
from narrowcast.ops.net import constant_of, dims
from narrowcast.plan.types import Encoding, round_real

__all__ = ["add_node"]

Rule = Callable[[Assembly, ir.Node], None]
_NAMES = {"Silu": "Swish"}


def add_node(assembly: Assembly, node: ir.Node) -> None:
    """Write one node of the model.

    Raises:
        UserError: an operator that ESP-DL does not have, or a use of it.
    """
    rule = _RULES.get(node.op_type)
    if rule is not None:
        rule(assembly, node)
    elif node.op_type in assembly.target.tables:
        _unary(assembly, node)
    else:
        raise UserError(f"{node.name}: {node.op_type} cannot be written to .espdl", "rewrite the model without it")


def _attributes(node: ir.Node) -> dict[str, AttributeValue]:
    """The node's own attributes as plain values."""
    found: dict[str, AttributeValue] = {}
    for attribute in node.attributes.values():
        value: Any = attribute.value
        found[attribute.name] = tuple(value) if isinstance(value, (list, tuple)) else value
    return found


def _store_moved(assembly: Assembly, value: ir.Value, order: Order, source: Stored, node: ir.Node) -> str:
    """Declare a result that has its source's encoding; where the plan wants another one, convert behind it."""
    wanted = assembly.encoding(value, node)
    if source.encoding is None or wanted == source.encoding:
        return assembly.result(value, order, wanted).name
    name = assembly.fresh(f"{value.name}__moved")
    return assembly.declare(Stored(name, dims(value), order, source.encoding)).name


def _convert_moved(assembly: Assembly, value: ir.Value, order: Order, name: str, source: Stored) -> None:
    if name != str(value.name):
        moved = Stored(name, dims(value), order, source.encoding)
        encoding = assembly.plan.tensors[str(value.name)]
        assembly.stored[str(value.name)] = assembly.requantized(moved, encoding, str(value.name))


def _move(
    assembly: Assembly,
    node: ir.Node,
    x: Stored,
    order: Order,
    operands: list[str],
    op_type: str | None = None,
    **attributes: AttributeValue,
) -> None:
    """A node that moves bytes, under the model's operator or another one."""
    names = [_store_moved(assembly, value, order, x, node) for value in node.outputs]
    assembly.emit(op_type or node.op_type, str(node.name), [x.name, *operands], names, **attributes)
    for value, name in zip(node.outputs, names, strict=True):
        _convert_moved(assembly, value, order, name, x)


# unary functions


def _clip_table(assembly: Assembly, node: ir.Node, source: Encoding, wanted: Encoding) -> NDArray[np.int64]:
    rounding = assembly.target.requantize.rounding
    low, high = integer_bounds(node, wanted, rounding)
    integers = np.arange(source.qmin, source.qmax + 1, dtype=np.float64)
    return np.clip(round_real(integers * float(source.scales / wanted.scales), rounding), low, high).astype(np.int64)


def _table(assembly: Assembly, node: ir.Node, source: Encoding, wanted: Encoding) -> NDArray[np.int64]:
    """256 entries, or those of the 16-bit table with a step."""
    rule = assembly.target.table16
    wide = source.dtype == "int16"
    if wide and rule is None:
        raise UserError(f"{node.name}: the target has no 16-bit tables", "pin the node to int8")
    if node.op_type in ("Relu", "Clip"):
        return _clip_table(assembly, node, source, wanted)
    function = unary_function(node)
    if function is None:
        raise UserError(f"{node.name}: {node.op_type} is no function of one value", "make its operands constant")
    if wide and rule is not None:
        return stepped_table(function, source, wanted, assembly.target, rule)
    return full_table(function, source, wanted, assembly.target)


def _unary(assembly: Assembly, node: ir.Node) -> None:
    x, wanted = assembly.operand(node, 0), assembly.encoding(node.outputs[0], node)
    if x.encoding is None or x.encoding.dtype != wanted.dtype:
        raise UserError(f"{node.name} ({node.op_type}) reads and writes different types", "make the plan again")
    rule = assembly.target.table16
    if wanted.dtype == "int16" and rule is not None and node.op_type in rule.exact:
        _without_table(assembly, node, x, wanted)
        return
    table = _table(assembly, node, x.encoding, wanted)
    if table.ndim != 1:
        raise UserError(f"{node.name}: {node.op_type} with a slope per channel", "use one slope, or Relu")
    name = _NAMES.get(node.op_type, node.op_type)
    kept = {key: value for key, value in _attributes(node).items() if value is not None}
    operands = _unary_operands(assembly, node, wanted)
    if wanted.dtype == "int16" and rule is not None:
        kept |= {"original_op_type": name, "int16_lut_step": rule.step}
        name = "LUT"
    elif node.op_type == "Pow":  # the kernel of that name raises to a power in float32, number by number
        kept |= {"original_op_type": name}
        name = "LUT"
    kept["lut"] = _shared_table(assembly, node, table, wanted)
    output = assembly.result(node.outputs[0], x.order, wanted)
    assembly.emit(name, str(node.name), [x.name, *operands], [output.name], **kept)


def _without_table(assembly: Assembly, node: ir.Node, x: Stored, wanted: Encoding) -> None:
    """Relu and Clip of 16 bits; Clip compares integers before it changes their scale, so that is done in front."""
    if node.op_type == "Clip" and x.encoding != wanted:
        x = assembly.requantized(x, wanted)
    operands = _unary_operands(assembly, node, wanted)
    output = assembly.result(node.outputs[0], x.order, wanted)
    assembly.emit(node.op_type, str(node.name), [x.name, *operands], [output.name])


def _shared_table(assembly: Assembly, node: ir.Node, table: NDArray[np.int64], wanted: Encoding) -> str:
    """The name of a table; equal tables are stored once."""
    data = table.astype(wanted.dtype)
    exponent = exponents(wanted, str(node.name))
    key = (wanted.dtype, exponent, data.tobytes())
    if key not in assembly.tables:
        name = f"{_NAMES.get(node.op_type, node.op_type)}_lut_{len(assembly.tables)}"
        assembly.tables[key] = assembly.add_tensor(EspdlTensor(name, (data.size,), data, exponent))
    return assembly.tables[key]


def _unary_operands(assembly: Assembly, node: ir.Node, wanted: Encoding) -> list[str]:
    """Bounds of Clip and the slope of PRelu, for the reader; the table has them already."""
    if node.op_type == "Clip":
        clip_bounds(node)
        names = []
        for index, infinite in ((1, -np.inf), (2, np.inf)):
            array = assembly.constant(node, index)
            bound = float(array.reshape(-1)[0]) if array is not None else infinite
            integer = saturating_integer(bound, wanted, assembly.target.requantize.rounding)
            names.append(assembly.encoded(f"{node.name}/bound_{index}", np.asarray([integer]), wanted))
        return names
    slope = assembly.constant(node, 1)
    return [] if slope is None else [assembly.plain(str(node.inputs[1].name), slope.reshape(-1).astype(np.float32))]


# two operands


def _binary(assembly: Assembly, node: ir.Node) -> None:
    wanted, rank = assembly.encoding(node.outputs[0], node), len(dims(node.outputs[0]))
    aligned = wanted if node.op_type in ("Add", "Sub", "Max", "Min") else None
    sides = [None if constant_of(v) is not None else assembly.operand(node, i) for i, v in enumerate(node.inputs)]
    computed = [side for side in sides if side is not None]
    order = _common_order(computed, rank)
    names = []
    for index, side in enumerate(sides):
        if side is None:
            names.append(_constant_operand(assembly, node, index, order, aligned))
            continue
        if side.encoding is None or side.encoding.dtype != wanted.dtype:
            raise UserError(f"{node.name} ({node.op_type}) reads and writes different types", "make the plan again")
        if aligned is not None and side.encoding != aligned:
            raise UserError(
                f"{node.name}: ESP-DL's {node.op_type} needs one exponent for its operands and its result",
                "make the plan again for this target",
            )
        own = order if len(side.shape) == rank else identity(len(side.shape))
        names.append(assembly.ordered(side, own).name)
    if node.op_type == "Mul":
        _multiply(assembly, node, names, order, wanted)
        return
    output = assembly.result(node.outputs[0], order, wanted)
    assembly.emit(node.op_type, str(node.name), names, [output.name], **_attributes(node))


def _multiply(assembly: Assembly, node: ir.Node, names: list[str], order: Order, wanted: Encoding) -> None:
    """Mul; the vector unit shifts products to the right only, so a finer result is converted behind it."""
    value = node.outputs[0]
    known = (assembly.values.get(name) or assembly.tensors[name] for name in names)
    exponent = sum(each.exponents[0] for each in known)
    if exponent <= exponents(wanted, str(value.name))[0]:
        output = assembly.result(value, order, wanted)
        assembly.emit("Mul", str(node.name), names, [output.name])
        return
    product = Encoding(wanted.dtype, 2.0**exponent)
    whole = assembly.declare(Stored(assembly.fresh(f"{value.name}__product"), dims(value), order, product))
    assembly.emit("Mul", str(node.name), names, [whole.name])
    assembly.stored[str(value.name)] = assembly.requantized(whole, wanted, str(value.name))


def _common_order(sides: list[Stored], rank: int) -> Order:
    """The order in which several operands meet: channels last when one of them is."""
    if not all(len(side.shape) == rank for side in sides):
        return identity(rank)
    orders = [side.order for side in sides]
    return channels_last(rank) if channels_last(rank) in orders else orders[0]


def _constant_operand(assembly: Assembly, node: ir.Node, index: int, order: Order, aligned: Encoding | None) -> str:
    value, array = node.inputs[index], assembly.constant(node, index)
    encoding = assembly.plan.tensors.get(str(value.name)) if value is not None else None
    if value is None or array is None or encoding is None or encoding.axis is not None:
        raise UserError(f"{node.name}: its constant operand has no encoding per tensor", "make the plan again")
    if aligned is not None and encoding != aligned:
        raise UserError(
            f"{node.name}: the constant operand of {node.op_type} has another exponent than the result",
            "make the plan again for this target",
        )
    integers = constant_integers(array, encoding, assembly.target)
    name = str(value.name)
    if integers.size > 1:
        integers = integers.reshape((1,) * (len(order) - integers.ndim) + integers.shape).transpose(order)
    return assembly.encoded(name, integers.reshape(integers.shape or (1,)), encoding)


# along an axis


def _concat(assembly: Assembly, node: ir.Node) -> None:
    wanted, rank = assembly.encoding(node.outputs[0], node), len(dims(node.outputs[0]))
    parts: list[Stored | None] = []
    for index, value in enumerate(node.inputs):
        part = assembly.operand(node, index) if constant_of(value) is None else None
        parts.append(part if part is None or part.encoding == wanted else assembly.requantized(part, wanted))
    order = _common_order([part for part in parts if part is not None], rank)
    axis = order.index(node.attributes.get_int("axis", 0) % rank)
    names = [
        _constant_operand(assembly, node, index, order, wanted) if part is None else assembly.ordered(part, order).name
        for index, part in enumerate(parts)
    ]
    output = assembly.result(node.outputs[0], order, wanted)
    assembly.emit("Concat", str(node.name), names, [output.name], axis=axis)


def _split(assembly: Assembly, node: ir.Node) -> None:
    x = assembly.operand(node, 0)
    axis = node.attributes.get_int("axis", 0) % len(x.shape)
    sizes = assembly.numbers(f"{node.name}/split", [dims(output)[axis] for output in node.outputs])
    _move(assembly, node, x, x.order, [sizes], axis=x.order.index(axis))


def _softmax(assembly: Assembly, node: ir.Node) -> None:
    """The kernel writes float32, which the next node quantizes."""
    x, wanted = assembly.operand(node, 0), assembly.encoding(node.outputs[0], node)
    if x.encoding is None:
        raise UserError(f"{node.name}: Softmax of a float tensor", "make the plan again")
    axis = x.order.index(node.attributes.get_int("axis", -1) % len(x.shape))
    name = str(node.outputs[0].name)
    real = assembly.declare(Stored(assembly.fresh(f"{name}__float"), x.shape, x.order, None))
    assembly.emit("Softmax", str(node.name), [x.name], [real.name], quant_type=QUANT_TYPES[x.encoding.dtype], axis=axis)
    assembly.stored[name] = assembly.requantized(real, wanted, name)


def _slice(assembly: Assembly, node: ir.Node) -> None:
    x = assembly.operand(node, 0)
    rank = len(x.shape)
    starts, ends, axes, steps = (_list(assembly, node, index) for index in range(1, 5))
    axes = [axis % rank for axis in axes or range(len(starts))]
    steps = steps or [1] * len(starts)
    ends = [max(-size - 1, min(end, size)) for end, size in zip(ends, (x.shape[a] for a in axes), strict=True)]
    parts = {"starts": starts, "ends": ends, "axes": [x.order.index(axis) for axis in axes], "steps": steps}
    operands = [assembly.numbers(f"{node.name}/{key}", numbers) for key, numbers in parts.items()]
    _move(assembly, node, x, x.order, operands)


def _list(assembly: Assembly, node: ir.Node, index: int) -> list[int]:
    array = assembly.constant(node, index)
    return [] if array is None else [int(number) for number in array.reshape(-1)]


def _pad(assembly: Assembly, node: ir.Node) -> None:
    x = assembly.operand(node, 0)
    if x.encoding is None:
        raise UserError(f"{node.name}: Pad of a float tensor", "make the plan again")
    rank = len(x.shape)
    pads, axes = _list(assembly, node, 1), _list(assembly, node, 3) or list(range(rank))
    mode = node.attributes.get_string("mode", "constant")
    if mode == "wrap":
        raise UserError(f"{node.name}: Pad with mode wrap", "use constant, reflect or edge")
    everywhere = np.zeros((2, rank), np.int64)
    everywhere[:, [axis % rank for axis in axes]] = np.reshape(pads, (2, -1))
    sizes = assembly.numbers(f"{node.name}/pads", everywhere[:, list(x.order)].ravel().tolist())
    constant = assembly.constant(node, 2)
    number = float(constant.reshape(-1)[0]) if constant is not None and constant.size else 0.0
    filled = saturating_integer(number, x.encoding, assembly.target.quantize_rounding)
    value = assembly.encoded(f"{node.name}/value", np.asarray([filled]), x.encoding)
    _move(assembly, node, x, x.order, [sizes, value], mode=mode)


def _reduce(assembly: Assembly, node: ir.Node) -> None:
    x, wanted = assembly.operand(node, 0), assembly.encoding(node.outputs[0], node)
    rank = len(x.shape)
    listed = node.attributes.get_ints("axes", None)
    axes = [axis % rank for axis in (listed if listed is not None else _list(assembly, node, 1)) or range(rank)]
    keep = node.attributes.get_int("keepdims", 1)
    if not keep:
        x = assembly.ordered(x, identity(rank))
    numbers = assembly.numbers(f"{node.name}/axes", sorted(x.order.index(axis) for axis in axes))
    order = x.order if keep else identity(len(dims(node.outputs[0])))
    output = assembly.result(node.outputs[0], order, wanted)
    attributes = {"keepdims": keep, "noop_with_empty_axes": 0}
    assembly.emit(node.op_type, str(node.name), [x.name, numbers], [output.name], **attributes)


# windows


def _pool(assembly: Assembly, node: ir.Node) -> None:
    """Pools; there is no GlobalMaxPool, but a MaxPool whose window is the whole plane."""
    wanted, rank = assembly.encoding(node.outputs[0], node), len(dims(node.outputs[0]))
    x = assembly.ordered(assembly.operand(node, 0), channels_last(rank))
    attributes: dict[str, AttributeValue] = {}
    if node.op_type != "GlobalAveragePool":
        attributes = _window_attributes(node, x)
    if "Max" in node.op_type:
        _move(assembly, node, x, x.order, [], "MaxPool", **attributes)
    else:
        output = assembly.result(node.outputs[0], x.order, wanted)
        assembly.emit(node.op_type, str(node.name), [x.name], [output.name], **attributes)


def _window_attributes(node: ir.Node, x: Stored) -> dict[str, AttributeValue]:
    everything = x.shape[2:] if node.op_type == "GlobalMaxPool" else ()
    kernel = everything or tuple(int(size) for size in node.attributes.get_ints("kernel_shape", []) or [])
    ones = (1,) * len(kernel)
    own = {"count_include_pad": node.attributes.get_int("count_include_pad", 0)}
    return {
        "ceil_mode": 0,
        "kernel_shape": kernel,
        "pads": explicit_pads(node, kernel, x.shape[2:], dims(node.outputs[0])[2:]),
        "strides": tuple(node.attributes.get_ints("strides", []) or ones),
        **(own if node.op_type == "AveragePool" else {"dilations": ones}),
    }


def _resize(assembly: Assembly, node: ir.Node) -> None:
    """Scales and sizes stay in the order N, C, H, W: the runtime reads them so."""
    rank = len(dims(node.outputs[0]))
    x = assembly.ordered(assembly.operand(node, 0), channels_last(rank))
    wanted = assembly.encoding(node.outputs[0], node)
    if wanted.dtype != "int8":
        raise UserError(f"{node.name}: the 16-bit Resize of ESP-DL computes nothing", "pin the node to int8")
    given = [assembly.constant(node, index) for index in range(1, len(node.inputs))]
    scales = given[1] if len(given) > 1 and given[1] is not None and given[1].size == rank else None
    sizes = [] if scales is not None else [assembly.numbers(f"{node.name}/sizes", dims(node.outputs[0]))]
    operands = [""] if scales is None else [assembly.plain(f"{node.name}/scales", scales.astype(np.float32))]
    attributes: dict[str, AttributeValue] = {
        "coordinate_transformation_mode": "half_pixel", "cubic_coeff_a": -0.75, "mode": "nearest",
        "nearest_mode": "round_prefer_floor", **_attributes(node),
    }  # fmt: skip
    if attributes["mode"] == "nearest":
        _move(assembly, node, x, x.order, ["", *operands, *sizes], None, **attributes)
        return
    output = assembly.result(node.outputs[0], x.order, wanted)
    assembly.emit("Resize", str(node.name), [x.name, "", *operands, *sizes], [output.name], **attributes)


def _blocks(assembly: Assembly, node: ir.Node) -> None:
    """DepthToSpace and SpaceToDepth. The runtime orders channels as ONNX only in mode CRD; the other two swap the
    axes (block, width) of a channels-last tensor (height, block, width, block * channels)."""
    x = assembly.ordered(assembly.operand(node, 0), channels_last(4))
    block, whole = node.attributes.get_int("blocksize", 1), node.op_type == "SpaceToDepth"
    if node.attributes.get_string("mode", "DCR") == "CRD":
        _move(assembly, node, x, x.order, [], None, **_attributes(node))
        return
    _, channels, height, width = x.shape
    inner = (height // block, block, width // block, block * channels)
    inner = inner if whole else (height, width, block, channels // block)
    chain = Chain(assembly, f"{node.name}/blocks")
    stored = Stored(x.name, reordered(x.shape, x.order), identity(4), x.encoding)
    turned = chain.transpose(chain.reshape(stored, inner), (0, 2, 1, 3))
    shape = dims(node.outputs[0])
    sizes = assembly.numbers(f"{node.name}/shape", reordered(shape, x.order))
    _move(assembly, node, turned, x.order, [sizes], "Reshape", allowzero=0)


# shapes


def _transpose(assembly: Assembly, node: ir.Node) -> None:
    x, value = assembly.operand(node, 0), node.outputs[0]
    rank = len(x.shape)
    permutation = tuple(axis % rank for axis in node.attributes.get_ints("perm", []) or reversed(range(rank)))
    order = then(inverse(permutation), x.order)
    turned = Stored(x.name, dims(value), order, x.encoding)
    _rename(assembly, node, value, turned, identity(rank))


def _identity(assembly: Assembly, node: ir.Node) -> None:
    x = assembly.operand(node, 0)
    _rename(assembly, node, node.outputs[0], x, x.order)


def _rename(assembly: Assembly, node: ir.Node, value: ir.Value, source: Stored, order: Order) -> None:
    """The same tensor under another name; a node only where the network's output or another encoding needs one."""
    wanted = assembly.encoding(value, node)
    if wanted != source.encoding:
        ordered = assembly.ordered(source, order) if value.is_graph_output() else source
        assembly.stored[str(value.name)] = assembly.requantized(ordered, wanted, str(value.name))
    elif value.is_graph_output():
        assembly.stored[str(value.name)] = assembly.ordered(source, order, str(value.name))
    else:
        assembly.stored[str(value.name)] = source


def _reshape(assembly: Assembly, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze, with the shape that comes out."""
    x = assembly.operand(node, 0)
    shape = dims(node.outputs[0])
    x = assembly.in_memory_order(x)
    order = identity(len(shape))
    if not shape:
        raise UserError(f"{node.name}: a result without axes", "keep one axis")
    if moves_nothing(shape, channels_last(len(shape))) and assembly.feeds_channels_last(node.outputs[0]):
        order = channels_last(len(shape))
    sizes = assembly.numbers(f"{node.name}/shape", [shape[axis] for axis in order])
    _move(assembly, node, x, order, [sizes], "Reshape", allowzero=0)


def _gather(assembly: Assembly, node: ir.Node) -> None:
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
        _move(assembly, node, x, identity(len(shape)), [name], axis=axis)
        return
    taken = (*x.shape[:axis], 1, *x.shape[axis + 1 :])  # a list of one index, and its axis dropped
    kept = assembly.declare(Stored(assembly.fresh(f"{node.name}/taken"), taken, identity(len(taken)), x.encoding))
    assembly.emit("Gather", assembly.fresh_node(f"{node.name}/take"), [x.name, name], [kept.name], axis=axis)
    sizes = assembly.numbers(f"{node.name}/shape", shape)
    _move(assembly, node, kept, identity(len(shape)), [sizes], "Reshape", allowzero=0)


_RULES: dict[str, Rule] = {
    "Conv": add_convolution,
    "ConvTranspose": add_transposed_convolution,
    "Gemm": add_fully_connected,
    "MatMul": add_matmul,
    "Add": _binary,
    "Sub": _binary,
    "Mul": _binary,
    "Div": _binary,
    "Max": _binary,
    "Min": _binary,
    "Concat": _concat,
    "Split": _split,
    "Softmax": _softmax,
    "Slice": _slice,
    "Pad": _pad,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "ReduceMax": _reduce,
    "ReduceMin": _reduce,
    "AveragePool": _pool,
    "GlobalAveragePool": _pool,
    "MaxPool": _pool,
    "GlobalMaxPool": _pool,
    "Resize": _resize,
    "DepthToSpace": _blocks,
    "SpaceToDepth": _blocks,
    "Transpose": _transpose,
    "Identity": _identity,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Gather": _gather,
}
