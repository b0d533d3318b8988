"""Many model inputs from few images: other places, sizes, sides and brightness at every visit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from narrowcast.calibrate.images import ImageSet
from narrowcast.vision.preprocess import Preprocess

__all__ = ["views"]

Array = NDArray[Any]
#: Side of what is shown over the side of the image: smaller values cut out, larger ones add a border.
SMALLEST, LARGEST = 0.65, 1.6
#: Brightness of half of the views.
DARKEST, BRIGHTEST = 0.7, 1.3


def views(images: ImageSet, seed: int, vary: bool) -> Iterator[NDArray[np.float32]]:
    """Model inputs without end; every image comes once before any comes again.

    Args:
        images: read again at every visit, so that memory does not grow with their number.
        seed: of the order and of the views.
        vary: show another part of the image each time, mirrored half of the time; ready-made inputs are mirrored only.

    Yields:
        float32 (1, C, H, W) or (1, H, W, C).
    """
    rng = np.random.default_rng(seed)
    wide = 3 if images.preprocess.layout == "NCHW" else 2
    while True:
        for index in rng.permutation(len(images)):
            mirrored = vary and bool(rng.integers(2))
            view = _View(images.preprocess, rng) if vary else None
            tensor = images.tensor(int(index), view)
            yield np.ascontiguousarray(np.flip(tensor, wide) if mirrored else tensor)


class _View:
    """A part of an image, drawn when made, so that the draws do not depend on what the image is."""

    def __init__(self, spec: Preprocess, rng: np.random.Generator) -> None:
        self.pad = spec.pad_value
        largest = LARGEST if spec.resize == "letterbox" else 1.0  # only a letterbox has borders anyway
        self.share = math.exp(rng.uniform(math.log(SMALLEST), math.log(largest)))
        self.down, self.across = rng.random(2)
        self.gain = rng.uniform(DARKEST, BRIGHTEST) if rng.integers(2) else 1.0

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 (H, W, 3) to another size of the same proportions."""
        height, width = (max(1, round(side * self.share)) for side in image.shape[:2])
        top = round((image.shape[0] - height) * self.down)
        left = round((image.shape[1] - width) * self.across)
        moved = np.array([[1, 0, -left], [0, 1, -top]], np.float32)
        shown = cv2.warpAffine(
            image, moved, (width, height), flags=cv2.INTER_NEAREST, borderValue=(self.pad, self.pad, self.pad)
        )
        return np.asarray(shown if self.gain == 1.0 else cv2.convertScaleAbs(shown, alpha=self.gain), np.uint8)
