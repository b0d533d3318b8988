"""Graph and plan to something that runs."""

from narrowcast.engine.qdq import lower_qdq

__all__ = ["lower_qdq"]
