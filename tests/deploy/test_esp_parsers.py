"""What ESP-DL's own post-processors make of a file, knowing names and exponents only, is what we predict."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from narrowcast.bundle import Bundle
from narrowcast.bundle.kits import deploy
from narrowcast.chips.esp.codec import read_espdl
from narrowcast.chips.esp.file import EspdlFile
from narrowcast.chips.esp.kit import parser_names, parser_notes
from narrowcast.chips.esp.model import EspdlRunner, build_espdl
from narrowcast.tasks import HeadSpec, Task, meaning_of
from narrowcast.vision import read_image
from narrowcast.vision.preprocess import preprocess
from narrowcast.zoo import sample

BINS = 16


def overlap(one: list[int], other: list[int]) -> float:
    """Intersection over union of boxes whose last pixels count."""
    width = min(one[2], other[2]) - max(one[0], other[0]) + 1
    height = min(one[3], other[3]) - max(one[1], other[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def stock_poses(
    file: EspdlFile, outputs: dict[str, np.ndarray], size: int, threshold: float
) -> list[tuple[float, list[int], list[tuple[int, int]]]]:
    """Score, box and keypoints; ``outputs`` are channels last, the image fills the input."""
    exponents = {value.name: value.exponent for value in file.outputs}
    found = []
    for stage in range(3):
        score, box, points = (outputs[f"{stem}{stage}"][0] for stem in ("score", "box", "kpt"))
        steps = [2.0 ** exponents[f"{stem}{stage}"] for stem in ("score", "box", "kpt")]
        stride = size // score.shape[0]
        least = round(-np.log(1 / threshold - 1) / steps[0])
        for y, x, c in np.argwhere(score > least):
            bins = (box[y, x] * steps[1]).reshape(4, BINS)
            weights = np.exp(bins - bins.max(1, keepdims=True))
            sides = weights @ np.arange(BINS) / weights.sum(1) * stride
            centre = np.array([x, y]) * stride + stride // 2
            corners = [*(centre - sides[:2]), *(centre + sides[2:])]
            raw = (points[y, x] * steps[2]).reshape(-1, 3)
            places = [
                (int(px * 2 * stride + x * stride), int(py * 2 * stride + y * stride)) if seen >= 0.5 else (0, 0)
                for px, py, seen in raw
            ]
            found.append((float(1 / (1 + np.exp(-score[y, x, c] * steps[0]))), [int(v) for v in corners], places))
    kept: list[tuple[float, list[int], list[tuple[int, int]]]] = []
    for candidate in sorted(found, key=lambda entry: -entry[0]):
        if all(overlap(candidate[1], other[1]) <= 0.7 for other in kept):
            kept.append(candidate)
    return kept[:10]


def check_decode(bundle: Bundle, path: Path) -> int:
    """How many people a stock decode of the file finds; all of them are those of ``predict``."""
    runner, count = EspdlRunner(read_espdl(path), bundle.target, 1), 0
    size = bundle.manifest.preprocess.height
    for file in sorted(sample("pose").validation.glob("*.jpg"))[:4]:
        image = read_image(file)[:size, :size]
        image = np.pad(image, ((0, size - image.shape[0]), (0, size - image.shape[1]), (0, 0)))
        outputs = runner.run(runner.quantize(preprocess(image, bundle.manifest.preprocess)[0]))
        last = {name: array.transpose(0, 2, 3, 1) for name, array in outputs.items()}
        stock = stock_poses(runner.file, last, size, 0.25)
        ours = bundle.predict(image, confidence=0.25, iou=0.7, max_detections=10, class_agnostic=True)
        assert ours.keypoints is not None and len(stock) == len(ours)
        for index, (score, box, points) in enumerate(stock):
            assert abs(score - ours.scores[index]) < 1e-4
            np.testing.assert_allclose(np.clip(box, 0, size), ours.boxes[index], atol=1.01)
            seen = ours.keypoints[index][:, 2] > 1 / (1 + np.exp(-0.5)) + 1e-6
            np.testing.assert_allclose(np.clip(points, 0, size)[seen], ours.keypoints[index][seen, :2], atol=1.01)
        count += len(stock)
    return count


def test_a_stock_decode_is_what_we_predict(people_bundle: Bundle, tmp_path: Path) -> None:
    path = deploy(people_bundle, "espdl", tmp_path / "m.espdl").path
    names = [value.name for value in read_espdl(path).outputs]
    assert names == [f"{stem}{stage}" for stage in range(3) for stem in ("box", "score", "kpt")]
    assert check_decode(people_bundle, path) > 0


def test_a_tensor_inside_makes_way(pose_bundle: Bundle) -> None:
    graph, plan = pose_bundle.prepared.ir, pose_bundle.plan
    inner = str(graph.graph.node(0).outputs[0].name)
    renamed = {out.name: inner for out in pose_bundle.manifest.outputs[:1]}
    file = build_espdl(graph, plan, pose_bundle.target, names=renamed)
    assert file.outputs[0].name == inner
    writers = [node for node in file.nodes if inner in node.outputs]
    assert len(writers) == 1 and writers[0].op_type == "Conv" and f"{inner}__inner" in file.values


def test_names_and_notes() -> None:
    head = meaning_of("segment", HeadSpec("segment", (8, 16, 32), 80, num_masks=32))
    names = parser_names(head)
    assert [names[n] for n in ("box_s8", "cls_s16", "mask_s32", "proto")] == ["box0", "score1", "mc2", "p"]
    assert parser_names(Task()) == {} and parser_notes(head, {"a": "int8", "b": "int8"}) == ()
    assert "b differ" in parser_notes(head, {"a": "int8", "b": "int16"})[0]
    assert "16 bins" in parser_notes(meaning_of("detect", HeadSpec("detect", (8, 16, 32), 80, reg_max=1)), {})[0]
