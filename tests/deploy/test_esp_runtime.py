"""Nets with operators that ESP-DL reads in its own way: what its kernels make of our file is what we compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from device import LIMITS, Device
from nets import Net, planned, round_trip
from onnx import helper

from builders import constant, model, save, weights
from narrowcast.base.errors import UserError
from narrowcast.chips import check_rows, load_target, place
from narrowcast.chips.esp.kit import check_runtime
from narrowcast.chips.esp.model import build_espdl
from narrowcast.engine.integer import IntegerRunner, lower_integer
from narrowcast.graph import load
from narrowcast.plan import draft


def one(
    op_type: str, constants: dict[str, np.ndarray] | None = None, channels: int = 16, size: int = 8, **attributes: Any
) -> onnx.ModelProto:
    """A convolution, one node ``node`` and another convolution."""
    rng = np.random.default_rng(1)
    opset = attributes.pop("opset", 17)
    operands = ["" if key.startswith("_") else key for key in constants or {}]
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c"], name="first"),
        helper.make_node(op_type, ["c", *operands], ["d"], name="node", **attributes),
    ]
    whole = [weights(rng, "w0", channels, 3, 1, 1), weights(rng, "b0", channels)]
    whole += [constant(key, array) for key, array in (constants or {}).items() if not key.startswith("_")]
    probe = model(nodes, whole, shape=(1, 3, size, size), outputs=("d",), opset=opset)
    shape = [d.dim_value for d in probe.graph.output[0].type.tensor_type.shape.dim]
    nodes.append(helper.make_node("Conv", ["d", "w1"], ["y"], name="last"))
    return model(nodes, [*whole, weights(rng, "w1", 5, shape[1], 1, 1)], shape=(1, 3, size, size), opset=opset)


def scales(height: float, width: float) -> dict[str, np.ndarray]:
    return {"_roi": np.zeros(0), "scales": np.asarray([1, 1, height, width], np.float32)}


def check_device(net: Net) -> Device:
    """Every tensor that our engine computes is in the file and comes out of the kernels."""
    round_trip(net)
    device = Device(build_espdl(net.model, net.plan, net.target), net.target.requantize.rounding == "half-even")
    ours = IntegerRunner(lower_integer(net.model, net.plan, net.target), 1, all_tensors=True).integers(net.image)
    found = device.run({"x": ours["x"].transpose(0, 2, 3, 1)})
    common = [name for name in ours if name in found and "#" not in name]
    assert {str(value.name) for value in net.model.graph.outputs} <= set(common)
    for name in common:
        wanted = ours[name].transpose(0, 2, 3, 1) if ours[name].ndim == 4 else ours[name]
        np.testing.assert_array_equal(found[name], wanted, err_msg=name)
    return device


NETS: dict[str, onnx.ModelProto] = {
    "MaxPool ceil": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "MaxPool ceil, pads": one("MaxPool", size=9, kernel_shape=[3, 3], strides=[3, 3], pads=[1, 0, 1, 0], ceil_mode=1),
    "AveragePool pads": one("AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
    "AveragePool": one("AveragePool", size=9, kernel_shape=[2, 2], strides=[2, 2]),
    "AveragePool ceil": one("AveragePool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "GlobalMaxPool": one("GlobalMaxPool"),
    "DCR": one("DepthToSpace", channels=24, size=4, blocksize=2),
    "DCR square": one("DepthToSpace", channels=8, size=4, blocksize=2),
    "CRD": one("DepthToSpace", channels=24, size=4, blocksize=2, mode="CRD"),
    "SpaceToDepth": one("SpaceToDepth", channels=3, blocksize=2),
    "nearest 1.5": one(
        "Resize", scales(1.5, 2), mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    ),
    "nearest half pixel 2": one("Resize", scales(2, 2), mode="nearest"),
    "linear": one("Resize", scales(2, 3), mode="linear"),
    "linear sizes": one(
        "Resize",
        {"_roi": np.zeros(0), "_scales": np.zeros(0), "sizes": np.asarray([1, 16, 13, 5], np.int64)},
        mode="linear",
    ),
    "linear corners": one("Resize", scales(2, 1.5), mode="linear", coordinate_transformation_mode="align_corners"),
    "Pow": one("Pow", {"two": np.asarray(2, np.float32)}),
}


ROUNDED = ("AveragePool pads", "linear", "linear sizes", "Pow")


@pytest.mark.parametrize(
    ("name", "target"), [*((name, "esp32p4") for name in NETS), *((name, "esp32s3") for name in ROUNDED)]
)
def test_the_kernels_compute_what_we_compute(name: str, target: str, tmp_path: Path) -> None:
    check_device(planned(NETS[name], tmp_path, target))


@pytest.mark.parametrize("target", ["esp32p4", "esp32s3"])
@pytest.mark.parametrize("op_type", ["Relu", "Clip", "Pow", "Sigmoid"])
def test_functions_of_16_bits(op_type: str, target: str, tmp_path: Path) -> None:
    bounds = {"low": np.asarray(-0.3, np.float32), "high": np.asarray(0.4, np.float32)}
    operands = {"Clip": bounds, "Pow": {"two": np.asarray(2, np.float32)}}.get(op_type, {})
    net = one(op_type, operands)
    net.graph.node.append(helper.make_node("Conv", ["c", "w1"], ["z"], name="other"))  # Relu stays a node of its own
    net.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1, 5, 8, 8]))
    device = check_device(planned(net, tmp_path, target, ("first", "node", "last", "other")))
    kinds = {node.name: node.op_type for node in device.file.nodes}
    assert kinds["node"] == (op_type if op_type in ("Relu", "Clip") else "LUT")


def product(second: np.ndarray | None, channels: int = 12) -> onnx.ModelProto:
    """The product of two convolutions, or of one and a constant."""
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["b"], name="first"),
        helper.make_node("Relu", ["b"], ["c"], name="relu"),
        helper.make_node("Conv", ["x", "w1"], ["e"], name="second"),
        helper.make_node("Mul", ["c", "e" if second is None else "k"], ["y"], name="node"),
        helper.make_node("Add", ["e", "e"], ["z"], name="rest"),
    ]
    constants = [weights(rng, name, channels, 3, 1, 1) for name in ("w0", "w1")]
    constants += [] if second is None else [constant("k", second.astype(np.float32))]
    return model(nodes, constants, shape=(1, 3, 8, 8), outputs=("y", "z"))


@pytest.mark.parametrize("target", ["esp32p4", "esp32s3"])
@pytest.mark.parametrize("int16", [(), ("*",)])
@pytest.mark.parametrize("second", [None, np.linspace(0.1, 1, 12).reshape(12, 1, 1), np.asarray(0.7)])
def test_products(second: np.ndarray | None, int16: tuple[str, ...], target: str, tmp_path: Path) -> None:
    net = planned(product(second), tmp_path, target, int16)
    check_device(net)
    fine = replace(net.plan.tensors["y"], scale=float(net.plan.tensors["y"].scale) / 2**18)  # mostly saturated
    device = check_device(replace(net, plan=replace(net.plan, tensors={**net.plan.tensors, "y": fine})))
    assert "y__product" in device.values


def test_short_rows_of_16_bits_are_refused(tmp_path: Path) -> None:
    for channels, types in ((12, ("int8", "int16")), (3, ("int8",))):
        proto = product(np.linspace(0.1, 1, channels).reshape(channels, 1, 1), channels)
        graph = load(save(proto, tmp_path / "m.onnx"), keep_head=True).ir.graph
        verdict = place(graph, load_target("esp32p4"))["node"]
        assert verdict.types == types
    assert "rows of 3 numbers" in verdict.reason and "int8" in verdict.remedy


@pytest.mark.parametrize("target", ["esp32p4", "esp32s3"])
@pytest.mark.parametrize("int16", [(), ("*",)])
def test_a_large_constant_and_one_of_two_readers(int16: tuple[str, ...], target: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["b"], name="first"),
        helper.make_node("Relu", ["b"], ["c"], name="relu"),
        helper.make_node("Sub", ["c", "k"], ["d"], name="difference"),  # about 0, of numbers about 100
        helper.make_node("Mul", ["c", "k"], ["e"], name="product"),
        helper.make_node("Concat", ["d", "e"], ["f"], name="cat", axis=1),
        helper.make_node("Conv", ["d", "w1"], ["y"], name="last"),
        helper.make_node("Conv", ["f", "w2"], ["z"], name="other"),
    ]
    constants = [
        weights(rng, "w0", 12, 3, 1, 1), constant("b0", np.full(12, 100, np.float32)), weights(rng, "w1", 4, 12, 1, 1),
        weights(rng, "w2", 4, 24, 1, 1), constant("k", np.asarray(100, np.float32)),
    ]  # fmt: skip
    net = planned(model(nodes, constants, shape=(1, 3, 8, 8), outputs=("y", "z")), tmp_path, target, int16)
    device = check_device(net)
    scale = 2.0 ** device.exponent("d")
    assert 100 / scale <= LIMITS[device.file.values["d"].dtype][1] + 1
    assert abs(device.values["d"].mean() * scale) < 2  # not cut off


def grouped(group: int, channels: int, outputs: int, transposed: bool = False) -> onnx.ModelProto:
    rng = np.random.default_rng(2)
    shape = (channels, outputs // group, 3, 3) if transposed else (outputs, channels // group, 3, 3)
    kind = "ConvTranspose" if transposed else "Conv"
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c"], name="first"),
        helper.make_node(kind, ["c", "w1", "b1"], ["d"], name="node", group=group, strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["d"], ["y"], name="relu"),
    ]
    constants = [weights(rng, "w0", channels, 3, 1, 1), weights(rng, "w1", *shape), weights(rng, "b1", outputs)]
    return model(nodes, constants, shape=(1, 3, 8, 8))


@pytest.mark.parametrize(("target", "int16"), [("esp32p4", ()), ("esp32s3", ("first", "node", "relu"))])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("group", "channels", "outputs"), [(8, 8, 16), (2, 8, 6), (3, 6, 3), (20, 20, 20)])
def test_any_number_of_groups(
    group: int, channels: int, outputs: int, transposed: bool, int16: tuple[str, ...], target: str, tmp_path: Path
) -> None:
    check_device(planned(grouped(group, channels, outputs, transposed), tmp_path, target, int16))


def test_a_power_needs_a_runtime_with_tables_of_any_function(tmp_path: Path) -> None:
    net = planned(NETS["Pow"], tmp_path, "esp32p4")
    assert check_runtime(net.model, net.target, "3.3") == []
    old = check_runtime(net.model, net.target, "3.2")
    assert ("node", "error") in {(row.node, row.severity) for row in old}


REFUSED: dict[str, tuple[onnx.ModelProto, str]] = {
    "AveragePool": (one("AveragePool", kernel_shape=[3, 3], pads=[1] * 4), "averages 4 of 9 numbers"),
    "AveragePool ceil": (one("AveragePool", size=9, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), "1 of 4"),
    "nearest": (one("Resize", scales(1.5, 2), mode="nearest", nearest_mode="ceil"), "half_pixel and ceil"),
    "linear": (one("Resize", scales(2, 2), mode="linear", coordinate_transformation_mode="asymmetric"), "asymmetric"),
    "cubic": (one("Resize", scales(2, 2), mode="cubic"), "mode cubic"),
    "Pow": (one("Pow", {"many": np.full((16, 1, 1), 2, np.float32)}), "16 exponents"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_kernels_get_wrong_is_refused(name: str, tmp_path: Path) -> None:
    proto, words = REFUSED[name]
    graph, chip = load(save(proto, tmp_path / "net.onnx"), keep_head=True).ir.graph, load_target("esp32p4")
    row = next(row for row in check_rows(graph, chip) if not row.supported)
    assert row.node == "node" and words in row.reason and row.remedy
    with pytest.raises(UserError) as error:
        draft(graph, chip)
    assert row.reason in error.value.what and error.value.remedy == row.remedy
