"""Layout of a YOLOv8 / YOLO11 head and its full decode; the fast decode is in :mod:`narrowcast.vision.decode`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["HeadSpec", "OutputEncoding", "decode_dense", "distances", "sigmoid"]


@dataclass(frozen=True)
class HeadSpec:
    """What the raw outputs ``box_s8, cls_s8, kpt_s8 | mask_s8, ..., proto`` mean.

    Attributes:
        task: ``"detect"``, ``"pose"`` or ``"segment"``.
        strides: input pixels a cell, ascending.
        num_classes: channels of ``cls_s*``, logits.
        reg_max: bins of each box side in ``box_s*`` (4 * reg_max channels); 1 means plain distances.
        keypoint_shape: (keypoints, 2 or 3 values) of ``kpt_s*``, or ``None``.
        num_masks: coefficients in ``mask_s*`` and channels of ``proto``; 0 without masks.
    """

    task: str
    strides: tuple[int, ...]
    num_classes: int
    reg_max: int = 16
    keypoint_shape: tuple[int, int] | None = None
    num_masks: int = 0

    @property
    def extra(self) -> str:
        """Stem of the third output of a stride: ``"kpt"``, ``"mask"`` or ``""``."""
        return "kpt" if self.keypoint_shape is not None else "mask" if self.num_masks else ""

    @property
    def extra_channels(self) -> int:
        """Channels of the third output of a stride, 0 without one."""
        return self.keypoint_shape[0] * self.keypoint_shape[1] if self.keypoint_shape is not None else self.num_masks

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Compare with outputs.

        Args:
            shapes: of the outputs, by name; maps are (1, C, H, W).

        Raises:
            ValueError: a head that does not exist, an output that is missing or has another shape.
        """
        if self.task not in ("detect", "pose", "segment") or not self.strides or min(self.strides) < 1:
            raise ValueError(f"a {self.task} head with the strides {self.strides} is not known")
        if min(self.num_classes, self.reg_max) < 1 or self.num_masks < 0:
            raise ValueError("a head has classes and bins")
        pose, shape = self.task == "pose", self.keypoint_shape
        if pose != (shape is not None) or (shape is not None and (shape[0] < 1 or shape[1] not in (2, 3))):
            raise ValueError(f"a {self.task} head with keypoints {shape} is not known")
        if (self.task == "segment") != (self.num_masks > 0):
            raise ValueError(f"a {self.task} head with {self.num_masks} masks is not known")
        channels = {"box": 4 * self.reg_max, "cls": self.num_classes}
        channels |= {self.extra: self.extra_channels} if self.extra else {}
        wanted = {f"{stem}_s{stride}": count for stride in self.strides for stem, count in channels.items()}
        wanted |= {"proto": self.num_masks} if self.num_masks else {}
        for name, count in wanted.items():
            found = shapes.get(name, ())
            if len(found) != 4 or found[0] != 1 or found[1] != count:
                raise ValueError(f"the head needs the output {name} with {count} channels, it is {found or 'missing'}")
        for stride in self.strides:
            sizes = {shapes[f"{stem}_s{stride}"][2:] for stem in channels}
            if len(sizes) > 1:
                raise ValueError(f"the outputs of the stride {stride} differ in size")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        data = asdict(self)
        data["strides"] = list(self.strides)
        data["keypoint_shape"] = list(self.keypoint_shape) if self.keypoint_shape else None
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HeadSpec:
        """The opposite of :meth:`to_dict`."""
        shape = data.get("keypoint_shape")
        values = {**data, "strides": tuple(data["strides"]), "keypoint_shape": tuple(shape) if shape else None}
        return cls(**values)


@dataclass(frozen=True)
class OutputEncoding:
    """How an integer output is read: ``x = (q - zero_point) * scale``.

    Attributes:
        dtype: numpy name of the integer type.
        scale: one value, or one a channel.
        zero_point: integer that stands for 0.0.
        axis: channel axis of a per-channel scale.
    """

    dtype: str
    scale: float | NDArray[np.float64]
    zero_point: int = 0
    axis: int | None = None

    def real(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Integers as real numbers, in their shape."""
        scale = np.asarray(self.scale, np.float64)
        if self.axis is not None:
            scale = scale.reshape([-1 if axis == self.axis else 1 for axis in range(values.ndim)])
        return np.asarray((values.astype(np.float64) - self.zero_point) * scale)


def sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logistic function without overflow, float32."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)), np.float32)


def distances(logits: NDArray[np.float32], reg_max: int) -> NDArray[np.float32]:
    """Distribution focal loss decode (Li et al., 2020): expected bin of a softmax.

    Args:
        logits: (4 * reg_max, N).
        reg_max: bins a side.

    Returns:
        (4, N) left, top, right, bottom in cells.
    """
    if reg_max == 1:
        return logits
    bins = logits.reshape(4, reg_max, -1)
    weights = np.exp(bins - bins.max(axis=1, keepdims=True))
    moments = np.stack([np.ones(reg_max), np.arange(reg_max)]).astype(np.float32) @ weights  # sum and first moment
    return np.asarray(moments[:, 1] / moments[:, 0], np.float32)


def cells(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """x and y index of every cell of a map, each (height * width,), row-major."""
    y, x = np.divmod(np.arange(height * width), width)
    return x.astype(np.float32), y.astype(np.float32)


def decode_dense(outputs: Mapping[str, NDArray[Any]], head: HeadSpec) -> NDArray[np.float32]:
    """Decode every anchor, as the stock export does.

    Args:
        outputs: float raw outputs (1, C, H, W) by name.
        head: their layout.

    Returns:
        (4 + classes + extra, anchors): centre x, centre y, width, height in input pixels; class probabilities;
        keypoints (x, y in input pixels, probability) or mask coefficients. Anchors by stride, then row-major.
    """
    columns = []
    for stride in head.strides:
        box, logits = outputs[f"box_s{stride}"][0], outputs[f"cls_s{stride}"][0]
        height, width = box.shape[1:]
        x, y = cells(height, width)
        left, top, right, bottom = distances(box.reshape(len(box), -1), head.reg_max)
        rows = [
            np.stack([x + 0.5 + (right - left) / 2, y + 0.5 + (bottom - top) / 2, left + right, top + bottom]) * stride,
            sigmoid(logits.reshape(head.num_classes, -1)),
        ]
        if head.extra:
            extra = outputs[f"{head.extra}_s{stride}"][0]
            extra = extra.reshape(len(extra), -1)
            rows.append(extra if head.num_masks else _dense_keypoints(extra, head, x, y, stride))
        columns.append(np.concatenate(rows))
    return np.concatenate(columns, axis=1).astype(np.float32)


def _dense_keypoints(
    raw: NDArray[np.float32], head: HeadSpec, x: NDArray[np.float32], y: NDArray[np.float32], stride: int
) -> NDArray[np.float32]:
    """(K * dims, N) raw to x, y in input pixels and probability: x = (2 * raw + cell) * stride."""
    assert head.keypoint_shape is not None
    count, dims = head.keypoint_shape
    points = raw.reshape(count, dims, -1).copy()
    points[:, 0] = (points[:, 0] * 2 + x) * stride
    points[:, 1] = (points[:, 1] * 2 + y) * stride
    if dims == 3:
        points[:, 2] = sigmoid(points[:, 2])
    return points.reshape(count * dims, -1)
