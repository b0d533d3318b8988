"""What a model's outputs mean, one file a task: its head in a graph, decode, errors, metrics; numpy and OpenCV only.

Nobody else names a task. Another one is a file with a class that :func:`register` decorates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from narrowcast.tasks.errors import QUANTITIES, Quantity, TaskError, combine, shown
from narrowcast.tasks.task import TASKS, Cut, Ends, Family, Given, HeadSpec, Look, Tail, Task, TaskJudge, register

# isort: off
from narrowcast.tasks import detect, pose, segment, classify  # noqa: F401  (in the order in which they are looked for)

# isort: on
from narrowcast.tasks.pose import COCO_SKELETON

__all__ = [
    "COCO_SKELETON", "QUANTITIES", "TASKS", "UNSUPPORTED", "Cut", "Ends", "Family", "Given", "HeadSpec", "Look",
    "Quantity", "Tail", "Task", "TaskError", "TaskJudge", "combine", "head_at", "meaning_of", "register", "shown",
    "whole_graph",
]  # fmt: skip

register(Task)
#: Tasks that a file may name and that nobody here knows, in words.
UNSUPPORTED = {"obb": "oriented boxes"}


def meaning_of(task: str, head: HeadSpec | Mapping[str, Any] | None = None, softmax_missing: bool = False) -> Task:
    """The task of a record, see :meth:`Task.record`.

    Raises:
        ValueError: no such task, or a head that is another's.
    """
    spec = HeadSpec.from_dict(head) if isinstance(head, Mapping) else head
    if task not in TASKS:
        raise ValueError(f"the task is {task!r}")
    if spec is not None and spec.task != task:
        raise ValueError(f"the head's task is {spec.task!r}")
    return TASKS[task](spec, softmax_missing)


def head_at(ends: Ends, only: str = "") -> Cut | str:
    """The head at the end of a graph, of one task or any, or one clause that says why there is none."""
    reasons = []
    for task in [TASKS[only]] if only else TASKS.values():
        found = task.cut(ends)
        if isinstance(found, Cut):
            return found
        reasons += [found] if found else []
    return reasons[0] if reasons else f"it has no {TASKS[only].kind} head" if only else "no task has such a head"


def whole_graph(ends: Ends) -> Task:
    """What the outputs of a graph mean that stays whole."""
    return next((found for task in TASKS.values() if (found := task.whole(ends)) is not None), Task())
