"""One pass over labelled images: several at once, results in order, resumable."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from narrowcast.base.errors import UserError
from narrowcast.base.journal import Journal
from narrowcast.base.progress import track
from narrowcast.bundle.store import Predictor
from narrowcast.graph.run import available_cores
from narrowcast.vision.preprocess import preprocess, read_image
from narrowcast.vision.types import Result

__all__ = ["Pass", "run_pass"]

Convert = Callable[[int, Result], Any]


@dataclass(frozen=True)
class Pass:
    """Results of one graph.

    Attributes:
        results: one a readable image, as converted, in the order of the images.
        images_per_second: of the images that this pass computed itself; 0 without any.
        unreadable: what is wrong with each image that gave no result, by its index.
    """

    results: list[Any]
    images_per_second: float
    unreadable: Mapping[int, str]

    def readable(self, count: int) -> list[int]:
        """Indices of the ``count`` images that gave a result."""
        return [index for index in range(count) if index not in self.unreadable]

    def check_same(self, other: Pass) -> None:
        """That two passes are about the same images.

        Raises:
            UserError: an image became unreadable, or readable, between them.
        """
        changed = self.unreadable.keys() ^ other.unreadable.keys()
        if changed:
            raise UserError(f"{len(changed)} images changed while they were scored", "run it again")


def run_pass(
    name: str,
    predictor: Predictor,
    files: Sequence[Path],
    convert: Convert,
    options: dict[str, Any],
    journal: Journal,
    workers: int | None,
    strict: bool = False,
) -> Pass:
    """Predict every image.

    Every worker takes an image from the file to the result with one thread of onnxruntime, and they share one
    session. That keeps all cores busy through reading and decoding too, and the result does not depend on their
    number.

    Args:
        name: for the progress bar.
        predictor: made with one thread.
        files: images.
        convert: result of the image of an index to something JSON-ready.
        options: of decoding.
        journal: open; results of an interrupted pass, and where these go.
        workers: images in work at once; one a core by default.
        strict: an unreadable image is an error.

    Raises:
        UserError: no image can be read, or one cannot and ``strict``.
    """
    started = time.perf_counter()
    todo = [index for index in range(len(files)) if index not in journal.known]
    results = dict(journal.known)
    unreadable: dict[int, str] = {}

    def one(index: int) -> Any:
        try:
            tensor, geometry = preprocess(read_image(files[index]), predictor.preprocess)
        except ValueError as error:
            return error
        return convert(index, predictor.decode(predictor.run(tensor), geometry, **options))

    for index, result in track(_in_order(one, todo, workers or available_cores()), name, total=len(todo)):
        if isinstance(result, ValueError):
            unreadable[index] = str(result)
            if strict or len(unreadable) == len(files):
                raise UserError(str(result), "replace the image, or take it out of the labels") from result
        else:
            results[index] = result
            journal.put(index, result)
    seconds = time.perf_counter() - started
    speed = len(todo) / seconds if todo else 0.0
    return Pass([results[index] for index in sorted(results)], speed, unreadable)


def _in_order(work: Callable[[int], Any], indices: Sequence[int], workers: int) -> Iterator[tuple[int, Any]]:
    """Results in order, with at most two images a worker waiting."""
    waiting: deque[tuple[int, Future[Any]]] = deque()
    pool = ThreadPoolExecutor(workers, "evaluate")
    try:
        for index in indices:
            waiting.append((index, pool.submit(work, index)))
            if len(waiting) >= 2 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
