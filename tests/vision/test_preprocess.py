"""Preprocessing against geometry worked out by hand."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.base.errors import UserError
from narrowcast.calibrate import images
from narrowcast.vision import Geometry, Preprocess, preprocess, read_image


def test_letterbox_as_ultralytics_places_it() -> None:
    image = np.full((427, 640, 3), 200, np.uint8)
    tensor, geometry = preprocess(image, Preprocess(height=640, width=640))
    assert geometry == Geometry(640, 427, 1.0, 1.0, 0, 106)  # (640 - 427) / 2 = 106.5: 106 above, 107 below
    rows = tensor[0, 0, :, 320] * 255
    assert np.allclose(rows[:106], 114) and np.allclose(rows[106:533], 200) and np.allclose(rows[533:], 114)


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([(32, 32), (48, 32), (32, 64)]))
@settings(max_examples=60, deadline=None)
def test_letterbox_covers_the_input_and_is_undone(height: int, width: int, size: tuple[int, int]) -> None:
    tensor, geometry = preprocess(np.zeros((height, width, 3), np.uint8), Preprocess(*size))
    assert tensor.shape == (1, 3, *size)
    corners = np.array([[0, 0, width, height]], np.float32)
    pad = [geometry.pad_left, geometry.pad_top] * 2
    scale = [geometry.scale_x, geometry.scale_y] * 2
    np.testing.assert_allclose(geometry.undo_boxes(corners * scale + pad), corners, atol=1e-3)


def test_colour_mean_scale_and_layout() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = 10, 20, 30  # BGR
    spec = Preprocess(4, 4, color="rgb", mean=(1, 2, 3), scale=(1, 10, 100))
    tensor, _ = preprocess(image, spec)
    assert tensor[0, :, 0, 0].tolist() == [29, 180, 700]
    tensor, _ = preprocess(image, Preprocess(4, 4, color="bgr", mean=(0,), scale=(1,), layout="NHWC"))
    assert tensor.shape == (1, 4, 4, 3) and tensor[0, 0, 0].tolist() == [10, 20, 30]
    tensor, _ = preprocess(image, Preprocess(4, 4, color="gray", scale=(1,)))
    assert tensor.shape == (1, 1, 4, 4)
    assert tensor[0, 0, 0, 0] == cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[0, 0]


def test_center_crop_takes_the_middle() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[:, 100:] = 255
    tensor, geometry = preprocess(image, Preprocess(50, 50, resize="center-crop", resize_shorter=50, scale=(1,)))
    assert tensor[0, 0, 25, :24].max() == 0 and tensor[0, 0, 25, 26:].min() == 255
    assert geometry.pad_left == -25


def test_stretch() -> None:
    _, geometry = preprocess(np.zeros((10, 20, 3), np.uint8), Preprocess(40, 40, resize="stretch"))
    assert (geometry.scale_x, geometry.scale_y) == (2.0, 4.0)


@pytest.mark.parametrize("shape", [(1, 1, 3), (800, 1200, 3), (3, 700, 3)])
def test_extreme_sizes(shape: tuple[int, ...]) -> None:
    for resize in ("letterbox", "stretch"):
        assert preprocess(np.zeros(shape, np.uint8), Preprocess(64, 64, resize=resize))[0].shape == (1, 3, 64, 64)


def test_round_trip_of_the_data() -> None:
    spec = Preprocess(32, 64, mean=(1.0, 2.0, 3.0), resize="center-crop", resize_shorter=70)
    assert Preprocess.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    "data",
    [{"height": 4}, {"height": 4, "width": 4, "colour": "rgb"}, {"height": 4, "width": 4, "color": "cmyk"},
     {"height": 0, "width": 4}, {"height": 4, "width": 4, "mean": [1, 2]}],
)  # fmt: skip
def test_bad_data_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Preprocess.from_dict(data)


def test_unreadable_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_image(tmp_path / "gone.jpg")
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not an image"):
        read_image(tmp_path / "a.jpg")


def bomb(side: int) -> bytes:
    """A small PNG that claims to be side x side pixels, with a valid header."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    lines = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def test_an_image_that_no_memory_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(30_000))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match="more than 200000000 pixels"):
        read_image(tmp_path / "bomb.png")
    with pytest.raises(UserError, match="200000000 pixels"):
        images(tmp_path, Preprocess(8, 8)).tensor(0)


def test_opencv_refuses_other_formats_itself(tmp_path: Path) -> None:
    """A BMP that claims 30,000 x 30,000 pixels, in a process of its own: OpenCV reads its limit when it is loaded."""
    header = struct.pack("<2sIHHI", b"BM", 1 << 20, 0, 0, 54) + struct.pack(
        "<IiiHHIIiiII", 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0
    )
    (tmp_path / "bomb.bmp").write_bytes(header + bytes(1000))
    code = (
        "import resource, sys\nfrom narrowcast.vision import read_image\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        "try:\n    read_image(sys.argv[1])\nexcept ValueError as error:\n    print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "bomb.bmp")], capture_output=True, text=True)
    assert "more than 200000000 pixels" in run.stdout, run.stdout + run.stderr
