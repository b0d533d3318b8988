"""The file under construction: activations with their orders and encodings, constants, nodes.

Transpositions are lazy: a Transpose of the model only changes the order in which the file's tensor is read, and a
node is written when a consumer needs another order. So pairs that undo each other never appear, whatever elementwise
operators lie between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.chips.esp.file import (
    AttributeValue,
    EspdlNode,
    EspdlTensor,
    EspdlValue,
    Order,
    channels_last,
    identity,
    inverse,
    reordered,
    then,
)
from narrowcast.chips.schema import Target
from narrowcast.ops.net import all_names, constant_of, dims, input_at, node_names, unused
from narrowcast.plan.types import Encoding, Plan, edge_key

__all__ = ["QUANT_TYPES", "Assembly", "Chain", "Stored", "exponents", "own_attributes"]

#: Number type of a kernel, by the type of its result.
QUANT_TYPES = {"int8": "S8", "int16": "S16", "float32": "F32"}
#: Scales beyond 2^-100..2^100 stand for nothing, and are no float32 in the runtime.
_EXPONENT_LIMIT = 100
#: Bits by which a conversion shifts to the right; to the left it multiplies by a 16-bit number.
_SHIFTS = (-14, 31)


def exponents(encoding: Encoding, name: str) -> tuple[int, ...]:
    """log2 of the scales; one number when all channels agree.

    Raises:
        UserError: scales that are no powers of two or out of range, or a zero point.
    """
    try:
        found = np.unique(encoding.exponents) if encoding.exponents.ndim else encoding.exponents.reshape(1)
    except ValueError as error:
        raise UserError(f"{name}: {error}", "quantize for this target") from error
    if encoding.zero_point:
        raise UserError(f"{name} has the zero point {encoding.zero_point}", "quantize for this target")
    if np.abs(found).max() > _EXPONENT_LIMIT:
        worst = int(found[np.abs(found).argmax()])
        raise UserError(f"{name}: the exponent {worst} of its scale is out of range", "calibrate on other images")
    return tuple(map(int, found if found.size == 1 else encoding.exponents))


def own_attributes(node: ir.Node) -> dict[str, Any]:
    """The attributes of a node as plain values."""
    given = {attribute.name: attribute.value for attribute in node.attributes.values()}
    return {name: tuple(value) if isinstance(value, (list, tuple)) else value for name, value in given.items()}


@dataclass(frozen=True)
class Stored:
    """Where an activation of the model lies in the file.

    Attributes:
        name: of the file's tensor.
        shape: in the model.
        order: which axis of the model each axis of the file's tensor holds.
        encoding: of its integers.
    """

    name: str
    shape: tuple[int, ...]
    order: Order
    encoding: Encoding


class Assembly:
    """One run of the export.

    Args:
        graph: prepared graph; only read.
        plan: its encodings.
        target: the chip.
        wants_last: whether readers of a value want its channels last.
    """

    def __init__(self, graph: ir.Graph, plan: Plan, target: Target, wants_last: Callable[[ir.Value], bool]) -> None:
        self.plan, self.target, self.wants_last = plan, target, wants_last
        self.stored: dict[str, Stored] = {}
        self.nodes: list[EspdlNode] = []
        self.values: dict[str, EspdlValue] = {}
        self.tensors: dict[str, EspdlTensor] = {}
        self.tables: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._derived: dict[tuple[str, object], Stored] = {}
        self._names, self._node_names = all_names(graph), node_names(graph)

    # names

    def fresh(self, stem: str) -> str:
        """A value name that nobody has."""
        name, count = stem, 1
        while name in self._names or name in self.values or name in self.tensors:
            count += 1
            name = f"{stem}_{count}"
        self._names.add(name)
        return name

    def fresh_node(self, stem: str) -> str:
        """A node name that nobody has."""
        return unused(stem, self._node_names)

    # activations

    def encoding(self, value: ir.Value, node: ir.Node) -> Encoding:
        """The encoding that the plan must give a result."""
        encoding = self.plan.tensors.get(str(value.name))
        if encoding is None:
            raise UserError(
                f"the plan has no encoding for {value.name}, the output of {node.name} ({node.op_type})",
                "ESP-DL runs it as integers only; make the plan again",
            )
        if encoding.dtype not in ("int8", "int16"):
            raise UserError(f"{value.name} is {encoding.dtype}, ESP-DL has int8 and int16", "make the plan again")
        return encoding

    def declare(self, stored: Stored) -> Stored:
        """Tell the file shape, type and exponent of an activation."""
        sizes, exponent = reordered(stored.shape, stored.order), exponents(stored.encoding, stored.name)
        self.values[stored.name] = EspdlValue(stored.name, stored.encoding.dtype, sizes, exponent)
        return stored

    def result(self, value: ir.Value, order: Order, encoding: Encoding) -> Stored:
        """An activation under its own name."""
        stored = self.declare(Stored(str(value.name), dims(value), order, encoding))
        self.stored[str(value.name)] = stored
        return stored

    def operand(self, node: ir.Node, index: int, wanted: Encoding | None = None) -> Stored:
        """A computed input as the node reads it, in its current order.

        Args:
            node: the reader.
            index: of its input.
            wanted: encoding that the operator's rule demands, where the plan does not say another for this edge.
        """
        value = node.inputs[index]
        if value is None:
            raise AssertionError(f"{node.name} has no input {index}")
        stored = self.stored[str(value.name)]
        encoding = self.plan.edges.get(edge_key(str(node.name), index), wanted)
        return stored if encoding is None or encoding == stored.encoding else self.requantized(stored, encoding)

    def alike(self, node: ir.Node, index: int, wanted: Encoding) -> Stored:
        """As :meth:`operand`, of the result's type.

        Raises:
            UserError: it has another type.
        """
        stored = self.operand(node, index)
        if stored.encoding.dtype != wanted.dtype:
            types = f"reads {stored.encoding.dtype} and writes {wanted.dtype}"
            raise UserError(f"{node.name} ({node.op_type}) {types}", "make the plan again")
        return stored

    def requantized(self, stored: Stored, encoding: Encoding, name: str | None = None) -> Stored:
        """The same numbers in another encoding.

        Args:
            stored: the tensor.
            encoding: the wanted one.
            name: of the result; shared between consumers when not given.

        Raises:
            UserError: the scales are too far apart.
        """
        key, exponent = (stored.name, (encoding, stored.order)), exponents(encoding, stored.name)[0]
        if name is None and key in self._derived:
            return replace(self._derived[key], shape=stored.shape, order=stored.order)
        shift = exponent - exponents(stored.encoding, stored.name)[0]
        if not _SHIFTS[0] <= shift <= _SHIFTS[1]:
            raise UserError(
                f"{stored.name} would be shifted by {shift} bits, ESP-DL converts by {_SHIFTS[0]} to {_SHIFTS[1]}",
                "calibrate on more images",
            )
        output = name or self.fresh(f"{stored.name}__{encoding.dtype}_{exponent}")
        self.convert("RequantizeLinear", stored.name, replace(stored, name=output, encoding=encoding))
        if name is None:
            self._derived[key] = replace(stored, name=output, encoding=encoding)
        return replace(stored, name=output, encoding=encoding)

    def convert(self, op_type: str, source: str, result: Stored) -> None:
        """Write a change of the number format. It names a scale and a zero point; the runtime reads the exponents of
        the tensors instead."""
        exponent, dtype = exponents(result.encoding, "a conversion")[0], result.encoding.dtype
        self.declare(result)
        scale = EspdlTensor(f"scale_{exponent}", (1,), np.asarray([2.0**exponent], np.float32), (0,), "UNK")
        zero = EspdlTensor(f"zero_{dtype}", (1,), np.zeros(1, dtype), (0,), "UNK")
        steps = [self.add_tensor(tensor) for tensor in (scale, zero)]
        self.emit(op_type, self.fresh_node(f"{result.name}/{op_type}"), [source, *steps], [result.name])

    def ordered(self, stored: Stored, order: Order, name: str | None = None) -> Stored:
        """The same tensor in another order of axes; a Transpose node where it is not there yet.

        Args:
            stored: the tensor.
            order: the wanted one.
            name: of the result; with a name a node is written in any case.
        """
        if stored.order == order and name is None:
            return stored
        permutation = then(inverse(stored.order), order)
        key = (stored.name, permutation)
        if name is None and key in self._derived:
            return replace(self._derived[key], shape=stored.shape, order=order)
        suffix = "nhwc" if order == channels_last(len(order)) else "".join(map(str, order))
        suffix = "nchw" if order == identity(len(order)) else suffix
        output = name or self.fresh(f"{stored.name}__{suffix}")
        result = self.declare(replace(stored, name=output, order=order))
        self.emit("Transpose", self.fresh_node(f"{output}/Transpose"), [stored.name], [output], perm=permutation)
        if name is None:
            self._derived[key] = result
        return result

    # constants

    def add_tensor(self, tensor: EspdlTensor) -> str:
        """Store a constant; equal ones under one name, another name where the name has another content."""
        name, count = tensor.name, 1
        while name in self.tensors or name in self.values:
            known = self.tensors.get(name)
            if known is not None and _same(known, tensor):
                return name
            count += 1
            name = f"{tensor.name}__{count}"
        self.tensors[name] = replace(tensor, name=name)
        return name

    def numbers(self, stem: str, values: Sequence[int]) -> str:
        """Sizes, axes and the like: int64."""
        return self.add_tensor(EspdlTensor(stem, (len(values),), np.asarray(values, np.int64), (0,), "UNK"))

    def plain(self, name: str, array: NDArray[Any]) -> str:
        """A constant that is stored as it is."""
        return self.add_tensor(EspdlTensor(name, array.shape, np.ascontiguousarray(array).ravel(), (0,), "UNK"))

    def encoded(self, name: str, integers: NDArray[Any], encoding: Encoding) -> str:
        """A constant operand that is quantized."""
        array = np.ascontiguousarray(integers.astype(encoding.dtype))
        shape = array.shape or (1,)
        return self.add_tensor(EspdlTensor(name, shape, array.ravel(), exponents(encoding, name), "UNK"))

    def constant(self, node: ir.Node, index: int) -> NDArray[Any] | None:
        """A constant input, ``None`` when absent.

        Raises:
            UserError: the input is computed.
        """
        value = input_at(node, index)
        if value is None:
            return None
        array = constant_of(value)
        if array is None:
            raise UserError(f"{node.name}: input {index} of {node.op_type} is computed", "make it constant")
        return array

    def integers(self, node: ir.Node, index: int) -> list[int]:
        """The whole numbers of a constant input, none when absent."""
        array = self.constant(node, index)
        return [] if array is None else [int(number) for number in array.reshape(-1)]

    # nodes

    def extra(
        self,
        op_type: str,
        names: tuple[str, str],
        inputs: Sequence[str],
        like: Stored,
        shape: tuple[int, ...],
        order: Order | None = None,
        **attributes: Any,
    ) -> Stored:
        """Write a node that the model does not have, and give its result.

        Args:
            op_type: ESP-DL's name of the operator.
            names: of the node and of its result, where nobody has them yet.
            inputs: tensors of the file.
            like: a tensor with the result's encoding.
            shape: of the result.
            order: of the result; the model's own by default.
            attributes: of the node.
        """
        result = Stored(self.fresh(names[1]), shape, order or identity(len(shape)), like.encoding)
        self.declare(result)
        self.emit(op_type, self.fresh_node(names[0]), inputs, [result.name], **attributes)
        return result

    def emit(
        self,
        op_type: str,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        **attributes: AttributeValue,
    ) -> None:
        """Write a node.

        Args:
            op_type: ESP-DL's name of the operator.
            name: of the node.
            inputs: tensors of the file; empty for an absent one.
            outputs: tensors of the file, declared.
            attributes: of the node; ``quant_type`` follows from the first output by default.
        """
        everything = {"quant_type": QUANT_TYPES[self.values[outputs[0]].dtype], **attributes}
        self.nodes.append(EspdlNode(name, op_type, tuple(inputs), tuple(outputs), everything))

    def compute(
        self, node: ir.Node, inputs: Sequence[str], order: Order, op_type: str | None = None, **attributes: Any
    ) -> None:
        """Write a node of the model, under its operator or another one; its result has the plan's encoding."""
        output = self.result(node.outputs[0], order, self.encoding(node.outputs[0], node))
        self.emit(op_type or node.op_type, str(node.name), inputs, [output.name], **attributes)

    def move(
        self,
        node: ir.Node,
        x: Stored,
        order: Order,
        operands: Sequence[str],
        op_type: str | None = None,
        **attributes: Any,
    ) -> None:
        """Write a node of the model that moves bytes: its results have the encoding of its operand; where the plan
        wants another one, they are converted behind it."""
        moved = []
        for value in node.outputs:
            wanted, name = self.encoding(value, node), str(value.name)
            if wanted == x.encoding:
                moved.append(self.result(value, order, wanted))
            else:
                moved.append(self.declare(Stored(self.fresh(f"{name}__moved"), dims(value), order, x.encoding)))
        names = [stored.name for stored in moved]
        self.emit(op_type or node.op_type, str(node.name), [x.name, *operands], names, **attributes)
        for value, stored in zip(node.outputs, moved, strict=True):
            name = str(value.name)
            if stored.name != name:
                self.stored[name] = self.requantized(stored, self.plan.tensors[name], name)


class Chain:
    """Nodes that move bytes of tensors in the model's own order, named after one node."""

    def __init__(self, assembly: Assembly, stem: str) -> None:
        self.assembly, self.stem = assembly, stem

    def _add(self, op_type: str, inputs: list[str], like: Stored, shape: tuple[int, ...], **attributes: Any) -> Stored:
        names = f"{self.stem}_{op_type}", f"{self.stem}_output"
        return self.assembly.extra(op_type, names, inputs, like, shape, **attributes)

    def reshape(self, source: Stored, shape: tuple[int, ...]) -> Stored:
        sizes = self.assembly.numbers(f"{self.stem}_shape", shape)
        return self._add("Reshape", [source.name, sizes], source, shape, allowzero=0)

    def transpose(self, source: Stored, permutation: Order) -> Stored:
        shape = reordered(source.shape, permutation)
        return self._add("Transpose", [source.name], source, shape, perm=permutation)

    def cut(self, source: Stored, axis: int, start: int, end: int) -> Stored:
        shape = (*source.shape[:axis], end - start, *source.shape[axis + 1 :])
        parts = (("start", start), ("end", end), ("axis", axis), ("step", 1))
        numbers = [self.assembly.numbers(f"{self.stem}_{kind}", [number]) for kind, number in parts]
        return self._add("Slice", [source.name, *numbers], source, shape)

    def join(self, first: Stored, second: Stored, axis: int) -> Stored:
        shape = (*first.shape[:axis], first.shape[axis] + second.shape[axis], *first.shape[axis + 1 :])
        return self._add("Concat", [first.name, second.name], first, shape, axis=axis)


def _same(one: EspdlTensor, other: EspdlTensor) -> bool:
    kinds = one.data.dtype == other.data.dtype and one.dims == other.dims and one.exponents == other.exponents
    return kinds and one.layout == other.layout and np.array_equal(one.data, other.data)
