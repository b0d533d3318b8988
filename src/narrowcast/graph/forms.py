r"""Forms that are rewritten before anything else sees the graph.

Operators that ONNX lets people write in several ways get one form, so that nothing behind knows the others:

    Gemm                 alpha, beta and transA folded or written out; a bias of several rows, or computed operands: Add
    Max, Min, Sum, Mean  of two operands (Sum as Add, Mean as Add and Mul)
    Pow                  exponent in float32
    Resize               a factor for every axis, no ``axes``, no ``keep_aspect_ratio_policy``; half_pixel_symmetric is
                         half_pixel where no size was rounded; nothing where all sizes stay
    Split                sizes, no ``num_outputs``
    ConvTranspose        ``pads``, no ``auto_pad``, no ``output_shape``

BatchNormalization of a trained model is factors and an offset for every channel, and gets no node of its own:

    y = x * factor + shift,   factor = scale / sqrt(variance + epsilon),   shift = bias - mean * factor

It goes into the weights of the sum of products before it (Conv, ConvTranspose, Gemm) where nothing else reads that sum;
else it becomes a depthwise 1x1 convolution (four axes), or Mul and Add.

Softmax inside attention is written as operators that stay on the chip, where a person asks for it:

    softmax(x) = e / sum(e),   e = exp(x - max(x))

    x --> ReduceMax --> Sub --> Exp --> ReduceSum --> Reciprocal --> Mul -->
    \___________________/        \__________________________________/

Chips that put Softmax on the CPU pay for it with a second subgraph and two copies of the attention matrix. These
operators, by tables and sums, stay where the convolutions are. The vendor of the RDK boards computes Softmax so when
it is asked for integers, with 16-bit tables for Exp and Reciprocal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import numpy_helper

from narrowcast.ops.facts import Kind, facts, weight_axis
from narrowcast.ops.net import (
    constant_at,
    constant_of,
    constant_value,
    dims,
    input_at,
    only_reader,
    producer,
    put_in_place,
    readers,
)


def explicit_splits(model: onnx.ModelProto) -> None:
    """Write the sizes of ``Split(num_outputs)``, in place.

    The last part is smaller where the axis does not divide, which the shape inference of simplifiers overlooks, as it
    does the axes of Resize: known shapes are dropped then, for ONNX's own inference to find.
    """
    shapes = {v.name: v.type.tensor_type.shape for v in (*model.graph.input, *model.graph.value_info)}
    uneven = False
    for node in model.graph.node:
        found = next((entry for entry in node.attribute if entry.name == "num_outputs"), None)
        if node.op_type != "Split" or found is None or node.input[0] not in shapes:
            continue
        dims = [dim.dim_value for dim in shapes[node.input[0]].dim]
        axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 0)
        part = -(-dims[axis] // found.i)
        sizes = [part] * (found.i - 1)
        sizes.append(dims[axis] - sum(sizes))
        uneven = uneven or sizes[-1] != part
        name = f"{node.output[0]}_sizes"
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(sizes, np.int64), name))
        node.attribute.remove(found)
        node.input[:] = [node.input[0], name]
    if uneven or any(_resizes_some_axes(node) for node in model.graph.node):
        del model.graph.value_info[:]
        for output in model.graph.output:
            output.type.tensor_type.ClearField("shape")


def _resizes_some_axes(node: onnx.NodeProto) -> bool:
    return node.op_type == "Resize" and any(entry.name == "axes" for entry in node.attribute)


def unify_forms(model: ir.Model) -> None:
    """Rewrite the operators named above, in place.

    Args:
        model: static shapes, constants as initializers. Values keep their names.
    """
    for node in list(model.graph):
        rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is not None:
            rule(model.graph, node)


def _inner(node: ir.Node, name: str, like: ir.Value, shape: Sequence[int] | None = None) -> ir.Value:
    """The result of a new node between others: its name, its shape, and the type of another value."""
    value = node.outputs[0]
    value.name, value.type = name, like.type
    value.shape = like.shape if shape is None else ir.Shape(shape)
    return value


def _gemm(graph: ir.Graph, node: ir.Node) -> None:
    a, b, c = (*node.inputs, None)[:3]
    if a is None or b is None:
        return
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    turned_a, turned_b = node.attributes.get_int("transA", 0), node.attributes.get_int("transB", 0)
    weight, bias, name, result = constant_of(b), constant_of(c), str(node.name), node.outputs[0]
    columns = dims(result)[1]
    vector = c is None or (bias is not None and bias.size in (1, columns) and (bias.ndim < 2 or bias.shape[0] == 1))
    if weight is not None and vector and (alpha, beta, turned_a) == (1.0, 1.0, 0):
        return
    nodes: list[ir.Node] = []

    def turned(value: ir.Value, suffix: str) -> ir.Value:
        nodes.append(ir.node("Transpose", [value], {"perm": [1, 0]}, num_outputs=1, name=f"{name}_{suffix}"))
        return _inner(nodes[-1], f"{name}_{suffix}_turned", value, dims(value)[::-1])

    def scaled(value: ir.Value, factor: float, suffix: str) -> ir.Value:
        if factor == 1.0:
            return value
        array = constant_of(value)
        if array is not None:
            return constant_value(graph, f"{value.name}_{suffix}", (array * np.float64(factor)).astype(np.float32))
        number = constant_value(graph, f"{name}_{suffix}", np.asarray(factor, np.float32))
        nodes.append(ir.node("Mul", [value, number], num_outputs=1, name=f"{name}_times_{suffix}"))
        return _inner(nodes[-1], f"{name}_{suffix}_scaled", value)

    a = turned(a, "A") if turned_a else a
    apart = None if vector or c is None else scaled(c, beta, "beta")
    if weight is not None:
        operands = [a, scaled(b, alpha, "alpha"), *([scaled(c, beta, "beta")] if c is not None and vector else [])]
        nodes.append(ir.node("Gemm", operands, {"transB": turned_b}, num_outputs=1, name=name))
    else:
        b = turned(b, "B") if turned_b else b
        nodes.append(ir.node("MatMul", [scaled(a, alpha, "alpha"), b], num_outputs=1, name=name))
        apart = scaled(c, beta, "beta") if c is not None else None
    if apart is not None:
        total = _inner(nodes[-1], f"{result.name}_product", result)
        nodes.append(ir.node("Add", [total, apart], num_outputs=1, name=f"{name}_bias"))
    put_in_place(graph, node, nodes)


def _pairs(graph: ir.Graph, node: ir.Node) -> None:
    values = [value for value in node.inputs if value is not None]
    op_type = {"Sum": "Add", "Mean": "Add"}.get(node.op_type, node.op_type)
    if len(values) == 2 and op_type == node.op_type:
        return
    result, name, total = node.outputs[0], str(node.name), values[0]
    nodes: list[ir.Node] = []
    for index, value in enumerate(values[1:], 1):
        last = index == len(values) - 1 and node.op_type != "Mean"
        nodes.append(ir.node(op_type, [total, value], num_outputs=1, name=name if last else f"{name}_{index}"))
        shape = np.broadcast_shapes(dims(total), dims(value))
        total = _inner(nodes[-1], f"{result.name}_{index}", result, shape)
    if node.op_type == "Mean" or not nodes:
        share = constant_value(graph, f"{name}_share", np.asarray(1 / len(values), np.float32))
        kind = ("Mul", [total, share]) if node.op_type == "Mean" else ("Identity", [total])
        nodes.append(ir.node(*kind, num_outputs=1, name=name))
    put_in_place(graph, node, nodes)


def _power(graph: ir.Graph, node: ir.Node) -> None:
    exponent = constant_of(node.inputs[1])
    if exponent is not None and exponent.dtype != np.float32:
        node.replace_input_with(1, constant_value(graph, f"{node.name}_exponent", exponent.astype(np.float32)))


def _resize(graph: ir.Graph, node: ir.Node) -> None:
    before, after = dims(node.inputs[0]), list(dims(node.outputs[0]))
    axes = node.attributes.get_ints("axes", None)
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    grid = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    roi, given, sizes = (constant_at(node, index) for index in (1, 2, 3))
    if list(before) == after and grid != "tf_crop_and_resize":  # onnxruntime copies then, with factors such as 1.1 too
        put_in_place(graph, node, [ir.node("Identity", [node.inputs[0]], name=node.name)])
        return
    chosen = [axis % len(before) for axis in axes] if axes is not None else list(range(len(before)))
    factors, rounded = np.ones(len(before), np.float32), False
    if given is not None and given.size:
        factors[chosen] = given
    elif sizes is not None:
        ratios = [float(size) / before[axis] for axis, size in zip(chosen, sizes, strict=True)]
        pick = {"not_larger": min, "not_smaller": max}.get(policy)
        factors[chosen] = ratios if pick is None else [pick(ratios)] * len(ratios)
        rounded = [int(np.floor(float(f) * size)) for f, size in zip(factors, before, strict=True)] != after
    else:
        return
    if grid == "half_pixel_symmetric" and np.allclose(factors * np.asarray(before), after, rtol=1e-6, atol=0):
        node.attributes.pop("coordinate_transformation_mode")  # the grid keeps its centre where nothing was cut off
    if (axes is None and policy == "stretch") or (roi is not None and roi.size) or rounded:
        return  # a rounded size belongs to no factor that ONNX would floor to it
    for name in ("axes", "keep_aspect_ratio_policy"):
        node.attributes.pop(name, None)
    node.resize_inputs(3)
    node.replace_input_with(1, None)
    node.replace_input_with(2, constant_value(graph, f"{node.name}_scales", factors))


def _transposed_convolution(graph: ir.Graph, node: ir.Node) -> None:
    """Only where the paddings are no negative ones, which ``output_padding`` would have to make up for."""
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto == "NOTSET" and "output_shape" not in node.attributes:
        return
    sizes, outputs, kernel = dims(node.inputs[0])[2:], dims(node.outputs[0])[2:], dims(node.inputs[1])[2:]
    count = len(sizes)

    def listed(name: str, default: int) -> list[int]:
        return [int(number) for number in node.attributes.get_ints(name, None) or [default] * count]

    strides, dilations, extra = listed("strides", 1), listed("dilations", 1), listed("output_padding", 0)
    begins, ends = [0] * count, [0] * count
    for axis in range(count):
        reach = strides[axis] * (sizes[axis] - 1) + extra[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        total = reach - outputs[axis]
        if total < 0:
            return
        begins[axis] = total // 2 if auto == "SAME_UPPER" else total - total // 2
        ends[axis] = total - begins[axis]
    for name in ("auto_pad", "output_shape"):
        node.attributes.pop(name, None)
    node.attributes["pads"] = ir.AttrInt64s("pads", [*begins, *ends])


_RULES: dict[str, Callable[[ir.Graph, ir.Node], None]] = {
    "Gemm": _gemm,
    **dict.fromkeys(("Max", "Min", "Sum", "Mean"), _pairs),
    "Pow": _power,
    "Resize": _resize,
    "ConvTranspose": _transposed_convolution,
}


Array = NDArray[np.float64]


def fold_batch_normalization(model: ir.Model) -> list[str]:
    """Replace every BatchNormalization with constant parameters, in place.

    Returns:
        One sentence for each kind of replacement that happened. Values keep their names.
    """
    counts = {"weights of the node before": 0, "a depthwise convolution": 0, "Mul and Add": 0}
    for node in list(model.graph):
        parameters = _parameters(node) if node.op_type == "BatchNormalization" else None
        if parameters is None or len(node.outputs) != 1:
            continue
        factor, shift = parameters
        rank = len(node.outputs[0].shape or ())
        if _into_producer(model.graph, node, factor, shift):
            counts["weights of the node before"] += 1
        elif rank == 4:
            _depthwise(model.graph, node, factor, shift)
            counts["a depthwise convolution"] += 1
        elif rank >= 2:
            _multiply_and_add(model.graph, node, factor, shift, rank)
            counts["Mul and Add"] += 1
    return [
        f"{count} BatchNormalization node{'s' if count != 1 else ''} became {what}"
        for what, count in counts.items()
        if count
    ]


def _parameters(node: ir.Node) -> tuple[Array, Array] | None:
    arrays = [constant_of(value) for value in node.inputs[1:5]]
    if any(array is None for array in arrays) or node.attributes.get_int("training_mode", 0):
        return None
    scale, bias, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return factor, bias - mean * factor


def _float(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    return constant_value(graph, name, array.astype(np.float32))


def _into_producer(graph: ir.Graph, node: ir.Node, factor: Array, shift: Array) -> bool:
    """Scale weights and bias of the node before; ``False`` where that is not possible."""
    source = node.inputs[0]
    before = producer(source)
    if source is None or before is None or only_reader(source) is None:
        return False
    weight = constant_at(before, 1)
    given = input_at(before, 2)
    bias = np.zeros(1) if given is None else constant_of(given)
    folded = _scaled(before, weight, factor) if weight is not None else None
    if folded is None or bias is None or bias.size not in (1, len(factor)):
        return False
    beta = before.attributes.get_float("beta", 1.0) if facts(before).kind is Kind.LINEAR else 1.0
    total = np.broadcast_to(np.asarray(bias, np.float64).reshape(-1) * beta, factor.shape) * factor + shift
    constants = {"weight": folded, "bias": total}
    inputs = [before.inputs[0], *(_float(graph, f"{node.name}.{key}", array) for key, array in constants.items())]
    attributes = [entry for entry in before.attributes.values() if entry.name != "beta"]
    new = ir.Node("", before.op_type, inputs, attributes, num_outputs=1, name=before.name)
    put_in_place(graph, node, [new])
    graph.remove(before, safe=True)
    return True


def _scaled(before: ir.Node, weight: NDArray[Any], factor: Array) -> Array | None:
    """The weights of a sum of products with every output channel multiplied; ``None`` for other operators."""
    weight = np.asarray(weight, np.float64)
    entry = facts(before)
    if entry.kind is Kind.TRANSPOSED:  # (C, N / group, ...), the groups one after the other
        group, tail = before.attributes.get_int("group", 1), [1] * (weight.ndim - 2)
        rows = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
        return (rows * factor.reshape(group, 1, weight.shape[1], *tail)).reshape(weight.shape)
    if not entry.is_weighted:
        return None
    axis = weight_axis(before)
    return weight * factor.reshape([-1 if index == axis else 1 for index in range(weight.ndim)])


def _depthwise(graph: ir.Graph, node: ir.Node, factor: Array, shift: Array) -> None:
    weight = _float(graph, f"{node.name}.weight", factor.reshape(-1, 1, 1, 1))
    bias = _float(graph, f"{node.name}.bias", shift)
    inputs = [node.inputs[0], weight, bias]
    put_in_place(graph, node, [ir.node("Conv", inputs, {"group": factor.size}, num_outputs=1, name=node.name)])


def _multiply_and_add(graph: ir.Graph, node: ir.Node, factor: Array, shift: Array, rank: int) -> None:
    shape = (1, -1, *[1] * (rank - 2))
    inputs = [node.inputs[0], _float(graph, f"{node.name}.weight", factor.reshape(shape))]
    product = ir.node("Mul", inputs, num_outputs=1, name=f"{node.name}_scale")
    value, like = product.outputs[0], node.outputs[0]
    value.name, value.shape, value.type = f"{node.name}_scaled", like.shape, like.type
    offset = _float(graph, f"{node.name}.bias", shift.reshape(shape))
    put_in_place(graph, node, [product, ir.node("Add", [value, offset], num_outputs=1, name=node.name)])


#: Operators that a Softmax becomes, in order; each node is named after it: ``<softmax>/ReduceMax``.
PARTS = ("ReduceMax", "Sub", "Exp", "ReduceSum", "Reciprocal", "Mul")
#: The axes of ReduceMax are an input from this opset on.
_AXES_INPUT_OPSET = 18


def attention_softmaxes(graph: ir.Graph) -> list[ir.Node]:
    """Softmax nodes whose result weighs something: every reader, behind operators that move bytes, is a MatMul.

    Args:
        graph: prepared graph.

    Returns:
        In graph order; classifiers' last Softmax and the distributions of a decode head are not among them.
    """
    return [node for node in graph if facts(node).kind is Kind.SOFTMAX and _weighs(node.outputs[0])]


def _weighs(value: ir.Value) -> bool:
    users = readers(value)
    if not users or value.is_graph_output():
        return False
    return all(facts(user).kind is Kind.MATRIX or (facts(user).whole and _weighs(user.outputs[0])) for user in users)


def rewrite_attention(model: ir.Model) -> list[str]:
    """Replace every Softmax of an attention, in place.

    Args:
        model: prepared graph with static shapes.

    Returns:
        Names of the nodes replaced. Output tensors keep their names.
    """
    replaced = []
    for node in attention_softmaxes(model.graph):
        _replace(model, node)
        replaced.append(str(node.name))
    return replaced


def _replace(model: ir.Model, softmax: ir.Node) -> None:
    graph, stem = model.graph, str(softmax.name)
    x = softmax.inputs[0]
    if x is None or x.shape is None:
        raise AssertionError(f"{stem} has no input of static shape")
    rank = len(x.shape)
    axis = softmax.attributes.get_int("axis", -1) % rank
    reduced = ir.Shape([1 if index == axis else dim for index, dim in enumerate(x.shape)])
    axes = constant_value(graph, f"{stem}/axes", np.array([axis], np.int64))
    as_attribute = model.opset_imports[""] < _AXES_INPUT_OPSET

    def node(op_type: str, inputs: list[ir.Value], shape: ir.Shape | None, attributes: dict[str, object]) -> ir.Value:
        made = ir.node(op_type, inputs, attributes=attributes or None, num_outputs=1, name=f"{stem}/{op_type}")
        value = made.outputs[0]
        value.name, value.shape, value.type = f"{stem}/{op_type}_output_0", shape, x.type
        graph.insert_before(softmax, made)
        return value

    if as_attribute:
        largest = node("ReduceMax", [x], reduced, {"axes": [axis], "keepdims": 1})
    else:
        largest = node("ReduceMax", [x, axes], reduced, {"keepdims": 1})
    exponential = node("Exp", [node("Sub", [x, largest], x.shape, {})], x.shape, {})
    total = node("ReduceSum", [exponential, axes], reduced, {"keepdims": 1})
    product = node("Mul", [exponential, node("Reciprocal", [total], reduced, {})], x.shape, {})
    old = softmax.outputs[0]
    name = old.name
    old.replace_all_uses_with(product)
    graph.remove(softmax, safe=True)
    product.name = name
