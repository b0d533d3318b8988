"""NV12, the camera format of boards: full-resolution luma, then interleaved chroma at half resolution.

BT.601, on pixels 0..255:

    full:    Y = 0.299 R + 0.587 G + 0.114 B      Cb = 128 + (B - Y) / 1.772      Cr = 128 + (R - Y) / 1.402
    studio:  Y' = 16 + Y * 219/255                Cb' = 128 + (Cb - 128) * 224/255            (Cr' alike)

The two are easily mixed up: read as full range, a studio image has black lifted to 16 and white lowered to 235.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["bgr_to_nv12", "nv12_to_bgr", "through_camera"]

#: Range name to (luma offset, luma gain, chroma gain).
RANGES = {"full": (0.0, 1.0, 1.0), "studio": (16.0, 219 / 255, 224 / 255)}


def _gains(levels: str) -> tuple[float, float, float]:
    if levels not in RANGES:
        raise ValueError(f"the range is {levels!r}; use {' or '.join(RANGES)}")
    return RANGES[levels]


def _check(height: int, width: int) -> None:
    if height % 2 or width % 2 or height < 2 or width < 2:
        raise ValueError(f"NV12 needs an even size, not {height}x{width}")


def bgr_to_nv12(image: NDArray[np.uint8], levels: str) -> NDArray[np.uint8]:
    """Encode an image.

    Args:
        image: uint8 (H, W, 3) BGR, H and W even.
        levels: ``"full"`` (0..255) or ``"studio"`` (16..235).

    Returns:
        uint8 (H * 3 / 2, W): H rows of luma, then H / 2 rows of Cb, Cr pairs (mean of 2x2 pixels).
    """
    height, width = image.shape[:2]
    _check(height, width)
    offset, luma_gain, chroma_gain = _gains(levels)
    pixels = image.astype(np.float32)
    luma = np.array([[0.114, 0.587, 0.299]])  # of blue, green, red
    # (blue - luma) / 1.772 and (red - luma) / 1.402
    chroma = (np.array([[1.0, 0, 0], [0, 0, 1.0]]) - luma) / np.array([[1.772], [1.402]])
    small = cv2.resize(pixels, (width // 2, height // 2), interpolation=cv2.INTER_AREA)  # linear, so the order is free
    buffer = np.empty((height * 3 // 2, width), np.float32)
    buffer[:height] = cv2.transform(pixels, _affine(luma * luma_gain, offset))
    buffer[height:] = cv2.transform(small, _affine(chroma * chroma_gain, 128)).reshape(height // 2, width)
    return np.clip(np.rint(buffer, out=buffer), 0, 255, out=buffer).astype(np.uint8)


def _affine(matrix: NDArray[np.float64], offset: float) -> NDArray[np.float64]:
    return np.hstack([matrix, np.full((len(matrix), 1), offset)])


def nv12_to_bgr(buffer: NDArray[np.uint8], height: int, width: int, levels: str) -> NDArray[np.uint8]:
    """Decode an image; chroma is repeated for its 2x2 pixels.

    Args:
        buffer: uint8 with height * width * 3 / 2 elements, as :func:`bgr_to_nv12` gives.
        height, width: of the image, even.
        levels: range in which the buffer is read.

    Returns:
        uint8 (height, width, 3) BGR.
    """
    _check(height, width)
    offset, luma_gain, chroma_gain = _gains(levels)
    if buffer.size != height * width * 3 // 2:
        raise ValueError(f"an NV12 image of {height}x{width} has {height * width * 3 // 2} bytes, not {buffer.size}")
    plane = buffer.reshape(height * 3 // 2, width).astype(np.float32)
    luma = (plane[:height] - offset) / luma_gain
    small = (plane[height:].reshape(height // 2, width // 2, 2) - 128) / chroma_gain
    chroma = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
    blue = luma + 1.772 * chroma[..., 0]
    red = luma + 1.402 * chroma[..., 1]
    green = (luma - 0.299 * red - 0.114 * blue) / 0.587
    return np.asarray(np.clip(np.rint(np.stack([blue, green, red], axis=-1)), 0, 255), np.uint8)


def through_camera(image: NDArray[np.uint8], levels: str) -> NDArray[np.uint8]:
    """What is left of an image after the board's camera format: encoded and decoded in the same range."""
    height, width = image.shape[:2]
    return nv12_to_bgr(bgr_to_nv12(image, levels), height, width, levels)
