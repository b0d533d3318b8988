"""The plan inside the graph for the vendor's compiler: ranges, weights, biases, and nothing where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from rdk_bundles import sample_images, small_bundle

from builders import constant, model, silu_net, weights
from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle, open_model
from narrowcast.bundle.kits import deploy
from narrowcast.chips.rdk.delivery import pixel_terms, without_markers
from narrowcast.chips.rdk.export import export, load_settings, verify
from narrowcast.engine.integer.fixed import tool_scale
from narrowcast.graph.run import Runner
from narrowcast.ops.net import constant_at, named
from narrowcast.plan import Encoding, Pins
from narrowcast.plan.drafting import operand_encoding
from narrowcast.plan.types import edge_key
from narrowcast.vision import Preprocess

SPEC = Preprocess(16, 16)
Told = tuple[str, NDArray[np.float32], NDArray[np.float32]]


def constants(proto: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def ranges(proto: onnx.ModelProto) -> dict[str, Told]:
    """Type, scales and thresholds by the tensor that carries them; every marker is what the tool was seen to take."""
    found: dict[str, Told] = {}
    values = constants(proto)
    for node in proto.graph.node:
        told = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        if node.op_type == "HzCalibration":
            assert node.domain == "horizon" and told["constant"] == 1 and told["switch"] == b"ON"
            assert told["quant_attrs"] == (139537 if "group" in told else 69905)
            scales, thresholds = (np.asarray(told[key], np.float32) for key in ("scales", "thresholds"))
            found[node.input[0]] = told["qtype"].decode(), scales, thresholds
        elif node.op_type == "QuantizeLinear":
            scale, zero = values[node.input[1]], values[node.input[2]]
            assert scale.shape == zero.shape == () and zero.dtype == np.int8 and not zero
            found[node.input[0]] = "int8", scale.reshape(1), scale.reshape(1) * np.float32(127)
    return found


def check_ranges(bundle: Bundle, proto: onnx.ModelProto, renamed: Mapping[str, str]) -> None:
    """Each encoding of the plan stands behind its tensor, and no other does."""
    found, plan = ranges(proto), bundle.plan
    wanted = {renamed.get(name, name): code for name, code in plan.tensors.items() if code.dtype != "int32"}
    assert found.keys() == wanted.keys()
    for name, code in wanted.items():
        kind, scales, thresholds = found[name]
        assert kind == code.dtype, name
        np.testing.assert_array_equal(scales, np.atleast_1d(code.scales).astype(np.float32), err_msg=name)
        np.testing.assert_array_equal(thresholds / np.float32(code.qmax), np.atleast_1d(tool_scale(code)), err_msg=name)


def check_integers(bundle: Bundle, proto: onnx.ModelProto) -> None:
    """The tool rounds what is in the graph: it comes to the plan's integers."""
    plan, values = bundle.plan, constants(proto)
    for node in bundle.prepared.ir.graph:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
            continue
        weight = operand_encoding(node, 1, plan.tensors, plan.edges)
        name = str(node.inputs[1].name)
        given, real = values[name], np.asarray(constant_at(node, 1))
        if node.op_type == "Gemm" and not node.attributes.get_int("transB", 0):
            real, weight = real.T, replace(weight, axis=0)
        integers = weight.quantize(real)
        steps = replace(weight, scale=tuple(tool_scale(weight).tolist()))
        np.testing.assert_array_equal(steps.quantize(given.reshape(real.shape)), integers, err_msg=name)
        if constant_at(node, 2) is not None:
            np.testing.assert_array_equal(values[str(node.inputs[2].name)], constant_at(node, 2), err_msg=name)


@pytest.mark.parametrize("wide", [(), ("conv0", "silu0"), ("conv1", "add", "pool", "concat")])
def test_every_encoding_of_the_plan(tmp_path: Path, wide: tuple[str, ...]) -> None:
    bundle = small_bundle(silu_net(), tmp_path, SPEC, Pins(dict.fromkeys(wide, "int16")))
    exported = export(bundle)
    assert not exported.undelivered
    check_ranges(bundle, exported.proto, {"y": "y_raw"})
    check_integers(bundle, exported.proto)
    assert verify(exported, [], 1) < 1e-6
    nodes = {node.name: node for node in exported.proto.graph.node}
    assert nodes["silu0"].input[1] in nodes["silu0_Sigmoid"].output  # one table: nothing between
    domains = {entry.domain: entry.version for entry in exported.proto.opset_import}
    assert domains == {"": 11, "horizon": 1}
    onnx.save(exported.proto, tmp_path / "model.onnx")
    seen = open_model(tmp_path / "model.onnx")  # the float graph inside
    x = np.random.default_rng(1).random((1, 3, 16, 16)).astype(np.float32)
    (given,) = Runner(seen.to_proto(), 1).run(x).values()
    np.testing.assert_allclose(
        given.reshape(-1), Runner(without_markers(exported.proto), 1).run(x)["y"].reshape(-1), 1e-5, 1e-5
    )


def ends(kind: str) -> onnx.ModelProto:
    """A net around what has a form of its own for the tool."""
    rng, make = np.random.default_rng(3), helper.make_node
    nodes = [make("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1] * 4)]
    tensors = [weights(rng, "w", 8, 3, 3, 3), weights(rng, "b", 8)]
    if kind == "linear":
        tensors += [weights(rng, "w1", 8, 6), weights(rng, "b1", 6), weights(rng, "w2", 5, 6)]
        nodes += [make("GlobalAveragePool", ["c"], ["g"], name="gap"), make("Flatten", ["g"], ["f"], name="flat")]
        nodes += [make("Gemm", ["f", "w1", "b1"], ["h"], name="fc1"), make("Relu", ["h"], ["r"], name="relu")]
        nodes += [make("Gemm", ["r", "w2"], ["y"], name="fc2", transB=1)]
    elif kind == "grouped":
        tensors += [weights(rng, "w1", 8, 3, 2, 2), weights(rng, "w2", 4, 6, 1, 1)]
        nodes += [make("ConvTranspose", ["c", "w1"], ["t"], name="up", strides=[2, 2], group=2)]
        nodes += [make("Conv", ["t", "w2"], ["y"], name="last")]
    elif kind == "number":
        tensors += [constant("k", np.float32(0.3)), weights(rng, "w2", 4, 8, 1, 1)]
        nodes += [make("Mul", ["c", "k"], ["m"], name="mul"), make("Conv", ["m", "w2"], ["y"], name="last")]
    elif kind == "matrix":
        tensors += [weights(rng, "w2", 4, 8, 1, 1)]
        nodes += [make("MatMul", ["c", "c"], ["m"], name="matmul"), make("Softmax", ["m"], ["s"], name="softmax")]
        nodes += [make("Conv", ["s", "w2"], ["y"], name="last")]
    return model(nodes, tensors)


def test_a_fully_connected_layer_becomes_a_convolution(tmp_path: Path) -> None:
    """Only there the tool takes scales of weights; the Relu stays in one unit with it."""
    bundle = small_bundle(ends("linear"), tmp_path, SPEC)
    exported = export(bundle)
    nodes = {node.name: node for node in exported.proto.graph.node}
    assert nodes["fc1"].op_type == nodes["fc2"].op_type == "Conv"
    assert nodes["relu"].input[0] == nodes["fc1"].output[0]
    check_integers(bundle, exported.proto)
    assert verify(exported, [], 1) < 1e-6
    assert exported.outputs[0].dequantize == "y_HzDequantize"


def test_weights_with_one_scale_give_it_to_each_channel(tmp_path: Path) -> None:
    """Of a grouped ConvTranspose: from a single scale hb_mapper 1.24.3 makes integers that are -128 and 0."""
    bundle = small_bundle(ends("grouped"), tmp_path, SPEC)
    name = str(named(bundle.prepared.ir.graph)["up"].inputs[1].name)
    assert bundle.plan.tensors[name].axis is None
    kind, scales, _ = ranges(export(bundle).proto)[name]
    assert kind == "int8" and scales.tolist() == [np.float32(bundle.plan.tensors[name].scale)] * 6


def test_a_number_without_axes_gets_one(tmp_path: Path) -> None:
    """With none, hb_mapper 1.24.3 computes the node on the CPU."""
    bundle = small_bundle(ends("number"), tmp_path, SPEC)
    exported = export(bundle)
    name = str(named(bundle.prepared.ir.graph)["mul"].inputs[1].name)
    assert constants(exported.proto)[name].shape == (1,)
    assert verify(exported, [], 1) < 1e-6


def test_an_edge_in_another_encoding_is_marked_there_alone(tmp_path: Path) -> None:
    """The tool then requantizes on that edge: seen for 16 to 8, 8 to 16 and 8 to 8 bits before a MaxPool."""
    bundle = small_bundle(silu_net(), tmp_path, SPEC)
    key, code = edge_key("pool", 0), Encoding("int16", 0.25)
    bundle.__dict__["plan"] = replace(bundle.plan, edges={**bundle.plan.edges, key: code})
    exported = export(bundle)
    nodes = {node.name: node for node in exported.proto.graph.node}
    (marker,) = (node for node in nodes.values() if nodes["pool"].input[0] in node.output)
    assert marker.op_type == "HzCalibration" and marker.name.startswith(key)
    readers = [node.name for node in nodes.values() if marker.output[0] in node.input]
    assert readers == ["pool"] and ranges(exported.proto)[marker.input[0]][0] == "int16"
    assert not any(name.startswith("concat#") for name in nodes)  # it brings its operands to its own encoding
    assert verify(exported, [], 1) < 1e-6


def test_what_the_tool_does_not_take_is_said(tmp_path: Path) -> None:
    bundle = small_bundle(
        ends("matrix"), tmp_path, SPEC, Pins({"conv": "int16", "matmul": "int16", "softmax": "int16"})
    )
    told = export(bundle).undelivered
    assert "matmul: MatMul reads 8 bits, the plan has int16" in told
    assert "softmax: Softmax is computed in float on the CPU, the plan has int16" in told
    made = deploy(bundle, "rdk-x5", tmp_path / "package", images=sample_images("classify", SPEC, 2))
    assert any("does not take all of the plan" in note and "matmul" in note for note in made.notes)
    assert "- matmul: MatMul reads 8 bits" in (tmp_path / "package/README.md").read_text()


def test_weights_that_the_tool_would_make_coarser_are_said(tmp_path: Path) -> None:
    """It raises a scale of products below 2^-23: of 16-bit operands whose products leave in accumulators."""
    bundle = small_bundle(silu_net(), tmp_path, SPEC, Pins({"concat": "int16"}))
    plan = bundle.plan
    small = {name: replace(code, scale=1e-6) for name, code in plan.tensors.items() if name == "cat"}
    bundle.__dict__["plan"] = replace(plan, tensors={**plan.tensors, **small})
    assert [line.split(":")[0] for line in export(bundle).undelivered] == ["conv2"]


def test_what_cannot_be_given_is_refused(tmp_path: Path) -> None:
    bundle = small_bundle(silu_net(), tmp_path, SPEC, Pins({"silu0": "float32"}))
    with pytest.raises(UserError, match=r"silu0 \(Silu\) is float in the plan, and the board's CPU has no Silu"):
        export(bundle)
    (tmp_path / "other").mkdir()
    bundle = small_bundle(silu_net(), tmp_path / "other", SPEC)
    shifted = {**bundle.plan.tensors, "sum": replace(bundle.plan.tensors["sum"], zero_point=3)}
    bundle.__dict__["plan"] = replace(bundle.plan, tensors=shifted)
    with pytest.raises(UserError, match=r"sum is int8 with zero point 3.*--ranges vendor"):
        export(bundle)


def test_the_vendors_own_ranges_need_none_of_this(tmp_path: Path) -> None:
    bundle = small_bundle(silu_net(), tmp_path, SPEC)
    exported = export(bundle, "vendor")
    assert not ranges(exported.proto)
    for name, array in constants(exported.proto).items():
        if name in bundle.model.ir.graph.initializers:
            np.testing.assert_array_equal(array, bundle.model.ir.graph.initializers[name].const_value.numpy())


def test_ranges_that_a_kit_does_not_know(rdk_pose: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rdk-x5 knows no ranges 'mine': it has those of plan and vendor"):
        deploy(rdk_pose, "rdk-x5", tmp_path / "package", ranges="mine")  # type: ignore[arg-type]


def test_scales_as_the_tool_keeps_them() -> None:
    """Recorded: what hb_mapper 1.24.3 made of scales of yolov8n, through QuantizeLinear and HzCalibration alike."""
    given = (0.05629801751401536, 0.03351092246303882, 0.02810943165618581, 0.00382755696773529, 1 / 127)
    kept = (0.056298013776540756, 0.03351091966032982, 0.02810942940413952, 0.0038275567, 1 / 127)
    np.testing.assert_array_equal(tool_scale(Encoding("int8", given, 0, 0)), np.float32(kept))


def test_biases_that_lie_between_two_integers() -> None:
    """Recorded: (bias, scale of products, integer that hb_mapper 1.24.3 stored, without the half of rounding)."""
    recorded = ((-0.46269727, 0.00014971598284319043, -3091), (-4.696901, 0.00023479222727473825, -20004),
                (-5.6203284, 0.0002502539718989283, -22458), (-4.62345, 0.00029213345260359347, -15826))  # fmt: skip
    bias, product, stored = (np.array(row) for row in zip(*recorded, strict=True))
    np.testing.assert_array_equal(np.rint(bias.astype(np.float32) / product.astype(np.float32).astype(float)), stored)


def test_what_the_bpu_gets_wrong_is_left_on_the_cpu_by_name(tmp_path: Path) -> None:
    rng, make = np.random.default_rng(3), helper.make_node
    window = {"kernel_shape": [3, 3], "pads": [1] * 4}  # the padding does not count, and the BPU counts it
    nodes = [make("Conv", ["x", "w"], ["c"], "conv", pads=[1] * 4), make("AveragePool", ["c"], ["p"], "pool", **window),
             make("HardSigmoid", ["p"], ["h"], "gate"), make("Conv", ["h", "w2"], ["y"], "last")]  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "net", [value("x", onnx.TensorProto.FLOAT, [1, 3, 16, 16])],
        [value("y", onnx.TensorProto.FLOAT, [1, 4, 16, 16])],
        [weights(rng, "w", 8, 3, 3, 3), weights(rng, "w2", 4, 8, 1, 1)],
    )  # fmt: skip
    bundle = small_bundle(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path, SPEC)
    assert load_settings(bundle, "model.onnx").float_ == ("pool",)
    gate = next(node for node in export(bundle).proto.graph.node if node.op_type == "HardSigmoid")
    assert {entry.name: round(entry.f, 6) for entry in gate.attribute} == {"alpha": 0.2, "beta": 0.5}


def test_every_pixel_comes_to_its_integer() -> None:
    """Recorded: at 1/255 hb_mapper 1.24.3 stores bias 16383 and multiplier 16448 / 2^22, and 254 comes to 126."""
    pixels = np.arange(256)
    seen = ((pixels - 128) * 127 + 16383) * 16448 >> 22
    assert np.flatnonzero(seen != np.rint(pixels / 255 * 127)).tolist() == [254]
    mean, found = pixel_terms(0.0, 1 / 255, Encoding("int8", 1 / 127))
    assert mean == 0.0 and found != 1 / 255
    assert abs(found * 255 - 1) < 3e-6
    as_it_is = 123.675, 0.0171
    assert pixel_terms(*as_it_is, Encoding("int8", 2.64 / 127)) == as_it_is
    mean, _ = pixel_terms(127.5, 2 / 255, Encoding("int8", 1 / 127))  # 63.5 steps of bias
    assert 0 < abs(mean - 127.5) < 0.004
