"""What a person is told."""

from __future__ import annotations

from narrowcast.base.errors import UserError, closest, nearest


def test_an_error_is_one_line() -> None:
    error = UserError("what\n  is wrong", "do\nthis")
    assert str(error) == "what is wrong: do this" and str(UserError("wrong")) == "wrong"


def test_the_closest_name_in_any_case() -> None:
    assert closest("softmx", ["Softmax", "Silu", ""]) == "Softmax"
    assert closest("KL", ["kl", "mse"]) == "kl" and closest("KL", ["kl", "KLD"]) == "KLD"
    assert closest("x", ["conv"]) is None and closest("cnv1", ["conv"], 0.9) is None


def test_what_to_do_about_an_unknown_name() -> None:
    assert nearest("targt", ["target", "out"]) == "did you mean target?"
    assert nearest("x", ["target", "", "out"]) == "known are target, out"
    assert nearest("x", [f"conv{index}" for index in range(99)]).endswith("conv18, conv19, ...")
