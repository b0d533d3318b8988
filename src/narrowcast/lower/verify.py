"""Is the integer graph in onnxruntime the same as the slow reference? Node by node, on real inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.base.progress import phase
from narrowcast.chips.schema import Target
from narrowcast.lower.integer import IntegerGraph, IntegerRunner
from narrowcast.lower.reference import run_reference
from narrowcast.ops.builder import Op
from narrowcast.plan.types import Plan

__all__ = ["VerifyRow", "verify"]


@dataclass
class VerifyRow:
    """One integer tensor over all images.

    Attributes:
        tensor: value name, or edge key of a requantized input.
        node: the node that makes it, empty for a graph input.
        op_type: of that node; ``"RequantizeLinear"`` for an edge.
        differing: how many values differ.
        total: how many values there are.
        largest: largest difference, in steps.
    """

    tensor: str
    node: str
    op_type: str
    differing: int = 0
    total: int = 0
    largest: int = 0


@phase("verify")
def verify(
    model: ir.Model,
    plan: Plan,
    target: Target,
    graph: IntegerGraph,
    images: Iterable[NDArray[Any]],
    *,
    threads: int = 0,
    level: str = "all",
) -> list[VerifyRow]:
    """Compare every integer tensor of an integer graph with the reference.

    Each node of the reference reads the tensors that onnxruntime computed ("teacher forcing"), so a difference
    shows at the node that makes it and nowhere else. The graph as it is shipped (without extra outputs, and thus
    perhaps optimized otherwise) runs too and its outputs are compared as well, in rows named ``<output> (shipped)``.

    Args:
        model: the prepared graph.
        plan: its encodings.
        target: the chip's rules.
        graph: the integer graph of these.
        images: inputs as the integer graph takes them.
        threads: of onnxruntime; 0 for all cores.
        level: of onnxruntime's optimizations.

    Returns:
        One row a tensor, in graph order.

    Raises:
        UserError: the plan is not that of the integer graph.
    """
    lost = next((name for name in graph.encodings if name not in plan.tensors and name not in plan.edges), None)
    if lost is not None:
        raise UserError(f"the plan says nothing of {lost}, which the integer graph holds", "quantize again")
    makers = _makers(model.graph)
    rows: dict[str, VerifyRow] = {}
    shipped, full = (IntegerRunner(graph, threads, level, all_tensors) for all_tensors in (False, True))
    (input_name,) = graph.inputs
    for image in images:
        found = full.integers(image)
        expected = run_reference(model, plan, target, {input_name: image}, found)
        for name in found:
            node, op_type = makers[name] if name in makers else (name.rsplit("#", 1)[0], "RequantizeLinear")
            _count(rows.setdefault(name, VerifyRow(name, node, op_type)), found[name], expected[name])
        for name, actual in shipped.run(image).items():
            if graph.outputs[name] is not None or actual.dtype.kind in "iub":
                row = rows.setdefault(f"{name} (shipped)", VerifyRow(f"{name} (shipped)", *makers[name]))
                _count(row, actual, expected[name])
    return list(rows.values())


def _makers(graph: ir.Graph) -> dict[str, tuple[str, str]]:
    makers = {str(value.name): ("", Op.QUANTIZE) for value in graph.inputs}
    for node in graph:
        makers.update({str(value.name): (str(node.name), node.op_type) for value in node.outputs})
    return makers


def _count(row: VerifyRow, actual: NDArray[Any], expected: NDArray[Any]) -> None:
    if actual.shape != expected.shape:
        raise AssertionError(f"{row.tensor}: shape {actual.shape}, the reference has {expected.shape}")
    distance = np.abs(actual.astype(np.int64) - expected.astype(np.int64))
    row.differing += int(np.count_nonzero(distance))
    row.total += distance.size
    row.largest = max(row.largest, int(distance.max(initial=0)))
