"""Operators that exporters write as several nodes become one node again, and stand as a function where ONNX has none.

Both come from the forms of an operator's entry, such as ``gate = Sigmoid(x) y = Mul(x, gate)``: a graph is searched for
them, and the first one is the body of the function in the domain ``narrowcast``, so that onnxruntime and the ONNX
checker take a model with an operator that its opset does not know.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import onnx
import onnx.inliner
import onnx.parser
import onnx_ir as ir

from narrowcast.ops.facts import Kind, Operator, facts, known
from narrowcast.ops.net import constant_of, put_in_place, readers

__all__ = ["DOMAIN", "fuse_units", "inline_units", "set_function"]

DOMAIN = "narrowcast"


@cache
def _body(name: str, form: str, opset: int) -> onnx.FunctionProto:
    head = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]> {name} (x) => (y)'
    return onnx.parser.parse_function(f"{head} {{ {form} }}")


@dataclass
class _Match:
    """One try to find a form in a graph.

    Attributes:
        makers: nodes of the form by what they write.
        bound: names of the form to the values that stand for them.
        nodes: nodes of the graph that stand for nodes of the form, the last one first.
    """

    makers: dict[str, onnx.NodeProto]
    bound: dict[str, ir.Value]
    nodes: list[ir.Node]

    def value(self, name: str, value: ir.Value | None) -> bool:
        """Whether a value can stand for a name of the form."""
        if value is None:
            return False
        if name in self.bound:
            return self.bound[name] is value
        if name not in self.makers:  # the operand
            self.bound[name] = value
            return True
        made = self.makers[name]
        if _number(made) is not None:
            return _is_number(value, _number(made))
        node = value.producer()
        return node is not None and self.node(made, node)

    def node(self, made: onnx.NodeProto, node: ir.Node) -> bool:
        """Whether a node can stand for one of the form, with all that leads to it."""
        kind, operands = facts(made.op_type).kind, list(made.input)
        divisor = _number(self.makers.get(operands[-1])) if kind is Kind.DIVIDE else None
        inverted = divisor is not None and facts(node).kind is Kind.MULTIPLY
        if (node.op_type != made.op_type and not inverted) or len(node.inputs) < len(operands):
            return False
        if any(not _same(entry, node) for entry in made.attribute):
            return False
        orders = permutations(range(2)) if kind in (Kind.SUM, Kind.MULTIPLY) or inverted else [range(len(operands))]
        before = dict(self.bound), list(self.nodes)
        for order in orders:
            self.nodes.append(node)
            if all(
                _is_number(node.inputs[place], 1 / divisor)
                if inverted and divisor and name == operands[-1]
                else self.value(name, node.inputs[place])
                for name, place in zip(operands, order, strict=True)
            ):
                self.bound[made.output[0]] = node.outputs[0]
                return True
            self.bound, self.nodes = dict(before[0]), list(before[1])
        return False


def _number(made: onnx.NodeProto | None) -> float | None:
    """The number that a node of a form is, ``None`` where it is none."""
    return None if made is None or made.input else float(made.attribute[0].f)


def _is_number(value: ir.Value | None, wanted: float | None) -> bool:
    array = constant_of(value)
    if wanted is None or array is None or array.size != 1:
        return False
    return math.isclose(float(array.reshape(-1)[0]), wanted, rel_tol=1e-4)


def _same(entry: onnx.AttributeProto, node: ir.Node) -> bool:
    default = onnx.defs.get_schema(node.op_type).attributes[entry.name].default_value.f
    return math.isclose(node.attributes.get_float(entry.name, default), entry.f, rel_tol=1e-4)


def _found(node: ir.Node, entry: Operator, opset: int) -> tuple[ir.Value, list[ir.Node]] | None:
    """The operand and the nodes of a form of the operator that ends in a node, the last one first."""
    for form in entry.forms:
        body = _body(entry.name, form, opset)
        match = _Match({output: made for made in body.node for output in made.output}, {}, [])
        if not match.node(body.node[-1], node):
            continue
        inner = [part.outputs[0] for part in match.nodes[1:]]
        if all(not value.is_graph_output() and set(readers(value)) <= set(match.nodes) for value in inner):
            return match.bound["x"], match.nodes
    return None


def fuse_units(model: ir.Model) -> int:
    """Put one node in the place of every form of an operator, in place.

    Args:
        model: a model whose constants are initializers.

    Returns:
        How many were found. Output values keep their names and shapes.
    """
    opset, count = model.opset_imports[""], 0
    entries = [entry for entry in known() if entry.forms]
    for node in list(model.graph):
        for entry in entries:
            found = _found(node, entry, opset)
            if found is None:
                continue
            x, nodes = found
            domain = "" if entry.since is not None and opset >= entry.since else DOMAIN
            attributes = dict(entry.attributes) or None
            unit = ir.node(entry.name, [x], attributes=attributes, domain=domain, num_outputs=1, name=node.name)
            if domain:
                set_function(model, entry)
            put_in_place(model.graph, node, [unit])
            model.graph.remove(nodes[1:], safe=True)
            count += 1
            break
    return count


def set_function(model: ir.Model, entry: Operator) -> None:
    """Give a model the function that defines an operator which its opset does not know."""
    function = _body(entry.name, entry.forms[0], model.opset_imports[""])
    model.functions[(DOMAIN, entry.name, "")] = ir.serde.deserialize_function(function)
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
