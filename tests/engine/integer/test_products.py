"""Conv, ConvTranspose, Gemm, MatMul: bit for bit against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import SHIFT_TARGETS, compare, encodings, graph_of, integers, plan_of, power, seeds, shift_targets, targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from narrowcast.base.errors import UserError
from narrowcast.chips import load_target
from narrowcast.engine.integer import IntegerRunner, lower_integer
from narrowcast.plan import Encoding, Plan, edge_key

quick = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
narrow = st.sampled_from(["int8", "int16"])


def weights(
    rng: np.random.Generator, shape: tuple[int, ...], axis: int | None, dtype: str, shift: bool, extreme: bool
) -> tuple[np.ndarray, Encoding]:
    """Float weights that are exactly integers of the encoding that comes with them."""
    low, high = Encoding(dtype, 1.0).qmin, Encoding(dtype, 1.0).qmax
    whole = rng.choice([low, high], shape) if extreme else rng.integers(low, high + 1, shape)
    count = 1 if axis is None else shape[axis]
    scales = 2.0 ** rng.integers(-14, 3, count) if shift else rng.uniform(1e-4, 1.0, count)
    spread = scales.reshape([-1 if a == axis else 1 for a in range(len(shape))]) if axis is not None else scales[0]
    scale: Any = tuple(float(s) for s in scales) if axis is not None else float(scales[0])
    return (whole * spread).astype(np.float64), Encoding(dtype, scale, 0, axis)


def conv_case(data: st.DataObject, target: str, dtype: str, weight_dtype: str) -> None:
    seed = data.draw(seeds)
    rng = np.random.default_rng(seed)
    transposed = data.draw(st.booleans())
    groups, each = data.draw(st.sampled_from([(1, 3), (1, 16), (4, 1), (2, 2)]))
    channels, kernel = groups * each, data.draw(st.integers(1, 4))
    outputs = groups * data.draw(st.integers(1, 3))
    stride, dilation = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    pads = [data.draw(st.integers(0, kernel - 1)) for _ in range(4)]
    height, width = (data.draw(st.integers(dilation * (kernel - 1) + 1, 9)) for _ in range(2))
    per_channel = data.draw(st.booleans()) and target != "esp32s3" and not (transposed and groups > 1)
    axis = (1 if transposed else 0) if per_channel else None
    shape = (channels, outputs // groups) if transposed else (outputs, channels // groups)
    extreme = data.draw(st.booleans())
    w, w_code = weights(rng, (*shape, kernel, kernel), axis, weight_dtype, target in SHIFT_TARGETS, extreme)
    source, wanted = data.draw(encodings(target, dtype)), data.draw(encodings(target, dtype))
    b_scale = source.scales * w_code.scales
    b_code = Encoding(
        "int32", tuple(b_scale.tolist()) if per_channel else float(b_scale), 0, 0 if per_channel else None
    )
    bias = np.broadcast_to(b_scale, outputs) * rng.integers(
        -(2 ** data.draw(st.sampled_from([8, 20, 30]))), 2**20, outputs
    )
    node = helper.make_node(
        "ConvTranspose" if transposed else "Conv", ["x", "w", "b"], ["y"], name="conv", group=groups,
        strides=[stride, stride], dilations=[dilation, dilation], pads=pads,
    )  # fmt: skip
    try:
        model = graph_of(
            [node], (1, channels, height, width), {"w": w.astype(np.float32), "b": bias.astype(np.float32)}
        )
    except Exception:  # ONNX refuses paddings that leave nothing of a transposed convolution
        return
    if min(int(d) for d in model.graph.outputs[0].shape or ()) < 1:
        return
    plan = plan_of(model, target, {"x": source, "w": w_code, "b": b_code, "y": wanted})
    compare(model, plan, target, integers((1, channels, height, width), source, seed, extreme))


@quick
@given(data=st.data(), target=targets)
def test_convolutions_int8(data: st.DataObject, target: str) -> None:
    conv_case(data, target, "int8", "int8")


@quick
@given(data=st.data(), target=targets, weight_dtype=narrow)
def test_convolutions_int16_are_split_into_digits(data: st.DataObject, target: str, weight_dtype: str) -> None:
    conv_case(data, target, "int16", weight_dtype)


@quick
@given(data=st.data(), target=targets, dtype=narrow, relu=st.booleans(), transposed=st.booleans(), seed=seeds)
def test_fully_connected_layers(
    data: st.DataObject, target: str, dtype: str, relu: bool, transposed: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    k, n = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 5))
    axis = None if target == "esp32s3" else (0 if transposed else 1)
    w, w_code = weights(rng, (n, k) if transposed else (k, n), axis, dtype, target in SHIFT_TARGETS, False)
    source, wanted = data.draw(encodings(target, dtype)), data.draw(encodings(target, dtype))
    b_scale = source.scales * w_code.scales
    b_code = Encoding(
        "int32", tuple(b_scale.tolist()) if axis is not None else float(b_scale), 0, None if axis is None else 0
    )
    bias = np.broadcast_to(b_scale, n) * rng.integers(-(2**20), 2**20, n)
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["g" if relu else "y"], name="gemm", transB=int(transposed))]
    if relu:
        nodes.append(helper.make_node("Relu", ["g"], ["y"], name="relu"))
    model = graph_of(nodes, (3, k), {"w": w.astype(np.float32), "b": bias.astype(np.float32)})
    plan = plan_of(model, target, {"x": source, "w": w_code, "b": b_code, "y": wanted})
    compare(model, plan, target, integers((3, k), source, seed))


@quick
@given(data=st.data(), target=targets, dtype=narrow, k=st.sampled_from([1, 7, 1023, 1025, 3000]), seed=seeds)
def test_matrix_products_of_two_activations(data: st.DataObject, target: str, dtype: str, k: int, seed: int) -> None:
    source, wanted = data.draw(encodings(target, dtype)), data.draw(encodings(target, dtype))
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], name="transpose", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["y"], name="matmul"),
    ]
    model = graph_of(nodes, (2, 3, k))
    plan = plan_of(model, target, {"x": source, "t": source, "y": wanted})
    graph = compare(model, plan, target, integers((2, 3, k), source, seed, extreme=k > 7))
    assert all(proof.bound <= 2**24 or proof.double for proof in graph.proofs)


@pytest.mark.parametrize("target", SHIFT_TARGETS)
def test_ties_and_saturation(target: str) -> None:
    """Every accumulator from -600 to 600 and every shift, so that all ties occur."""
    x = np.arange(-128, 128, dtype=np.int8).reshape(1, 1, 16, 16)
    for shift in (-3, 0, 1, 2, 5, 9):
        w = np.array([1.0, 2.0, -3.0, 5.0]).reshape(4, 1, 1, 1)
        node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
        model = graph_of([node], (1, 1, 16, 16), {"w": w.astype(np.float32)})
        plan = plan_of(model, target, {"x": power(0), "w": power(0), "y": power(shift)})
        compare(model, plan, target, x)


def test_bias_saturates_at_its_true_width() -> None:
    """The S3 adds 20 bits."""
    model = graph_of(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv")],
        (1, 1, 2, 2),
        {"w": np.ones((2, 1, 1, 1), np.float32), "b": np.array([1e6, -1e6], np.float32)},
    )
    tensors = {"x": power(0), "w": power(0), "b": power(0, "int32"), "y": power(14)}
    x = np.zeros((1, 1, 2, 2), np.int8)
    for target, wanted in (("esp32s3", (32, -32)), ("esp32p4", (61, -61))):
        plan = plan_of(model, target, tensors)
        graph = compare(model, plan, target, x)
        assert graph.outputs["y"] == power(14)
        y = IntegerRunner(graph, 1).run(x)["y"]
        assert (int(y[0, 0, 0, 0]), int(y[0, 1, 0, 0])) == wanted


def test_accumulators_leave_as_they_are() -> None:
    rng = np.random.default_rng(1)
    w, w_code = weights(rng, (4, 3, 1, 1), 0, "int8", False, False)
    source = Encoding("int8", 0.037)
    scale = tuple((source.scales * w_code.scales).tolist())
    model = graph_of(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")], (1, 3, 4, 4), {"w": w.astype(np.float32)}
    )
    plan = plan_of(model, "bayes-e", {"x": source, "w": w_code, "y": Encoding("int32", scale, 0, 1)})
    graph = compare(model, plan, "bayes-e", integers((1, 3, 4, 4), source, 3))
    assert graph.proto.graph.output[0].type.tensor_type.elem_type == 6  # INT32


@pytest.mark.parametrize("weight", [100.0, -100.0])
def test_accumulators_beyond_float32_leave_as_they_are(weight: float) -> None:
    """2^24 < |accumulator| needs float64, and int32 saturates."""
    model = graph_of(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv")],
        (1, 3, 2, 2),
        {"w": np.full((2, 3, 1, 1), weight, np.float32), "b": np.array([2**24 + 1, 2**31 - 1], np.float64)},
    )
    one = Encoding("int8", 1.0)
    tensors = {"x": one, "w": one, "b": Encoding("int32", 1.0), "y": Encoding("int32", 1.0)}
    x = np.array([1, 2, 3, 127] * 3, np.int8).reshape(1, 3, 2, 2)
    graph = compare(model, plan_of(model, "bayes-e", tensors), "bayes-e", x)
    y = IntegerRunner(graph, 1).run(x)["y"]
    assert int(y[0, 0, 0, 0]) == 2**24 + 1 + 3 * weight
    assert int(y[0, 1, 0, 0]) == min(2**31 - 1, 2**31 - 1 + 3 * weight)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("target", ["esp32p4", "bayes-e"])
def test_dead_channels_cost_no_float64(target: str, relu: bool) -> None:
    """Weights of almost nothing have a tiny scale, so that their bias is huge in its steps."""
    scales = (0.5, 2.0**-24, 2.0**-24, 2.0**-24)
    w = np.array([[3.0, -2.0], [2.0**-24, 0.0], [2.0**-24, 2.0**-22], [0.0, -(2.0**-24)]]).reshape(4, 2, 1, 1)
    bias = np.array([1.5, 1.3, -0.7, 5000.0])
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c" if relu else "y"], name="conv")]
    nodes += [helper.make_node("Relu", ["c"], ["y"], name="relu")] if relu else []
    model = graph_of(nodes, (1, 2, 4, 4), {"w": w, "b": bias})
    tensors = {"x": power(-2), "w": Encoding("int8", scales, 0, 0), "y": power(0)}
    tensors["b"] = Encoding("int32", tuple(s / 4 for s in scales), 0, 0)
    graph = compare(model, plan_of(model, target, tensors), target, integers((1, 2, 4, 4), power(-2), 5))
    (proof,) = graph.proofs
    assert proof.bound > 2**24 and not proof.double


def test_a_dead_layer_rounded_half_up() -> None:
    """Half a step of the output is 2^59 steps of the accumulator."""
    model = graph_of(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        (1, 1, 2, 2),
        {"w": np.full((1, 1, 1, 1), -(2.0**-60))},
    )
    plan = plan_of(model, "esp32s3", {"x": power(0), "w": power(-60), "y": power(0)})
    compare(model, plan, "esp32s3", integers((1, 1, 2, 2), power(0), 5))


@quick
@given(data=st.data(), target=shift_targets, seed=seeds)
def test_edges_are_requantized(data: st.DataObject, target: str, seed: int) -> None:
    """One tensor, read in two encodings."""
    source, other, wanted = (data.draw(encodings(target)) for _ in range(3))
    nodes = [
        helper.make_node("MaxPool", ["x"], ["p"], name="pool", kernel_shape=[1, 1]),
        helper.make_node("Concat", ["p", "x"], ["y"], name="concat", axis=1),
    ]
    model = graph_of(nodes, (1, 2, 8, 8))
    edges = {edge_key("concat", 0): wanted, edge_key("concat", 1): wanted}
    plan = plan_of(model, target, {"x": source, "p": source, "y": wanted}, edges=edges)
    compare(model, plan, target, integers((1, 2, 8, 8), source, seed))
    wide = Encoding("int16", other.scale)
    plan = plan_of(model, target, {"x": source, "p": source, "y": wide}, edges=dict.fromkeys(edges, wide))
    compare(model, plan, target, integers((1, 2, 8, 8), source, seed))


def test_proof_says_what_was_split() -> None:
    k = 1100
    w = np.full((1, k, 1, 1), 127.0, np.float32)
    model = graph_of([helper.make_node("Conv", ["x", "w"], ["y"], name="conv")], (1, k, 1, 1), {"w": w})
    plan = plan_of(model, "esp32p4", {"x": power(0), "w": power(0), "y": power(17)})
    graph = compare(model, plan, "esp32p4", integers((1, k, 1, 1), power(0), 0, extreme=True))
    (proof,) = graph.proofs
    assert proof.products == 2 and proof.bound == 127 * 128 * k > 2**24
    assert any("conv" in note and "float64" in note for note in graph.notes)


def test_bad_plans_are_one_line_each() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
    model = graph_of([node], (1, 1, 4, 4), {"w": np.ones((1, 1, 1, 1), np.float32)})
    good = {"x": power(0), "w": power(0), "y": power(1)}
    p4 = load_target("esp32p4")
    cases = [
        (plan_of(model, "esp32s3", good), "made for esp32s3"),
        (plan_of(model, "esp32p4", {k: v for k, v in good.items() if k != "w"}), "no encoding for w"),
        (plan_of(model, "esp32p4", {**good, "y": Encoding("int8", 0.3)}), "powers of two"),
        (Plan("esp32p4", good, {}, {}), "does not place conv"),
    ]
    for plan, text in cases:
        with pytest.raises(UserError, match=text):
            lower_integer(model, plan, p4)
