"""Steps are judged on images that no step sees, and never make it worse there."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import save, silu_net
from narrowcast.calibrate import collect
from narrowcast.chips import load_target
from narrowcast.engine.network import QuantizedNetwork
from narrowcast.graph import Model, load
from narrowcast.improve import EFFORTS, LEAST_IMAGES, Effort, Judge, reconstruct, recover, split
from narrowcast.improve.reconstruct import MOST_COLUMNS, pieces
from narrowcast.improve.steps import Recovery
from narrowcast.plan import Draft, Plan, draft, finish


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(save(silu_net(), tmp_path_factory.mktemp("net") / "m.onnx"))


def inputs(seed: int, count: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 1, (1, 3, 16, 16)).astype(np.float32) for _ in range(count)]


def planned(net: Model, target: str, method: str = "mse"):  # type: ignore[no-untyped-def]
    drafted = draft(net.ir.graph, load_target(target))
    statistics = collect(net.to_proto(), drafted.wanted_statistics(), inputs(0))

    def planner(state: QuantizedNetwork) -> tuple[Plan, list[str]]:
        return finish(drafted.on(state.model.graph), {**statistics, **state.statistics}, method, chosen=state.chosen)

    return drafted, planner, QuantizedNetwork(net.ir, Plan(""), drafted.target).planned(planner)


@given(st.integers(LEAST_IMAGES, 300), st.sampled_from(sorted(EFFORTS)))
def test_no_image_teaches_and_judges(count: int, effort: str) -> None:
    teachers, judges = split(count, EFFORTS[effort].teachers, EFFORTS[effort].judges)
    assert not set(teachers) & set(judges) and len(teachers) >= 3 and len(judges) >= 3
    assert set(teachers) | set(judges) <= set(range(count)) and len(set(teachers)) == len(teachers)
    assert len(teachers) <= EFFORTS[effort].teachers and len(judges) <= EFFORTS[effort].judges


@pytest.mark.parametrize("target", ["onnx", "bayes-e", "esp32p4", "esp32s3"])
def test_never_worse_on_the_judging_images(net: Model, target: str) -> None:
    drafted, planner, state = planned(net, target)
    others = [planned(net, target, "minmax")[2].plan]
    teachers, judge = (Judge(net, {"y": "y"}, inputs(seed)) for seed in (1, 2))
    before = judge.error_of(state.qdq()[0]).loss
    better, steps = recover(net, state, drafted, planner, others, teachers, judge, Effort(6, 6, 12))
    assert judge.error_of(better.qdq()[0]).loss <= before
    assert steps[0].loss_before == before and all(step.kept == (step.loss_after < step.loss_before) for step in steps)
    reporter = Judge(net, {"y": "y"}, inputs(3))
    again, told = recover(net, state, drafted, planner, others, teachers, judge, Effort(6, 6, 12), reporter=reporter)
    assert _bytes(again) == _bytes(better)  # what is reported decides nothing
    assert [replace(step, held_before=None, held_after=None) for step in told] == steps
    assert told[0].held_before == reporter.error_of(state.qdq()[0]).choosing_loss
    last = [step.held_after for step in told if step.kept]
    assert not last or last[-1] == reporter.error_of(better.qdq()[0]).choosing_loss


def _bytes(state: QuantizedNetwork) -> bytes:
    return bytes(ir.to_proto(state.model).SerializeToString(deterministic=True)) + repr(state.plan).encode()


def test_a_bad_step_is_dropped(net: Model) -> None:
    _, planner, state = planned(net, "esp32p4")
    judge = Judge(net, {"y": "y"}, inputs(2))
    recovery = Recovery(state, judge)

    def ruin(before: QuantizedNetwork) -> QuantizedNetwork:
        coarse = {0: replace(before.plan.tensors["x"], scale=4.0)}
        return replace(before, chosen=coarse).planned(planner)

    recovery.attempt("ruin", ruin)
    recovery.attempt("nothing", lambda before: before)
    assert recovery.network is state and [step.kept for step in recovery.steps] == [False]


@pytest.mark.parametrize("columns", [MOST_COLUMNS, 20, 4])  # 20: two channels of 3 x 3 at a time; 4: not even one
@pytest.mark.parametrize("target", ["bayes-e", "esp32p4", "esp32s3"])
def test_corrected_weights_lie_on_the_grid_and_help(
    net: Model, target: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[pieces.__module__], "MOST_COLUMNS", columns)
    drafted, _, state = planned(net, target)
    corrected, count = reconstruct(net.ir, state.plan, inputs(1, 9))
    assert isinstance(drafted, Draft) and count > 0
    for name, value in corrected.graph.initializers.items():
        encoding = state.plan.tensors.get(name)
        if encoding is not None and encoding.dtype == "int8" and value.const_value is not None:
            array = value.const_value.numpy()
            np.testing.assert_allclose(encoding.dequantize(encoding.quantize(array)), array, rtol=1e-6)
    judge = Judge(net, {"y": "y"}, inputs(2))
    changed = replace(state, model=corrected)
    assert judge.error_of(changed.qdq()[0]).loss < judge.error_of(state.qdq()[0]).loss
