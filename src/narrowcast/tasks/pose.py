"""Boxes with keypoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from narrowcast.tasks.errors import Quantity
from narrowcast.tasks.objects import BOX, BOXES, CLASS, Found, Objects, Role, Seen, distances, sigmoid
from narrowcast.tasks.task import Ends, Family, HeadSpec, Outputs, Rows, largest, register
from narrowcast.vision.preprocess import Geometry
from narrowcast.vision.reader import Reader
from narrowcast.vision.types import Detections

__all__ = ["COCO_SIGMAS", "COCO_SKELETON", "OTHER_SIGMA", "PERSON_SHARE", "Pose", "sigmas"]

#: Limbs between the 17 COCO keypoints (pairs of indices from 0).
COCO_SKELETON: tuple[tuple[int, int], ...] = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
#: Standard deviations of the annotators' COCO keypoints, as a share of the object's size (pycocotools, ``Params``).
COCO_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089,
    0.089,
)  # fmt: skip
#: The same for keypoints that are not COCO's.
OTHER_SIGMA = 0.07
#: Share of its box that an object covers, where only the box is known (Ultralytics takes the same).
PERSON_SHARE = 0.53
#: Keeps divisions finite.
_LEAST = 1e-6
#: Weight of the visibility of keypoints in finetuning, which no metric reads.
VISIBILITY_SHARE = 0.1

KEYPOINT_PIXELS = Quantity("keypoint_pixels", 10, "keypoint px", 2, "pixels: how far a keypoint moves",
                           sentence="{:.2f} pixels of a keypoint")  # fmt: skip
OKS_LOSS = Quantity("oks_loss", 20, "1 - OKS", 4, "lost keypoint similarity (1 - OKS)", similarity=True, weight=1.0)


def sigmas(points: int) -> NDArray[np.float64]:
    """Spread of each keypoint."""
    return np.array(COCO_SIGMAS if points == len(COCO_SIGMAS) else [OTHER_SIGMA] * points)


def _shape(head: HeadSpec) -> tuple[int, int]:
    assert head.keypoint_shape is not None
    return head.keypoint_shape


def _step(head: HeadSpec, scales: Rows, stride: int) -> float:
    """``2 * scale * stride`` pixels (decode: ``(2 * raw + cell) * stride``), the visibility left out."""
    places = np.arange(len(scales)) % _shape(head)[1] < 2 if len(scales) > 1 else np.ones(1, np.bool_)
    return 2 * stride * float(scales[places].max())


def _weights(values: Rows, boxes: NDArray[np.float32], head: HeadSpec) -> Rows:
    """1 over the area of the box, as in object keypoint similarity, and the squared slope of the visibility."""
    left, top, right, bottom = distances(boxes, head.reg_max)
    area = np.maximum((left + right) * (top + bottom), 0.25).astype(np.float64)
    count, dims = _shape(head)
    weights = np.ones((count, dims, values.shape[1]))
    if dims == 3:
        sure = sigmoid(values.reshape(count, dims, -1)[:, 2].astype(np.float32)).astype(np.float64)
        weights[:, :2] = sure[:, None]
        weights[:, 2] = np.square(sure * (1 - sure)) + 1e-6
    weights[:, :2] /= area
    return np.asarray(weights.reshape(values.shape))


_MIRROR = {17: (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)}
KEYPOINTS = Role("kpt", "keypoint", "keypoint branch", "kpt", _shape, "pixels", _step, _weights, _MIRROR, steady=True,
                 also=("keypoint", "cv4"))  # fmt: skip


@register
@dataclass(frozen=True)
class Pose(Objects):
    """Boxes with keypoints."""

    name: ClassVar[str] = "pose"
    kind: ClassVar[str] = "pose"
    quantities: ClassVar[tuple[Quantity, ...]] = (*Objects.quantities, KEYPOINT_PIXELS, OKS_LOSS)
    families: ClassVar[tuple[Family, ...]] = (
        Family("keypoints", (OKS_LOSS.name,), "keypoints", "keypoints", "keypoints"), BOXES,
    )  # fmt: skip
    roles: ClassVar[tuple[Role, ...]] = (BOX, CLASS, KEYPOINTS)

    @classmethod
    def fit(cls, extra: int, ends: Ends, shared: Sequence[int]) -> list[dict[str, Any]] | str | None:
        if not extra or shared:
            return None
        shapes = [ends.keypoint_shape] if ends.keypoint_shape else [(extra // 3, 3), (extra // 2, 2)]
        fitting = [{"keypoint_shape": shape} for shape in shapes if shape[0] * shape[1] == extra]
        return fitting or f"{extra} extra channels are no known keypoint layout"

    @classmethod
    def usual(cls, head: HeadSpec) -> bool:
        return super().usual(head) and head.keypoint_shape == (len(COCO_SIGMAS), 3)

    def _check_extra(self, head: HeadSpec) -> None:
        shape = head.keypoint_shape
        if shape is None or shape[0] < 1 or shape[1] not in (2, 3):
            raise ValueError(f"a {head.task} head with keypoints {shape} is not known")
        super()._check_extra(replace(head, keypoint_shape=None))

    @property
    def points(self) -> int:
        return _shape(self.spec)[0]

    @property
    def skeleton(self) -> tuple[tuple[int, int], ...]:
        return COCO_SKELETON if self.points == len(COCO_SIGMAS) else ()

    def _completed(
        self, detections: Detections, reader: Reader, found: Found, geometry: Geometry, masks: bool
    ) -> Detections:
        points = self._keypoints(self.gathered(reader, KEYPOINTS, found), found)
        return replace(detections, keypoints=geometry.undo_points(points))

    def _keypoints(self, raw: NDArray[np.float32], found: Found) -> NDArray[np.float32]:
        """(n, K, 3): x = (2 * raw + cell) * stride in input pixels, probability (1 where the head gives none)."""
        count, dims = _shape(self.spec)
        values = raw.reshape(count, dims, -1)
        points = np.ones((len(found), count, 3), np.float32)
        points[..., 0] = ((values[:, 0] * 2 + found.x) * found.strides).T
        points[..., 1] = ((values[:, 1] * 2 + found.y) * found.strides).T
        if dims == 3:
            points[..., 2] = sigmoid(values[:, 2]).T
        return points

    def _dense_extra(self, raw: NDArray[np.float32], found: Found) -> NDArray[np.float32]:
        dims = _shape(self.spec)[1]
        return self._keypoints(raw, found)[..., :dims].transpose(1, 2, 0).reshape(raw.shape)

    def _extra_differences(
        self, rows: NDArray[Any], wanted: NDArray[Any], expected: Outputs, actual: Outputs
    ) -> dict[str, float]:
        dims, result = _shape(self.spec)[1], dict[str, float]()
        for axis in range(dims):
            key = "keypoint score" if axis == 2 else "keypoint px"
            result[key] = max(result.get(key, 0.0), largest(rows[axis::dims], wanted[axis::dims]))
        return result

    def _extra_seen(self, seen: Seen, reader: Reader) -> NDArray[np.float32]:
        """(K, dims, n) as the model gives them."""
        return self.gathered(reader, KEYPOINTS, seen.found).reshape(*_shape(self.spec), -1)

    def _extra_error(self, seen: Seen, reader: Reader) -> dict[str, float]:
        """Pixels and 1 - object keypoint similarity, weighted by how visible the float model thinks each point is."""
        raw, known = self._extra_seen(seen, reader), seen.extra
        shift = (raw[:, :2] - known[:, :2]) * 2 * seen.found.strides  # (K, 2, n) pixels
        squared = np.square(shift).sum(axis=1)
        sure = sigmoid(known[:, 2]) if known.shape[1] == 3 else np.ones_like(squared)
        weight = sure / np.maximum(sure.sum(axis=0), _LEAST)
        sides = seen.boxes[:, 2:] - seen.boxes[:, :2]
        area = PERSON_SHARE * np.maximum(sides.prod(axis=1), 1.0)
        spread = np.square(2 * sigmas(len(raw))[:, None])
        losses = (weight * -np.expm1(-squared / (2 * area * spread))).sum(axis=0)
        pixels = (weight * np.sqrt(squared)).sum(axis=0)
        return {KEYPOINT_PIXELS.name: float(pixels.mean()), OKS_LOSS.name: float(losses.mean())}

    def taught_cells(self, new: Any, old: Any, stride: int, cells: Any, sides: Any) -> Any:
        """E / (1 + e) of the points, with 1 - exp(-e) being 1 - OKS."""
        from narrowcast.tasks import teaching

        area = PERSON_SHARE * ((sides[0] + sides[2]) * (sides[1] + sides[3])).clamp(min=1e-3) * stride * stride
        count, dims = _shape(self.spec)
        new, old = (teaching.at(x[f"kpt_s{stride}"], cells).reshape(count, dims, -1) for x in (new, old))
        squared = ((new[:, :2] - old[:, :2]) * (2.0 * stride)).square().sum(1)
        spread = new.new_tensor(np.square(2 * sigmas(count)))[:, None]
        error = squared / (2 * area * spread)
        error = error / (1 + error)  # as 1 - exp(-e) near 0, with a gradient far from it
        if dims < 3:
            return error.mean(0)
        sure = old[:, 2].sigmoid()
        points = (sure * error).sum(0) / sure.sum(0).clamp(min=1e-6)
        return points + VISIBILITY_SHARE * teaching.divergence(new[:, 2], old[:, 2]).mean(0)
