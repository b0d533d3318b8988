"""A plan to a better plan, and weights to better weights."""

from narrowcast.improve.judge import Judge
from narrowcast.improve.reconstruct import Corrected, reconstruct
from narrowcast.improve.refine import refine_ranges
from narrowcast.improve.state import Planner, State
from narrowcast.improve.steps import EFFORTS, LEAST_IMAGES, Effort, Step, recover, split

__all__ = [
    "EFFORTS",
    "LEAST_IMAGES",
    "Corrected",
    "Effort",
    "Judge",
    "Planner",
    "State",
    "Step",
    "reconstruct",
    "recover",
    "refine_ranges",
    "split",
]
