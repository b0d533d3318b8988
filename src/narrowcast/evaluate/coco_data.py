"""Images labelled as COCO does it: reading, checking, and scoring what graphs find in them.

Entries of annotation files are checked before a scorer written in C++ sees them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, model_validator

from narrowcast.base.errors import UserError
from narrowcast.base.progress import phase
from narrowcast.base.reading import read_json, typed
from narrowcast.bundle.store import Predictor
from narrowcast.calibrate.images import left_out
from narrowcast.evaluate.coco_scores import CocoScores, score
from narrowcast.evaluate.passes import (
    Entry,
    Pass,
    Report,
    Row,
    converter,
    drawn,
    evaluation_key,
    kept_journals,
    metrics_of_rows,
    prediction_files,
    run_pass,
    write_predictions,
)
from narrowcast.tasks import Family

#: Coordinates beyond any image; the scorer draws polygons into memory of that size.
_FARTHEST = 100_000
_Id = Annotated[StrictInt, Field(gt=-(2**53), lt=2**53)]
_Side = Annotated[StrictInt, Field(gt=0, le=_FARTHEST)]
_Place = Annotated[StrictFloat, Field(ge=-_FARTHEST, le=_FARTHEST)]
_Polygon = Annotated[list[_Place], Field(min_length=6)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="allow")

    id: _Id


class _Image(_Entry):
    file_name: Annotated[StrictStr, Field(min_length=1)]
    width: _Side
    height: _Side


class _Category(_Entry):
    name: StrictStr


class _RunLengths(BaseModel):
    counts: StrictStr | list[Annotated[StrictInt, Field(ge=0)]]
    size: tuple[_Side, _Side]

    @model_validator(mode="after")
    def _whole(self) -> _RunLengths:
        height, width = self.size
        runs = _decompressed(self.counts) if isinstance(self.counts, str) else self.counts
        if sum(runs) != height * width or (runs and min(runs) < 0):
            raise ValueError(f"the runs of a mask of {height}x{width} pixels hold {sum(runs)}")
        return self


class _Annotation(_Entry):
    image_id: _Id
    category_id: _Id
    bbox: tuple[_Place, _Place, _Place, _Place]
    area: StrictFloat
    iscrowd: Literal[0, 1] = 0
    keypoints: list[_Place] | None = None
    num_keypoints: StrictInt | None = None
    segmentation: _RunLengths | list[_Polygon] | None = None

    @model_validator(mode="after")
    def _threes(self) -> _Annotation:
        if self.keypoints and len(self.keypoints) % 3:
            raise ValueError(f"{len(self.keypoints)} numbers are no keypoints of x, y, visibility")
        if isinstance(self.segmentation, list) and any(len(polygon) % 2 for polygon in self.segmentation):
            raise ValueError("a polygon has an odd count of numbers")
        return self


def _decompressed(text: str) -> list[int]:
    """Run lengths of the text form; see :func:`narrowcast.vision.masks.compress`."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64 or shift > 60:
            raise ValueError("the runs of a mask are not written as COCO does")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs


#: Lists of a file, with what their entries must be.
ENTRIES: dict[str, type[BaseModel]] = {"images": _Image, "annotations": _Annotation, "categories": _Category}


@dataclass(frozen=True)
class Protocol:
    """Options of decoding for scoring.

    Attributes:
        confidence: least score of a detection, 0..1.
        iou: boxes of a class that overlap more than this are one object.
        max_detections: kept an image; COCO scores the best 100 of each category (20 for keypoints).
        multi_label: an anchor may give a detection of several classes.
    """

    confidence: float = 0.001
    iou: float = 0.7
    max_detections: int = 300
    multi_label: bool = True


#: ``ultralytics`` is what ``yolo val`` does; ``rdk`` what the RDK model zoo's evaluation scripts do (score 0.25 cuts
#: the precision-recall curve, so that float and quantized both read lower).
PROTOCOLS = {"ultralytics": Protocol(), "rdk": Protocol(confidence=0.25, multi_label=False)}


def choose(
    name: str, confidence: float | None = None, iou: float | None = None, max_detections: int | None = None
) -> Protocol:
    """A protocol with changes.

    Raises:
        UserError: an unknown name or an impossible value.
    """
    if name not in PROTOCOLS:
        raise UserError(f"there is no protocol {name!r}", f"use {' or '.join(PROTOCOLS)}")
    given = {"confidence": confidence, "iou": iou, "max_detections": max_detections}
    protocol = replace(PROTOCOLS[name], **{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
    if not 0 < protocol.confidence < 1:
        raise UserError(f"a confidence of {protocol.confidence} is outside 0..1", "0.001 is usual for AP")
    if not 0 < protocol.iou <= 1:
        raise UserError(f"an overlap (iou) of {protocol.iou} is outside 0..1", "0.7 is usual")
    if protocol.max_detections < 1:
        raise UserError(f"{protocol.max_detections} detections an image leave none", "300 is usual")
    return protocol


@dataclass(frozen=True)
class CocoData:
    """Labelled images.

    Attributes:
        document: the annotation file, reduced to the images in use.
        files: path of each image, in the order of ``document["images"]``.
        source: name of the annotation file, for messages.
        notes: what was left out.
    """

    document: dict[str, Any]
    files: tuple[Path, ...]
    source: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    @phase("evaluate")
    def evaluate(
        self,
        graphs: Mapping[str, Callable[[], Predictor]],
        *,
        protocol: Protocol = PROTOCOLS["ultralytics"],
        workers: int | None = None,
        seed: int = 0,
        fresh: bool = False,
        save_predictions: str | Path | None = None,
        force: bool = False,
        strict: bool = False,
    ) -> Report:
        """Score graphs on these images.

        Args:
            graphs: by name, the reference first; each is opened when its turn comes and closed after it.
            protocol: options of decoding.
            workers: images in work at once; one a core by default.
            seed: of the bootstrap.
            fresh: do not go on from an interrupted evaluation.
            save_predictions: COCO result file to write; with several graphs ``-name`` is added to its stem.
            force: replace existing result files.
            strict: an unreadable image is an error; else it is left out and counted.

        Raises:
            UserError: a model that detects nothing, categories or keypoints unlike the annotations', no readable
                image, a result file that exists.
        """
        scored: CocoData = self
        first: Pass | None = None
        scores: dict[str, CocoScores] = {}
        rows: dict[str, tuple[float, int]] = {}
        notes = list(self.notes)
        saved = prediction_files(save_predictions, graphs, force)
        entries: dict[str, list[Entry]] = {}
        with kept_journals(fresh) as journal_of:
            for name, make in graphs.items():
                predictor = make()
                families, more = self._families(predictor)
                categories, dropped = self._categories(predictor)
                notes += [note for note in (*more, *dropped) if note not in notes]
                options = {**asdict(protocol), "masks": any(family.field == "segmentation" for family in families)}
                ids = [image["id"] for image in self.document["images"]]
                convert = converter(ids, categories)
                depends = {"options": options, "categories": sorted(categories.items()), "ids": ids}
                journal = journal_of(evaluation_key(predictor, self.files, **depends))
                done = run_pass(name, predictor, self.files, convert, options, journal, workers, strict)
                if first is None:
                    first, scored = done, self._of(done.readable(len(self)))
                    notes += [left_out(list(done.unreadable.values()), len(self))] if done.unreadable else []
                done.check_same(first)
                results = [entry for result in done.results for entry in result]
                if name in saved:
                    entries[name] = results
                sigmas = _sigmas(predictor.meaning.points)
                scores[name] = score(scored.document, results, families, sorted(set(categories.values())), sigmas)
                rows[name] = (done.images_per_second, len(results))
                if not results:
                    notes.append(f"{name} finds nothing in any image, so every metric is 0")
            write_predictions(entries, saved, force)
        metrics = metrics_of_rows(scores, len(scored), seed)
        made = tuple(Row(name, metrics[name], *rows[name]) for name in graphs)
        return Report(made, len(scored), asdict(protocol), tuple(notes), len(self) - len(scored))

    def _of(self, indices: Sequence[int]) -> CocoData:
        """The images at these indices with their annotations."""
        if len(indices) == len(self):
            return self
        images = [self.document["images"][index] for index in indices]
        document = _reduced(self.document, images)
        return replace(self, document=document, files=tuple(self.files[index] for index in indices))

    def _families(self, predictor: Predictor) -> tuple[tuple[Family, ...], tuple[str, ...]]:
        """Metric families of a model that the annotations can score, the one that it is judged by first."""
        meaning = predictor.meaning
        if not any(family.coco for family in meaning.families):
            raise UserError(
                f"the model's task is {meaning.name}, which finds no objects to score"
                + (f": {predictor.note}" if predictor.note else ""),
                "give --labels for a classifier; a whole graph cannot be scored",
            )
        objects = [entry for entry in self.document["annotations"] if not entry.get("iscrowd")]
        known = [f for f in meaning.families if not f.field or any(entry.get(f.field) for entry in objects)]
        lost = [family.things for family in meaning.families if family not in known]
        notes = [f"{self.source} has no {things}, so only boxes are scored" for things in lost]
        counts = {len(entry["keypoints"]) // 3 for entry in objects if entry.get("keypoints")}
        if meaning.points and counts and counts != {meaning.points}:
            raise UserError(
                f"{self.source} has {sorted(counts)[0]} keypoints a person, the model {meaning.points}",
                "give the annotations that the model was trained for",
            )
        return tuple(known), tuple(notes)

    def _categories(self, predictor: Predictor) -> tuple[dict[int, int], tuple[str, ...]]:
        """Class index of the model to category id, by name; by order where no name is known."""
        known = sorted(self.document["categories"], key=lambda entry: entry["id"])
        names = {str(entry["name"]).lower(): int(entry["id"]) for entry in known}
        count = predictor.class_count
        classes = [name.lower() for name in predictor.classes]
        matched = {index: names[name] for index, name in enumerate(classes) if name in names}
        if not matched and len(known) == count:
            return {index: int(entry["id"]) for index, entry in enumerate(known)}, (
                f"no class name of the model is in {self.source}: its {count} categories are taken in order",
            )
        if not matched:
            raise UserError(
                f"the categories of {self.source} ({_few(names)}) are not the model's classes ({_few(classes)})",
                "give annotations of the same classes",
            )
        missing = [name for name, key in names.items() if key not in matched.values()]
        notes = []
        if missing:
            notes.append(f"{len(missing)} categories that the model does not know are not scored: {_few(missing)}")
        if len(matched) < count:
            notes.append(f"{count - len(matched)} classes of the model have no labels here and are not scored")
        return matched, tuple(notes)


def _few(names: Sequence[str] | Mapping[str, int]) -> str:
    listed = list(names)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")


def _sigmas(points: int) -> list[float] | None:
    """Spread of each keypoint; ``None`` for the 17 of COCO, else equal ones that sum to 1, as Ultralytics has it."""
    return None if points in (0, 17) else [1 / points] * points


def coco(
    images: str | Path,
    annotations: str | Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    skip_missing: bool = False,
) -> CocoData:
    """Labelled images in COCO's format.

    Args:
        images: folder of the images.
        annotations: COCO JSON file (instances or person_keypoints).
        limit: take this many images, drawn at random.
        seed: of the draw.
        skip_missing: score what is there when annotated images are missing.

    Raises:
        UserError: files that are missing, no COCO file, ids that do not match.
    """
    folder, file = Path(images), Path(annotations)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder", "give the folder of the annotated images with --images")
    document = _read(file)
    listed = sorted(document["images"], key=lambda entry: int(entry["id"]))
    found = [(folder / Path(entry["file_name"]).name).is_file() for entry in listed]
    there = [entry for entry, known in zip(listed, found, strict=True) if known]
    notes: list[str] = []
    if len(there) < len(listed):
        lost, first = len(listed) - len(there), listed[found.index(False)]["file_name"]
        what = f"{lost} of the {len(listed)} images of {file.name} are not in {folder}, first {first}"
        if not there or not skip_missing:
            raise UserError(what, "check --images, or add --skip-missing" if there else "check --images")
        notes.append(f"{what}; they are not scored")
    there = drawn(there, limit, seed)
    return CocoData(
        _reduced(document, there), tuple(folder / Path(e["file_name"]).name for e in there), file.name, tuple(notes)
    )


def _reduced(document: dict[str, Any], images: list[dict[str, Any]]) -> dict[str, Any]:
    """An annotation file's content for some of its images."""
    kept = {entry["id"] for entry in images}
    annotations = [entry for entry in document["annotations"] if entry["image_id"] in kept]
    return {"images": images, "annotations": annotations, "categories": document["categories"]}


def _read(file: Path) -> dict[str, Any]:
    """The annotation file, checked.

    Raises:
        UserError: it is missing, is no COCO file, or contradicts itself.
    """
    remedy = "give a COCO annotation file with --annotations"
    document = read_json(file, remedy)
    needed = ("images", "annotations", "categories")
    if not isinstance(document, dict) or not all(isinstance(document.get(key), list) for key in needed):
        raise UserError(f"{file} is no COCO annotation file: it needs {', '.join(needed)}", "give another file")
    for group, kind in ENTRIES.items():
        for number, entry in enumerate(document[group]):
            typed(kind, entry, f"{file}: {group}[{number}]", "mend the file")
        most = Counter(entry["id"] for entry in document[group]).most_common(1)
        if most and most[0][1] > 1:
            raise UserError(f"{file}: {group} has the id {most[0][0]} {most[0][1]} times", "mend the file")
    if not document["images"]:
        raise UserError(f"{file} lists no images", "give another file")
    _check_references(file, document)
    return document


def _check_references(file: Path, document: dict[str, Any]) -> None:
    for group, key in (("images", "image_id"), ("categories", "category_id")):
        known = {entry["id"] for entry in document[group]}
        lost = [entry for entry in document["annotations"] if entry[key] not in known]
        if lost:
            raise UserError(
                f"{file}: {len(lost)} annotations have a {key} that {group} does not list, first {lost[0][key]}",
                "the file was cut or two files were mixed; export it again",
            )
