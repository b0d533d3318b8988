"""Recognise activation functions that exporters write as several nodes, and make each one node.

    x ──┬─► Sigmoid ─► Mul ─►      Silu        x * sigmoid(x)
        └──────────────┘
    x ──┬─► HardSigmoid ─► Mul ─►  HardSwish   x * clip(x / 6 + 1/2, 0, 1)
        └──────────────────┘
    x ──┬─► Add 3 ─► Clip 0..6 ─► Mul ─► Div 6 ─►  (HardSwish; without Mul: HardSigmoid)
        └──────────────────────────┘
    x ──┬─► Div sqrt(2) ─► Erf ─► Add 1 ─► Mul ─► Mul 1/2 ─►  Gelu
        └──────────────────────────────────┘

A unit that the model's opset does not know becomes a function in the domain ``narrowcast``, so that
onnxruntime and the ONNX checker still take the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import onnx
import onnx.inliner
import onnx_ir as ir
from onnx import helper

from narrowcast.ops.net import constant_of, producer, put_in_place, readers

__all__ = ["DOMAIN", "fuse_units", "inline_units"]

DOMAIN = "narrowcast"
Match = tuple[str, ir.Value, list[ir.Node], dict[str, float]]


def _scalar(value: ir.Value | None) -> float | None:
    array = constant_of(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _only_use(node: ir.Node, user: ir.Node) -> bool:
    output = node.outputs[0]
    return not output.is_graph_output() and set(readers(output)) == {user}


def _pairs(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    first, second = node.inputs[0], node.inputs[1]
    if first is not None and second is not None:
        yield first, second
        yield second, first


def _with_scalar(node: ir.Node | None, wanted: float, op_types: tuple[str, ...]) -> ir.Value | None:
    """The other operand of ``node`` when it adds, multiplies or divides by the constant ``wanted``."""
    if node is None or node.op_type not in op_types:
        return None
    for value, constant in _pairs(node):
        number = _scalar(constant)
        if number is not None and math.isclose(number, wanted, rel_tol=1e-4):
            return value if node.op_type != "Div" or constant is node.inputs[1] else None
    return None


def _match_silu(node: ir.Node) -> Match | None:
    if node.op_type != "Mul":
        return None
    for x, gate in _pairs(node):
        sigmoid = producer(gate, "Sigmoid")
        if sigmoid is not None and sigmoid.inputs[0] is x and _only_use(sigmoid, node):
            return "Silu", x, [sigmoid], {}
    return None


def _hard_sigmoid_chain(value: ir.Value, user: ir.Node) -> tuple[ir.Value, list[ir.Node]] | None:
    """``x`` and nodes of clip(x + 3, 0, 6), to be divided by 6 by the caller."""
    clip = producer(value, "Clip")
    if clip is None or len(clip.inputs) < 3 or not _only_use(clip, user):
        return None
    if _scalar(clip.inputs[1]) != 0.0 or _scalar(clip.inputs[2]) != 6.0:
        return None
    add = producer(clip.inputs[0], "Add")
    x = _with_scalar(add, 3.0, ("Add",))
    return (x, [add, clip]) if x is not None and add is not None and _only_use(add, clip) else None


def _match_hard(node: ir.Node) -> Match | None:
    if node.op_type == "Mul":
        for x, gate in _pairs(node):
            hard = producer(gate, "HardSigmoid")
            if hard is None or hard.inputs[0] is not x or not _only_use(hard, node):
                continue
            alpha = hard.attributes.get_float("alpha", 0.2)
            if math.isclose(alpha, 1 / 6, rel_tol=1e-4) and hard.attributes.get_float("beta", 0.5) == 0.5:
                return "HardSwish", x, [hard], {}
    inner = _with_scalar(node, 6.0, ("Div",))
    if inner is None:
        inner = _with_scalar(node, 1 / 6, ("Mul",))
    if inner is None:
        return None
    chain = _hard_sigmoid_chain(inner, node)
    if chain is not None:
        return "HardSigmoid", chain[0], chain[1], {"alpha": 1 / 6, "beta": 0.5}
    product = producer(inner, "Mul")
    if product is not None and _only_use(product, node):
        for x, gate in _pairs(product):
            chain = _hard_sigmoid_chain(gate, product)
            if chain is not None and chain[0] is x:
                return "HardSwish", x, [*chain[1], product], {}
    return None


def _match_gelu(node: ir.Node) -> Match | None:
    """Exact GELU, x / 2 * (1 + erf(x / sqrt(2))), in the two operand orders exporters write."""
    if node.op_type != "Mul":
        return None
    for left, right in _pairs(node):
        half = _scalar(right)
        if half is not None and math.isclose(half, 0.5, rel_tol=1e-4):  # (x * (1 + erf)) * 0.5
            product = producer(left, "Mul")
            if product is None or not _only_use(product, node):
                continue
            candidates = [(a, b, [product]) for a, b in _pairs(product)]
        else:  # (x * 0.5) * (1 + erf)
            scaled = producer(left, "Mul")
            x_half = _with_scalar(scaled, 0.5, ("Mul",))
            if scaled is None or x_half is None or not _only_use(scaled, node):
                continue
            candidates = [(x_half, right, [scaled])]
        for x, gate, used in candidates:
            chain = _erf_chain(gate, x)
            if chain is not None:
                return "Gelu", x, [*chain, *used], {}
    return None


def _erf_chain(gate: ir.Value, x: ir.Value) -> list[ir.Node] | None:
    add = producer(gate, "Add")
    erf_out = _with_scalar(add, 1.0, ("Add",))
    erf = producer(erf_out, "Erf")
    if add is None or erf is None or not _only_use(erf, add):
        return None
    divide = producer(erf.inputs[0])
    source = _with_scalar(divide, math.sqrt(2), ("Div",))
    if source is None:
        source = _with_scalar(divide, 1 / math.sqrt(2), ("Mul",))
    return [divide, erf, add] if source is x and divide is not None and _only_use(divide, erf) else None


_MATCHERS: tuple[Callable[[ir.Node], Match | None], ...] = (_match_gelu, _match_hard, _match_silu)
#: Opset from which ONNX itself knows the operator; ``None``: not up to opset 22.
_STANDARD_SINCE = {"Silu": None, "HardSwish": 14, "HardSigmoid": 1, "Gelu": 20}


def fuse_units(model: ir.Model) -> int:
    """Replace every recognised pattern by one node, in place.

    Args:
        model: a model whose constants are initializers.

    Returns:
        How many patterns were replaced. Output values keep their names and shapes.
    """
    opset = model.opset_imports[""]
    count = 0
    for node in list(model.graph):
        match = next((found for matcher in _MATCHERS if (found := matcher(node)) is not None), None)
        if match is None:
            continue
        op_type, x, inner, attributes = match
        since = _STANDARD_SINCE[op_type]
        domain = "" if since is not None and opset >= since else DOMAIN
        if domain:
            _add_function(model, op_type, opset)
        _replace(model.graph, node, inner, op_type, domain, x, attributes)
        count += 1
    return count


def _replace(
    graph: ir.Graph,
    node: ir.Node,
    inner: list[ir.Node],
    op_type: str,
    domain: str,
    x: ir.Value,
    attributes: dict[str, float],
) -> None:
    unit = ir.node(op_type, [x], attributes=attributes or None, domain=domain, num_outputs=1, name=node.name)
    put_in_place(graph, node, [unit])
    graph.remove(list(reversed(inner)), safe=True)


def _add_function(model: ir.Model, op_type: str, opset: int) -> None:
    if (DOMAIN, op_type, "") in model.functions:
        return
    nodes = {
        "Silu": [helper.make_node("Sigmoid", ["x"], ["gate"]), helper.make_node("Mul", ["x", "gate"], ["y"])],
        "HardSwish": [
            helper.make_node("HardSigmoid", ["x"], ["gate"], alpha=1 / 6, beta=0.5),
            helper.make_node("Mul", ["x", "gate"], ["y"]),
        ],
        "Gelu": [
            helper.make_node("Constant", [], ["root"], value_float=math.sqrt(2)),
            helper.make_node("Constant", [], ["one"], value_float=1.0),
            helper.make_node("Constant", [], ["half"], value_float=0.5),
            helper.make_node("Div", ["x", "root"], ["scaled"]),
            helper.make_node("Erf", ["scaled"], ["erf"]),
            helper.make_node("Add", ["erf", "one"], ["gate"]),
            helper.make_node("Mul", ["x", "gate"], ["product"]),
            helper.make_node("Mul", ["product", "half"], ["y"]),
        ],
    }[op_type]
    function = helper.make_function(DOMAIN, op_type, ["x"], ["y"], nodes, [helper.make_opsetid("", opset)])
    model.functions[(DOMAIN, op_type, "")] = ir.serde.deserialize_function(function)
    model.opset_imports[DOMAIN] = 1


def inline_units(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which the functions of this module are written out as standard operators.

    The node that writes a unit's output keeps the unit's name, so that loading the copy finds the same unit again.
    """
    names = {output: node.name for node in proto.graph.node for output in node.output}
    inlined = onnx.inliner.inline_local_functions(proto)
    kept = [entry for entry in inlined.opset_import if entry.domain != DOMAIN]
    del inlined.opset_import[:]
    inlined.opset_import.extend(kept)
    for node in inlined.graph.node:
        if not node.name and node.output[0] in names:
            node.name = names[node.output[0]]
    return inlined
