"""Errors in task units against a slow reference that decodes every anchor and loops over detections."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.plan import Encoding
from narrowcast.tasks import HeadSpec, Look, Task, TaskError, TaskJudge, combine, meaning_of
from narrowcast.tasks.pose import COCO_SIGMAS, OTHER_SIGMA

SPECS = [
    HeadSpec("detect", (8, 16), 5),
    HeadSpec("pose", (8, 16, 32), 1, keypoint_shape=(17, 3)),
    HeadSpec("pose", (8, 16), 2, reg_max=1, keypoint_shape=(4, 2)),
    HeadSpec("segment", (8, 16), 3, num_masks=8),
]
HEIGHT, WIDTH = 64, 96
Outputs = dict[str, np.ndarray]


def heads(spec: HeadSpec, rng: np.random.Generator) -> Outputs:
    found: Outputs = {}
    for stride in spec.strides:
        h, w = HEIGHT // stride, WIDTH // stride
        found[f"box_s{stride}"] = np.abs(rng.normal(1, 1, (1, 4 * spec.reg_max, h, w))).astype(np.float32)
        found[f"cls_s{stride}"] = rng.normal(-2, 2, (1, spec.num_classes, h, w)).astype(np.float32)
        for role in meaning_of(spec.task, spec).roles[2:]:
            values = rng.normal(0, 1, (1, role.channels(spec), h, w))
            found[f"{role.stem}_s{stride}"] = values.astype(np.float32)
    if spec.num_masks:
        found["proto"] = rng.normal(0, 1, (1, spec.num_masks, HEIGHT // 4, WIDTH // 4)).astype(np.float32)
    return found


def judge_of(spec: HeadSpec, references: list[Outputs]) -> TaskJudge:
    return TaskJudge(meaning_of(spec.task, spec), references, Look((HEIGHT, WIDTH)))


def noisy(outputs: Outputs, rng: np.random.Generator, size: float) -> Outputs:
    return {k: (v + rng.normal(0, size, v.shape)).astype(np.float32) for k, v in outputs.items()}


def corners(row: np.ndarray) -> list[float]:
    x, y, w, h = (float(v) for v in row[:4])
    return [
        min(max(v, 0), limit)
        for v, limit in zip((x - w / 2, y - h / 2, x + w / 2, y + h / 2), (WIDTH, HEIGHT) * 2, strict=True)
    ]


def iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0.0, width) * max(0.0, height)
    areas = sum(max(0.0, c[2] - c[0]) * max(0.0, c[3] - c[1]) for c in (a, b))
    return common / (areas - common) if areas > common else 1.0


def slow(spec: HeadSpec, expected: Outputs, actual: Outputs) -> dict[str, float]:
    one, other = (meaning_of(spec.task, spec).dense(each).astype(np.float64) for each in (expected, actual))
    classes = spec.num_classes
    kept: list[int] = []
    order = sorted(range(one.shape[1]), key=lambda i: (-one[4 : 4 + classes, i].max(), i))
    for i in order:
        if one[4 : 4 + classes, i].max() < 0.15:
            continue
        label = one[4 : 4 + classes, i].argmax()
        same = [k for k in kept if one[4 : 4 + classes, k].argmax() == label]
        if all(iou(corners(one[:, k]), corners(one[:, i])) <= 0.7 for k in same) and len(kept) < 60:
            kept.append(i)
    rows: dict[str, list[float]] = {"box_pixels": [], "iou_loss": [], "probability": []}
    for i in kept:
        a, b = corners(one[:, i]), corners(other[:, i])
        rows["box_pixels"].append(sum(abs(p - q) for p, q in zip(a, b, strict=True)) / 4)
        rows["iou_loss"].append(1 - iou(a, b))
        label = 4 + int(one[4 : 4 + classes, i].argmax())
        rows["probability"].append(abs(one[label, i] - other[label, i]))
        if spec.keypoint_shape:
            distance, similarity = points(spec, one[:, i], other[:, i], a)
            rows.setdefault("keypoint_pixels", []).append(distance)
            rows.setdefault("oks_loss", []).append(1 - similarity)
        if spec.num_masks:
            rows.setdefault("mask_iou_loss", []).append(mask(spec, one[:, i], other[:, i], expected, actual, a))
    pairs = [
        abs(float(p - q))
        for p, q in zip(one[4 : 4 + classes].ravel(), other[4 : 4 + classes].ravel(), strict=True)
        if p >= 0.1 or q >= 0.1
    ]
    rows["candidate_probability"] = pairs
    return {name: float(np.mean(values)) for name, values in rows.items()}


def points(spec: HeadSpec, one: np.ndarray, other: np.ndarray, box: list[float]) -> tuple[float, float]:
    assert spec.keypoint_shape
    count, dims = spec.keypoint_shape
    area = 0.53 * max(1.0, (box[2] - box[0]) * (box[3] - box[1]))
    weights, distances, similarities = [], [], []
    for k in range(count):
        start = 4 + spec.num_classes + k * dims
        distance = math.hypot(other[start] - one[start], other[start + 1] - one[start + 1])
        sigma = COCO_SIGMAS[k] if count == 17 else OTHER_SIGMA
        weights.append(one[start + 2] if dims == 3 else 1.0)
        distances.append(distance)
        similarities.append(math.exp(-(distance**2) / (2 * area * (2 * sigma) ** 2)))
    return float(np.average(distances, weights=weights)), float(np.average(similarities, weights=weights))


def mask(
    spec: HeadSpec, one: np.ndarray, other: np.ndarray, expected: Outputs, actual: Outputs, box: list[float]
) -> float:
    first = 4 + spec.num_classes
    both, either = 0, 0
    for y in range(math.floor(box[1] / 4), max(math.floor(box[1] / 4) + 1, math.ceil(box[3] / 4))):
        for x in range(math.floor(box[0] / 4), max(math.floor(box[0] / 4) + 1, math.ceil(box[2] / 4))):
            if y >= HEIGHT // 4 or x >= WIDTH // 4:
                continue
            p = float(one[first:] @ expected["proto"][0, :, y, x]) > 0
            q = float(other[first:] @ actual["proto"][0, :, y, x]) > 0
            both, either = both + (p and q), either + (p or q)
    return 1 - both / either if either else 0.0


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.task}{s.num_classes}")
@pytest.mark.parametrize("noise", [0.02, 0.5])
def test_equals_the_slow_reference(spec: HeadSpec, noise: float) -> None:
    rng = np.random.default_rng(3)
    references = [heads(spec, rng) for _ in range(3)]
    judge = judge_of(spec, references)
    for index, reference in enumerate(references):
        actual = noisy(reference, rng, noise)
        found = judge.judge(index, actual).to_dict()
        for name, value in slow(spec, reference, actual).items():
            assert found[name] == pytest.approx(value, rel=2e-4, abs=2e-5), name


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.task}{s.num_classes}")
def test_equal_outputs_cost_nothing_and_noise_costs_more(spec: HeadSpec) -> None:
    rng = np.random.default_rng(5)
    reference = heads(spec, rng)
    judge = judge_of(spec, [reference])
    assert judge.judge(0, reference).loss == 0
    losses = [judge.judge(0, noisy(reference, np.random.default_rng(1), size)).loss for size in (0.01, 0.1, 1.0)]
    assert losses == sorted(losses) and losses[0] > 0


def test_a_new_false_positive_is_seen() -> None:
    spec = SPECS[0]
    reference = heads(spec, np.random.default_rng(0))
    for stride in spec.strides:
        reference[f"cls_s{stride}"] = np.full_like(reference[f"cls_s{stride}"], -9)
    reference["cls_s8"][0, 1, 2, 3] = 3
    actual = {name: value.copy() for name, value in reference.items()}
    actual["cls_s16"][0, 4, 1, 1] = 2
    error = judge_of(spec, [reference]).judge(0, actual)
    assert error.values["probability"] == 0
    assert error.candidates == 2
    expected = (1 / (1 + math.exp(-2)) - 1 / (1 + math.exp(9))) / 2
    assert error.values["candidate_probability"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("softmax_missing", [True, False])
def test_classifier(softmax_missing: bool) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (1, 10))
    other = logits + rng.normal(0, 1, (1, 10))
    chances = [np.exp(v) / np.exp(v).sum() for v in (logits, other)]
    given_outputs = (logits, other) if softmax_missing else chances
    judge = TaskJudge(meaning_of("classify", None, softmax_missing), [{"y": given_outputs[0]}], Look((8, 8)))
    error = judge.judge(0, {"y": given_outputs[1]})
    p, q = (c.ravel() for c in chances)
    kept = sorted({*sorted(range(10), key=lambda i: -p[i])[:5], int(q.argmax())})
    rows = [(p[i], q[i]) for i in kept] + [(1 - p[kept].sum(), 1 - q[kept].sum())]
    floored = [(max(float(a), 1e-3), max(float(b), 1e-3)) for a, b in rows]
    assert error.values["divergence"] == pytest.approx(sum(a * math.log(a / b) - a + b for a, b in floored))
    assert error.values["probability"] == pytest.approx(abs(q[p.argmax()] - p.max()))
    assert error.values["top1_disagreement"] == float(p.argmax() != q.argmax())
    assert error.loss == error.values["divergence"]


def test_unlikely_classes_that_eight_bits_round_away_cost_little() -> None:
    p = np.full((1, 1000), 0.2 / 999)
    p[0, 7] = 0.8
    judge = TaskJudge(meaning_of("classify"), [{"y": p}], Look((8, 8)))
    assert judge.judge(0, {"y": np.rint(p * 256) / 256}).loss < 0.01


def test_without_a_task_noise_counts() -> None:
    x = np.array([3.0, 4.0], np.float32)
    judge = TaskJudge(Task(), [{"y": x}], Look((8, 8)))
    assert judge.judge(0, {"y": x + 1}).loss == pytest.approx(2 / 25)


def test_nothing_found_falls_back_to_noise() -> None:
    spec = SPECS[0]
    reference = {k: np.full_like(v, -9) for k, v in heads(spec, np.random.default_rng(0)).items()}
    judge = judge_of(spec, [reference])
    assert judge.meaning == Task()
    assert judge.judge(0, {k: v + 9 for k, v in reference.items()}).loss == pytest.approx(1, rel=1e-6)


def test_combine_weights_by_detections() -> None:
    one = TaskError(1, 2, 1, {"iou_loss": 0.4, "candidate_probability": 0.1})
    other = TaskError(3, 2, 1, {"iou_loss": 0.0, "candidate_probability": 0.3})
    empty = TaskError(0, 0, 1, {"candidate_probability": 0.0})
    both = combine([one, other, empty])
    assert (both.detections, both.candidates, both.images) == (4, 4, 3)
    assert both.values["iou_loss"] == pytest.approx(0.1)
    assert both.values["candidate_probability"] == pytest.approx(0.2)
    assert both.loss == pytest.approx(0.3)
    assert "oks_loss" not in both.values


@given(st.sampled_from([8, 16, 32]), st.floats(1e-4, 0.5), st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_a_step_of_a_keypoint_moves_it_as_far_as_said(stride: int, scale: float, channel: int) -> None:
    spec = HeadSpec("pose", (stride,), 1, keypoint_shape=(17, 3))
    outputs = heads(spec, np.random.default_rng(0))
    moved = {**outputs, f"kpt_s{stride}": outputs[f"kpt_s{stride}"].copy()}
    moved[f"kpt_s{stride}"][0, channel] += np.float32(scale)
    meaning = meaning_of(spec.task, spec)
    row = meaning.resolution({f"kpt_s{stride}": Encoding("int8", scale)})[0]
    change = np.abs(meaning.dense(moved) - meaning.dense(outputs))[5 + channel].max()
    assert row.unit == "pixels"
    if channel % 3 < 2:
        assert change == pytest.approx(row.per_lsb, rel=1e-2, abs=1e-4)


def test_steps_of_the_other_outputs() -> None:
    spec = HeadSpec("detect", (8, 32), 3)
    per_channel = Encoding("int32", (0.1, 0.2, 0.4), 0, 1)
    found = meaning_of(spec.task, spec).resolution({"box_s32": Encoding("int8", 0.125), "cls_s8": per_channel})
    assert [(row.unit, row.per_lsb) for row in found] == [("pixels", 1.0), ("probability", 0.1)]
    plain = meaning_of("detect", HeadSpec("detect", (8,), 3, reg_max=1))
    assert plain.resolution({"box_s8": Encoding("int8", 0.5)})[0].per_lsb == 4
    assert Task().resolution({"y": Encoding("int8", 0.5)})[0].unit == "raw"
