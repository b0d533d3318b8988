"""The model under construction for which a file is read: ONNX's layouts, real numbers with encodings; and what a
family of operators is to the reader, to the writer and to a version of the runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from narrowcast.chips.esp.assembly import Assembly
from narrowcast.chips.esp.file import (
    EspdlFile,
    EspdlNode,
    EspdlValue,
    Order,
    channels_last,
    identity,
    inverse,
    reordered,
    then,
)
from narrowcast.chips.schema import Target
from narrowcast.plan.types import Encoding, Placement, Plan

__all__ = ["DOMAIN", "Fact", "Family", "Known", "Restoring"]

#: Of the operators that ONNX does not have.
DOMAIN = "narrowcast"
#: Attributes that ESP-DL adds to ONNX's.
_OWN_ATTRIBUTES = ("quant_type", "activation", "lut", "input1_layout", "gate_exponent", "original_op_type",
                   "int16_lut_step")  # fmt: skip


@dataclass(frozen=True)
class Known:
    """An activation of the model: its name, its shape, and which of its axes each axis of the file's tensor holds."""

    name: str
    shape: tuple[int, ...]
    order: Order


class Restoring:
    """One run of the reader.

    Args:
        file: to read.
        target: the chip.
    """

    def __init__(self, file: EspdlFile, target: Target) -> None:
        self.file, self.target = file, target
        self.known: dict[str, Known] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.values: dict[str, onnx.ValueInfoProto] = {}
        self.encodings: dict[str, Encoding] = {}
        self.placements: dict[str, Placement] = {}
        self.tables: dict[str, NDArray[Any]] = {}
        self.readers: dict[str, list[EspdlNode]] = {}
        for node in file.nodes:
            for name in node.inputs:
                self.readers.setdefault(name, []).append(node)
        self.producers = {output: node for node in file.nodes for output in node.outputs}
        self._moved: dict[tuple[str, Order], Known] = {}

    # values

    def describe(self, known: Known, dtype: str = "float32") -> onnx.ValueInfoProto:
        """Name, type and shape; the model is one of real numbers, whatever the file stores."""
        kind = TensorProto.INT64 if dtype == "int64" else TensorProto.FLOAT
        return helper.make_tensor_value_info(known.name, kind, known.shape)

    def record(self, value: EspdlValue, order: Order, shape: tuple[int, ...] | None = None) -> onnx.ValueInfoProto:
        """Take a value of the file, whose axes the file keeps in an order; with the shape that it must have, where
        the file's own may be stale."""
        known = Known(value.name, shape or reordered(value.dims, inverse(order)), order)
        self.known[value.name] = known
        if value.dtype in ("int8", "int16"):
            self.encodings[value.name] = Encoding(value.dtype, 2.0**value.exponent)
        return self.describe(known, value.dtype)

    def store(self, name: str, order: Order, shape: tuple[int, ...] | None = None) -> None:
        """As :meth:`record`, for a computed value."""
        if name not in self.file.values:
            raise ValueError(f"no shape for {name}")
        self.values[name] = self.record(self.file.values[name], order, shape)

    def own(self, source: Known, name: str, shape: tuple[int, ...], order: Order) -> Known:
        """A value that the file does not have, with the encoding of another."""
        known = Known(name, shape, order)
        if source.name in self.encodings:
            self.encodings[name] = self.encodings[source.name]
        self.values[name] = self.describe(known)
        self.known[name] = known
        return known

    def ordered(self, name: str, order: Order) -> Known:
        """An activation transposed so that the file's numbers are its transposition by ``order``."""
        known = self.known[name]
        if known.order == order:
            return known
        key = (name, order)
        if key not in self._moved:
            permutation, moved = then(known.order, inverse(order)), f"{name}__{'_'.join(map(str, order))}"
            self.emit("Transpose", f"{moved}_transpose", [name], [moved], perm=list(permutation))
            self._moved[key] = self.own(known, moved, reordered(known.shape, permutation), order)
        return self._moved[key]

    def constant(self, name: str, order: Order | None = None) -> str:
        """A constant operand: integers with exponents become real numbers with an encoding."""
        tensor = self.file.tensors[name]
        array = tensor.array
        if order is not None and array.size > 1:
            array = array.reshape((1,) * (len(order) - array.ndim) + array.shape).transpose(inverse(order))
            name = f"{name}__{'_'.join(map(str, order))}" if order != identity(len(order)) else name
        if array.dtype.name in ("int8", "int16") and len(tensor.exponents) == 1:
            self.encodings[name] = Encoding(array.dtype.name, 2.0 ** tensor.exponents[0])
            array = (array * 2.0 ** tensor.exponents[0]).astype(np.float32)
        return self.number(name, array)

    def number(self, name: str, array: NDArray[Any]) -> str:
        """A constant as it is."""
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    # nodes

    def emit(self, op_type: str, name: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """Add a node to the model."""
        domain = DOMAIN if op_type == "Silu" else ""
        self.nodes.append(helper.make_node(op_type, inputs, outputs, name=name, domain=domain, **attributes))
        value = self.file.values.get(outputs[0])
        kind = value.dtype if value is not None and value.dtype in ("int16", "float32") else "int8"
        self.placements[name] = Placement(self.target.units[0], kind, "as in the file")

    def attributes(self, node: EspdlNode) -> dict[str, Any]:
        """Those that ONNX knows."""
        kept = {key: value for key, value in node.attributes.items() if key not in _OWN_ATTRIBUTES}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}

    def take(
        self,
        node: EspdlNode,
        order: Order | None = None,
        *,
        op_type: str = "",
        inputs: Iterable[str] | None = None,
        outputs: Sequence[str] = (),
        spread: bool = False,
        **changed: Any,
    ) -> None:
        """Add a node of the file as it is.

        Args:
            node: of the file.
            order: in which the file keeps its operands and results; by default each in the model's own.
            op_type: ONNX's name, where it has another.
            inputs: those that the model's node has; all by default.
            outputs: likewise.
            spread: whether constants stand in the order too.
            changed: attributes that differ from the file's.
        """
        names = []
        for name in node.inputs if inputs is None else inputs:
            if name in self.known:
                rank = len(self.known[name].shape)
                names.append(self.ordered(name, order if order and len(order) == rank else identity(rank)).name)
            else:
                names.append(self.constant(name, order if spread else None) if name else "")
        results = list(outputs or node.outputs)
        for name in results:
            value = self.file.values.get(name)
            self.store(name, order or identity(0 if value is None else len(value.dims)))
        self.emit(op_type or node.op_type, node.name, names, results, **{**self.attributes(node), **changed})

    def take_last(self, node: EspdlNode, **changed: Any) -> None:
        """As :meth:`take`, with the channels last."""
        self.take(node, channels_last(len(self.known[node.inputs[0]].shape)), **changed)


@dataclass(frozen=True)
class Fact:
    """Something that not every version of the runtime does right.

    Attributes:
        concerns: whether a node of a model needs it, by a plan or, without one, by what the target plans.
        problem: one clause.
        remedy: what to do.
        since: version from which on it works.
        until: version up to which it is known to.
        severity: of a finding: it would not run or compute something else, or it may.
    """

    concerns: Callable[[ir.Node, Plan | None, Target], bool]
    problem: str
    remedy: str
    since: tuple[int, ...] = ()
    until: tuple[int, ...] = (1 << 30,)
    severity: Literal["error", "warning"] = "error"

    def works(self, version: tuple[int, ...]) -> bool:
        """Whether it is right in a version."""
        return self.since <= version and version[: len(self.until)] <= self.until


@dataclass(frozen=True)
class Family:
    """Operators that a file holds in the same way.

    Attributes:
        operators: names, ONNX's and ESP-DL's.
        read: a node of a file into a model.
        write: a node of a model into a file; ``None`` where no model has it, or another node is written instead.
        axes: ``"last"``: its tensors have their channels last; ``"any"``: one tensor, in any order of axes;
            ``"own"``: whatever its rules say.
        facts: about versions of the runtime.
    """

    operators: tuple[str, ...]
    read: Callable[[Restoring, EspdlNode], None]
    write: Callable[[Assembly, ir.Node], None] | None = None
    axes: Literal["last", "any", "own"] = "own"
    facts: tuple[Fact, ...] = ()
