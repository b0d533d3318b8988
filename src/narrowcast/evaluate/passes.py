"""One pass over labelled images: several at once, results in order, resumable; and what was found.

How sure a number is: a metric is computed again and again on images drawn with replacement.

Two graphs are compared on the same draws, so that the interval of their ratio is that of the difference between the
graphs and not that of the choice of images (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.base.progress import Journal, digest_of, track
from narrowcast.base.writing import check_file, write_file
from narrowcast.bundle.store import Predictor
from narrowcast.evaluate.coco_scores import CocoScores, weighted_average_precision
from narrowcast.graph.run import available_cores
from narrowcast.vision.preprocess import preprocess, read_image
from narrowcast.vision.types import Detections, Result

Some = TypeVar("Some")


def cache_folder() -> Path:
    """Where unfinished evaluations lie: ``$XDG_CACHE_HOME/narrowcast`` or ``~/.cache/narrowcast``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "narrowcast"


def drawn(entries: list[Some], limit: int | None, seed: int) -> list[Some]:
    """At most ``limit`` of the entries, drawn at random, in their order; all of them without a limit.

    Raises:
        UserError: a limit that leaves none.
    """
    if limit is None:
        return entries
    if limit < 1:
        raise UserError(f"a limit of {limit} images leaves none", "give 1 or more")
    chosen = np.random.default_rng(seed).choice(len(entries), min(limit, len(entries)), replace=False)
    return [entries[index] for index in sorted(chosen.tolist())]


def evaluation_key(predictor: Predictor, files: Sequence[Path], **more: Any) -> dict[str, Any]:
    """Everything that the results of a pass depend on, JSON-ready; the images by name, size and time.

    Args:
        predictor: the graph.
        files: the images.
        more: what the kind of results adds.
    """
    images = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    return {
        "graph": predictor.digest, "preprocess": predictor.preprocess.to_dict(), "images": images, **more, "version": 1,
    }  # fmt: skip


@contextlib.contextmanager
def kept_journals(fresh: bool = False) -> Iterator[Callable[[Mapping[str, Any]], Journal]]:
    """Open journals of the passes of one evaluation; all of them stay until the last pass is through.

    Where results cannot be kept, evaluation goes on.

    Args:
        fresh: forget earlier results.

    Yields:
        A function from a key (see :func:`evaluation_key`; equal keys share their results) to the results of that pass,
        by the index of the image.
    """
    with contextlib.ExitStack() as stack:
        opened: dict[str, Journal] = {}

        def journal_of(key: Mapping[str, Any]) -> Journal:
            name = digest_of(key)
            if name not in opened:
                file = cache_folder() / f"evaluate-{name[:24]}.jsonl"
                opened[name] = stack.enter_context(Journal(file, key, fresh=fresh, required=False))
            return opened[name]

        yield journal_of


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


Entry = dict[str, Any]
_OPTION = "--save-predictions"


def converter(
    image_ids: Sequence[int], categories: Mapping[int, int]
) -> Callable[[int, Result], list[Entry]]:
    """A function that turns the detections of the image of an index into result entries.

    Coordinates are rounded to a thousandth of a pixel. Detections of classes without a category are left out.

    Args:
        image_ids: by index.
        categories: class index to category id.
    """

    def convert(index: int, found: Result) -> list[Entry]:
        assert isinstance(found, Detections)
        known = np.isin(found.class_ids, list(categories))
        if not known.all():
            found = found[np.flatnonzero(known)]
        boxes = np.round(np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], 1), 3)
        entries: list[Entry] = [
            {
                "image_id": image_ids[index],
                "category_id": categories[int(label)],
                "bbox": [round(float(value), 3) for value in box],
                "score": round(float(score), 7),
            }
            for label, box, score in zip(found.class_ids, boxes, found.scores, strict=True)
        ]
        if found.keypoints is not None:
            for entry, points in zip(entries, found.keypoints, strict=True):
                entry["keypoints"] = [round(float(value), 3) for value in points.reshape(-1)]
        if found.masks is not None:
            for entry, mask in zip(entries, found.masks.rle(), strict=True):
                entry["segmentation"] = mask
        return entries

    return convert


def prediction_files(file: str | Path | None, names: Iterable[str], force: bool) -> dict[str, Path]:
    """The COCO result file of each graph; nothing without ``file``.

    Args:
        file: as the person named it; with several graphs ``-name`` is added to its stem.
        names: of the graphs.
        force: existing files may be replaced.

    Raises:
        UserError: one exists.
    """
    if file is None:
        return {}
    whole, graphs = Path(file), list(names)
    several = len(graphs) > 1
    found = {name: whole.with_name(f"{whole.stem}-{name}{whole.suffix}") if several else whole for name in graphs}
    for path in found.values():
        check_file(path, force, _OPTION)
    return found


def write_predictions(entries: Mapping[str, Sequence[Entry]], files: Mapping[str, Path], force: bool) -> None:
    """Write result files, each whole or not at all; after the last pass, so that an interrupted run can be repeated.

    Args:
        entries: by graph.
        files: of :func:`prediction_files`.
        force: replace existing files.

    Raises:
        UserError: one exists, or the file system refuses.
    """
    for name, found in entries.items():
        text = json.dumps(list(found), separators=(",", ":")) + "\n"
        write_file(files[name], text, force=force, option=_OPTION)


@dataclass(frozen=True)
class Metrics:
    """One family of metrics of one graph.

    Attributes:
        family: ``"box"``, ``"mask"``, ``"keypoints"`` or ``"classes"``.
        values: by name (``"AP"``, ``"AP50"``, ..., or ``"top-1"``), 0..1; ``None`` where no object is of that kind.
            ``"agreement"`` is the share of images whose first class is that of the first row.
        interval: 95 % bootstrap interval over images of the first value.
        retention: the first value as a share of the first row's; ``None`` for the first row, or where that is 0.
        retention_interval: 95 % interval of the retention: both graphs see the same resampled images.
    """

    family: str
    values: dict[str, float | None]
    interval: tuple[float, float]
    retention: float | None = None
    retention_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """One graph.

    Attributes:
        name: e.g. ``"float"`` or ``"esp32p4"``.
        metrics: one of each family.
        images_per_second: end to end: reading, preprocessing, inference, decoding. 0 when all came from an
            interrupted run.
        found: detections (or classified images) in all.
    """

    name: str
    metrics: tuple[Metrics, ...]
    images_per_second: float
    found: int


@dataclass(frozen=True)
class Report:
    """Rows with what was measured on.

    Attributes:
        rows: the reference first.
        images: number of images.
        protocol: options of decoding, empty for classifiers.
        notes: one sentence each.
        unreadable: number of labelled images that cannot be read and are in no metric.
    """

    rows: tuple[Row, ...]
    images: int
    protocol: dict[str, Any]
    notes: tuple[str, ...]
    unreadable: int = 0

    def __repr__(self) -> str:
        found = []
        for row in self.rows:
            for metrics in row.metrics[:1]:
                name, value = next(iter(metrics.values.items()))
                found.append(f"{row.name} {metrics.family} {name} {'-' if value is None else f'{value:.3f}'}")
        return f"<Report on {self.images} images: {', '.join(found)}>"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def metric(self, row: str, family: str, name: str | None = None) -> float | None:
        """One value, e.g. ``report.metric("esp32p4", "keypoints", "AP")``; the first of the family by default."""
        for entry in self.rows:
            for metrics in entry.metrics:
                if entry.name == row and metrics.family == family:
                    return metrics.values[name or next(iter(metrics.values))]
        raise KeyError(f"there is no {family} of {row}")


DRAWS = 200


def draw_weights(images: int, seed: int, draws: int = DRAWS) -> NDArray[np.float32]:
    """(draws, images) how often each image is in each draw; rows sum to ``images``."""
    chosen = np.random.default_rng(seed).integers(0, images, (draws, images))
    weights = np.zeros((draws, images), np.float32)
    np.add.at(weights, (np.arange(draws)[:, None], chosen), 1)
    return weights


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of what the draws gave; draws without a value (NaN) do not count."""
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 0.0
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def retention_interval(values: NDArray[np.float64], reference: NDArray[np.float64]) -> tuple[float, float] | None:
    """The same for the ratio of two graphs on the same draws; ``None`` when the reference is always 0."""
    ratio = np.divide(values, reference, out=np.full_like(values, np.nan), where=reference > 0)
    return interval(ratio) if np.isfinite(ratio).any() else None


def metrics_of_rows(scores: Mapping[str, CocoScores], images: int, seed: int) -> dict[str, tuple[Metrics, ...]]:
    """Metrics of every graph, each family compared with that of the first graph."""
    weights = draw_weights(images, seed)
    rows: dict[str, list[Metrics]] = {name: [] for name in scores}
    for family in next(iter(scores.values())).values:
        values = {name: found.values[family] for name, found in scores.items()}
        draws = {name: weighted_average_precision(found.matches[family], weights) for name, found in scores.items()}
        for name, metrics in compare_rows(family, values, draws).items():
            rows[name].append(metrics)
    return {name: tuple(metrics) for name, metrics in rows.items()}


def compare_rows(
    family: str, values: Mapping[str, dict[str, float | None]], draws: Mapping[str, NDArray[np.float64]]
) -> dict[str, Metrics]:
    """One family of every graph.

    Args:
        family: of the metrics.
        values: metrics of each graph.
        draws: the first metric of each graph on the same bootstrap draws.
    """
    reference = next(iter(values))
    rows = {}
    for name, found in values.items():
        first, base = next(iter(found.values())), next(iter(values[reference].values()))
        if name == reference or not base or first is None:
            rows[name] = Metrics(family, found, interval(draws[name]))
        else:
            spread = retention_interval(draws[name], draws[reference])
            rows[name] = Metrics(family, found, interval(draws[name]), first / base, spread)
    return rows
