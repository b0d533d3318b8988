"""One small graph with a plan, through the integer lowering and through the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from narrowcast.chips import Target, load_target
from narrowcast.engine.integer import IntegerGraph, IntegerRunner, lower_integer
from narrowcast.engine.reference import run_reference
from narrowcast.plan import Encoding, Placement, Plan

#: Half-even with weights per channel, half-up with one weight scale and 20-bit biases, float multipliers.
SHIFT_TARGETS = ("esp32p4", "esp32s3")
ALL_TARGETS = (*SHIFT_TARGETS, "bayes-e", "onnx")


def power(exponent: int, dtype: str = "int8") -> Encoding:
    return Encoding(dtype, 2.0**exponent)


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int],
    constants: dict[str, np.ndarray] | None = None,
    outputs: Sequence[str] = ("y",),
    shapes: dict[str, Sequence[int]] | None = None,
    opset: int = 17,
) -> ir.Model:
    """A prepared graph: static shapes, named nodes. ``shapes`` tells those that ONNX cannot infer."""
    known = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (shapes or {}).items()]
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (shapes or {}).get(name)) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
        value_info=known,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("narrowcast", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def plan_of(model: ir.Model, target: str, tensors: dict[str, Encoding], **others: Any) -> Plan:
    """A plan that places every node as integers, except those named in ``floats``."""
    floats = others.get("floats", ())
    nodes = {
        str(node.name): Placement("unit", "float32" if node.name in floats else "int8", "test") for node in model.graph
    }
    return Plan(target, tensors, others.get("edges", {}), nodes)


def integers(shape: Sequence[int], encoding: Encoding, seed: int, extreme: bool = False) -> np.ndarray:
    """Random integers of an encoding; extreme ones are only the smallest and the largest."""
    rng = np.random.default_rng(seed)
    if extreme:
        return rng.choice([encoding.qmin, encoding.qmax], shape).astype(encoding.dtype)
    return rng.integers(encoding.qmin, encoding.qmax + 1, shape).astype(encoding.dtype)


def compare(model: ir.Model, plan: Plan, target: str | Target, x: np.ndarray, level: str = "all") -> IntegerGraph:
    """Assert that the lowered graph and the reference agree on every integer; float inputs and integer inputs."""
    chip = load_target(target) if isinstance(target, str) else target
    graph = lower_integer(model, plan, chip, integer_input=x.dtype.kind != "f")
    onnx.checker.check_model(graph.proto, full_check=True)
    actual = IntegerRunner(graph, 1, level, all_tensors=True).integers(x)
    expected = run_reference(model, plan, chip, {"x": x})
    assert set(actual) == set(expected)
    for name, values in expected.items():
        assert actual[name].dtype == values.dtype
        np.testing.assert_array_equal(actual[name], values, err_msg=name)
    shipped = IntegerRunner(graph, 1, level).run(x)
    for name, values in shipped.items():
        if graph.outputs[name] is not None:
            np.testing.assert_array_equal(values, expected[name], err_msg=f"{name} shipped")
    return graph


seeds = st.integers(0, 2**32 - 1)
targets = st.sampled_from(ALL_TARGETS)
shift_targets = st.sampled_from(SHIFT_TARGETS)


def encodings(target: str, dtype: str = "int8") -> st.SearchStrategy[Encoding]:
    """Encodings of an activation that a target may have."""
    rules = load_target(target).activation
    if rules.scale == "power-of-two":
        return st.integers(-12, 4).map(lambda exponent: power(exponent, dtype))
    lowest, highest = Encoding(dtype, 1.0).qmin, Encoding(dtype, 1.0).qmax
    zeros = st.just(0) if rules.symmetric else st.integers(lowest // 2, highest // 2)
    return st.builds(lambda scale, zero: Encoding(dtype, scale, zero), st.floats(1e-3, 10.0), zeros)
