"""A plan made of a plan: what keeps its type keeps its encoding, down to the order of the entries."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from builders import silu_net
from narrowcast.calibrate import TensorStatistics, collect
from narrowcast.chips import load_target
from narrowcast.graph.prepare import tidy
from narrowcast.ops.net import leads_to, named
from narrowcast.plan import Draft, Pins, Plan, draft, finish, replan
from narrowcast.plan.drafting import draft_again, restricted
from narrowcast.plan.invariants import violations

TARGETS = ("bayes-e", "esp32p4", "esp32s3", "onnx")


def planned(target: str, wide: tuple[str, ...] = ()) -> tuple[Draft, Plan, dict[str, TensorStatistics]]:
    model, _ = tidy(silu_net(), "test")
    rng = np.random.default_rng(3)
    inputs = [rng.normal(0, 1, (1, 3, 16, 16)).astype(np.float32) for _ in range(3)]
    drafted = draft(model.graph, load_target(target), Pins(dict.fromkeys(wide, "int16")))
    names = [str(value.name) for node in model.graph for value in node.outputs]
    statistics = collect(ir.to_proto(model), [str(model.graph.inputs[0].name), *names], inputs)
    return drafted, finish(drafted, statistics, "mse")[0], statistics


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("wide", [(), ("conv1",), ("*",)])
def test_a_plan_of_the_same_types_is_the_same_plan(target: str, wide: tuple[str, ...]) -> None:
    if wide and "int16" not in load_target(target).activation.types:
        pytest.skip("the chip has no 16 bits")
    drafted, plan, _ = planned(target, wide)
    again, notes = replan(draft_again(drafted.graph, drafted.target, plan), plan)
    assert (again, notes) == (plan, [])
    for part in ("tensors", "edges", "nodes"):
        assert list(getattr(again, part)) == list(getattr(plan, part))


@pytest.mark.parametrize("target", ["bayes-e", "esp32p4", "onnx"])
def test_only_what_widens_is_made_anew(target: str) -> None:
    drafted, plan, statistics = planned(target)
    wider = draft_again(drafted.graph, drafted.target, plan, wide=["conv1"], reason="because")
    found, _ = replan(wider, plan, statistics)
    assert violations(drafted.graph, found, drafted.target) == []
    assert {name for name, entry in found.nodes.items() if entry != plan.nodes[name]} == {"conv1"}
    assert (found.nodes["conv1"].type, found.nodes["conv1"].reason) == ("int16", "because")
    changed = [code for name, code in found.tensors.items() if code != plan.tensors[name]]
    assert changed and {code.dtype for code in changed} <= {"int16", "int32", drafted.target.weight.type_for("int16")}


def test_the_rest_of_a_plan_belongs_to_the_rest_of_its_graph() -> None:
    drafted, plan, _ = planned("bayes-e")
    nodes = list(drafted.graph)
    value = nodes[-1].inputs[0]
    assert value is not None
    drafted.graph.outputs[:] = [value]
    drafted.graph.remove(nodes[-1], safe=False)
    left = restricted(plan, drafted.graph, drafted.target)
    assert set(left.nodes) == set(named(drafted.graph)) == set(plan.nodes) - {str(nodes[-1].name)}
    assert str(nodes[-1].outputs[0].name) not in left.tensors


def test_what_a_node_leads_to() -> None:
    model, _ = tidy(silu_net(), "test")
    output = str(model.graph.outputs[0].name)
    reached = leads_to(model.graph, [output, str(next(iter(model.graph)).outputs[0].name)])
    assert list(reached) == [str(node.name) for node in model.graph]
    first, *others = reached.values()
    assert len(first) == 2 and all(other == {output} for other in others)
