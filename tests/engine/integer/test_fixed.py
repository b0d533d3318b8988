"""Fixed-point multipliers: against counting, and against integers of the vendor's own runtime.

``data/horizon.npz`` holds small networks made by hand (one operator each between convolutions), their plans, one input,
and the integers of every tensor that hb_mapper 1.24.3 keeps as we do, given by its runtime HB_ONNXRuntime for
``*_quantized_model.onnx``: networks quantized for bayes-e by narrowcast, written with the plan's ranges and weights,
and built with ``calibration_type: load`` at O0 on 2026-11-25. In those named ``wide`` nearly everything has 16 bits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowcast.base.errors import UserError
from narrowcast.chips import load_target
from narrowcast.engine.integer import IntegerRunner, lower_integer
from narrowcast.engine.integer.fixed import fixed_point, half_step, requantize_multiplier
from narrowcast.engine.reference import fixed as slow
from narrowcast.engine.reference import run_reference
from narrowcast.plan.types import read_plan

DATA = Path(__file__).parent.parent / "data" / "horizon.npz"
RECORDED = sorted({key.split("/")[0] for key in np.load(DATA).files})


@given(
    st.floats(2.0**-24, 2.0**14), st.sampled_from([127, 32767]), st.integers(-(2**30), 2**30), st.booleans(),
    st.sampled_from([0, 8]),
)  # fmt: skip
def test_as_counting_finds_it(factor: float, largest: int, x: int, in_bias: bool, least: int) -> None:
    found = fixed_point(factor, largest, least=least)
    total = np.asarray([x])
    whole = total + (half_step(np.asarray(factor)) if in_bias else 0)
    half = 0 if in_bias or found.second == 0 else 1 << int(found.second - 1)
    result = ((whole >> found.first) * found.scale + half) >> found.second
    assert result == slow.multiplied(total, np.asarray(factor), largest, in_bias, least=least)
    assert found.second >= 0
    assert 2**14 <= found.scale < 2**15
    assert abs(float(found.scale) / 2.0 ** float(found.first + found.second) / factor - 1) <= 2.0**-14


def test_by_hand() -> None:
    """Seen in files of the vendor's tool."""
    one = fixed_point(0.025 / 0.036, 127)
    assert (one.first, one.scale, one.first + one.second) == (0, 22756, 15)
    small = fixed_point(np.asarray([0.4 * 2.0**-8, 127 / 32767 * 0.999, 127 / 32767 * 1.001]), 127)
    assert small.first.tolist() == [2, 1, 0] and small.second.tolist() == [22, 22, 23]
    assert fixed_point(1.0, 32767).first == 1  # at 16 bits a factor of 1 is shifted twice
    assert requantize_multiplier(127 / 32767) == (32513, 23)
    high = 0.995 * 2.0**-9  # seen: products of numbers shift once, operands of Mul twice, with 22 behind
    assert [int(v) for v in vars(fixed_point(high, 127)).values()] == [1, 32604, 23]
    assert [int(v) for v in vars(fixed_point(high / 2, 127, elementwise=True)).values()] == [3, 32604, 22]
    with pytest.raises(UserError, match="finer than what is added up"):
        fixed_point(2.0**15, 127)


@pytest.mark.parametrize("name", RECORDED)
def test_the_vendors_runtime_gives_the_same_integers(name: str, tmp_path: Path) -> None:
    stored = np.load(DATA)
    model = ir.from_proto(onnx.load_from_string(stored[f"{name}/model"].tobytes()))
    (tmp_path / "plan.json").write_bytes(stored[f"{name}/plan"].tobytes())
    plan, chip, x = read_plan(tmp_path / "plan.json"), load_target("bayes-e"), stored[f"{name}/x"]
    actual = IntegerRunner(lower_integer(model, plan, chip), 1, all_tensors=True).integers(x)
    expected = run_reference(model, plan, chip, {"x": x})
    recorded = {key.split("/", 2)[2]: stored[key] for key in stored.files if key.startswith(f"{name}/tensor/")}
    assert len(recorded) >= 2
    for tensor, values in recorded.items():
        np.testing.assert_array_equal(actual[tensor], values, err_msg=tensor)
        np.testing.assert_array_equal(expected[tensor], values, err_msg=f"{tensor}, by the reference")
