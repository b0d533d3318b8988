"""The four intermediate models take the board's pixels and compute what they should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle
from narrowcast.chips.rdk.intermediates import board_preprocess, save_intermediates, with_board_input
from narrowcast.graph import Model, Runner
from narrowcast.vision.preprocess import Preprocess, nv12_to_bgr, preprocess


def test_names_and_numbers(pose_model: Model, pose_bundle: Bundle, tmp_path: Path) -> None:
    files = save_intermediates(pose_model, pose_bundle, tmp_path / "i", "pose")
    assert [file.name for file in files] == [
        "pose_original_float_model.onnx", "pose_optimized_float_model.onnx", "pose_calibrated_model.onnx",
        "pose_quantized_model.onnx",
    ]  # fmt: skip
    spec = pose_bundle.manifest.preprocess
    picture = np.random.default_rng(0).integers(0, 256, (spec.height, spec.width, 3), np.uint8)
    tensor, _ = preprocess(picture, spec)
    pixels = (picture[..., ::-1].transpose(2, 0, 1)[None].astype(np.int16) - 128).astype(np.int8)
    expected = [
        Runner(pose_model.original).run(tensor), pose_bundle.floating.run(tensor),
        pose_bundle.engine("qdq").run(tensor), pose_bundle.engine("integer").run(tensor),
    ]  # fmt: skip
    for file, outputs in zip(files, expected, strict=True):
        onnx.checker.check_model(str(file))
        actual = Runner(file, level="basic").run(pixels)  # type: ignore[arg-type]
        assert actual.keys() == outputs.keys()
        for name, values in outputs.items():
            near = np.abs(actual[name].astype(float) - values.astype(float)) <= 0.02 * np.abs(values).max() + 1e-3
            assert near.mean() > 0.98, f"{file.name} {name}"
    with pytest.raises(UserError, match="exists"):
        save_intermediates(pose_model, pose_bundle, tmp_path / "i", "pose")


@pytest.mark.parametrize("camera", ["nv12-full", "nv12-studio"])
@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_the_cameras_colours(camera: str, color: str) -> None:
    """One convolution gives what decoding NV12 and normalising gives, where nothing is clipped."""
    spec = Preprocess(2, 2, camera=camera, color=color, mean=(10.0, 20.0, 30.0), scale=(0.1, 0.2, 0.3))
    weight, bias = board_preprocess(spec)
    rng = np.random.default_rng(1)
    for _ in range(20):
        luma, cb, cr = rng.integers(90, 160), rng.integers(110, 146), rng.integers(110, 146)
        buffer = np.array([luma] * 4 + [cb, cr], np.uint8)
        bgr = nv12_to_bgr(buffer, 2, 2, camera.removeprefix("nv12-"))[0, 0].astype(float)
        order = bgr if color == "bgr" else bgr[::-1]
        expected = (order - np.array(spec.mean)) * np.array(spec.scale)
        actual = weight[:, :, 0, 0] @ (np.array([luma, cb, cr], np.float32) - 128) + bias
        assert np.abs(actual - expected).max() <= 0.51 * 0.3  # the decoder rounds to whole pixels


def test_channels_last(pose_bundle: Bundle) -> None:
    from builders import model

    proto = model([onnx.helper.make_node("Relu", ["x"], ["y"])], shape=(1, 4, 6, 3))
    spec = replace(pose_bundle.manifest.preprocess, height=4, width=6, layout="NHWC", mean=(3.0,), scale=(0.5,))
    x = np.random.default_rng(2).integers(-128, 128, (1, 4, 6, 3)).astype(np.int8)
    (actual,) = Runner(with_board_input(proto, spec)).run(x).values()  # type: ignore[arg-type]
    np.testing.assert_allclose(actual, np.maximum((x.astype(np.float32) + 128 - 3) * 0.5, 0), rtol=1e-6)
