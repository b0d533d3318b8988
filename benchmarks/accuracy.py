"""Keypoint and box AP of float and quantized bundles on labelled COCO images (Ultralytics validation protocol).

    python benchmarks/accuracy.py BUNDLE... [--data ../shared/data] [--limit N]

Each bundle is a pose bundle of ``narrowcast quantize``; the float row is the first bundle's float graph.
Confidence 0.001, NMS 0.7 per class, at most 300 detections; scores by faster-coco-eval.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
from pathlib import Path
from typing import Any

from faster_coco_eval import COCO, COCOeval_faster

from narrowcast.bundle import Predictor, open_bundle
from narrowcast.vision import Detections


def detections(predictor: Predictor, images: dict[int, Path]) -> list[dict[str, Any]]:
    """COCO results of all images; scores of keypoint results are the box scores."""
    results = []
    for image_id, file in images.items():
        found = predictor.predict(file, confidence=0.001, iou=0.7, max_detections=300, multi_label=True)
        assert isinstance(found, Detections) and found.keypoints is not None
        for box, score, points in zip(found.boxes, found.scores, found.keypoints, strict=True):
            left, top, right, bottom = (float(value) for value in box)
            results.append(
                {
                    "image_id": image_id,
                    "category_id": 1,
                    "score": float(score),
                    "bbox": [left, top, right - left, bottom - top],
                    "keypoints": [float(value) for value in points.reshape(-1)],
                }
            )
    return results


def average_precision(truth: COCO, results: list[dict[str, Any]], images: list[int], kind: str) -> tuple[float, float]:
    """AP and AP50 of a kind of result."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval_faster(truth, truth.loadRes([dict(entry) for entry in results]), kind)
        evaluation.params.imgIds = images
        evaluation.params.catIds = [1]
        evaluation.run()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, default=root.parent / "shared" / "data")
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    annotations = options.data / "coco" / "annotations" / "person_keypoints_val.json"
    if not annotations.exists():
        sys.exit(f"{annotations} is missing: this benchmark needs labelled images, see --data")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
    folder = options.data / "coco" / "images"
    images = {key: folder / truth.imgs[key]["file_name"] for key in sorted(truth.imgs)[: options.limit]}
    rows = [("float", open_bundle(options.bundles[0]).floating)]
    rows += [(open_bundle(path).manifest.target, open_bundle(path).quantized) for path in options.bundles]
    print(f"| {len(images)} images | keypoint AP | AP50 | share | box AP | share | images/s |")
    print("|---|---|---|---|---|---|---|")
    reference = (0.0, 0.0)
    for name, predictor in rows:
        start = time.perf_counter()
        results = detections(predictor, images)
        speed = len(images) / (time.perf_counter() - start)
        points, points50 = average_precision(truth, results, list(images), "keypoints")
        boxes, _ = average_precision(truth, results, list(images), "bbox")
        reference = reference if name != "float" else (points, boxes)
        shares = [f"{value / base:.1%}" for value, base in zip((points, boxes), reference, strict=True)]
        print(
            f"| {name} | {points:.4f} | {points50:.4f} | {shares[0]} | {boxes:.4f} | {shares[1]} | {speed:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
