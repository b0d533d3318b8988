"""Images with one class each, and top-1 / top-5."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from narrowcast.base.errors import UserError
from narrowcast.base.progress import phase
from narrowcast.base.reading import read_text
from narrowcast.bundle.store import Predictor
from narrowcast.calibrate.images import left_out
from narrowcast.evaluate.passes import (
    Entry,
    Pass,
    Report,
    Row,
    compare_rows,
    draw_weights,
    drawn,
    evaluation_key,
    kept_journals,
    prediction_files,
    run_pass,
    write_predictions,
)
from narrowcast.tasks import Task
from narrowcast.vision.types import Result

__all__ = ["ImageNetData", "imagenet"]


@dataclass(frozen=True)
class ImageNetData:
    """Images with their class.

    Attributes:
        files: images.
        labels: class index of each.
        source: name of the label file, for messages.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    source: str

    def __len__(self) -> int:
        return len(self.files)

    @phase("evaluate")
    def evaluate(
        self,
        graphs: Mapping[str, Callable[[], Predictor]],
        *,
        workers: int | None = None,
        seed: int = 0,
        fresh: bool = False,
        save_predictions: str | Path | None = None,
        force: bool = False,
        strict: bool = False,
    ) -> Report:
        """Score classifiers on these images; see :meth:`CocoData.evaluate`.

        Args:
            graphs: by name, the reference first.
            workers: images in work at once; one a core by default.
            seed: of the bootstrap.
            fresh: do not go on from an interrupted evaluation.
            save_predictions: JSON file with the five best classes of each image.
            force: replace existing files of that kind.
            strict: an unreadable image is an error; else it is left out and counted.

        Raises:
            UserError: a file that exists, no classifier, a label beyond its classes, no readable image.
        """
        values: dict[str, dict[str, float | None]] = {}
        draws = {}
        speed = {}
        first: list[Any] = []
        family = ""
        passes: list[Pass] = []
        saved = prediction_files(save_predictions, graphs, force)
        entries: dict[str, list[Entry]] = {}
        with kept_journals(fresh) as journal_of:
            for name, make in graphs.items():
                predictor = make()
                self._check(predictor)
                journal = journal_of(evaluation_key(predictor, self.files))
                meaning = predictor.meaning
                family = meaning.families[0].name
                convert = partial(_summary, meaning)
                done = run_pass(name, predictor, self.files, convert, {}, journal, workers, strict)
                passes.append(done)
                done.check_same(passes[0])
                kept = done.readable(len(self))
                weights = draw_weights(len(kept), seed)
                if name in saved:
                    names = [self.files[index].name for index in kept]
                    entries[name] = [{"image": n, **best} for n, best in zip(names, done.results, strict=True)]
                found = meaning.scores(done.results, np.array(self.labels)[kept])
                values[name] = {metric: float(each.mean()) for metric, each in found.items()}
                answers = [meaning.answer(entry) for entry in done.results]
                first = first or answers
                # as the first graph says, right or wrong: less noisy than a metric on the same images
                same = np.array([one == other for one, other in zip(answers, first, strict=True)])
                values[name]["agreement"] = float(same.mean()) if len(values) > 1 else None
                draws[name] = (weights @ next(iter(found.values()))).astype(np.float64) / len(kept)
                speed[name] = done.images_per_second
            write_predictions(entries, saved, force)
        metrics = compare_rows(family, values, draws)
        lost = list(passes[0].unreadable.values())
        notes = (left_out(lost, len(self)),) if lost else ()
        count = len(self) - len(lost)
        rows = tuple(Row(name, (metrics[name],), speed[name], count) for name in graphs)
        return Report(rows, count, {}, notes, len(lost))

    def _check(self, predictor: Predictor) -> None:
        if not predictor.meaning.one_answer:
            raise UserError(
                f"the model's task is {predictor.meaning.name}, and {self.source} has one class an image",
                "give COCO annotations with --annotations",
            )
        count = predictor.class_count
        beyond = [(file, label) for file, label in zip(self.files, self.labels, strict=True) if label >= count]
        if beyond:
            file, label = beyond[0]
            raise UserError(
                f"{self.source}: the label {label} of {file.name} is beyond the model's {count} classes",
                "labels count from 0; give the labels of this model",
            )


def _summary(meaning: Task, _: int, found: Result) -> dict[str, Any]:
    return meaning.summary(found)


def imagenet(images: str | Path, labels: str | Path, *, limit: int | None = None, seed: int = 0) -> ImageNetData:
    """Images with one class each.

    Args:
        images: folder.
        labels: text file, on each line a file name and a class index from 0, separated by a space, tab or comma.
        limit: take this many images, drawn at random.
        seed: of the draw.

    Raises:
        UserError: files that are missing, a line that is not understood.
    """
    folder, file = Path(images), Path(labels)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder", "give the folder of the labelled images with --images")
    entries = _read(file)
    missing = [name for name, _ in entries if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(entries)} images of {file.name} are not in {folder}, first {missing[0]}",
            "check --images",
        )
    entries = drawn(entries, limit, seed)
    return ImageNetData(tuple(folder / name for name, _ in entries), tuple(label for _, label in entries), file.name)


def _read(file: Path) -> list[tuple[str, int]]:
    lines = read_text(file, "give a label file: a file name and a class index on each line").splitlines()
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, label = line.strip().replace(",", " ").replace("\t", " ").rpartition(" ")
        if not name or not label.isdecimal() or len(label) > 9:
            raise UserError(f"{file}: line {number} is not understood: {line.strip()[:60]}", "write 'name index'")
        entries.append((name.strip(), int(label)))
    if not entries:
        raise UserError(f"{file} labels no images", "write a file name and a class index on each line")
    return entries
