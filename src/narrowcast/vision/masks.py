"""Masks from coefficients and prototypes, at the size of the original image."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from narrowcast.vision.heads import HeadSpec
from narrowcast.vision.preprocess import Geometry
from narrowcast.vision.types import Detections

__all__ = ["with_masks"]


def with_masks(
    detections: Detections,
    coefficients: NDArray[np.float32],
    proto: NDArray[np.float32],
    input_boxes: NDArray[np.float32],
    geometry: Geometry,
    head: HeadSpec,
) -> Detections:
    """Add masks to detections.

    The logit map (coefficients x prototypes) is cropped to the box, brought to image pixels bilinearly and
    thresholded at logit 0, that is at probability 1/2.

    Args:
        detections: n objects in image pixels.
        coefficients: (n, num_masks).
        proto: (num_masks, height, width) prototypes over the model input.
        input_boxes: (n, 4) xyxy in input pixels.
        geometry: where the image lies in the input.
        head: layout of the head.
    """
    count, height, width = len(detections), geometry.image_height, geometry.image_width
    masks = np.zeros((count, height, width), bool)
    if not count:
        return replace(detections, masks=masks)
    logits = (coefficients @ proto.reshape(head.num_masks, -1)).reshape(count, *proto.shape[1:])
    # image pixel centre -> input pixel -> prototype pixel
    ratio = _input_size(head, proto) / proto.shape[1]
    columns = ((np.arange(width) + 0.5) * geometry.scale_x + geometry.pad_left) / ratio - 0.5
    rows = ((np.arange(height) + 0.5) * geometry.scale_y + geometry.pad_top) / ratio - 0.5
    for index, (left, top, right, bottom) in enumerate(detections.boxes):
        x0, y0 = int(np.floor(left)), int(np.floor(top))
        x1, y1 = int(np.ceil(right)), int(np.ceil(bottom))
        if x1 <= x0 or y1 <= y0:
            continue
        map_x, map_y = np.meshgrid(columns[x0:x1].astype(np.float32), rows[y0:y1].astype(np.float32))
        patch = cv2.remap(logits[index], map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        masks[index, y0:y1, x0:x1] = patch > 0
    return replace(detections, masks=masks)


def _input_size(head: HeadSpec, proto: NDArray[np.float32]) -> float:
    """Input height: prototypes have half the smallest stride."""
    return float(proto.shape[1] * head.strides[0] / 2)
