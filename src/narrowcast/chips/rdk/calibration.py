"""Calibration as hb_mapper does it: its data, one file an image, numbers only, no header; and its search for ranges.

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
from narrowcast.bundle.choosing import Job, Searched
from narrowcast.calibrate.images import SUFFIXES, ImageSet, Source, input_shape, spread
from narrowcast.engine.qdq import lower_qdq
from narrowcast.graph.run import Runner
from narrowcast.ops.net import with_outputs
from narrowcast.plan import Draft, finish
from narrowcast.plan.types import Plan
from narrowcast.vision.preprocess import Preprocess, preprocess

__all__ = [
    "DTYPES", "STOP", "VendorImages", "finished", "hb_search", "picture", "read_raw", "vendor_images",
    "write_vendor_files",
]  # fmt: skip

DTYPES = ("float32", "uint8", "int32", "int16", "int8")
#: Pixels resized by another program may overshoot 0..255 a little.
_OVERSHOOT = 16.0
#: Mean output cosine at which the search ends.
STOP = 0.995
#: Name as the vendor's log prints it, our method, its percentile in percent.
_METHODS = (("max-percentile 0.99995", "percentile", 99.995), ("max", "minmax", 100.0), ("kl", "kl", 100.0))


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
        pixels = read_raw(file, input_shape(self.preprocess), self.dtype).astype(np.float32)
        return _normalized(pixels, self.preprocess, file)

    def pixels(self) -> Iterator[NDArray[Any]]:
        """The files' own values, in their type and the shape of the model's input."""
        for file in self.sources:
            if isinstance(file, Path):
                yield read_raw(file, input_shape(self.preprocess), self.dtype)


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
            _check_size(file, input_shape(spec), dtype)
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
        return preprocess(picture(pixels, spec), replace(spec, resize="stretch"))[0]
    shape = (1, -1, 1, 1) if spec.layout == "NCHW" else (1, 1, 1, -1)
    mean, scale = (np.asarray(entry, np.float32).reshape(shape) for entry in (spec.mean, spec.scale))
    return np.asarray((pixels - mean) * scale, np.float32)


def finished(source: Source) -> bool:
    """Whether an image is a model input already, not a picture whose pixels are whole numbers."""
    return source.dtype != np.uint8 if isinstance(source, np.ndarray) else source.suffix == ".npy"


def picture(pixels: NDArray[np.float32], spec: Preprocess) -> NDArray[np.uint8]:
    """Pixels 0..255 of a model input as uint8 (H, W, 3) BGR, as a camera would see them."""
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
        yield tensor / scale + mean if finished(source) else tensor


def hb_search(job: Job) -> Searched:
    """Search as hb_mapper's ``calibration_type: default`` does, within what the target allows.

    It tries {max, kl} x max_percentile {0.99995, 1.0} x per_channel x asymmetric for the whole model, judges by the
    cosine similarity of the outputs for the FIRST calibration sample, and stops at the first candidate that reaches
    0.995. This is from its logs and documents; inferred: the order (the candidate that 12 of 15 published logs chose
    comes first), and that the cosines of several outputs are averaged. The cosine of one image hides most of what costs
    accuracy, so ``auto`` measures otherwise.

    Returns:
        The plans that were tried, and a record that names the one selected and all candidates in order: the cosine of
        every output and their mean (``None`` where it was not tried), and why one was skipped.
    """
    first, ends = next(iter(job.calibration)), job.pairs
    expected = Runner(with_outputs(job.float_model, list(ends)), job.threads, "basic").run(first, list(ends))
    tried: list[dict[str, Any]] = []
    plans: dict[str, tuple[Plan, list[str]]] = {}
    best, selected = -1.0, ""
    for name, method, percentile, drafted, skipped in _candidates(job.drafted):
        if not skipped and best >= STOP:
            skipped = f"an earlier one reached {STOP}"
        tried.append({"name": name, "cosine": None, "outputs": {}, "skipped": skipped})
        if skipped:
            continue
        plans[name] = finish(drafted, job.statistics, method, percentile)
        graph = with_outputs(lower_qdq(job.model.ir, plans[name][0])[0], list(ends.values()))
        actual = Runner(graph, job.threads, "basic").run(first, list(ends.values()))
        cosines = {key: round(_cosine(expected[key], actual[other]), 6) for key, other in ends.items()}
        mean = round(float(np.mean(list(cosines.values()))), 6)
        tried[-1] |= {"cosine": mean, "outputs": cosines}
        if not selected or mean > best:
            best, selected = mean, name
    return Searched(plans, {"hb_search": {"selected": selected, "stop": STOP, "candidates": tried}})


def _candidates(drafted: Draft) -> Iterator[tuple[str, str, float, Draft, str]]:
    """(name as in the vendor's log, method, percentile, draft, why it is skipped) in the order of the search."""
    target = drafted.target
    symmetric = target.model_copy(update={"activation": target.activation.model_copy(update={"symmetric": True})})
    for per_channel, asymmetric in ((False, False), (False, True), (True, False), (True, True)):
        for method in _METHODS:
            name = ", ".join([method[0], *["per_channel"] * per_channel, *["asymmetric"] * asymmetric])
            why = "an activation has one scale here, not one a channel" if per_channel else ""
            if asymmetric and not per_channel and target.activation.symmetric:
                why = f"activations of {target.name} have no zero point"
            yield name, *method[1:], drafted if asymmetric else replace(drafted, target=symmetric), why


def _cosine(x: NDArray[Any], y: NDArray[Any]) -> float:
    a, b = x.reshape(-1).astype(np.float64), y.reshape(-1).astype(np.float64)
    norm = float(np.sqrt(np.dot(a, a) * np.dot(b, b)))
    return float(np.dot(a, b)) / norm if norm else float(np.array_equal(a, b))
