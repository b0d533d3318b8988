"""Planning: who shares an encoding with whom, pins, the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from builders import model, save, silu_net, weights
from narrowcast.base.errors import UserError
from narrowcast.calibrate import collect
from narrowcast.chips import load_target, target_names
from narrowcast.graph import Model, load
from narrowcast.plan import Pins, Plan, TensorPin, draft, finish, plan_to_json, read_pins, read_plan


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(save(silu_net(), tmp_path_factory.mktemp("net") / "m.onnx"))


def make_plan(net: Model, target: str, pins: Pins | None = None, method: str = "mse") -> Plan:
    drafted = draft(net.ir.graph, load_target(target), pins)
    rng = np.random.default_rng(0)
    inputs = [rng.normal(0, 1, (1, 3, 16, 16)).astype(np.float32) for _ in range(3)]
    statistics = collect(net.to_proto(), drafted.wanted_statistics(), inputs)
    return finish(drafted, statistics, method)[0]


@pytest.mark.parametrize("target", target_names())
def test_every_target_plans(net: Model, target: str) -> None:
    plan = make_plan(net, target)
    chip = load_target(target)
    assert list(plan.nodes) == [node.name for node in net.ir.graph]
    for name, encoding in plan.tensors.items():
        if chip.activation.scale == "power-of-two":
            assert np.all(np.isin(np.log2(encoding.scales) % 1, 0)), name
        if chip.activation.symmetric:
            assert encoding.zero_point == 0, name


@pytest.mark.parametrize("target", target_names())
def test_biases_have_the_product_of_scales(net: Model, target: str) -> None:
    plan = make_plan(net, target)
    expected = plan.tensors["x"].scales * plan.tensors["w0"].scales
    np.testing.assert_allclose(plan.tensors["b0"].scales, expected)
    assert plan.tensors["b0"].dtype == "int32"


def test_passive_nodes_carry_their_inputs_encoding(net: Model) -> None:
    for target in target_names():
        plan = make_plan(net, target)
        assert plan.tensors["pool"] == plan.tensors["sum"]


def test_shared_rule_adopts_or_requantizes(net: Model) -> None:
    plan = make_plan(net, "esp32p4")
    # a0 is read by conv1 too, so the Add reads it on an edge; c1 is read by Add and Concat
    for key in ("add#0", "add#1"):
        read = plan.edges.get(key, plan.tensors["a0" if key.endswith("0") else "c1"])
        assert read == plan.tensors["sum"]
    for index, name in enumerate(("pool", "c1")):
        read = plan.edges.get(f"concat#{index}", plan.tensors[name])
        assert read == plan.tensors["cat"]
    assert not make_plan(net, "onnx").edges


def test_fused_units_have_no_tensor_inside(net: Model) -> None:
    assert "c0" not in make_plan(net, "onnx").tensors
    assert "c0" in make_plan(net, "esp32p4").tensors


def test_outputs_leave_as_the_target_says(net: Model) -> None:
    assert make_plan(net, "esp32p4").tensors["y"].dtype == "int8"
    accumulator = make_plan(net, "bayes-e").tensors["y"]
    assert accumulator.dtype == "int32" and accumulator.axis == 1
    assert "y" not in make_plan(net, "onnx").tensors


def test_int16_pin_on_a_uniform_chip_widens_the_inputs_exactly(net: Model) -> None:
    plan = make_plan(net, "esp32p4", Pins({"conv1": "int16"}))
    assert plan.tensors["c1"].dtype == "int16" and plan.tensors["w1"].dtype == "int16"
    edge = plan.edges["conv1#0"]
    assert edge.dtype == "int16" and edge.scale == plan.tensors["a0"].scale / 256  # type: ignore[operator]
    assert plan.edges["concat#1"].dtype == "int8"


def test_float_pin(net: Model) -> None:
    plan = make_plan(net, "onnx", Pins({"conv1": "float32"}))
    assert plan.nodes["conv1"].type == "float32" and "w1" not in plan.tensors
    with pytest.raises(UserError, match="float"):
        make_plan(net, "esp32p4", Pins({"conv1": "float32"}))


def test_tensor_pin_holds_for_all_that_share(net: Model) -> None:
    plan = make_plan(net, "esp32p4", Pins(tensors={"sum": TensorPin("int8", 0.5)}))
    assert plan.tensors["sum"].scale == plan.tensors["pool"].scale == 0.5


@pytest.mark.parametrize(
    ("pins", "words"),
    [
        (Pins({"conv9": "int16"}), "did you mean conv"),
        (Pins({"conv0": "int4"}), "int4"),
        (Pins(tensors={"nowhere": TensorPin("int8")}), "no tensor"),
    ],
)
def test_bad_pins(net: Model, pins: Pins, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_plan(net, "onnx", pins)


def test_unknown_operator_for_a_chip_without_float(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Erf", ["c"], ["y"], name="erf"),
    ]
    loaded = load(save(model(nodes, [weights(rng, "w", 4, 3, 1, 1)]), tmp_path / "m.onnx"))
    with pytest.raises(UserError, match="cannot run Erf erf"):
        draft(loaded.ir.graph, load_target("esp32p4"))
    assert draft(loaded.ir.graph, load_target("onnx")).placement["erf"].type == "float32"


def test_plan_file_round_trip(net: Model, tmp_path: Path) -> None:
    plan = make_plan(net, "esp32p4")
    path = tmp_path / "plan.json"
    path.write_text(plan_to_json(plan))
    assert read_plan(path) == plan
    assert plan_to_json(read_plan(path)) == path.read_text()
    again = make_plan(net, "esp32p4", read_pins(path))
    assert again.tensors == plan.tensors and again.edges == plan.edges


def test_edited_plan(net: Model, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    document = json.loads(plan_to_json(make_plan(net, "bayes-e")))
    document["nodes"]["conv1"]["type"] = "int16"
    document["tensors"]["c1"]["dtype"] = "int16"
    document["tensors"]["a0"].update(scale=0.125, pinned=True)
    path.write_text(json.dumps(document))
    plan = make_plan(net, "bayes-e", read_pins(path))
    assert plan.tensors["c1"].dtype == "int16"
    assert plan.tensors["a0"].scale == 0.125


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(version=9), "version"),
        (lambda d: d.update(extra={}), "unknown section"),
        (lambda d: d["nodes"]["conv0"].update(type="int3"), "conv0"),
        (lambda d: d["tensors"]["x"].update(dtype="int3"), "tensor x"),
        (lambda d: d["tensors"]["x"].update(scale=-1.0), "above zero"),
        (lambda d: d["tensors"]["x"].pop("scale"), "scale"),
    ],
)
def test_bad_plan_files(net: Model, tmp_path: Path, change, words: str) -> None:  # type: ignore[no-untyped-def]
    document = json.loads(plan_to_json(make_plan(net, "onnx")))
    change(document)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=words):
        read_pins(path)
    path.write_text("{broken")
    with pytest.raises(UserError, match="JSON"):
        read_pins(path)
