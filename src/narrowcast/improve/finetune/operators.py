"""What every operator computes, in torch: one rule an operator, in float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch.nn import functional

from narrowcast.base.errors import UserError
from narrowcast.improve.finetune import shapes
from narrowcast.ops.net import constant_at

__all__ = ["MOVING", "RULES", "check_operators", "compute"]

Tensor = Any
Rule = Callable[[ir.Node, list[Tensor]], Any]

#: Operators whose outputs hold values of their inputs, so that one encoding on both sides rounds nothing.
MOVING = (
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Split", "Slice", "Concat", "MaxPool",
)  # fmt: skip


def _clip(node: ir.Node, x: list[Tensor]) -> Tensor:
    def bound(index: int, name: str) -> float | None:
        if name in node.attributes:
            return float(node.attributes.get_float(name))
        array = constant_at(node, index)
        return None if array is None else float(array.reshape(-1)[0])

    return x[0].clamp(bound(1, "min"), bound(2, "max"))


def _hard_sigmoid(node: ir.Node, x: list[Tensor]) -> Tensor:
    return (node.attributes.get_float("alpha", 0.2) * x[0] + node.attributes.get_float("beta", 0.5)).clamp(0, 1)


def _gelu(node: ir.Node, x: list[Tensor]) -> Tensor:
    return functional.gelu(x[0], approximate=node.attributes.get_string("approximate", "none") or "none")


RULES: dict[str, Rule] = {
    "Add": lambda node, x: x[0] + x[1],
    "AveragePool": shapes.average_pool,
    "Clip": _clip,
    "Concat": lambda node, x: torch.cat(x, node.attributes.get_int("axis", 0)),
    "Conv": shapes.convolution,
    "ConvTranspose": shapes.transposed_convolution,
    "Div": lambda node, x: x[0] / x[1],
    "Exp": lambda node, x: x[0].exp(),
    "Flatten": shapes.reshaped,
    "Gelu": _gelu,
    "Gemm": shapes.gemm,
    "GlobalAveragePool": lambda node, x: x[0].mean(list(range(2, x[0].dim())), keepdim=True),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda node, x: functional.hardswish(x[0]),
    "Identity": lambda node, x: x[0],
    "LeakyRelu": lambda node, x: functional.leaky_relu(x[0], node.attributes.get_float("alpha", 0.01)),
    "MatMul": lambda node, x: x[0] @ x[1],
    "MaxPool": shapes.max_pool,
    "Mul": lambda node, x: x[0] * x[1],
    "Neg": lambda node, x: -x[0],
    "Reciprocal": lambda node, x: x[0].reciprocal(),
    "ReduceMean": shapes.reduce_mean,
    "ReduceSum": shapes.reduce_sum,
    "Relu": lambda node, x: functional.relu(x[0]),
    "Reshape": shapes.reshaped,
    "Resize": shapes.resize,
    "Sigmoid": lambda node, x: torch.sigmoid(x[0]),
    "Silu": lambda node, x: functional.silu(x[0]),
    "Slice": shapes.slices,
    "Softmax": lambda node, x: torch.softmax(x[0], node.attributes.get_int("axis", -1)),
    "Split": shapes.split,
    "Sqrt": lambda node, x: x[0].sqrt(),
    "Squeeze": shapes.reshaped,
    "Sub": lambda node, x: x[0] - x[1],
    "Tanh": lambda node, x: torch.tanh(x[0]),
    "Transpose": lambda node, x: x[0].permute(
        list(node.attributes.get_ints("perm", ()) or range(x[0].dim() - 1, -1, -1))
    ),
    "Unsqueeze": shapes.reshaped,
}


def check_operators(graph: ir.Graph) -> None:
    """Raise now if a node has no rule."""
    for node in graph:
        if node.op_type not in RULES:
            raise UserError(
                f"finetune has no rule for {node.op_type} ({node.name})",
                "leave finetune out for this model, or use tune",
            )


def compute(node: ir.Node, operands: list[Tensor]) -> list[Tensor]:
    """Outputs of a node for its operands (constants too), in order; float32."""
    found = RULES[node.op_type](node, operands)
    return found if isinstance(found, list) else [found]
