"""Placement on the RDK chips, as the vendor's op tables and logs say it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from builders import constant, model, save, weights
from narrowcast.chips import check_rows, load_target, place, support
from narrowcast.chips.support import Support
from narrowcast.graph import Model, load

CHIPS = ("bayes-e", "bayes", "bernoulli2")


def verdicts(
    path: Path,
    operator: str,
    *,
    shape: Sequence[int] = (1, 8, 16, 16),
    constants: Sequence[onnx.TensorProto] = (),
    outputs: int = 1,
    **attributes: Any,
) -> dict[str, Support]:
    """The verdict of every chip on one node."""
    names = ["y", "z"][:outputs]
    integers = operator == "ArgMax"
    inputs = ["x", *(c.name for c in constants)]
    nodes = [helper.make_node(operator, inputs, ["k"] if integers else names, name="node", **attributes)]
    if integers:
        nodes.append(helper.make_node("Cast", ["k"], names, name="cast", to=onnx.TensorProto.FLOAT))
    graph = load(save(model(nodes, constants, shape=shape, outputs=names), path / "m.onnx")).ir.graph
    return {chip: support(graph.node(0), load_target(chip)) for chip in CHIPS}


def units(found: dict[str, Support]) -> list[str]:
    return [found[chip].unit for chip in CHIPS]


@pytest.mark.parametrize(
    ("kernel", "attributes", "expected"),
    [
        ((8, 8, 3, 3), {}, "BPU BPU BPU"),
        ((8, 8, 9, 9), {"pads": [4] * 4}, "BPU BPU CPU"),
        ((8, 8, 3, 3), {"dilations": [3, 3]}, "BPU BPU CPU"),
        ((8, 8, 3, 3), {"dilations": [4, 4]}, "BPU BPU BPU"),
    ],
)
def test_convolutions(tmp_path: Path, kernel: tuple[int, ...], attributes: dict[str, Any], expected: str) -> None:
    weight = weights(np.random.default_rng(0), "w", *kernel)
    found = verdicts(tmp_path, "Conv", constants=[weight], **attributes)
    assert units(found) == expected.split()
    assert "int16" in found["bayes"].types and "int16" not in found["bernoulli2"].types


def test_size_of_a_kernel(tmp_path: Path) -> None:
    """C*H*W up to 32767, 65535 and 32768."""
    weight = constant("w", np.zeros((1, 4096, 3, 3), np.float32))
    found = verdicts(tmp_path, "Conv", shape=(1, 4096, 4, 4), constants=[weight])
    assert units(found) == ["CPU", "BPU", "CPU"] and "36864" in found["bayes-e"].reason


@pytest.mark.parametrize(
    ("operator", "keywords", "expected"),
    [
        ("Erf", {}, "BPU CPU CPU"),
        ("Sigmoid", {}, "BPU BPU BPU"),
        ("Sigmoid", {"shape": (1, 64, 16, 16)}, "BPU BPU CPU"),
        ("Tanh", {"shape": (1, 33, 16, 16)}, "BPU BPU CPU"),
        ("LeakyRelu", {"shape": (1, 64, 64, 64)}, "BPU BPU BPU"),
        ("Round", {}, "BPU CPU CPU"),
        ("Floor", {}, "BPU BPU CPU"),
        ("Transpose", {"perm": [0, 2, 3, 1]}, "BPU BPU CPU"),
        ("Flatten", {}, "BPU BPU CPU"),
        ("Flatten", {"shape": (1, 8, 1, 1)}, "BPU BPU BPU"),
        ("AveragePool", {"kernel_shape": [8, 8]}, "BPU BPU CPU"),
        ("GlobalAveragePool", {"shape": (1, 2, 128, 128)}, "BPU BPU CPU"),
        ("GlobalMaxPool", {"shape": (1, 512, 4, 4)}, "BPU BPU BPU"),
        ("GlobalMaxPool", {"shape": (1, 2, 300, 4)}, "CPU CPU BPU"),
        ("ReduceMean", {"axes": [2, 3]}, "BPU BPU BPU"),
        ("ReduceMean", {"axes": [1]}, "BPU BPU CPU"),
        ("ReduceMean", {"axes": [1, 2]}, "CPU CPU CPU"),
        ("ReduceMax", {"axes": [1], "keepdims": 0}, "CPU CPU CPU"),
        ("ArgMax", {"axis": 1}, "BPU BPU BPU"),
        ("ArgMax", {"axis": 1, "shape": (1, 65, 4, 4)}, "BPU CPU CPU"),
        ("Split", {"axis": 1, "outputs": 2, "constants": [constant("s", np.array([2, 6]))]}, "CPU CPU CPU"),
        ("Split", {"axis": 1, "outputs": 2, "constants": [constant("s", np.array([4, 4]))]}, "BPU BPU BPU"),
        ("Pad", {"constants": [constant("p", np.array([0, 0, 1, 1, 0, 0, 1, 1]))]}, "BPU BPU BPU"),
        ("Pad", {"constants": [constant("p", np.array([0, 1, 0, 0, 0, 1, 0, 0]))]}, "BPU BPU CPU"),
        ("Softmax", {"axis": 1}, "CPU CPU CPU"),
    ],
)
def test_operators(tmp_path: Path, operator: str, keywords: dict[str, Any], expected: str) -> None:
    found = verdicts(tmp_path, operator, **keywords)
    assert units(found) == expected.split(), [verdict.reason for verdict in found.values()]
    assert all(verdict.reason for verdict in found.values())


def test_strides_of_a_transposed_convolution(tmp_path: Path) -> None:
    weight = weights(np.random.default_rng(0), "w", 8, 4, 3, 3)
    assert units(verdicts(tmp_path, "ConvTranspose", constants=[weight], strides=[2, 2])) == ["BPU"] * 3
    found = verdicts(tmp_path, "ConvTranspose", constants=[weight], strides=[3, 3])
    assert units(found) == ["BPU", "BPU", "CPU"] and "stride 3 (only 2, 4)" in found["bernoulli2"].reason


def test_what_no_unit_runs(tmp_path: Path) -> None:
    for verdict in verdicts(tmp_path, "Celu").values():
        assert not verdict.supported and verdict.reason and verdict.remedy


def classifier(path: Path) -> Model:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "v", "b"], ["y"], name="linear", transB=1),
    ]
    constants = [weights(rng, "w", 8, 3, 3, 3), weights(rng, "v", 5, 8), weights(rng, "b", 5)]
    return load(save(model(nodes, constants), path / "m.onnx"))


@pytest.mark.parametrize("chip", CHIPS)
def test_a_classifier_leaves_only_the_reshape_at_its_end(tmp_path: Path, chip: str) -> None:
    rows = check_rows(classifier(tmp_path).ir.graph, load_target(chip))
    outside = [(row.node, row.on, row.subgraph, row.type) for row in rows if row.on != "BPU"]
    assert outside == [("linear_transpose_output_reshape", "CPU", "--", "Reshape")]
    assert {row.subgraph for row in rows if row.on == "BPU"} == {"id(0)"}


@pytest.mark.parametrize(("chip", "kind"), [("bayes-e", "int16"), ("bayes", "int8")])
def test_softmax_moves_to_the_bpu_on_request(people_model: Model, chip: str, kind: str) -> None:
    graph, target = people_model.ir.graph, load_target(chip)
    (softmax,) = [str(node.name) for node in graph if node.op_type == "Softmax"]
    asked = place(graph, target, wanted={softmax: kind}.get)
    assert asked[softmax].unit == "BPU" and kind in asked[softmax].types
    rows = check_rows(graph, target, wanted={softmax: kind}.get)
    assert {row.subgraph for row in rows} == {"id(0)"}
    assert next(row for row in rows if row.node == softmax).data_type == kind
    assert place(graph, target)[softmax].unit == "CPU"


def test_attention_of_several_heads_leaves_the_x3(people_model: Model) -> None:
    rows = check_rows(people_model.ir.graph, load_target("bernoulli2"))
    kinds = {row.type for row in rows if row.on == "CPU"}
    assert {"Softmax", "Transpose"} <= kinds <= {"Softmax", "Transpose", "Reshape", "MatMul"}
    assert all(row.remedy for row in rows if row.on == "CPU")
