"""Assignment, losses and the training loop of the pose network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from samples_training.pose_network import BINS, KEYPOINTS, STRIDES, PoseNetwork, anchors, distances

#: COCO's spread of human labels for each keypoint, as a share of the object's scale.
SIGMAS = torch.tensor([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
MIRRORED = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
#: Longer box side in pixels up to which a stride is responsible; around a limit both neighbours are.
REACH = ((0.0, 84.0), (72.0, 190.0), (160.0, 1e9))


def assign(boxes: Tensor, valid: Tensor, centers: Tensor, strides: Tensor) -> tuple[Tensor, Tensor]:
    """Cells within 1.6 strides of the box centre learn the object; the smaller object wins a shared cell.

    Args:
        boxes: (B, M, 4) x0, y0, x1, y1 in pixels.
        valid: (B, M) which rows are objects.
        centers: (A, 2) cell centres in pixels.
        strides: (A,) pixels.

    Returns:
        (B, A) whether a cell learns an object, and its index.
    """
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    size = boxes[..., 2:] - boxes[..., :2]
    limits = torch.zeros(len(strides), 2)
    for stride, reach in zip(STRIDES, REACH, strict=True):
        limits[strides == stride] = torch.tensor(reach)
    longer = size.amax(-1)[..., None]
    responsible = (longer >= limits[:, 0]) & (longer < limits[:, 1])
    near = ((centers - middle[:, :, None]).abs() < 1.6 * strides[:, None]).all(-1)
    inside = ((centers > boxes[:, :, None, :2]) & (centers < boxes[:, :, None, 2:])).all(-1)
    candidate = responsible & near & inside & valid[..., None]
    cost = torch.where(candidate, size.prod(-1)[..., None], torch.inf)
    smallest, index = cost.min(1)
    return torch.isfinite(smallest), index


def complete_iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and complete IoU (Zheng et al., 2020) of pairs of boxes (N, 4)."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    size_a, size_b = (a[:, 2:] - a[:, :2]).clamp(min=1e-3), b[:, 2:] - b[:, :2]
    iou = common / (size_a.prod(-1) + size_b.prod(-1) - common + 1e-6)
    hull = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    offset = (a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]).square().sum(-1) / 4
    aspect = 4 / torch.pi**2 * (torch.atan(size_a[:, 0] / size_a[:, 1]) - torch.atan(size_b[:, 0] / size_b[:, 1])) ** 2
    weight = (aspect / (1 - iou + aspect + 1e-6)).detach()
    return iou, iou - offset / (hull.square().sum(-1) + 1e-6) - weight * aspect


def losses(raw: tuple[Tensor, Tensor, Tensor], labels: Tensor, sizes: list[tuple[int, int]]) -> dict[str, Tensor]:
    """Loss terms, not yet weighted.

    Args:
        raw: (B, 64, A), (B, 1, A), (B, 51, A) outputs of the head.
        labels: (B, M, 56) rows as :mod:`data` makes them.
        sizes: height and width of the map of each stride.
    """
    box, score, points = (part.float() for part in raw)
    centers, strides = anchors(sizes)
    cells, strides = centers.T, strides[0]
    pixels = cells * strides[:, None]
    chosen, index = assign(labels[..., :4], labels[..., 4] > 0, pixels, strides)
    where = chosen.nonzero()
    batch, cell = where[:, 0], where[:, 1]
    truth = labels[batch, index[chosen]]
    stride = strides[cell, None]
    logits = box.transpose(1, 2)[batch, cell]
    sides = distances(logits) * stride
    at = pixels[cell]
    iou, ciou = complete_iou(torch.cat((at - sides[:, :2], at + sides[:, 2:]), 1), truth[:, :4])
    wanted = (torch.cat((at - truth[:, :2], truth[:, 2:4] - at), 1) / stride).clamp(0, BINS - 1.01)
    target = torch.zeros_like(score[:, 0])
    target[batch, cell] = iou.detach().clamp(min=0.05)
    count = max(1, len(where))
    binary = functional.binary_cross_entropy_with_logits(score[:, 0], target, reduction="none")
    focus = (target - score[:, 0].detach().sigmoid()).abs() ** 1.5 + (target > 0) * 0.1
    raw_points = points.transpose(1, 2)[batch, cell].view(-1, KEYPOINTS, 3)
    keypoint, place, visible = _keypoint_losses(raw_points, cells[cell], stride, truth)
    return {
        "box": (1 - ciou).sum() / count,
        "dfl": _bin_loss(logits, wanted),
        "score": (binary * focus).sum() / count,
        "oks": keypoint,
        "place": place,
        "visible": visible,
    }


def _bin_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Distribution focal loss (Li et al., 2020): cross entropy against the two bins around the distance."""
    lower = wanted.floor()
    share = wanted - lower
    likelihood = logits.view(-1, 4, BINS).log_softmax(-1)
    at_lower = likelihood.gather(-1, lower.long()[..., None])[..., 0]
    at_upper = likelihood.gather(-1, lower.long()[..., None] + 1)[..., 0]
    return -(at_lower * (1 - share) + at_upper * share).mean() if len(wanted) else logits.sum()


def _keypoint_losses(raw: Tensor, cells: Tensor, stride: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One minus object keypoint similarity, distance in shares of the object's size, cross entropy of visibility."""
    labelled = truth[:, 5:].view(-1, KEYPOINTS, 3)
    known = (labelled[..., 2] > 0).float()
    places = (raw[..., :2] * 2 + (cells - 0.5)[:, None]) * stride[:, None]
    squared = (places - labelled[..., :2]).square().sum(-1)
    area = truth[:, 4:5]
    similarity = torch.exp(-squared / (2 * area * (2 * SIGMAS).square() + 1e-6))
    total = known.sum().clamp(min=1)
    scale = (truth[:, 2:4] - truth[:, :2]).amax(-1, keepdim=True)
    distance = ((squared + 1e-3).sqrt() / scale * known).sum() / total
    visible = functional.binary_cross_entropy_with_logits(raw[..., 2], known)
    return ((1 - similarity) * known).sum() / total, distance, visible


def augment(images: Tensor, labels: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mirror half of the batch and change its light; uint8 (B, 3, H, W) to float in 0..1."""
    images, labels = images.float() / 255, labels.clone()
    half = images.shape[0] // 2
    width = images.shape[-1]
    images[:half] = images[:half].flip(-1)
    rows = labels[:half]
    present = (rows[..., 4:5] > 0).float()
    rows[..., [0, 2]] = (width - rows[..., [2, 0]]) * present
    points = rows[..., 5:].view(*rows.shape[:2], KEYPOINTS, 3)[:, :, MIRRORED].clone()
    points[..., 0] = (width - points[..., 0]) * (points[..., 2] > 0)
    rows[..., 5:] = points.flatten(-2)
    gain = torch.from_numpy(random.uniform(0.75, 1.25, (len(images), 3, 1, 1)).astype(np.float32))
    return (images * gain).clamp_(0, 1), labels


def shrunk(images: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Images and labels at another side length, for the quick first part of the training."""
    ratio = size / images.shape[-1]
    if ratio == 1:
        return images, labels
    factors = torch.tensor([ratio] * 4 + [ratio**2] + [ratio, ratio, 1.0] * KEYPOINTS)
    images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
    return images, labels * factors


@dataclass(frozen=True)
class Round:
    """One cycle of the learning rate.

    Attributes:
        phases: steps and image side, one after the other; small images first save time.
        weights: of the loss terms.
        seed: of the order, and of fresh weights.
    """

    phases: tuple[tuple[int, int], ...]
    weights: dict[str, float]
    seed: int = 0


def train(
    images: np.ndarray, labels: np.ndarray, cycle: Round, batch: int, start: PoseNetwork | None = None
) -> PoseNetwork:
    """Train one cycle; returns the running average of the weights.

    Args:
        images: uint8 (N, 3, 256, 256) RGB.
        labels: float32 (N, M, 56).
        cycle: how long, on which sizes, with which weights.
        batch: images a step.
        start: network to begin with; a fresh one by default.
    """
    seed = cycle.seed
    sides = [side for steps, side in cycle.phases for _ in range(steps)]
    steps = len(sides)
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = (start or PoseNetwork()).train().to(memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.08)
    order = np.concatenate([random.permutation(len(images)) for _ in range(steps * batch // len(images) + 1)])
    shown: dict[str, float] = {}
    for step, side in enumerate(sides):
        rows = np.sort(order[step * batch : (step + 1) * batch])
        random.shuffle(rows)
        x, y = augment(torch.from_numpy(images[rows]), torch.from_numpy(labels[rows]), random)
        x, y = shrunk(x, y, side)
        with torch.autocast("cpu", torch.bfloat16):
            raw = network(x.contiguous(memory_format=torch.channels_last))
        terms = losses(raw, y, [(side // stride, side // stride) for stride in STRIDES])
        optimizer.zero_grad()
        sum(cycle.weights[name] * term for name, term in terms.items()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 20.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
        shown = {
            name: 0.95 * shown.get(name, float(term.detach())) + 0.05 * float(term.detach())
            for name, term in terms.items()
        }
        if step % 25 == 24:
            print(
                f"pose {step + 1}/{steps} " + " ".join(f"{name} {value:.3f}" for name, value in shown.items()),
                flush=True,
            )
    return average.module
