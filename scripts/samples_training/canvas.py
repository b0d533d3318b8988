"""A drawing surface that remembers which object every pixel shows, so that visibility can be labelled."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Canvas", "Color", "color", "shade"]

#: Blue, green, red, each 0..255.
Color = tuple[int, int, int]

#: OpenCV takes coordinates in 1/16 pixel.
_SHIFT = 4


class Canvas:
    """An image and, beside it, the owner of every pixel.

    Attributes:
        image: uint8 (height, width, 3) BGR.
        owner: uint8 (height, width); 0 is the background.
    """

    def __init__(self, image: NDArray[np.uint8]) -> None:
        self.image = np.ascontiguousarray(image)
        self.owner = np.zeros(image.shape[:2], np.uint8)

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        """Pixels."""
        return int(self.image.shape[1])

    def polygon(self, points: ArrayLike, fill: Color, owner: int | None = None) -> None:
        """Fill a polygon given by (N, 2) x, y in pixels; ``owner`` ``None`` leaves the owners as they are."""
        fixed = np.round(np.asarray(points, np.float64) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(self.image, [fixed], fill, lineType=cv2.LINE_AA, shift=_SHIFT)
        if owner is not None:
            cv2.fillPoly(self.owner, [fixed], owner, shift=_SHIFT)

    def ellipse(
        self,
        center: ArrayLike,
        axes: tuple[float, float],
        fill: Color,
        owner: int | None = None,
        angle: float = 0.0,
        arc: tuple[float, float] = (0.0, 360.0),
    ) -> None:
        """Fill an ellipse with the half ``axes`` in pixels, turned by ``angle``; ``arc`` in degrees cuts a segment."""
        first, last = np.radians(arc)
        t = np.linspace(first, last, 28)
        turn = np.radians(angle)
        x, y = axes[0] * np.cos(t), axes[1] * np.sin(t)
        offsets = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=1)
        self.polygon(np.asarray(center, np.float64) + offsets, fill, owner)

    def limb(
        self, start: ArrayLike, end: ArrayLike, radii: tuple[float, float], fill: Color, owner: int | None = None
    ) -> None:
        """Fill a tapered line with round ends, ``radii`` in pixels at the start and the end."""
        a, b = np.asarray(start, np.float64), np.asarray(end, np.float64)
        direction = float(np.arctan2(b[1] - a[1], b[0] - a[0]))
        half = np.linspace(np.pi / 2, 3 * np.pi / 2, 9)
        back = np.stack([np.cos(direction + half), np.sin(direction + half)], axis=1)
        self.polygon(np.concatenate([a + radii[0] * back, b - radii[1] * back]), fill, owner)

    def rectangle(self, corner: ArrayLike, size: tuple[float, float], fill: Color, owner: int | None = None) -> None:
        """Fill an upright rectangle from its upper left corner, in pixels."""
        x, y = np.asarray(corner, np.float64)
        width, height = size
        self.polygon([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], fill, owner)


def color(
    random: np.random.Generator,
    hue: tuple[float, float] = (0, 180),
    saturation: tuple[float, float] = (40, 230),
    value: tuple[float, float] = (50, 245),
) -> Color:
    """A random colour; ranges in OpenCV's HSV units (hue 0..180, the others 0..255)."""
    hsv = [random.uniform(*hue) % 180, random.uniform(*saturation), random.uniform(*value)]
    blue, green, red = cv2.cvtColor(np.array([[hsv]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0]
    return int(blue), int(green), int(red)


def shade(base: Color, factor: float) -> Color:
    """The colour made darker (below 1) or lighter (above 1)."""
    blue, green, red = (int(min(255, max(0, channel * factor))) for channel in base)
    return blue, green, red
