"""Train and export the two sample models that ship with narrowcast (needs the extra "train": torch).

    python scripts/train_samples.py pose --minutes 10
    python scripts/train_samples.py classify --minutes 4
    python scripts/train_samples.py images

Scenes come from narrowcast.zoo.scenes, so nothing is downloaded. The pose net has the structures that matter for
quantization (SiLU, split-concat blocks, pooling pyramid, attention, DFL head) and ends in the decode arithmetic
of a stock export; the classifier is trained with parallel branches that are folded into plain 3x3 convolutions.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))
from narrowcast.zoo import scenes  # noqa: E402

SAMPLES = ROOT / "src" / "narrowcast" / "zoo" / "samples"
SIZE, REG_MAX, STRIDES, JOINTS = 256, 16, (8, 16, 32), 17
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SIGMAS = torch.tensor([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000


class ConvBlock(nn.Sequential):
    """Convolution, batch normalization, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True):
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.SiLU() if act else nn.Identity(),
        )


class SplitBlock(nn.Module):
    """Half of the channels pass, half go through a residual bottleneck; all are concatenated and mixed."""

    def __init__(self, inputs: int, outputs: int, residual: bool = True) -> None:
        super().__init__()
        self.half = outputs // 2
        self.enter = ConvBlock(inputs, outputs)
        self.inner = nn.Sequential(ConvBlock(self.half, self.half // 2, 3), ConvBlock(self.half // 2, self.half, 3))
        self.leave = ConvBlock(self.half * 3, outputs)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.enter(x).split((self.half, self.half), 1)
        third = self.inner(second)
        return self.leave(torch.cat((first, second, second + third if self.residual else third), 1))


class PoolPyramid(nn.Module):
    """Three max pools in a row, concatenated (He et al., 2014, sequential form)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter, self.leave = ConvBlock(channels, channels // 2), ConvBlock(channels * 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.enter(x)]
        for _ in range(3):
            levels.append(F.max_pool2d(levels[-1], 5, 1, 2))
        return self.leave(torch.cat(levels, 1))


class Attention(nn.Module):
    """Self-attention over all cells with a depthwise position term, and a feed-forward part."""

    def __init__(self, channels: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, channels // heads
        self.key_dim = self.head_dim // 2
        self.qkv = ConvBlock(channels, channels + 2 * self.key_dim * heads, act=False)
        self.position = ConvBlock(channels, channels, 3, groups=channels, act=False)
        self.project = ConvBlock(channels, channels, act=False)
        self.feed = nn.Sequential(ConvBlock(channels, channels * 2), ConvBlock(channels * 2, channels, act=False))

    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        parts = self.qkv(x).view(-1, self.heads, 2 * self.key_dim + self.head_dim, height * width)
        q, k, v = parts.split((self.key_dim, self.key_dim, self.head_dim), 2)
        weights = ((q.transpose(-2, -1) @ k) * self.key_dim**-0.5).softmax(-1)
        mixed = (v @ weights.transpose(-2, -1)).view(-1, channels, height, width)
        mixed = mixed + self.position(v.reshape(-1, channels, height, width))
        x = x + self.project(mixed)
        return x + self.feed(x)


class PoseNet(nn.Module):
    """Backbone, top-down and bottom-up neck, one decoupled head a stride."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(ConvBlock(3, w, 3, 2), ConvBlock(w, w * 2, 3, 2), SplitBlock(w * 2, w * 2))
        self.down8 = nn.Sequential(ConvBlock(w * 2, w * 3, 3, 2), SplitBlock(w * 3, w * 4))
        self.down16 = nn.Sequential(ConvBlock(w * 4, w * 4, 3, 2), SplitBlock(w * 4, w * 4))
        self.down32 = nn.Sequential(ConvBlock(w * 4, w * 6, 3, 2), SplitBlock(w * 6, w * 6), PoolPyramid(w * 6))
        self.attention = Attention(w * 6)
        self.up16, self.up8 = SplitBlock(w * 10, w * 4, False), SplitBlock(w * 8, w * 4, False)
        self.again16, self.out16 = ConvBlock(w * 4, w * 4, 3, 2), SplitBlock(w * 8, w * 4, False)
        self.again32, self.out32 = ConvBlock(w * 4, w * 4, 3, 2), SplitBlock(w * 10, w * 6, False)
        channels = (w * 4, w * 4, w * 6)
        self.box = nn.ModuleList(self._branch(c, w * 2, 4 * REG_MAX) for c in channels)
        self.score = nn.ModuleList(self._branch(c, w * 2, 1) for c in channels)
        self.joints = nn.ModuleList(self._branch(c, w * 3, JOINTS * 3) for c in channels)
        for level, stride in zip(self.score, STRIDES, strict=True):
            nn.init.constant_(level[-1].bias, math.log(2 / (SIZE / stride) ** 2))

    @staticmethod
    def _branch(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            ConvBlock(inputs, inputs, 3, groups=inputs),
            ConvBlock(inputs, hidden),
            ConvBlock(hidden, hidden, 3),
            nn.Conv2d(hidden, outputs, 1),
        )

    def features(self, x: Tensor) -> list[Tensor]:
        p8 = self.down8(self.stem(x))
        p16 = self.down16(p8)
        p32 = self.attention(self.down32(p16))
        t16 = self.up16(torch.cat((F.interpolate(p32, scale_factor=2.0), p16), 1))
        t8 = self.up8(torch.cat((F.interpolate(t16, scale_factor=2.0), p8), 1))
        b16 = self.out16(torch.cat((self.again16(t8), t16), 1))
        return [t8, b16, self.out32(torch.cat((self.again32(b16), p32), 1))]

    def heads(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        parts = zip(self.features(x), self.box, self.score, self.joints, strict=True)
        return [(box(f), score(f), joints(f)) for f, box, score, joints in parts]


class Export(nn.Module):
    """The net with the decode arithmetic of a stock export."""

    def __init__(self, net: PoseNet) -> None:
        super().__init__()
        self.net = net
        centers, strides = cell_centers()
        self.register_buffer("centers", centers.T.contiguous()[None])
        self.register_buffer("strides", strides[None, None])
        self.bins = nn.Conv2d(REG_MAX, 1, 1, bias=False)
        self.bins.weight.data = torch.arange(REG_MAX, dtype=torch.float32).view(1, REG_MAX, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.net.heads(x)
        joints = torch.cat([head[2].view(1, JOINTS * 3, -1) for head in heads], -1)
        flat = torch.cat([torch.cat(head[:2], 1).view(1, 4 * REG_MAX + 1, -1) for head in heads], 2)
        box, score = flat.split((4 * REG_MAX, 1), 1)
        sides = self.bins(box.view(1, 4, REG_MAX, -1).transpose(2, 1).softmax(1)).view(1, 4, -1)
        low, high = self.centers - sides[:, :2], self.centers + sides[:, 2:]
        decoded = torch.cat(((low + high) / 2, high - low), 1) * self.strides
        points = joints.view(1, JOINTS, 3, -1)
        xy = (points[:, :, :2] * 2.0 + (self.centers[:, None] - 0.5)) * self.strides[:, None]
        visible = points[:, :, 2:3].sigmoid()
        return torch.cat((decoded, score.sigmoid(), torch.cat((xy, visible), 2).view(1, JOINTS * 3, -1)), 1)


def cell_centers() -> tuple[Tensor, Tensor]:
    """(anchors, 2) cell centres in cells, (anchors,) strides."""
    centers, strides = [], []
    for stride in STRIDES:
        side = torch.arange(SIZE // stride) + 0.5
        y, x = torch.meshgrid(side, side, indexing="ij")
        centers.append(torch.stack((x.flatten(), y.flatten()), 1))
        strides.append(torch.full((x.numel(),), float(stride)))
    return torch.cat(centers), torch.cat(strides)


def letterboxed(image: np.ndarray, people: Sequence[scenes.Person]) -> tuple[np.ndarray, Tensor, Tensor]:
    """RGB tensor at SIZE, boxes (n, 4) xyxy and keypoints (n, 17, 3) in input pixels."""
    height, width = image.shape[:2]
    ratio = min(SIZE / height, SIZE / width)
    size = round(width * ratio), round(height * ratio)
    left, top = (SIZE - size[0]) // 2, (SIZE - size[1]) // 2
    canvas = np.full((SIZE, SIZE, 3), 114, np.uint8)
    canvas[top : top + size[1], left : left + size[0]] = cv2.resize(image, size)
    boxes = torch.tensor([[p.box[0], p.box[1], p.box[0] + p.box[2], p.box[1] + p.box[3]] for p in people])
    boxes = boxes.reshape(-1, 4) * ratio + torch.tensor([left, top, left, top])
    joints = torch.tensor(np.array([p.keypoints for p in people], np.float32).reshape(-1, JOINTS, 3))
    joints[..., 0] = joints[..., 0] * ratio + left
    joints[..., 1] = joints[..., 1] * ratio + top
    return canvas[..., ::-1].transpose(2, 0, 1), boxes, joints


def pose_loss(
    heads: list[tuple[Tensor, Tensor, Tensor]], truths: list[tuple[Tensor, Tensor]], centers: Tensor, strides: Tensor
) -> Tensor:
    """Binary cross entropy on scores; DFL, IoU and OKS terms on the anchors near the middle of an object."""
    batch = len(truths)
    boxes = torch.cat([h[0].flatten(2) for h in heads], 2).permute(0, 2, 1)
    scores = torch.cat([h[1].flatten(2) for h in heads], 2)[:, 0]
    joints = torch.cat([h[2].flatten(2) for h in heads], 2).permute(0, 2, 1)
    pixels = centers * strides[:, None]
    targets = torch.zeros_like(scores)
    total = torch.zeros(())
    count = 0
    bins = torch.arange(REG_MAX, dtype=torch.float32)
    for index in range(batch):
        truth, points = truths[index]
        if not len(truth):
            continue
        chosen, owner = assign(truth, pixels, strides, boxes[index].detach(), scores[index].detach(), bins)
        if not len(chosen):
            continue
        t = truth[owner]
        s = strides[chosen]
        logits = boxes[index][chosen].view(-1, 4, REG_MAX)
        sides = torch.cat((pixels[chosen] - t[:, :2], t[:, 2:] - pixels[chosen]), 1) / s[:, None]
        sides = sides.clamp(0, REG_MAX - 1.01)
        lower = sides.long()
        share = sides - lower
        logp = logits.log_softmax(-1)
        dfl = -(logp.gather(2, lower[..., None])[..., 0] * (1 - share) + logp.gather(2, lower[..., None] + 1)[..., 0] * share)
        predicted = logits.softmax(-1) @ bins * s[:, None]
        overlap = box_iou(torch.cat((pixels[chosen] - predicted[:, :2], pixels[chosen] + predicted[:, 2:]), 1), t)
        raw = joints[index][chosen].view(-1, JOINTS, 3)
        xy = (raw[..., :2] * 2 + (centers[chosen] - 0.5)[:, None]) * s[:, None, None]
        wanted = points[owner]
        area = ((t[:, 2] - t[:, 0]) * (t[:, 3] - t[:, 1]))[:, None] * 0.53
        distance = (xy - wanted[..., :2]).square().sum(-1) / (area * (2 * SIGMAS) ** 2 * 2 + 1e-6)
        seen = (wanted[..., 2] > 0).float()
        oks = ((1 - torch.exp(-distance)) * seen).sum() / seen.sum().clamp(min=1) * len(chosen)
        near = (torch.sqrt(distance + 1e-6).clamp(max=30) * seen).sum() / seen.sum().clamp(min=1) * len(chosen)
        visible = F.binary_cross_entropy_with_logits(raw[..., 2], (wanted[..., 2] == 2).float(), reduction="none")
        total = total + dfl.mean(1).sum() * 0.6 + (1 - overlap).sum() * 3 + oks * 4 + near * 0.15 + visible.mean(1).sum() * 0.5
        targets[index, chosen] = overlap.detach().clamp(min=0.05)
        count += len(chosen)
    classification = F.binary_cross_entropy_with_logits(scores, targets, reduction="sum")
    return (total + classification) / max(1, count)


def assign(
    truth: Tensor, pixels: Tensor, strides: Tensor, boxes: Tensor, scores: Tensor, bins: Tensor
) -> tuple[Tensor, Tensor]:
    """Task-aligned: the eight anchors inside each object with the best score^0.5 * IoU^4; ties to the better IoU."""
    sides = (boxes.view(-1, 4, REG_MAX).softmax(-1) @ bins) * strides[:, None]
    predicted = torch.cat((pixels - sides[:, :2], pixels + sides[:, 2:]), 1)
    overlap = torch.stack([box_iou(predicted, box.expand_as(predicted)) for box in truth])
    inside = (pixels[None] > truth[:, None, :2]).all(2) & (pixels[None] < truth[:, None, 2:]).all(2)
    reach = (truth[:, 2:] - truth[:, :2]).amax(1)[:, None] < strides[None] * (REG_MAX - 1) * 1.9
    metric = scores.sigmoid()[None].sqrt() * (overlap + 1e-4) ** 4 * (inside & reach)
    best = metric.topk(8, dim=1).indices
    mask = torch.zeros_like(metric).scatter_(1, best, 1.0) * (metric > 0)
    value, owner = (overlap * mask).max(0)
    chosen = (mask.sum(0) > 0).nonzero()[:, 0]
    return chosen, owner[chosen]


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of pairs of boxes (n, 4) xyxy."""
    size = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    inter = size.prod(1)
    area = (a[:, 2:] - a[:, :2]).clamp(min=0).prod(1) + (b[:, 2:] - b[:, :2]).prod(1)
    return inter / (area - inter + 1e-6)


def train(net: nn.Module, step, minutes: float, rate: float, seed: int) -> None:
    """AdamW with one cosine over the time budget; weights are averaged exponentially."""
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.01)
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
    )
    rng = np.random.default_rng(seed)
    start = time.time()
    count, shown = 0, 0.0
    while (spent := (time.time() - start) / (minutes * 60)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, count / 100 + 0.01) * (0.5 + 0.5 * math.cos(math.pi * spent)) + 1e-6
        loss = step(net, rng)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        average.update_parameters(net)
        count += 1
        shown = loss.item() if count == 1 else 0.98 * shown + 0.02 * loss.item()
        if count % 100 == 0:
            print(f"step {count}  {spent:.0%}  loss {shown:.3f}", flush=True)
    net.load_state_dict(average.module.state_dict())


def train_pose(minutes: float) -> None:
    torch.manual_seed(0)
    net = PoseNet()
    print("parameters", sum(p.numel() for p in net.parameters()))
    centers, strides = cell_centers()

    def step(model: nn.Module, rng: np.random.Generator, batch: int = 16) -> Tensor:
        images, truths = [], []
        for _ in range(batch):
            scene = scenes.pose_scene(int(rng.integers(1_000_000, 2**31)))
            tensor, boxes, joints = letterboxed(scene.image, scene.people)
            images.append(torch.from_numpy(np.ascontiguousarray(tensor)))
            truths.append((boxes, joints))
        model.train()
        return pose_loss(model.heads(torch.stack(images).float() / 255), truths, centers, strides)

    train(net, step, minutes, 2e-3, 1)
    net.eval()
    path = SAMPLES / "pose.onnx"
    torch.onnx.export(
        Export(net).eval(), (torch.zeros(1, 3, SIZE, SIZE),), str(path), input_names=["images"], output_names=["output0"],
        opset_version=17, dynamo=False,
    )  # fmt: skip
    describe(
        path,
        {"description": "narrowcast sample pose net on drawn scenes", "author": "narrowcast", "license": "Apache-2.0",
         "task": "pose", "stride": "32", "batch": "1", "imgsz": f"[{SIZE}, {SIZE}]", "names": "{0: 'person'}",
         "kpt_shape": "[17, 3]"},
    )  # fmt: skip


class Branches(nn.Module):
    """RepVGG block (Ding et al., 2021): 3x3, 1x1 and identity in parallel, folded for inference."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.wide = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.point = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        self.same = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](self.wide(x)) + self.norms[1](self.point(x))
        return F.relu(y + self.same(x) if self.same is not None else y)

    def folded(self) -> nn.Sequential:
        weight = self._fold(self.wide.weight, self.norms[0])
        point = self._fold(F.pad(self.point.weight, (1, 1, 1, 1)), self.norms[1])
        kernels = [weight, point]
        if self.same is not None:
            channels = self.wide.in_channels
            identity = torch.zeros(channels, channels, 3, 3)
            identity[torch.arange(channels), torch.arange(channels), 1, 1] = 1
            kernels.append(self._fold(identity, self.same))
        conv = nn.Conv2d(self.wide.in_channels, self.wide.out_channels, 3, self.stride, 1)
        conv.weight.data = sum(kernel for kernel, _ in kernels)
        conv.bias.data = sum(bias for _, bias in kernels)
        return nn.Sequential(conv, nn.ReLU())

    @staticmethod
    def _fold(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        return weight * factor.view(-1, 1, 1, 1), norm.bias - norm.running_mean * factor


class ThingNet(nn.Module):
    """Plain stack of blocks, mean over the map, linear."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 16, 2), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 96, 2), (96, 96, 1))
        self.blocks = nn.Sequential(*(Branches(i, o, s) for i, o, s in widths))
        self.linear = nn.Linear(96, len(scenes.OBJECT_NAMES))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1))


def train_classify(minutes: float) -> None:
    torch.manual_seed(0)
    net = ThingNet()
    print("parameters", sum(p.numel() for p in net.parameters()))
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)

    def step(model: nn.Module, rng: np.random.Generator, batch: int = 48) -> Tensor:
        drawn = [scenes.object_scene(int(rng.integers(1_000_000, 2**31))) for _ in range(batch)]
        labels = np.array([scene.label for scene in drawn])
        images = torch.from_numpy(np.stack([cropped(scene.image) for scene in drawn]).astype(np.float32))
        model.train()
        return F.cross_entropy(model((images - mean) / std), torch.from_numpy(labels), label_smoothing=0.05)

    train(net, step, minutes, 3e-3, 2)
    net.eval()
    folded = nn.Sequential(*(block.folded() for block in net.blocks))
    plain = nn.Sequential(folded, nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.linear, nn.Softmax(1)).eval()
    path = SAMPLES / "classify.onnx"
    torch.onnx.export(
        plain, (torch.zeros(1, 3, 96, 96),), str(path), input_names=["images"], output_names=["output0"],
        opset_version=17, dynamo=False,
    )  # fmt: skip
    describe(
        path,
        {"description": "narrowcast sample classifier of drawn things", "author": "narrowcast", "license": "Apache-2.0",
         "task": "classify", "names": str(dict(enumerate(scenes.OBJECT_NAMES))),
         "preprocess": json.dumps({"size": 96, "mean": MEAN, "std": STD, "rgb": True, "resize": 96, "crop": 96})},
    )  # fmt: skip


def cropped(image: np.ndarray) -> np.ndarray:
    """Short side to 96, centre crop, RGB planes."""
    height, width = image.shape[:2]
    ratio = 96 / min(height, width)
    small = cv2.resize(image, (max(96, round(width * ratio)), max(96, round(height * ratio))))
    top, left = (small.shape[0] - 96) // 2, (small.shape[1] - 96) // 2
    return small[top : top + 96, left : left + 96, ::-1].transpose(2, 0, 1)


def describe(path: Path, metadata: dict[str, str]) -> None:
    model = onnx.load(str(path))
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    print(path.name, path.stat().st_size, "bytes")


def write_images() -> None:
    """Images that no training step has seen (their seeds are below 1,000,000), with COCO annotations and labels."""
    shutil.rmtree(SAMPLES / "people", ignore_errors=True)
    shutil.rmtree(SAMPLES / "things", ignore_errors=True)
    for part, seed, count in (("calibration", 1000, 40), ("validation", 2000, 48)):
        drawn = [(f"{i + 1:04}.jpg", scenes.pose_scene(seed + i)) for i in range(count)]
        write_jpegs(SAMPLES / "people" / part, [(name, scene.image) for name, scene in drawn], 85)
        if part == "validation":
            document = scenes.coco_annotations(drawn, "narrowcast drawn scenes")
            (SAMPLES / "people" / "keypoints.json").write_text(json.dumps(document, separators=(",", ":")) + "\n")
    for part, seed, count in (("calibration", 3000, 40), ("validation", 4000, 120)):
        things = [(f"{i + 1:04}.jpg", scenes.object_scene(seed + i, i % len(scenes.OBJECT_NAMES))) for i in range(count)]
        write_jpegs(SAMPLES / "things" / part, [(name, scene.image) for name, scene in things], 88)
        if part == "validation":
            (SAMPLES / "things" / "labels.txt").write_text("\n".join(scenes.label_lines(things)) + "\n")


def write_jpegs(folder: Path, images: list[tuple[str, np.ndarray]], quality: int) -> None:
    folder.mkdir(parents=True)
    for name, image in images:
        cv2.imwrite(str(folder / name), image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pose", "classify", "images"))
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    SAMPLES.mkdir(parents=True, exist_ok=True)
    if options.what == "pose":
        train_pose(options.minutes)
    elif options.what == "classify":
        train_classify(options.minutes)
    else:
        write_images()


if __name__ == "__main__":
    main()
