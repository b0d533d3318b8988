"""The state of one lowering: which tensor of the model is which tensor of the integer graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.chips.schema import Target
from narrowcast.lower.integer.parameters import constant_integers
from narrowcast.lower.integer.proof import Proof
from narrowcast.lower.integer.rounding import dequantize, quantize, requantize
from narrowcast.lower.integer.values import Integers, Pending, Reals, Value
from narrowcast.ops.builder import Builder
from narrowcast.ops.net import constant_of
from narrowcast.plan.types import Encoding, Plan, edge_key

__all__ = ["Context"]


@dataclass
class Context:
    """One run of :func:`narrowcast.lower.integer.lower_integer`.

    Attributes:
        builder: the graph under construction.
        graph: the prepared graph; only read.
        plan: its encodings.
        target: the chip's rules.
        values: value name of the model to what it is now.
        tensors: value name or edge key to the name of its integers in the new graph.
        encodings: the same keys to encodings.
        notes: for a person.
        proofs: why each sum of products is exact.
    """

    builder: Builder
    graph: ir.Graph
    plan: Plan
    target: Target
    values: dict[str, Value] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    encodings: dict[str, Encoding] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    proofs: list[Proof] = field(default_factory=list)
    _real: dict[str, Reals] = field(default_factory=dict)

    def encoding(self, value: ir.Value) -> Encoding | None:
        """The encoding in which a value exists, ``None`` for a float or inner value."""
        return self.plan.tensors.get(str(value.name))

    def node_type(self, node: ir.Node) -> str:
        """The representation of a node's outputs, ``"int8"`` or ``"int16"``."""
        return self.plan.nodes[str(node.name)].type

    def wanted(self, node: ir.Node, index: int = 0) -> Encoding:
        """The encoding of an output that must have one."""
        encoding = self.encoding(node.outputs[index])
        if encoding is None:
            raise UserError(
                f"the plan has no encoding for {node.outputs[index].name}, the output of {node.name} ({node.op_type})",
                "make the plan again, or pin the node to float32",
            )
        return encoding

    def name(self, value: ir.Value) -> str:
        """The name of a value's integers in the new graph: its own, unless an input or output needs that."""
        name = str(value.name)
        taken = value.is_graph_output() or value.is_graph_input()
        return self.builder.fresh(f"{name}_integers") if taken else name

    def integers(self, node: ir.Node, index: int) -> Integers:
        """Input ``index`` of a node as integers, in the encoding in which this node reads it.

        Raises:
            UserError: the plan gives the operand no encoding.
        """
        value = node.inputs[index]
        if value is None:
            raise AssertionError(f"{node.name} has no input {index}")
        constant = constant_of(value)
        if constant is not None:
            return self._constant(node, value, constant)
        current = self.values[str(value.name)]
        if not isinstance(current, Integers):
            raise UserError(
                f"{node.name} ({node.op_type}) is quantized but the plan gives its input {value.name} no encoding",
                "make the plan again, or pin the node to float32",
            )
        key = edge_key(str(node.name), index)
        wanted = self.plan.edges.get(key)
        if wanted is None or wanted == current.encoding:
            return current
        result = requantize(self.builder, current, wanted, self.target)
        self.tensors[key], self.encodings[key] = result.name, wanted
        return result

    def _constant(self, node: ir.Node, value: ir.Value, constant: NDArray[Any]) -> Integers:
        encoding = self.plan.tensors.get(str(value.name))
        if encoding is None or encoding.axis is not None:
            raise UserError(
                f"{node.name} ({node.op_type}) has the constant operand {value.name} without an encoding per tensor",
                "make the plan again, or pin the node to float32",
            )
        integers = constant_integers(constant, encoding, self.target)
        name = self.builder.constant(integers, np.float32)
        return Integers(name, encoding, integers.shape, int(integers.min()), int(integers.max()))

    def reals(self, value: ir.Value | None) -> Reals | None:
        """A value as real numbers; constants as they are; ``None`` for an absent input."""
        if value is None:
            return None
        name = str(value.name)
        constant = constant_of(value)
        if constant is not None:
            return Reals(self.builder.constant(constant, constant.dtype), constant.shape)
        current = self.values[name]
        if isinstance(current, Reals):
            return current
        if name not in self._real:
            self._real[name] = current.real() if isinstance(current, Pending) else dequantize(self.builder, current)
        return self._real[name]

    def store(self, value: ir.Value, result: Value) -> None:
        """Record a result; quantize or finish it where the plan gives it an encoding."""
        name, encoding = str(value.name), self.encoding(value)
        if encoding is not None and isinstance(result, Pending):
            result = result.quantized(encoding, encoding.qmin, encoding.qmax, self.name(value))
        elif encoding is not None and isinstance(result, Reals):
            result = quantize(self.builder, result, encoding, self.target, self.name(value))
        if isinstance(result, Integers):
            if encoding is not None and result.encoding != encoding:
                result = requantize(self.builder, result, encoding, self.target, output=self.name(value))
            self.tensors[name], self.encodings[name] = result.name, result.encoding
        self.values[name] = result

    def is_fused(self, value: ir.Value | None) -> bool:
        """Whether a value lives inside a fused unit, not rounded."""
        return value is not None and isinstance(self.values.get(str(value.name)), Pending)
