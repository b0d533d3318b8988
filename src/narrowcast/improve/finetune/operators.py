"""What every operator computes, in torch: one rule an operator, in float."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import onnx_ir as ir
import torch

from narrowcast.base.errors import UserError
from narrowcast.improve.finetune import shapes
from narrowcast.ops.facts import Kind, facts

__all__ = ["check_operators", "compute", "is_moving"]

Tensor = Any
Rule = Callable[[ir.Node, list[Tensor]], Any]

_RULES: dict[Kind, Rule] = {
    Kind.CONVOLUTION: shapes.convolution,
    Kind.TRANSPOSED: shapes.transposed_convolution,
    Kind.LINEAR: shapes.gemm,
    Kind.AVERAGE_POOL: shapes.average_pool,
    Kind.MAX_POOL: shapes.max_pool,
    Kind.MEAN: partial(shapes.reduced, how="mean"),
    Kind.TOTAL: partial(shapes.reduced, how="sum"),
    Kind.LARGEST: partial(shapes.reduced, how="amax"),
    Kind.LEAST: partial(shapes.reduced, how="amin"),
    Kind.RESIZE: shapes.resize,
}


def is_moving(node: ir.Node) -> bool:
    """Whether the outputs hold values of the inputs, so that one encoding on both sides rounds nothing."""
    return facts(node).kind in (Kind.TURN, Kind.MOVE, Kind.JOIN, Kind.MAX_POOL)


def _rule(node: ir.Node) -> Rule | None:
    entry = facts(node)
    if entry.torch is not None:
        return partial(entry.torch, torch)
    if entry.kind is Kind.MOVE:
        return shapes.reshaped if entry.whole else None
    return _RULES.get(entry.kind)


def check_operators(graph: ir.Graph) -> None:
    """Raise now if a node has no rule."""
    for node in graph:
        if _rule(node) is None:
            raise UserError(
                f"finetune has no rule for {node.op_type} ({node.name})",
                "leave finetune out for this model, or use tune",
            )


def compute(node: ir.Node, operands: list[Tensor]) -> list[Tensor]:
    """Outputs of a node for its operands (constants too), in order; float32."""
    rule = _rule(node)
    if rule is None:
        raise AssertionError(f"{node.name} was not checked")
    found = rule(node, operands)
    return found if isinstance(found, list) else [found]
