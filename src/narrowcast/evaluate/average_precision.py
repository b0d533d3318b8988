"""COCO's average precision from matches, for any weights of the images.

The official scores come from faster-coco-eval; this is what the bootstrap needs besides, and the tests hold the two
against each other. Matching follows ``COCOeval.evaluateImg`` for objects of every size, precision and recall
``COCOeval.accumulate`` (cocoapi, BSD).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CategoryMatches", "match", "weighted_average_precision"]

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
