"""What a version of ESP-DL can do with a model, before anything slow starts.

The target's rules (``chips/*.yaml``) say which operators run in which types; the facts here are about versions of
the runtime and about how a plan uses them. Sources: ESP-DL's operator table of 2026-06 and its changelog.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.chips.schema import Target
from narrowcast.chips.support import Support, support
from narrowcast.deploy.espdl.writer import build_espdl
from narrowcast.ops.net import constant_of
from narrowcast.plan.drafting import read_encoding
from narrowcast.plan.types import Plan

__all__ = ["FACTS", "Fact", "RuntimeRow", "check_runtime"]

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class RuntimeRow:
    """One finding.

    Attributes:
        node: its name; of an input for the model as a whole.
        op_type: operator, ``"Input"`` for an input.
        type: representation that the finding is about, ``"--"`` when it does not matter.
        severity: ``"error"``: it would not run or compute something else; ``"warning"``: it may.
        problem: one clause.
        remedy: what to do.
    """

    node: str
    op_type: str
    type: str
    severity: Severity
    problem: str
    remedy: str


@dataclass(frozen=True)
class Fact:
    """Something that a version of the runtime lacks.

    Attributes:
        condition: key of what a node does, see :func:`_uses`.
        before: version from which on it works.
        severity: of a finding.
        problem: one clause.
        remedy: what to do.
    """

    condition: str
    before: tuple[int, ...]
    severity: Severity
    problem: str
    remedy: str


FACTS: tuple[Fact, ...] = (
    Fact(
        "per-channel weights", (3, 3), "error",
        "ESP-DL before 2026-04-15 computes per-channel weights with wrong scales",
        "update ESP-DL to 3.3",
    ),
    Fact(
        "LUT node", (3, 3), "error",
        "16-bit functions and powers are written as LUT nodes, which this ESP-DL does not have",
        "update ESP-DL to 3.3; or keep the node in int8, and write a power as Mul",
    ),
)  # fmt: skip
#: The runtime that is known to read a computed right operand of MatMul in the packed order that is written.
_PACKED_MATMUL_UNTIL = (3, 3)


def check_runtime(
    model: ir.Model, target: Target, plan: Plan | None = None, runtime: str | None = None
) -> list[RuntimeRow]:
    """Everything that would go wrong on the chip.

    Args:
        model: prepared graph.
        target: the chip.
        plan: encodings, if there are any yet; without one every node counts as int8.
        runtime: version of ESP-DL, e.g. ``"3.3"``; the newest known by default.

    Returns:
        Findings in graph order; none means that the model can be written and runs as simulated.

    Raises:
        UserError: an unknown version.
    """
    version = _number(runtime or target.runtime.versions[-1], target)
    rows = list(_inputs(model.graph))
    for node in model.graph:
        verdict = support(node, target, runtime)
        if not verdict.supported:
            rows.append(_row(node, "--", verdict.reason, verdict.remedy))
            continue
        rows.extend(_types(node, verdict, target, plan))
        rows.extend(_facts(node, plan, target, version))
        rows.extend(_details(node, plan, version))
    if plan is not None and not any(row.severity == "error" for row in rows):
        rows.extend(_trial(model, target, plan, runtime))
    return rows


def _number(runtime: str, target: Target) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in runtime.split("."))
    except ValueError as error:
        known = ", ".join(target.runtime.versions)
        raise UserError(f"{runtime!r} is no version of {target.runtime.name}", f"known are {known}") from error


def _row(node: ir.Node, kind: str, problem: str, remedy: str, severity: Severity = "error") -> RuntimeRow:
    return RuntimeRow(str(node.name), node.op_type, kind, severity, problem, remedy)


def _inputs(graph: ir.Graph) -> Iterator[RuntimeRow]:
    for value in graph.inputs:
        sizes = list(value.shape) if value.shape is not None else []
        if not all(isinstance(size, int) for size in sizes):
            yield RuntimeRow(str(value.name), "Input", "--", "error", "a dynamic shape", "export it with fixed sizes")
        elif len(sizes) > 2 and sizes[0] != 1:
            problem = f"batch {sizes[0]}, ESP-DL has only 1"
            yield RuntimeRow(str(value.name), "Input", "--", "error", problem, "export it with batch 1")


def _type_of(node: ir.Node, plan: Plan | None) -> str:
    """The type in which the chip would compute the node: that of its result, which passive nodes inherit."""
    if plan is None:
        return "int8"
    for value in [*node.outputs, *node.inputs]:
        encoding = plan.tensors.get(str(value.name)) if value is not None else None
        if encoding is not None and encoding.dtype in ("int8", "int16"):
            return encoding.dtype
    placement = plan.nodes.get(str(node.name))
    return placement.type if placement is not None else "int8"


def _types(node: ir.Node, verdict: Support, target: Target, plan: Plan | None) -> Iterator[RuntimeRow]:
    if plan is None:
        return
    kind = _type_of(node, plan)
    if kind not in verdict.types:
        allowed = " or ".join(verdict.types)
        remedy = f"pin it, and for a node that moves bytes also its source, to {allowed}"
        yield _row(node, kind, f"{node.op_type} runs in {allowed} only; {verdict.reason}", remedy)


def _uses(node: ir.Node, plan: Plan | None, target: Target) -> Iterator[str]:
    """What a node does that not every version can."""
    kind = _type_of(node, plan)
    exact = () if target.table16 is None else target.table16.exact
    stepped = kind == "int16" and node.op_type in target.tables and node.op_type not in exact
    if stepped or node.op_type == "Pow":
        yield "LUT node"
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or constant_of(weight) is None or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return
    encoding = plan.tensors.get(str(weight.name)) if plan is not None else None
    planned = node.op_type in target.weight.per_channel if encoding is None else encoding.axis is not None
    if planned:
        yield "per-channel weights"


def _facts(node: ir.Node, plan: Plan | None, target: Target, version: tuple[int, ...]) -> Iterator[RuntimeRow]:
    used = set(_uses(node, plan, target))
    for fact in FACTS:
        if fact.condition in used and version < fact.before:
            yield _row(node, _type_of(node, plan), fact.problem, fact.remedy, fact.severity)


def _details(node: ir.Node, plan: Plan | None, version: tuple[int, ...]) -> Iterator[RuntimeRow]:
    kind = _type_of(node, plan)
    if node.op_type == "MatMul" and constant_of(node.inputs[1]) is None and version[:2] > _PACKED_MATMUL_UNTIL:
        yield _row(
            node, kind, "newer ESP-DL may expect the right operand unpacked (native_kn)",
            "compare a test vector on the board", "warning",
        )  # fmt: skip
    if plan is not None:
        yield from _shift(node, plan)


def _shift(node: ir.Node, plan: Plan) -> Iterator[RuntimeRow]:
    """The accumulator is shifted right by ``e_out - e_weight - e_in``; the vector units know no shift to the left."""
    weight = node.inputs[1] if len(node.inputs) > 1 and node.op_type in ("Conv", "ConvTranspose", "Gemm") else None
    source = node.inputs[0]
    if weight is None or source is None:
        return
    inner = read_encoding(node, 0, plan.tensors, plan.edges)
    outer = plan.tensors.get(str(node.outputs[0].name))
    if outer is None:
        outer = next((plan.tensors.get(str(use.node.outputs[0].name)) for use in node.outputs[0].uses()), None)
    scales = plan.tensors.get(str(weight.name))
    if inner is None or outer is None or scales is None or outer.dtype == "int32":
        return
    shift = np.log2(outer.scales) - np.log2(scales.scales) - np.log2(inner.scales)
    if np.min(shift) < 0:
        problem = f"its result would be shifted left by {int(-np.min(shift))} bits"
        yield _row(node, outer.dtype, problem, "calibrate on more images: the result's scale is too fine", "warning")


def _trial(model: ir.Model, target: Target, plan: Plan, runtime: str | None) -> Iterator[RuntimeRow]:
    """Write the file for a try: it costs less than a second."""
    try:
        build_espdl(model, plan, target, runtime=runtime)
    except UserError as error:
        name = error.what.split(":")[0]
        node = next((node for node in model.graph if node.name == name), None)
        kind = "--" if node is None else _type_of(node, plan)
        op_type = "--" if node is None else node.op_type
        yield RuntimeRow(name if node is not None else "--", op_type, kind, "error", error.what, error.remedy)
