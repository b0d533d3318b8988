"""Boxes with masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from narrowcast.tasks.errors import Quantity
from narrowcast.tasks.objects import BOX, BOXES, CLASS, IOU_LOSS, Found, Objects, Role, Seen
from narrowcast.tasks.task import Ends, Family, HeadSpec, Outputs, register, relative
from narrowcast.vision.masks import prototype_masks
from narrowcast.vision.preprocess import Geometry
from narrowcast.vision.reader import Reader
from narrowcast.vision.types import Detections

__all__ = ["Segment"]

MASK_LOSS = Quantity("mask_iou_loss", 30, "1 - mask IoU", 4, "lost mask overlap (1 - IoU)",
                     sentence="{:.3f} of mask IoU", similarity=True, weight=1.0)  # fmt: skip
COEFFICIENTS = Role("mask", "mask coefficient", "mask coefficient branch", "mc", lambda head: (head.num_masks,),
                    also=("coef", "coeff", "cv4"))  # fmt: skip
PROTOTYPES = Role("proto", "prototype", "prototype branch", "p", lambda head: (head.num_masks,))


@register
@dataclass(frozen=True)
class Segment(Objects):
    """Boxes with masks: each object's coefficients of prototypes that all objects share."""

    name: ClassVar[str] = "segment"
    kind: ClassVar[str] = "segmentation"
    quantities: ClassVar[tuple[Quantity, ...]] = (*Objects.quantities, MASK_LOSS)
    families: ClassVar[tuple[Family, ...]] = (
        Family("mask", (MASK_LOSS.name, IOU_LOSS.name), "segm", "segmentation", "masks"), BOXES,
    )  # fmt: skip
    judged: ClassVar[int] = 60  # masks cost more than cells
    parsers: ClassVar[Mapping[str, str]] = {"TROS": "yolov8_seg"}
    roles: ClassVar[tuple[Role, ...]] = (BOX, CLASS, COEFFICIENTS)
    shared: ClassVar[tuple[Role, ...]] = (PROTOTYPES,)

    @classmethod
    def fit(cls, extra: int, ends: Ends, shared: Sequence[int]) -> list[dict[str, Any]] | str | None:
        if not extra or not shared:
            return None
        if len(shared) != 1 or shared[0] != extra:
            return "the mask prototypes do not fit the mask coefficients"
        return [{"num_masks": extra}]

    def _check_extra(self, head: HeadSpec) -> None:
        super()._check_extra(replace(head, num_masks=0))
        if not head.num_masks:
            raise ValueError(f"a {head.task} head with {head.num_masks} masks is not known")

    def _completed(
        self, detections: Detections, reader: Reader, found: Found, geometry: Geometry, masks: bool
    ) -> Detections:
        if not masks:
            return detections
        coefficients, first = self.gathered(reader, COEFFICIENTS, found), self.spec.strides[0]
        prototypes = reader.whole("proto", self.spec.num_masks)
        stride = first * reader.size(f"box_s{first}")[1] / prototypes.shape[2]
        return replace(
            detections, masks=prototype_masks(detections.boxes, coefficients.T, prototypes, geometry, stride)
        )

    def _extra_differences(
        self, rows: NDArray[Any], wanted: NDArray[Any], expected: Outputs, actual: Outputs
    ) -> dict[str, float]:
        prototypes = next(value for value in expected.values() if value.ndim == 4)
        return {"mask": max(relative(wanted, rows), relative(prototypes, actual["proto"]))}

    def _extra_seen(self, seen: Seen, reader: Reader) -> list[NDArray[np.bool_]]:
        """Mask of every detection on the prototypes inside the float model's box."""
        if not len(seen.found):
            return []
        coefficients = self.gathered(reader, COEFFICIENTS, seen.found)
        prototypes = reader.whole("proto", self.spec.num_masks)
        height, width = prototypes.shape[1:]
        step = np.array([width / seen.how.size[1], height / seen.how.size[0]] * 2)
        masks = []
        for position, box in enumerate(seen.boxes * step):
            left, top = (int(v) for v in np.floor(box[:2]))
            right, bottom = max(left + 1, int(np.ceil(box[2]))), max(top + 1, int(np.ceil(box[3])))
            part = prototypes[:, top:bottom, left:right]
            masks.append(np.tensordot(coefficients[:, position], part, 1) > 0)
        return masks

    def _extra_error(self, seen: Seen, reader: Reader) -> dict[str, float]:
        losses = []
        for one, other in zip(seen.extra, self._extra_seen(seen, reader), strict=True):
            union = int((one | other).sum())
            losses.append(1 - int((one & other).sum()) / union if union else 0.0)
        return {MASK_LOSS.name: float(np.mean(losses))}

    def taught_whole(self, outputs: Any, teacher: Any, weights: Any) -> Any:
        """Noise of the mask logits from coefficients and from prototypes."""
        from narrowcast.tasks import teaching

        proto = teacher["proto"][0].flatten(1)
        gram = proto @ proto.T / proto.shape[1]
        noise, signal, outer = proto.new_zeros(()), proto.new_zeros(()), gram.new_zeros(gram.shape)
        for stride, weight in zip(self.spec.strides, weights, strict=True):
            cells = weight > 0
            old = teaching.at(teacher[f"mask_s{stride}"], cells)
            change = teaching.at(outputs[f"mask_s{stride}"], cells) - old
            noise = noise + (weight[cells] * (change * (gram @ change)).sum(0)).sum()
            signal = signal + (weight[cells] * (old * (gram @ old)).sum(0)).sum()
            outer = outer + (old * weight[cells]) @ old.T
        if float(signal) <= 0:
            return proto.new_zeros(())
        moved = outputs["proto"][0].flatten(1) - proto
        below = (proto * (outer @ proto)).sum().clamp(min=1e-9)
        return noise / signal + (moved * (outer @ moved)).sum() / below
