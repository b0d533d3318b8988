"""Where Resize reads: the slow reference, our grids, onnxruntime and ONNX's reference name the same pixel."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from builders import constant
from narrowcast.engine.reference.sums import nearest_resize
from narrowcast.graph.run import Runner
from narrowcast.graph.windows import linear_positions, nearest_positions

GRIDS = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
#: Size and factor; those of the second group make ties that only the rounding of float32 decides.
PLAIN = [(4, 2.0), (6, 3.0), (8, 0.5), (12, 0.25), (8, 1.25), (1, 4.0)]
ODD = [(5, 0.2), (16, 1.3), (20, 0.3), (33, 0.3), (80, 1.3), (10, 1.7), (33, 2.6), (77, 0.55)]


def resize(size: int, scale: float, **attributes: str) -> onnx.ModelProto:
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], name="resize", **attributes)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 1, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [constant("scales", np.asarray([1, 1, 1, scale], np.float32))],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def read(model: onnx.ModelProto, x: NDArray[np.float32], scale: float, count: int) -> list[NDArray[np.float32]]:
    """Row of outputs by the slow reference and by the grid that check, the chip's writer and finetune read."""
    node = ir.serde.deserialize_model(model).graph[0]
    factor = float(np.float32(scale))
    slow = nearest_resize(x, node, [1, 1, 1, factor], (1, 1, 1, count))[0, 0, 0]
    return [slow, x[0, 0, 0, nearest_positions(node, x.shape[3], count, factor)]]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("grid", GRIDS)
def test_nearest_reads_the_same_pixels_everywhere(grid: str, rounding: str) -> None:
    for size, scale in [*PLAIN, *ODD]:
        model = resize(size, scale, coordinate_transformation_mode=grid, nearest_mode=rounding)
        x = np.arange(size, dtype=np.float32).reshape(1, 1, 1, -1)
        expected = Runner(model, 1, "none").run(x)["y"][0, 0, 0]
        for row in read(model, x, scale, len(expected)):
            np.testing.assert_array_equal(row, expected, f"{size} {scale}")
        if (size, scale) in PLAIN:
            np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {"x": x})[0][0, 0, 0], expected)


@pytest.mark.parametrize("grid", GRIDS)
def test_linear_mixes_the_same_pixels(grid: str) -> None:
    for size, scale in PLAIN:
        model = resize(size, scale, mode="linear", coordinate_transformation_mode=grid)
        x = np.random.default_rng(size).normal(size=(1, 1, 1, size)).astype(np.float32)
        expected = np.asarray(ReferenceEvaluator(model).run(None, {"x": x})[0])[0, 0, 0]
        lower, fraction = linear_positions(size, len(expected), scale, grid)
        row, upper = x[0, 0, 0], np.minimum(lower + 1, size - 1)
        np.testing.assert_allclose(row[lower] * (1 - fraction) + row[upper] * fraction, expected, atol=1e-6)


def test_a_grid_that_nobody_knows_is_no_other_one() -> None:
    model = resize(7, 1.3, coordinate_transformation_mode="half_pixel_symmetric")
    with pytest.raises(ValueError, match="half_pixel_symmetric"):
        read(model, np.zeros((1, 1, 1, 7), np.float32), 1.3, 9)
