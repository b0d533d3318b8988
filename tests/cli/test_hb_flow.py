"""An hb_mapper YAML does what it says: cut, remove, widen, search; and mistakes are one line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import helper

from builders import model, save, silu_net, weights
from narrowcast.base.errors import UserError
from narrowcast.bundle import open_bundle
from narrowcast.cli.check import check, prepare
from narrowcast.cli.inspect import tensor_info
from narrowcast.cli.quantize import quantize
from narrowcast.cli.tables import NODE_COLUMNS, node_rows
from narrowcast.graph import Model, load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cal").mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        rng.integers(0, 256, (3, 16, 16)).astype(np.uint8).tofile(tmp_path / "cal" / f"{index}.rgb")
    save(silu_net(), tmp_path / "m.onnx")
    return tmp_path


def config(folder: Path, **changes: dict[str, Any]) -> Path:
    groups: dict[str, dict[str, Any]] = {
        "model_parameters": {
            "onnx_model": "m.onnx", "march": "bayes-e", "working_dir": "out", "output_model_file_prefix": "net",
        },
        "input_parameters": {
            "input_type_train": "rgb", "input_layout_train": "NCHW", "input_type_rt": "nv12",
            "input_space_and_range": "regular", "norm_type": "data_scale", "scale_value": 0.01,
        },
        "calibration_parameters": {"cal_data_dir": "cal", "cal_data_type": "uint8", "calibration_type": "max"},
        "compiler_parameters": {"compile_mode": "latency", "optimize_level": "O3"},
    }  # fmt: skip
    for group, values in changes.items():
        groups[f"{group}_parameters"] |= values
    file = folder / "hb.yaml"
    file.write_text(yaml.safe_dump(groups))
    return file


def run(file: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    quantize(config=file, effort="fast", force=True, quiet=True, **options)
    return capsys.readouterr().out


def test_output_nodes_and_remove(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(config(folder, model={"output_nodes": "conv1", "remove_node_type": "Dequantize;Transpose"}), capsys)
    bundle = open_bundle(folder / "out" / "net")
    assert [(out.name, out.chip_dtype) for out in bundle.manifest.outputs] == [("c1", "int32")]
    assert bundle.manifest.modified == {"dequantize": ["c1"]}
    assert bundle.engine("qdq").run(np.zeros((1, 3, 16, 16), np.float32))["c1"].dtype == np.int32


def test_remove_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(config(folder, model={"remove_node_name": "conv2_output_0_HzDequantize"}), capsys)
    assert open_bundle(folder / "out" / "net").manifest.modified["dequantize"] == ["y"]


def test_all_nodes_int16(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(config(folder, calibration={"optimization": "set_all_nodes_int16"}), capsys)
    bundle = open_bundle(folder / "out" / "net")
    assert {entry.type for entry in bundle.plan.nodes.values()} == {"int16"}
    (row,) = bundle.manifest.comparison
    assert row["sqnr_db"] > 40


def test_the_default_search(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(config(folder, calibration={"calibration_type": "default"}), capsys)
    assert "max-percentile 0.99995" in text and "selected by the vendor's rule" in text
    assert "no zero point" in text and "mean-minmax" in text
    record = open_bundle(folder / "out" / "net").manifest.calibration
    assert record["hb_search"]["selected"] in record["mean_output_sqnr_db"]


def test_intermediates(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(config(folder), capsys, save_intermediates=folder / "stages")
    names = sorted(file.name for file in (folder / "stages").iterdir())
    assert names == [
        "net_calibrated_model.onnx", "net_optimized_float_model.onnx", "net_original_float_model.onnx",
        "net_quantized_model.onnx",
    ]  # fmt: skip
    graph = onnx.load(str(folder / "stages" / names[2])).graph
    assert "HZ_PREPROCESS_FOR_x" in [node.name for node in graph.node]


def test_tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantize(config=config(folder), effort="fast", force=True, verbose=True, quiet=True)
    text = capsys.readouterr().out
    for word in (*NODE_COLUMNS, "Chebyshev", "L2", "id(0)", "int8/int8"):
        assert word in text
    bundle = open_bundle(folder / "out" / "net")
    rows = {row[0]: row for row in node_rows(bundle)}
    code = bundle.plan.tensors["x"]
    assert rows["conv0"][6] == f"{127 * float(code.scales):.6g}" and rows["conv2"][-1] == "int8/int32"
    (row,) = bundle.manifest.comparison
    assert row["rms"] >= row["mean_abs"] > 0
    image, output = tensor_info(bundle.manifest)
    assert (image.byte_size, image.strides, image.quanti_type) == (768, (768, 256, 16, 1), "SCALE")
    assert (output.type, output.byte_size, output.strides) == ("int32", 4 * 4 * 256, (4096, 1024, 64, 4))
    assert len(output.scale_data) == 4 and output.quantize_axis == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"output_nodes": "conv9"}}, "did you mean conv"),
        ({"model": {"remove_node_name": "conv9_HzDequantize"}}, "no output of this bundle is named conv9"),
        ({"model": {"remove_node_name": "conv9"}}, "no node of this model is named conv9"),
        ({"model": {"node_info": {"conv9": {"OutputType": "int16"}}}}, "no node of this model is named conv9"),
        ({"input": {"norm_type": "data_mean", "mean_value": "1 2"}}, "mean"),
        ({"calibration": {"optimization": "asymmetric"}}, "no zero point"),
        ({"calibration": {"optimization": "bias_correction"}}, "'fast' corrects nothing"),
    ],
)
def test_mistakes(folder: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        quantize(config=config(folder, **changes), effort="fast", force=True, json=True)
    assert "\n" not in str(caught.value)


def test_wrong_sized_calibration_files(folder: Path) -> None:
    np.zeros(100, np.uint8).tofile(folder / "cal" / "bad.rgb")
    with pytest.raises(UserError, match=r"bad\.rgb"):
        quantize(config=config(folder), effort="fast", force=True, json=True)


def test_odd_sides_cannot_be_nv12(folder: Path) -> None:
    save(silu_net(shape=(1, 3, 15, 16)), folder / "m.onnx")
    with pytest.raises(UserError, match="NV12 has even sides, the model's input is 15x16"):
        quantize(config=config(folder), effort="fast", force=True, json=True)


def test_too_many_outputs(folder: Path) -> None:
    names = [f"y{index}" for index in range(33)]
    nodes = [helper.make_node("Conv", ["x", f"w{i}"], [name], name=f"c{i}") for i, name in enumerate(names)]
    rng = np.random.default_rng(1)
    proto = model(nodes, [weights(rng, f"w{i}", 1, 3, 1, 1) for i in range(33)], outputs=names)
    file = save(proto, folder / "many.onnx")
    with pytest.raises(UserError, match="33 outputs are more than the 32 of bayes-e"):
        check(file, "bayes-e", json=True)


def test_opset_of_the_vendors_compiler(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(folder / "m.onnx", "bayes-e", json=True)
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any(note.startswith("opset 17: the compiler of") and "10 and 11" in note for note in notes)


def test_prepare(people_model: Model, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from narrowcast.zoo import sample

    out = folder / "prepared.onnx"
    people = sample("pose").model
    prepare(people, out, "rewrite")
    text = capsys.readouterr().out
    assert "decode cut off after" in text and f"{out} written" in text
    proto = onnx.load(str(out))
    assert not proto.functions and {node.domain for node in proto.graph.node} <= {""}
    again = load(out)
    assert again.task == "pose" and again.head == people_model.head and again.difference["output"] < 1e-5
    assert again.output_names[0] == "box_s8" and sum("Softmax/" in str(node.name) for node in again.ir.graph) == 6
    for arguments, words in (
        ((out, "keep"), "exists"),
        ((folder / "x.txt", "keep"), "end it in .onnx"),
        ((folder / "n.onnx", "no"), "use keep"),
    ):
        with pytest.raises(UserError, match=words):
            prepare(people, *arguments)
