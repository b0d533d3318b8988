"""``evaluate`` against an independent path, and against bare inference.

    python benchmarks/evaluate.py [--data ../shared/data] [--limit N] [--speed-only]

Parity: AP of our decode of the cut graph, scored by faster-coco-eval, beside AP of the uncut graph decoded here in
the plain way (all anchors, cv2's NMS class by class, masks upsampled to the input, cropped, resized to the image),
scored by pycocotools. Both see the same letterboxed images; confidence 0.001, NMS 0.7, 300 detections.

Speed: images per second of ``evaluate`` (files to results, one worker a core) against a bare onnxruntime session
with all cores that runs ready-made inputs; alternating, in one run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from narrowcast.bundle import Predictor
from narrowcast.evaluate import CocoData, coco
from narrowcast.graph import load
from narrowcast.vision import Geometry, preprocess, read_image

MODELS = {
    "yolo11n-pose.onnx": ("person_keypoints_val.json", 1, ("bbox", "keypoints")),
    "yolo11n-seg.onnx": ("instances_val.json", 80, ("bbox", "segm")),
    "yolov8n.onnx": ("instances_val.json", 80, ("bbox",)),
}
NAMES = {"bbox": "box", "segm": "mask", "keypoints": "keypoints"}


def plain(outputs: list[NDArray[Any]], classes: int, geometry: Geometry) -> list[dict[str, Any]]:
    """COCO entries without ids from the decoded output of the uncut graph."""
    table = outputs[0][0].T
    anchor, label = np.nonzero(table[:, 4 : 4 + classes] > 0.001)
    score = table[anchor, 4 + label]
    box = table[anchor, :4]
    corner = np.concatenate([box[:, :2] - box[:, 2:] / 2, box[:, 2:]], 1)
    kept: list[int] = []
    for name in np.unique(label):
        mine = np.flatnonzero(label == name)
        kept += mine[np.asarray(cv2.dnn.NMSBoxes(corner[mine].tolist(), score[mine].tolist(), 0.001, 0.7))].tolist()
    best = np.asarray(kept, int)[np.argsort(-score[kept], kind="stable")][:300]
    entries = []
    for index in best:
        left, top, width, height = corner[index]
        x = np.clip((np.array([left, left + width]) - geometry.pad_left) / geometry.scale_x, 0, geometry.image_width)
        y = np.clip((np.array([top, top + height]) - geometry.pad_top) / geometry.scale_y, 0, geometry.image_height)
        entry = {"label": int(label[index]), "score": float(score[index])}
        entry["bbox"] = [float(v) for v in (x[0], y[0], x[1] - x[0], y[1] - y[0])]
        extra = table[anchor[index], 4 + classes :]
        if len(outputs) == 1 and len(extra):
            points = extra.reshape(17, 3).astype(float)
            points[:, 0] = (points[:, 0] - geometry.pad_left) / geometry.scale_x
            points[:, 1] = (points[:, 1] - geometry.pad_top) / geometry.scale_y
            entry["keypoints"] = points.reshape(-1).tolist()
        elif len(outputs) == 2:
            entry["segmentation"] = plain_mask(extra, outputs[1][0], (x, y), geometry)
        entries.append(entry)
    return entries


def plain_mask(
    coefficients: NDArray[Any], prototypes: NDArray[Any], box: tuple[NDArray[Any], NDArray[Any]], geometry: Geometry
) -> dict[str, Any]:
    """Upsampled to the input, letterbox removed, resized to the image, cropped, threshold at 0."""
    logits = np.tensordot(coefficients, prototypes, 1)
    side = 4 * logits.shape[0]
    full = cv2.resize(logits, (side, side), interpolation=cv2.INTER_LINEAR)
    width, height = geometry.image_width, geometry.image_height
    top, left = int(geometry.pad_top), int(geometry.pad_left)
    full = full[top : top + round(height * geometry.scale_y), left : left + round(width * geometry.scale_x)]
    image = cv2.resize(full, (width, height), interpolation=cv2.INTER_LINEAR) > 0
    (x0, x1), (y0, y1) = (np.ceil(side).astype(int) for side in box)
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[y0:y1, x0:x1] = image[y0:y1, x0:x1]
    found = coco_mask.encode(mask)
    return {"size": found["size"], "counts": found["counts"].decode()}


def independent(
    file: Path, data: CocoData, annotations: Path, classes: int, kinds: tuple[str, ...]
) -> dict[str, float]:
    """AP by kind of the uncut graph."""
    spec = load(file).preprocess
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (image_input,) = session.get_inputs()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
    categories = sorted(truth.getCatIds())
    results = []
    for image, path in zip(data.document["images"], data.files, strict=True):
        tensor, geometry = preprocess(read_image(path), spec)
        for entry in plain(session.run(None, {image_input.name: tensor}), classes, geometry):
            results.append({"image_id": image["id"], "category_id": categories[entry.pop("label")], **entry})
    values = {}
    for kind in kinds:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(truth, truth.loadRes([dict(entry) for entry in results]), kind)
            evaluation.params.imgIds = sorted(image["id"] for image in data.document["images"])
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        values[NAMES[kind]] = float(evaluation.stats[0])
    return values


def speed(file: Path, data: CocoData, rounds: int = 3) -> tuple[float, float]:
    """Images per second: bare inference, and ``evaluate``; medians."""
    model = load(file)
    inputs = [preprocess(read_image(path), model.preprocess)[0] for path in data.files[:8]]
    bare_runner = Predictor.of_model(model)
    predictor = Predictor.of_model(model, threads=1)
    bare, ours = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        for index in range(len(data)):
            bare_runner.run(inputs[index % len(inputs)])
        bare.append(len(data) / (time.perf_counter() - start))
        ours.append(data.evaluate({"float": lambda: predictor}, fresh=True).rows[0].images_per_second)
    return float(np.median(bare)), float(np.median(ours))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parent.parent.parent / "shared" / "data")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--speed-only", action="store_true")
    options = parser.parse_args()
    if not (options.data / "coco").is_dir():
        sys.exit(f"{options.data / 'coco'} is missing: this benchmark needs labelled images, see --data")
    print("| model | images | metric | evaluate | independent | difference | bare/s | evaluate/s | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        for name, (annotations, classes, kinds) in MODELS.items():
            file, labels = options.data / "models" / name, options.data / "coco" / "annotations" / annotations
            data = coco(options.data / "coco" / "images", labels, limit=options.limit)
            bare, ours = speed(file, coco(options.data / "coco" / "images", labels, limit=40))
            rate = f"{bare:.1f} | {ours:.1f} | {ours / bare:.2f}"
            if options.speed_only:
                print(f"| {name} | 40 | | | | | {rate} |", flush=True)
                continue
            model = load(file)
            report = data.evaluate({"float": lambda model=model: Predictor.of_model(model, threads=1)})
            for metric, value in independent(file, data, labels, classes, kinds).items():
                found = report.metric("float", metric, "AP") or 0.0
                cells = f"{found:.4f} | {value:.4f} | {found - value:+.4f} | {rate}"
                print(f"| {name} | {len(data)} | {metric} AP | {cells} |", flush=True)


if __name__ == "__main__":
    main()
