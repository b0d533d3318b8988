"""Which files of a folder are calibration images, and which of them are told apart."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from narrowcast.analyze.subject import unseen
from narrowcast.base.errors import UserError
from narrowcast.calibrate import ImageSet, images
from narrowcast.vision.preprocess import Preprocess

SPEC = Preprocess(16, 16)


def write(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8))
    return path


def names(found: ImageSet, folder: Path) -> list[str]:
    return [str(source.relative_to(folder)) for source in found.sources if isinstance(source, Path)]


def test_nested_folders_are_read_in_order_and_hidden_files_are_not(tmp_path: Path) -> None:
    for index, name in enumerate(("b/2.png", "a/deep/1.PNG", "c.jpg", "b/.hidden.png", ".cache/3.png", "a/._1.png")):
        write(tmp_path / name, index) if not name.endswith("._1.png") else (tmp_path / name).write_bytes(b"\0\5\26\7")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    (tmp_path / "a" / "again").symlink_to(tmp_path, target_is_directory=True)  # a loop ends
    found = images(tmp_path, SPEC)
    assert names(found, tmp_path) == ["a/deep/1.PNG", "b/2.png", "c.jpg"]
    assert images([tmp_path / "b", str(tmp_path / "c.jpg")], SPEC).sources == found.sources[1:]
    assert images(found, SPEC) is found
    with pytest.raises(UserError, match="no images"):
        images(write(tmp_path / ".only" / ".x.png", 0).parent, SPEC)


def test_an_unreadable_file_is_named_and_left_out(tmp_path: Path) -> None:
    for index in range(4):
        write(tmp_path / f"{index}.png", index)
    (tmp_path / "1.png").write_bytes(b"no picture")
    found = images(tmp_path, SPEC).usable()
    assert names(found, tmp_path) == ["0.png", "2.png", "3.png"]
    assert found.notes == (f"1 of 4 files left out: {tmp_path / '1.png'} is corrupt or not an image",)
    with pytest.raises(UserError, match=r"1\.png is corrupt"):
        images(tmp_path, SPEC, strict=True).usable()
    with pytest.raises(UserError, match=r"1\.png is corrupt"):
        images(tmp_path / "1.png", SPEC).usable()


def test_no_content_is_on_both_sides_of_a_split(tmp_path: Path) -> None:
    for index in range(8):
        write(tmp_path / f"{index}.png", index // 2)  # every picture under two names
    found = images(tmp_path, SPEC).usable()
    assert "4 of 8 images left out" in found.notes[0] and names(found, tmp_path) == ["0.png", "2.png", "4.png", "6.png"]
    kept, held = found.hold_back()
    assert len(held) == 1 and not set(kept.hashes()) & set(held.hashes())
    left, excluded = unseen(images(tmp_path, SPEC), kept.hashes())
    assert excluded == 6 and left.hashes() == held.hashes()


def test_one_image_is_not_held_back_from_itself() -> None:
    copies = np.repeat(np.random.default_rng(0).random((1, 3, 16, 16), np.float32), 3, axis=0)
    kept, held = images(copies, SPEC).usable().hold_back()
    assert len(kept) == 1 and len(held) == 0
