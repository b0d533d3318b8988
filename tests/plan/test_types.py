"""Encodings: rule 1 of the design, checked against plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowcast.plan import Encoding

TYPES = st.sampled_from(["int8", "uint8", "int16"])


@given(st.floats(-1e4, 1e4, width=32), st.floats(2**-13, 10, width=32), TYPES)
def test_quantize_rounds_half_to_even_and_saturates(x: float, scale: float, dtype: str) -> None:
    encoding = Encoding(dtype, float(scale), 3)
    expected = round(float(np.float32(x)) / float(scale)) + 3  # Python rounds half to even
    expected = max(encoding.qmin, min(expected, encoding.qmax))
    assert int(encoding.quantize(np.float32(x))) == expected


@given(st.integers(-128, 127), st.integers(-20, 10))
def test_integers_survive_the_round_trip(q: int, exponent: int) -> None:
    encoding = Encoding("int8", 2.0**exponent)
    assert int(encoding.quantize(encoding.dequantize(np.int8(q)))) == q
    assert int(encoding.exponents) == exponent


def test_ties_go_to_even() -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)
    np.testing.assert_array_equal(Encoding("int8", 1.0).quantize(values), [0, 2, 2, 0, -2])


def test_per_channel_broadcasts_along_its_axis() -> None:
    encoding = Encoding("int8", (1.0, 2.0), 0, 1)
    x = np.ones((1, 2, 3, 3), np.float32) * 4
    assert encoding.quantize(x)[0, :, 0, 0].tolist() == [4, 2]


@pytest.mark.parametrize(
    "arguments",
    [
        ("int4", 1.0),
        ("int8", 0.0),
        ("int8", float("nan")),
        ("int8", (1.0, 2.0)),
        ("int8", 1.0, 200),
        ("int8", 1.0, 0, 1),
    ],
)
def test_impossible_encodings_are_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(ValueError):
        Encoding(*arguments)  # type: ignore[arg-type]


def test_exponents_refuse_other_scales() -> None:
    with pytest.raises(ValueError, match="power of two"):
        _ = Encoding("int8", 0.3).exponents


@pytest.mark.parametrize("shape", [(), (0, 3), (7, 5, 3)])
def test_quantizing_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(0, 9, shape).astype(np.float32)
    per_channel = Encoding("int8", (0.1, 0.25, 0.5), 3, len(shape) - 1) if shape else Encoding("int8", 0.25, 3)
    for rounding in ("half-even", "half-up"):
        whole = per_channel.quantize(x, rounding)
        monkeypatch.setattr("narrowcast.plan.types._BLOCK", 16)
        found = per_channel.quantize(x, rounding)
        monkeypatch.undo()
        assert found.dtype == whole.dtype and found.shape == whole.shape == shape
        np.testing.assert_array_equal(found, whole)
