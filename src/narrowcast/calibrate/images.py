"""Images for calibration and comparison: found once, read lazily, prepared in a background thread."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.base.progress import track
from narrowcast.base.reading import read_text, reading
from narrowcast.vision.preprocess import Preprocess, preprocess, read_image

__all__ = ["SUFFIXES", "ImageSet", "Images", "image_files", "images", "input_shape", "spread"]

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
#: Unreadable files that a note names.
_NAMED = 3
Source = Path | NDArray[Any]
Item = TypeVar("Item")


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """At most ``limit`` of the items, spread evenly, in order; the first is always among them.

    Args:
        items: images, or what stands for them.
        limit: 1 or more.

    Raises:
        UserError: the limit leaves none.
    """
    if limit < 1:
        raise UserError(f"a limit of {limit} images leaves none", "give 1 or more")
    count = len(items)
    return list(items) if count <= limit else [items[index * count // limit] for index in range(limit)]


def input_shape(spec: Preprocess) -> tuple[int, ...]:
    """Of a model input: (1, C, H, W) or (1, H, W, C)."""
    channels, size = 1 if spec.color == "gray" else 3, (spec.height, spec.width)
    return (1, channels, *size) if spec.layout == "NCHW" else (1, *size, channels)


@dataclass(frozen=True)
class ImageSet:
    """Images and the preprocessing that turns each into a model input.

    Attributes:
        sources: files, or arrays: uint8 HxWx3 BGR images, or float32 tensors that are already model inputs.
        preprocess: how an image becomes an input.
        strict: a file that is no readable image is an error, instead of being left out by :meth:`usable`.
        notes: on what was left out, one sentence each.
    """

    sources: tuple[Source, ...]
    preprocess: Preprocess
    strict: bool = False
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<ImageSet of {len(self)} for an input of {self.preprocess.height}x{self.preprocess.width}>"

    def __len__(self) -> int:
        return len(self.sources)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """Model inputs, float32 (1, C, H, W) or (1, H, W, C), in order.

        Raises:
            UserError: naming a file that cannot be read.
        """
        return _ahead(self.tensor(index) for index in range(len(self)))

    def tensor(
        self, index: int, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None
    ) -> NDArray[np.float32]:
        """One model input.

        Args:
            index: of the image.
            change: applied to the uint8 (H, W, 3) BGR image before preprocessing; ready-made inputs stay.

        Raises:
            UserError: naming a file that cannot be read.
        """
        source = self.sources[index]
        if isinstance(source, np.ndarray) and source.dtype != np.uint8:
            return self._checked(source, f"array {index}")
        if isinstance(source, Path) and source.suffix == ".npy":
            return self._checked(_load_npy(source), str(source))
        try:
            image = source if isinstance(source, np.ndarray) else read_image(source)
            return preprocess(image if change is None else change(image), self.preprocess)[0]
        except ValueError as error:
            raise UserError(str(error), "remove or replace the image") from error

    def _checked(self, tensor: NDArray[Any], name: str) -> NDArray[np.float32]:
        if tensor.ndim == 3:
            tensor = tensor[None]
        if tensor.shape != (wanted := input_shape(self.preprocess)):
            raise UserError(f"{name} has the shape {tensor.shape}", f"the model takes {wanted}")
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused next
            tensor = np.asarray(tensor, np.float32)
        if not np.isfinite(tensor).all():
            raise UserError(f"{name} holds NaN or infinite values", "write it again")
        return tensor

    def subset(self, indices: Sequence[int]) -> ImageSet:
        """The images at ``indices``, in that order."""
        return replace(self, sources=tuple(self.sources[index] for index in indices))

    def spread(self, limit: int) -> ImageSet:
        """At most ``limit`` images, as the function of that name chooses them."""
        return replace(self, sources=tuple(spread(self.sources, limit)))

    def _problem(self, source: Source) -> str:
        """Why a file is no readable image, empty where it is; arrays are looked at when they are used."""
        if isinstance(source, np.ndarray) or source.suffix == ".npy":
            return ""
        try:
            read_image(source)
        except ValueError as error:
            return str(error)
        return ""

    def usable(self) -> ImageSet:
        """The images that can be read, each content once however many names it has; :attr:`notes` count the others.

        Every file is decoded once for that. So no image is on both sides of a split.

        Raises:
            UserError: none is left, or one is unreadable and the set is :attr:`strict`.
        """
        with ThreadPoolExecutor() as pool:
            problems = list(track(pool.map(self._problem, self.sources), "read images", len(self)))
        bad = [problem for problem in problems if problem]
        if bad and (self.strict or len(bad) == len(self)):
            raise UserError(bad[0], "remove or replace the image" if len(self) > 1 else "give another image")
        digests = self.hashes()
        first = {digest: index for index, digest in reversed(list(enumerate(digests))) if not problems[index]}
        copies = len(self) - len(bad) - len(first)
        notes = list(self.notes)
        if bad:
            notes.append(left_out(bad, len(self)))
        if copies:
            notes.append(f"{copies} of {len(self)} images left out: the same content is there under another name")
        return replace(self.subset(sorted(first.values())), notes=tuple(notes))

    def hold_back(self, share: float = 0.1) -> tuple[ImageSet, ImageSet]:
        """Split into images to calibrate on and images to compare on, the same way every time.

        Args:
            share: of the images to hold back, spread evenly; at least one when there are two or more.

        Returns:
            (calibration, held back). A single image is not held back.
        """
        count = len(self)
        every = max(2, round(1 / share))
        held = (list(range(every - 1, count, every)) or [count - 1]) if count > 1 else []
        taken = set(held)
        return self.subset([index for index in range(count) if index not in taken]), self.subset(held)

    def hashes(self) -> list[str]:
        """SHA-256 of every source, in order."""
        return [
            hashlib.sha256(source.read_bytes() if isinstance(source, Path) else source.tobytes()).hexdigest()
            for source in self.sources
        ]


def left_out(problems: Sequence[str], count: int) -> str:
    """One note on the files of ``count`` that cannot be read: how many, and the first of them with what is wrong."""
    more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
    return f"{len(problems)} of {count} files left out: {'; '.join(problems[:_NAMED])}{more}"


#: What :func:`images` takes; a set that is one already stays as it is.
Images = str | Path | Sequence[str | Source] | NDArray[Any] | ImageSet


def images(source: Images, preprocess: Preprocess, *, limit: int | None = None, strict: bool = False) -> ImageSet:
    """Find images.

    Args:
        source: a folder (with all folders in it; hidden files are passed over), one image, a text file with one path
            a line (relative to the file), a ``.npy`` file or array with a batch of model inputs, a list of paths and
            arrays, or a set of images.
        preprocess: how an image becomes a model input; a set of images keeps its own.
        limit: take at most this many, spread evenly over the sorted files.
        strict: of the set, see :class:`ImageSet`.

    Raises:
        UserError: nothing there, or nothing that is an image.
    """
    if isinstance(source, ImageSet):
        return source if limit is None else source.spread(limit)
    found = _arrays(source) if isinstance(source, np.ndarray) else _sources(source)
    return ImageSet(tuple(found if limit is None else spread(found, limit)), preprocess, strict)


def image_files(folder: Path, suffixes: Collection[str] = SUFFIXES) -> list[Path]:
    """Files with one of the suffixes in a folder and all folders in it, sorted; nothing whose name begins with a dot.

    Raises:
        UserError: there are none.
    """
    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            found += [Path(root, name) for name in names if not name.startswith(".")]
        seen.add(real)
    found = sorted(file for file in found if file.suffix.lower() in suffixes)
    if not found:
        raise UserError(f"{folder} holds no images", f"put {', '.join(sorted(suffixes))} files there or in its folders")
    return found


def _sources(source: str | Path | Sequence[str | Source]) -> list[Source]:
    if not isinstance(source, (str, Path)):
        found: list[Source] = []
        for item in source:
            if isinstance(item, np.ndarray):
                found.append(item)
            elif Path(item).is_file():
                found.append(Path(item))
            else:
                found += _sources(item)
        if not found:
            raise UserError("the list of images is empty", "give at least one image")
        return found
    path = Path(source)
    if path.is_dir():
        return list(image_files(path, {*SUFFIXES, ".npy"}))
    if not path.exists():
        raise UserError(f"{path} does not exist", "give a folder of images, a list file or a .npy file")
    if path.suffix == ".npy":
        return _arrays(_load_npy(path))
    if path.suffix.lower() in SUFFIXES:
        return [path]
    return _listed(path)


def _load_npy(path: Path) -> NDArray[Any]:
    with reading(path, "write it with numpy.save", "is no .npy array"):
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
        if array.dtype.kind not in "biuf":
            raise ValueError(f"its elements are {array.dtype}, no numbers")
        return array


def _arrays(array: NDArray[Any]) -> list[Source]:
    if array.ndim not in (3, 4) or array.size == 0:
        raise UserError(f"an array of shape {array.shape} is no batch of images", "give N x C x H x W")
    return list(array) if array.ndim == 4 else [array]


def _listed(path: Path) -> list[Source]:
    text = read_text(path, "give a folder, an image, or a text file with one path a line")
    lines = [line.strip() for line in text.splitlines()]
    files = [path.parent / line for line in lines if line and not line.startswith("#")]
    if not files:
        raise UserError(f"{path} lists no images", "write one path a line")
    missing = [file for file in files if not file.exists()]
    if missing:
        raise UserError(f"{path} lists {len(missing)} missing files, first {missing[0]}", "mend the list")
    return list(files)


def _ahead(tensors: Iterator[NDArray[np.float32]], depth: int = 2) -> Iterator[NDArray[np.float32]]:
    """Read up to ``depth`` inputs ahead in a thread; an exception there is raised here, in its place."""
    ready: queue.Queue[NDArray[np.float32] | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: NDArray[np.float32] | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for tensor in tensors:
                if not put(tensor):
                    return
            put(None)
        except BaseException as error:  # handed over to the consumer, which raises it
            put(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
