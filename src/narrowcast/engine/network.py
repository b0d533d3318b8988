"""The quantized network: a graph, its plan for a chip, and the graphs that are made of the two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import onnx
import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.calibrate.statistics import TensorStatistics
from narrowcast.chips.schema import Target
from narrowcast.engine.integer import IntegerGraph, dequantized, lower_integer
from narrowcast.engine.qdq import Factors, lower_qdq, undo_factors, with_factors
from narrowcast.plan.types import Encoding, Plan

__all__ = ["Planner", "QuantizedNetwork"]

#: Makes the plan (and notes) of a network's graph with its chosen encodings and its own statistics.
Planner = Callable[["QuantizedNetwork"], tuple[Plan, list[str]]]


@dataclass(frozen=True)
class QuantizedNetwork:
    """A graph and its plan.

    Attributes:
        model: prepared graph; its weights may differ from the user's model.
        plan: its encodings.
        target: the chip's rules.
        factors: factors folded into the weights that make an output, (C,) by name: what the graph gives there is the
            true value times these.
        changed: the weights differ from the user's model.
        notes: of the plan.
        statistics: of tensors whose values differ from those of the user's model.
        chosen: encodings decided apart from the calibration method, by index of the group in the structure.
    """

    model: ir.Model
    plan: Plan
    target: Target
    factors: Factors = field(default_factory=dict)
    changed: bool = False
    notes: tuple[str, ...] = ()
    statistics: Mapping[str, TensorStatistics] = field(default_factory=dict)
    chosen: Mapping[int, Encoding] = field(default_factory=dict)

    def planned(self, planner: Planner) -> QuantizedNetwork:
        """The same with a new plan for its graph, its chosen encodings and its statistics."""
        plan, notes = planner(self)
        return replace(self, plan=plan, notes=tuple(notes))

    def qdq(self) -> tuple[onnx.ModelProto, bool]:
        """QDQ graph whose outputs are those of the user's model, and whether it needs the contrib domain."""
        proto, contrib = lower_qdq(self.model, self.plan)
        return undo_factors(proto, self.factors), contrib

    def integers(self, integer_input: bool = False) -> IntegerGraph:
        """The exact integer graph; its input may be the quantized image.

        Raises:
            UserError: a node has no exact integer form.
        """
        graph = lower_integer(self.model, self.plan, self.target, integer_input=integer_input)
        return with_factors(graph, self.factors)

    def best(self) -> tuple[onnx.ModelProto, bool]:
        """The graph that tells best what the chip gives, with float outputs, and whether it holds the exact integers;
        otherwise it is the QDQ graph."""
        try:
            return dequantized(self.integers()), True
        except UserError:
            return self.qdq()[0], False
