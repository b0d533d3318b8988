"""Headerless calibration files: what goes out comes in, and wrong ones are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from narrowcast.base.errors import UserError
from narrowcast.calibrate import images
from narrowcast.chips.rdk.calibration import read_raw, vendor_images, write_vendor_files
from narrowcast.vision.preprocess import Preprocess

SPEC = Preprocess(height=16, width=24, mean=(10.0, 20.0, 30.0), scale=(0.1, 0.2, 0.3))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 256, (20, 30, 3), np.uint8))
    return folder


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"layout": "NHWC", "color": "bgr"},
        {"color": "gray", "mean": (3.0,), "scale": (0.5,)},
        {"camera": "nv12-full"},
        {"camera": "nv12-studio", "layout": "NHWC"},
    ],
)
def test_the_model_sees_the_same(photos: Path, tmp_path: Path, dtype: str, change: dict[str, object]) -> None:
    found = images(photos, replace(SPEC, **change))
    files = write_vendor_files(found, tmp_path / "cal", dtype)
    raw = vendor_images(tmp_path / "cal", found.preprocess, dtype)
    assert len(files) == len(raw) == 3
    for ours, theirs in zip(found, raw, strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-6)
    kept, held = raw.hold_back()
    assert len(kept) == 2 and next(iter(held)).shape == ours.shape and len(raw.hashes()) == 3


def test_rgb_is_red_first_and_not_normalised(tmp_path: Path) -> None:
    red = np.zeros((16, 24, 3), np.uint8)
    red[..., 2] = 200
    (file,) = write_vendor_files(images([red], SPEC), tmp_path / "cal_f32")
    assert file.name == "00000.rgbchw" and file.stat().st_size == 3 * 16 * 24 * 4
    assert read_raw(file, (3, 16, 24))[:, 0, 0].tolist() == [200, 0, 0]


def test_inputs_become_pixels_again(tmp_path: Path) -> None:
    pixels = np.arange(3 * 16 * 24, dtype=np.float32).reshape(1, 3, 16, 24) % 256
    mean, scale = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (SPEC.mean, SPEC.scale))
    (file,) = write_vendor_files(images((pixels - mean) * scale, SPEC), tmp_path, "uint8")
    assert np.array_equal(read_raw(file, pixels.shape, "uint8"), pixels)


def test_files_are_copied_between_types(photos: Path, tmp_path: Path) -> None:
    write_vendor_files(images(photos, SPEC), tmp_path / "a")
    again = write_vendor_files(vendor_images(tmp_path / "a", SPEC), tmp_path / "b", "uint8")
    first = read_raw(again[0], (3, 16, 24), "uint8")
    assert np.array_equal(first, read_raw(sorted((tmp_path / "a").iterdir())[0], (3, 16, 24)))


def test_limit_and_hidden_files(photos: Path, tmp_path: Path) -> None:
    write_vendor_files(images(photos, SPEC), tmp_path / "cal")
    (tmp_path / "cal" / ".listing").write_text("x")
    assert len(vendor_images(tmp_path / "cal", SPEC, limit=2)) == 2
    with pytest.raises(UserError, match="leaves none"):
        vendor_images(tmp_path / "cal", SPEC, limit=0)


def test_wrong_files(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"0\.png has .* it is a picture"):
        vendor_images(photos, SPEC)
    write_vendor_files(images(photos, SPEC), tmp_path / "cal", "uint8")
    with pytest.raises(UserError, match=r"00000_0\.rgbchw has 1152 bytes.*fits cal_data_type uint8"):
        vendor_images(tmp_path / "cal", SPEC)
    with pytest.raises(UserError, match="an input of 1x3x32x32 uint8 has 3072: write the files again"):
        vendor_images(tmp_path / "cal", replace(SPEC, height=32, width=32), "uint8")
    with pytest.raises(UserError, match="does not exist"):
        vendor_images(tmp_path / "nowhere", SPEC)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no calibration files"):
        vendor_images(tmp_path / "empty", SPEC)
    with pytest.raises(UserError, match="float16"):
        vendor_images(tmp_path / "cal", SPEC, "float16")
    with pytest.raises(UserError, match="int16 are not written"):
        write_vendor_files(images(photos, SPEC), tmp_path / "cal", "int16")


@pytest.mark.parametrize(
    ("values", "words"),
    [((0.0, 0.5), "not pixels"), ((-2.0, 300.0), "not pixels"), ((0.0, np.nan), "NaN")],
)
def test_values_that_are_no_pixels(tmp_path: Path, values: tuple[float, float], words: str) -> None:
    np.linspace(*values, 3 * 16 * 24, dtype=np.float32).tofile(tmp_path / "a.bin")
    with pytest.raises(UserError, match=words):
        list(vendor_images(tmp_path, SPEC))


def test_without_normalisation_anything_goes(tmp_path: Path) -> None:
    plain = replace(SPEC, mean=(0.0,), scale=(1.0,))
    values = np.linspace(-5, 0.5, 3 * 16 * 24, dtype=np.float32).reshape(1, 3, 16, 24)
    values.tofile(tmp_path / "a.bin")
    assert np.array_equal(next(iter(vendor_images(tmp_path, plain))), values)
