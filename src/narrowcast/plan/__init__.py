"""Ranges and a target give the plan: how every tensor is represented and where every node runs."""

from narrowcast.plan.build import Draft, draft, finish
from narrowcast.plan.files import plan_to_json, read_pins, read_plan
from narrowcast.plan.pins import ExactPins, Pins, TensorPin
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
]
