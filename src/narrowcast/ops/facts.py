"""What an operator is: one entry each, in families. Everything else asks here and names none.

An operator that is not in the table is a float operator without rules. A new one is one :func:`register`; what its kind
says (how it becomes integers, how the reference computes it, how it is planned and trained) holds for it at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.ops.net import dims, input_at, integers_at

__all__ = [
    "GRIDS", "Function", "Kind", "Operator", "facts", "known", "no_integers", "register", "removable", "weight_axis",
]  # fmt: skip

#: A function of real numbers, float64 arrays in and out. It may give infinite or undefined values outside its domain.
Function = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class Kind(Enum):
    """Family and member: operators of one kind obey the same rules everywhere."""

    CONVOLUTION = "product", "weights (channels out, channels in of a group, window)"
    TRANSPOSED = "product", "a convolution's transpose: weights (channels in, channels out of a group, window)"
    LINEAR = "product", "a fully connected layer"
    MATRIX = "product", "a matrix product, of constant weights or of two activations"
    FUNCTION = "unary", "a function of each number"
    CLIP = "unary", "saturation to bounds"
    TURN = "moving", "axes in another order"
    MOVE = "moving", "the results are numbers of the first operand"
    JOIN = "moving", "operands side by side"
    PAD = "moving", "numbers put around"
    SUM = "elementwise", "a + b"
    DIFFERENCE = "elementwise", "a - b"
    MULTIPLY = "elementwise", "a * b"
    DIVIDE = "elementwise", "a / b"
    LARGER = "elementwise", "max(a, b)"
    SMALLER = "elementwise", "min(a, b)"
    AVERAGE_POOL = "pool", "means of windows"
    GLOBAL_AVERAGE = "pool", "means of whole maps"
    MAX_POOL = "pool", "largest numbers of windows"
    GLOBAL_MAX = "pool", "largest numbers of whole maps"
    MEAN = "reduce", "means along axes"
    TOTAL = "reduce", "sums along axes"
    LARGEST = "reduce", "largest numbers along axes"
    LEAST = "reduce", "least numbers along axes"
    SOFTMAX = "softmax", "shares along an axis"
    RESIZE = "resize", "maps of another size"
    REAL = "other", "computed in real numbers between integers"
    FLOAT = "other", "stays in float"

    @property
    def family(self) -> str:
        """One of ``product``, ``unary``, ``moving``, ``elementwise``, ``pool``, ``reduce``, ``softmax``, ``resize``,
        ``other``."""
        return str(self.value[0])


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        name: in ONNX.
        kind: what it does.
        constants: inputs that must be constant for it to run as integers.
        weight_axis: axis of the constant weight (input 1) with the output channels, by node; of a product only.
        output_axis: axis of the result with these channels.
        whole: the result holds every number of the operand once, in another order or shape.
        keeps_axes: each number of the result belongs to the same place of the operand.
        homogeneous: ``f(c x) = c f(x)`` for positive c, for each channel on its own.
        bounds: smallest and largest result, whatever the operand.
        removable: may be taken off an end of a graph: it only moves numbers, or is cheap where the outputs are read.
        function: of a unary operator, by node (``None``: default attributes); gives ``None`` for computed operands.
        bends: the function flattens part of its operand, so that errors of the operand are judged behind it.
        since: opset from which ONNX knows it; ``None``: not up to the newest one.
        forms: bodies of ONNX functions of ``x``, in ONNX's text form, that exporters write for it; the first is its
            definition where the opset has none.
        attributes: of a node that stands for such a form.
        refusal: why a node with all its constants has no integer form, and what to do; empty where it has one.
        torch: its result in torch, from the module, the node and the operands.
    """

    name: str
    kind: Kind
    constants: tuple[int, ...] = ()
    weight_axis: Callable[[ir.Node], int] | None = None
    output_axis: int = 1
    whole: bool = False
    keeps_axes: bool = False
    homogeneous: bool = False
    bounds: tuple[float, float] | None = None
    removable: bool = False
    function: Callable[[ir.Node | None], Function | None] | None = None
    bends: bool = False
    since: int | None = 1
    forms: tuple[str, ...] = ()
    attributes: tuple[tuple[str, float], ...] = ()
    refusal: Callable[[ir.Node], tuple[str, str]] | None = None
    torch: Callable[[Any, ir.Node, list[Any]], Any] | None = None

    @property
    def is_product(self) -> bool:
        """A sum of products, born in an accumulator."""
        return self.kind.family == "product"

    @property
    def is_weighted(self) -> bool:
        """A sum of products whose second operand is always a weight."""
        return self.is_product and self.kind is not Kind.MATRIX

    @property
    def waits(self) -> bool:
        """Its result exists on the chip before it is rounded, as a sum, and can be used so by what follows."""
        return self.is_product or self.kind in (Kind.SUM, Kind.DIFFERENCE)

    @property
    def is_clip(self) -> bool:
        """Saturation, which a chip may do inside of the operator before it."""
        return self.kind is Kind.CLIP

    @property
    def aligns(self) -> bool:
        """Its operands are brought into the encoding of its result before anything else happens to them."""
        return self.kind in (Kind.JOIN, Kind.LARGER, Kind.SMALLER)

    @property
    def shifts_or_scales(self) -> bool:
        """With a constant operand it only moves and stretches the other's range."""
        return self.kind in (Kind.SUM, Kind.DIFFERENCE, Kind.MULTIPLY, Kind.DIVIDE)


#: Values of ``coordinate_transformation_mode`` of a Resize that has integers.
GRIDS = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
_TABLE: dict[str, Operator] = {}


def register(entry: Operator) -> Operator:
    """Add an operator to the table, or replace its entry."""
    _TABLE[entry.name] = entry
    return entry


def facts(node: ir.Node | str) -> Operator:
    """The entry of a node's operator, or of a name; one of kind ``FLOAT`` where the table has none."""
    name = node if isinstance(node, str) else node.op_type
    return _TABLE.get(name) or Operator(name, Kind.FLOAT)


def known() -> list[Operator]:
    """All entries, in the order in which they were registered."""
    return list(_TABLE.values())


def removable() -> tuple[str, ...]:
    """Names of the operators that may be taken off an end of a graph."""
    return tuple(entry.name for entry in known() if entry.removable)


def weight_axis(node: ir.Node) -> int:
    """Axis of a product's constant weight with the output channels, from the front."""
    axis = facts(node).weight_axis
    if axis is None:
        raise AssertionError(f"{node.op_type} has no weights")
    return axis(node) % max(1, len(dims(input_at(node, 1))))


def no_integers(node: ir.Node) -> tuple[str, str]:
    """Why a node of a prepared graph has no integer form on any chip, as a clause, and what to do; else empty.

    Args:
        node: of an operator that some target lists, or another.
    """
    entry = facts(node)
    for index in entry.constants:
        value = input_at(node, index)
        if value is not None and value.const_value is None:
            return f"its input {index} ({value.name}) is computed", "make it a constant, or cut the model before it"
    return entry.refusal(node) if entry.refusal is not None else ("", "")


def _linear_axis(node: ir.Node) -> int:
    return 0 if node.attributes.get_int("transB", 0) else 1


def _softmax(torch: Any, node: ir.Node, x: list[Any]) -> Any:
    return torch.softmax(x[0], node.attributes.get_int("axis", -1))


def _turned(torch: Any, node: ir.Node, x: list[Any]) -> Any:
    return x[0].permute(list(node.attributes.get_ints("perm", ()) or range(x[0].dim() - 1, -1, -1)))


def _parts(torch: Any, node: ir.Node, x: list[Any]) -> Any:
    axis = node.attributes.get_int("axis", 0)
    return list(x[0].split([dims(output)[axis] for output in node.outputs], axis))


def _slices(torch: Any, node: ir.Node, x: list[Any]) -> Any:
    starts, ends = integers_at(node, "starts", 1), integers_at(node, "ends", 2)
    axes = integers_at(node, "axes", 3) or list(range(len(starts or ())))
    steps = integers_at(node, "steps", 4) or [1] * len(axes)
    if starts is None or ends is None or min(steps) < 1:
        what = f"finetune cannot run {node.op_type} {node.name} with computed bounds or a step below 1"
        raise UserError(what, "leave finetune out for this model")
    index = [slice(None)] * x[0].dim()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(start, end, step)
    return x[0][tuple(index)]


def _whole(name: str, kind: Kind = Kind.MOVE, **more: Any) -> None:
    register(Operator(name, kind, whole=True, removable=True, **more))


def _lookup(node: ir.Node) -> tuple[str, str]:
    fixed = node.inputs[0] is not None and node.inputs[0].const_value is not None
    return ("it looks values of a constant up", "cut the model behind it") if fixed else ("", "")


def _indices(node: ir.Node) -> tuple[str, str]:
    return ("its indices are asked for", "use Resize in place of MaxUnpool") if len(node.outputs) > 1 else ("", "")


def _grid(node: ir.Node) -> tuple[str, str]:
    text = node.attributes.get_string
    mode, transformation = text("mode", "nearest"), text("coordinate_transformation_mode", "half_pixel")
    remedy = "use nearest or linear, with half_pixel, asymmetric or align_corners"
    if mode not in ("nearest", "linear"):
        return f"mode {mode}", remedy
    if transformation not in GRIDS:
        return f"coordinate transformation {transformation}", remedy
    if node.attributes.get_int("antialias", 0):
        return "it is antialiased", "export the model with antialias=False"
    if "axes" in node.attributes or text("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "its sizes are rounded to an aspect ratio", "give the sizes of every axis"
    return "", ""


def _all() -> None:
    register(Operator("Conv", Kind.CONVOLUTION, (1, 2), lambda node: 0))
    register(Operator("ConvTranspose", Kind.TRANSPOSED, (1, 2), lambda node: 1))
    register(Operator("Gemm", Kind.LINEAR, (1, 2), _linear_axis))
    register(Operator("MatMul", Kind.MATRIX, (), lambda node: -1, -1, torch=lambda t, node, x: x[0] @ x[1]))

    _whole("Transpose", Kind.TURN, torch=_turned)
    _whole("Reshape", constants=(1,))
    _whole("Flatten")
    _whole("Squeeze", constants=(1,))
    _whole("Unsqueeze", constants=(1,))
    register(Operator("Cast", Kind.FLOAT, removable=True, keeps_axes=True))
    _whole("Identity", torch=lambda t, node, x: x[0], keeps_axes=True, homogeneous=True)
    register(Operator("Slice", Kind.MOVE, (1, 2, 3, 4), torch=_slices))
    register(Operator("Split", Kind.MOVE, (1,), torch=_parts))
    for name, constants in (
        ("Expand", (1,)), ("Tile", (1,)),
        ("DepthToSpace", ()), ("SpaceToDepth", ()),
    ):  # fmt: skip
        register(Operator(name, Kind.MOVE, constants))
    register(Operator("Gather", Kind.MOVE, (1,), refusal=_lookup))
    register(Operator("Concat", Kind.JOIN, torch=lambda t, node, x: t.cat(x, node.attributes.get_int("axis", 0))))
    register(Operator("Pad", Kind.PAD, (1, 2, 3, 4)))

    register(Operator("Add", Kind.SUM, torch=lambda t, node, x: x[0] + x[1]))
    register(Operator("Sub", Kind.DIFFERENCE, torch=lambda t, node, x: x[0] - x[1]))
    register(Operator("Mul", Kind.MULTIPLY, torch=lambda t, node, x: x[0] * x[1]))
    register(Operator("Div", Kind.DIVIDE, torch=lambda t, node, x: x[0] / x[1]))
    register(Operator("Max", Kind.LARGER, torch=lambda t, node, x: t.maximum(x[0], x[1])))
    register(Operator("Min", Kind.SMALLER, torch=lambda t, node, x: t.minimum(x[0], x[1])))

    register(Operator("AveragePool", Kind.AVERAGE_POOL, homogeneous=True))
    register(Operator("GlobalAveragePool", Kind.GLOBAL_AVERAGE, homogeneous=True, torch=lambda t, node, x: (
        x[0].mean(list(range(2, x[0].dim())), keepdim=True))))  # fmt: skip
    register(Operator("MaxPool", Kind.MAX_POOL, homogeneous=True, refusal=_indices))
    register(Operator("GlobalMaxPool", Kind.GLOBAL_MAX, torch=lambda t, node, x: (
        x[0].amax(list(range(2, x[0].dim())), keepdim=True))))  # fmt: skip
    for name, kind in (
        ("ReduceMean", Kind.MEAN), ("ReduceSum", Kind.TOTAL), ("ReduceMax", Kind.LARGEST), ("ReduceMin", Kind.LEAST),
    ):  # fmt: skip
        register(Operator(name, kind, (1,)))
    register(Operator("Softmax", Kind.SOFTMAX, keeps_axes=True, bounds=(0, 1), removable=True, torch=_softmax))
    register(Operator("Resize", Kind.RESIZE, (1, 2, 3), refusal=_grid))


_all()
