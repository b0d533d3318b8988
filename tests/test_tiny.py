"""The whole product in sixty lines: a float model and pictures become integers, a measure, a picture and a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import narrowcast as nc
from narrowcast.engine.verify import verify
from narrowcast.vision.preprocess import preprocess, read_image


def test_from_a_float_model_to_the_chips_file(tmp_path: Path) -> None:
    people = nc.sample("pose")

    # A stock export: the decode head is found and cut off, what is left is checked against the original.
    model = nc.load(people.model)
    assert model.task == "pose" and len(model.output_names) == 9
    assert model.difference["box px"] < 0.01

    # Everything runs on the chip; then pictures choose the scales, and the bundle holds the chip's own file.
    assert nc.check(model, "esp32p4").runs
    images = nc.images(people.calibration, model.preprocess, limit=6)
    bundle = nc.quantize(model, images, target="esp32p4", out=tmp_path / "pose", effort="fast", method="mse")
    assert {"plan.json", "integer.onnx", "model.espdl"} <= {file.name for file in bundle.path.iterdir()}

    # Scales are powers of two, as this chip shifts.
    scales = [encoding.scale for encoding in bundle.plan.tensors.values() if encoding.axis is None]
    assert all(np.frexp(scale)[0] == 0.5 for scale in scales)

    # The integers are exact: a slow reference finds every one of them again.
    picture = sorted(people.validation.iterdir())[0]
    tensor, _ = preprocess(read_image(picture), model.preprocess)
    graph = bundle.integer_graph
    rows = verify(bundle.prepared.ir, bundle.plan, bundle.target, graph, [tensor])
    assert sum(row.total for row in rows) > 100_000 and not any(row.differing for row in rows)

    # What the chip sees is what the float model sees.
    seen, real = bundle.predict(picture, confidence=0.4), bundle.floating.predict(picture, confidence=0.4)
    assert len(seen) == len(real) > 0
    assert np.abs(seen.boxes - real.boxes).max() < 8

    # And accuracy is measured on these integers.
    report = bundle.evaluate(nc.coco(people.validation, people.annotations, limit=3))
    assert report.metric("integer", "keypoints") > 0.5 * report.metric("float", "keypoints") > 0
