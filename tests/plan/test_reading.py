"""In which encoding operands are read, and pins by whole names."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx import helper

from builders import model
from narrowcast.base.errors import UserError
from narrowcast.plan import Encoding, ExactPins, Pins
from narrowcast.plan.drafting import accumulator_encoding, operand_encoding, read_encoding, read_name


@pytest.fixture
def product() -> ir.Node:
    nodes = [helper.make_node("MatMul", ["x", "x"], ["y"], name="a#b")]
    return next(iter(ir.from_proto(model(nodes, [])).graph))


def test_an_edge_wins_over_the_tensor(product: ir.Node) -> None:
    tensors, edges = {"x": Encoding("int8", 0.5)}, {"a#b#1": Encoding("int16", 0.25)}
    assert read_name("a#b#1", {"a#b": product}) == "x"
    assert read_encoding(product, 0, tensors, edges) == tensors["x"]
    assert read_encoding(product, 1, tensors, edges) == edges["a#b#1"]
    assert read_encoding(product, 0, {}, edges) is None
    assert accumulator_encoding(product, tensors, edges) == Encoding("int32", 0.125)
    with pytest.raises(UserError, match="operand 0 of a#b is not quantized"):
        operand_encoding(product, 0, {}, edges)


def test_exact_pins_take_no_patterns() -> None:
    assert Pins({"conv[1]*": "int16"}).type_of("conv1") == "int16"
    assert ExactPins({"conv[1]*": "int16"}).type_of("conv1") is None
    assert ExactPins({"conv[1]*": "int16"}).type_of("conv[1]*") == "int16"
