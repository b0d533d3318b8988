"""Calibration data as hb_mapper reads them: one file an image, numbers only, no header.

A file holds exactly as many elements as the model's input, in the colour and layout of training, pixels 0..255 that
are **not** normalised: mean and scale are applied by the first node. "RGB" means that red comes first; a published
script converts to RGB into one variable and writes the other, and its data are BGR.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.calibrate.images import SUFFIXES, ImageSet, Source, spread
from narrowcast.vision.preprocess import Preprocess, preprocess

__all__ = ["DTYPES", "VendorImages", "read_raw", "vendor_images", "write_vendor_files"]

DTYPES = ("float32", "uint8", "int32", "int16", "int8")
#: Pixels resized by another program may overshoot 0..255 a little.
_OVERSHOOT = 16.0


@dataclass(frozen=True)
class VendorImages(ImageSet):
    """Calibration files as an image set: iterating gives model inputs, float32 of shape (1, C, H, W) or (1, H, W, C).

    Attributes:
        dtype: element type of the files, one of :data:`DTYPES`.
    """

    dtype: str = "float32"

    def _problem(self, source: Source) -> str:
        """Nothing: the files are no pictures, and their sizes are right."""
        return ""

    def tensor(
        self, index: int, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None
    ) -> NDArray[np.float32]:
        """One model input; the files are ready-made, so nothing is changed."""
        file = self.sources[index]
        if isinstance(file, np.ndarray):
            return super().tensor(index, change)
        pixels = read_raw(file, _shape(self.preprocess), self.dtype).astype(np.float32)
        return _normalized(pixels, self.preprocess, file)

    def pixels(self) -> Iterator[NDArray[Any]]:
        """The files' own values, in their type and the shape of the model's input."""
        for file in self.sources:
            if isinstance(file, Path):
                yield read_raw(file, _shape(self.preprocess), self.dtype)


def _shape(spec: Preprocess) -> tuple[int, ...]:
    channels = 1 if spec.color == "gray" else 3
    planar = (1, channels, spec.height, spec.width)
    return planar if spec.layout == "NCHW" else (1, spec.height, spec.width, channels)


def read_raw(file: Path, shape: tuple[int, ...], dtype: str = "float32") -> NDArray[Any]:
    """Read one file.

    Args:
        file: numbers without header.
        shape: of the model's input.
        dtype: one of :data:`DTYPES`.

    Raises:
        UserError: another size; if the size fits another type, the message says which.
    """
    _check_size(file, shape, dtype)
    try:
        return np.fromfile(file, dtype).reshape(shape)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}", "check the file") from error


def _check_size(file: Path, shape: tuple[int, ...], dtype: str) -> None:
    if dtype not in DTYPES:
        raise UserError(f"calibration files of type {dtype} are unknown", f"use {', '.join(DTYPES)}")
    elements = int(np.prod(shape))
    wanted, size = elements * np.dtype(dtype).itemsize, file.stat().st_size
    if size == wanted:
        return
    if file.suffix.lower() in SUFFIXES:
        remedy = "it is a picture: write preprocess_on: True, or give the folder as --images"
    elif size == elements * 4 or size == elements:
        remedy = f"its size fits cal_data_type {'float32' if size == elements * 4 else 'uint8'}"
    else:
        remedy = "write the files again for this input"
    text = "x".join(str(n) for n in shape)
    raise UserError(f"{file} has {size} bytes, an input of {text} {dtype} has {wanted}", remedy)


def vendor_images(
    folder: str | Path, spec: Preprocess, dtype: str = "float32", *, limit: int | None = None
) -> VendorImages:
    """Find calibration files in a folder; every file counts, whatever its suffix.

    Args:
        folder: searched without subfolders; hidden files are skipped.
        spec: of the model: its size, colour and layout are the files', its mean, scale and camera are applied to them.
        dtype: element type, one of :data:`DTYPES`.
        limit: take at most this many, spread evenly over the sorted files.

    Raises:
        UserError: no folder, no files, or a file of another size, whose name is in the message.
    """
    path = Path(folder)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}", "give the folder of calibration files")
    files: list[Source] = [file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")]
    if not files:
        raise UserError(f"{path} holds no calibration files", "write them first, or give pictures as --images")
    files = files if limit is None else spread(files, limit)
    for file in files:
        if isinstance(file, Path):
            _check_size(file, _shape(spec), dtype)
    return VendorImages(tuple(files), spec, dtype=dtype)


def _normalized(pixels: NDArray[np.float32], spec: Preprocess, file: Path) -> NDArray[np.float32]:
    """What the board's first node makes of the pixels."""
    if not np.isfinite(pixels).all():
        raise UserError(f"{file} holds NaN or infinite values", "write it again")
    raw = not any(spec.mean) and all(scale == 1 for scale in spec.scale)
    low, high = float(pixels.min()), float(pixels.max())
    fractions = high <= 1.0 and bool((pixels != np.rint(pixels)).any())
    if not raw and (low < -_OVERSHOOT or high > 255 + _OVERSHOOT or fractions):
        raise UserError(
            f"{file} holds values from {low:.3g} to {high:.3g}, not pixels 0..255",
            "mean and scale are applied by the first node: write pixels, or set norm_type: no_preprocess",
        )
    if spec.camera != "rgb":
        return preprocess(_picture(pixels, spec), replace(spec, resize="stretch"))[0]
    shape = (1, -1, 1, 1) if spec.layout == "NCHW" else (1, 1, 1, -1)
    mean, scale = (np.asarray(entry, np.float32).reshape(shape) for entry in (spec.mean, spec.scale))
    return np.asarray((pixels - mean) * scale, np.float32)


def _picture(pixels: NDArray[np.float32], spec: Preprocess) -> NDArray[np.uint8]:
    """Back to uint8 (H, W, 3) BGR, as a camera would see it."""
    planes = pixels[0].transpose(1, 2, 0) if spec.layout == "NCHW" else pixels[0]
    if spec.color == "rgb":
        planes = planes[..., ::-1]
    elif spec.color == "gray":
        planes = planes.repeat(3, axis=-1)
    return np.ascontiguousarray(np.clip(np.rint(planes), 0, 255).astype(np.uint8))


def write_vendor_files(images: ImageSet, folder: str | Path, dtype: str = "float32") -> list[Path]:
    """Write an image set as calibration files.

    The camera is not simulated: the vendor's tool converts the colours itself. Its convention is a folder name that
    ends in ``_f32`` for float32; state ``cal_data_type`` in the YAML in any case.

    Args:
        images: pictures with the preprocessing of the model; model inputs (float arrays) are turned back into pixels.
        folder: is made if it is not there.
        dtype: ``"float32"`` or ``"uint8"`` (rounded).

    Returns:
        The files, ``00000_name.rgbchw`` and so on (colour and layout are the suffix).

    Raises:
        UserError: another type, or an image that cannot be read.
    """
    if dtype not in ("float32", "uint8"):
        raise UserError(f"calibration files of type {dtype} are not written", "use float32 or uint8")
    spec = images.preprocess
    suffix = spec.color + ("chw" if spec.layout == "NCHW" else "hwc")
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    written = []
    for index, pixels in enumerate(_pixels(images)):
        source = images.sources[index]
        name = f"{index:05d}_{source.stem}" if isinstance(source, Path) else f"{index:05d}"
        file = path / f"{name}.{suffix}"
        (np.clip(np.rint(pixels), 0, 255) if dtype == "uint8" else pixels).astype(dtype).tofile(file)
        written.append(file)
    return written


def _pixels(images: ImageSet) -> Iterator[NDArray[Any]]:
    if isinstance(images, VendorImages):
        yield from images.pixels()
        return
    spec = images.preprocess
    plain = replace(spec, mean=(0.0,), scale=(1.0,), camera="rgb")
    shape = (1, -1, 1, 1) if spec.layout == "NCHW" else (1, 1, 1, -1)
    mean, scale = (np.asarray(entry, np.float64).reshape(shape) for entry in (spec.mean, spec.scale))
    for source, tensor in zip(images.sources, replace(images, preprocess=plain), strict=True):
        finished = isinstance(source, np.ndarray) and source.dtype != np.uint8
        finished = finished or (isinstance(source, Path) and source.suffix == ".npy")
        yield tensor / scale + mean if finished else tensor
