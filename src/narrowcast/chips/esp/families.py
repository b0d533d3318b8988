"""All families of operators: who writes and who reads a node, and what versions of the runtime differ in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.chips.esp.assembly import Assembly
from narrowcast.chips.esp.elementwise import ELEMENTWISE, FUNCTIONS, read_unary, write_unary
from narrowcast.chips.esp.file import EspdlNode
from narrowcast.chips.esp.moving import MOVING
from narrowcast.chips.esp.products import PRODUCTS
from narrowcast.chips.esp.restoring import Fact, Family, Restoring
from narrowcast.ops.facts import facts

__all__ = ["feeds_channels_last", "model_readers", "read_node", "runtime_facts", "write_node"]

_BY_OPERATOR = {name: family for family in (*PRODUCTS, *ELEMENTWISE, *MOVING) for name in family.operators}
#: An operator of another program's file: one that sees shapes.
_OTHER = Family((), Restoring.take)


def _family(operator: str) -> Family:
    found = _BY_OPERATOR.get(operator)
    return found or (FUNCTIONS if facts(operator).kind.family == "unary" else _OTHER)


def write_node(assembly: Assembly, node: ir.Node) -> None:
    """Write one node of the model.

    Raises:
        UserError: an operator that ESP-DL does not have, or a use of it.
    """
    family = _family(node.op_type)
    if family.write is not None:
        family.write(assembly, node)
    elif node.op_type in assembly.target.tables:
        write_unary(assembly, node)
    else:
        raise UserError(f"{node.name}: {node.op_type} cannot be written to .espdl", "rewrite the model without it")


def read_node(restoring: Restoring, node: EspdlNode) -> None:
    """Read one node of the file.

    Raises:
        KeyError, ValueError, TypeError: it contradicts itself, or the runtime computes what no ONNX operator does.
    """
    family = _family(node.op_type)
    read = read_unary if "lut" in node.attributes else family.read
    read(restoring, node)


def runtime_facts(node: ir.Node) -> tuple[Fact, ...]:
    """What versions of the runtime differ in for an operator."""
    return _family(node.op_type).facts


Readers = Callable[[Any], Iterable[tuple[str, Any]]]


def model_readers(value: ir.Value) -> Iterable[tuple[str, ir.Value]]:
    """Operators that read a value of a model, each with what it writes."""
    return ((use.node.op_type, use.node.outputs[0]) for use in value.uses())


def feeds_channels_last(value: Any, readers: Readers) -> bool:
    """Whether a reader of a value wants its channels last, perhaps behind functions of one value.

    Args:
        value: of a model or of a file.
        readers: the operators that read one, each with what it writes.
    """
    for operator, result in readers(value):
        axes = _family(operator).axes
        if axes == "last" or (axes == "any" and feeds_channels_last(result, readers)):
            return True
    return False
