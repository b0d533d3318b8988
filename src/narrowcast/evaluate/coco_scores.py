"""COCO's metrics by faster-coco-eval, and the matches behind them for the bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from narrowcast.base.progress import phase
from narrowcast.evaluate.average_precision import CategoryMatches, match
from narrowcast.tasks import Family

__all__ = ["CocoScores", "score"]

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
