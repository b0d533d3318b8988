"""Reading a graph: names, shapes, constants, who writes and who reads. And the few ways of changing one,
or of making one: unique names, shared constants, nodes in order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

# values


def dims(value: ir.Value | None) -> tuple[int, ...]:
    """The static shape of a value; () where it is absent or not known."""
    return () if value is None else tuple(int(size) for size in value.shape or ())


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """The value's constant as an array, ``None`` when it is computed."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def producer(value: ir.Value | None, op_type: str | None = None) -> ir.Node | None:
    """The node that writes a value; ``None`` where there is none, or it is not of the operator asked for."""
    node = value.producer() if value is not None else None
    return node if node is not None and op_type in (None, node.op_type) else None


def readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read a value, once for every time."""
    return [use.node for use in value.uses()]


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads a value, which is no output of the graph."""
    found = readers(value)
    return found[0] if len(found) == 1 and not value.is_graph_output() else None


# a node's inputs


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """An input, ``None`` where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def constant_at(node: ir.Node, index: int) -> np.ndarray | None:
    """The constant that is an input; ``None`` where it is left out or computed."""
    return constant_of(input_at(node, index))


def scalar_at(node: ir.Node, index: int) -> float | None:
    """The first number of the constant that is an input; ``None`` where there is none."""
    array = constant_at(node, index)
    return None if array is None or not array.size else float(array.reshape(-1)[0])


def integers_at(node: ir.Node, name: str, index: int) -> list[int] | None:
    """Whole numbers that are an attribute in old opsets and a constant input in new ones; ``None`` where not given."""
    given = node.attributes.get_ints(name, None)
    if given is not None:
        return [int(number) for number in given]
    array = constant_at(node, index)
    return None if array is None else [int(number) for number in array.reshape(-1)]


def computed_inputs(node: ir.Node) -> list[tuple[int, ir.Value]]:
    """Inputs that are computed, with their positions."""
    return [(i, v) for i, v in enumerate(node.inputs) if v is not None and v.const_value is None]


def is_own(node: ir.Node, index: int) -> bool:
    """Whether an input is a constant that nobody else reads."""
    value = input_at(node, index)
    return value is not None and value.const_value is not None and len(value.uses()) == 1


def set_constant(value: ir.Value, array: NDArray[Any]) -> None:
    """Give a constant other numbers, as float32."""
    value.const_value = ir.tensor(np.asarray(array, np.float32), name=str(value.name))


# a graph


def written(graph: ir.Graph) -> list[ir.Value]:
    """What the nodes of a graph write, in graph order."""
    return [output for node in graph for output in node.outputs]


def named(graph: ir.Graph) -> dict[str, ir.Node]:
    """Nodes by name."""
    return {str(node.name): node for node in graph}


def node_names(graph: ir.Graph) -> set[str]:
    """Names of the nodes."""
    return set(named(graph))


def value_names(graph: ir.Graph) -> set[str]:
    """Names of all that is computed: what the nodes write, and the graph's inputs."""
    return {str(value.name) for value in (*graph.inputs, *written(graph))}


def all_names(graph: ir.Graph) -> set[str]:
    """Names of all values, constants too."""
    return value_names(graph) | {str(name) for name in graph.initializers}


def leads_to(graph: ir.Graph, names: Iterable[str]) -> dict[str, set[str]]:
    """By node, in graph order, those of the named values that it computes or that what it computes goes into."""
    wanted, found = set(names), dict[str, set[str]]()
    for node in reversed(list(graph)):
        mine = wanted & {str(output.name) for output in node.outputs}
        found[str(node.name)] = mine.union(*(found[str(r.name)] for output in node.outputs for r in readers(output)))
    return dict(reversed(found.items()))


def unused(stem: str, taken: set[str]) -> str:
    """The stem, or with the first number from 2 that is not taken; it is taken now."""
    name, index = stem, 1
    while name in taken:
        index += 1
        name = f"{stem}_{index}"
    taken.add(name)
    return name


def constant_value(graph: ir.Graph, name: str, array: NDArray[Any], taken: Iterable[str] = ()) -> ir.Value:
    """A new initializer, whose name ends in ``_`` where the name is taken by another or in ``taken``."""
    while name in graph.initializers or name in taken:
        name += "_"
    value = ir.val(name, const_value=ir.tensor(np.asarray(array), name=name))
    graph.register_initializer(value)
    return value


def put_in_place(graph: ir.Graph, old: ir.Node, nodes: Sequence[ir.Node]) -> None:
    """Nodes in the place of another; the last one writes the old one's (only) output."""
    value, new = old.outputs[0], nodes[-1].outputs[0]
    new.name, new.shape, new.type = value.name, value.shape, value.type
    graph.insert_before(old, nodes)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = new
    value.replace_all_uses_with(new)
    graph.remove(old, safe=True)


# ONNX messages


def copied(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def with_outputs(proto: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of a model with the named tensors as additional outputs."""
    copy = copied(proto)
    present = {value.name for value in [*copy.graph.output, *copy.graph.input]}
    for name in dict.fromkeys(names):
        if name not in present:
            copy.graph.output.add().name = name
    return copy


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
