"""Ranges and a target give the plan: how every tensor is represented and where every node runs."""

from narrowcast.plan.drafting import Draft, draft
from narrowcast.plan.planning import finish, replan
from narrowcast.plan.types import (
    DTYPES,
    Encoding,
    ExactPins,
    Pins,
    Placement,
    Plan,
    TensorPin,
    edge_key,
    plan_to_json,
    read_pins,
    read_plan,
)

__all__ = [
    "DTYPES",
    "Draft",
    "Encoding",
    "ExactPins",
    "Pins",
    "Placement",
    "Plan",
    "TensorPin",
    "draft",
    "edge_key",
    "finish",
    "plan_to_json",
    "read_pins",
    "read_plan",
    "replan",
]
