"""The board's script against a stand-in for the board's package: the same results as the predictor's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from board_play import compile_stub, run_board
from rdk_bundles import sample_images

from narrowcast.bundle import Bundle
from narrowcast.deploy import deploy
from narrowcast.vision import read_image
from narrowcast.vision.nv12 import bgr_to_nv12
from narrowcast.vision.preprocess import preprocess
from narrowcast.zoo import sample

PHOTOS = sorted(path for path in sample("pose").validation.iterdir() if path.suffix in (".jpg", ".png", ".webp"))


@pytest.mark.parametrize(("floats", "rename"), [(False, False), (False, True), (True, False)])
def test_detections_equal_the_predictors(rdk_pose: Bundle, package: Path, floats: bool, rename: bool) -> None:
    photo = PHOTOS[0]
    compile_stub(rdk_pose, package, photo, floats=floats, rename=rename)
    done = run_board(package, str(photo), "--out", "result.png")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = rdk_pose.predict(photo).to_dict(rdk_pose.manifest.classes)
    assert expected
    assert found["results"] == expected
    assert set(found["ms"]) == {"preprocess", "inference", "postprocess"}
    assert read_image(package / "result.png").shape == read_image(photo).shape


def test_the_board_is_fed_nv12_of_the_stated_range(rdk_pose: Bundle, package: Path) -> None:
    photo = PHOTOS[1]
    compile_stub(rdk_pose, package, photo)
    assert run_board(package, str(photo)).returncode == 0
    fed = np.load(package / "board/model.input.npy")
    spec = rdk_pose.manifest.preprocess
    plain = spec.from_dict({**spec.to_dict(), "camera": "rgb", "mean": [0], "scale": [1], "color": "bgr"})
    pixels = preprocess(read_image(photo), plain)[0][0].transpose(1, 2, 0).astype(np.uint8)
    np.testing.assert_array_equal(fed, bgr_to_nv12(pixels, "studio"))
    assert fed.size == spec.height * spec.width * 3 // 2


def test_check_compares_with_the_expected_result(rdk_pose: Bundle, package: Path) -> None:
    compile_stub(rdk_pose, package, package / "board/sample.png")
    done = run_board(package, "--check")
    assert done.returncode == 0, done.stderr
    expected = json.loads((package / "board/expected.json").read_text())
    first, *lines = done.stdout.splitlines()
    assert first == f"{len(expected)} results, {len(expected)} expected"
    assert len(lines) == len(expected)
    assert all("moved by up to 0.0 pixels" in line for line in lines)


def test_classes_equal_the_predictors(rdk_classify: Bundle, tmp_path: Path) -> None:
    bundle = rdk_classify
    package = tmp_path / "package"
    deploy(bundle, "rdk-x5", package, images=sample_images("classify", bundle.manifest.preprocess, 2))
    photo = next(path for path in sorted(sample("classify").validation.iterdir()) if path.suffix != ".txt")
    compile_stub(bundle, package, photo)
    done = run_board(package, str(photo), "--top-k", "3")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["results"]
    assert found == bundle.predict(photo, top_k=3).to_dict(bundle.manifest.classes)
    fed = np.load(package / "board/model.input.npy")
    assert fed.dtype == np.uint8
    assert fed.shape == bundle.manifest.input_shape


def test_without_the_boards_package(rdk_pose: Bundle, package: Path) -> None:
    compile_stub(rdk_pose, package, PHOTOS[0])
    done = run_board(package, str(PHOTOS[0]), stub=False)
    assert done.returncode == 1
    assert done.stderr.startswith("No module named 'hobot_dnn': run this on the board")
    done = run_board(package, str(PHOTOS[0]), "--model", "nothing.bin")
    assert "nothing.bin is missing: run build.sh" in done.stderr
