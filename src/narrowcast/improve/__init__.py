"""A plan to a better plan."""

from narrowcast.improve.refine import refine_ranges

__all__ = ["refine_ranges"]
