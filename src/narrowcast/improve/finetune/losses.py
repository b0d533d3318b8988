"""How far quantized outputs are from float ones, differentiable, in the units that decode keeps.

The float model is the teacher, so no label is needed. A cell counts by the probability that the float model gives it:
what decode keeps decides, background hardly. Every term is 0 for equal outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from narrowcast.analyze.task_units import COCO_SIGMAS, OTHER_SIGMA, PERSON_SHARE
from narrowcast.vision.heads import HeadSpec

__all__ = ["ClassLoss", "HeadLoss", "NoiseLoss", "noise"]

Tensor = Any
Outputs = Mapping[str, Tensor]
#: Cells below this probability of the float model weigh nothing but for their class.
LEAST_PROBABILITY = 0.02
#: Weight of the plain squared error beside the terms in task units.
NOISE_SHARE = 0.1
#: Weight of the visibility of keypoints, which no metric reads.
VISIBILITY_SHARE = 0.1


def noise(outputs: Outputs, teacher: Outputs) -> Tensor:
    """Noise-to-signal power ratio, mean over outputs."""
    ratios = [(outputs[name] - x).square().sum() / (x.square().sum() + 1e-7) for name, x in teacher.items()]
    return torch.stack(ratios).mean()


def _divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of Bernoulli probabilities, elementwise, nats."""
    p = torch.sigmoid(teacher)
    return functional.binary_cross_entropy_with_logits(
        logits, p, reduction="none"
    ) - functional.binary_cross_entropy_with_logits(teacher, p, reduction="none")


class NoiseLoss:
    """For outputs that nobody knows: their noise."""

    def __call__(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Loss of one image."""
        return noise(outputs, teacher)


class ClassLoss:
    """For classifiers: divergence of the class probabilities, given logits."""

    def __call__(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Loss of one image, nats."""
        (name,) = teacher
        expected, actual = (x[name].flatten().log_softmax(0) for x in (teacher, outputs))
        return (expected.exp() * (expected - actual)).sum()


class HeadLoss:
    """For detection, keypoints and masks, on the raw outputs (1, C, H, W) of a known head.

    Args:
        head: their layout.
        device: of torch.
    """

    def __init__(self, head: HeadSpec, device: str = "cpu") -> None:
        self.head = head
        self.bins = torch.arange(head.reg_max, dtype=torch.float32, device=device)
        count = head.keypoint_shape[0] if head.keypoint_shape is not None else 0
        sigmas = COCO_SIGMAS if count == len(COCO_SIGMAS) else [OTHER_SIGMA] * count
        self.spread = torch.tensor(np.square(2 * np.asarray(sigmas)), dtype=torch.float32, device=device)[:, None]

    def __call__(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        """Loss of one image: class divergence, 1 - IoU, keypoint or mask error a unit of float probability."""
        weights, total = self._weights(teacher)
        loss = NOISE_SHARE * noise(outputs, teacher)
        for stride, weight in zip(self.head.strides, weights, strict=True):
            loss = loss + _divergence(outputs[f"cls_s{stride}"], teacher[f"cls_s{stride}"]).sum() / total
            cells = weight > 0
            if not bool(cells.any()):
                continue
            share = weight[cells] / total
            new, old = (self._sides(x[f"box_s{stride}"], cells) for x in (outputs, teacher))
            loss = loss + (share * (1 - _overlap(new, old))).sum()
            if self.head.extra == "kpt":
                area = PERSON_SHARE * ((old[0] + old[2]) * (old[1] + old[3])).clamp(min=1e-3) * stride * stride
                new, old = (_cells(x[f"kpt_s{stride}"], cells) for x in (outputs, teacher))
                loss = loss + (share * self._keypoints(new, old, area, stride)).sum()
        return loss + self._masks(outputs, teacher, weights) if self.head.extra == "mask" else loss

    def _weights(self, teacher: Outputs) -> tuple[list[Tensor], Tensor]:
        """Weight of every cell of each stride, (H * W,), and their sum (at least 1)."""
        found = []
        for stride in self.head.strides:
            best = torch.sigmoid(teacher[f"cls_s{stride}"][0].flatten(1).amax(0))
            found.append(torch.where(best >= LEAST_PROBABILITY, best, torch.zeros_like(best)))
        return found, torch.stack([weight.sum() for weight in found]).sum().clamp(min=1.0)

    def _sides(self, box: Tensor, cells: Tensor) -> Tensor:
        """Left, top, right, bottom distances in cells, (4, n): the mean of each side's distribution."""
        raw = _cells(box, cells)
        if self.head.reg_max == 1:
            return raw
        spread = raw.reshape(4, self.head.reg_max, -1).softmax(1)
        return (spread * self.bins[:, None]).sum(1)

    def _keypoints(self, new: Tensor, old: Tensor, area: Tensor, stride: int) -> Tensor:
        """Error of the points of each cell, (n,): e / (1 + e), with 1 - exp(-e) being 1 - OKS."""
        assert self.head.keypoint_shape is not None
        count, dims = self.head.keypoint_shape
        new, old = new.reshape(count, dims, -1), old.reshape(count, dims, -1)
        squared = ((new[:, :2] - old[:, :2]) * (2.0 * stride)).square().sum(1)
        error = squared / (2 * area * self.spread)
        error = error / (1 + error)  # as 1 - exp(-e) near 0, with a gradient far from it
        if dims < 3:
            return error.mean(0)
        sure = torch.sigmoid(old[:, 2])
        points = (sure * error).sum(0) / sure.sum(0).clamp(min=1e-6)
        return points + VISIBILITY_SHARE * _divergence(new[:, 2], old[:, 2]).mean(0)

    def _masks(self, outputs: Outputs, teacher: Outputs, weights: list[Tensor]) -> Tensor:
        """Noise-to-signal ratio of the mask logits, as far as it comes from coefficients and from prototypes."""
        proto = teacher["proto"][0].flatten(1)
        gram = proto @ proto.T / proto.shape[1]
        noise_, signal, outer = proto.new_zeros(()), proto.new_zeros(()), torch.zeros_like(gram)
        for stride, weight in zip(self.head.strides, weights, strict=True):
            cells = weight > 0
            old = _cells(teacher[f"mask_s{stride}"], cells)
            change = _cells(outputs[f"mask_s{stride}"], cells) - old
            noise_ = noise_ + (weight[cells] * (change * (gram @ change)).sum(0)).sum()
            signal = signal + (weight[cells] * (old * (gram @ old)).sum(0)).sum()
            outer = outer + (old * weight[cells]) @ old.T
        if float(signal) <= 0:
            return proto.new_zeros(())
        moved = outputs["proto"][0].flatten(1) - proto
        below = (proto * (outer @ proto)).sum().clamp(min=1e-9)
        return noise_ / signal + (moved * (outer @ moved)).sum() / below


def _cells(x: Tensor, cells: Tensor) -> Tensor:
    """(C, n) values of a (1, C, H, W) tensor."""
    return x[0].flatten(1)[:, cells]


def _overlap(one: Tensor, other: Tensor) -> Tensor:
    """IoU of boxes given as (4, n) distances from the same points."""
    least = torch.minimum(one, other)
    inner = (least[0] + least[2]).clamp(min=0) * (least[1] + least[3]).clamp(min=0)
    areas = [(x[0] + x[2]).clamp(min=0) * (x[1] + x[3]).clamp(min=0) for x in (one, other)]
    return inner / (areas[0] + areas[1] - inner).clamp(min=1e-6)
