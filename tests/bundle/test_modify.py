"""Bundles with integer ends give the same results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders import constant, model, save, weights
from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle, open_bundle, quantize
from narrowcast.bundle.modify import modify
from narrowcast.bundle.store import chip_input, quantize_input
from narrowcast.calibrate import images
from narrowcast.chips import load_target
from narrowcast.cli.deploy import modify as run
from narrowcast.engine.integer import IntegerRunner
from narrowcast.engine.qdq import with_integer_outputs
from narrowcast.engine.verify import verify
from narrowcast.graph import Model, load
from narrowcast.plan import Encoding
from narrowcast.vision import Detections
from narrowcast.zoo import sample


def classifier() -> onnx.ModelProto:
    """Transpose (NHWC to NCHW), Conv, Relu, GlobalAveragePool, Flatten, Gemm, Softmax."""
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("Transpose", ["x"], ["planes"], name="to_planes", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "w0", "b0"], ["c0"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r0"], ["mean"], name="mean"),
        helper.make_node("Flatten", ["mean"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w1", "b1"], ["logits"], name="gemm", transB=1),
        helper.make_node("Softmax", ["logits"], ["y"], name="softmax", axis=1),
    ]
    constants = [weights(rng, "w0", 8, 3, 3, 3), weights(rng, "b0", 8), weights(rng, "w1", 5, 8), weights(rng, "b1", 5)]
    return model(nodes, constants, shape=(1, 12, 16, 3))


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(save(classifier(), tmp_path_factory.mktemp("classifier") / "c.onnx"))


@pytest.fixture(scope="module")
def made(net: Model, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    batch = images(np.random.default_rng(0).random((6, 12, 16, 3), dtype=np.float32), net.preprocess)
    return quantize(net, batch, "bayes-e", out=tmp_path_factory.mktemp("made") / "b", method="minmax", effort="fast")


@pytest.fixture(scope="module")
def pose(pose_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    found = images(sample("pose").calibration, pose_model.preprocess, limit=4)
    return quantize(
        pose_model, found, "bayes-e", out=tmp_path_factory.mktemp("pose") / "b", method="minmax", effort="fast"
    )


def test_integer_outputs_give_the_same_detections(pose: Bundle, tmp_path: Path) -> None:
    changed = modify(pose, out=tmp_path / "b", remove_dequantize=["all"])
    assert changed.manifest.modified == {"dequantize": [out.name for out in pose.manifest.outputs]}
    image = sorted(sample("pose").validation.iterdir())[0]
    for engine in pose.engines:
        before, after = pose.engine(engine), changed.engine(engine)
        outputs = after.run(np.zeros(pose.manifest.input_shape, np.float32))
        assert {name: str(values.dtype) for name, values in outputs.items()} == {
            out.name: out.chip_dtype for out in pose.manifest.outputs
        }
        expected, actual = before.predict(image), after.predict(image)
        assert isinstance(expected, Detections) and isinstance(actual, Detections)
        assert len(expected) == len(actual) > 0
        np.testing.assert_allclose(actual.boxes, expected.boxes, atol=0.01)
        np.testing.assert_allclose(actual.scores, expected.scores, atol=1e-4)


def test_one_output_by_the_vendors_name(pose: Bundle, tmp_path: Path) -> None:
    changed = modify(pose, out=tmp_path / "b", remove_dequantize=["cls_s8_HzDequantize"])
    outputs = changed.engine("qdq").run(np.zeros(pose.manifest.input_shape, np.float32))
    assert outputs["cls_s8"].dtype == np.int32 and outputs["box_s8"].dtype == np.float32
    more = modify(changed, out=tmp_path / "c", remove_dequantize=["box_s8"])
    assert more.manifest.modified["dequantize"] == ["box_s8", "cls_s8"]


def test_activation_outputs(pose_bundle: Bundle, tmp_path: Path) -> None:
    """int8 outputs are the very integers of the exact graph's type; the source bundle stays as it was."""
    before = {file.name: file.read_bytes() for file in pose_bundle.path.iterdir()}
    changed = modify(pose_bundle, out=tmp_path / "b", remove=["Dequantize"])
    x = np.random.default_rng(1).random(pose_bundle.manifest.input_shape, dtype=np.float32)
    old, new = pose_bundle.engine("qdq").run(x), changed.engine("qdq").run(x)
    for out in changed.manifest.outputs:
        assert new[out.name].dtype == np.int8 and out.scale is not None
        real = Encoding("int8", out.scale, out.zero_point, out.axis).dequantize(new[out.name])
        np.testing.assert_allclose(real, old[out.name], rtol=1e-6)
    assert before == {file.name: file.read_bytes() for file in pose_bundle.path.iterdir()}


def test_softmax_and_transpose_go(made: Bundle, tmp_path: Path) -> None:
    changed = modify(made, out=tmp_path / "b", remove=["Softmax", "Transpose"], remove_dequantize=["all"])
    manifest = changed.manifest
    assert manifest.softmax_missing and manifest.input_shape == (1, 3, 12, 16)
    assert manifest.preprocess.layout == "NCHW" and [out.name for out in manifest.outputs] == ["logits"]
    assert manifest.outputs[0].chip_dtype == "int32"
    picture = np.random.default_rng(2).integers(0, 255, (12, 16, 3), np.uint8)
    for engine in ("float", *made.engines):
        expected = made.engine(engine).predict(picture).to_dict()
        actual = changed.engine(engine).predict(picture).to_dict()
        assert [e["class"] for e in actual] == [e["class"] for e in expected]
        np.testing.assert_allclose([e["score"] for e in actual], [e["score"] for e in expected], atol=1e-4)


def test_the_image_enters_as_integers(made: Bundle, tmp_path: Path) -> None:
    changed = modify(made, out=tmp_path / "b", remove=["Quantize"])
    x = np.random.default_rng(4).random((1, 12, 16, 3), dtype=np.float32)
    for file in ("qdq.onnx", "integer.onnx"):
        kind = onnx.load(str(changed.path / file)).graph.input[0].type.tensor_type.elem_type
        assert kind == TensorProto.INT8
    for engine in made.engines:
        for name, values in made.engine(engine).run(x).items():
            np.testing.assert_array_equal(changed.engine(engine).run(x)[name], values)
    coding = made.manifest.input_encoding
    assert coding is not None
    integers = quantize_input(x, Encoding(**coding), "half-even")
    assert set(IntegerRunner(changed.integer_graph).run(integers)) == {"y"}
    np.testing.assert_array_equal(chip_input(x, changed.manifest), integers)
    rows = verify(
        changed.prepared.ir,
        changed.plan,
        load_target("bayes-e"),
        changed.integer_graph,
        [chip_input(x, changed.manifest)],
    )
    assert rows and not any(row.differing for row in rows)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing to remove is named"),
        ({"remove_dequantize": ["cls_8"]}, "did you mean cls_s8?"),
        ({"remove": ["Conv"]}, "Conv nodes cannot be removed"),
        ({"remove": ["Softmx"]}, "did you mean Softmax?"),
        ({"remove": ["Softmax"]}, "no Softmax node stands at the head or tail"),
        ({"nodes": ["nothing"]}, "no node of this model is named nothing"),
    ],
)
def test_mistakes(pose: Bundle, tmp_path: Path, options: dict[str, list[str]], words: str) -> None:
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        modify(pose, out=tmp_path / "b", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "b").exists()


def test_float_outputs_have_no_integers(made: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="y is computed in float"):
        modify(made, out=tmp_path / "b", remove_dequantize=["y"])


def test_rounding_of_accumulators() -> None:
    """An output in real numbers becomes the nearest integers in steps of its scales."""
    proto = model(
        [helper.make_node("Relu", ["x"], ["y"])], [constant("unused", np.zeros(1, np.float32))], shape=(1, 2, 1, 3)
    )
    encoding = Encoding("int32", (0.5, 0.25), 0, 1)
    changed = with_integer_outputs(proto, {"y": encoding})
    assert [numpy_helper.to_array(t).size for t in changed.graph.initializer if t.name == "unused"] == []
    from narrowcast.graph.run import Runner

    x = np.array([[[[0.25, 0.75, 2.0]], [[0.125, 0.3, 1e30]]]], np.float32)
    found = Runner(changed).run(x)["y"]
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, [[[[0, 2, 4]], [[0, 1, 2147483520]]]])


def test_the_command(pose: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b"
    run(pose.path, out, ["cls_s8,box_s8"])
    text = capsys.readouterr().out
    assert "int32" in text and "float32" in text
    assert open_bundle(out).manifest.modified["dequantize"] == ["box_s8", "cls_s8"]
    with pytest.raises(UserError, match="exists"):
        run(pose.path, out, ["all"], json=True)
