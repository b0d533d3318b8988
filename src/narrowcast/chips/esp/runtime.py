"""What a version of ESP-DL cannot do with a model, before anything slow starts.

The target's rules (``chips/*.yaml``) say which operators run in which types; facts about versions of the runtime stand
with the families of operators. Sources: ESP-DL's operator table of 2026-06 and its changelog.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from narrowcast.chips.esp.families import runtime_facts
from narrowcast.chips.placement import RuntimeRow
from narrowcast.chips.schema import Target
from narrowcast.chips.support import runtime_version, support

__all__ = ["check_runtime"]


def check_runtime(model: ir.Model, target: Target, runtime: str | None = None) -> list[RuntimeRow]:
    """What the runtime would refuse or compute wrongly if every node were int8.

    Args:
        model: prepared graph.
        target: the chip.
        runtime: version of ESP-DL, e.g. ``"3.3"``; the newest known by default.

    Returns:
        Findings in graph order.

    Raises:
        UserError: an unknown version.
    """
    version = runtime_version(runtime, target)
    rows = list(_inputs(model.graph))
    for node in model.graph:
        name, verdict = str(node.name), support(node, target, runtime)
        if not verdict.supported:
            rows.append(RuntimeRow(name, node.op_type, "--", "error", verdict.reason, verdict.remedy))
            continue
        rows += [
            RuntimeRow(name, node.op_type, "int8", fact.severity, fact.problem, fact.remedy)
            for fact in runtime_facts(node)
            if not fact.works(version) and fact.concerns(node, None, target)
        ]
    return rows


def _inputs(graph: ir.Graph) -> Iterator[RuntimeRow]:
    for value in graph.inputs:
        sizes = list(value.shape) if value.shape is not None else []
        if not all(isinstance(size, int) for size in sizes):
            yield RuntimeRow(str(value.name), "Input", "--", "error", "a dynamic shape", "export it with fixed sizes")
        elif len(sizes) > 2 and sizes[0] != 1:
            problem = f"batch {sizes[0]}, ESP-DL has only 1"
            yield RuntimeRow(str(value.name), "Input", "--", "error", problem, "export it with batch 1")
