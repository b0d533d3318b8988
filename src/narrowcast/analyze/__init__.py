"""Where the accuracy goes: noise, error in task units, sensitivity, and the report."""

from narrowcast.analyze.findings import Analysis, analyze
from narrowcast.analyze.subject import Subject

__all__ = ["Analysis", "Subject", "analyze"]
