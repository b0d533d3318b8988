"""Masks of objects, computed where and when they are asked for.

A detection with a mask is 32 coefficients of prototypes that all objects share. Its logits are sampled bilinearly at
the pixels of its box in the original image and thresholded at logit 0 (probability 1/2), as Ultralytics' native
masks are: upsample, crop, threshold. Nothing of the size of the image is kept for an object, so that hundreds of
masks of a very large image are no burden; :meth:`Masks.rle` never even holds one.

Run lengths are as COCO has them: column by column, beginning with the zeros. All masks of an image are encoded
together, because most are small and the work on one is less than that of a call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from narrowcast.vision.preprocess import Geometry

__all__ = ["Masks", "compress", "dense_masks", "prototype_masks"]

#: Pixels of a mask that are computed at once when it is encoded.
_STRIP = 1 << 22
#: Up to this many prototype pixels a side, two small matrix products sample faster than an image warp does.
_SMALL = 48


class Masks(ABC):
    """Binary masks of N objects over one image, like a bool array of the shape (N, height, width).

    ``masks[3]`` is a bool (height, width) array, ``masks[selection]`` are fewer masks, and ``np.asarray(masks)`` are
    all of them at full size (N * height * width bytes). :meth:`crop` and :meth:`rle` work inside the boxes only.

    Attributes:
        height, width: of the image, pixels.
        corners: (N, 4) int64 left, top, right, bottom; outside this window a mask is 0. Right and bottom are exclusive.
    """

    def __init__(self, height: int, width: int, corners: NDArray[np.int64]) -> None:
        self.height = height
        self.width = width
        self.corners = corners

    @abstractmethod
    def columns(self, index: int, first: int, last: int) -> NDArray[np.bool_]:
        """(last - first, bottom - top) bool: image columns ``first`` to ``last`` of an object's window, transposed."""

    @abstractmethod
    def select(self, indices: NDArray[np.int64]) -> Masks:
        """The masks at the indices."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, height, width)."""
        return len(self.corners), self.height, self.width

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, index: Any) -> Any:
        """One bool (height, width) array for an integer, otherwise the chosen masks."""
        if not isinstance(index, (int, np.integer)):
            return self.select(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} masks, none with the index {index}")
        left, top, right, bottom = self.corners[index]
        mask = np.zeros((self.height, self.width), np.bool_)
        mask[top:bottom, left:right] = self.crop(int(index))
        return mask

    def __iter__(self) -> Iterator[NDArray[np.bool_]]:
        return (self[index] for index in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        dense = np.zeros(self.shape, np.bool_)
        for index, (left, top, right, bottom) in enumerate(self.corners):
            dense[index, top:bottom, left:right] = self.crop(index)
        return dense if dtype is None else dense.astype(dtype, copy=False)

    def crop(self, index: int) -> NDArray[np.bool_]:
        """(bottom - top, right - left) bool: the window of one object, see ``corners``."""
        left, _, right, _ = self.corners[index]
        return self.columns(index, int(left), int(right)).T

    def rle(self, compressed: bool = True) -> list[dict[str, Any]]:
        """Run-length encodings as in COCO result files.

        Args:
            compressed: counts as text (as pycocotools takes them) instead of a list of integers.

        Returns:
            One ``{"size": [height, width], "counts": ...}`` an object.
        """
        counts = counts_of_edges([self._edges(index) for index in range(len(self))], self.height, self.width)
        coded = compress(counts) if compressed else [runs.tolist() for runs in counts]
        return [{"size": [self.height, self.width], "counts": entry} for entry in coded]

    def _edges(self, index: int) -> NDArray[np.int64]:
        left, top, right, bottom = (int(v) for v in self.corners[index])
        step = max(1, _STRIP // max(1, bottom - top))
        strips = [
            edges_of_columns(self.columns(index, first, min(first + step, right)), first, top, self.height)
            for first in range(left, right, step)
        ]
        return np.concatenate([np.zeros(0, np.int64), *strips])


class _Dense(Masks):
    def __init__(self, masks: NDArray[np.bool_]) -> None:
        count, height, width = masks.shape
        super().__init__(height, width, np.tile(np.array([0, 0, width, height], np.int64), (count, 1)))
        self.masks = masks

    def columns(self, index: int, first: int, last: int) -> NDArray[np.bool_]:
        return np.ascontiguousarray(self.masks[index, :, first:last].T)

    def select(self, indices: NDArray[np.int64]) -> Masks:
        return _Dense(self.masks[indices])


class _Axis:
    """Where the pixels of one image axis lie on the prototypes.

    Pixel centres correspond: prototype index = ((pixel + 0.5) * scale + pad) / stride - 0.5. Samples are kept inside
    the prototypes whose centres lie in the image, because those of the letterbox border say nothing about it.
    """

    def __init__(self, pixels: int, scale: float, pad: float, stride: float, prototypes: int) -> None:
        self.pixels = pixels
        self.gain = scale / stride
        self.offset = (0.5 * scale + pad) / stride - 0.5
        lowest = int(np.ceil(pad / stride - 0.5))
        highest = int(np.floor((pad + pixels * scale) / stride - 0.5))
        self.low = min(max(0, lowest), prototypes - 1)
        self.high = min(max(self.low, highest), prototypes - 1)

    def window(self, first: int, last: int) -> tuple[int, int]:
        """Prototypes that pixels ``first`` to ``last`` (exclusive) need: begin and exclusive end."""
        begin = int(np.floor(first * self.gain + self.offset))
        end = int(np.floor((last - 1) * self.gain + self.offset)) + 2
        begin = min(max(begin, self.low), self.high)
        return begin, max(begin + 1, min(end, self.high + 1))

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """(pixels, prototypes up to the last used) bilinear weights, two in each row."""
        place = np.clip(np.arange(self.pixels) * self.gain + self.offset, self.low, self.high)
        lower = np.floor(place).astype(np.int64)
        part = place - lower
        matrix = np.zeros((self.pixels, self.high + 2), np.float32)
        rows = np.arange(self.pixels)
        matrix[rows, lower] = 1 - part
        matrix[rows, lower + 1] = part
        return matrix


class _Prototyped(Masks):
    def __init__(
        self,
        corners: NDArray[np.int64],
        coefficients: NDArray[np.float32],
        prototypes: NDArray[np.float32],
        axes: tuple[_Axis, _Axis],
    ) -> None:
        super().__init__(axes[0].pixels, axes[1].pixels, corners)
        self.coefficients = coefficients
        self.prototypes = prototypes
        self.axes = axes

    def select(self, indices: NDArray[np.int64]) -> Masks:
        return _Prototyped(self.corners[indices], self.coefficients[indices], self.prototypes, self.axes)

    def columns(self, index: int, first: int, last: int) -> NDArray[np.bool_]:
        _, top, _, bottom = (int(v) for v in self.corners[index])
        vertical, horizontal = self.axes
        if last <= first or bottom <= top:
            return np.zeros((max(0, last - first), max(0, bottom - top)), np.bool_)
        (y0, y1), (x0, x1) = vertical.window(top, bottom), horizontal.window(first, last)
        part = self.prototypes[:, y0:y1, x0:x1]
        logits = np.dot(self.coefficients[index], part.reshape(len(part), -1)).reshape(y1 - y0, x1 - x0)
        if max(logits.shape) <= _SMALL:
            rows, columns = vertical.weights[top:bottom, y0:y1], horizontal.weights[first:last, x0:x1]
            return np.asarray(columns @ (logits.T @ rows.T) > 0)
        place = np.array(
            [[vertical.gain, 0, top * vertical.gain + vertical.offset - y0],
             [0, horizontal.gain, first * horizontal.gain + horizontal.offset - x0]]
        )  # fmt: skip
        flags = cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR
        size = (bottom - top, last - first)
        source = np.ascontiguousarray(logits.T)
        return np.asarray(cv2.warpAffine(source, place, size, flags=flags, borderMode=cv2.BORDER_REPLICATE) > 0)


def dense_masks(masks: NDArray[Any]) -> Masks:
    """Masks that are already there, (N, height, width)."""
    array = np.asarray(masks).astype(np.bool_, copy=False)
    if array.ndim != 3:
        raise ValueError(f"masks have the shape (N, height, width), not {array.shape}")
    return _Dense(array)


def prototype_masks(
    boxes: NDArray[np.float32],
    coefficients: NDArray[np.float32],
    prototypes: NDArray[np.float32],
    geometry: Geometry,
    stride: float,
) -> Masks:
    """Masks from coefficients and prototypes; nothing is computed yet.

    Args:
        boxes: (N, 4) float32 xyxy in pixels of the original image, inside it. A pixel belongs to a box when
            left <= column index < right (and rows alike), as in Ultralytics' ``crop_mask``.
        coefficients: (N, M) float32.
        prototypes: (M, h, w) float32 over the model input.
        geometry: where the image lies in the input.
        stride: input pixels a prototype pixel.
    """
    count, height, width = prototypes.shape
    if coefficients.shape != (len(boxes), count):
        raise ValueError(f"{count} prototypes and {len(boxes)} boxes need other coefficients than {coefficients.shape}")
    rows = _Axis(geometry.image_height, geometry.scale_y, geometry.pad_top, stride, height)
    columns = _Axis(geometry.image_width, geometry.scale_x, geometry.pad_left, stride, width)
    limits = np.array([columns.pixels, rows.pixels] * 2)
    corners = np.clip(np.ceil(boxes), 0, limits).astype(np.int64)
    return _Prototyped(corners, coefficients, prototypes, (rows, columns))


def edges_of_columns(columns: NDArray[np.bool_], left: int, top: int, height: int) -> NDArray[np.int64]:
    """Where the mask changes, counted through the image column by column.

    Args:
        columns: (w, h) a window of the mask, transposed and contiguous; everything around it is 0.
        left, top: of the window in the image, pixels.
        height: of the image, pixels.

    Returns:
        (2 * runs,) first index of a run of ones, first index behind it, and so on; not decreasing.
    """
    count, size = columns.shape
    padded = np.zeros(count * (size + 1) + 1, np.bool_)  # a zero before everything and below each column
    padded[1:].reshape(count, size + 1)[:, :size] = columns
    column, row = np.divmod(np.flatnonzero(padded[1:] != padded[:-1]), size + 1)
    return np.asarray((column + left) * height + row + top, np.int64)


def counts_of_edges(edges: Sequence[NDArray[np.int64]], height: int, width: int) -> list[NDArray[np.int64]]:
    """Run lengths of zeros, ones, zeros, ... of masks.

    Args:
        edges: of each mask, as :func:`edges_of_columns` gives them, windows from left to right.
        height, width: of the image, pixels.

    Returns:
        For each mask the lengths as COCO counts them: the first may be 0, the last is not.
    """
    if not edges:
        return []
    pixels = height * width
    # one long row of masks, each with a spare pixel behind it, so that runs of two masks never touch
    starts = np.arange(len(edges)) * (pixels + 1)
    places = np.concatenate(edges) + np.repeat(starts, [len(part) for part in edges])
    # a run that reaches the bottom goes on at the top of the next column
    joined = np.flatnonzero(places[1:-1:2] == places[2::2]) * 2 + 1
    apart = np.ones(len(places), np.bool_)
    apart[joined] = apart[joined + 1] = False
    places = places[apart]
    first = np.searchsorted(places, starts)
    after = np.append(first[1:], len(places))
    bounds = np.insert(
        places, np.stack([first, after], 1).reshape(-1), np.stack([starts, starts + pixels], 1).reshape(-1)
    )
    lengths = np.diff(bounds)
    begins = first + 2 * np.arange(len(edges))
    masks = [lengths[begin : begin + size + 1] for begin, size in zip(begins, after - first, strict=True)]
    return [counts if counts[-1] else counts[:-1] for counts in masks]


def compress(masks: Sequence[NDArray[np.int64]]) -> list[str]:
    """Run lengths in the text form of COCO result files (``rleToString`` of the COCO API, BSD).

    Each count, less the count before the previous one from the fourth on, is cut into groups of 5 bits, lowest
    first; bit 5 says that another group follows, and 48 is added to make a printable character.
    """
    if not masks:
        return []
    counts = np.concatenate(masks)
    sizes = np.array([len(mask) for mask in masks])
    begins = np.cumsum(sizes) - sizes
    place = np.arange(len(counts)) - np.repeat(begins, sizes)
    values = counts.copy()
    late = np.flatnonzero(place > 2)
    values[late] -= counts[late - 2]
    most = int(np.abs(values).max()).bit_length() // 5 + 1
    shifted = values[:, None] >> (5 * np.arange(most + 1))
    groups, rest = shifted[:, :-1] & 31, shifted[:, 1:]
    more = rest != np.where(groups & 16, -1, 0)  # a group ends the number when its top bit is the sign of the rest
    written = np.ones_like(more)
    for group in range(1, most):
        written[:, group] = written[:, group - 1] & more[:, group - 1]
    text: str = (groups + 32 * more + 48).astype(np.uint8)[written].tobytes().decode("ascii")
    ends = np.cumsum(np.add.reduceat(written.sum(axis=1), begins))
    return [text[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
