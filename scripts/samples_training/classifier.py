"""A RepVGG-like classifier (Ding et al., 2021): three branches in training, plain 3x3 convolutions after."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from samples_training.export import MEAN, STD

#: Channels and stride of each block.
BLOCKS = ((24, 2), (40, 2), (40, 1), (64, 2), (64, 1), (64, 1), (96, 2), (96, 1))


class Branches(nn.Module):
    """ReLU of the sum of a 3x3, a 1x1 and, where the shape stays, an identity branch, each with batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride = stride
        self.wide = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))
        self.point = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.same = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        # Torch 2.13 corrupts memory in the backward pass of a strided 1x1 convolution (channels last, CPU).
        y = self.wide(x) + self.point(x[:, :, :: self.stride, :: self.stride])
        return functional.relu(y if self.same is None else y + self.same(x))

    def plain(self) -> Plain:
        """One convolution that computes the same: kernels and biases of the branches add up."""
        wide = nn.utils.fuse_conv_bn_eval(*self.wide)
        point = nn.utils.fuse_conv_bn_eval(*self.point)
        result = Plain(wide.in_channels, wide.out_channels, wide.stride[0])
        kernel = wide.weight.data + functional.pad(point.weight.data, (1, 1, 1, 1))
        bias = wide.bias.data + point.bias.data
        if self.same is not None:
            factor = self.same.weight.data / (self.same.running_var + self.same.eps).sqrt()
            channels = torch.arange(len(factor))
            kernel[channels, channels, 1, 1] += factor
            bias += self.same.bias.data - self.same.running_mean * factor
        result.conv.weight.data, result.conv.bias.data = kernel, bias
        return result


class Plain(nn.Module):
    """A 3x3 convolution and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class Classifier(nn.Module):
    """Normalized image (B, 3, H, W) to logits (B, classes), or probabilities when :attr:`probabilities`."""

    def __init__(self, classes: int):
        super().__init__()
        self.probabilities = False
        channels = [3, *(outputs for outputs, _ in BLOCKS)]
        self.stages = nn.ModuleList(
            Branches(inputs, outputs, stride) for inputs, (outputs, stride) in zip(channels, BLOCKS, strict=False)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        logits = self.linear(self.pool(x).flatten(1))
        return logits.softmax(1) if self.probabilities else logits


def reparameterized(network: Classifier) -> Classifier:
    """Turn a trained network into plain convolutions with a softmax at the end, in place."""
    network.eval()
    network.stages = nn.ModuleList(stage.plain() for stage in network.stages)
    network.probabilities = True
    return network


def normalized(images: np.ndarray) -> Tensor:
    """uint8 (B, 3, H, W) RGB to the network's input."""
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return (torch.from_numpy(images).float() - mean) / std


def train(images: np.ndarray, labels: np.ndarray, classes: int, steps: int, batch: int, seed: int = 0) -> Classifier:
    """Train from scratch; mirrored images and label smoothing against learning by heart."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = Classifier(classes).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    order = np.concatenate([random.permutation(len(images)) for _ in range(steps * batch // len(images) + 1)])
    for step in range(steps):
        rows = order[step * batch : (step + 1) * batch]
        x = normalized(images[rows])
        x[: batch // 2] = x[: batch // 2].flip(-1)
        x = x * torch.from_numpy(random.uniform(0.8, 1.2, (len(x), 1, 1, 1)).astype(np.float32))
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(x.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits.float(), torch.from_numpy(labels[rows]), label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            print(f"classify {step + 1}/{steps} loss {float(loss.detach()):.3f}", flush=True)
    return network
