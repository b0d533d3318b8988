"""A plan to a better plan, and weights to better weights."""

from narrowcast.improve.judge import Judge
from narrowcast.improve.ranges import refine_ranges
from narrowcast.improve.reconstruct import reconstruct
from narrowcast.improve.steps import EFFORTS, LEAST_IMAGES, Effort, Step, recover, split

__all__ = [
    "EFFORTS",
    "LEAST_IMAGES",
    "Effort",
    "Judge",
    "Step",
    "reconstruct",
    "recover",
    "refine_ranges",
    "split",
]
