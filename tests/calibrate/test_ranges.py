"""Ranges: powers of two are powers of two, the best exponent is the best, zero is exact."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowcast.calibrate import METHODS, RangeSpec, TensorStatistics, choose_range
from narrowcast.calibrate.statistics import quantization_error
from narrowcast.ops.functions import unary, unary_name


def statistics(values: np.ndarray) -> TensorStatistics:
    found = TensorStatistics()
    found.add(values.astype(np.float32).reshape(1, 1, 1, -1), 0, False)
    return found


def spec(method: str, symmetric: bool = True, power_of_two: bool = False) -> RangeSpec:
    return RangeSpec(-128, 127, symmetric, power_of_two, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_every_method_gives_a_power_of_two_where_asked(method: str, scale: float) -> None:
    values = np.random.default_rng(0).normal(0, scale, 5000)
    found, zero_point = choose_range([statistics(values)], spec(method, power_of_two=True))
    assert math.frexp(found)[0] == 0.5 and zero_point == 0


@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=50), st.sampled_from(METHODS), st.booleans())
def test_scale_and_zero_point_are_always_usable(values: list[float], method: str, symmetric: bool) -> None:
    scale, zero_point = choose_range([statistics(np.array(values))], spec(method, symmetric))
    assert math.isfinite(scale) and scale > 0
    assert -128 <= zero_point <= 127
    assert isinstance(zero_point, int)


def test_minmax_spans_the_range_exactly() -> None:
    scale, zero_point = choose_range([statistics(np.array([-1.0, 3.0]))], spec("minmax", symmetric=False))
    assert scale == pytest.approx(4 / 255)
    assert (127 - zero_point) * scale == pytest.approx(3.0, abs=scale)
    scale, _ = choose_range([statistics(np.array([-1.0, 3.0]))], spec("minmax"))
    assert scale == pytest.approx(3 / 127)


@pytest.mark.parametrize("method", ["mse", "lp"])
def test_the_chosen_exponent_has_the_least_error(method: str) -> None:
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(0, 1, 8000), [60.0]])
    found = statistics(values)
    wanted = spec(method, power_of_two=True)
    scale, _ = choose_range([found], wanted)
    exponent = round(math.log2(scale))
    errors = {e: quantization_error(found.histogram, 2.0**e, 0, wanted) for e in range(exponent - 2, exponent + 3)}
    assert min(errors, key=lambda e: errors[e]) == exponent
    full, _ = choose_range([found], spec("minmax", power_of_two=True))
    assert scale < full if method == "lp" else scale <= full


def test_error_behind_silu_ignores_the_flat_side() -> None:
    values = np.concatenate([np.random.default_rng(0).uniform(-1, 4, 5000), np.full(2000, -80.0)])
    plain, _ = choose_range([statistics(values)], spec("mse"))
    behind, _ = choose_range([statistics(values)], spec("mse"), through="Silu")
    assert behind < plain / 4


def test_unary_functions_against_their_definitions() -> None:
    x = np.linspace(-8, 8, 2001)
    erf = np.array([math.erf(v / math.sqrt(2)) for v in x])
    np.testing.assert_allclose(unary("Gelu")(x), 0.5 * x * (1 + erf), atol=1e-12)
    np.testing.assert_allclose(unary("Silu")(x), x / (1 + np.exp(-x)), atol=1e-12)


def test_an_all_zero_tensor_gets_a_scale() -> None:
    scale, zero_point = choose_range([statistics(np.zeros(10))], spec("mse"))
    assert scale > 0 and zero_point == 0


def test_clips_are_functions_of_one_value_with_their_bounds() -> None:
    low, high = (
        ir.val(name, const_value=ir.tensor(np.float32(value), name=name))
        for name, value in zip("lh", (0, 6), strict=True)
    )
    x, computed = ir.val("x"), ir.val("c")
    assert unary_name(ir.node("Clip", [x, low, high])) == "Clip 0.0 6.0"
    assert unary_name(ir.node("Clip", [x, None, high])) == "Clip -inf 6.0"
    assert unary_name(ir.node("Clip", [x, low, computed])) is None
    assert unary_name(ir.node("Silu", [x])) == "Silu" and unary_name(ir.node("Add", [x, low])) is None
    values = np.linspace(-9, 9, 50)
    np.testing.assert_array_equal(unary("Clip 0.0 6.0")(values), np.clip(values, 0, 6))
    np.testing.assert_array_equal(unary("Clip -inf 6.0")(values), np.minimum(values, 6))


def test_what_a_clip_cuts_off_needs_no_range() -> None:
    values = np.random.default_rng(0).normal(0, 12, 20000).astype(np.float32)
    given_ = spec("mse", power_of_two=True)
    plain, clipped = (choose_range([statistics(values)], given_, through)[0] for through in (None, "Clip 0.0 6.0"))
    assert plain * 127 > 16 and 6 <= clipped * 127 < 16
