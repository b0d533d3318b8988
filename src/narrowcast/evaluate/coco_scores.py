"""COCO's metrics by faster-coco-eval, and average precision from matches for any weights of the images.

The latter is what the bootstrap needs besides, and the tests hold the two against each other. Matching follows
``COCOeval.evaluateImg`` for objects of every size, precision and recall ``COCOeval.accumulate`` (cocoapi, BSD).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from narrowcast.base.progress import phase
from narrowcast.tasks import Family

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
#: Draws that are worked on at once; bounds the memory.
_CHUNK = 20


@dataclass(frozen=True)
class CategoryMatches:
    """All detections of one category, best first.

    Attributes:
        images: (n,) index of the image of each detection.
        right: (10, n) bool, matched to an object at each overlap threshold.
        counted: (10, n) bool, not matched to an object that is to be ignored.
        objects: (images,) number of objects in each image that count.
    """

    images: NDArray[np.int64]
    right: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    objects: NDArray[np.int64]


def match(
    overlaps: Sequence[NDArray[np.float64]],
    scores: Sequence[NDArray[np.float64]],
    truths: Sequence[Sequence[Mapping[str, Any]]],
) -> CategoryMatches:
    """Match the detections of one category, image by image.

    Args:
        overlaps: of each image (detections, objects), both in the order of the other two arguments.
        scores: of each image (detections,), best first.
        truths: of each image the annotations, with ``ignore`` and ``iscrowd``.
    """
    images, rights, counted, objects = [], [], [], []
    for index, (overlap, score, truth) in enumerate(zip(overlaps, scores, truths, strict=True)):
        ignored = np.array([bool(entry["ignore"]) for entry in truth], np.bool_)
        crowd = np.array([bool(entry["iscrowd"]) for entry in truth], np.bool_)
        right, ignore = _match_image(overlap, len(score), ignored, crowd)
        images.append(np.full(len(score), index))
        rights.append(right)
        counted.append(~ignore)
        objects.append(int((~ignored).sum()))
    order = np.argsort(-np.concatenate(scores), kind="mergesort") if scores else np.zeros(0, np.int64)
    return CategoryMatches(
        np.concatenate(images)[order],
        np.concatenate(rights, axis=1)[:, order],
        np.concatenate(counted, axis=1)[:, order],
        np.array(objects),
    )


def _match_image(
    overlap: NDArray[np.float64], count: int, ignored: NDArray[np.bool_], crowd: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(10, detections) matched to an object that counts, and matched to one that is ignored."""
    right = np.zeros((len(THRESHOLDS), count), np.bool_)
    ignore = np.zeros_like(right)
    if not count or not len(ignored):
        return right, ignore
    order = np.argsort(ignored, kind="stable")  # objects that count come first
    overlap, ignored, crowd = overlap[:, order], ignored[order], crowd[order]
    near = np.flatnonzero(overlap.max(axis=1) >= THRESHOLDS[0] - 1e-10)
    for number, threshold in enumerate(THRESHOLDS):
        taken = np.zeros(len(ignored), np.bool_)
        for detection in near:
            free = (overlap[detection] >= min(threshold, 1 - 1e-10)) & (~taken | crowd)
            candidates = free & ~ignored if (free & ~ignored).any() else free
            if not candidates.any():
                continue
            values = np.where(candidates, overlap[detection], -1)
            best = len(values) - 1 - int(values[::-1].argmax())  # of equal ones COCO takes the last
            taken[best] = True
            (ignore if ignored[best] else right)[number, detection] = True
    return right, ignore


def weighted_average_precision(
    categories: Sequence[CategoryMatches], weights: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Mean over categories and overlap thresholds of the 101-point interpolated precision.

    Args:
        categories: matches of every category.
        weights: (draws, images) how often each image counts.

    Returns:
        (draws,) AP in 0..1; NaN for a draw without any object.
    """
    total = np.zeros(len(weights))
    present = np.zeros(len(weights))
    for category in categories:
        if category.objects.sum() == 0:
            continue
        for first in range(0, len(weights), _CHUNK):
            chunk = slice(first, first + _CHUNK)
            count = weights[chunk] @ category.objects
            values = _category_precision(category, weights[chunk], count)
            total[chunk] += np.where(count > 0, values, 0)
            present[chunk] += count > 0
    means: NDArray[np.float64] = np.divide(total, present, out=np.full(len(weights), np.nan), where=present > 0)
    return means


def _category_precision(
    category: CategoryMatches, weights: NDArray[np.float32], count: NDArray[np.float32]
) -> NDArray[np.float64]:
    """(draws,) mean over the overlap thresholds."""
    result = np.zeros(len(weights))
    each = weights[:, category.images].astype(np.float64)
    for right, counted in zip(category.right, category.counted, strict=True):
        places = np.flatnonzero(right)
        if not len(places):
            continue
        upto = places[-1] + 1  # what comes after the last right one lowers no interpolated precision
        true = np.cumsum(each[:, places], axis=1)
        every = np.cumsum(each[:, :upto] * counted[:upto], axis=1)[:, places]
        precision = np.divide(true, every, out=np.zeros_like(true), where=every > 0)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = true / np.maximum(count, 1e-9)[:, None]
        for draw in range(len(weights)):
            reached = np.searchsorted(recall[draw], RECALLS, side="left")
            found = reached < len(places)
            result[draw] += envelope[draw, reached[found]].sum() / len(RECALLS)
    return result / len(THRESHOLDS)


#: Place of a metric in the library's list.
_BOX = {"AP": 0, "AP50": 1, "AP75": 2, "AP small": 3, "AP medium": 4, "AP large": 5, "AR": 8}
_KEYPOINTS = {"AP": 0, "AP50": 1, "AP75": 2, "AP medium": 3, "AP large": 4, "AR": 5}


@dataclass(frozen=True)
class CocoScores:
    """Metrics and matches of one graph, by family.

    Attributes:
        values: metric values, 0..1; ``None`` where no object is of that kind.
        matches: of each category.
    """

    values: dict[str, dict[str, float | None]]
    matches: dict[str, list[CategoryMatches]]


@phase("score")
def score(
    document: dict[str, Any],
    results: Sequence[dict[str, Any]],
    families: Sequence[Family],
    categories: Sequence[int],
    sigmas: Sequence[float] | None = None,
) -> CocoScores:
    """Score COCO results.

    Args:
        document: COCO annotations.
        results: COCO result entries; not changed.
        families: of metrics.
        categories: ids to score.
        sigmas: spread of each keypoint; the 17 of COCO by default.
    """
    values: dict[str, dict[str, float | None]] = {}
    matches: dict[str, list[CategoryMatches]] = {}
    images = [entry["id"] for entry in document["images"]]
    for family in families:
        fields = {"image_id", "category_id", "score", "bbox", *([family.field] if family.field else [])}
        truth = COCO(_truth(document))
        found = truth.loadRes([{key: entry[key] for key in fields} for entry in results])
        evaluation = COCOeval_faster(truth, found, family.coco, kpt_oks_sigmas=sigmas)
        evaluation.params.imgIds = images
        evaluation.params.catIds = list(categories)
        evaluation.run()
        places = _KEYPOINTS if family.coco == "keypoints" else _BOX
        stats = {name: float(evaluation.stats[place]) for name, place in places.items()}
        values[family.name] = {name: None if value < 0 else value for name, value in stats.items()}
        matches[family.name] = [_matches(evaluation, images, category) for category in categories]
    return CocoScores(values, matches)


def _truth(document: dict[str, Any]) -> dict[str, Any]:
    """Annotations with the optional fields filled in; the entries are copies, because the library writes to them."""
    annotations = []
    for entry in document["annotations"]:
        copy = {"iscrowd": 0, **entry}
        if "keypoints" in copy:
            copy.setdefault("num_keypoints", int(np.count_nonzero(np.asarray(copy["keypoints"])[2::3])))
        annotations.append(copy)
    return {**document, "annotations": annotations}


def _matches(evaluation: COCOeval_faster, images: Sequence[int], category: int) -> CategoryMatches:
    most = evaluation.params.maxDets[-1]
    overlaps, scores, truths = [], [], []
    for image in images:
        found = np.array([entry["score"] for entry in evaluation.dt_dataset.get(image, category)], np.float64)
        truth = evaluation.gt_dataset.get(image, category)
        scores.append(-np.sort(-found, kind="stable")[:most])
        truths.append(truth)
        overlap = np.asarray(evaluation.ious[image, category], np.float64)
        overlaps.append(
            overlap.reshape(len(scores[-1]), len(truth)) if overlap.size else np.zeros((len(found[:most]), len(truth)))
        )
    return match(overlaps, scores, truths)
