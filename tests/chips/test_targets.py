"""Target files: validated, every limit evaluated, placement as the vendors document it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import yaml
from onnx import helper

from builders import constant, model, save, silu_net, weights
from narrowcast.base.errors import UserError
from narrowcast.chips import check_rows, load_target, place, support, target_names
from narrowcast.graph import Model, load


@pytest.mark.parametrize("name", target_names())
def test_every_shipped_target_is_valid(name: str) -> None:
    target = load_target(name)
    assert target.name == name and target.title
    known = set(target.units)
    assert {rule.unit for rule in target.ops} <= known
    assert target.fallback is None or target.fallback.unit in known
    assert target.float_nodes or all("float32" not in rule.types for rule in target.ops)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean esp32p4"):
        load_target("esp32p5")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 1}, "colour"),
        ({"activation": {"scale": "sometimes"}}, "activation.scale"),
        ({"extends": "nowhere"}, "nowhere"),
        ({"schema_version": 2}, "schema_version"),
        ({"bias": {"bits": 3}}, "bias.bits"),
    ],
)
def test_bad_target_files(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / f"chip{abs(hash(words))}.yaml"
    path.write_text(yaml.safe_dump({"extends": "onnx", "name": "chip", **change}))
    with pytest.raises(UserError, match=words) as error:
        load_target(str(path))
    assert "\n" not in str(error.value)


def test_a_chip_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "mychip.yaml"
    path.write_text("extends: esp32p4\nname: mychip\nbias: {bits: 24}\n")
    target = load_target(str(path))
    assert target.bias.bits == 24 and target.requantize.method == "shift"
    s3 = load_target("esp32s3")
    assert s3.weight.per_channel == {} and s3.requantize.rounding == "half-up" and s3.bias.bits == 20


def conv_model(tmp_path: Path, **attributes: Any) -> Model:
    rng = np.random.default_rng(0)
    kernel, group = attributes.pop("kernel", 3), attributes.get("group", 1)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[kernel // 2] * 4, **attributes),
    ]
    weight = weights(rng, "w", 6, 6 // group, kernel, kernel)
    return load(save(model(nodes, [weight], shape=(1, 6, 40, 40)), tmp_path / "m.onnx"))


@pytest.mark.parametrize(
    ("target", "attributes", "words"),
    [
        ("bayes-e", {"kernel": 33}, "kernel 33"),
        ("bayes-e", {"dilations": [17, 17]}, "dilation 17"),
    ],
)
def test_convolution_limits(tmp_path: Path, target: str, attributes: dict[str, Any], words: str) -> None:
    loaded = conv_model(tmp_path, **attributes)
    verdict = support(loaded.ir.graph.node(0), load_target(target))
    assert words in verdict.reason and verdict.remedy
    assert verdict.unit in ("CPU", "")


def test_groups_are_fine(tmp_path: Path) -> None:
    for group in (1, 2, 6):
        verdict = support(conv_model(tmp_path, group=group).ir.graph.node(0), load_target("esp32p4"))
        assert verdict.supported and verdict.types == ("int8", "int16")


def test_int16_resize_is_refused_where_the_runtime_is_empty(tmp_path: Path) -> None:
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], name="up", mode="nearest")]
    scales = constant("scales", np.array([1, 1, 2, 2], np.float32))
    loaded = load(save(model(nodes, [scales]), tmp_path / "m.onnx"))
    assert support(loaded.ir.graph.node(0), load_target("esp32p4")).types == ("int8",)
    assert "int16" in support(loaded.ir.graph.node(0), load_target("bayes-e")).types


def test_resize_by_three_leaves_the_bpu(tmp_path: Path) -> None:
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], name="up", mode="nearest")]
    loaded = load(save(model(nodes, [constant("scales", np.array([1, 1, 3, 3], np.float32))]), tmp_path / "m.onnx"))
    verdict = support(loaded.ir.graph.node(0), load_target("bayes-e"))
    assert verdict.unit == "CPU" and "power of two" in verdict.reason


def test_only_the_softmax_of_the_attention_leaves_the_bpu(people_model: Model) -> None:
    rows = check_rows(people_model.ir.graph, load_target("bayes-e"))
    assert [row.type for row in rows if row.on == "CPU"] == ["Softmax"]
    assert {row.subgraph for row in rows} == {"id(0)", "id(1)", "--"}
    assert next(row for row in rows if row.type == "Softmax").remedy


def test_everything_of_the_pose_net_runs_on_esp(pose_model: Model) -> None:
    for name in ("esp32p4", "esp32s3"):
        assert all(row.supported for row in check_rows(pose_model.ir.graph, load_target(name)))


def test_runtime_versions(tmp_path: Path) -> None:
    loaded = load(save(silu_net(), tmp_path / "m.onnx"))
    assert place(loaded.ir.graph, load_target("esp32p4"), "3.3")["conv0"].supported
    with pytest.raises(UserError, match="no version"):
        place(loaded.ir.graph, load_target("esp32p4"), "latest")


def test_what_no_rule_takes_for_its_rank_is_told_the_ranks() -> None:
    x, scale = (ir.val(name, ir.DataType.FLOAT, shape=[1, 3, 4, 5, 2]) for name in ("x", "scale"))
    node = ir.node("Mul", [x, scale], num_outputs=1, name="mul")
    node.outputs[0].shape = x.shape
    found = support(node, load_target("esp32p4"))
    assert not found.supported and found.reason == "rank 5 is outside 1..4"
    assert found.remedy == "reshape the operands to 1 to 4 axes"
