"""The board's script against a stand-in for the board's package: the same results as the predictor's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from board_play import compile_stub, run_board
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from rdk_bundles import sample_images, small_bundle

from builders import constant, model, weights
from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle
from narrowcast.bundle.kits import deploy
from narrowcast.chips.rdk.board.run import joined
from narrowcast.graph.ends import Join
from narrowcast.vision import read_image
from narrowcast.vision.preprocess import Preprocess, bgr_to_nv12, preprocess
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


SPEC = Preprocess(16, 24)
node = helper.make_node


def mixed_net() -> onnx.ModelProto:
    """Boxes of 320 pixels and scores in one output, moved and multiplied behind their Concat; a class map beside it."""
    rng = np.random.default_rng(0)
    nodes = [
        *(node("Conv", ["x", f"{n}_w"], [f"{n}_c"], name=f"{n}_conv", pads=[1] * 4) for n in ("box", "score")),
        *(node("Sigmoid", [f"{n}_c"], [f"{n}_s"], name=f"{n}_act") for n in ("box", "score")),
        node("Mul", ["box_s", "pixels"], ["box"], name="grow"),
        node("Concat", ["box", "score_s"], ["cat"], name="cat", axis=1),
        node("Transpose", ["cat"], ["turned"], name="turn", perm=[0, 2, 3, 1]),
        node("Reshape", ["turned", "rows"], ["flat"], name="flat"),
        node("Mul", ["flat", "columns"], ["file"], name="stretch"),
        node("ArgMax", ["score_c"], ["classes"], name="argmax", axis=1, keepdims=1),
    ]
    constants = [
        weights(rng, "box_w", 4, 3, 3, 3), weights(rng, "score_w", 3, 3, 3, 3), constant("pixels", np.float32(320)),
        constant("rows", np.asarray([0, -1, 7])), constant("columns", rng.random((384, 7)).astype(np.float32) + 1),
    ]  # fmt: skip
    proto = model(nodes, constants, shape=(1, 3, 16, 24), outputs=["file"])
    proto.graph.output.append(helper.make_tensor_value_info("classes", TensorProto.INT64, [1, 1, 16, 24]))
    return proto


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_bundle(mixed_net(), tmp_path_factory.mktemp("mixed"), SPEC)


@pytest.mark.parametrize("floats", [False, True])
def test_parts_are_joined_and_class_maps_stay(mixed: Bundle, tmp_path: Path, floats: bool) -> None:
    """``file`` is also what numpy calls an argument of its own."""
    package = tmp_path / "package"
    deploy(mixed, "rdk-x5", package, images=sample_images("classify", SPEC, 2))
    assert mixed.manifest.join["joined"] == {"file": [1, 384, 7]}
    compile_stub(mixed, package, PHOTOS[0], floats=floats)
    done = run_board(package, str(PHOTOS[0]), "--arrays", "arrays.npz")
    assert done.returncode == 0, done.stderr
    expected = mixed.engine("integer", 1).run(preprocess(read_image(PHOTOS[0]), SPEC)[0])
    rows = {row["output"]: row for row in json.loads(done.stdout)["results"]}
    with np.load(package / "arrays.npz") as given:
        assert list(given) == list(rows) == list(expected) == ["file", "classes"]
        for name, wanted in expected.items():
            assert given[name].dtype == wanted.dtype and np.ptp(wanted) > 0
            np.testing.assert_allclose(given[name], wanted, rtol=3e-7, atol=0)  # the board's scales are float32
            assert (rows[name]["min"], rows[name]["max"]) == (given[name].min(), given[name].max())
        np.testing.assert_array_equal(given["classes"], expected["classes"])
    assert "| classes | 1x16x24x1 | NHWC | int64 | - |" in (package / "README.md").read_text()


def test_robot_software_joins_nothing(mixed: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="TROS"):
        deploy(mixed, "tros", tmp_path / "settings")


@pytest.mark.parametrize("opset", [11, 17])
def test_every_step_of_a_join(opset: int) -> None:
    """The board's numpy against the definitions of the operators."""
    rng = np.random.default_rng(0)
    new = opset >= 13
    axes = {} if new else {"axes": [1]}
    nodes = [
        node("Squeeze", ["a", *(["one"] if new else [])], ["b"], **axes),
        node("Unsqueeze", ["b", *(["one"] if new else [])], ["c"], **axes),
        node("Identity", ["c"], ["d"]),
        node("Sub", ["four", "d"], ["e"]), node("Div", ["e", "wide"], ["f"]), node("Add", ["f", "wide"], ["g"]),
        node("Mul", ["g", "four"], ["h"]), node("Concat", ["h", "fixed"], ["i"], axis=-1),
        node("Transpose", ["i"], ["j"]), node("Flatten", ["j"], ["k"], axis=-1),
        node("Reshape", ["k", "shape"], ["y"]), node("Flatten", ["y"], ["z"]),
    ]  # fmt: skip
    constants = {
        "one": np.asarray([1]), "four": np.float32(4), "wide": rng.random((3, 5)).astype(np.float32) + 1,
        "fixed": rng.random((2, 1, 3, 1)).astype(np.float32), "shape": np.asarray([0, -1]),
    }  # fmt: skip
    value = helper.make_tensor_value_info
    a = rng.normal(size=(2, 1, 3, 5)).astype(np.float32)
    graph = helper.make_graph(
        nodes, "join", [value("a", TensorProto.FLOAT, a.shape)],
        [value(name, TensorProto.FLOAT, [18, 2]) for name in ("y", "z")],
        [constant(name, array) for name, array in constants.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    described = json.loads(json.dumps(Join(proto, ("y", "z")).describe("join.npz")))
    given = joined(described, {"a": a}, constants)
    for name, wanted in zip(("y", "z"), ReferenceEvaluator(proto).run(None, {"a": a}), strict=True):
        np.testing.assert_array_equal(given[name], wanted)
