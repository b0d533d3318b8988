"""From an image file to the tensor that the model eats; the same for calibration, evaluation and prediction.

NV12, the camera format of boards, is full-resolution luma, then interleaved chroma at half resolution; BT.601, on
pixels 0..255:

    full:    Y = 0.299 R + 0.587 G + 0.114 B      Cb = 128 + (B - Y) / 1.772      Cr = 128 + (R - Y) / 1.402
    studio:  Y' = 16 + Y * 219/255                Cb' = 128 + (Cb - 128) * 224/255            (Cr' alike)

The two are easily mixed up: read as full range, a studio image has black lifted to 16 and white lowered to 235.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from narrowcast.vision.limits import MOST_PIXELS, claimed_pixels

_INTERPOLATION = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "cubic": cv2.INTER_CUBIC,
}
#: Pixels of a side of a model input, at most.
LONGEST_SIDE = 1 << 15
_CHOICES = {
    "resize": ("letterbox", "stretch", "center-crop"),
    "interpolation": tuple(_INTERPOLATION),
    "color": ("rgb", "bgr", "gray"),
    "layout": ("NCHW", "NHWC"),
    "camera": ("rgb", "nv12-full", "nv12-studio"),
}


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a model input, as data.

    Attributes:
        height, width: of the model input, pixels.
        resize: ``"letterbox"`` (keep the aspect ratio, pad), ``"stretch"``, or ``"center-crop"`` (short side resized
            to ``resize_shorter``, then cropped).
        resize_shorter: pixels, only for ``"center-crop"``; ``None`` means the larger of height and width.
        interpolation: ``"bilinear"``, ``"nearest"``, ``"area"`` or ``"cubic"``.
        pad_value: grey level of the letterbox border, 0..255.
        color: what the model eats.
        mean, scale: ``x = (pixel - mean) * scale`` on pixels 0..255; one value, or one a channel.
        layout: of the tensor.
        camera: ``"nv12-full"`` or ``"nv12-studio"`` sends the image through the board camera's format first.
    """

    height: int
    width: int
    resize: str = "letterbox"
    resize_shorter: int | None = None
    interpolation: str = "bilinear"
    pad_value: int = 114
    color: str = "rgb"
    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1 / 255,)
    layout: str = "NCHW"
    camera: str = "rgb"

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; use one of {', '.join(allowed)}")
        if not (0 < self.height <= LONGEST_SIDE and 0 < self.width <= LONGEST_SIDE):
            raise ValueError(f"an input of {self.height}x{self.width} pixels is impossible")
        if not 0 <= self.pad_value <= 255 or not 0 < (self.resize_shorter or 1) <= LONGEST_SIDE:
            raise ValueError(f"pad_value {self.pad_value} or resize_shorter {self.resize_shorter} is impossible")
        channels = 1 if self.color == "gray" else 3
        for name in ("mean", "scale"):
            if len(getattr(self, name)) not in (1, channels):
                raise ValueError(f"{name} has {len(getattr(self, name))} values for {channels} channels")
            if not np.isfinite(np.asarray(getattr(self, name), np.float32)).all():
                raise ValueError(f"{name} holds values that are no finite float32 numbers")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "mean": list(self.mean), "scale": list(self.scale)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Preprocess:
        """The opposite of :meth:`to_dict`; ``ValueError`` names an unknown or impossible entry."""
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ValueError(f"unknown preprocessing entry {unknown[0]!r}; known are {', '.join(sorted(known))}")
        values: dict[str, Any] = {k: tuple(map(float, v)) if k in ("mean", "scale") else v for k, v in data.items()}
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"preprocessing is incomplete: {error}") from error


@dataclass(frozen=True)
class Geometry:
    """Where the image lies in the model input: ``input = image * scale + pad``.

    Attributes:
        image_width, image_height: of the original image, pixels.
        scale_x, scale_y: input pixels an image pixel.
        pad_left, pad_top: input pixels; negative where the image is cropped.
    """

    image_width: int
    image_height: int
    scale_x: float = 1.0
    scale_y: float = 1.0
    pad_left: float = 0.0
    pad_top: float = 0.0

    def undo_boxes(self, boxes: NDArray[Any]) -> NDArray[np.float32]:
        """(N, 4) xyxy in input pixels to image pixels, clipped to the image."""
        pad = np.array([self.pad_left, self.pad_top] * 2, np.float32)
        scale = np.array([self.scale_x, self.scale_y] * 2, np.float32)
        limit = np.array([self.image_width, self.image_height] * 2, np.float32)
        return np.asarray(np.clip((boxes - pad) / scale, 0, limit), np.float32)

    def undo_points(self, points: NDArray[Any]) -> NDArray[np.float32]:
        """(..., 2 or more) x, y in input pixels to image pixels, clipped; further columns are kept."""
        result = np.array(points, np.float32)
        result[..., 0] = np.clip((result[..., 0] - self.pad_left) / self.scale_x, 0, self.image_width)
        result[..., 1] = np.clip((result[..., 1] - self.pad_top) / self.scale_y, 0, self.image_height)
        return result


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image as uint8 (H, W, 3) BGR; grey becomes BGR and transparency is dropped.

    Raises:
        ValueError: the file is missing, no readable image, or one of more than
            :data:`~narrowcast.vision.limits.MOST_PIXELS` pixels.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if claimed_pixels(data[:24].tobytes()) > MOST_PIXELS:
        raise ValueError(f"{path} has more than {MOST_PIXELS} pixels")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except cv2.error as error:
        raise ValueError(f"{path} is corrupt, or has more than {MOST_PIXELS} pixels") from error
    if image is None:
        raise ValueError(f"{path} is corrupt or not an image")
    return np.asarray(image, np.uint8)


def preprocess(image: NDArray[np.uint8], spec: Preprocess) -> tuple[NDArray[np.float32], Geometry]:
    """Turn an image into the model input.

    Args:
        image: uint8 (H, W, 3) BGR, or (H, W) grey.
        spec: what to do.

    Returns:
        float32 tensor (1, C, height, width) or (1, height, width, C), and where the image lies in it.
    """
    if image.ndim == 2:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), np.uint8)
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"an image has the shape (height, width, 3), not {image.shape}")
    placed, geometry = _PLACE[spec.resize](image, spec)
    if spec.camera != "rgb":

        placed = through_camera(placed, spec.camera.removeprefix("nv12-"))
    return _normalize(placed, spec), geometry


def _normalize(image: NDArray[np.uint8], spec: Preprocess) -> NDArray[np.float32]:
    if spec.color == "gray":
        planes = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[None]
    else:
        planes = image.transpose(2, 0, 1)
        if spec.color == "rgb":
            planes = planes[::-1]
    mean = np.asarray(spec.mean, np.float32).reshape(-1, 1, 1)
    scale = np.asarray(spec.scale, np.float32).reshape(-1, 1, 1)
    tensor = planes.astype(np.float32)
    if mean.any():
        tensor -= mean
    tensor *= scale
    if spec.layout == "NHWC":
        tensor = tensor.transpose(1, 2, 0)
    return np.ascontiguousarray(tensor[None])


def _letterbox(image: NDArray[np.uint8], spec: Preprocess) -> tuple[NDArray[np.uint8], Geometry]:
    """As Ultralytics does it: centred, half pixels rounded so that the extra row goes to the bottom and right."""
    height, width = image.shape[:2]
    ratio = min(spec.height / height, spec.width / width)
    new_width, new_height = max(1, round(width * ratio)), max(1, round(height * ratio))
    resized = _resize(image, new_width, new_height, spec)
    left = round((spec.width - new_width) / 2 - 0.1)
    top = round((spec.height - new_height) / 2 - 0.1)
    canvas = np.full((spec.height, spec.width, 3), spec.pad_value, np.uint8)
    canvas[top : top + new_height, left : left + new_width] = resized
    return canvas, Geometry(width, height, ratio, ratio, left, top)


def _stretch(image: NDArray[np.uint8], spec: Preprocess) -> tuple[NDArray[np.uint8], Geometry]:
    height, width = image.shape[:2]
    geometry = Geometry(width, height, spec.width / width, spec.height / height)
    return _resize(image, spec.width, spec.height, spec), geometry


def _center_crop(image: NDArray[np.uint8], spec: Preprocess) -> tuple[NDArray[np.uint8], Geometry]:
    height, width = image.shape[:2]
    shorter = max(spec.resize_shorter or 0, spec.height, spec.width)
    ratio = shorter / min(height, width)
    if ratio * max(height, width) > 1 << 15:
        raise ValueError(f"an image of {width}x{height} is too narrow to crop")
    new_width, new_height = max(shorter, round(width * ratio)), max(shorter, round(height * ratio))
    resized = _resize(image, new_width, new_height, spec)
    left, top = round((new_width - spec.width) / 2), round((new_height - spec.height) / 2)
    cropped = resized[top : top + spec.height, left : left + spec.width]
    return cropped, Geometry(width, height, new_width / width, new_height / height, -left, -top)


_PLACE = {"letterbox": _letterbox, "stretch": _stretch, "center-crop": _center_crop}


def _resize(image: NDArray[np.uint8], width: int, height: int, spec: Preprocess) -> NDArray[np.uint8]:
    if image.shape[:2] == (height, width):
        return image
    resized = cv2.resize(image, (width, height), interpolation=_INTERPOLATION[spec.interpolation])
    return np.asarray(resized, np.uint8)


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
