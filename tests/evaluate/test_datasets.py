"""Label files that are wrong, each with its one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from evaluate.scenes import random_document
from narrowcast.base.errors import UserError
from narrowcast.evaluate import coco, imagenet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(7):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.full((60, 60, 3), 40 * index, np.uint8))
    return tmp_path


def written(folder: Path, document: Any) -> Path:
    file = folder / "labels.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return file


def message(folder: Path, document: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        coco(folder, written(folder, document), **options)
    return str(caught.value)


def test_a_good_file(folder: Path) -> None:
    data = coco(folder, written(folder, random_document(0)))
    assert len(data) == 7 and data.files[3].name == "3.png"
    some = coco(folder, folder / "labels.json", limit=3, seed=5)
    assert len(some) == 3 and some.files == coco(folder, folder / "labels.json", limit=3, seed=5).files
    kept = {entry["id"] for entry in some.document["images"]}
    assert {entry["image_id"] for entry in some.document["annotations"]} <= kept


def test_files_that_are_no_coco(folder: Path) -> None:
    assert "no JSON" in message(folder, "{")
    assert "no COCO annotation file" in message(folder, [1, 2])
    assert "no COCO annotation file" in message(folder, {"images": []})
    assert "lists no images" in message(folder, {"images": [], "annotations": [], "categories": []})
    assert "file_name is missing" in message(folder, {"images": [{"id": 1}], "annotations": [], "categories": []})
    with pytest.raises(UserError, match="does not exist"):
        coco(folder, folder / "none.json")
    with pytest.raises(UserError, match="no folder"):
        coco(folder / "none", folder / "none.json")


def test_ids_that_do_not_match(folder: Path) -> None:
    document = random_document(0)
    document["annotations"][0]["image_id"] = 999
    assert "first 999" in message(folder, document)
    document = random_document(0)
    document["annotations"][0]["category_id"] = 77
    assert "category_id" in message(folder, document)
    document = random_document(0)
    document["images"][1]["id"] = document["images"][0]["id"]
    assert "2 times" in message(folder, document)


def test_images_that_are_missing(folder: Path) -> None:
    (folder / "4.png").unlink()
    document = random_document(0)
    assert "--skip-missing" in message(folder, document) and "4.png" in message(folder, document)
    data = coco(folder, written(folder, document), skip_missing=True)
    assert len(data) == 6 and "1 of the 7" in data.notes[0]
    for file in folder.glob("*.png"):
        file.unlink()
    assert "7 of the 7" in message(folder, document, skip_missing=True)


def test_class_labels(folder: Path) -> None:
    labels = folder / "labels.txt"
    labels.write_text("# comment\n0.png 3\n1.png,5\n2.png\t7\n")
    data = imagenet(folder, labels)
    assert data.labels == (3, 5, 7) and len(imagenet(folder, labels, limit=2)) == 2
    for text, expected in (
        ("0.png three\n", "line 1"),
        ("0.png\n", "line 1"),
        ("", "labels no images"),
        ("none.png 1\n", "not in"),
    ):
        labels.write_text(text)
        with pytest.raises(UserError, match=expected):
            imagenet(folder, labels)
    labels.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="no UTF-8 text"):
        imagenet(folder, labels)
    with pytest.raises(UserError, match="does not exist"):
        imagenet(folder, folder / "none.txt")


def test_missing_images_are_found_in_one_pass(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are compared with none of the others, however many there are."""
    compared = 0

    class Entry(dict):  # type: ignore[type-arg]
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return super().__eq__(other)

    count = 100_000
    document = random_document(0)
    document["images"] = [{**document["images"][0], "id": i, "file_name": f"{i}.png"} for i in range(count)]
    document["annotations"] = []
    monkeypatch.setattr(
        "narrowcast.evaluate.coco_data.read_json", lambda file, _: json.loads(file.read_text(), object_hook=Entry)
    )
    data = coco(folder, written(folder, document), skip_missing=True)
    assert len(data) == 7 and f"{count - 7} of the {count}" in data.notes[0] and compared == 0
