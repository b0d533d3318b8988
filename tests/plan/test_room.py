"""Scales leave room: biases fit, shifts are those that the chip has, whatever the weights are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from builders import constant, model
from narrowcast.base.errors import UserError
from narrowcast.calibrate import collect
from narrowcast.chips import load_target, target_names
from narrowcast.engine.integer import dequantized, lower_integer
from narrowcast.graph import Runner
from narrowcast.plan import Draft, Encoding, ExactPins, Pins, Plan, TensorPin, draft, finish
from narrowcast.plan.invariants import product_violations, violations

CHANNELS = 6


def images(count: int = 3, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random((1, 3, 8, 8)).astype(np.float32) for _ in range(count)]


def net(sizes: Sequence[float], biases: Sequence[float], depthwise: bool = False) -> onnx.ModelProto:
    """Conv, Relu, Conv; channels of the first weight have these sizes, and the bias is given."""
    rng = np.random.default_rng(0)
    shape = (CHANNELS, 1, 3, 3) if depthwise else (CHANNELS, 3, 3, 3)
    weight = rng.normal(0, 0.3, shape) * np.reshape(sizes, (-1, 1, 1, 1))
    head = [helper.make_node("Conv", ["x", "w0"], ["c0"], "conv0")]
    middle = helper.make_node("Conv", ["c0", "w1", "b1"], ["c1"], "conv1", group=CHANNELS if depthwise else 1)
    tail = [helper.make_node("Relu", ["c1"], ["r1"], "relu1"), helper.make_node("Conv", ["r1", "w2"], ["y"], "conv2")]
    arrays = {
        "w0": rng.normal(0, 0.5, (CHANNELS if depthwise else 3, 3, 1, 1)),
        "w1": weight,
        "b1": np.asarray(biases),
        "w2": rng.normal(0, 0.5, (4, CHANNELS, 1, 1)),
    }
    constants = [constant(name, array.astype(np.float32)) for name, array in arrays.items()]
    return model([*head, middle, *tail], constants, shape=(1, 3, 8, 8))


def planned(proto: onnx.ModelProto, target: str, pins: Pins | None = None) -> tuple[ir.Model, Draft, Plan, list[str]]:
    """A plan by "minmax" from three random images."""
    prepared = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    drafted = draft(prepared.graph, load_target(target), pins)
    statistics = collect(proto, drafted.wanted_statistics(), images())
    return (prepared, drafted, *finish(drafted, statistics, "minmax"))


def wide(target: str) -> Pins:
    """Everything at 16 bits where the chip has them."""
    has = "int16" in load_target(target).activation.types
    return Pins({"*": "int16"}) if has else Pins()


sizes = st.lists(st.sampled_from([0.0, 1e-12, 1e-9, 1e-6, 1e-3, 1.0, 30.0]), min_size=CHANNELS, max_size=CHANNELS)
offsets = st.lists(st.floats(-8, 8, width=32) | st.just(0.0), min_size=CHANNELS, max_size=CHANNELS)


@pytest.mark.parametrize("target", ["bayes-e", "esp32p4", "esp32s3", "onnx"])
@settings(max_examples=8, deadline=None)
@given(sizes=sizes, biases=offsets, depthwise=st.booleans(), wider=st.booleans())
def test_every_plan_keeps_the_rules(
    target: str, sizes: list[float], biases: list[float], depthwise: bool, wider: bool
) -> None:
    proto = net(sizes, biases, depthwise)
    prepared, drafted, plan, _ = planned(proto, target, wide(target) if wider else None)
    assert violations(prepared.graph, plan, drafted.target) == []


@pytest.mark.parametrize("wider", [False, True])
@pytest.mark.parametrize("target", target_names())
def test_dead_channels_keep_the_others_fine(target: str, wider: bool) -> None:
    whole = net([1.0, 0.5, 0.0, 1e-9, 1e-12, 1e-10], [0.1, -0.2, 0.7, 0.7, 0.7, 1e-3])
    nodes = [helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1"), helper.make_node("Relu", ["c1"], ["y"], "r")]
    proto = model(nodes, list(whole.graph.initializer)[1:3], shape=(1, 3, 8, 8))
    prepared, drafted, plan, notes = planned(proto, target, wide(target) if wider else None)
    assert violations(prepared.graph, plan, drafted.target) == []
    integers = lower_integer(prepared, plan, drafted.target)
    assert not [note for note in (*notes, *integers.notes) if "exceed" in note and "20-bit" not in note]
    exact, coded = Runner(proto), Runner(dequantized(integers))
    pairs = [(exact.run(x)["y"], coded.run(x)["y"]) for x in images()]
    noise = sum(float(np.square(a - b).sum()) for a, b in pairs)
    signal = sum(float(np.square(a).sum()) for a, _ in pairs)
    assert 10 * np.log10(signal / noise) > 40


def test_a_sum_is_never_shifted_to_the_left() -> None:
    proto = net([30.0] * CHANNELS, [0.0] * CHANNELS, depthwise=True)
    nodes = [*list(proto.graph.node)[:2], helper.make_node("Clip", ["c1", "low", "high"], ["y"], "clip")]
    bounds = [constant("low", np.float32(0)), constant("high", np.float32(0.01))]
    clipped = model(nodes, [*list(proto.graph.initializer)[:3], *bounds], shape=(1, 3, 8, 8))
    prepared, drafted, _, _ = planned(clipped, "esp32p4")
    fine = {index: Encoding("int8", 2.0**-14) for index, g in enumerate(drafted.structure.groups) if "c1" in g.values}
    statistics = collect(clipped, drafted.wanted_statistics(), images())
    plan, notes = finish(drafted, statistics, "minmax", chosen=fine)
    assert violations(prepared.graph, plan, drafted.target) == []
    assert float(plan.tensors["c1"].scales) > 2.0**-14 and any("coarser scale" in note for note in notes)
    pins = Pins(tensors={"c1": TensorPin("int8", 2.0**-14)})
    with pytest.raises(UserError, match="pinned scale of c1 is too fine"):
        planned(clipped, "esp32p4", pins)


def test_a_pinned_weight_keeps_its_scales_or_is_refused() -> None:
    proto = net([1.0] * CHANNELS, [0.5] * CHANNELS)
    _, _, plan, _ = planned(proto, "onnx")
    own = plan.tensors["w1"]
    pin = TensorPin("int8", tuple(2 * each for each in own.scale), 0, own.axis)  # type: ignore[union-attr]
    again = planned(proto, "onnx", Pins(tensors={"w1": pin}))[2]
    assert again.tensors["w1"].scale == pin.scale and again.tensors["b1"].scales[0] == 2 * plan.tensors["b1"].scales[0]
    with pytest.raises(UserError, match="leaves no room"):
        planned(proto, "onnx", Pins(tensors={"w1": replace(pin, scale=tuple([1e-12] * CHANNELS))}))


def scaled(name: str, factor: float) -> Any:
    def change(plan: Plan) -> Plan:
        old = plan.tensors[name]
        scale = tuple(factor * s for s in old.scale) if isinstance(old.scale, tuple) else factor * old.scale
        return replace(plan, tensors={**plan.tensors, name: replace(old, scale=scale)})

    return change


def edge(key: str, encoding: Encoding) -> Any:
    return lambda plan: replace(plan, edges={**plan.edges, key: encoding})


def without(name: str) -> Any:
    return lambda plan: replace(plan, tensors={key: each for key, each in plan.tensors.items() if key != name})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (scaled("b1", 2.0), "conv1: the scale of its bias is"),
        (scaled("w1", 2.0), "conv1: the scale of its bias is"),
        (scaled("c0", 0.5), "conv1: the scale of its bias is"),
        (scaled("r1", 2.0**-30), "shifted right by"),
        (scaled("c0", 0.7), "c0 has a scale that is no power of two"),
        (without("w1"), "conv1: its operand w1 has no encoding"),
        (without("b1"), "conv1: its bias b1 has no encoding"),
        (without("c0"), "c0 has no encoding"),
        (edge("conv9#0", Encoding("int8", 1.0)), "conv9#0 names no input"),
        (edge("conv1#3", Encoding("int8", 1.0)), "conv1#3 names no input"),
        (edge("conv1#1", Encoding("int8", 1.0)), "conv1#1 is no input that conv1 reads"),
        (edge("conv1#0", Encoding("int16", 1.0)), "conv1#0 is int16, conv1 computes in int8"),
        (lambda plan: replace(plan, target="onnx"), "the plan is for onnx"),
        (lambda plan: replace(plan, nodes={**plan.nodes, "none": plan.nodes["conv0"]}), "none is placed"),
        (lambda plan: replace(plan, tensors={**plan.tensors, "none": plan.tensors["c0"]}), "none has an encoding"),
    ],
)
def test_a_wrong_plan_is_named(change: Any, words: str) -> None:
    prepared, drafted, plan, _ = planned(net([1.0] * CHANNELS, [0.5] * CHANNELS), "esp32p4")
    found = violations(prepared.graph, change(plan), drafted.target)
    assert any(words in line for line in found) and not any("\n" in line for line in found)


def test_a_bias_that_does_not_fit_is_named() -> None:
    """A plan as it was made before weight scales left room."""
    prepared, drafted, plan, _ = planned(net([1e-9] * CHANNELS, [0.7] * CHANNELS), "onnx")
    tight = Encoding("int8", (2.0**-30,) * CHANNELS, 0, 0)
    read = plan.tensors["c0"]
    bias = Encoding("int32", tuple(float(read.scales) * s for s in tight.scales), 0, 0)
    wrong = replace(plan, tensors={**plan.tensors, "w1": tight, "b1": bias})
    found = product_violations(prepared.graph, wrong, drafted.target)
    assert [line for line in found if "6 of its biases exceed 32 bits" in line]


def test_the_rules_hold_with_pins_by_whole_names() -> None:
    prepared, drafted, plan, _ = planned(
        net([1.0] * CHANNELS, [0.5] * CHANNELS), "esp32p4", ExactPins({"conv1": "int16"})
    )
    assert plan.tensors["w1"].dtype == "int16"
    assert violations(prepared.graph, plan, drafted.target) == []
