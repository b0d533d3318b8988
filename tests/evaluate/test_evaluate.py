"""Scores of the embedded samples: the same with any number of workers, resumable, and what other tools compute."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from evaluate.test_average_precision import pycocotools_stats
from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle, Predictor
from narrowcast.evaluate import PROTOCOLS, CocoData, Report, coco, imagenet
from narrowcast.evaluate.coco_data import choose
from narrowcast.graph import Model
from narrowcast.zoo import sample

POSE, CLASSIFY = sample("pose"), sample("classify")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def people(limit: int | None = 12) -> CocoData:
    assert POSE.annotations is not None
    return coco(POSE.validation, POSE.annotations, limit=limit)


def test_a_bundle_is_scored_beside_its_float_model(people_bundle: Bundle, tmp_path: Path) -> None:
    report: Report = people_bundle.evaluate(people(), workers=2, save_predictions=tmp_path / "p.json")
    reference, quantized = report.rows
    assert (reference.name, quantized.name, report.images) == ("float", "integer", 12)
    assert [metrics.family for metrics in reference.metrics] == ["keypoints", "box"]
    assert reference.metrics[0].retention is None and quantized.metrics[0].retention is not None
    assert 0.6 < quantized.metrics[0].retention < 1.2
    low, high = quantized.metrics[0].retention_interval or (0, 0)
    assert low < quantized.metrics[0].retention < high
    for name in ("float", "integer"):
        results = json.loads((tmp_path / f"p-{name}.json").read_text())
        stats = pycocotools_stats(people().document, results, "keypoints")
        assert report.metric(name, "keypoints", "AP") == pytest.approx(stats[0], abs=1e-9)
    assert json.loads(json.dumps(report.to_dict()))["rows"][1]["name"] == "integer"
    with pytest.raises(KeyError):
        report.metric("integer", "mask")


def test_workers_do_not_change_the_result(pose_model: Model) -> None:
    graphs = {"float": lambda: Predictor.of_model(pose_model, 1)}
    one, three = (people(8).evaluate(graphs, workers=workers) for workers in (1, 3))
    assert one.rows[0].metrics == three.rows[0].metrics and one.rows[0].found == three.rows[0].found


def test_an_interrupted_run_goes_on(pose_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor.of_model(pose_model, 1)
    whole = people(8).evaluate({"float": lambda: predictor}, workers=1)
    calls = 0
    run = Predictor.run

    def counted(self: Predictor, tensor: np.ndarray) -> dict[str, np.ndarray]:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return run(self, tensor)

    monkeypatch.setattr(Predictor, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        people(8).evaluate({"float": lambda: predictor}, workers=1)
    assert calls >= 5
    before = calls
    resumed = people(8).evaluate({"float": lambda: predictor}, workers=1)
    assert 0 < calls - before < 8
    assert resumed.rows[0].metrics == whole.rows[0].metrics
    before = calls
    people(8).evaluate({"float": lambda: predictor}, workers=1)
    assert calls - before == 8, "a finished run leaves nothing behind"


def test_classifier(classify_model: Model) -> None:
    assert CLASSIFY.labels is not None
    data = imagenet(CLASSIFY.validation, CLASSIFY.labels, limit=30)
    narrow = replace(
        Predictor.of_model(classify_model, 1), preprocess=replace(classify_model.preprocess, camera="nv12-studio")
    )
    report = data.evaluate({"float": lambda: Predictor.of_model(classify_model, 1), "camera": lambda: narrow})
    best = [
        [p.predict(file).class_ids[0] for file in data.files] for p in (Predictor.of_model(classify_model, 1), narrow)
    ]
    same = np.mean([a == b for a, b in zip(*best, strict=True)])
    assert report.metric("float", "classes", "agreement") is None
    assert report.metric("camera", "classes", "agreement") == pytest.approx(same)
    assert (report.metric("float", "classes") or 0) > 0.8
    assert (report.metric("float", "classes", "top-5") or 0) >= (report.metric("float", "classes", "top-1") or 0)
    beyond = replace(data, labels=(*data.labels[:-1], 4000))
    with pytest.raises(UserError, match="4000"):
        beyond.evaluate({"float": lambda: Predictor.of_model(classify_model, 1)})


def test_models_and_labels_of_another_kind(classify_model: Model, pose_model: Model) -> None:
    assert CLASSIFY.labels is not None
    with pytest.raises(UserError, match="classify"):
        people(2).evaluate({"float": lambda: Predictor.of_model(classify_model, 1)})
    with pytest.raises(UserError, match="pose"):
        imagenet(CLASSIFY.validation, CLASSIFY.labels).evaluate({"float": lambda: Predictor.of_model(pose_model, 1)})
    data = people(2)
    other = {**data.document, "categories": [{"id": 1, "name": "zebra"}, {"id": 2, "name": "yak"}]}
    with pytest.raises(UserError, match="zebra, yak"):
        replace(data, document=other).evaluate({"float": lambda: Predictor.of_model(pose_model, 1)})
    short = [{**entry, "keypoints": entry["keypoints"][:15]} for entry in data.document["annotations"]]
    with pytest.raises(UserError, match="5 keypoints"):
        replace(data, document={**data.document, "annotations": short}).evaluate(
            {"float": lambda: Predictor.of_model(pose_model, 1)}
        )


def test_nothing_found_is_said(pose_model: Model) -> None:
    predictor = Predictor.of_model(pose_model, 1)
    blind = replace(predictor, preprocess=replace(predictor.preprocess, scale=(0.0,)))
    report = people(3).evaluate({"float": lambda: blind}, protocol=choose("rdk", confidence=0.9))
    assert report.metric("float", "keypoints") == 0 and "finds nothing" in report.notes[-1]


def test_very_small_and_very_large_images(pose_model: Model, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "dot.png"), np.zeros((1, 1, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "wall.png"), np.zeros((8000, 12000), np.uint8))
    images = [
        {"id": 1, "file_name": "dot.png", "width": 1, "height": 1},
        {"id": 2, "file_name": "wall.png", "width": 12000, "height": 8000},
    ]
    document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    (tmp_path / "labels.json").write_text(json.dumps(document))
    data = coco(tmp_path, tmp_path / "labels.json")
    report = data.evaluate({"float": lambda: Predictor.of_model(pose_model, 1)})
    assert report.metric("float", "box") is None  # no objects, so no precision


def test_an_unreadable_image_is_named(pose_model: Model, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 no")
    images = [{"id": 1, "file_name": "a.jpg", "width": 1, "height": 1}]
    document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    (tmp_path / "labels.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"a\.jpg"):
        coco(tmp_path, tmp_path / "labels.json").evaluate({"float": lambda: Predictor.of_model(pose_model, 1)})


def test_unreadable_images_are_left_out_and_counted(
    pose_bundle: Bundle, classify_model: Model, tmp_path: Path
) -> None:
    """The metrics are those of the other images, to the last digit, of two graphs."""
    data, bad = people(6), (0, 3)
    for index, file in enumerate(data.files):
        (tmp_path / file.name).write_bytes(b"\xff\xd8 no" if index in bad else file.read_bytes())
    document = json.dumps(data.document)
    (tmp_path / "labels.json").write_text(document)
    kept = [entry for index, entry in enumerate(data.document["images"]) if index not in bad]
    ids = {entry["id"] for entry in kept}
    objects = [entry for entry in data.document["annotations"] if entry["image_id"] in ids]
    (tmp_path / "kept.json").write_text(json.dumps({**data.document, "images": kept, "annotations": objects}))
    wanted = pose_bundle.evaluate(coco(tmp_path, tmp_path / "kept.json"))
    broken = coco(tmp_path, tmp_path / "labels.json")
    found = pose_bundle.evaluate(broken, save_predictions=tmp_path / "p.json")
    assert [row.metrics for row in found.rows] == [row.metrics for row in wanted.rows]
    assert (found.images, found.unreadable, wanted.unreadable) == (4, 2, 0)
    assert found.to_dict()["unreadable"] == 2
    names = [data.files[index].name for index in bad]
    assert found.notes[-1].startswith("2 of 6 files left out: ") and all(name in found.notes[-1] for name in names)
    assert {entry["image_id"] for entry in json.loads((tmp_path / "p-float.json").read_text())} <= ids
    with pytest.raises(UserError, match=names[0]):
        pose_bundle.evaluate(broken, strict=True)
    assert CLASSIFY.labels is not None
    labelled = imagenet(CLASSIFY.validation, CLASSIFY.labels, limit=8)
    files = (tmp_path / names[0], *labelled.files[1:])
    graphs = {name: lambda: Predictor.of_model(classify_model, 1) for name in ("float", "again")}
    report = replace(labelled, files=files).evaluate(graphs)
    rest = replace(labelled, files=labelled.files[1:], labels=labelled.labels[1:]).evaluate(graphs)
    assert (report.images, report.unreadable) == (7, 1) and "1 of 8 files left out" in report.notes[0]
    assert [row.metrics for row in report.rows] == [row.metrics for row in rest.rows]


def test_protocols() -> None:
    assert choose("ultralytics").confidence == 0.001 and choose("rdk").confidence == 0.25
    assert choose("rdk", iou=0.5).iou == 0.5 and PROTOCOLS["rdk"].iou == 0.7
    for arguments, expected in (
        ({"name": "voc"}, "no protocol"),
        ({"name": "rdk", "confidence": 1.5}, "confidence"),
        ({"name": "rdk", "iou": 0.0}, "overlap"),
        ({"name": "rdk", "max_detections": 0}, "detections"),
    ):
        with pytest.raises(UserError, match=expected):
            choose(**arguments)  # type: ignore[arg-type]


def test_finished_graphs_of_an_interrupted_run_are_kept(pose_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the second graph, the first is not run again."""
    first = Predictor.of_model(pose_model, 1)
    second = replace(first, digest="another graph")
    graphs = {"float": lambda: first, "other": lambda: second}
    calls = {"float": 0, "other": 0}
    run = Predictor.run

    def counted(self: Predictor, tensor: np.ndarray) -> dict[str, np.ndarray]:
        name = "other" if self.digest == second.digest else "float"
        calls[name] += 1
        if calls["other"] == 3:
            raise KeyboardInterrupt
        return run(self, tensor)

    monkeypatch.setattr(Predictor, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        people(6).evaluate(graphs, workers=1)
    assert calls == {"float": 6, "other": calls["other"]}
    report = people(6).evaluate(graphs, workers=1)
    assert calls["float"] == 6 and report.rows[0].metrics[0].values == report.rows[1].metrics[0].values
    people(6).evaluate(graphs, workers=1)
    assert calls["float"] == 12, "a finished run leaves nothing behind"


def test_a_full_cache_disk_does_not_stop_it(
    pose_model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    graphs = {"float": lambda: Predictor.of_model(pose_model, 1)}
    whole = people(4).evaluate(graphs)
    monkeypatch.setattr("narrowcast.base.progress.Journal._append", full)
    assert people(4).evaluate(graphs).rows[0].metrics == whole.rows[0].metrics
    assert capsys.readouterr().err.count("No space left") == 1


def test_result_files_are_replaced_only_if_asked(classify_model: Model, tmp_path: Path) -> None:
    assert CLASSIFY.labels is not None
    data = imagenet(CLASSIFY.validation, CLASSIFY.labels, limit=2)
    graphs = {"a": lambda: Predictor.of_model(classify_model, 1), "b": lambda: Predictor.of_model(classify_model, 1)}
    (tmp_path / "p-b.json").write_text("mine")
    with pytest.raises(UserError, match=r"p-b\.json exists"):
        data.evaluate(graphs, save_predictions=tmp_path / "p.json")
    with pytest.raises(UserError, match=r"p-b\.json exists"):
        people(2).evaluate(graphs, save_predictions=tmp_path / "p.json")
    assert (tmp_path / "p-b.json").read_text() == "mine" and not (tmp_path / "p-a.json").exists()
    data.evaluate(graphs, save_predictions=tmp_path / "p.json", force=True)
    assert len(json.loads((tmp_path / "p-b.json").read_text())) == 2
