"""A prepared float model in the dialect of hb_mapper: opset 11, IR 7, static shapes, constants as initializers.

ONNX's own converter cannot step back over several of these operators (ReduceMean, Resize, Softmax, LayerNormalization),
so each change between opset 11 and 22 that a prepared graph can meet has a rule here, or is written as the first form
in which the operator's entry in ``ops`` defines it. Sources: the operator changelog of ONNX. What has no equivalent is
refused with the node's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from narrowcast.base.errors import UserError
from narrowcast.graph.run import with_data
from narrowcast.ops.facts import facts

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
        """A new initializer."""
        self.count += 1
        name = f"{stem}_opset11_{self.count}"
        self.constants[name] = array
        return name

    def given(self, node: onnx.NodeProto, index: int) -> NDArray[Any] | None:
        """The constant at a node's input, ``None`` where the input is absent."""
        if len(node.input) <= index or not node.input[index]:
            return None
        if node.input[index] not in self.constants:
            raise _refused(node, f"a computed input {index}")
        return self.constants[node.input[index]]

    def again(self, node: onnx.NodeProto, inputs: Iterable[str], attributes: dict[str, Any]) -> None:
        """The node with these inputs and attributes."""
        self.nodes.append(helper.make_node(node.op_type, list(inputs), list(node.output), name=node.name, **attributes))

    def write(self, node: onnx.NodeProto, recipe: str, own: Mapping[str, str] | None = None, **operands: str) -> None:
        """A recipe in the place of a node.

        Args:
            node: what is replaced.
            recipe: nodes in ONNX's text form, from ``x`` to ``y``. Each tensor and the node that writes it are called
                as the node's output and the node, with the name in the text behind.
            own: what nodes have behind instead, by tensor.
            operands: names in the text of what is read besides ``x``.
        """
        head = f'<domain: "recipe", opset_import: ["" : {OPSET}]> Recipe ({", ".join(["x", *operands])}) => (y)'
        known = {"x": node.input[0], "y": node.output[0], **operands}
        numbers: dict[str, float] = {}
        for step in onnx.parser.parse_function(f"{head} {{ {recipe} }}").node:
            (name,) = step.output
            if step.op_type == "Constant":
                numbers[name] = step.attribute[0].f
                continue
            inputs = [
                known.get(given)
                or self.constant(given if name == "y" else name, np.asarray(numbers[given], np.float32))
                for given in step.input
            ]
            known.setdefault(name, f"{node.output[0]}_{name}")
            behind = (own or {}).get(name, name if name != "y" else "")
            title = f"{node.name}_{behind}" if behind else node.name
            self.nodes.append(helper.make_node(step.op_type, inputs, [known[name]], name=title, **_attributes(step)))


Rule = Callable[[_Graph, onnx.NodeProto, dict[str, Any]], None]


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
    values = [*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info]
    _refuse_other_floats(inferred.graph, values)
    graph = _Graph(
        {tensor.name: numpy_helper.to_array(tensor) for tensor in inferred.graph.initializer},
        {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values},
    )
    for node in inferred.graph.node:
        attributes = _attributes(node)
        for name, default in _YOUNGER.get(node.op_type, {}).items():
            value = attributes.pop(name, default)
            if not (all(entry == 1 for entry in value) if isinstance(value, list) else value == default):
                raise _refused(node, f"{node.op_type} with {name}")
        if node.op_type in _RULES:
            _RULES[node.op_type](graph, node, attributes)
        elif node.op_type in _YOUNGER:
            graph.again(node, node.input, attributes)
        elif not _exists(node) and facts(node.op_type).forms and not attributes:
            graph.write(node, facts(node.op_type).forms[0])
        else:
            _check_known(node)
            graph.nodes.append(node)
    return _assembled(inferred, graph)


def _refuse_other_floats(graph: onnx.GraphProto, values: Iterable[onnx.ValueInfoProto]) -> None:
    """hb_mapper quantizes float32 models only."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        for name in (*node.input, *node.output):
            if kinds.get(name) in _OTHER_FLOATS:
                kind = onnx.TensorProto.DataType.Name(kinds[name]).lower()
                what = f"{node.name or node.op_type} ({node.op_type}) computes with {kind}: {name}"
                raise UserError(what, "export the model in float32")


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


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def _exists(node: onnx.NodeProto) -> bool:
    return bool(onnx.defs.has(node.op_type, max_inclusive_version=OPSET))


def _check_known(node: onnx.NodeProto) -> None:
    """A node without a rule is copied, so opset 11 must know its operator and attributes."""
    if not _exists(node):
        raise _refused(node, node.op_type)
    known = onnx.defs.get_schema(node.op_type, OPSET).attributes
    for entry in node.attribute:
        if entry.name not in known:
            raise _refused(node, f"{node.op_type} with {entry.name}")


def _axes_to_attribute(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Squeeze, Unsqueeze and reductions: the axes were an attribute."""
    axes = graph.given(node, 1)
    empty_is_identity = attributes.pop("noop_with_empty_axes", 0)
    if axes is None and empty_is_identity and "axes" not in attributes:
        graph.write(node, "y = Identity(x)")
        return
    if axes is not None:
        rank = len(graph.shapes.get(node.input[0], ()))
        rank += len(axes) if node.op_type == "Unsqueeze" else 0
        attributes["axes"] = [int(axis) + rank * (axis < 0) for axis in axes]
    graph.again(node, node.input[:1], attributes)


def _split(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    attributes.pop("num_outputs", None)
    sizes = graph.given(node, 1)
    if sizes is not None:
        attributes["split"] = [int(size) for size in sizes]
    elif "split" not in attributes:
        attributes["split"] = [graph.shapes[name][int(attributes.get("axis", 0))] for name in node.output]
    graph.again(node, node.input[:1], attributes)


def _softmax(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Before opset 13 all axes from ``axis`` on were one: move the axis to the end where that makes a difference."""
    shape = graph.shapes[node.input[0]]
    last = len(shape) - 1
    axis = int(attributes.get("axis", -1)) % len(shape)
    if all(size == 1 for size in shape[axis + 1 :]):
        graph.again(node, node.input, {"axis": axis})
        return
    order = [index for index in range(len(shape)) if index != axis] + [axis]
    back = [order.index(index) for index in range(len(shape))]
    graph.write(
        node,
        f"last = Transpose <perm = {order}> (x) done = {node.op_type} <axis = {last}> (last)"
        f"y = Transpose <perm = {back}> (done)",
        {"last": "to_last", "done": "", "y": "from_last"},
    )


def _resize(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Sizes become factors where these give them, and an absent region an empty tensor, as exporters wrote it then."""
    if attributes.get("coordinate_transformation_mode") in (b"half_pixel_symmetric", b"tf_crop_and_resize"):
        raise _refused(node, "this coordinate_transformation_mode of Resize")
    scales = graph.given(node, 2)
    before, after = (np.asarray(graph.shapes[name]) for name in (node.input[0], node.output[0]))
    if scales is None or not scales.size:
        scales = after / before
    factors, sizes = scales.astype(np.float32), []
    if not np.array_equal(np.floor(before * factors), after):  # 10 * 1.4 in float32 is not 14
        factors, sizes = np.zeros(0, np.float32), [graph.constant("sizes", after.astype(np.int64))]
    region = graph.constant("roi", np.zeros(0, np.float32))
    graph.again(node, [node.input[0], region, graph.constant("scales", factors), *sizes], attributes)


def _reshape(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    target = graph.given(node, 1)
    if attributes.pop("allowzero", 0) and target is not None and (target == 0).any():
        raise _refused(node, "Reshape to an empty tensor")
    graph.again(node, node.input, attributes)


def _pad(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """Before opset 18 all axes were padded."""
    inputs = list(node.input)
    axes = graph.given(node, 3)
    if axes is not None:
        rank = len(graph.shapes[node.input[0]])
        given = graph.given(node, 1)
        if given is None:
            raise _refused(node, "Pad without widths")
        widths = np.zeros((2, rank), np.int64)
        widths[:, [int(axis) % rank for axis in axes]] = given.reshape(2, -1)
        inputs[1] = graph.constant("pads", widths.reshape(-1))
    if attributes.get("mode") == b"wrap":
        raise _refused(node, "Pad with mode wrap")
    graph.again(node, inputs[:3], attributes)


def _clip(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """The bounds are scalars; exporters also write one number with an axis, which the vendor's runtime refuses."""
    inputs = list(node.input)
    for index in range(1, len(inputs)):
        bound = graph.given(node, index)
        if bound is not None and bound.ndim:
            inputs[index] = graph.constant(inputs[index], bound.reshape(()))
    graph.again(node, inputs, attributes)


def _hard_sigmoid(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """With its slope written out: where it is not, the vendor's tool takes 1/6 and ONNX means 0.2 (measured)."""
    graph.again(node, node.input, {"alpha": 0.2, "beta": 0.5, **attributes})


def _constant(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    ((name, value),) = attributes.items()
    kind = np.float32 if "float" in name else np.int64
    graph.constants[node.output[0]] = numpy_helper.to_array(value) if name == "value" else np.asarray(value, kind)


def _gelu(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    graph.write(node, _GELU_BY_TANH if attributes.get("approximate") == b"tanh" else facts(node.op_type).forms[0])


def _mish(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    graph.write(node, "softplus = Softplus(x) tanh = Tanh(softplus) y = Mul(x, tanh)")


def _layer_normalization(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + bias over the last axes."""
    if len([name for name in node.output if name]) > 1:
        raise _refused(node, "LayerNormalization with statistics as outputs")
    rank = len(graph.shapes[node.input[0]])
    axes = list(range(int(attributes.get("axis", -1)) % rank, rank))
    operands = dict(zip(("scale", "bias"), (name for name in node.input[1:] if name), strict=False))
    scaled = "scaled = Mul(normal, scale) y = Add(scaled, bias)" if "bias" in operands else "y = Mul(normal, scale)"
    graph.write(
        node,
        f"mean = ReduceMean <axes = {axes}, keepdims = 1> (x) centred = Sub(x, mean) squared = Mul(centred, centred)"
        f"variance = ReduceMean <axes = {axes}, keepdims = 1> (squared)"
        "padded = Add(variance, epsilon)"
        f"deviation = Sqrt(padded) normal = Div(centred, deviation) {scaled}",
        {"scaled": "", "y": "bias"} if "bias" in operands else {},
        epsilon=graph.constant("epsilon", np.asarray(attributes.get("epsilon", 1e-5), np.float32)),
        **operands,
    )


#: x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))
_GELU_BY_TANH = (
    "square = Mul(x, x) cube = Mul(square, x) factor = Constant <value_float = 0.044715> () cubic = Mul(cube, factor)"
    "sum = Add(x, cubic) root = Constant <value_float = 0.79788456> () scaled = Mul(sum, root) tanh = Tanh(scaled)"
    "one = Constant <value_float = 1.0> () gate = Add(tanh, one) product = Mul(x, gate)"
    "half = Constant <value_float = 0.5> () y = Mul(product, half)"
)
#: Attributes that opset 11 does not know, and the value of each that means what opset 11 does.
_YOUNGER: dict[str, dict[str, Any]] = {
    "ArgMax": {"select_last_index": 0},
    "ArgMin": {"select_last_index": 0},
    "AveragePool": {"dilations": [1]},
    "BatchNormalization": {"training_mode": 0},
    "Cast": {"saturate": 1},
    "Resize": {"antialias": 0, "axes": None, "keep_aspect_ratio_policy": b"stretch"},
}
_REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
               "ReduceProd", "ReduceSum", "ReduceSumSquare")  # fmt: skip
#: Operators whose form changed between opset 11 and 22. All others are copied, and the checker has the last word.
_RULES: dict[str, Rule] = {
    **dict.fromkeys((*_REDUCTIONS, "Squeeze", "Unsqueeze"), _axes_to_attribute),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    "Clip": _clip,
    "Constant": _constant,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "LayerNormalization": _layer_normalization,
    "Mish": _mish,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Split": _split,
}
