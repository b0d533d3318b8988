"""Unary functions: every entry, against the reference, which takes one number at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import ALL_TARGETS, compare, encodings, graph_of, integers, plan_of, power, seeds, targets
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from narrowcast.base.errors import UserError
from narrowcast.chips import load_target
from narrowcast.engine.integer import full_table, lower_integer, stepped_table
from narrowcast.ops.functions import unary_function
from narrowcast.plan import Encoding

FUNCTIONS: dict[str, dict[str, Any]] = {
    "Silu": {}, "Gelu": {}, "HardSwish": {}, "Sigmoid": {}, "Tanh": {}, "HardSigmoid": {"alpha": 0.17, "beta": 0.4},
    "LeakyRelu": {"alpha": 0.1}, "Elu": {"alpha": 1.5}, "Selu": {}, "Exp": {}, "Log": {}, "Sqrt": {}, "Neg": {},
    "Abs": {}, "Erf": {}, "Softplus": {}, "Softsign": {}, "Reciprocal": {}, "Sign": {}, "Floor": {}, "Ceil": {},
    "Round": {}, "Sin": {}, "Cos": {}, "Atan": {}, "Sinh": {},
}  # fmt: skip
every_int8 = np.arange(-128, 128, dtype=np.int8).reshape(1, 2, 8, 16)


def unary(
    op_type: str, shape: tuple[int, ...], constants: dict[str, np.ndarray] | None = None, **attributes: Any
) -> Any:
    domain = "narrowcast" if op_type in ("Silu", "Gelu") else ""
    names = ["x", *(constants or {})]
    node = helper.make_node(op_type, names, ["y"], name="f", domain=domain, **attributes)
    return graph_of([node], shape, constants, shapes={"y": shape})


@pytest.mark.parametrize("op_type", FUNCTIONS)
@pytest.mark.parametrize("target", ALL_TARGETS)
def test_all_256_entries(op_type: str, target: str) -> None:
    model = unary(op_type, every_int8.shape, **FUNCTIONS[op_type])
    source, wanted = (
        (power(-4), power(-5)) if target.startswith("esp") else (Encoding("int8", 0.053), Encoding("int8", 0.031))
    )
    compare(model, plan_of(model, target, {"x": source, "y": wanted}), target, every_int8)


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    target=targets,
    op_type=st.sampled_from(["Silu", "LeakyRelu", "Relu", "Sigmoid", "Clip"]),
    seed=seeds,
)
def test_16_bits(data: st.DataObject, target: str, op_type: str, seed: int) -> None:
    shape = (1, 3, 5, 7)
    constants = {"low": np.float32(-0.7), "high": np.float32(3.1)} if op_type == "Clip" else None
    model = unary(op_type, shape, constants)
    source, wanted = data.draw(encodings(target, "int16")), data.draw(encodings(target, "int16"))
    x = integers(shape, source, seed, extreme=data.draw(st.booleans()))
    compare(model, plan_of(model, target, {"x": source, "y": wanted}), target, x)


@pytest.mark.parametrize("target", ["esp32p4", "esp32s3"])
def test_every_16_bit_index(target: str) -> None:
    """All 65536 inputs of the 2049-entry table, so all ties between two entries."""
    x = np.arange(-32768, 32768, dtype=np.int16).reshape(1, 16, 64, 64)
    model = unary("Sigmoid", x.shape)
    plan = plan_of(model, target, {"x": power(-12, "int16"), "y": power(-15, "int16")})
    compare(model, plan, target, x)


@pytest.mark.parametrize("op_type", ["Relu", "Clip"])
@pytest.mark.parametrize("target", ALL_TARGETS)
def test_clipping(op_type: str, target: str) -> None:
    constants = {"low": np.float32(-1.05), "high": np.float32(2.45)} if op_type == "Clip" else None
    model = unary(op_type, every_int8.shape, constants)
    free = not target.startswith("esp")
    for source, wanted in ((power(-4), power(-4)), (power(-4), power(-6)), (power(-5), power(-3)),
                           (Encoding("int8", 0.05, 3), Encoding("int8", 0.02, -20))):  # fmt: skip
        if free or not source.zero_point:
            compare(model, plan_of(model, target, {"x": source, "y": wanted}), target, every_int8)


def test_slopes_per_channel_and_powers() -> None:
    slope = np.array([0.1, -0.3], np.float32).reshape(2, 1, 1)
    for target in ALL_TARGETS:
        model = unary("PRelu", every_int8.shape, {"slope": slope})
        compare(model, plan_of(model, target, {"x": power(-4), "y": power(-5)}), target, every_int8)
        model = unary("Pow", every_int8.shape, {"exponent": np.float32(2)})
        compare(model, plan_of(model, target, {"x": power(-4), "y": power(0)}), target, every_int8)
    model = unary("PRelu", every_int8.shape, {"slope": np.ones((8, 16), np.float32)})
    with pytest.raises(UserError, match="128 slopes"):
        lower_integer(model, plan_of(model, "esp32p4", {"x": power(0), "y": power(0)}), load_target("esp32p4"))


def test_tables_by_hand() -> None:
    node = next(iter(unary("Silu", (1, 1)).graph))
    function = unary_function(node)
    assert function is not None
    even, up = load_target("esp32p4"), load_target("esp32s3")
    table = full_table(function, power(-4), power(-4), even)
    assert (
        table.shape == (256,) and table[128] == 0 and table[-1] == 127 and table[128 + 16] == 12
    )  # silu(1) * 16 = 11.7
    half = full_table(lambda x: x / 2, power(0), power(0), even), full_table(lambda x: x / 2, power(0), power(0), up)
    assert [int(t[128 + 5]) for t in half] == [2, 3] and [int(t[128 - 5]) for t in half] == [-2, -2]
    rule = even.table16
    assert rule is not None
    wide = stepped_table(lambda x: x, power(0, "int16"), power(0, "int16"), even, rule)
    assert wide.shape == (2049,) and wide[0] == -32768 and wide[1] == -32736 and wide[-1] == 32767
