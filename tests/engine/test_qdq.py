"""The QDQ graph against a slow numpy walk that quantizes every planned tensor by the design's rule 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from builders import model, save, silu_net, weights
from narrowcast.base.errors import UserError
from narrowcast.bundle import quantize
from narrowcast.calibrate import collect, images
from narrowcast.chips import load_target, target_names
from narrowcast.engine import lower_qdq
from narrowcast.graph import Model, Runner, load
from narrowcast.plan import Pins, Plan, draft, edge_key, finish


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(save(silu_net(), tmp_path_factory.mktemp("net") / "m.onnx"))


def planned(net: Model, target: str, pins: Pins | None = None) -> Plan:
    drafted = draft(net.ir.graph, load_target(target), pins)
    rng = np.random.default_rng(0)
    inputs = [rng.normal(0, 1, (1, 3, 16, 16)).astype(np.float32) for _ in range(3)]
    return finish(drafted, collect(net.to_proto(), drafted.wanted_statistics(), inputs), "mse")[0]


def convolve(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    pad = w.shape[2] // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    size = x.shape[2] - 2 * pad
    out = np.zeros((1, len(w), size, size))
    for dy in range(w.shape[2]):
        for dx in range(w.shape[3]):
            out += np.einsum("oi,nihw->nohw", w[:, :, dy, dx], x[:, :, dy : dy + size, dx : dx + size])
    return out + b.reshape(1, -1, 1, 1)


def pool(x: np.ndarray) -> np.ndarray:
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    return np.max([x[:, :, dy : dy + 16, dx : dx + 16] for dy in range(3) for dx in range(3)], axis=0)


def slow(net: Model, plan: Plan, x: np.ndarray) -> dict[str, np.ndarray]:
    values = {name: v.const_value.numpy().astype(np.float64) for name, v in net.ir.graph.initializers.items()}

    def stored(name: str, value: np.ndarray) -> None:
        encoding = plan.tensors.get(name)
        keep = encoding is None or (encoding.dtype == "int32" and name == "y")
        values[name] = value if keep else encoding.dequantize(encoding.quantize(value)).astype(np.float64)  # type: ignore[union-attr]

    for name in list(values):
        stored(name, values[name])
    stored("x", x)
    for node in net.ir.graph:
        inputs = []
        for index, value in enumerate(node.inputs):
            read = values[value.name]
            edge = plan.edges.get(edge_key(node.name, index))
            inputs.append(read if edge is None else edge.dequantize(edge.quantize(read)).astype(np.float64))
        function = {
            "Conv": convolve,
            "Silu": lambda a: a / (1 + np.exp(-a)),
            "Add": np.add,
            "MaxPool": pool,
            "Concat": lambda *a: np.concatenate(a, axis=1),
        }[node.op_type]
        stored(node.outputs[0].name, function(*inputs))
    return values


@pytest.mark.parametrize("target", target_names())
@pytest.mark.parametrize("pins", [None, Pins({"conv1": "int16"})], ids=["int8", "one int16 node"])
def test_against_the_slow_walk(net: Model, target: str, pins: Pins | None) -> None:
    if target == "bernoulli2" and pins is not None:
        return
    plan = planned(net, target, pins)
    proto, _ = lower_qdq(net.ir, plan)
    x = np.random.default_rng(9).normal(0, 1, (1, 3, 16, 16)).astype(np.float32)
    actual = Runner(proto, level="basic").run(x)["y"]
    expected = slow(net, plan, x)["y"]
    step = np.max(plan.tensors["y"].scales) if "y" in plan.tensors and plan.tensors["y"].dtype != "int32" else 0
    # float32 and float64 sums may fall on different sides of a rounding tie, which moves an output by a few steps
    assert np.mean(np.abs(actual - expected) > 1e-3 + step * 1.01) < 0.01
    assert np.abs(actual - expected).max() < 0.2 + 2 * step


@pytest.mark.parametrize("target", target_names())
def test_the_model_is_standard(net: Model, target: str) -> None:
    proto, contrib = lower_qdq(net.ir, planned(net, target))
    onnx.checker.check_model(proto, full_check=True)
    assert not contrib and {entry.domain for entry in proto.opset_import} <= {"", "ai.onnx"}
    names = {i.name: i for i in proto.graph.initializer}
    assert names["w0_quantized"].data_type == onnx.TensorProto.INT8
    assert names["b0_quantized"].data_type == onnx.TensorProto.INT32
    assert [o.name for o in proto.graph.output] == ["y"] and proto.graph.input[0].name == "x"


def test_16_bit_needs_the_contrib_domain_below_opset_21(net: Model, tmp_path: Path) -> None:
    plan = planned(net, "onnx", Pins({"conv1": "int16"}))
    proto, contrib = lower_qdq(net.ir, plan)
    assert contrib and "com.microsoft" in {entry.domain for entry in proto.opset_import}
    newer = load(save(silu_net(21), tmp_path / "n.onnx"))
    proto, contrib = lower_qdq(newer.ir, planned(newer, "onnx", Pins({"conv1": "int16"})))
    assert not contrib
    onnx.checker.check_model(proto, full_check=True)


def test_lowering_leaves_the_graph_alone_and_repeats_itself(net: Model) -> None:
    before = net.to_proto().SerializeToString(deterministic=True)
    plan = planned(net, "esp32p4")
    first, second = (lower_qdq(net.ir, plan)[0].SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert net.to_proto().SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    "names",
    [
        ("c", "c_quantized", "y"),
        ("c_dequantized", "c", "y"),
        ("y", "c", "y_quantized"),
        ("x_quantized", "a", "y"),
        ("w_quantized", "a", "y"),
        ("a", "y_unquantized", "y"),
    ],
)
def test_the_users_names_are_not_those_that_are_derived(names: tuple[str, str, str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first, second, last = names
    nodes = [
        helper.make_node("Conv", ["x", "w"], [first], name=second, pads=[1] * 4),
        helper.make_node("Relu", [first], [second], name=f"{first}_quantized"),
        helper.make_node("Conv", [second, "v"], [last], name=f"{last}_dequantized"),
    ]
    proto = model(nodes, [weights(rng, "w", 4, 3, 3, 3), weights(rng, "v", 2, 4, 1, 1)], outputs=(last,))
    loaded = load(save(proto, tmp_path / "m.onnx"), keep_head=True)
    np.save(tmp_path / "c.npy", rng.random((3, 3, 16, 16), np.float32))
    for target in ("onnx", "esp32p4"):
        bundle = quantize(loaded, images(tmp_path / "c.npy", loaded.preprocess), target, out=tmp_path / target)
        assert bundle.manifest.comparison[0]["sqnr_db"] > 25


def test_ends_of_derived_names_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y_quantized"])]
    with pytest.raises(UserError, match="y_quantized"):
        load(save(model(nodes, outputs=("y", "y_quantized")), tmp_path / "m.onnx"))
