"""A graph that was cut computes what it computed before."""

from __future__ import annotations

import numpy as np
import pytest

from builders import save, silu_net
from narrowcast.calibrate import collect
from narrowcast.chips import load_target
from narrowcast.engine import lower_qdq
from narrowcast.engine.cutting import cut_behind
from narrowcast.graph import Model, Runner, load
from narrowcast.improve.ranges import Trial
from narrowcast.plan import draft, finish


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(save(silu_net(), tmp_path_factory.mktemp("net") / "m.onnx"))


def inputs() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.normal(0, 1, (1, 3, 16, 16)).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("target", ["onnx", "esp32p4"])
def test_any_set_of_groups_gives_the_plans_outputs(net: Model, target: str) -> None:
    drafted = draft(net.ir.graph, load_target(target))
    plan, _ = finish(drafted, collect(net.to_proto(), drafted.wanted_statistics(), inputs()), "mse")
    # biases stay float in a trial
    plain = type(plan)(
        plan.target, {k: v for k, v in plan.tensors.items() if v.dtype != "int32"}, plan.edges, plan.nodes
    )
    runner = Runner(lower_qdq(net.ir, plain)[0], level="basic")
    expected = [runner.run(tensor)["y"] for tensor in inputs()]
    count = len(drafted.structure.groups)
    for tunable in (set(range(count)), {count - 1}, {count - 2, count - 1}, {0}, set()):
        trial = Trial(net.ir, drafted, plan, ["y"], inputs(), tunable=tunable)
        for (actual,), wanted in zip(trial.run(trial.current), expected, strict=True):
            # the sums are taken in another order: a value in many falls to the other side of a tie
            assert (np.abs(actual - wanted) > 1e-5).mean() <= 0.05


def test_only_the_end_runs_again(net: Model) -> None:
    drafted = draft(net.ir.graph, load_target("esp32p4"))
    plan, _ = finish(drafted, collect(net.to_proto(), drafted.wanted_statistics(), inputs()), "mse")
    index = len(drafted.structure.groups) - 1
    proto, _ = lower_qdq(net.ir, plan, dict.fromkeys(drafted.structure.groups[index].values, "last"))
    before, after = cut_behind(proto, ["scale of last", "zero point of last"], ["y"])
    assert not {node.op_type for node in after.graph.node} & {"MaxPool", "Concat"}
    assert len(before.graph.node) + len(after.graph.node) >= len(proto.graph.node)
