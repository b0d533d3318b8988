"""Scenes as arrays for training: drawn once, kept in a cache folder."""

from __future__ import annotations

from multiprocessing import Pool
from pathlib import Path

import numpy as np

from narrowcast.vision.preprocess import Preprocess, preprocess
from samples_training.scenes import OBJECT_NAMES, object_scene, pose_scene

POSE_INPUT = Preprocess(height=256, width=256)
#: Center crop as the exported model's metadata says; the values stay 0..1 here, training normalizes.
CLASSIFY_INPUT = Preprocess(height=96, width=96, resize="center-crop", resize_shorter=112)
MOST_PEOPLE = 4
#: Seeds of the training scenes start here; the shipped images have seeds below 1,000,000 (see ``shipped.py``).
TRAIN_SEED, HELD_OUT_SEED = 1_000_000, 3_000_000


def _pose_row(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Letterboxed uint8 (3, 256, 256) RGB, and per person x0, y0, x1, y1, area, 17 x (x, y, visibility)."""
    scene = pose_scene(seed)
    tensor, geometry = preprocess(scene.image, POSE_INPUT)
    rows = np.zeros((MOST_PEOPLE, 5 + 51), np.float32)
    pad = np.array([geometry.pad_left, geometry.pad_top])
    for row, person in zip(rows, scene.people, strict=False):
        x, y, width, height = person.box
        row[:4] = np.array([x, y, x + width, y + height]) * geometry.scale_x + np.tile(pad, 2)
        row[4] = person.area * geometry.scale_x**2
        points = person.keypoints.copy()
        points[:, :2] = (points[:, :2] * geometry.scale_x + pad) * (points[:, 2:] > 0)
        row[5:] = points.ravel()
    return np.rint(tensor[0] * 255).astype(np.uint8), rows


def _object_row(seed: int) -> tuple[np.ndarray, np.ndarray]:
    scene = object_scene(seed, seed % len(OBJECT_NAMES))
    tensor, _ = preprocess(scene.image, CLASSIFY_INPUT)
    return np.rint(tensor[0] * 255).astype(np.uint8), np.int64(scene.label)


def scenes(kind: str, first: int, count: int, cache: Path, processes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of ``count`` scenes from seed ``first`` on, ``kind`` ``"pose"`` or ``"classify"``."""
    images, labels = (cache / f"{kind}_{first}_{count}_{part}.npy" for part in ("images", "labels"))
    if not labels.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with Pool(processes) as pool:
            rows = pool.map(_pose_row if kind == "pose" else _object_row, range(first, first + count), chunksize=64)
        np.save(images, np.stack([row[0] for row in rows]))
        np.save(labels, np.stack([row[1] for row in rows]))
    return np.load(images, mmap_mode="r"), np.load(labels)
