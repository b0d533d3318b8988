"""How far quantized outputs are from float ones, differentiable in torch, in the units that decode keeps.

The float model is the teacher, so no label is needed. A cell counts by the probability that the float model gives it:
what decode keeps decides, background hardly. Every term is 0 for equal outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from narrowcast.tasks.objects import Objects

__all__ = ["HeadLoss", "at", "divergence", "noise"]

Tensor = Any
Outputs = Mapping[str, Tensor]
#: Cells below this probability of the float model weigh nothing but for their class.
LEAST_PROBABILITY = 0.02
#: Weight of the plain squared error beside the terms in task units.
NOISE_SHARE = 0.1


def noise(outputs: Outputs, teacher: Outputs) -> Tensor:
    """Noise-to-signal power ratio, mean over outputs."""
    ratios = [(outputs[name] - x).square().sum() / (x.square().sum() + 1e-7) for name, x in teacher.items()]
    return torch.stack(ratios).mean()


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of Bernoulli probabilities, elementwise, nats."""
    p = torch.sigmoid(teacher)
    return functional.binary_cross_entropy_with_logits(
        logits, p, reduction="none"
    ) - functional.binary_cross_entropy_with_logits(teacher, p, reduction="none")


def at(x: Tensor, cells: Tensor) -> Tensor:
    """(C, n) values of a (1, C, H, W) tensor."""
    return x[0].flatten(1)[:, cells]


class HeadLoss:
    """Of a task that finds objects, on its raw outputs (1, C, H, W).

    Args:
        task: knows the layout, and adds what it finds beside boxes and classes.
        device: of torch.
    """

    def __init__(self, task: Objects, device: str = "cpu") -> None:
        self.task, self.head = task, task.spec
        self.bins = torch.arange(self.head.reg_max, dtype=torch.float32, device=device)

    def __call__(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Loss of one image: class divergence, 1 - IoU, and what the task adds, a unit of float probability."""
        weights, total = self._weights(teacher)
        loss = NOISE_SHARE * noise(outputs, teacher)
        for stride, weight in zip(self.head.strides, weights, strict=True):
            loss = loss + divergence(outputs[f"cls_s{stride}"], teacher[f"cls_s{stride}"]).sum() / total
            cells = weight > 0
            if not bool(cells.any()):
                continue
            share = weight[cells] / total
            new, old = (self._sides(x[f"box_s{stride}"], cells) for x in (outputs, teacher))
            loss = loss + (share * (1 - _overlap(new, old))).sum()
            extra = self.task.taught_cells(outputs, teacher, stride, cells, old)
            if extra is not None:
                loss = loss + (share * extra).sum()
        whole = self.task.taught_whole(outputs, teacher, weights)
        return loss if whole is None else loss + whole

    def _weights(self, teacher: Outputs) -> tuple[list[Tensor], Tensor]:
        """Weight of every cell of each stride, (H * W,), and their sum (at least 1)."""
        found = []
        for stride in self.head.strides:
            best = torch.sigmoid(teacher[f"cls_s{stride}"][0].flatten(1).amax(0))
            found.append(torch.where(best >= LEAST_PROBABILITY, best, torch.zeros_like(best)))
        return found, torch.stack([weight.sum() for weight in found]).sum().clamp(min=1.0)

    def _sides(self, box: Tensor, cells: Tensor) -> Tensor:
        """Left, top, right, bottom distances in cells, (4, n): the mean of each side's distribution."""
        raw = at(box, cells)
        if self.head.reg_max == 1:
            return raw
        spread = raw.reshape(4, self.head.reg_max, -1).softmax(1)
        return (spread * self.bins[:, None]).sum(1)


def _overlap(one: Tensor, other: Tensor) -> Tensor:
    """IoU of boxes given as (4, n) distances from the same points."""
    least = torch.minimum(one, other)
    inner = (least[0] + least[2]).clamp(min=0) * (least[1] + least[3]).clamp(min=0)
    areas = [(x[0] + x[2]).clamp(min=0) * (x[1] + x[3]).clamp(min=0) for x in (one, other)]
    return inner / (areas[0] + areas[1] - inner).clamp(min=1e-6)
