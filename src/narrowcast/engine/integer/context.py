"""The state of one lowering: which tensor of the model is which tensor of the integer graph.

And why a float32 sum of integer products is exact, and how it is split where it would not be. Every partial sum of a
convolution, in whatever order and with fused multiply-adds or without, is a sum of some of the products and perhaps the
bias. Its magnitude is at most ``sum(|w|) * max|x| + |bias|``. Float32 holds every integer up to 2^24, so where that
bound stays within 2^24 nothing is ever rounded (DESIGN, numeric rule 2). Scaling the weights of a channel by a power of
two scales every partial sum alike and stays exact.

Where the bound is larger, operands are written in digits, ``x = x0 + 2^b x1 + ...`` with 0 <= x0 < 2^b, each pair
of digits is multiplied on its own in float32, and the results are added in float64, which is exact up to 2^53.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.chips.schema import Target
from narrowcast.engine.integer.values import (
    Integers,
    Pending,
    Reals,
    Value,
    constant_integers,
    dequantize,
    quantize,
    requantize,
)
from narrowcast.ops.net import Builder, constant_of
from narrowcast.plan.types import Encoding, Plan, edge_key

#: Largest integer up to which float32 holds every integer.
EXACT = 2**24
_EXACT_DOUBLE = 2**53
#: Digits of the activation and of the weight, cheapest first.
_CHOICES = ((1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (3, 3), (3, 4), (4, 4))


@dataclass(frozen=True)
class Digits:
    """How an operand is written.

    Attributes:
        count: number of digits; 1 leaves the operand as it is.
        bits: of every digit but the highest.
    """

    count: int
    bits: int


@dataclass(frozen=True)
class Proof:
    """Why one node is exact.

    Attributes:
        node: its name.
        bound: largest magnitude that the chip's accumulator can reach, from the weights and the input's range. Beyond
            2^24 in one float32 product, the channels beyond it give one integer whatever the input is.
        products: number of float32 products; 1 when the node is not split.
        double: whether sums are finished in float64.
    """

    node: str
    bound: int
    products: int
    double: bool

    @property
    def text(self) -> str:
        """One clause for a report."""
        if self.products > 1:
            return f"|accumulator| <= {self.bound}: {self.products} float32 products added in float64"
        return f"|accumulator| <= {self.bound}: one float32 product" + (", finished in float64" if self.double else "")


def digit_bounds(magnitude: int, digits: Digits) -> list[int]:
    """Largest magnitude of each digit of an operand, lowest digit first."""
    lower = [2**digits.bits - 1] * (digits.count - 1)
    return [*lower, -(-magnitude // 2 ** (digits.bits * (digits.count - 1)))]


def static_digit(weight: NDArray[Any], digits: Digits, index: int) -> NDArray[Any]:
    """One digit of a constant operand, 0 for the lowest, as a new array: all but the highest are >= 0."""
    digit = weight >> (digits.bits * index)
    if index < digits.count - 1:
        digit &= 2**digits.bits - 1
    return digit


def split(
    node: str, total: int, magnitudes: tuple[int, int], sums: Callable[[Digits, int], list[int]]
) -> tuple[Digits, Digits]:
    """The cheapest way to write the operands so that every product is exact in float32.

    Args:
        node: for the message.
        total: bound of the finished accumulator.
        magnitudes: largest magnitude of the activation and of the weight.
        sums: bounds of the products' sums for each digit of the weight, given its digits and the largest
            magnitude of one digit of the activation.

    Raises:
        UserError: the accumulator does not even fit in float64.
    """
    if total <= _EXACT_DOUBLE:
        for x_count, w_count in _CHOICES:
            x_digits, w_digits = _digits(magnitudes[0], x_count), _digits(magnitudes[1], w_count)
            bounds = digit_bounds(magnitudes[0], x_digits)
            if all(bound <= EXACT for x_bound in bounds for bound in sums(w_digits, x_bound)):
                return x_digits, w_digits
    raise UserError(f"{node}: its accumulator can reach {total}, more than can be summed exactly", "use int8 there")


def _digits(magnitude: int, count: int) -> Digits:
    bits = max(int(magnitude), 1).bit_length() + 1  # with the sign
    return Digits(count, -(-bits // count) if count > 1 else 0)


@dataclass
class Context:
    """One run of :func:`narrowcast.engine.integer.lower_integer`.

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
