"""Post-processing time on one thread: raw heads to detections, keypoints and masks, at 640x640.

    python benchmarks/postprocess.py [--repeats 200] [--anchors 1] [--json]

The heads are synthetic. Each object lights ``--anchors`` neighbouring cells (real models light several), and no two
objects suppress each other, so that the number of survivors is what the row says. Masks are computed at image size
inside their boxes, for every object.

The baseline is the usual full decode in numpy, as in Ultralytics' export: softmax, sigmoid and keypoints of all 8400
anchors, then the threshold, suppression class by class, and for masks all prototypes, upsampled to the input, then
cropped. Both see the same tensors in the same run, alternating, and must find the same objects.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from narrowcast.tasks import HeadSpec, meaning_of
from narrowcast.vision import Detections, Geometry, OutputEncoding

SIZE = 640
CONFIDENCE, IOU = 0.25, 0.7
SPECS = {
    "detect": HeadSpec("detect", (8, 16, 32), 80),
    "pose": HeadSpec("pose", (8, 16, 32), 1, keypoint_shape=(17, 3)),
    "segment": HeadSpec("segment", (8, 16, 32), 80, num_masks=32),
}
#: Share of the objects on each stride.
SHARES = {8: 0.5, 16: 0.35, 32: 0.15}
Outputs = dict[str, NDArray[Any]]


def heads(spec: HeadSpec, objects: int, anchors: int, seed: int = 0) -> Outputs:
    """Raw float heads in which about ``objects`` objects survive, boxes 3 to 9 cells wide."""
    rng = np.random.default_rng(seed)
    outputs: Outputs = {}
    for stride in spec.strides:
        side = SIZE // stride
        count = round(objects * SHARES[stride])
        logits = rng.normal(-8, 1, (spec.num_classes, side * side)).astype(np.float32)
        box = rng.normal(0, 1, (4, spec.reg_max, side * side)).astype(np.float32)
        # objects on cells apart from each other; neighbours of a cell tell of the same box
        columns = side // (anchors + 1)
        places = rng.permutation(side * columns)[:count]
        cells = places // columns * side + places % columns * (anchors + 1)
        label = rng.integers(0, spec.num_classes, count)
        reach = rng.uniform(1.5, 4.5, (4, count))
        bins = np.arange(spec.reg_max)[:, None]
        for step in range(anchors):
            logits[label, cells + step] = rng.uniform(0, 3, count)
            shifted = reach + np.array([step, 0, -step, 0])[:, None]
            box[..., cells + step] = -4 * np.abs(bins - shifted[:, None])
        outputs[f"box_s{stride}"] = box.reshape(1, -1, side, side)
        outputs[f"cls_s{stride}"] = logits.reshape(1, -1, side, side)
        channels = spec.num_masks or (spec.keypoint_shape[0] * spec.keypoint_shape[1] if spec.keypoint_shape else 0)
        if channels:
            extra = rng.normal(0, 1, (1, channels, side, side)).astype(np.float32)
            outputs[f"{spec.extra}_s{stride}"] = extra
    if spec.num_masks:
        coarse = rng.normal(0, 1, (spec.num_masks, 20, 20)).astype(np.float32)
        fine = [cv2.resize(plane, (SIZE // 4, SIZE // 4), interpolation=cv2.INTER_CUBIC) for plane in coarse]
        outputs["proto"] = np.stack(fine)[None]
    return outputs


def quantize(outputs: Outputs) -> tuple[Outputs, dict[str, OutputEncoding]]:
    """int8, one scale a tensor."""
    integers: Outputs = {}
    encodings = {}
    for name, value in outputs.items():
        scale = float(np.abs(value).max() / 127)
        integers[name] = np.rint(value / scale).astype(np.int8)
        encodings[name] = OutputEncoding("int8", scale)
    return integers, encodings


def sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    return 1 / (1 + np.exp(-x))


def naive(outputs: Outputs, spec: HeadSpec) -> tuple[NDArray[Any], NDArray[Any], list[Any]]:
    """Full decode of all anchors; boxes, scores, and keypoints or masks."""
    rows = []
    for stride in spec.strides:
        box = outputs[f"box_s{stride}"][0].reshape(4, spec.reg_max, -1)
        exp = np.exp(box - box.max(1, keepdims=True))
        sides = ((exp / exp.sum(1, keepdims=True)) * np.arange(spec.reg_max)[:, None]).sum(1)
        y, x = np.divmod(np.arange(box.shape[2]), SIZE // stride)
        corners = np.stack([x + 0.5 - sides[0], y + 0.5 - sides[1], x + 0.5 + sides[2], y + 0.5 + sides[3]]) * stride
        parts = [corners, sigmoid(outputs[f"cls_s{stride}"][0].reshape(spec.num_classes, -1))]
        if spec.extra:
            extra = outputs[f"{spec.extra}_s{stride}"][0].reshape(-1, box.shape[2])
            if spec.keypoint_shape:
                points = extra.reshape(-1, 3, box.shape[2])
                extra = np.stack(
                    [(points[:, 0] * 2 + x) * stride, (points[:, 1] * 2 + y) * stride, sigmoid(points[:, 2])], 1
                )
            parts.append(extra.reshape(-1, box.shape[2]))
        rows.append(np.concatenate(parts))
    table = np.concatenate(rows, 1).T
    table = table[table[:, 4 : 4 + spec.num_classes].max(1) >= CONFIDENCE]
    scores, classes = table[:, 4 : 4 + spec.num_classes].max(1), table[:, 4 : 4 + spec.num_classes].argmax(1)
    kept: list[int] = []
    for label in np.unique(classes):
        mine = np.flatnonzero(classes == label)
        boxes = np.concatenate([table[mine, :2], table[mine, 2:4] - table[mine, :2]], 1)
        kept += mine[np.asarray(cv2.dnn.NMSBoxes(boxes.tolist(), scores[mine].tolist(), CONFIDENCE, IOU))].tolist()
    order = np.asarray(kept)[np.argsort(-scores[kept])]
    extra = list(table[order, 4 + spec.num_classes :])
    if spec.num_masks:
        logits = (np.asarray(extra) @ outputs["proto"][0].reshape(spec.num_masks, -1)).reshape(-1, SIZE // 4, SIZE // 4)
        extra = [naive_mask(plane, box) for plane, box in zip(logits, table[order, :4], strict=True)]
    return table[order, :4], scores[order], extra


def naive_mask(logits: NDArray[Any], box: NDArray[Any]) -> NDArray[Any]:
    """The whole plane upsampled, then cropped and thresholded."""
    plane = cv2.resize(np.asarray(logits, np.float32), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    left, top, right, bottom = np.clip(np.ceil(box), 0, SIZE).astype(int)
    return plane[top:bottom, left:right] > 0


def ours(outputs: Outputs, spec: HeadSpec, encodings: dict[str, OutputEncoding] | None = None) -> Detections:
    """Detections, with every mask computed."""
    options = {"confidence": CONFIDENCE, "iou": IOU, "encodings": encodings}
    found = meaning_of(spec.task, spec).decode(outputs, Geometry(SIZE, SIZE), **options)
    if found.masks is not None:
        for index in range(len(found)):
            found.masks.crop(index)
    return found


def medians(jobs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Milliseconds of each job, alternating."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 3):
        for name, job in jobs.items():
            if name == "naive" and turn % 10:
                continue
            start = time.perf_counter()
            job()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(values[min(3, len(values) // 4) :])) for name, values in times.items()}


def measure(task: str, objects: int, anchors: int, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    spec = SPECS[task]
    outputs = heads(spec, objects, anchors)
    nhwc = {name: np.ascontiguousarray(value.transpose(0, 2, 3, 1)) for name, value in outputs.items()}
    integers, encodings = quantize(outputs)
    found, (_, scores, _) = ours(outputs, spec), naive(outputs, spec)
    if len(found) != len(scores) or np.abs(np.sort(found.scores) - np.sort(scores)).max(initial=0) > 1e-5:
        raise SystemExit(f"{task}: {len(found)} objects, the baseline finds {len(scores)}")
    jobs: dict[str, Callable[[], Any]] = {
        "float NCHW": lambda: ours(outputs, spec),
        "float NHWC": lambda: decode_nhwc(nhwc, spec),
        "int8 NCHW": lambda: ours(integers, spec, encodings),
        "naive": lambda: naive(outputs, spec),
    }
    if spec.num_masks:
        jobs["with RLE"] = lambda: meaning_of(spec.task, spec).decode(outputs, Geometry(SIZE, SIZE)).masks.rle()  # type: ignore[union-attr]
    return {"task": task, "objects": len(found), "anchors": anchors, **medians(jobs, repeats)}


def decode_nhwc(outputs: Outputs, spec: HeadSpec) -> Detections:
    options = {"confidence": CONFIDENCE, "iou": IOU, "layout": "NHWC"}
    found = meaning_of(spec.task, spec).decode(outputs, Geometry(SIZE, SIZE), **options)
    if found.masks is not None:
        for index in range(len(found)):
            found.masks.crop(index)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--anchors", type=int, default=1, help="anchors above the threshold an object")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    rows = [measure(task, n, options.anchors, options.repeats) for task in SPECS for n in (30, 300)]
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    columns = ("float NCHW", "float NHWC", "int8 NCHW", "with RLE", "naive")
    print(f"{'median ms, one thread':24}" + "".join(f"{name:>12}" for name in columns))
    for row in rows:
        cells = "".join(f"{row[name]:12.2f}" if name in row else f"{'':12}" for name in columns)
        print(f"{row['task']:10}{row['objects']:5} objects " + cells)


if __name__ == "__main__":
    main()
