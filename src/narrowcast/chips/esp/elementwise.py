"""Functions of one value, arithmetic of several operands, and what has an axis, written and read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.chips.esp.assembly import QUANT_TYPES, Assembly, Stored, exponents, own_attributes
from narrowcast.chips.esp.file import EspdlNode, EspdlTensor, EspdlValue, Order, channels_last, identity, reordered
from narrowcast.chips.esp.restoring import Fact, Family, Restoring
from narrowcast.chips.schema import Target
from narrowcast.engine.integer import constant_integers, full_table, stepped_table
from narrowcast.engine.integer.values import saturating_integer
from narrowcast.ops.functions import clip_bounds, unary_function
from narrowcast.ops.net import constant_of, dims
from narrowcast.plan.types import Encoding, Plan

__all__ = ["ELEMENTWISE", "FUNCTIONS", "read_unary", "write_unary"]

#: ONNX's name of a function, and the runtime's.
_NAMES = {"Silu": "Swish"}
_ONNX_NAMES = {theirs: ours for ours, theirs in _NAMES.items()}


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


def write_unary(assembly: Assembly, node: ir.Node) -> None:
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
    kept: dict[str, Any] = {key: value for key, value in own_attributes(node).items() if value is not None}
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


def read_unary(restoring: Restoring, node: EspdlNode) -> None:
    op_type, lut = node.text("original_op_type") or node.op_type, node.text("lut")
    if lut in restoring.file.tensors:
        restoring.tables[node.name] = restoring.file.tensors[lut].data
    inputs = (name for name in node.inputs if name != lut or not name)
    order = restoring.known[node.inputs[0]].order
    restoring.take(node, order, op_type=_ONNX_NAMES.get(op_type, op_type), inputs=inputs)


def _read_conversion(restoring: Restoring, node: EspdlNode) -> None:
    """A value in another encoding is the same numbers; behind a Softmax it is that node's result."""
    source = restoring.producers.get(node.inputs[0])
    if source is not None and _quantized_by(restoring, source) is node:
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
        assembly.compute(node, names, order, **own_attributes(node))


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


def _quantized_by(restoring: Restoring, node: EspdlNode) -> EspdlNode | None:
    """The QuantizeLinear behind a Softmax: the two are one node of a model."""
    readers = restoring.readers.get(node.outputs[0], [])
    only = len(readers) == 1 and all(node.outputs[0] != value.name for value in restoring.file.outputs)
    softmax = node.op_type in ("Softmax", "LogSoftmax")
    return readers[0] if softmax and only and readers[0].op_type == "QuantizeLinear" else None


def _read_along_axis(restoring: Restoring, node: EspdlNode) -> None:
    order = next(restoring.known[name].order for name in node.inputs if name in restoring.known)
    axis = order[node.integer("axis", 0 if node.op_type != "Softmax" else -1) % len(order)]
    outputs = (_quantized_by(restoring, node) or node).outputs
    restoring.take(node, order, outputs=outputs, spread=node.op_type == "Concat", axis=axis)


#: All of kind ``unary``, and the names that only ESP-DL has; written where the target has tables for them.
FUNCTIONS = Family((*_ONNX_NAMES, "LUT"), read_unary, axes="any", facts=(_LUT_NODE,))
ELEMENTWISE = (
    FUNCTIONS,
    Family(("RequantizeLinear", "QuantizeLinear", "DequantizeLinear"), _read_conversion, axes="any"),
    Family(("Add", "Sub", "Mul", "Div", "Max", "Min"), _read_binary, _write_binary),
    Family(("Pow",), _read_binary, facts=(_LUT_NODE,)),
    Family(("Concat",), _read_along_axis, _write_concat),
    Family(("Split",), _read_along_axis, _write_split),
    Family(("Softmax",), _read_along_axis, _write_softmax),
    Family(("LogSoftmax",), _read_along_axis),
)  # fmt: skip
