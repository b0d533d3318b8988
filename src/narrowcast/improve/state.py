"""What the steps of recovery hand on: a graph with its weights, a plan, and the factors of the outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import onnx
import onnx_ir as ir

from narrowcast.calibrate.statistics import TensorStatistics
from narrowcast.lower.factors import Factors, undo_factors
from narrowcast.lower.qdq import lower_qdq
from narrowcast.plan.types import Encoding, Plan

__all__ = ["Planner", "State"]

#: Makes the plan (and notes) of a state's graph with its chosen encodings and its own statistics.
Planner = Callable[["State"], tuple[Plan, list[str]]]


@dataclass(frozen=True)
class State:
    """One quantized network.

    Attributes:
        model: prepared graph; its weights may differ from the user's model.
        plan: its encodings.
        notes: of the plan.
        factors: factors folded into the weights that make an output.
        statistics: of tensors whose values differ from those of the user's model.
        chosen: encodings decided apart from the calibration method, by index of the group in the structure.
        changed: the weights differ from the user's model.
    """

    model: ir.Model
    plan: Plan
    notes: tuple[str, ...] = ()
    factors: Factors = field(default_factory=dict)
    statistics: Mapping[str, TensorStatistics] = field(default_factory=dict)
    chosen: Mapping[int, Encoding] = field(default_factory=dict)
    changed: bool = False

    def planned(self, planner: Planner) -> State:
        """The same with a new plan for its graph, its chosen encodings and its statistics."""
        plan, notes = planner(self)
        return replace(self, plan=plan, notes=tuple(notes))

    def lower(self) -> tuple[onnx.ModelProto, bool]:
        """QDQ graph whose outputs are those of the user's model, and whether it needs the contrib domain."""
        proto, contrib = lower_qdq(self.model, self.plan)
        return undo_factors(proto, self.factors), contrib
