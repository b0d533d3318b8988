"""A small pose network, written from scratch, with the structures of today's real-time detectors.

Split-and-concatenate blocks, pyramid pooling by repeated max-pooling, one attention block, a two-way feature
pyramid, and a decoupled head with DFL boxes: what the quantizer meets in YOLO exports, at a tenth of the size.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDES = (8, 16, 32)
BINS = 16
KEYPOINTS = 17


class Convolution(nn.Module):
    """Convolution, batch norm and, unless ``act`` is false, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
        self.act: nn.Module = nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Residual(nn.Module):
    """Two 3x3 convolutions with a skip connection."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.cv1 = Convolution(channels, hidden, 3)
        self.cv2 = Convolution(hidden, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x))


class TwoBranch(nn.Module):
    """Two 1x1 branches, one of them through residual blocks, joined by a 1x1 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = channels // 2
        self.cv1 = Convolution(channels, hidden)
        self.cv2 = Convolution(channels, hidden)
        self.m = nn.Sequential(Residual(hidden, hidden))
        self.cv3 = Convolution(2 * hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class SplitConcat(nn.Module):
    """Halve the channels, transform one half, and concatenate all stages (as C2f and C3k2 do)."""

    def __init__(self, inputs: int, outputs: int, deep: bool = False):
        super().__init__()
        self.half = outputs // 2
        self.cv1 = Convolution(inputs, 2 * self.half)
        self.m = nn.ModuleList([TwoBranch(self.half) if deep else Residual(self.half, self.half // 2)])
        self.cv2 = Convolution(3 * self.half, outputs)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).split((self.half, self.half), 1))
        for block in self.m:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class PyramidPooling(nn.Module):
    """One 5x5 max-pool, three times in a row, all stages concatenated (SPPF)."""

    def __init__(self, channels: int):
        super().__init__()
        self.cv1 = Convolution(channels, channels // 2)
        self.cv2 = Convolution(channels * 2, channels)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(self.m(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class Attention(nn.Module):
    """Multi-head self-attention over the cells; the position comes from a depthwise convolution of the values."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads, self.value = heads, channels // heads
        self.key = self.value // 2
        self.scale = self.key**-0.5
        self.qkv = Convolution(channels, channels + 2 * self.key * heads, act=False)
        self.pe = Convolution(channels, channels, 3, groups=channels, act=False)
        self.proj = Convolution(channels, channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        parts = self.qkv(x).view(batch, self.heads, 2 * self.key + self.value, height * width)
        query, key, value = parts.split((self.key, self.key, self.value), 2)
        weights = (query.transpose(-2, -1) @ key * self.scale).softmax(-1)
        mixed = (value @ weights.transpose(-2, -1)).view(batch, channels, height, width)
        return self.proj(mixed + self.pe(value.reshape(batch, channels, height, width)))


class AttentionBlock(nn.Module):
    """Attention and a feed-forward part, each with a skip connection."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.attn = Attention(channels, heads)
        self.ffn = nn.Sequential(Convolution(channels, 2 * channels), Convolution(2 * channels, channels, act=False))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.ffn(x)


class SplitAttention(nn.Module):
    """Halve the channels and send one half through attention (as C2PSA does)."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.half = channels // 2
        self.cv1 = Convolution(channels, channels)
        self.m = nn.Sequential(AttentionBlock(self.half, heads))
        self.cv2 = Convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        kept, mixed = self.cv1(x).split((self.half, self.half), 1)
        return self.cv2(torch.cat((kept, self.m(mixed)), 1))


class Expectation(nn.Module):
    """DFL: the expected bin of a softmax, as a 1x1 convolution with the weights 0, 1, 2, ..."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(BINS, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(BINS, dtype=torch.float32).view(1, BINS, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, anchors = x.shape
        return self.conv(x.view(batch, 4, BINS, anchors).transpose(2, 1).softmax(1)).view(batch, 4, anchors)


class PoseHead(nn.Module):
    """Decoupled head: box bins, class logit and raw keypoints at each stride."""

    def __init__(self, channels: tuple[int, ...], hidden: int = 24, points_hidden: int = 40):
        super().__init__()
        points = KEYPOINTS * 3
        self.decoded = False
        self.cv2 = nn.ModuleList(
            nn.Sequential(Convolution(c, hidden, 3), Convolution(hidden, hidden, 3), nn.Conv2d(hidden, 4 * BINS, 1))
            for c in channels
        )
        self.cv3 = nn.ModuleList(
            nn.Sequential(
                nn.Sequential(Convolution(c, c, 3, groups=c), Convolution(c, hidden)),
                nn.Sequential(Convolution(hidden, hidden, 3, groups=hidden), Convolution(hidden, hidden)),
                nn.Conv2d(hidden, 1, 1),
            )
            for c in channels
        )
        self.cv4 = nn.ModuleList(
            nn.Sequential(
                Convolution(c, points_hidden, 3),
                Convolution(points_hidden, points_hidden, 3),
                nn.Conv2d(points_hidden, points, 1),
            )
            for c in channels
        )
        self.dfl = Expectation()
        for box, classes in zip(self.cv2, self.cv3, strict=True):
            nn.init.constant_(box[-1].bias, 1.0)
            nn.init.constant_(classes[-1].bias, -5.0)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor] | Tensor:
        """Raw (B, 64, A), (B, 1, A), (B, 51, A), or the decoded (B, 56, A) when :attr:`decoded`."""
        batch = maps[0].shape[0]
        points = torch.cat(
            [cv4(x).view(batch, -1, x.shape[2] * x.shape[3]) for cv4, x in zip(self.cv4, maps, strict=True)], -1
        )
        joined = [torch.cat((cv2(x), cv3(x)), 1) for cv2, cv3, x in zip(self.cv2, self.cv3, maps, strict=True)]
        rows = torch.cat([x.view(batch, 4 * BINS + 1, -1) for x in joined], 2)
        box, score = rows.split((4 * BINS, 1), 1)
        if not self.decoded:
            return box, score, points
        sizes = [(int(x.shape[2]), int(x.shape[3])) for x in maps]
        return self._decode(box, score, points, *anchors(sizes))

    def _decode(self, box: Tensor, score: Tensor, points: Tensor, centers: Tensor, strides: Tensor) -> Tensor:
        """The arithmetic at the end of a stock export: xywh in pixels, probabilities, keypoints in pixels."""
        sides = self.dfl(box)
        low = centers - sides[:, :2]
        high = centers + sides[:, 2:]
        boxes = torch.cat(((low + high) / 2, high - low), 1) * strides
        triples = points.view(1, KEYPOINTS, 3, -1)
        places = (triples[:, :, :2] * 2.0 + (centers - 0.5)) * strides
        decoded = torch.cat((places, triples[:, :, 2:3].sigmoid()), 2).view(1, KEYPOINTS * 3, -1)
        return torch.cat((boxes, score.sigmoid(), decoded), 1)


def anchors(sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Cell centres (2, A) in cells and strides (1, A), by stride, then row-major."""
    centers, strides = [], []
    for stride, (height, width) in zip(STRIDES, sizes, strict=True):
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        centers.append(torch.stack((x.reshape(-1), y.reshape(-1))))
        strides.append(torch.full((1, height * width), float(stride)))
    return torch.cat(centers, 1), torch.cat(strides, 1)


class PoseNetwork(nn.Module):
    """Image (B, 3, H, W) in 0..1 to what :class:`PoseHead` gives; H and W are multiples of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleList(
            [
                Convolution(3, 16, 3, 2),
                Convolution(16, 24, 3, 2),
                SplitConcat(24, 32),
                Convolution(32, 40, 3, 2),
                SplitConcat(40, 48),
                Convolution(48, 56, 3, 2),
                SplitConcat(56, 64, deep=True),
                Convolution(64, 64, 3, 2),
                SplitConcat(64, 80, deep=True),
                PyramidPooling(80),
                SplitAttention(80, 1),
                nn.Upsample(scale_factor=2, mode="nearest"),
                SplitConcat(80 + 64, 56),
                nn.Upsample(scale_factor=2, mode="nearest"),
                SplitConcat(56 + 48, 40),
                Convolution(40, 40, 3, 2),
                SplitConcat(40 + 56, 56),
                Convolution(56, 56, 3, 2),
                SplitConcat(56 + 80, 64),
                PoseHead((40, 56, 64)),
            ]
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor] | Tensor:
        m = self.model
        fine = m[4](m[3](m[2](m[1](m[0](x)))))
        middle = m[6](m[5](fine))
        coarse = m[10](m[9](m[8](m[7](middle))))
        up = m[12](torch.cat((m[11](coarse), middle), 1))
        small = m[14](torch.cat((m[13](up), fine), 1))
        medium = m[16](torch.cat((m[15](small), up), 1))
        large = m[18](torch.cat((m[17](medium), coarse), 1))
        return m[19]([small, medium, large])


def fused(network: nn.Module) -> nn.Module:
    """A copy in inference mode with every batch norm folded into the convolution before it."""
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        if isinstance(module, Convolution):
            module.conv = nn.utils.fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()
    return network


def distances(box: Tensor) -> Tensor:
    """(..., 64) bins to (..., 4) distances in cells, differentiable."""
    weights = functional.softmax(box.view(*box.shape[:-1], 4, BINS), -1)
    return weights @ torch.arange(BINS, dtype=weights.dtype)
