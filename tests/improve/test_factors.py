"""Output factors: exact in float, on the chip free, read back with a scale a channel."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from builders import model as build
from builders import save, weights
from narrowcast.calibrate import collect
from narrowcast.chips import load_target
from narrowcast.engine.integer import IntegerRunner, dequantized, lower_integer
from narrowcast.engine.network import QuantizedNetwork
from narrowcast.engine.qdq import factored, undo_factors, with_factors
from narrowcast.graph import Model, Runner, load
from narrowcast.improve.factors import best_steps, output_factors, scale_outputs
from narrowcast.plan import Encoding, Plan, draft, finish
from narrowcast.tasks import HeadSpec, Task, meaning_of


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Two convolutions; the channels of the output differ in range by a factor of 50."""
    rng = np.random.default_rng(0)
    last = onnx.numpy_helper.to_array(weights(rng, "w1", 6, 8, 1, 1)) * np.geomspace(1, 0.02, 6).reshape(-1, 1, 1, 1)
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], name="conv0", pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Relu", ["c0"], ["r0"], name="relu0"),
        onnx.helper.make_node("Conv", ["r0", "w1", "b1"], ["y"], name="conv1"),
    ]
    constants = [
        weights(rng, "w0", 8, 3, 3, 3), weights(rng, "b0", 8),
        onnx.numpy_helper.from_array(last.astype(np.float32), "w1"),
        onnx.numpy_helper.from_array(np.zeros(6, np.float32), "b1"),
    ]  # fmt: skip
    return load(save(build(nodes, constants), tmp_path_factory.mktemp("net") / "m.onnx"))


def inputs(count: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.normal(0, 1, (1, 3, 16, 16)).astype(np.float32) for _ in range(count)]


def with_them(net: Model) -> tuple[QuantizedNetwork, QuantizedNetwork]:
    drafted = draft(net.ir.graph, load_target("esp32p4"))
    statistics = collect(net.to_proto(), drafted.wanted_statistics(), inputs())

    def planner(state: QuantizedNetwork) -> tuple[Plan, list[str]]:
        return finish(drafted.on(state.model.graph), statistics, "mse", chosen=state.chosen)

    before = QuantizedNetwork(net.ir, Plan(""), drafted.target).planned(planner)
    runner = Runner(net.to_proto())
    return before, output_factors(before, drafted, Task(), [runner.run(tensor) for tensor in inputs()], planner)


def test_float_outputs_are_the_same(net: Model) -> None:
    factors = {"y": np.geomspace(0.3, 20, 6)}
    scaled = Runner(onnx.load_from_string(_proto(scale_outputs(net.ir, factors))))
    plain = Runner(net.to_proto())
    for tensor in inputs():
        np.testing.assert_allclose(
            scaled.run(tensor)["y"] / factors["y"].reshape(1, -1, 1, 1), plain.run(tensor)["y"], rtol=1e-4, atol=1e-6
        )
    undone = Runner(undo_factors(onnx.load_from_string(_proto(scale_outputs(net.ir, factors))), factors))
    np.testing.assert_allclose(undone.run(inputs()[0])["y"], plain.run(inputs()[0])["y"], rtol=1e-4, atol=1e-6)


def _proto(model) -> bytes:  # type: ignore[no-untyped-def]
    import onnx_ir as ir

    return bytes(ir.to_proto(model).SerializeToString())


def test_every_channel_gets_its_own_range(net: Model) -> None:
    before, after = with_them(net)
    assert after.changed and set(after.factors) == {"y"}
    plain = Runner(net.to_proto())
    noise = []
    for state in (before, after):
        runner, total = Runner(state.qdq()[0], level="basic"), np.zeros(6)
        for tensor in inputs():
            expected = plain.run(tensor)["y"].astype(np.float64)
            total += np.square(runner.run(tensor)["y"] - expected).sum(axis=(0, 2, 3)) / np.square(expected).sum(
                (0, 2, 3)
            )
        noise.append(total)
    assert noise[1][-1] < noise[0][-1] / 4  # the small channel had a handful of integers
    assert np.all(after.plan.tensors["y"] == before.plan.tensors["y"])


def test_integers_mean_what_the_qdq_graph_gives(net: Model) -> None:
    _, after = with_them(net)
    graph = with_factors(lower_integer(after.model, after.plan, load_target("esp32p4")), after.factors)
    encoding = graph.outputs["y"]
    assert encoding is not None and encoding.axis == 1
    assert encoding == factored(after.plan.tensors["y"], after.factors["y"])
    real = Runner(dequantized(graph)).run(inputs()[0])["y"]
    integers = IntegerRunner(graph).run(inputs()[0])["y"]
    assert integers.dtype == np.int8
    np.testing.assert_allclose(encoding.dequantize(integers), real, rtol=1e-6)
    qdq = Runner(after.qdq()[0], level="basic").run(inputs()[0])["y"]
    assert (np.abs(qdq - real) / encoding.broadcast(4)).max() < 1.5


def test_best_steps_against_a_fine_search() -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_t(3, (4, 3000))
    importance = rng.random((4, 3000))
    encoding = Encoding("int8", 1.0)

    def loss(row: int, step: float) -> float:
        total = 0.0
        for factor, share in ((1.0, 1.0), (1.3, 0.25 / 1.3**2)):
            x = values[row] * factor
            total += share * float(
                (importance[row] * np.square(np.clip(np.rint(x / step), -128, 127) * step - x)).sum()
            )
        return total

    for row, step in enumerate(best_steps(values, importance, encoding)):
        fine = min(loss(row, float(s)) for s in np.geomspace(0.1, 1.3, 200) * np.abs(values[row]).max() / 127)
        assert loss(row, float(step)) <= 1.15 * fine


def test_box_weights_are_the_squared_slope_of_the_distance() -> None:
    head = HeadSpec("detect", (8,), 1, reg_max=4)
    rng = np.random.default_rng(3)
    box = rng.normal(0, 2, (1, 16, 2, 2)).astype(np.float32)
    outputs = {"box_s8": box, "cls_s8": np.full((1, 1, 2, 2), 9.0, np.float32)}
    values, importance = meaning_of("detect", head).relevant("box_s8", outputs)

    def distance(logits: np.ndarray) -> float:
        shares = np.exp(logits - logits.max())
        return float((shares * np.arange(4)).sum() / shares.sum())

    logits = values[4:8, 1].astype(np.float64)
    for place in range(4):
        moved = logits.copy()
        moved[place] += 1e-5
        slope = (distance(moved) - distance(logits)) / 1e-5
        assert importance[4 + place, 1] == pytest.approx(slope**2, rel=0.02, abs=1e-4)


def test_cells_that_decode_never_keeps_do_not_count() -> None:
    head = HeadSpec("pose", (8,), 1, keypoint_shape=(2, 3))
    logits = np.full((1, 1, 2, 2), -12.0, np.float32)
    logits[0, 0, 1, 0] = 2.0
    rng = np.random.default_rng(3)
    outputs = {"box_s8": rng.normal(0, 1, (1, 64, 2, 2)), "cls_s8": logits, "kpt_s8": rng.normal(0, 1, (1, 6, 2, 2))}
    values, _ = meaning_of("pose", head).relevant("kpt_s8", outputs)
    np.testing.assert_array_equal(values[:, 0], outputs["kpt_s8"][0, :, 1, 0])
    assert values.shape == (6, 1)


def test_steps_are_as_large_as_on_the_other_side_and_nearly_as_at_other_strides() -> None:
    head = HeadSpec("pose", (8, 16), 1, 16, (17, 3), 0)
    rng = np.random.default_rng(0)
    sizes = {"kpt_s8": 51, "kpt_s16": 51, "box_s8": 64, "cls_s8": 1}
    steps = {name: rng.uniform(0.1, 1, size) for name, size in sizes.items()}
    found = meaning_of("pose", head).steady(steps)
    assert found["cls_s8"] is steps["cls_s8"] and all(np.all(found[name] >= steps[name]) for name in steps)
    first, second = (found[name].reshape(17, 3) for name in ("kpt_s8", "kpt_s16"))
    np.testing.assert_array_equal(first[9], first[10])  # wrists
    assert np.all(first >= 0.8 * second) and np.all(second >= 0.8 * first)
    left, top, right, _ = found["box_s8"].reshape(4, 16)
    np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(top, steps["box_s8"][16:32])
    assert Task().steady(steps) == steps
