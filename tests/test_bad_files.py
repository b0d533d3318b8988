"""Small files that are wrong in the ways that people and disks make them wrong: one line each."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from narrowcast.base.errors import UserError
from narrowcast.base.progress import Journal
from narrowcast.bundle.settings import read_settings
from narrowcast.calibrate import images
from narrowcast.chips import load_target, write_target
from narrowcast.cli.analyze import _evaluation
from narrowcast.evaluate import coco, imagenet
from narrowcast.vision.preprocess import Preprocess

_BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 3000, "nested too deeply"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(2000)), "nested too deeply|more than"),
        ("model: 2024-13-45", "month must be in"),
        ("limit: 0b_", "invalid literal"),
        (_BOMB, "once its aliases are written out"),
        ("a: &a [*a]", "once its aliases are written out"),
        ("a:\t- b", "is not valid YAML"),
        ("a: !!python/object:os.system x", "is not valid YAML"),
        ("x" * 300_000, "more than 200,000 characters"),
        ("model: \"a\\0b\"\nimages: b\nout: c", "null character"),
        ("1: 2", "model is not given"),
        ("mean: [.nan]\nmodel: m\nimages: i\nout: o\nlimit: .inf", "limit"),
    ],
)  # fmt: skip
def test_settings(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_settings(file, {})
    assert len(str(caught.value)) < 900


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("units", [], "units"), ("extends", ["esp32p4"], "which is no name"), ("extends", "../x", "which is no name"),
     ("bias", {"bits": 10**30}, "bias.bits"),
     ("requantize", {"method": "shift", "rounding": "half-up", "shifts": [2**53, 31]}, "requantize.shifts"),
     ("runtime", {"name": "x", "versions": []}, "runtime.versions"),
     ("ops", {"a": 1}, "ops"), ("table16", {"entries": 0, "step": 1, "rounding": "half-up"}, "table16.entries")],
)  # fmt: skip
def test_targets(tmp_path: Path, key: str, value: Any, words: str) -> None:
    tree = json.loads(write_target(load_target("esp32p4")))
    file = tmp_path / "t.yaml"
    file.write_text(json.dumps({**tree, key: value}))
    with pytest.raises(UserError, match=words):
        load_target(str(file))
    file.write_bytes(b"name: \xff")
    with pytest.raises(UserError, match="no UTF-8 text"):
        load_target(str(file))


@pytest.mark.parametrize("line", ["0.png ²", "0.png " + "9" * 5000, "0.png -1", "0.png 1.0", "x" * 400])
def test_labels(tmp_path: Path, line: str) -> None:
    (tmp_path / "l.txt").write_text(line)
    with pytest.raises(UserError, match="line 1 is not understood"):
        imagenet(tmp_path, tmp_path / "l.txt")


@pytest.mark.parametrize("kind", ["<c16", "|S3", "<U2", "|O", "<M8[s]", "i4,f4"])
def test_arrays_of_no_numbers(tmp_path: Path, kind: str) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 4, 4), kind), allow_pickle=True)
    with pytest.raises(UserError, match=r"x.npy is no .npy array"):
        images(tmp_path / "x.npy", Preprocess(4, 4))


def test_damaged_arrays(tmp_path: Path) -> None:
    file = tmp_path / "x.npy"
    np.save(file, np.zeros((1, 3, 4, 4), np.float32))
    good = file.read_bytes()
    shapes = (b"(9**9999999)", b"((((((((((((", b"(9, 3, 4, 4)", b"(1, 3, 4,-4)")
    for data in (b"", good[:20], good[:-4], *(good.replace(b"(1, 3, 4, 4)", shape) for shape in shapes)):
        file.write_bytes(data)
        with pytest.raises(UserError, match=r"x.npy"):
            images(file, Preprocess(4, 4))
        with pytest.raises(UserError, match=r"x.npy"):
            images([file], Preprocess(4, 4)).tensor(0)
    np.save(file, np.full((1, 3, 4, 4), 1e300))
    with pytest.raises(UserError, match="NaN or infinite"):
        images([file], Preprocess(4, 4)).tensor(0)


def _document() -> dict[str, Any]:
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "area": 1.0, "iscrowd": 0}
    return {"images": [{"id": 1, "file_name": "a.png", "width": 4, "height": 4}], "annotations": [entry],
            "categories": [{"id": 1, "name": "x"}]}  # fmt: skip


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("images", "file_name", {"a": 1}), ("images", "id", "1"), ("images", "width", -4), ("images", "id", 2**60),
        ("images", "height", 10**9), ("annotations", "bbox", [0, 0, 1]), ("annotations", "bbox", [0, 0, 1, "1"]),
        ("annotations", "area", None), ("annotations", "iscrowd", 3), ("annotations", "keypoints", [1, 2]),
        ("annotations", "segmentation", [[1, 2, 3]]), ("annotations", "segmentation", [[0, 0, 1, 1, 2, 2, 3]]),
        ("annotations", "segmentation", [[0, 0, 1e30, 1, 2, 2]]), ("annotations", "num_keypoints", "1"),
        ("annotations", "segmentation", {"counts": [3, 3], "size": [4, 4]}),
        ("annotations", "segmentation", {"counts": "\x7f\x7f", "size": [4, 4]}),
        ("annotations", "segmentation", {"counts": [-1, 17], "size": [4, 4]}), ("categories", "name", 3),
    ],
)  # fmt: skip
def test_annotations(tmp_path: Path, group: str, key: str, value: Any) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    file, document = tmp_path / "c.json", _document()
    file.write_text(json.dumps(document))
    assert len(coco(tmp_path, file)) == 1
    document[group][0][key] = value
    file.write_text(json.dumps(document))
    with pytest.raises(UserError, match=rf"c.json: {group}\[0\] is damaged"):
        coco(tmp_path, file)


def test_run_lengths_in_both_forms(tmp_path: Path) -> None:
    from narrowcast.vision.masks import compress

    (tmp_path / "a.png").write_bytes(b"")
    document = _document()
    for counts in ([3, 5, 4, 4], compress([np.array([3, 5, 4, 4])])[0]):
        document["annotations"][0]["segmentation"] = {"counts": counts, "size": [4, 4]}
        (tmp_path / "c.json").write_text(json.dumps(document))
        assert len(coco(tmp_path, tmp_path / "c.json")) == 1


@pytest.mark.parametrize("data", [{}, {"rows": [{}]}, {"rows": [{"name": "x", "metrics": 3}]}, [1], "NaN"])
def test_evaluations(tmp_path: Path, data: Any) -> None:
    (tmp_path / "e.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="evaluate --json"):
        _evaluation(tmp_path / "e.json")


def test_a_damaged_journal_is_used_up_to_the_damage(tmp_path: Path) -> None:
    path, rng = tmp_path / "j", random.Random(0)
    with pytest.raises(KeyboardInterrupt), Journal(path, {"work": 1}) as kept:
        for index in range(5):
            kept.put(index, {"score": index / 8})
        raise KeyboardInterrupt
    whole = path.read_bytes()
    for _ in range(200):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data))
        with Journal(path, {"work": 1}) as again:
            assert all(again.known[index] == {"score": index / 8} for index in again.known)
            assert list(again.known) == list(range(len(again.known)))
