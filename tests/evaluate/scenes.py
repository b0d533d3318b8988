"""Random annotations and results in COCO's format."""

from __future__ import annotations

from typing import Any

import numpy as np

SIDE = 60


def random_document(seed: int, images: int = 7, categories: int = 3) -> dict[str, Any]:
    """Annotations with boxes, masks, keypoints, crowds and people without keypoints."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    for image in range(images):
        for _ in range(rng.integers(0, 6)):
            left, top = rng.uniform(0, SIDE / 2, 2)
            width, height = rng.uniform(3, SIDE / 2, 2)
            crowd = bool(rng.random() < 0.15)
            visible = rng.integers(0, 3, 17) * (rng.random() > 0.2)
            points = np.stack([rng.uniform(left, left + width, 17), rng.uniform(top, top + height, 17), visible], 1)
            corners = [left, top, left + width, top, left + width, top + height, left, top + height]
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image + 10, "iscrowd": int(crowd),
                    "category_id": int(rng.integers(1, categories + 1)), "area": float(width * height),
                    "bbox": [float(v) for v in (left, top, width, height)],
                    "segmentation": [[float(v) for v in corners]],
                    "keypoints": [float(v) for v in points.reshape(-1)], "num_keypoints": int((visible > 0).sum()),
                }
            )  # fmt: skip
    return {
        "images": [{"id": i + 10, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": f"c{i}"} for i in range(categories)],
    }


def random_results(document: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Shaken copies of the truth, repetitions and nonsense."""
    from narrowcast.vision.masks import dense_masks

    rng = np.random.default_rng(seed)
    results = []
    for entry in [*document["annotations"], *document["annotations"]]:
        if rng.random() < 0.3:
            continue
        image = entry["image_id"] if rng.random() < 0.9 else int(rng.choice([i["id"] for i in document["images"]]))
        box = np.asarray(entry["bbox"]) + rng.normal(0, rng.choice([0.3, 2]), 4)
        box[2:] = np.maximum(box[2:], 1)
        points = np.asarray(entry["keypoints"]).reshape(-1, 3) + rng.normal(0, rng.choice([0.3, 2]), (17, 3))
        mask = np.zeros((1, SIDE, SIDE), np.bool_)
        left, top, width, height = np.clip(box, 0, SIDE).astype(int)
        mask[0, top : top + height, left : left + width] = True
        results.append(
            {
                "image_id": image, "category_id": entry["category_id"], "score": float(rng.random()),
                "bbox": [float(v) for v in box], "segmentation": dense_masks(mask).rle()[0],
                "keypoints": [float(v) for v in points.reshape(-1)],
            }
        )  # fmt: skip
    return results
