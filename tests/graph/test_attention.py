"""The attention rewrite: the same numbers, one subgraph, and the same integers as the slow reference."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from builders import constant, model, save, weights
from narrowcast.base.errors import UserError
from narrowcast.calibrate import collect
from narrowcast.chips import check_rows, load_target
from narrowcast.engine import lower_qdq
from narrowcast.engine.integer import lower_integer
from narrowcast.graph import Runner, load
from narrowcast.graph.forms import PARTS, attention_softmaxes
from narrowcast.plan import Pins, draft, finish

sys.path.insert(0, str(Path(__file__).parent.parent / "engine" / "integer"))
from harness import compare


def attention_net(opset: int = 17, axis: int = -1) -> onnx.ModelProto:
    """Two 1x1 convolutions, q^T k, Softmax, v * weights, a convolution behind, and a last Softmax that stays."""
    rng = np.random.default_rng(5)
    transposed = ["weights_t"] if axis == -1 else ["weights"]
    nodes = [
        helper.make_node("Conv", ["x", "wq"], ["q4"], name="q"),
        helper.make_node("Conv", ["x", "wk"], ["k4"], name="k"),
        helper.make_node("Reshape", ["q4", "flat"], ["q"], name="q_flat"),
        helper.make_node("Reshape", ["k4", "flat"], ["k3"], name="k_flat"),
        helper.make_node("Transpose", ["q"], ["qt"], name="q_t", perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["qt", "k3"], ["scores"], name="scores"),
        helper.make_node("Mul", ["scores", "gain"], ["scaled"], name="scaled"),
        helper.make_node("Softmax", ["scaled"], ["weights"], name="attn/Softmax", axis=axis),
        helper.make_node("Transpose", ["weights"], ["weights_t"], name="w_t", perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["k3", *transposed], ["mixed"], name="mixed"),
        helper.make_node("Reshape", ["mixed", "square"], ["back"], name="back"),
        helper.make_node("Conv", ["back", "wo"], ["o"], name="o"),
        helper.make_node("Softmax", ["o"], ["y"], name="last", axis=1),
    ]
    constants = [
        weights(rng, "wq", 4, 3, 1, 1), weights(rng, "wk", 4, 3, 1, 1), weights(rng, "wo", 5, 4, 1, 1),
        constant("flat", np.array([1, 1, 4, 16])), constant("square", np.array([1, 4, 4, 4])),
        constant("gain", np.float32(3.0)),
    ]  # fmt: skip
    return model(nodes, constants, shape=(1, 3, 4, 4), opset=opset)


@pytest.mark.parametrize(("opset", "axis"), [(13, -1), (17, 2), (18, -1), (20, 3)])
def test_the_same_numbers(tmp_path: Path, opset: int, axis: int) -> None:
    file = save(attention_net(opset, axis), tmp_path / "m.onnx")
    kept, rewritten = load(file), load(file, attention="rewrite")
    assert [node.name for node in attention_softmaxes(kept.ir.graph)] == ["attn/Softmax"]
    assert not [node for node in kept.ir.graph if "Softmax/" in str(node.name)]
    parts = [str(node.name) for node in rewritten.ir.graph if "Softmax/" in str(node.name)]
    assert parts == [f"attn/Softmax/{part}" for part in PARTS]
    assert "1 Softmax node of attention became" in rewritten.notes[-2]
    onnx.checker.check_model(rewritten.to_proto(), full_check=True)
    x = np.random.default_rng(0).normal(0, 3, (1, 3, 4, 4)).astype(np.float32)
    expected, actual = (Runner(m.to_proto()).run(x)["y"] for m in (kept, rewritten))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_one_subgraph(tmp_path: Path) -> None:
    chip = load_target("bayes-e")
    file = save(attention_net(), tmp_path / "m.onnx")

    def ids(rewrite: bool) -> set[str]:
        loaded = load(file, attention="rewrite" if rewrite else "keep", output_nodes=["o"])
        return {row.subgraph for row in check_rows(loaded.ir.graph, chip)}

    assert ids(False) == {"id(0)", "--", "id(1)"}
    assert ids(True) == {"id(0)"}


@pytest.mark.parametrize("kind", ["int8", "int16"])
def test_integers_are_the_references(tmp_path: Path, kind: str) -> None:
    """Planned for bayes-e with these types, every integer tensor is the slow reference's, bit for bit."""
    loaded = load(save(attention_net(), tmp_path / "m.onnx"), attention="rewrite", output_nodes=["o"])
    chip = load_target("bayes-e")
    graph = loaded.ir.graph
    drafted = draft(graph, chip, Pins(dict.fromkeys([str(n.name) for n in graph if "Softmax/" in str(n.name)], kind)))
    assert {p.unit for p in drafted.placement.values()} == {"BPU"}
    inputs = list(np.random.default_rng(1).normal(0, 2, (6, 1, 3, 4, 4)).astype(np.float32))
    statistics = collect(loaded.to_proto(), drafted.wanted_statistics(), inputs)
    plan, _ = finish(drafted, statistics, "minmax")
    assert plan.tensors["attn/Softmax/Exp_output_0"].dtype == kind
    lowered = compare(loaded.ir, plan, chip, inputs[0])
    assert lowered.outputs
    qdq = Runner(lower_qdq(loaded.ir, plan)[0], level="basic")
    signal, noise = 0.0, 0.0
    for x in inputs:
        (expected,), (actual,) = Runner(loaded.to_proto()).run(x).values(), qdq.run(x).values()
        signal, noise = signal + float((expected**2).sum()), noise + float(((expected - actual) ** 2).sum())
    assert 10 * np.log10(signal / noise) > (20 if kind == "int8" else 25)
    onnx.checker.check_model(lower_integer(loaded.ir, plan, chip).proto)


def test_names_of_output_nodes(tmp_path: Path) -> None:
    file = save(attention_net(), tmp_path / "m.onnx")
    loaded = load(file, output_nodes=["mixed", "q"])
    assert loaded.output_names == ("mixed", "q4") and loaded.head is None
    assert loaded.difference["output"] < 1e-5
    for names, words in ((["mixd"], "did you mean mixed"), (["q", "q"], "names q twice")):
        with pytest.raises(UserError, match=words):
            load(file, output_nodes=names)
