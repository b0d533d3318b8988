"""An ONNX graph under construction: unique names, shared constants, nodes in order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from narrowcast.ops.net import unused

__all__ = ["Builder", "Op"]


class Op:
    """Names of the standard operators that our own graphs are written in."""

    ADD = "Add"
    CAST = "Cast"
    CLIP = "Clip"
    CONSTANT = "Constant"
    CONV = "Conv"
    CUM_SUM = "CumSum"
    DEQUANTIZE = "DequantizeLinear"
    DIV = "Div"
    EQUAL = "Equal"
    FLOOR = "Floor"
    GATHER = "Gather"
    GATHER_ELEMENTS = "GatherElements"
    GEMM = "Gemm"
    IDENTITY = "Identity"
    MATMUL = "MatMul"
    MUL = "Mul"
    QUANTIZE = "QuantizeLinear"
    REDUCE_MAX = "ReduceMax"
    REDUCE_SUM = "ReduceSum"
    RESHAPE = "Reshape"
    ROUND = "Round"
    SLICE = "Slice"
    SUB = "Sub"
    TRANSPOSE = "Transpose"
    WHERE = "Where"


class Builder:
    """Collects nodes and initializers.

    Args:
        opset: of the default domain.
        reserved: names of tensors that only their owners may use.
        nodes: names of nodes that may be appended; no other node gets one of them.
    """

    def __init__(self, opset: int, reserved: Iterable[str], nodes: Iterable[str] = ()) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._names: set[str] = set(reserved)
        self._nodes: set[str] = set(nodes)
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._cache: dict[tuple[str, tuple[str, ...], str], str] = {}

    def fresh(self, stem: str) -> str:
        """A name that no other tensor has, beginning with ``stem``."""
        return unused(stem, self._names)

    def constant(self, array: NDArray[Any] | np.floating[Any] | float, dtype: Any = np.float32) -> str:
        """Name of an initializer with this content; equal contents share one."""
        value = np.ascontiguousarray(np.asarray(array, dtype)).reshape(np.shape(array))
        key = (value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).digest())  # no second copy
        if key not in self._constants:
            name = self.fresh(f"constant_{len(self._constants)}")
            self._constants[key] = name
            self.initializers.append(numpy_helper.from_array(value, name))
        return self._constants[key]

    def stored(self, integers: NDArray[Any], factor: NDArray[np.float64]) -> str:
        """Name of ``integers * factor`` in float32, kept in the file as integers of the smallest type that fits.

        onnxruntime computes the product once, when it opens the file, which so has a third of the size.

        Args:
            integers: at most 16 bits.
            factor: broadcasts against them.
        """
        types = (np.int8, np.uint8, np.int16, np.uint16, np.float32)
        small = next(t for t in types if t is np.float32 or np.array_equal(integers.astype(t), integers))
        name = self.cast(self.constant(integers, small), "float", "weight")
        return name if np.all(factor == 1) else self.arithmetic(Op.MUL, name, factor, "weight")

    def shape(self, dims: Sequence[int]) -> str:
        """Name of a constant list of int64 numbers, as Reshape and others take it."""
        return self.constant(np.asarray(dims, np.int64), np.int64)

    def add(
        self, op_type: str, inputs: Sequence[str], stem: str = "", *, output: str | None = None, **attributes: Any
    ) -> str:
        """Append a node with one output.

        Args:
            op_type: a standard operator.
            inputs: names; an empty string leaves an optional input out.
            stem: beginning of the output's name.
            output: the output's exact name; by default one is made from ``stem``.
            attributes: of the node.

        Returns:
            The output's name. A second node with the same inputs and attributes is not made again.
        """
        key = (op_type, tuple(inputs), repr(sorted(attributes.items())))
        if output is None and key in self._cache:
            return self._cache[key]
        name = output if output is not None else self.fresh(f"{stem}.{op_type}")
        node_name = unused(f"{name}_node", self._nodes)
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=node_name, **attributes))
        self._cache.setdefault(key, name)
        return name

    def reduced(self, op_type: str, name: str, axes: Sequence[int], stem: str, keep: bool = True) -> str:
        """A reduction along axes: an input, but for the other reductions than sums an attribute before opset 18."""
        if self.opset < 18 and op_type != Op.REDUCE_SUM:
            return self.add(op_type, [name], stem, axes=list(axes), keepdims=int(keep))
        return self.add(op_type, [name, self.shape(axes)], stem, keepdims=int(keep))

    def append(self, node: onnx.NodeProto) -> None:
        """Append a finished node."""
        self.nodes.append(node)

    def cast(self, name: str, dtype: str, stem: str = "", output: str | None = None) -> str:
        """The tensor in another element type, e.g. ``"int32"`` or ``"double"``."""
        return self.add(Op.CAST, [name], stem, output=output, to=getattr(TensorProto, dtype.upper()))

    def arithmetic(
        self,
        op_type: str,
        name: str,
        number: NDArray[Any] | np.floating[Any] | float,
        stem: str,
        dtype: Any = np.float32,
    ) -> str:
        """A node with a constant as second operand."""
        return self.add(op_type, [name, self.constant(number, dtype)], stem)
