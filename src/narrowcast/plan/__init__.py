"""Ranges and a target give the plan: how every tensor is represented and where every node runs."""

from narrowcast.plan.drafting import Draft, draft
from narrowcast.plan.files import ExactPins, Pins, TensorPin, plan_to_json, read_pins, read_plan
from narrowcast.plan.planning import finish, replan
from narrowcast.plan.types import DTYPES, Encoding, Placement, Plan, edge_key

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
