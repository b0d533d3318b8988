"""Error in the units of the task: pixels, probability, overlap, on what decode keeps of the float model's output."""

from __future__ import annotations

from collections.abc import Sequence

from narrowcast.tasks.errors import TaskError
from narrowcast.tasks.task import Look, Outputs, Task

__all__ = ["TaskJudge"]


class TaskJudge:
    """Compares quantized outputs with float ones in the units of the task.

    Args:
        meaning: of the outputs.
        references: float model outputs of each image by name: raw head tensors (1, C, H, W) float32, or class scores.
        how: they are looked at.

    Attributes:
        meaning: the task that is judged by: noise where the float model finds nothing in any image.
        references: as given.
        detections: how many objects the float model finds in each image.
    """

    def __init__(self, meaning: Task, references: Sequence[Outputs], how: Look) -> None:
        self.meaning, self.references = meaning, references
        self.seen = [meaning.look(entry, how) for entry in references]
        counts = [meaning.counts(seen) for seen in self.seen]
        self.detections = [count for count, _ in counts]
        if not any(map(any, counts)):
            self.meaning, self.seen = Task(), list(references)

    def judge(self, index: int, outputs: Outputs) -> TaskError:
        """Error of one image.

        Args:
            index: of the image in the references.
            outputs: quantized outputs as float32, by the same names and in the same shapes.
        """
        return self.meaning.error(self.seen[index], outputs)
