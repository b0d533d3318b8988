"""A prepared float model in the dialect of hb_mapper: opset 11, IR 7, static shapes, constants as initializers.

ONNX's own converter cannot step back over several of these operators (ReduceMean, Resize, Softmax, LayerNormalization),
so each change between opset 11 and 22 that a prepared graph can meet has a rule here. Sources: the operator changelog
of ONNX. What has no equivalent is refused with the node's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from narrowcast.base.errors import UserError
from narrowcast.graph.weights import with_data

__all__ = ["IR_VERSION", "OPSET", "to_opset_11"]

OPSET, IR_VERSION = 11, 7
_OTHER_FLOATS = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)


@dataclass
class _Graph:
    """The graph under conversion.

    Attributes:
        constants: initializers by name.
        shapes: static shapes by value name.
        nodes: the result so far.
    """

    constants: dict[str, NDArray[Any]]
    shapes: dict[str, tuple[int, ...]]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    count: int = 0

    def constant(self, stem: str, array: NDArray[Any]) -> str:
        self.count += 1
        name = f"{stem}_opset11_{self.count}"
        self.constants[name] = array
        return name

    def add(self, op_type: str, inputs: list[str], output: str, name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output


Rule = Callable[[_Graph, onnx.NodeProto], None]


def to_opset_11(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite a model so that it computes the same at opset 11.

    Args:
        proto: standard operators only (local functions written out), opset 11 to 22, static shapes; not changed.

    Returns:
        A new model, opset 11 and IR 7, with the same input and output names, valid under ``onnx.checker``.

    Raises:
        UserError: an operator that opset 11 cannot express, or numbers that are not float32.
    """
    for node in proto.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise UserError(f"{node.name or node.op_type} is of the domain {node.domain}", "export standard operators")
    inferred = onnx.shape_inference.infer_shapes(with_data(proto))
    _refuse_other_floats(inferred.graph)
    graph = _Graph({t.name: numpy_helper.to_array(t) for t in inferred.graph.initializer}, _shapes(inferred.graph))
    for node in inferred.graph.node:
        rule = _RULES.get(node.op_type)
        if rule is None:
            _check_known(node)
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            graph.nodes.append(copy)
        else:
            rule(graph, node)
    return _assembled(inferred, graph)


def _refuse_other_floats(graph: onnx.GraphProto) -> None:
    """hb_mapper quantizes float32 models only."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        for name in (*node.input, *node.output):
            if kinds.get(name) in _OTHER_FLOATS:
                kind = onnx.TensorProto.DataType.Name(kinds[name]).lower()
                what = f"{node.name or node.op_type} ({node.op_type}) computes with {kind}: {name}"
                raise UserError(what, "export the model in float32")


def _shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    values = [*graph.input, *graph.output, *graph.value_info]
    return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}


def _assembled(source: onnx.ModelProto, graph: _Graph) -> onnx.ModelProto:
    used = {name for node in graph.nodes for name in node.input}
    constants = [numpy_helper.from_array(array, name) for name, array in graph.constants.items() if name in used]
    inputs = [value for value in source.graph.input if value.name not in graph.constants]
    body = helper.make_graph(graph.nodes, source.graph.name or "model", inputs, list(source.graph.output), constants)
    model = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="narrowcast"
    )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the model cannot be written at opset {OPSET}: {reason}", "change that operator") from error
    return onnx.shape_inference.infer_shapes(model)


def _refused(node: onnx.NodeProto, what: str) -> UserError:
    remedy = f"rewrite the model without it, or export it at opset {OPSET}"
    return UserError(f"{node.name or node.op_type}: {what} does not exist at opset {OPSET}", remedy)


def _check_known(node: onnx.NodeProto) -> None:
    """A node without a rule is copied, so opset 11 must know its operator and attributes."""
    if not onnx.defs.has(node.op_type, max_inclusive_version=OPSET):
        raise _refused(node, node.op_type)
    known = onnx.defs.get_schema(node.op_type, OPSET).attributes
    for entry in node.attribute:
        if entry.name not in known:
            raise _refused(node, f"{node.op_type} with {entry.name}")


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def _constant_input(graph: _Graph, node: onnx.NodeProto, index: int) -> NDArray[Any] | None:
    """The constant at an input, ``None`` where the input is absent."""
    if len(node.input) <= index or not node.input[index]:
        return None
    array = graph.constants.get(node.input[index])
    if array is None:
        raise _refused(node, f"a computed input {index}")
    return array


def _again(graph: _Graph, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    graph.nodes.append(helper.make_node(node.op_type, inputs, list(node.output), name=node.name, **attributes))


def _without(defaults: dict[str, Any]) -> Rule:
    """Drop younger attributes that hold their default; refuse other values."""

    def rule(graph: _Graph, node: onnx.NodeProto) -> None:
        attributes = _attributes(node)
        for name, default in defaults.items():
            value = attributes.pop(name, default)
            same = all(entry == 1 for entry in value) if isinstance(value, list) else value == default
            if not same:
                raise _refused(node, f"{node.op_type} with {name}")
        _again(graph, node, list(node.input), attributes)

    return rule


def _axes_to_attribute(graph: _Graph, node: onnx.NodeProto) -> None:
    """Squeeze, Unsqueeze and reductions: the axes were an attribute."""
    attributes = _attributes(node)
    axes = _constant_input(graph, node, 1)
    empty_is_identity = attributes.pop("noop_with_empty_axes", 0)
    if axes is None and empty_is_identity and "axes" not in attributes:
        graph.add("Identity", [node.input[0]], node.output[0], node.name)
        return
    if axes is not None:
        rank = len(graph.shapes.get(node.input[0], ()))
        rank += len(axes) if node.op_type == "Unsqueeze" else 0
        attributes["axes"] = [int(axis) + rank * (axis < 0) for axis in axes]
    _again(graph, node, [node.input[0]], attributes)


def _split(graph: _Graph, node: onnx.NodeProto) -> None:
    attributes = _attributes(node)
    attributes.pop("num_outputs", None)
    sizes = _constant_input(graph, node, 1)
    if sizes is not None:
        attributes["split"] = [int(size) for size in sizes]
    elif "split" not in attributes:
        axis = int(attributes.get("axis", 0))
        attributes["split"] = [graph.shapes[name][axis] for name in node.output]
    _again(graph, node, [node.input[0]], attributes)


def _softmax(graph: _Graph, node: onnx.NodeProto) -> None:
    """Before opset 13 all axes from ``axis`` on were one: move the axis to the end where that makes a difference."""
    shape = graph.shapes[node.input[0]]
    rank = len(shape)
    axis = int(_attributes(node).get("axis", -1)) % rank
    if all(size == 1 for size in shape[axis + 1 :]):
        _again(graph, node, list(node.input), {"axis": axis})
        return
    order = [index for index in range(rank) if index != axis] + [axis]
    back = [order.index(index) for index in range(rank)]
    output = node.output[0]
    graph.add("Transpose", [node.input[0]], f"{output}_last", f"{node.name}_to_last", perm=order)
    graph.add(node.op_type, [f"{output}_last"], f"{output}_done", node.name, axis=rank - 1)
    graph.add("Transpose", [f"{output}_done"], output, f"{node.name}_from_last", perm=back)


_RESIZE_DEFAULTS = {
    "antialias": 0,
    "axes": None,
    "keep_aspect_ratio_policy": b"stretch",
}


def _resize(graph: _Graph, node: onnx.NodeProto) -> None:
    """Sizes become factors where these give them, and an absent region an empty tensor, as exporters wrote it then."""
    attributes = _attributes(node)
    for name, default in _RESIZE_DEFAULTS.items():
        if attributes.pop(name, default) != default:
            raise _refused(node, f"Resize with {name}")
    if attributes.get("coordinate_transformation_mode") in (b"half_pixel_symmetric", b"tf_crop_and_resize"):
        raise _refused(node, "this coordinate_transformation_mode of Resize")
    scales = _constant_input(graph, node, 2)
    before, after = (np.asarray(graph.shapes[name]) for name in (node.input[0], node.output[0]))
    if scales is None or not scales.size:
        scales = after / before
    factors, sizes = scales.astype(np.float32), []
    if not np.array_equal(np.floor(before * factors), after):  # 10 * 1.4 in float32 is not 14
        factors, sizes = np.zeros(0, np.float32), [graph.constant("sizes", after.astype(np.int64))]
    region = graph.constant("roi", np.zeros(0, np.float32))
    _again(graph, node, [node.input[0], region, graph.constant("scales", factors), *sizes], attributes)


def _reshape(graph: _Graph, node: onnx.NodeProto) -> None:
    attributes = _attributes(node)
    target = _constant_input(graph, node, 1)
    if attributes.pop("allowzero", 0) and target is not None and (target == 0).any():
        raise _refused(node, "Reshape to an empty tensor")
    _again(graph, node, list(node.input), attributes)


def _pad(graph: _Graph, node: onnx.NodeProto) -> None:
    """Before opset 18 all axes were padded."""
    inputs = list(node.input)
    axes = _constant_input(graph, node, 3)
    if axes is not None:
        rank = len(graph.shapes[node.input[0]])
        given = _constant_input(graph, node, 1)
        if given is None:
            raise _refused(node, "Pad without widths")
        widths = np.zeros((2, rank), np.int64)
        widths[:, [int(axis) % rank for axis in axes]] = given.reshape(2, -1)
        inputs[1] = graph.constant("pads", widths.reshape(-1))
    attributes = _attributes(node)
    if attributes.get("mode") == b"wrap":
        raise _refused(node, "Pad with mode wrap")
    _again(graph, node, inputs[:3], attributes)


def _hard_swish(graph: _Graph, node: onnx.NodeProto) -> None:
    x, output = node.input[0], node.output[0]
    graph.add("HardSigmoid", [x], f"{output}_gate", f"{node.name}_gate", alpha=1 / 6, beta=0.5)
    graph.add("Mul", [x, f"{output}_gate"], output, node.name)


def _mish(graph: _Graph, node: onnx.NodeProto) -> None:
    x, output = node.input[0], node.output[0]
    graph.add("Softplus", [x], f"{output}_softplus", f"{node.name}_softplus")
    graph.add("Tanh", [f"{output}_softplus"], f"{output}_tanh", f"{node.name}_tanh")
    graph.add("Mul", [x, f"{output}_tanh"], output, node.name)


def _gelu(graph: _Graph, node: onnx.NodeProto) -> None:
    """x / 2 * (1 + erf(x / sqrt(2))), or by tanh: x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))."""
    x, output, name = node.input[0], node.output[0], node.name

    def step(op_type: str, stem: str, *operands: str | float) -> str:
        names = [o if isinstance(o, str) else graph.constant(stem, np.asarray(o, np.float32)) for o in operands]
        return graph.add(op_type, names, f"{output}_{stem}", f"{name}_{stem}")

    if _attributes(node).get("approximate", b"none") == b"none":
        inner = step("Erf", "erf", step("Div", "scaled", x, math.sqrt(2)))
    else:
        cube = step("Mul", "cube", step("Mul", "square", x, x), x)
        sum_ = step("Add", "sum", x, step("Mul", "cubic", cube, 0.044715))
        inner = step("Tanh", "tanh", step("Mul", "scaled", sum_, math.sqrt(2 / math.pi)))
    product = step("Mul", "product", x, step("Add", "gate", inner, 1.0))
    graph.add("Mul", [product, graph.constant("half", np.asarray(0.5, np.float32))], output, name)


def _layer_normalization(graph: _Graph, node: onnx.NodeProto) -> None:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + bias over the last axes."""
    if len([name for name in node.output if name]) > 1:
        raise _refused(node, "LayerNormalization with statistics as outputs")
    attributes = _attributes(node)
    x, output, name = node.input[0], node.output[0], node.name
    rank = len(graph.shapes[x])
    axes = list(range(int(attributes.get("axis", -1)) % rank, rank))
    epsilon = graph.constant("epsilon", np.asarray(attributes.get("epsilon", 1e-5), np.float32))
    graph.add("ReduceMean", [x], f"{output}_mean", f"{name}_mean", axes=axes, keepdims=1)
    graph.add("Sub", [x, f"{output}_mean"], f"{output}_centred", f"{name}_centred")
    graph.add("Mul", [f"{output}_centred"] * 2, f"{output}_squared", f"{name}_squared")
    graph.add("ReduceMean", [f"{output}_squared"], f"{output}_variance", f"{name}_variance", axes=axes, keepdims=1)
    graph.add("Add", [f"{output}_variance", epsilon], f"{output}_padded", f"{name}_padded")
    graph.add("Sqrt", [f"{output}_padded"], f"{output}_deviation", f"{name}_deviation")
    graph.add("Div", [f"{output}_centred", f"{output}_deviation"], f"{output}_normal", f"{name}_normal")
    biased = len(node.input) > 2 and bool(node.input[2])
    graph.add("Mul", [f"{output}_normal", node.input[1]], f"{output}_scaled" if biased else output, name)
    if biased:
        graph.add("Add", [f"{output}_scaled", node.input[2]], output, f"{name}_bias")


def _constant(graph: _Graph, node: onnx.NodeProto) -> None:
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        array = numpy_helper.to_array(value)
    else:
        array = np.asarray(value, np.float32 if "float" in attribute.name else np.int64)
    graph.constants[node.output[0]] = array


_REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
               "ReduceProd", "ReduceSum", "ReduceSumSquare")  # fmt: skip
#: Operators whose form changed between opset 11 and 22. All others are copied, and the checker has the last word.
_RULES: dict[str, Rule] = {
    **dict.fromkeys((*_REDUCTIONS, "Squeeze", "Unsqueeze"), _axes_to_attribute),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    "ArgMax": _without({"select_last_index": 0}),
    "ArgMin": _without({"select_last_index": 0}),
    "AveragePool": _without({"dilations": [1]}),
    "BatchNormalization": _without({"training_mode": 0}),
    "Cast": _without({"saturate": 1}),
    "Constant": _constant,
    "Gelu": _gelu,
    "HardSwish": _hard_swish,
    "LayerNormalization": _layer_normalization,
    "Mish": _mish,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Split": _split,
}
