"""Fast decode against a slow one that decodes every anchor and loops over boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.tasks import HeadSpec, meaning_of
from narrowcast.vision import Classification, Detections, Geometry, OutputEncoding
from narrowcast.vision.reader import non_maximum_suppression

SPECS = [
    HeadSpec("detect", (8, 16, 32), 5),
    HeadSpec("detect", (8, 16), 1, reg_max=1),
    HeadSpec("pose", (8, 16, 32), 1, keypoint_shape=(17, 3)),
    HeadSpec("pose", (8, 16), 2, reg_max=8, keypoint_shape=(4, 2)),
    HeadSpec("segment", (8, 16, 32), 3, num_masks=8),
]
HEIGHT, WIDTH = 64, 96


def decode(outputs: dict[str, np.ndarray], spec: HeadSpec, geometry: Geometry, **options: Any) -> Detections:
    found = meaning_of(spec.task, spec).decode(outputs, geometry, **options)
    assert isinstance(found, Detections)
    return found


def decode_classification(scores: np.ndarray, softmax: bool = False, **options: Any) -> Classification:
    meaning = meaning_of("classify", None, softmax)
    found = meaning.decode({"y": scores}, Geometry(1, 1), **options)
    assert isinstance(found, Classification)
    return found


def raw_heads(spec: HeadSpec, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    outputs = {}
    for stride in spec.strides:
        h, w = HEIGHT // stride, WIDTH // stride
        outputs[f"box_s{stride}"] = np.abs(rng.normal(0, 2, (1, 4 * spec.reg_max, h, w))).astype(np.float32)
        outputs[f"cls_s{stride}"] = rng.normal(-2, 2, (1, spec.num_classes, h, w)).astype(np.float32)
        if spec.keypoint_shape:
            channels = spec.keypoint_shape[0] * spec.keypoint_shape[1]
            outputs[f"kpt_s{stride}"] = rng.normal(0, 1, (1, channels, h, w)).astype(np.float32)
        if spec.num_masks:
            outputs[f"mask_s{stride}"] = rng.normal(0, 1, (1, spec.num_masks, h, w)).astype(np.float32)
    if spec.num_masks:
        size = HEIGHT // spec.strides[0] * 2, WIDTH // spec.strides[0] * 2
        outputs["proto"] = rng.normal(0, 1, (1, spec.num_masks, *size)).astype(np.float32)
    return outputs


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def slow_nms(boxes: np.ndarray, classes: np.ndarray, iou: float) -> list[int]:
    kept: list[int] = []
    for index in range(len(boxes)):
        if all(classes[k] != classes[index] or overlap(boxes[k], boxes[index]) <= iou for k in kept):
            kept.append(index)
    return kept


def slow_decode(outputs: dict[str, np.ndarray], spec: HeadSpec, confidence: float, iou: float):  # type: ignore[no-untyped-def]
    rows = meaning_of(spec.task, spec).dense(outputs).astype(np.float64)
    scores, classes = rows[4 : 4 + spec.num_classes].max(0), rows[4 : 4 + spec.num_classes].argmax(0)
    order = [i for i in np.argsort(-scores, kind="stable") if scores[i] >= confidence]
    x, y, w, h = rows[:4]
    boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)[order]
    kept = slow_nms(boxes, classes[order], iou)
    return boxes[kept], scores[order][kept], classes[order][kept], rows[4 + spec.num_classes :, order][:, kept].T


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.task}{s.num_classes}")
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_equals_the_slow_decode(spec: HeadSpec, layout: str) -> None:
    for seed in range(5):
        outputs = raw_heads(spec, seed)
        boxes, scores, classes, extra = slow_decode(outputs, spec, 0.3, 0.5)
        given_outputs = {k: v.transpose(0, 2, 3, 1) for k, v in outputs.items()} if layout == "NHWC" else outputs
        found = decode(given_outputs, spec, Geometry(WIDTH, HEIGHT), confidence=0.3, iou=0.5, layout=layout)
        assert len(found) == len(scores)
        np.testing.assert_allclose(found.scores, scores, atol=1e-5)
        np.testing.assert_array_equal(found.class_ids, classes)
        np.testing.assert_allclose(found.boxes, np.clip(boxes, 0, [WIDTH, HEIGHT] * 2), atol=2e-3)
        if spec.keypoint_shape:
            points = extra.reshape(-1, *spec.keypoint_shape)
            assert found.keypoints is not None
            expected = np.clip(points[..., :2], 0, [WIDTH, HEIGHT])
            np.testing.assert_allclose(found.keypoints[..., :2], expected, atol=2e-3)
            if spec.keypoint_shape[1] == 3:
                np.testing.assert_allclose(found.keypoints[..., 2], points[..., 2], atol=1e-5)


@given(st.integers(0, 1000), st.booleans(), st.floats(0.01, 0.9))
@settings(max_examples=40, deadline=None)
def test_integer_threshold_keeps_what_the_dequantized_one_keeps(
    seed: int, per_channel: bool, confidence: float
) -> None:
    rng = np.random.default_rng(seed)
    spec = HeadSpec("detect", (8, 16), 4)
    integers, floats, encodings = {}, {}, {}
    for name, value in raw_heads(spec, seed).items():
        scale = rng.uniform(0.01, 0.2, value.shape[1]) if per_channel else float(rng.uniform(0.01, 0.2))
        zero_point = 0 if per_channel else int(rng.integers(-20, 20))
        encoding = OutputEncoding("int16", scale, zero_point, 1 if per_channel else None)
        wide = np.asarray(scale, np.float32).reshape(-1, 1, 1) if per_channel else np.float32(scale)  # type: ignore[arg-type]
        q = np.rint(value / wide).astype(np.int16) + np.int16(zero_point)
        integers[name], encodings[name] = q, encoding
        floats[name] = (q.astype(np.int64) - zero_point).astype(np.float32) * wide
    options = {"confidence": confidence, "iou": 0.6}
    a = decode(integers, spec, Geometry(WIDTH, HEIGHT), encodings=encodings, **options)  # type: ignore[arg-type]
    b = decode(floats, spec, Geometry(WIDTH, HEIGHT), **options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.scores, b.scores)
    np.testing.assert_array_equal(a.class_ids, b.class_ids)


@given(st.integers(0, 10_000), st.integers(0, 40), st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_suppression_equals_the_loop(seed: int, count: int, iou: float) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 50, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 40, (count, 2))], 1).astype(np.float32)
    classes = rng.integers(0, 3, count)
    assert non_maximum_suppression(boxes, classes, iou, 300).tolist() == slow_nms(boxes.astype(float), classes, iou)


def test_multi_label_gives_an_anchor_several_classes() -> None:
    spec = HeadSpec("detect", (8,), 2, reg_max=1)
    outputs = {
        "box_s8": np.full((1, 4, 1, 1), 0.4, np.float32),
        "cls_s8": np.array([2.0, 1.0], np.float32).reshape(1, 2, 1, 1),
    }
    geometry = Geometry(8, 8)
    assert decode(outputs, spec, geometry, multi_label=True).class_ids.tolist() == [0, 1]
    assert decode(outputs, spec, geometry).class_ids.tolist() == [0]
    assert len(decode(outputs, spec, geometry, multi_label=True, class_agnostic=True)) == 1


def test_nothing_found_and_too_many_found() -> None:
    spec = SPECS[2]
    outputs = raw_heads(spec, 0)
    empty = {k: np.full_like(v, -20) if "cls" in k else v for k, v in outputs.items()}
    found = decode(empty, spec, Geometry(WIDTH, HEIGHT))
    assert len(found) == 0 and found.keypoints is not None and found.keypoints.shape == (0, 17, 3)
    assert len(decode(outputs, spec, Geometry(WIDTH, HEIGHT), confidence=0.01, max_detections=3)) == 3


def test_letterbox_is_undone() -> None:
    spec = SPECS[2]
    outputs = raw_heads(spec, 1)
    plain = decode(outputs, spec, Geometry(10**6, 10**6), confidence=0.3)
    half = decode(outputs, spec, Geometry(10**6, 10**6, 0.5, 0.5, 3, 5), confidence=0.3)
    inside = (plain.boxes > 6).all(axis=1)
    np.testing.assert_allclose(half.boxes[inside], (plain.boxes[inside] - [3, 5, 3, 5]) * 2, rtol=1e-4)


def test_masks_against_plain_bilinear_sampling() -> None:
    spec = SPECS[4]
    outputs = raw_heads(spec, 2)
    found = decode(outputs, spec, Geometry(WIDTH, HEIGHT), confidence=0.5)
    assert found.masks is not None and found.masks.shape == (len(found), HEIGHT, WIDTH)
    for mask, box in zip(found.masks, found.boxes, strict=True):
        rows, columns = np.nonzero(mask)
        if len(rows):
            assert columns.min() >= np.floor(box[0]) and rows.max() < np.ceil(box[3])


def test_confidence_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="confidence"):
        decode({}, SPECS[0], Geometry(1, 1), confidence=1.0)


def test_classification() -> None:
    found = decode_classification(np.array([[0.1, 0.7, 0.2]]), top_k=2)
    assert found.class_ids.tolist() == [1, 2]
    assert decode_classification(np.array([0.0, 2.0]), softmax=True).scores.sum() == pytest.approx(1)
    assert found.to_dict(["a", "b", "c"])[0]["class"] == "b"
