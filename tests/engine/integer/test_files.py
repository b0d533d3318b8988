"""Integer graphs on disk, and their distance from the QDQ graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from harness import graph_of, plan_of, power
from onnx import helper

from narrowcast.base.errors import UserError
from narrowcast.chips import load_target
from narrowcast.engine import lower_qdq
from narrowcast.engine.integer import IntegerGraph, IntegerRunner, integer_bytes, lower_integer, open_integer
from narrowcast.engine.integer.files import METADATA_KEY, dequantized
from narrowcast.engine.verify import qdq_distance, verify
from narrowcast.plan import Encoding, Plan

IMAGE = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)


def small(target: str) -> tuple[ir.Model, Plan, IntegerGraph]:
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Sigmoid", ["c"], ["y"], name="sigmoid"),
        helper.make_node("Transpose", ["c"], ["z"], name="move", perm=[0, 2, 3, 1]),
    ]
    weight = rng.integers(-128, 128, (4, 3, 3, 3)) / 128
    model = graph_of(nodes, IMAGE.shape, {"w": weight.astype(np.float32)}, outputs=("y", "z"))
    tensors = {"x": power(-5), "w": power(-7), "c": power(-4), "y": power(-7), "z": power(-4)}
    plan = plan_of(model, target, tensors)
    return model, plan, lower_integer(model, plan, load_target(target))


def test_a_graph_comes_back_from_its_file(tmp_path: Path) -> None:
    _, _, graph = small("esp32p4")
    path = tmp_path / "integer.onnx"
    path.write_bytes(integer_bytes(graph))
    again = open_integer(path)
    assert again == graph and integer_bytes(again) == integer_bytes(graph) == integer_bytes(small("esp32p4")[2])
    onnx.checker.check_model(onnx.load(str(path)), full_check=True)
    for name, values in IntegerRunner(graph, 1).run(IMAGE).items():
        np.testing.assert_array_equal(IntegerRunner(again, 1).run(IMAGE)[name], values)
    stored = {tensor.data_type for tensor in again.proto.graph.initializer if tensor.dims == [4, 3, 3, 3]}
    assert stored == {onnx.TensorProto.INT8}


def test_an_encoding_per_channel_comes_back(tmp_path: Path) -> None:
    model = graph_of(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        IMAGE.shape,
        {"w": np.ones((2, 3, 1, 1), np.float32)},
    )
    tensors = {"x": Encoding("int8", 0.03), "w": Encoding("int8", (0.01, 0.02), 0, 0)}
    tensors["y"] = Encoding("int32", (0.0003, 0.0006), 0, 1)
    graph = lower_integer(model, plan_of(model, "bayes-e", tensors), load_target("bayes-e"))
    (tmp_path / "integer.onnx").write_bytes(integer_bytes(graph))
    assert open_integer(tmp_path / "integer.onnx").outputs == {"y": tensors["y"]}


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    _, _, graph = small("esp32p4")
    data, path = integer_bytes(graph), tmp_path / "integer.onnx"
    with pytest.raises(UserError, match="does not exist"):
        open_integer(path)
    path.write_bytes(data[:-100])
    with pytest.raises(UserError, match="cut off"):
        open_integer(path)
    path.write_bytes(graph.proto.SerializeToString())
    with pytest.raises(UserError, match="no integer graph"):
        open_integer(path)
    proto = onnx.load_from_string(data)
    for text in ('{"version":2}', "{}", "[]", '{"version":1,"inputs":{"x":{}}}', "no JSON"):
        helper.set_model_props(proto, {METADATA_KEY: text})
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(UserError, match=r"is no JSON|describes its integers wrongly"):
            open_integer(path)


def test_qdq_equals_the_integers_where_both_round_half_to_even() -> None:
    model, plan, graph = small("esp32p4")
    qdq, _ = lower_qdq(model, plan)
    rows = qdq_distance(graph, qdq, [IMAGE, IMAGE * 0.1], all_tensors=True)
    assert [(row.tensor, row.noise.count, row.share) for row in rows] == [
        ("x", 2 * 192, 0), ("c", 2 * 256, 0), ("y", 2 * 256, 0), ("z", 2 * 256, 0),
    ]  # fmt: skip


def test_qdq_differs_from_half_up(tmp_path: Path) -> None:
    model, plan, graph = small("esp32s3")
    (tmp_path / "qdq.onnx").write_bytes(lower_qdq(model, plan)[0].SerializeToString())
    ties = (np.arange(192).reshape(1, 3, 8, 8) - 96).astype(np.float32) / 64
    x, *_ = qdq_distance(graph, tmp_path / "qdq.onnx", [ties], all_tensors=True)
    assert (x.tensor, x.unit, x.differing, x.noise.max_abs) == ("x", "steps", 48, 1.0)  # every other tie
    outputs = qdq_distance(graph, tmp_path / "qdq.onnx", [ties])
    assert [row.tensor for row in outputs] == ["y", "z"] and outputs[1].differing > 0


@pytest.mark.parametrize("target", ["esp32p4", "esp32s3"])
def test_verify_names_the_tensor_that_differs(target: str) -> None:
    model, plan, graph = small(target)
    rows = verify(model, plan, load_target(target), graph, [IMAGE], threads=1)
    assert [row.tensor for row in rows] == ["x", "c", "y", "z", "y (shipped)", "z (shipped)"]
    assert not any(row.differing for row in rows)
    (table,) = (t for t in graph.proto.graph.initializer if t.dims == [8, 256])
    values = onnx.numpy_helper.to_array(table).copy()
    values -= 2
    table.CopyFrom(onnx.numpy_helper.from_array(values, table.name))
    wrong = {row.tensor: row for row in verify(model, plan, load_target(target), graph, [IMAGE], threads=1)}
    assert {name for name, row in wrong.items() if row.differing} == {"y", "y (shipped)"}
    assert wrong["y"].node == "sigmoid" and wrong["y"].op_type == "Sigmoid" and wrong["y"].largest == 2


@pytest.mark.parametrize("target", ["esp32p4", "bayes-e"])
def test_generated_names_differ_from_the_users(target: str) -> None:
    """A model may call its nodes and values whatever our own names for other nodes and values would be."""
    model, plan, graph = small(target)
    ours = [node.name for node in graph.proto.graph.node if node.name != "move"]
    rng = np.random.default_rng(0)
    for users in rng.permutation(ours)[:4]:
        named = {"conv": "conv", "sigmoid": "sigmoid", "move": str(users)}
        copy = model.clone()
        for node in copy.graph:
            node.name = named[str(node.name)]
        nodes = {named[name]: placement for name, placement in plan.nodes.items()}
        again = lower_integer(copy, replace(plan, nodes=nodes), load_target(target))
        names = [node.name for node in again.proto.graph.node]
        assert len(set(names)) == len(names) and names.count(users) == 1
        for name, values in IntegerRunner(graph, 1).run(IMAGE).items():
            np.testing.assert_array_equal(IntegerRunner(again, 1).run(IMAGE)[name], values)
        assert lower_integer(copy, replace(plan, nodes=nodes), load_target(target)) == again


def test_real_outputs_beside_values_of_such_names() -> None:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["y_as_integers"], name="y_node"),
        helper.make_node("Transpose", ["y_as_integers"], ["y"], name="y_as_integers_node", perm=[0, 2, 3, 1]),
    ]
    model = graph_of(nodes, IMAGE.shape, outputs=("y", "y_as_integers"))
    plan = plan_of(model, "esp32p4", {"x": power(-5), "y_as_integers": power(-7), "y": power(-7)})
    graph = lower_integer(model, plan, load_target("esp32p4"))
    session = onnxruntime.InferenceSession(dequantized(graph).SerializeToString())
    found = dict(zip(("y", "y_as_integers"), session.run(None, {"x": IMAGE}), strict=True))
    for name, integers in IntegerRunner(graph, 1).run(IMAGE).items():
        np.testing.assert_array_equal(found[name], integers / np.float32(128))
