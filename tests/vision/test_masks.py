"""Masks and their run-length encoding against dense arrays, plain sampling loops and pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from narrowcast.vision import Geometry
from narrowcast.vision.masks import dense_masks, prototype_masks


def random_masks(seed: int, count: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    share = rng.choice([0.0, 0.02, 0.5, 0.98, 1.0], (count, 1, 1))
    return rng.random((count, height, width)) < share


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 4), st.integers(1, 17), st.integers(1, 17))
def test_encoding_equals_pycocotools(seed: int, count: int, height: int, width: int) -> None:
    masks = random_masks(seed, count, height, width)
    coded = dense_masks(masks).rle()
    assert len(coded) == count
    for entry, mask in zip(coded, masks, strict=True):
        expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert entry == {"size": [height, width], "counts": expected["counts"].decode()}
    for entry, mask in zip(dense_masks(masks).rle(compressed=False), masks, strict=True):
        lit = np.repeat(np.arange(len(entry["counts"])) % 2, entry["counts"])
        assert np.array_equal(lit.reshape(width, height).T.astype(bool), mask)


def test_long_runs_need_several_groups_of_bits() -> None:
    mask = np.zeros((1, 900, 1100), np.bool_)
    mask[0, 450:, 700:] = True
    (entry,) = dense_masks(mask).rle()
    assert entry["counts"] == coco_mask.encode(np.asfortranarray(mask[0].astype(np.uint8)))["counts"].decode()


def slow_mask(
    box: np.ndarray, coefficients: np.ndarray, prototypes: np.ndarray, geometry: Geometry, stride: float
) -> np.ndarray:
    """Pixel by pixel: bilinear logits at the pixel's centre, cropped to the box."""
    logits = np.tensordot(coefficients, prototypes, 1).astype(np.float64)
    height, width = geometry.image_height, geometry.image_width
    ys = ((np.arange(height) + 0.5) * geometry.scale_y + geometry.pad_top) / stride - 0.5
    xs = ((np.arange(width) + 0.5) * geometry.scale_x + geometry.pad_left) / stride - 0.5
    low_y, high_y = np.ceil(geometry.pad_top / stride - 0.5), np.floor(
        (geometry.pad_top + height * geometry.scale_y) / stride - 0.5)  # fmt: skip
    low_x, high_x = np.ceil(geometry.pad_left / stride - 0.5), np.floor(
        (geometry.pad_left + width * geometry.scale_x) / stride - 0.5)  # fmt: skip
    ys = np.clip(ys, max(0, low_y), min(high_y, logits.shape[0] - 1))
    xs = np.clip(xs, max(0, low_x), min(high_x, logits.shape[1] - 1))
    mask = np.zeros((height, width))
    for row, y in enumerate(ys):
        for column, x in enumerate(xs):
            if not (box[0] <= column < box[2] and box[1] <= row < box[3]):
                continue
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, logits.shape[0] - 1), min(x0 + 1, logits.shape[1] - 1)
            top = logits[y0, x0] * (1 - x + x0) + logits[y0, x1] * (x - x0)
            bottom = logits[y1, x0] * (1 - x + x0) + logits[y1, x1] * (x - x0)
            mask[row, column] = top * (1 - y + y0) + bottom * (y - y0)
    return mask


@pytest.mark.parametrize("size", [(37, 53), (150, 200)], ids=["small windows", "large windows"])
def test_prototype_masks_equal_the_loop(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    height, width = size
    scale = 160 / max(size)
    geometry = Geometry(width, height, scale, scale, (160 - width * scale) / 2, (160 - height * scale) / 2)
    prototypes = rng.normal(0, 1, (4, 40, 40)).astype(np.float32)
    coefficients = rng.normal(0, 1, (3, 4)).astype(np.float32)
    boxes = np.array([[0, 0, width, height], [3.4, 2.0, width - 4.2, height / 2], [5, 5, 5, 5]], np.float32)
    found = prototype_masks(boxes, coefficients, prototypes, geometry, 4)
    for index, box in enumerate(boxes):
        logits = slow_mask(box, coefficients[index], prototypes, geometry, 4)
        mask = found[index]
        # OpenCV samples at 1/32 pixel, so that logits next to zero may land on the other side
        certain = np.abs(logits) > 0.15
        assert np.array_equal(mask[certain], logits[certain] > 0)
        assert not mask[logits == 0].any()
        assert (mask == (logits > 0)).mean() > 0.99


def test_masks_behave_like_an_array() -> None:
    masks = random_masks(3, 4, 6, 7)
    found = dense_masks(masks)
    assert found.shape == masks.shape and np.array_equal(np.asarray(found), masks)
    assert np.array_equal(np.asarray(found[np.array([True, False, True, False])]), masks[::2])
    assert np.array_equal(found[-1], masks[-1]) and np.array_equal(np.stack(list(found)), masks)
    with pytest.raises(IndexError, match="index 4"):
        found[4]
    with pytest.raises(ValueError, match="shape"):
        dense_masks(masks[0])
    with pytest.raises(ValueError, match="coefficients"):
        prototype_masks(np.zeros((2, 4)), np.zeros((2, 3)), np.zeros((4, 5, 5)), Geometry(8, 8), 4)
