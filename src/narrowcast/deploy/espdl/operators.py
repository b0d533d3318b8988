"""Every other operator, written and read, and the list of all families."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.chips.schema import Target
from narrowcast.deploy.espdl.assembly import QUANT_TYPES, Assembly, Chain, Stored, exponents
from narrowcast.deploy.espdl.families import Fact, Family
from narrowcast.deploy.espdl.file import EspdlNode, EspdlTensor, EspdlValue
from narrowcast.deploy.espdl.layouts import Order, channels_last, identity, inverse, moves_nothing, reordered, then
from narrowcast.deploy.espdl.products import PRODUCTS, explicit_pads
from narrowcast.deploy.espdl.restoring import Restoring
from narrowcast.lower.integer import constant_integers, full_table, stepped_table
from narrowcast.lower.integer.values import saturating_integer
from narrowcast.ops.functions import clip_bounds, unary_function
from narrowcast.ops.net import constant_of, dims, integers_at
from narrowcast.plan.types import Encoding, Plan

__all__ = ["facts", "feeds_channels_last", "quantized_by", "read_node", "write_node"]

#: ONNX's name of a function, and the runtime's.
_NAMES = {"Silu": "Swish"}
_ONNX_NAMES = {theirs: ours for ours, theirs in _NAMES.items()}


def _attributes(node: ir.Node) -> dict[str, Any]:
    """The node's own attributes as plain values."""
    given = {attribute.name: attribute.value for attribute in node.attributes.values()}
    return {name: tuple(value) if isinstance(value, (list, tuple)) else value for name, value in given.items()}


def _in_order(assembly: Assembly, node: ir.Node, order: Order) -> Stored:
    return assembly.ordered(assembly.operand(node, 0), order)


def _integers(assembly: Assembly, node: ir.Node, index: int) -> list[int]:
    array = assembly.constant(node, index)
    return [] if array is None else [int(number) for number in array.reshape(-1)]


# functions of one value


def _table(assembly: Assembly, node: ir.Node, source: Encoding, wanted: Encoding) -> NDArray[np.int64]:
    """256 entries, or those of the 16-bit table with a step."""
    rule = assembly.target.table16
    if source.dtype == "int16" and rule is None:
        raise UserError(f"{node.name}: the target has no 16-bit tables", "pin the node to int8")
    function = unary_function(node)
    if function is None:
        raise UserError(f"{node.name}: {node.op_type} is no function of one value", "make its operands constant")
    if source.dtype == "int16" and rule is not None:
        return stepped_table(function, source, wanted, assembly.target, rule)
    return full_table(function, source, wanted, assembly.target)


def _write_unary(assembly: Assembly, node: ir.Node) -> None:
    wanted = assembly.encoding(node.outputs[0], node)
    x = assembly.alike(node, 0, wanted)
    wide, rule = wanted.dtype == "int16", assembly.target.table16
    if wide and rule is not None and node.op_type in rule.exact:
        # Clip compares integers before it changes their scale, so that is done in front
        x = assembly.requantized(x, wanted) if node.op_type == "Clip" and x.encoding != wanted else x
        assembly.compute(node, [x.name, *_unary_operands(assembly, node, wanted)], x.order)
        return
    table = _table(assembly, node, x.encoding, wanted)
    if table.ndim != 1:
        raise UserError(f"{node.name}: {node.op_type} with a slope per channel", "use one slope, or Relu")
    name = _NAMES.get(node.op_type, node.op_type)
    kept: dict[str, Any] = {key: value for key, value in _attributes(node).items() if value is not None}
    inputs = [x.name, *_unary_operands(assembly, node, wanted)]
    if wide or node.op_type == "Pow":  # the kernel of that name raises to a power in float32, number by number
        kept |= {"original_op_type": name, **({"int16_lut_step": rule.step} if wide and rule is not None else {})}
        name = "LUT"
    kept["lut"] = _shared_table(assembly, node, table, wanted)
    assembly.compute(node, inputs, x.order, name, **kept)


def _shared_table(assembly: Assembly, node: ir.Node, table: NDArray[np.int64], wanted: Encoding) -> str:
    """The name of a table; equal tables are stored once."""
    data, exponent = table.astype(wanted.dtype), exponents(wanted, str(node.name))
    key = (wanted.dtype, exponent, data.tobytes())
    if key not in assembly.tables:
        name = f"{_NAMES.get(node.op_type, node.op_type)}_lut_{len(assembly.tables)}"
        assembly.tables[key] = assembly.add_tensor(EspdlTensor(name, (data.size,), data, exponent))
    return assembly.tables[key]


def _unary_operands(assembly: Assembly, node: ir.Node, wanted: Encoding) -> list[str]:
    """Bounds of Clip and the slope of PRelu, for the reader; the table has them already."""
    if node.op_type != "Clip":
        slope = assembly.constant(node, 1)
        return [] if slope is None else [assembly.plain(str(node.inputs[1].name), slope.reshape(-1).astype(np.float32))]
    names = []
    for index, bound in enumerate(clip_bounds(node), 1):
        integer = saturating_integer(bound, wanted, assembly.target.requantize.rounding)
        names.append(assembly.encoded(f"{node.name}/bound_{index}", np.asarray([integer]), wanted))
    return names


def _read_unary(restoring: Restoring, node: EspdlNode) -> None:
    op_type, lut = node.text("original_op_type") or node.op_type, node.text("lut")
    if lut in restoring.file.tensors:
        restoring.tables[node.name] = restoring.file.tensors[lut].data
    inputs = (name for name in node.inputs if name != lut or not name)
    order = restoring.known[node.inputs[0]].order
    restoring.take(node, order, op_type=_ONNX_NAMES.get(op_type, op_type), inputs=inputs)


def _read_conversion(restoring: Restoring, node: EspdlNode) -> None:
    """A value in another encoding is the same numbers; behind a Softmax it is that node's result."""
    source = restoring.producers.get(node.inputs[0])
    if source is not None and quantized_by(restoring, source) is node:
        return
    x = restoring.known[node.inputs[0]]
    restoring.store(node.outputs[0], x.order)
    restoring.emit("Identity", node.name, [x.name], [node.outputs[0]])


def _needs_lut_node(node: ir.Node, plan: Plan | None, target: Target) -> bool:
    """16-bit functions by a table with a step, and powers."""
    exact = () if target.table16 is None else target.table16.exact
    code = plan.tensors.get(str(node.outputs[0].name)) if plan is not None else None
    wide = code is not None and code.dtype == "int16"
    return node.op_type == "Pow" or (wide and node.op_type in target.tables and node.op_type not in exact)


_LUT_NODE = Fact(
    _needs_lut_node,
    "16-bit functions and powers are written as LUT nodes, which this ESP-DL does not have",
    "update ESP-DL to 3.3; or keep the node in int8, and write a power as Mul",
    since=(3, 3),
)


# several operands


def _common_order(sides: Iterable[tuple[tuple[int, ...], Order]], rank: int) -> Order | None:
    """The first order in which operands of that rank stand; ``None`` where one has another rank."""
    found = list(sides)
    return found[0][1] if found and all(len(shape) == rank for shape, _ in found) else None


def _meeting(sides: list[Stored | None], rank: int) -> Order:
    """The order in which several operands meet: channels last when one of them is."""
    found = [(side.shape, side.order) for side in sides if side is not None]
    last = channels_last(rank)
    common = _common_order(found, rank)
    return identity(rank) if common is None else last if last in [order for _, order in found] else common


def _write_binary(assembly: Assembly, node: ir.Node) -> None:
    wanted, rank = assembly.encoding(node.outputs[0], node), len(dims(node.outputs[0]))
    aligned = wanted if node.op_type in ("Add", "Sub", "Max", "Min") else None
    fixed = [constant_of(value) is not None for value in node.inputs]
    sides = [None if constant else assembly.alike(node, index, wanted) for index, constant in enumerate(fixed)]
    order, names = _meeting(sides, rank), []
    for index, side in enumerate(sides):
        if side is None:
            names.append(_constant_operand(assembly, node, index, order, aligned))
            continue
        if aligned is not None and side.encoding != aligned:
            raise UserError(
                f"{node.name}: ESP-DL's {node.op_type} needs one exponent for its operands and its result",
                "make the plan again for this target",
            )
        names.append(assembly.ordered(side, order if len(side.shape) == rank else identity(len(side.shape))).name)
    known = (assembly.values.get(name) or assembly.tensors[name] for name in names)
    exponent = sum(each.exponents[0] for each in known)
    if node.op_type == "Mul" and exponent > exponents(wanted, str(node.outputs[0].name))[0]:
        _write_fine_product(assembly, node, names, order, Encoding(wanted.dtype, 2.0**exponent))
    else:
        assembly.compute(node, names, order, **_attributes(node))


def _write_fine_product(assembly: Assembly, node: ir.Node, names: list[str], order: Order, product: Encoding) -> None:
    """The vector unit shifts products to the right only, so a finer result is converted behind it."""
    name = str(node.outputs[0].name)
    whole = Stored(assembly.fresh(f"{name}__product"), dims(node.outputs[0]), order, product)
    assembly.declare(whole)
    assembly.emit("Mul", str(node.name), names, [whole.name])
    assembly.stored[name] = assembly.requantized(whole, assembly.plan.tensors[name], name)


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
    if integers.size > 1:
        integers = integers.reshape((1,) * (len(order) - integers.ndim) + integers.shape).transpose(order)
    return assembly.encoded(str(value.name), integers, encoding)


def _read_binary(restoring: Restoring, node: EspdlNode) -> None:
    rank = len(restoring.file.values[node.outputs[0]].dims)
    sides = (restoring.known[name] for name in node.inputs if name in restoring.known)
    common = _common_order(((side.shape, side.order) for side in sides), rank)
    restoring.take(node, common or identity(rank), spread=True)


# along an axis


def _write_concat(assembly: Assembly, node: ir.Node) -> None:
    wanted, rank = assembly.encoding(node.outputs[0], node), len(dims(node.outputs[0]))
    parts: list[Stored | None] = []
    for index, value in enumerate(node.inputs):
        part = assembly.operand(node, index) if constant_of(value) is None else None
        parts.append(part if part is None or part.encoding == wanted else assembly.requantized(part, wanted))
    order = _meeting(parts, rank)
    names = [
        _constant_operand(assembly, node, index, order, wanted) if part is None else assembly.ordered(part, order).name
        for index, part in enumerate(parts)
    ]
    assembly.compute(node, names, order, axis=order.index(node.attributes.get_int("axis", 0) % rank))


def _write_split(assembly: Assembly, node: ir.Node) -> None:
    x = assembly.operand(node, 0)
    axis = node.attributes.get_int("axis", 0) % len(x.shape)
    sizes = assembly.numbers(f"{node.name}/split", [dims(output)[axis] for output in node.outputs])
    assembly.move(node, x, x.order, [sizes], axis=x.order.index(axis))


def _write_softmax(assembly: Assembly, node: ir.Node) -> None:
    """The kernel writes float32, which the next node quantizes."""
    x, value, name = assembly.operand(node, 0), node.outputs[0], str(node.outputs[0].name)
    axis, real = x.order.index(node.attributes.get_int("axis", -1) % len(x.shape)), assembly.fresh(f"{name}__float")
    assembly.values[real] = EspdlValue(real, "float32", reordered(x.shape, x.order), (0,))
    assembly.emit("Softmax", str(node.name), [x.name], [real], quant_type=QUANT_TYPES[x.encoding.dtype], axis=axis)
    assembly.stored[name] = Stored(name, x.shape, x.order, assembly.encoding(value, node))
    assembly.convert("QuantizeLinear", real, assembly.stored[name])


def quantized_by(restoring: Restoring, node: EspdlNode) -> EspdlNode | None:
    """The QuantizeLinear behind a Softmax: the two are one node of a model."""
    readers = restoring.readers.get(node.outputs[0], [])
    only = len(readers) == 1 and all(node.outputs[0] != value.name for value in restoring.file.outputs)
    softmax = node.op_type in ("Softmax", "LogSoftmax")
    return readers[0] if softmax and only and readers[0].op_type == "QuantizeLinear" else None


def _read_along_axis(restoring: Restoring, node: EspdlNode) -> None:
    order = next(restoring.known[name].order for name in node.inputs if name in restoring.known)
    axis = order[node.integer("axis", 0 if node.op_type != "Softmax" else -1) % len(order)]
    outputs = (quantized_by(restoring, node) or node).outputs
    restoring.take(node, order, outputs=outputs, spread=node.op_type == "Concat", axis=axis)


# parts of a tensor


def _write_slice(assembly: Assembly, node: ir.Node) -> None:
    x = assembly.operand(node, 0)
    rank = len(x.shape)
    starts, ends, axes, steps = (_integers(assembly, node, index) for index in range(1, 5))
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
    pads, axes = _integers(assembly, node, 1), _integers(assembly, node, 3) or list(range(rank))
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


def _write_pool(assembly: Assembly, node: ir.Node) -> None:
    """Pools; there is no GlobalMaxPool, but a MaxPool whose window is the whole plane."""
    x = _in_order(assembly, node, channels_last(len(dims(node.outputs[0]))))
    attributes = {} if node.op_type == "GlobalAveragePool" else _window_attributes(node, x.shape[2:])
    if "Max" in node.op_type:
        assembly.move(node, x, x.order, [], "MaxPool", **attributes)
    else:
        assembly.compute(node, [x.name], x.order, **attributes)


def _window_attributes(node: ir.Node, sizes: tuple[int, ...]) -> dict[str, Any]:
    everything = sizes if node.op_type == "GlobalMaxPool" else ()
    kernel = everything or tuple(int(size) for size in node.attributes.get_ints("kernel_shape", []) or [])
    ones = (1,) * len(kernel)
    own = {"count_include_pad": node.attributes.get_int("count_include_pad", 0)}
    return {
        "ceil_mode": 0,
        "kernel_shape": kernel,
        "pads": explicit_pads(node, kernel, sizes),
        "strides": tuple(node.attributes.get_ints("strides", []) or ones),
        **(own if node.op_type == "AveragePool" else {"dilations": ones}),
    }


def _read_pool(restoring: Restoring, node: EspdlNode) -> None:
    """The runtime does not read ``ceil_mode``, and divides by the whole kernel, whoever wrote the file."""
    changed = {"ceil_mode": 0} if "ceil_mode" in node.attributes else {}
    average = {"ceil_mode": 0, "count_include_pad": 1}
    restoring.take_last(node, **(average if node.op_type == "AveragePool" else changed))


def _write_resize(assembly: Assembly, node: ir.Node) -> None:
    """Scales and sizes stay in the order N, C, H, W: the runtime reads them so."""
    shape = dims(node.outputs[0])
    x = _in_order(assembly, node, channels_last(len(shape)))
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
        "nearest_mode": "round_prefer_floor", **_attributes(node),
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
    x = _in_order(assembly, node, channels_last(4))
    block, whole = node.attributes.get_int("blocksize", 1), node.op_type == "SpaceToDepth"
    if node.attributes.get_string("mode", "DCR") == "CRD":
        assembly.move(node, x, x.order, [], None, **_attributes(node))
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
    if moves_nothing(shape, last) and feeds_channels_last(node.outputs[0], model_readers):
        order = last
    sizes = assembly.numbers(f"{node.name}/shape", reordered(shape, order))
    assembly.move(node, x, order, [sizes], "Reshape", allowzero=0)


# all of them

_FAMILIES = (
    *PRODUCTS,
    Family(
        ("Silu", "Swish", "Relu", "PRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu", "Gelu", "LeakyRelu",
         "Clip", "Exp", "Log", "Sqrt", "Neg", "Erf", "Softplus", "Abs", "Floor", "Ceil", "Round", "Sin", "Cos", "Tan",
         "Reciprocal", "Softsign", "Selu", "LUT"),
        _read_unary, axes="any", facts=(_LUT_NODE,),
    ),
    Family(("RequantizeLinear", "QuantizeLinear", "DequantizeLinear"), _read_conversion, axes="any"),
    Family(("Add", "Sub", "Mul", "Div", "Max", "Min"), _read_binary, _write_binary),
    Family(("Pow",), _read_binary, facts=(_LUT_NODE,)),
    Family(("Concat",), _read_along_axis, _write_concat),
    Family(("Split",), _read_along_axis, _write_split),
    Family(("Softmax",), _read_along_axis, _write_softmax),
    Family(("LogSoftmax",), _read_along_axis),
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
_BY_OPERATOR = {operator: family for family in _FAMILIES for operator in family.operators}
#: An operator of another program's file: one that sees shapes.
_OTHER = Family((), Restoring.take)


def write_node(assembly: Assembly, node: ir.Node) -> None:
    """Write one node of the model.

    Raises:
        UserError: an operator that ESP-DL does not have, or a use of it.
    """
    family = _BY_OPERATOR.get(node.op_type, _OTHER)
    if family.write is not None:
        family.write(assembly, node)
    elif node.op_type in assembly.target.tables:
        _write_unary(assembly, node)
    else:
        raise UserError(f"{node.name}: {node.op_type} cannot be written to .espdl", "rewrite the model without it")


def read_node(restoring: Restoring, node: EspdlNode) -> None:
    """Read one node of the file.

    Raises:
        KeyError, ValueError, TypeError: it contradicts itself, or the runtime computes what no ONNX operator does.
    """
    family = _BY_OPERATOR.get(node.op_type, _OTHER)
    read = _read_unary if "lut" in node.attributes else family.read
    read(restoring, node)


def facts(node: ir.Node) -> tuple[Fact, ...]:
    """What versions of the runtime differ in for an operator."""
    return _BY_OPERATOR.get(node.op_type, _OTHER).facts


Readers = Callable[[Any], Iterable[tuple[str, Any]]]


def model_readers(value: ir.Value) -> Iterable[tuple[str, ir.Value]]:
    """Operators that read a value of a model, each with what it writes."""
    return ((use.node.op_type, use.node.outputs[0]) for use in value.uses())


def feeds_channels_last(value: Any, readers: Readers) -> bool:
    """Whether a reader of a value wants its channels last, perhaps behind functions of one value.

    Args:
        value: of a model or of a file.
        readers: the operators that read one, each with what it writes.
    """
    for operator, result in readers(value):
        axes = _BY_OPERATOR.get(operator, _OTHER).axes
        if axes == "last" or (axes == "any" and feeds_channels_last(result, readers)):
            return True
    return False
