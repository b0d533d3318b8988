"""Add, Sub, Mul, Div, Max, Min, alone and before a fused Relu."""

from __future__ import annotations

import numpy as np
import pytest
from harness import ALL_TARGETS, compare, encodings, graph_of, integers, plan_of, power, seeds, targets
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from narrowcast.base.errors import UserError
from narrowcast.chips import load_target
from narrowcast.engine.integer import lower_integer
from narrowcast.plan import Encoding, edge_key

OPERATORS = ("Add", "Sub", "Mul", "Div", "Max", "Min")


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    target=targets,
    op_type=st.sampled_from(OPERATORS),
    dtype=st.sampled_from(["int8", "int16"]),
    seed=seeds,
)
def test_two_activations(data: st.DataObject, target: str, op_type: str, dtype: str, seed: int) -> None:
    """Both operands come from one input, the second through an edge and a broadcasting shape."""
    source, wanted, other = (data.draw(encodings(target, dtype)) for _ in range(3))
    if data.draw(st.booleans()):
        wanted = other = source
    shape = (1, 4, 6, 5)
    nodes = [
        helper.make_node("GlobalMaxPool", ["x"], ["p"], name="pool"),
        helper.make_node(op_type, ["x", "p"], ["y"], name="op"),
    ]
    model = graph_of(nodes, shape)
    edges = {edge_key("op", 1): other} if other != source else {}
    plan = plan_of(model, target, {"x": source, "p": source, "y": wanted}, edges=edges)
    compare(model, plan, target, integers(shape, source, seed, extreme=data.draw(st.booleans())))


@settings(max_examples=30, deadline=None)
@given(
    data=st.data(),
    target=targets,
    op_type=st.sampled_from(("Add", "Sub", "Mul", "Div")),
    first=st.booleans(),
    seed=seeds,
)
def test_constants(data: st.DataObject, target: str, op_type: str, first: bool, seed: int) -> None:
    source, wanted, code = (data.draw(encodings(target)) for _ in range(3))
    rng = np.random.default_rng(seed)
    constant = code.dequantize(rng.integers(-128, 128, data.draw(st.sampled_from([(), (3, 1, 1)]))))
    names = ["k", "x"] if first else ["x", "k"]
    model = graph_of([helper.make_node(op_type, names, ["y"], name="op")], (1, 3, 4, 4), {"k": constant})
    plan = plan_of(model, target, {"x": source, "k": code, "y": wanted})
    compare(model, plan, target, integers((1, 3, 4, 4), source, seed))


@pytest.mark.parametrize("target", ALL_TARGETS)
def test_all_pairs_of_bytes(target: str) -> None:
    """Every pair of 64 values with one scale, and with factors that make ties."""
    x = np.arange(-128, 128, 4, dtype=np.int8).reshape(1, 64, 1, 1)
    for op_type in OPERATORS:
        nodes = [
            helper.make_node("Transpose", ["x"], ["t"], name="transpose", perm=[0, 2, 1, 3]),
            helper.make_node(op_type, ["x", "t"], ["y"], name="op"),
        ]
        model = graph_of(nodes, x.shape)
        for wanted in (power(0), power(1), power(2), power(-2)):
            compare(model, plan_of(model, target, {"x": power(0), "t": power(0), "y": wanted}), target, x)


def test_division_by_zero_saturates() -> None:
    x = np.array([[-5, 0, 7]], np.int8)
    constants = {"k": np.zeros((1, 3), np.float32)}
    model = graph_of([helper.make_node("Div", ["x", "k"], ["y"], name="op")], (1, 3), constants)
    plan = plan_of(model, "esp32p4", {"x": power(0), "k": power(0), "y": power(0)})
    compare(model, plan, "esp32p4", x)


def test_add_and_fused_relu() -> None:
    nodes = [
        helper.make_node("MaxPool", ["x"], ["p"], name="pool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Sub", ["x", "p"], ["s"], name="sub"),
        helper.make_node("Clip", ["s", "low"], ["y"], name="clip"),
    ]
    model = graph_of(nodes, (1, 2, 6, 6), {"low": np.float32(-1.3)})
    source = Encoding("int8", 0.11)
    plan = plan_of(model, "bayes-e", {"x": source, "p": source, "y": Encoding("int8", 0.07)})
    compare(model, plan, "bayes-e", integers((1, 2, 6, 6), source, 0))


def test_operands_without_an_encoding_are_named() -> None:
    model = graph_of([helper.make_node("Add", ["x", "k"], ["y"], name="op")], (1, 3), {"k": np.ones(3, np.float32)})
    plan = plan_of(model, "esp32p4", {"x": power(0), "y": power(0)})
    with pytest.raises(UserError, match=r"op \(Add\) has the constant operand k"):
        lower_integer(model, plan, load_target("esp32p4"))
