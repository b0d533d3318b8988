"""Equalization: the same in float, better in integers, and only where it is exact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from builders import constant, save
from builders import model as build
from narrowcast.calibrate import collect
from narrowcast.chips import load_target
from narrowcast.engine.network import QuantizedNetwork
from narrowcast.graph import Model, Runner, load
from narrowcast.improve import Judge
from narrowcast.improve.factors import equalize, equalizing_factors, find_pairs
from narrowcast.plan import draft, finish


def uneven(folder: Path, between: Sequence[str] = ("Relu",), depthwise: bool = True) -> Model:
    """Conv, function, (depthwise) Conv, function, Conv; channels differ in range by up to 400, as in fused kernels."""
    rng = np.random.default_rng(0)
    spread = np.geomspace(0.05, 20, 8).reshape(-1, 1, 1, 1)
    middle = (8, 1, 3, 3) if depthwise else (8, 8, 3, 3)
    shapes = {"w0": (8, 3, 3, 3), "w1": middle, "w2": (4, 8, 1, 1)}
    arrays = {name: rng.normal(0, 0.3, shape) for name, shape in shapes.items()}
    arrays["w0"] *= spread
    arrays["w1"] = arrays["w1"] / (spread if depthwise else spread.reshape(1, -1, 1, 1))
    arrays.update(b0=rng.normal(0, 0.3, 8) * spread.reshape(-1), b1=rng.normal(0, 0.3, 8), b2=rng.normal(0, 0.3, 4))
    node = onnx.helper.make_node
    nodes = [node("Conv", ["x", "w0", "b0"], ["c0"], name="conv0", pads=[1, 1, 1, 1])]
    last = "c0"
    for index, op_type in enumerate(between):
        nodes.append(node(op_type, [last], [f"f{index}"], name=f"{op_type}{index}"))
        last = f"f{index}"
    group = 8 if depthwise else 1
    nodes.append(node("Conv", [last, "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1], group=group))
    nodes += [node("Relu", ["c1"], ["r1"], name="relu1"), node("Conv", ["r1", "w2", "b2"], ["y"], name="conv2")]
    constants = [constant(name, array.astype(np.float32)) for name, array in arrays.items()]
    return load(save(build(nodes, constants), folder / "m.onnx"))


def inputs(count: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.normal(0, 1, (1, 3, 16, 16)).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("depthwise", [True, False])
def test_the_same_in_float(tmp_path: Path, depthwise: bool) -> None:
    net = uneven(tmp_path, depthwise=depthwise)
    changed, names = equalize(net.ir)
    assert set(names) == {"c0", "f0", "c1", "r1"}
    one, other = Runner(net.to_proto()), Runner(ir.to_proto(changed))
    for tensor in inputs():
        np.testing.assert_allclose(other.run(tensor)["y"], one.run(tensor)["y"], rtol=1e-4, atol=1e-5)


def test_better_in_integers_with_one_scale_a_weight(tmp_path: Path) -> None:
    net = uneven(tmp_path)
    drafted = draft(net.ir.graph, load_target("esp32s3"))
    judge = Judge(net, {"y": "y"}, inputs())
    losses = []
    for model in (net.ir, equalize(net.ir)[0]):
        statistics = collect(ir.to_proto(model), drafted.wanted_statistics(), inputs())
        plan, _ = finish(drafted.on(model.graph), statistics, "mse")
        losses.append(judge.error_of(QuantizedNetwork(model, plan, drafted.target).qdq()[0]).loss)
    assert losses[1] < losses[0] / 4


def test_only_where_it_is_exact(tmp_path: Path) -> None:
    assert len(find_pairs(uneven(tmp_path, ("Relu",)).ir.graph)) == 2
    assert len(find_pairs(uneven(tmp_path, ()).ir.graph)) == 2
    for op_type in ("Sigmoid", "Tanh", "HardSwish"):
        assert len(find_pairs(uneven(tmp_path, (op_type,)).ir.graph)) == 1


def test_factors_give_both_sides_the_same_range() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(5, 3, 3, 3)), rng.normal(size=(7, 5, 1, 1)) * np.geomspace(1, 9, 5)[:, None, None]
    factors = equalizing_factors(first, second, depthwise=False)
    rows = np.abs(first / factors[:, None, None, None]).max(axis=(1, 2, 3))
    columns = np.abs(second * factors[:, None, None]).max(axis=(0, 2, 3))
    np.testing.assert_allclose(rows / columns, np.full(5, rows[0] / columns[0]), rtol=1e-9)
    dead = equalizing_factors(np.zeros((2, 1, 1, 1)), np.ones((3, 2, 1, 1)), depthwise=False)
    np.testing.assert_array_equal(dead, [1, 1])
