"""The package for the vendor's compiler: model, settings, calibration data, script."""

from __future__ import annotations

import json
import math
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from rdk_bundles import sample_images, small_bundle

from builders import model, silu_net, weights
from narrowcast.base.errors import UserError
from narrowcast.base.reading import read_yaml
from narrowcast.bundle import Bundle
from narrowcast.bundle.kits import deploy
from narrowcast.bundle.modify import modify
from narrowcast.bundle.settings import pinned_types, read_settings
from narrowcast.chips import load_target
from narrowcast.chips.rdk.delivery import without_markers
from narrowcast.chips.rdk.export import export, verify
from narrowcast.chips.rdk.hb_mapper import parse_hb_mapper
from narrowcast.graph import load
from narrowcast.plan import Pins, draft
from narrowcast.plan.types import TensorPin
from narrowcast.vision import Preprocess, read_image
from narrowcast.vision.preprocess import preprocess
from narrowcast.zoo import sample

SPEC = Preprocess(16, 16)


@pytest.fixture(scope="module")
def searched(rdk_pose: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit of ``rdk_pose`` for which the tool finds its own ranges."""
    out, images = tmp_path_factory.mktemp("kit") / "searched", sample_images("pose", rdk_pose.manifest.preprocess, 3)
    deploy(rdk_pose, "rdk-x5", out, images=images, ranges="vendor")
    return out


@pytest.mark.parametrize("kind", ["package", "searched"])
def test_the_model_is_the_bundles_float_graph(rdk_pose: Bundle, kind: str, request: pytest.FixtureRequest) -> None:
    proto = onnx.load(str(request.getfixturevalue(kind) / "model.onnx"))
    onnx.checker.check_model(without_markers(proto), full_check=True)
    assert proto.opset_import[0].version == 11
    assert proto.ir_version == 7
    names = [node.name for node in proto.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    assert set(rdk_pose.plan.nodes) <= set(names)  # node_info finds its nodes
    assert verify(export(rdk_pose, "plan" if kind == "package" else "vendor"), [], 1) < 1e-6
    outputs = {o.name: [dim.dim_value for dim in o.type.tensor_type.shape.dim] for o in proto.graph.output}
    head = rdk_pose.manifest.head
    assert head is not None and head.keypoint_shape is not None
    expected = [f"{stem}_s{stride}" for stride in head.strides for stem in ("cls", "box", "kpt")]
    assert list(outputs) == expected
    height, width = rdk_pose.manifest.input_shape[2:]
    assert outputs["kpt_s8"] == [1, height // 8, width // 8, math.prod(head.keypoint_shape)]


@pytest.mark.parametrize("kind", ["package", "searched"])
def test_the_settings_are_valid_and_say_the_input(rdk_pose: Bundle, kind: str, request: pytest.FixtureRequest) -> None:
    package = request.getfixturevalue(kind)
    config = parse_hb_mapper(read_yaml(package / "hb_mapper.yaml")[0])
    assert config.march == "bayes-e"
    assert config.input_parameters.input_type_rt == ("nv12",)
    assert config.input_parameters.input_space_and_range == ("bt601_video",)
    assert config.input_parameters.input_shape == (rdk_pose.manifest.input_shape,)
    calibration = config.calibration_parameters
    if kind == "package":
        assert calibration.calibration_type == "load" and not calibration.cal_data_dir
        assert not list(package.glob("calibration_data*"))
        return
    settings = read_settings(package / "hb_mapper.yaml", {})[0]
    assert settings.camera == "nv12-studio"
    assert settings.model == package / "model.onnx"


def test_calibration_data_are_rgb_pixels(rdk_pose: Bundle, searched: Path) -> None:
    files = sorted((searched / "calibration_data").iterdir())
    sources = sample_images("pose", rdk_pose.manifest.preprocess, 3).sources
    assert len(files) == 3
    spec = replace(rdk_pose.manifest.preprocess, mean=(0.0,), scale=(1.0,), camera="rgb")
    for file, source in zip(files, sources, strict=True):
        values = np.fromfile(file, np.uint8).reshape(rdk_pose.manifest.input_shape)
        bgr = preprocess(read_image(str(source)), replace(spec, color="bgr"))[0]
        np.testing.assert_array_equal(values[0, 0], bgr[0, 2])  # red comes first
        np.testing.assert_array_equal(values[0, 2], bgr[0, 0])


TOOL = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "{log}"
if [ "$2" = "" ] || [ "$1" = makertbin ]; then mkdir -p model_output; touch "model_output/{name}.bin"; fi
if [ "$(basename "$0")" = hb_model_modifier ]; then touch "${{1%.bin}}_modified.bin"; fi
"""


def test_the_script_runs_the_tools_in_order(package: Path, tmp_path: Path) -> None:
    name = parse_hb_mapper(read_yaml(package / "hb_mapper.yaml")[0]).model_parameters.output_model_file_prefix
    tools = tmp_path / "tools"
    tools.mkdir()
    log = tmp_path / "log"
    for tool in ("hb_mapper", "hb_model_modifier"):
        (tools / tool).write_text(TOOL.format(log=log, name=name))
        (tools / tool).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    script = package / "build.sh"
    assert os.access(script, os.X_OK)
    subprocess.run([str(script)], env=environment, check=True, cwd=tmp_path)
    checker, makertbin, modifier = log.read_text().splitlines()
    shape = "x".join(str(dim) for dim in onnx_shape(package))
    assert checker.endswith(f"--march bayes-e --model model.onnx --input-shape x {shape}")
    assert makertbin == "hb_mapper makertbin --model-type onnx --config hb_mapper.yaml"
    assert "-r kpt_s8_raw_HzDequantize" in modifier
    assert "-r cls_s8_HzDequantize" in modifier  # one channel has one scale
    assert modifier.count(" -r ") == 9
    assert (package / "board/model.bin").exists()
    (package / "board/model.bin").unlink()


def onnx_shape(package: Path) -> list[int]:
    value = onnx.load(str(package / "model.onnx")).graph.input[0]
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_the_script_says_where_it_belongs(package: Path) -> None:
    done = subprocess.run(
        ["bash", str(package / "build.sh")], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "run this inside the vendor's image" in done.stderr


def test_readme_has_the_numbers(rdk_pose: Bundle, package: Path) -> None:
    text = (package / "README.md").read_text()
    for entry in rdk_pose.manifest.comparison:
        assert f"| {entry['name']} | {entry['cosine']:.5f} |" in text
    assert "int32" in text
    assert "Not checked: the vendor's" in text


def test_only_what_modify_removed_is_removed(rdk_pose: Bundle, tmp_path: Path) -> None:
    changed = modify(rdk_pose, out=tmp_path / "modified", remove_dequantize=["box_s8", "kpt_s8"])
    found = sample_images("pose", rdk_pose.manifest.preprocess, 1)
    made = deploy(changed, "rdk-x5", tmp_path / "package", images=found)
    assert made.facts["outputs that leave as integers"] == ["box_s8", "kpt_s8"]
    script = (tmp_path / "package/build.sh").read_text()
    assert script.count(" -r ") == 2


def test_the_settings_lead_to_the_same_plan(tmp_path: Path) -> None:
    """The file that we write, read as a user's file, asks for the placement and types of the plan."""
    pins = Pins({"conv1": "int16", "silu0": "float32"}, {"pool": TensorPin("int16")})
    bundle = small_bundle(silu_net(), tmp_path, SPEC, pins)
    assert any(entry.type == "int16" for entry in bundle.plan.nodes.values())
    found = sample_images("classify", bundle.manifest.preprocess, 2)
    deploy(bundle, "rdk-x5", tmp_path / "package", images=found, ranges="vendor")
    settings = read_settings(tmp_path / "package/hb_mapper.yaml", {})[0]
    again = load(settings.model, keep_head=True)
    nodes = [
        (str(n.name), n.op_type, ["" if v is None or v.const_value is not None else str(v.name) for v in n.inputs])
        for n in again.ir.graph
    ]
    types, tensors = pinned_types(settings, nodes)
    target = load_target("bayes-e")
    placed = draft(again.ir.graph, target, Pins(types, {n: TensorPin(kind) for n, kind in tensors.items()}))
    for name, placement in bundle.plan.nodes.items():
        wanted = "int16" if name == "add" else placement.type  # its tensor was pinned, the tool knows nodes only
        assert placed.placement[name].type == wanted, name
    for group in placed.structure.groups:
        for name in group.values:
            if name in bundle.plan.tensors:
                assert group.type == bundle.plan.tensors[name].dtype, name


def test_model_inputs_instead_of_pictures_are_float32(tmp_path: Path) -> None:
    bundle = small_bundle(silu_net(), tmp_path, SPEC)
    batch = np.random.default_rng(0).random((2, 3, 16, 16)).astype(np.float32)
    np.save(tmp_path / "batch.npy", batch)
    deploy(bundle, "rdk-x5", tmp_path / "package", images=tmp_path / "batch.npy", ranges="vendor")
    config = parse_hb_mapper(read_yaml(tmp_path / "package/hb_mapper.yaml")[0])
    assert config.calibration_parameters.cal_data_type == ("float32",)
    files = sorted((tmp_path / "package/calibration_data_f32").iterdir())
    np.testing.assert_allclose(np.fromfile(files[0], np.float32).reshape(batch[0].shape) / 255, batch[0], atol=1e-6)


def test_a_classifier_gives_scores_with_four_axes(rdk_classify: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "package"
    made = deploy(rdk_classify, "rdk-x5", out, images=sample("classify").calibration, limit=2)
    assert any("NV12" in note for note in made.notes)
    described = json.loads((out / "board/model.json").read_text())["outputs"]
    assert described[0]["shape"][2:] == [1, 1]
    assert "hb_model_modifier " not in (out / "build.sh").read_text().split("makertbin")[1]


def test_more_outputs_than_the_tool_takes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Relu", ["x"], ["r"], name="relu")]
    nodes += [helper.make_node("Conv", ["r", f"w{i}"], [f"y{i}"], name=f"conv{i}") for i in range(33)]
    proto = model(nodes, [weights(rng, f"w{i}", 1, 3, 1, 1) for i in range(33)], outputs=[f"y{i}" for i in range(33)])
    with pytest.raises(UserError, match="33 outputs are more than the 32 of bayes-e"):
        small_bundle(proto, tmp_path, SPEC)


def test_nv12_with_an_odd_side(tmp_path: Path) -> None:
    spec = replace(SPEC, height=15, width=17)
    bundle = small_bundle(silu_net(shape=(1, 3, 15, 17)), tmp_path, spec)
    odd = replace(bundle.manifest, preprocess=replace(spec, camera="nv12-full"))
    for kit in ("rdk-x5", "tros"):
        with pytest.raises(UserError, match="NV12 images have even sides, the model's input is 15x17"):
            deploy(Bundle(bundle.path, replace(odd, task="detect")), kit, tmp_path / kit,
                   images=sample("classify").calibration)  # fmt: skip


def ends_net() -> onnx.ModelProto:
    """Outputs behind every kind of end that the vendor's tool names differently."""
    rng = np.random.default_rng(0)
    make = helper.make_node
    tensors, nodes = [], []

    def conv(output: str, channels: int) -> str:
        tensors.append(weights(rng, f"w_{output}", channels, 3, 1, 1))
        nodes.append(make("Conv", ["x", f"w_{output}"], [output], name=f"conv_{output}"))
        return output

    conv("one", 1)
    conv("four", 4)
    nodes.append(make("Relu", [conv("r", 4)], ["relu"], name="relu_node"))
    nodes.append(make("Sigmoid", [conv("g", 4)], ["gate"], name="sigmoid"))
    nodes.append(make("Add", [conv("a", 4), "relu"], ["sum"], name="add"))
    nodes.append(make("Transpose", [conv("t", 4)], ["last"], name="own", perm=(0, 2, 3, 1)))
    nodes.append(make("Concat", [conv("c", 4), conv("d", 4)], ["joined"], name="concat", axis=1))
    return model(nodes, tensors, outputs=["one", "four", "relu", "gate", "sum", "last", "joined"])


def test_names_of_dequantize_nodes(tmp_path: Path) -> None:
    """As hb_mapper 1.24.3 gives them: without ranges in the model, and with those of the plan."""
    bundle = small_bundle(ends_net(), tmp_path, SPEC)
    exported = export(bundle, "vendor")
    assert {output.name: output.dequantize.removesuffix("_HzDequantize") for output in exported.outputs} == {
        "one": "one", "four": "four_raw", "relu": "relu_raw", "gate": "gate", "sum": "sum_raw", "last": "t",
        "joined": "",
    }  # fmt: skip
    exported = export(bundle)
    assert {output.name: output.dequantize.removesuffix("_HzDequantize") for output in exported.outputs} == {
        "one": "one", "four": "four_raw", "relu": "relu", "gate": "gate", "sum": "sum", "last": "t", "joined": "joined",
    }  # fmt: skip
    shapes = {output.name: (output.shape, output.layout) for output in exported.outputs}
    assert shapes["last"] == ((1, 16, 16, 4), "NHWC") == shapes["four"]  # channels last already: no second Transpose
    assert verify(exported, [], 1) < 1e-6


def test_an_unknown_name_is_said(tmp_path: Path) -> None:
    bundle = small_bundle(ends_net(), tmp_path, SPEC)
    found = sample_images("classify", bundle.manifest.preprocess, 2)
    deploy(bundle, "rdk-x5", tmp_path / "package", images=found)
    name = parse_hb_mapper(read_yaml(tmp_path / "package/hb_mapper.yaml")[0]).model_parameters.output_model_file_prefix
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("hb_mapper", "hb_model_modifier"):
        text = TOOL.format(log=tmp_path / "log", name=name)
        (tools / tool).write_text(text + "echo 'WARNING Node one_HzDequantize is not found in the model! Skipped!'\n")
        (tools / tool).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    script = str(tmp_path / "package/build.sh")
    done = subprocess.run([script], env=environment, check=True, capture_output=True, text=True)
    assert "stay float" in done.stderr and f"'hb_model_modifier {name}.bin' lists" in done.stderr
