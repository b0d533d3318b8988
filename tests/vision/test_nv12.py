"""NV12 against published anchor values and OpenCV's studio-range conversion."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from narrowcast.vision import Preprocess, preprocess
from narrowcast.vision.preprocess import bgr_to_nv12, nv12_to_bgr, through_camera


@pytest.mark.parametrize(("levels", "expected"), [("full", [0, 127, 255]), ("studio", [16, 125, 235])])
def test_luma_of_grey(levels: str, expected: list[int]) -> None:
    values = [bgr_to_nv12(np.full((2, 2, 3), grey, np.uint8), levels)[0, 0] for grey in (0, 127, 255)]
    assert values == expected  # the measured table of the vendor page: 0 / 127 / 255 and 16 / 125 / 235


def test_studio_range_equals_opencv() -> None:
    small = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    image = cv2.resize(small, (32, 32), interpolation=cv2.INTER_NEAREST)  # flat 2x2 blocks: subsampling is exact
    ours = bgr_to_nv12(image, "studio")
    i420 = cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420)
    assert np.abs(ours[:32].astype(int) - i420[:32]).max() <= 1  # OpenCV rounds in fixed point
    planes = i420[32:].reshape(2, 16, 16)
    assert np.abs(ours[32:].reshape(16, 16, 2).astype(int) - planes.transpose(1, 2, 0)).max() <= 1


@pytest.mark.parametrize("levels", ["full", "studio"])
def test_round_trip_of_flat_blocks(levels: str) -> None:
    small = np.random.default_rng(1).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    image = cv2.resize(small, (16, 16), interpolation=cv2.INTER_NEAREST)
    assert np.abs(through_camera(image, levels).astype(int) - image).max() <= 4  # 8-bit luma and chroma


def test_mixing_up_the_ranges_costs_contrast() -> None:
    black_white = np.zeros((4, 4, 3), np.uint8)
    black_white[:, 2:] = 255
    wrong = nv12_to_bgr(bgr_to_nv12(black_white, "studio"), 4, 4, "full")
    assert wrong[0, 0].tolist() == [16] * 3 and wrong[0, 3].tolist() == [235] * 3


def test_camera_in_the_preprocessing() -> None:
    image = np.random.default_rng(2).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    plain, _ = preprocess(image, Preprocess(32, 32))
    board, _ = preprocess(image, Preprocess(32, 32, camera="nv12-full"))
    assert plain.shape == board.shape and 0 < np.abs(plain - board).mean() < 0.3


@pytest.mark.parametrize("shape", [(3, 4, 3), (4, 3, 3)])
def test_odd_sizes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="even"):
        bgr_to_nv12(np.zeros(shape, np.uint8), "full")


def test_wrong_buffers_and_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match="24 bytes"):
        nv12_to_bgr(np.zeros(7, np.uint8), 4, 4, "full")
    with pytest.raises(ValueError, match="range"):
        bgr_to_nv12(np.zeros((4, 4, 3), np.uint8), "video")
