"""Where the accuracy goes: noise, error in task units, sensitivity, and the report."""

from narrowcast.analyze.findings import Analysis, analyze
from narrowcast.analyze.subject import Subject
from narrowcast.analyze.task_units import TaskError, TaskJudge, combine, pixels_per_lsb

__all__ = ["Analysis", "Subject", "TaskError", "TaskJudge", "analyze", "combine", "pixels_per_lsb"]
