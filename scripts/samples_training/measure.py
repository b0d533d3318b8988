"""Float accuracy of the exported files, independent of narrowcast's own decode and evaluation."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort

from narrowcast.vision.preprocess import Preprocess, preprocess
from samples_training.scenes import coco_annotations, pose_scene


def session(model: Path) -> ort.InferenceSession:
    """A single-threaded CPU session."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def detect(network: ort.InferenceSession, image: np.ndarray, confidence: float = 0.001) -> np.ndarray:
    """(N, 56): x, y, width, height of the box, score, 17 x (x, y, confidence), in image pixels, best first."""
    side = network.get_inputs()[0].shape[2]
    tensor, geometry = preprocess(image, Preprocess(height=side, width=side))
    rows = network.run(None, {"images": tensor})[0][0].T
    rows = rows[rows[:, 4] > confidence]
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    rows[:, :2] -= rows[:, 2:4] / 2
    kept = cv2.dnn.NMSBoxes(rows[:, :4].tolist(), rows[:, 4].tolist(), confidence, 0.7) if len(rows) else []
    rows = rows[np.asarray(kept, int)][:100].astype(np.float64)
    rows[:, :4] /= geometry.scale_x
    rows[:, :2] -= np.array([geometry.pad_left, geometry.pad_top]) / geometry.scale_x
    points = rows[:, 5:].reshape(-1, 17, 3)
    points[..., :2] = (points[..., :2] - [geometry.pad_left, geometry.pad_top]) / geometry.scale_x
    return rows


def pose_accuracy(model: Path, truth: dict[str, Any], images: Iterable[np.ndarray]) -> dict[str, float]:
    """COCO AP of keypoints and boxes (pycocotools) for images in the order of ``truth["images"]``."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    network = session(model)
    results = []
    for entry, image in zip(truth["images"], images, strict=True):
        for row in detect(network, image):
            keypoints = row[5:].tolist()
            common = {"image_id": entry["id"], "category_id": 1, "score": float(row[4])}
            results.append({**common, "bbox": row[:4].tolist(), "keypoints": keypoints})
    scores: dict[str, float] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = truth
        known.createIndex()
        for kind in ("keypoints", "bbox"):
            # pycocotools takes an entry with a box for a box result, so each kind gets its own list.
            other = "bbox" if kind == "keypoints" else "keypoints"
            found = known.loadRes([{key: value for key, value in row.items() if key != other} for row in results])
            run = COCOeval(known, found, kind)
            run.evaluate()
            run.accumulate()
            run.summarize()
            scores[f"{kind} AP"], scores[f"{kind} AP50"] = float(run.stats[0]), float(run.stats[1])
    return scores


def shipped_pose_accuracy(samples: Path) -> dict[str, float]:
    """AP on the shipped validation images."""
    folder = samples / "people"
    truth = json.loads((folder / "keypoints.json").read_text())
    images = [cv2.imread(str(folder / "validation" / entry["file_name"])) for entry in truth["images"]]
    return pose_accuracy(samples / "pose.onnx", truth, images)


def held_out_pose_accuracy(samples: Path, seed: int, count: int) -> dict[str, float]:
    """AP on freshly drawn scenes that neither training nor the wheel holds."""
    scenes = [(f"{index}.png", pose_scene(seed + index)) for index in range(count)]
    return pose_accuracy(samples / "pose.onnx", coco_annotations(scenes), [scene.image for _, scene in scenes])


def classifier_accuracy(model: Path, images: Iterable[np.ndarray], labels: Iterable[int]) -> float:
    """Share of BGR images whose most probable class is the label."""
    network = session(model)
    metadata = json.loads(network.get_modelmeta().custom_metadata_map["preprocess"])
    spec = Preprocess(
        height=metadata["crop"],
        width=metadata["crop"],
        resize="center-crop",
        resize_shorter=metadata["resize"],
        mean=tuple(metadata["mean"]),
        scale=tuple(1 / value for value in metadata["std"]),
    )
    guesses = [int(network.run(None, {"images": preprocess(image, spec)[0]})[0].argmax()) for image in images]
    return float(np.mean(np.equal(guesses, list(labels))))


def shipped_classifier_accuracy(samples: Path) -> float:
    """Top-1 on the shipped validation images."""
    folder = samples / "things"
    lines = [line.split() for line in (folder / "labels.txt").read_text().splitlines()]
    images = [cv2.imread(str(folder / "validation" / name)) for name, _ in lines]
    return classifier_accuracy(samples / "classify.onnx", images, [int(label) for _, label in lines])
