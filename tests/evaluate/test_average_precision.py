"""Our average precision against pycocotools, also on resampled images."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluate.scenes import random_document, random_results
from narrowcast.evaluate.coco_scores import score, weighted_average_precision
from narrowcast.evaluate.passes import draw_weights, interval, retention_interval
from narrowcast.tasks import TASKS

KINDS = {"box": "bbox", "mask": "segm", "keypoints": "keypoints"}
FAMILIES = {family.name: family for task in TASKS.values() for family in task.families}


def pycocotools_stats(document: dict[str, Any], results: list[dict[str, Any]], family: str) -> np.ndarray:
    extra = {"mask": "segmentation", "keypoints": "keypoints"}.get(family)
    fields = {"image_id", "category_id", "score", "bbox"} | ({extra} if extra else set())
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(document)
        truth.createIndex()
        found = truth.loadRes([{key: entry[key] for key in fields} for entry in results])
        evaluation = COCOeval(truth, found, KINDS[family])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def resampled(
    document: dict[str, Any], results: list[dict[str, Any]], counts: np.ndarray
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Physical copies of images, as often as ``counts`` says."""
    made: dict[str, Any] = {"images": [], "annotations": [], "categories": document["categories"]}
    found = []
    for image, count in zip(document["images"], counts, strict=True):
        for _ in range(int(count)):
            key = len(made["images"]) + 1
            made["images"].append({**image, "id": key})
            for entry in document["annotations"]:
                if entry["image_id"] == image["id"]:
                    made["annotations"].append({**entry, "image_id": key, "id": len(made["annotations"]) + 1})
            found += [{**entry, "image_id": key} for entry in results if entry["image_id"] == image["id"]]
    return made, found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", list(KINDS))
def test_equals_pycocotools(family: str, seed: int) -> None:
    document = random_document(seed)
    results = random_results(document, seed)
    found = score(document, results, [FAMILIES[family]], [1, 2, 3])
    stats = pycocotools_stats(document, results, family)
    places = [0, 1, 2, 5] if family == "keypoints" else [0, 1, 2, 8]
    names = ("AP", "AP50", "AP75", "AR")
    for name, place in zip(names, places, strict=True):
        assert found.values[family][name] == pytest.approx(stats[place], abs=1e-9)
    weights = np.ones((1, len(document["images"])), np.float32)
    ours = weighted_average_precision(found.matches[family], weights)
    assert ours[0] == pytest.approx(stats[0], abs=1e-6)  # COCO adds 2e-16 to denominators, we do not


@pytest.mark.parametrize("family", ["box", "keypoints"])
def test_weights_equal_copies_of_images(family: str) -> None:
    document = random_document(11)
    results = random_results(document, 11)
    matches = score(document, results, [FAMILIES[family]], [1, 2, 3]).matches[family]
    weights = draw_weights(len(document["images"]), 3, draws=5)
    ours = weighted_average_precision(matches, weights)
    for counts, value in zip(weights, ours, strict=True):
        assert value == pytest.approx(pycocotools_stats(*resampled(document, results, counts), family)[0], abs=1e-6)


def test_no_results_are_zero() -> None:
    document = random_document(1)
    found = score(document, [], [FAMILIES["box"]], [1, 2, 3])
    assert found.values["box"]["AP"] == 0
    assert weighted_average_precision(found.matches["box"], np.ones((2, 7), np.float32)).tolist() == [0, 0]


def test_intervals() -> None:
    weights = draw_weights(50, 0)
    assert weights.shape == (200, 50) and (weights.sum(axis=1) == 50).all()
    assert np.array_equal(weights, draw_weights(50, 0))
    hits = np.random.default_rng(0).random(50) < 0.8
    draws = (weights @ hits).astype(np.float64) / 50
    low, high = interval(draws)
    deviation = np.sqrt(0.8 * 0.2 / 50)  # of a mean of 50 coin throws
    assert (high - low) / 2 == pytest.approx(1.96 * deviation, rel=0.25)
    assert retention_interval(draws, draws) == (1.0, 1.0)
    assert retention_interval(draws, np.zeros(200)) is None
    assert interval(np.array([np.nan])) == (0.0, 0.0)
