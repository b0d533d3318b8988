"""An operator is one entry: two are added here, each by one call, and run through everything.

Nothing else in the package knows them: the exporter's nodes become one node, it is planned, lowered, verified against
the reference, written as QDQ, and trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from builders import constant, model, save, weights
from narrowcast.calibrate import collect
from narrowcast.chips import Target, load_target
from narrowcast.chips.schema import OpRule
from narrowcast.engine.integer import dequantized, lower_integer
from narrowcast.engine.qdq import lower_qdq
from narrowcast.engine.verify import verify
from narrowcast.graph import Model, Runner, load
from narrowcast.ops import facts
from narrowcast.ops.facts import Kind, Operator
from narrowcast.plan import draft, finish

MISH = Operator(
    "Mish", Kind.FUNCTION, keeps_axes=True, bends=True, since=18,
    function=lambda node: lambda x: x * np.tanh(np.logaddexp(0, x)),
    forms=("plus = Softplus(x) gate = Tanh(plus) y = Mul(x, gate)",),
    torch=lambda torch, node, x: torch.nn.functional.mish(x[0]),
)  # fmt: skip
LAYER_NORMALIZATION = Operator("LayerNormalization", Kind.REAL, constants=(1, 2), since=17)


@pytest.fixture(autouse=True)
def only_here() -> Iterator[None]:
    """The table as it was before."""
    before = dict(facts._TABLE)
    yield
    facts._TABLE.clear()
    facts._TABLE.update(before)


def chip(name: str, operator: str, kind: str) -> Target:
    """A target that lists one operator more, as a line of its file would."""
    target = load_target(name)
    rule = OpRule(ops=(operator,), unit=target.units[0], types=(kind,))
    operands = (*target.constant_operands, operator)
    return target.model_copy(update={"ops": (rule, *target.ops), "constant_operands": operands})


def net(operator: str, opset: int) -> onnx.ModelProto:
    """A convolution, the operator, and a convolution."""
    rng = np.random.default_rng(0)
    middle = {
        "Mish": [
            helper.make_node("Softplus", ["c"], ["p"]),
            helper.make_node("Tanh", ["p"], ["t"]),
            helper.make_node("Mul", ["t", "c"], ["m"], name="middle"),
        ],
        "LayerNormalization": [helper.make_node(operator, ["c", "scale", "shift"], ["m"], name="middle", axis=-1)],
    }[operator]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="first", pads=[1, 1, 1, 1]),
        *middle,
        helper.make_node("Conv", ["m", "v"], ["y"], name="last"),
    ]
    constants = [weights(rng, "w", 8, 3, 3, 3), weights(rng, "b", 8), weights(rng, "v", 4, 8, 1, 1)]
    constants += [constant(n, rng.uniform(0.5, 1.5, 16).astype(np.float32)) for n in ("scale", "shift")]
    return model(nodes, constants if operator != "Mish" else constants[:3], opset=opset)


def quantized(loaded: Model, target: Target, kind: str) -> float:
    """Signal to noise of the integers in dB, which are the reference's, every one."""
    inputs = list(np.random.default_rng(1).normal(0, 1, (6, 1, 3, 16, 16)).astype(np.float32))
    drafted = draft(loaded.ir.graph, target)
    assert drafted.placement["middle"].type == kind
    plan, _ = finish(drafted, collect(loaded.to_proto(), drafted.wanted_statistics(), inputs), "minmax")
    graph = lower_integer(loaded.ir, plan, target)
    rows = verify(loaded.ir, plan, target, graph, inputs[:3])
    assert rows and not [row for row in rows if row.differing]
    onnx.checker.check_model(lower_qdq(loaded.ir, plan)[0])
    wanted = Runner(loaded.to_proto()).run(inputs[0])["y"]
    given = Runner(dequantized(graph)).run(inputs[0])["y"]
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - given).sum()))


@pytest.mark.parametrize("name", ["onnx", "esp32p4", "bayes-e"])
@pytest.mark.parametrize(("operator", "opset"), [(MISH, 17), (MISH, 18), (LAYER_NORMALIZATION, 17)])
@pytest.mark.parametrize("kind", ["int8", "int16"])
def test_one_entry_is_all(tmp_path: Path, operator: Operator, opset: int, name: str, kind: str) -> None:
    facts.register(operator)
    loaded = load(save(net(operator.name, opset), tmp_path / "m.onnx"))
    middle = next(node for node in loaded.ir.graph if node.name == "middle")
    assert middle.op_type == operator.name and len(loaded.ir.graph) == 3
    assert quantized(loaded, chip(name, operator.name, kind), kind) > 20


def test_without_the_entry_it_stays_as_the_exporter_wrote_it(tmp_path: Path) -> None:
    assert len(load(save(net("Mish", 17), tmp_path / "m.onnx")).ir.graph) == 5


def test_torch_learns_it_from_the_entry() -> None:
    torch = pytest.importorskip("torch", reason="finetune needs torch: pip install 'narrowcast[finetune]'")
    from narrowcast.improve.finetune.operators import compute

    facts.register(MISH)
    x = np.linspace(-6, 6, 50)
    (given,) = compute(ir.node("Mish", [ir.val("x")]), [torch.from_numpy(x)])
    np.testing.assert_allclose(given.numpy(), x * np.tanh(np.log1p(np.exp(x))), atol=1e-9)
