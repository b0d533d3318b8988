"""Several ways to write one operator become one, and compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from builders import constant, model, save, weights
from narrowcast.graph import Runner, load

node = helper.make_node
RNG = np.random.default_rng(0)


def ints(name: str, *values: int) -> onnx.TensorProto:
    return constant(name, np.asarray(values, np.int64))


FLAT = (node("Reshape", ["x", "rows"], ["r"], name="rows"), node("Reshape", ["x", "columns"], ["c"], name="columns"))
SIZES = (ints("rows", 12, 16), ints("columns", 16, 12))
NETS = {
    "Max of one": ([node("Max", ["x"], ["m"], name="n"), node("Relu", ["m"], ["y"], name="r")], (), {"Max"}),
    "Max of three": ([node("Max", ["x", "k", "l"], ["y"], name="n")],
                     (weights(RNG, "k", 3, 1, 1), weights(RNG, "l", 1, 3, 8, 8)), set()),
    "Sum": ([node("Sum", ["x", "k", "x"], ["y"], name="n")], (weights(RNG, "k", 1, 1, 8),), {"Sum"}),
    "Mean": ([node("Mean", ["x", "k", "l"], ["y"], name="n")],
             (weights(RNG, "k", 8), weights(RNG, "l", 3, 1, 1)), {"Mean"}),
    "Gemm of two results": ([*FLAT, node("Gemm", ["r", "c", "k"], ["y"], name="n", alpha=0.5, beta=2.0)],
                            (*SIZES, weights(RNG, "k", 12)), {"Gemm"}),
    "Gemm turned": ([*FLAT, node("Gemm", ["c", "k", "l"], ["y"], name="n", transA=1, transB=1, alpha=2.0)],
                    (*SIZES, weights(RNG, "k", 5, 16), weights(RNG, "l", 12, 5)), set()),
    "ConvTranspose with a shape": ([node("ConvTranspose", ["x", "k"], ["y"], name="n", strides=[2, 2],
                                         output_shape=[15, 16])], (weights(RNG, "k", 3, 4, 3, 3),), set()),
    "ConvTranspose same": ([node("ConvTranspose", ["x", "k"], ["y"], name="n", strides=[2, 2], auto_pad="SAME_LOWER")],
                           (weights(RNG, "k", 3, 4, 3, 3),), set()),
    "Resize by axes": ([node("Resize", ["x", "", "", "k"], ["y"], name="n", mode="linear", axes=[2, 3],
                             keep_aspect_ratio_policy="not_smaller")], (ints("k", 12, 20),), set()),
    "Resize that keeps its centre": ([node("Resize", ["x", "", "k"], ["y"], name="n", mode="linear",
                                           coordinate_transformation_mode="half_pixel_symmetric")],
                                     (constant("k", np.float32([1, 1, 1.5, 2])),), set()),
    "Resize that stays": ([node("Resize", ["x", "", "k"], ["r"], name="n"), node("Relu", ["r"], ["y"], name="r")],
                          (constant("k", np.float32([1, 1, 1.1, 1])),), {"Resize"}),
    "Split in three": ([node("Split", ["x"], ["a", "b", "c"], name="n", axis=-1, num_outputs=3),
                        node("Concat", ["c", "a", "b"], ["y"], name="cat", axis=3)], (), set()),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_one_form(name: str, tmp_path: Path) -> None:
    nodes, constants, gone = NETS[name]
    proto = model(nodes, constants, shape=(1, 3, 8, 8), opset=19 if name == "Resize that keeps its centre" else 18)
    loaded = load(save(proto, tmp_path / "net.onnx"), keep_head=True)
    assert not gone & {entry.op_type for entry in loaded.ir.graph}
    unwanted = {"alpha", "beta", "transA", "auto_pad", "output_shape", "axes", "num_outputs"}
    for entry in loaded.ir.graph:
        assert not unwanted & set(entry.attributes)
        assert entry.attributes.get_string("coordinate_transformation_mode", "") != "half_pixel_symmetric"
        assert len(entry.inputs) == 2 or entry.op_type not in ("Max", "Min", "Add")
    tensor = np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)
    expected = Runner(proto, 1, "none").run(tensor)["y"]
    np.testing.assert_allclose(Runner(loaded.to_proto(), 1).run(tensor)["y"], expected, rtol=1e-5, atol=1e-5)
