"""A Pad whose result has a range of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.shape_inference
import onnx_ir as ir
import pytest
from onnx import helper

from builders import constant, model, weights
from narrowcast.calibrate import collect
from narrowcast.chips import load_target, target_names
from narrowcast.engine.integer import dequantized, lower_integer
from narrowcast.engine.verify import verify
from narrowcast.graph import Runner
from narrowcast.plan import Pins, TensorPin, draft, finish
from narrowcast.plan.invariants import violations

AROUND = constant("pads", np.int64([0, 0, 1, 1] * 2))


def padded(attributes: dict[str, Any], number: float | None) -> onnx.ModelProto:
    """Relu, Pad, Conv."""
    rng = np.random.default_rng(0)
    names = ["r", "pads", *(["number"] if number is not None else [])]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c"], "conv0"),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Pad", names, ["q"], "pad", **attributes),
        helper.make_node("Conv", ["q", "w1"], ["y"], "conv1"),
    ]
    constants = [
        weights(rng, "w0", 4, 3, 1, 1),
        weights(rng, "w1", 4, 4, 3, 3),
        constant("pads", np.int64([0, 0, 1, 1] * 2)),
    ]
    constants += [constant("number", np.float32(number))] if number is not None else []
    return model(nodes, constants, shape=(1, 3, 6, 6))


@pytest.mark.parametrize("target", target_names())
@pytest.mark.parametrize(
    ("attributes", "number", "pinned"),
    [({"mode": "edge"}, None, True), ({"mode": "reflect"}, None, True), ({}, 9.0, False), ({}, 0.3, True)],
)
def test_a_pad_with_a_range_of_its_own(
    target: str, attributes: dict[str, Any], number: float | None, pinned: bool
) -> None:
    proto, chip = padded(attributes, number), load_target(target)
    prepared = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    pins = Pins(tensors={"q": TensorPin("int8", 2.0**-6)}) if pinned else None
    drafted = draft(prepared.graph, chip, pins)
    rng = np.random.default_rng(1)
    images = [rng.random((1, 3, 6, 6)).astype(np.float32) for _ in range(3)]
    plan, _ = finish(drafted, collect(proto, drafted.wanted_statistics(), images), "minmax")
    assert violations(prepared.graph, plan, chip) == []
    graph = lower_integer(prepared, plan, chip)
    assert sum(row.differing for row in verify(prepared, plan, chip, graph, images[:1])) == 0
    expected, actual = Runner(proto).run(images[0])["y"], Runner(dequantized(graph)).run(images[0])["y"]
    assert np.abs(expected - actual).max() < 0.06 * np.abs(expected).max()


@pytest.mark.parametrize("target", target_names())
def test_infinity_around_a_pool(target: str) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c"], "conv0"),
        helper.make_node("Pad", ["c", "pads", "number"], ["q"], "pad"),
        helper.make_node("MaxPool", ["q"], ["p"], "pool", kernel_shape=[3, 3]),
        helper.make_node("Conv", ["p", "w1"], ["y"], "conv1"),
    ]
    rng = np.random.default_rng(0)
    constants = [
        weights(rng, "w0", 4, 3, 1, 1),
        weights(rng, "w1", 4, 4, 1, 1),
        constant("pads", np.int64([0, 0, 1, 1] * 2)),
    ]
    proto = model(nodes, [*constants, constant("number", np.float32(-np.inf))], shape=(1, 3, 6, 6))
    prepared, chip = ir.from_proto(onnx.shape_inference.infer_shapes(proto)), load_target(target)
    drafted = draft(prepared.graph, chip)
    images = [rng.random((1, 3, 6, 6)).astype(np.float32) for _ in range(2)]
    plan, _ = finish(drafted, collect(proto, drafted.wanted_statistics(), images), "minmax")
    assert violations(prepared.graph, plan, chip) == [] and plan.tensors["q"] == plan.tensors["c"]
    rows = verify(prepared, plan, chip, lower_integer(prepared, plan, chip), images[:1])
    assert sum(row.differing for row in rows) == 0
