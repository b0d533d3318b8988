"""Refinement: the trial graph scores what the real lowering scores, and a bad range is replaced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from builders import save, silu_net
from narrowcast.calibrate import collect
from narrowcast.chips import load_target
from narrowcast.engine import lower_qdq
from narrowcast.engine.noise import compare_tensors, mean_sqnr
from narrowcast.graph import Model, Runner, load
from narrowcast.improve import refine_ranges
from narrowcast.plan import Draft, Encoding, Pins, Plan, TensorPin, draft, finish

TARGETS = ("onnx", "bayes-e", "esp32p4")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(save(silu_net(), tmp_path_factory.mktemp("net") / "m.onnx"))


def inputs(count: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.normal(0, 1, (1, 3, 16, 16)).astype(np.float32) for _ in range(count)]


def planned(net: Model, target: str, method: str, pins: Pins | None = None) -> tuple[Draft, Plan]:
    drafted = draft(net.ir.graph, load_target(target), pins)
    return drafted, finish(drafted, collect(net.to_proto(), drafted.wanted_statistics(), inputs()), method)[0]


def refined(net: Model, drafted: Draft, plan: Plan, others: list[Plan], trials: int):  # type: ignore[no-untyped-def]
    runner = Runner(net.to_proto(), level="basic")
    references = [runner.run(tensor) for tensor in inputs()]
    return refine_ranges(net.ir, drafted, plan, others, inputs(), references, outputs={"y": "y"}, trials=trials)


@pytest.mark.parametrize("target", TARGETS)
def test_the_trial_graph_scores_like_the_real_lowering(net: Model, target: str) -> None:
    drafted, plan = planned(net, target, "mse")
    _, before, after = refined(net, drafted, plan, [], 10)
    proto, _ = lower_qdq(net.ir, plan)
    expected = mean_sqnr(compare_tensors(net.to_proto(), proto, {"y": "y"}, inputs()).values())
    assert before == after == pytest.approx(expected, abs=0.3)  # biases are float in the trial


@pytest.mark.parametrize("target", TARGETS)
def test_a_ruined_range_is_mended(net: Model, target: str) -> None:
    drafted, good = planned(net, target, "mse")
    scale = float(good.tensors["a0"].scales) * 16
    _, bad = planned(net, target, "mse", Pins(tensors={"a0": TensorPin("int8", scale)}))
    chosen, before, after = refined(net, drafted, bad, [good], 20)
    assert after > before + 3
    index = drafted.structure.groups.index(drafted.structure.of["a0"])
    assert chosen[index] == good.tensors["a0"]
    statistics = collect(net.to_proto(), drafted.wanted_statistics(), inputs())
    plan, _ = finish(drafted, statistics, "mse", chosen=chosen)
    assert plan.tensors["a0"] == good.tensors["a0"]


def test_no_trials_change_nothing(net: Model, tmp_path: Path) -> None:
    drafted, plan = planned(net, "onnx", "mse")
    _, other = planned(net, "onnx", "minmax")
    chosen, before, after = refined(net, drafted, plan, [other], 0)
    assert chosen == {} and before == after
    assert isinstance(plan.tensors["x"], Encoding)
