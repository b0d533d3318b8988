"""Bundles: complete, repeatable, whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from builders import save, silu_net
from narrowcast.base.errors import UserError
from narrowcast.base.writing import new_folder
from narrowcast.bundle import Bundle, modify, open_bundle, quantize
from narrowcast.bundle import make as making
from narrowcast.bundle.choosing import AUTO_METHODS
from narrowcast.bundle.manifest import check_out
from narrowcast.calibrate import ImageSet, images
from narrowcast.chips import load_target
from narrowcast.engine.noise import compare_tensors
from narrowcast.engine.verify import VerifyRow, _count, verify
from narrowcast.graph import Model, load


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(save(silu_net(), tmp_path_factory.mktemp("net") / "m.onnx"))


@pytest.fixture(scope="module")
def batch(net: Model) -> ImageSet:
    return images(np.random.default_rng(0).normal(0, 1, (12, 3, 16, 16)).astype(np.float32), net.preprocess)


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_two_runs_give_the_same_bytes(net: Model, batch: ImageSet, tmp_path: Path) -> None:
    first, second = (quantize(net, batch, "esp32p4", out=tmp_path / name) for name in "ab")
    assert files_of(first.path) == files_of(second.path)


def test_content(pose_bundle: Bundle) -> None:
    manifest = open_bundle(pose_bundle.path).manifest
    assert manifest == pose_bundle.manifest
    assert manifest.task == "pose" and manifest.target == "esp32p4" and manifest.classes == ("person",)
    assert [out.name for out in manifest.outputs][:3] == ["box_s8", "cls_s8", "kpt_s8"]
    assert all(out.chip_dtype == "int8" and out.scale for out in manifest.outputs)
    assert len(manifest.calibration["images"]) + len(manifest.calibration["held_back"]) == 12
    files = {"float.onnx", "qdq.onnx", "integer.onnx", "plan.json", "nodes.json", "target.json", "model.espdl"}
    assert set(manifest.files) - {"prepared.onnx"} == files
    for name in ("float.onnx", "qdq.onnx", "integer.onnx"):
        onnx.checker.check_model(str(pose_bundle.path / name), full_check=True)


def test_a_chip_of_ones_own_is_needed_once(net: Model, batch: ImageSet, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("schema_version: 1\nextends: esp32p4\nname: mine\nbias: {bits: 24}\n")
    quantize(net, batch, str(file), out=tmp_path / "b", method="minmax", effort="fast")
    file.unlink()
    bundle = open_bundle(tmp_path / "b")
    assert bundle.manifest.target == bundle.target.name == "mine"
    assert bundle.target.bias.bits == 24 and bundle.target.table16 == load_target("esp32p4").table16
    rows = verify(bundle.prepared.ir, bundle.plan, bundle.target, bundle.integer_graph, [next(iter(batch))])
    assert sum(row.differing for row in rows) == 0
    modify(bundle, out=tmp_path / "m", remove=["Quantize"])
    assert open_bundle(tmp_path / "m").target == bundle.target


def test_comparison_numbers_against_plain_numpy(net: Model, batch: ImageSet, tmp_path: Path) -> None:
    bundle = quantize(net, batch, "onnx", out=tmp_path / "b", method="minmax")
    _, held = batch.hold_back()
    x = np.concatenate([bundle.floating.run(t)["y"] for t in held]).astype(np.float64)
    y = np.concatenate([bundle.run(t)["y"] for t in held]).astype(np.float64)
    (entry,) = bundle.manifest.comparison
    assert entry["sqnr_db"] == pytest.approx(10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()), abs=1e-3)
    assert entry["cosine"] == pytest.approx((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()), abs=1e-6)
    assert entry["max_abs"] == pytest.approx(np.abs(x - y).max(), rel=1e-5)
    same = compare_tensors(net.to_proto(), net.to_proto(), {"y": "y"}, held)["y"].row("y")
    assert same["sqnr_db"] is None and same["cosine"] == pytest.approx(1)


def test_auto_keeps_the_best_method(net: Model, batch: ImageSet, tmp_path: Path) -> None:
    record = quantize(net, batch, "esp32p4", out=tmp_path / "b", effort="fast").manifest.calibration
    scores = record["mean_output_sqnr_db"]
    assert set(scores) - {"refined"} == set(AUTO_METHODS)
    best = max(AUTO_METHODS, key=lambda name: scores[name])
    assert record["method"].split(",")[0] == best and max(scores, key=lambda name: scores[name]) in (best, "refined")
    assert "steps" not in record


def test_existing_folder_is_refused_and_replaced_only_when_asked(net: Model, batch: ImageSet, tmp_path: Path) -> None:
    out = tmp_path / "b"
    quantize(net, batch, out=out, method="minmax")
    before = files_of(out)
    with pytest.raises(UserError, match="--force"):
        quantize(net, batch, "esp32p4", out=out, method="minmax")
    assert files_of(out) == before
    assert quantize(net, batch, "esp32p4", out=out, method="minmax", force=True).manifest.target == "esp32p4"
    assert [file.name for file in tmp_path.iterdir()] == ["b"]


def test_a_folder_of_the_users_is_never_replaced(net: Model, batch: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"precious")
    with pytest.raises(UserError, match="holds no manifest"):
        quantize(net, batch, out=tmp_path / "photos", force=True)
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"precious"


@pytest.mark.parametrize("when", ["calibrate", "write"])
def test_ctrl_c_leaves_nothing(
    net: Model, batch: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    if when == "calibrate":
        monkeypatch.setattr(making, "collect", interrupt)
    else:
        monkeypatch.setattr(Path, "write_text", interrupt)
    with pytest.raises(KeyboardInterrupt):
        quantize(net, batch, out=tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_full_disk(net: Model, batch: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantize(net, batch, out=tmp_path / "b", method="minmax")
    before = files_of(tmp_path / "b")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        quantize(net, batch, out=tmp_path / "b", method="minmax", force=True)
    assert files_of(tmp_path / "b") == before and [f.name for f in tmp_path.iterdir()] == ["b"]


def test_read_only_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: Model, batch: ImageSet) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # tests may run as root, who may write anywhere
    with pytest.raises(UserError, match="not writable"):
        quantize(net, batch, out=tmp_path / "b")


def test_refusal_while_making_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    place = check_out(tmp_path / "b", force=False)
    monkeypatch.setattr("os.mkdir", refuse)
    with pytest.raises(UserError, match="Permission denied"), new_folder(place):
        pass


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / "manifest.json").unlink(), "no bundle"),
        (lambda d: (d / "manifest.json").write_text("{"), "no JSON"),
        (lambda d: (d / "manifest.json").write_text('{"version": 99}'), "version"),
        (lambda d: (d / "manifest.json").write_text('{"version": 1}'), "damaged"),
        (lambda d: (d / "integer.onnx").unlink(), "does not exist"),
        (lambda d: (d / "integer.onnx").write_bytes(b"x"), "changed"),
    ],
)
def test_damaged_bundles(net: Model, batch: ImageSet, tmp_path: Path, damage, words: str) -> None:  # type: ignore[no-untyped-def]
    quantize(net, batch, out=tmp_path / "b", method="minmax")
    damage(tmp_path / "b")
    with pytest.raises(UserError, match=words):
        _ = open_bundle(tmp_path / "b").quantized


def test_unknown_method_and_percentile(net: Model, batch: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown calibration method"):
        quantize(net, batch, out=tmp_path / "b", method="magic")
    with pytest.raises(UserError, match="percentile"):
        quantize(net, batch, out=tmp_path / "b", percentile=3)


def test_nan_in_activations(tmp_path: Path, net: Model) -> None:
    huge = images(np.full((3, 3, 16, 16), 3e38, np.float32), net.preprocess)
    with pytest.raises(UserError):
        quantize(net, huge, out=tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_manifest_is_json_without_time_stamps(pose_bundle: Bundle) -> None:
    data = json.loads((pose_bundle.path / "manifest.json").read_text())
    assert not {"time", "date", "created"} & set(data)


def test_graphs_that_somebody_changed_are_one_line(pose_bundle: Bundle, tmp_path: Path) -> None:
    """Found by the fuzzer: a name that is no text, and an integer graph of another model."""
    copy = Path(shutil.copytree(pose_bundle.path, tmp_path / "copy"))
    graph = next(path for path in (copy / "qdq.onnx", copy / "integer.onnx") if path.exists())
    proto = onnx.load(str(graph))
    named = proto.graph.node[0].input[0].encode()
    graph.write_bytes(graph.read_bytes().replace(named, b"\xeb" + named[1:], 1))
    told = json.loads((copy / "manifest.json").read_text())
    told["files"][graph.name] = hashlib.sha256(graph.read_bytes()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="is no UTF-8 text"):
        open_bundle(copy).graph(graph.name)
    row = VerifyRow("t", "node", "Conv")
    with pytest.raises(UserError, match=r"t is \(2,\) in the integer graph and \(3,\) in the prepared one"):
        _count(row, np.zeros(2), np.zeros(3))
