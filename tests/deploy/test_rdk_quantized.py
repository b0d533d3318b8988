"""hb_mapper's ``*_quantized_model.onnx``: every operator of its domain against slow integers.

The nodes are written here by hand in the form of that file. The slow rules below gave what the vendor's runtime
HB_ONNXRuntime gives, with no difference, on networks of one operator compiled with hb_mapper 1.24.3 (2026-11-25), and
the reader gave the same outputs for yolo11n-pose, yolo11n-seg, yolov8n and mobilenet_v2.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from narrowcast.base.errors import UserError
from narrowcast.bundle import open_model
from narrowcast.chips.rdk.quantized import is_quantized, to_standard
from narrowcast.graph.run import open_session

Array = np.ndarray[Any, np.dtype[Any]]
RNG = np.random.default_rng(7)
MAP = {"data_format": "NHWC"}
SHIFTS = {"right_shift": [1, 2, 0, 3], "scale": [30001, 16385, 20011, 25000], "out_shift": [20, 19, 21, 18]}
OUTPUT = {"accu_right_shift": 7, "output_scale": 19661, "output_right_shift": 22, "output_bit": 8}


def through(x: Array, first: Any, scale: Any, second: Any, half: bool, bits: int = 8, low: int | None = None) -> Array:
    first, scale, second = (np.asarray(each, np.int64) for each in (first, scale, second))
    y = (x >> first) * scale
    y = (y + (np.where(second > 0, np.int64(1) << np.maximum(second - 1, 0), 0) if half else 0)) >> second
    return np.clip(y, -(1 << (bits - 1)) if low is None else low, (1 << (bits - 1)) - 1)


def convolve(x: Array, weight: Array, pad: int) -> Array:
    """NHWC, weights (O, kh, kw, I), stride 1."""
    size = weight.shape[1]
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    count = x.shape[1] - size + 1
    return sum(
        np.einsum("nhwi,oi->nhwo", x[:, i : i + count, j : j + count], weight[:, i, j])
        for i in range(size) for j in range(size)
    )  # fmt: skip


def model(
    op: str, constants: dict[str, Array], shape: tuple[int, ...], inputs: int = 1, bits: int = 8, rank4: bool = True,
    **attributes: Any,
) -> onnx.ModelProto:  # fmt: skip
    """Integers in, one node, its integers out as floats."""
    kind = TensorProto.INT8 if bits == 8 else TensorProto.INT16
    names = [f"x{index}" for index in range(inputs)]
    source = (1, 6, 6, 4) if rank4 else (1, 2, 5, 5)
    nodes = []
    for name in names:
        nodes.append(
            helper.make_node(
                "HzQuantize", [name, "one"], [f"{name}_q"], f"{name}_quantize", domain="horizon", bits=bits
            )
        )
    if "output_bits" in attributes:
        attributes["bits"] = attributes.pop("output_bits")
    nodes.append(
        helper.make_node(op, [*(f"{n}_q" for n in names), *constants], ["y_q"], "node", domain="horizon", **attributes)
    )
    nodes.append(helper.make_node("HzDequantize", ["y_q", "one"], ["y"], "out", domain="horizon"))
    values = [helper.make_tensor_value_info(f"{n}_q", kind, source) for n in names]
    values.append(helper.make_tensor_value_info("y_q", kind, shape))
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, TensorProto.FLOAT, source) for n in names],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [*stored, numpy_helper.from_array(np.ones(1, np.float32), "one")], value_info=values,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11), helper.make_opsetid("horizon", 1)])


def computed(proto: onnx.ModelProto, *inputs: Array) -> Array:
    standard = to_standard(proto, "m.onnx")
    onnx.checker.check_model(standard, full_check=True)
    feed = {f"x{index}": value.astype(np.float32) for index, value in enumerate(inputs)}
    return np.asarray(open_session(standard, 1, "basic").run(None, feed)[0])


def integers(rank4: bool = True, bits: int = 8) -> Array:
    limit = 1 << (bits - 1)
    return RNG.integers(-limit, limit, (1, 6, 6, 4) if rank4 else (1, 2, 5, 5), np.int64)


WEIGHT = RNG.integers(-127, 128, (4, 3, 3, 4)).astype(np.int8)
BIAS = RNG.integers(-9000, 9000, 4).astype(np.int32)
CONV = {"w": WEIGHT, "b": BIAS, "s": np.zeros(4, np.int8)}
GEOMETRY = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [1, 1], "group": 1, "use_bias": 1}


@pytest.mark.parametrize(("bits", "activation"), [(8, ""), (8, "relu"), (16, "")])
def test_convolution(bits: int, activation: str) -> None:
    x = integers(bits=bits)
    more = {"activation": activation} if activation else {}
    proto = model("HzSQuantizedConv", CONV, (1, 6, 6, 4), bits=bits, **MAP, **GEOMETRY, **SHIFTS, output_bit=8, **more)
    expected = through(convolve(x, WEIGHT.astype(np.int64), 1) + BIAS, *SHIFTS.values(), False, low=0 if more else None)
    np.testing.assert_array_equal(computed(proto, x), expected)


def test_convolution_that_leaves_whole_or_takes_an_addition() -> None:
    x, e = integers(), integers()
    total = convolve(x, WEIGHT.astype(np.int64), 1) + BIAS
    proto = model("HzSQuantizedConv", CONV, (1, 6, 6, 4), **MAP, **GEOMETRY, output_bit=32)
    np.testing.assert_array_equal(computed(proto, x), total)
    scales, shifts = [27139, 29644, 17722, 20000], [-7, -7, -6, 1]
    proto = model("HzSQuantizedConv", CONV, (1, 6, 6, 4), **MAP, **GEOMETRY, **SHIFTS, output_bit=8, use_sumin=1,
                  e_scale=scales, e_shift=shifts)  # fmt: skip
    node = proto.graph.node[1]
    node.input.append("x1_q")
    proto.graph.node.insert(0, helper.make_node("HzQuantize", ["x1", "one"], ["x1_q"], domain="horizon", bits=8))
    proto.graph.input.append(helper.make_tensor_value_info("x1", TensorProto.FLOAT, (1, 6, 6, 4)))
    proto.graph.value_info.append(helper.make_tensor_value_info("x1_q", TensorProto.INT8, (1, 6, 6, 4)))
    added = np.floor(e * np.asarray(scales) * 2.0 ** np.asarray(shifts)).astype(np.int64)
    np.testing.assert_array_equal(computed(proto, x, e), through(total + added, *SHIFTS.values(), False))


def test_transposed_convolution() -> None:
    x = integers()
    weight = RNG.integers(-127, 128, (4, 2, 2, 4)).astype(np.int8)  # (I, kh, kw, O)
    names = dict(zip(("accu_right_shift", "y_quant_scale", "y_right_shift"), SHIFTS.values(), strict=True))
    proto = model("HzSQuantizedConvTranspose", {"w": weight, "b": BIAS}, (1, 12, 12, 4), **MAP, kernel_shape=[2, 2],
                  pads=[0] * 4, strides=[2, 2], group=1, use_bias=1, b_left_shift=[0] * 4, **names)  # fmt: skip
    total = np.zeros((1, 12, 12, 4), np.int64)
    for i in range(2):
        for j in range(2):
            total[:, i::2, j::2] = np.einsum("nhwi,io->nhwo", x, weight[:, i, j].astype(np.int64))
    np.testing.assert_array_equal(computed(proto, x), through(total + BIAS, *SHIFTS.values(), False))


def _add(a: Array, b: Array) -> Array:
    return through((a << 15) + b * 21845, 7, 19661, 22, True)


def _sub(a: Array, b: Array) -> Array:
    return through((a << 15) - b * 21845, 7, -19661, 22, True)


@pytest.mark.parametrize(
    ("op", "attributes", "rule"),
    [
        ("HzSElementwiseAdd", {**OUTPUT, "x_shift": [15] * 4, "e_scale": [21845] * 4, "e_shift": [0] * 4}, _add),
        ("HzSElementwiseSub", {**OUTPUT, "output_scale": -19661, "x_shift": 15, "e_scale": 21845}, _sub),
        ("HzSElementwiseMul", {**OUTPUT, "accu_right_shift": 0}, lambda a, b: through(a * b, 0, 19661, 22, True)),
    ],
)  # fmt: skip
def test_two_operands(op: str, attributes: dict[str, Any], rule: Callable[[Array, Array], Array]) -> None:
    a, b = integers(), integers()
    listed = {
        key: value if isinstance(value, list) or key == "output_bit" else [value] for key, value in attributes.items()
    }
    np.testing.assert_array_equal(computed(model(op, {}, (1, 6, 6, 4), 2, **MAP, **listed), a, b), rule(a, b))


def test_matrices() -> None:
    a, b = integers(False), integers(False)
    numbers = {"right_shift": [1], "scale": [25166], "out_shift": [20], "output_bit": 8}
    proto = model("HzSQuantizedMatmul", {}, (1, 2, 5, 5), 2, rank4=False, **numbers)
    np.testing.assert_array_equal(computed(proto, a, b), through(a @ b, 1, 25166, 20, True))


def test_tables() -> None:
    x, table = integers(), RNG.integers(-128, 128, 256).astype(np.int8)
    np.testing.assert_array_equal(
        computed(model("HzLut", {"t": table}, (1, 6, 6, 4), **MAP, lut_type="swish"), x), table[x + 128]
    )


def test_tables_of_16_bits() -> None:
    x = integers(bits=16)
    points = np.cumsum(RNG.integers(0, 150, 384)) - 14000
    bound = [-20000, -9728, -4096, 255, 4607, 10239, 30000, 32767]
    scale, bias, left, right = [16384] * 8, [700] * 8, [4] * 8, [14, 7, 8, 8, 8, 8, 9, 14]
    for part in range(1, 7):  # each part begins at 0 and ends at 63 * 256
        low, high = bound[part - 1], bound[part]
        right[part] = 13
        scale[part] = int(63 * 256 * 2**13 / (high - low))
        bias[part], left[part] = -low * scale[part] >> 13, 13
    lines = {"scale": scale, "bias": bias, "left_shift": left, "right_shift": right, "bound": bound, "output_bit": 16}
    proto = model("HzLut2Layer", {}, (1, 6, 6, 4), bits=16, **MAP, **lines, table_param=points.tolist())
    expected = []
    for value in x.ravel().tolist():
        part = sum(value > edge for edge in bound[:7])
        line = (value * scale[part] + (bias[part] << left[part]) + (1 << (right[part] - 1))) >> right[part]
        if part not in (0, 7):
            index = min(max(line >> 8, 0), 62)
            a, b = (int(points[(part - 1) * 64 + index + step]) for step in (0, 1))
            line = (a * 256 + (b - a) * (line - index * 256) + 128) >> 8
        expected.append(min(max(line, -32768), 32767))
    np.testing.assert_array_equal(computed(proto, x).ravel(), expected)


def test_pools_and_other_scales() -> None:
    x = integers()
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = sum(padded[:, i : i + 6, j : j + 6] for i in range(3) for j in range(3))
    proto = model(
        "HzQuantizedAveragePool", {}, (1, 6, 6, 4), **MAP, kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1], scale=9
    )
    np.testing.assert_array_equal(computed(proto, x), (total * (512 // 9)) >> 9)
    listed = {key: [value] * 4 if key != "output_bit" else value for key, value in OUTPUT.items()}
    proto = model("HzSQuantizedGlobalAveragePool", {}, (1, 1, 1, 4), **MAP, **listed)
    np.testing.assert_array_equal(computed(proto, x), through(x.sum((1, 2), keepdims=True), 7, 19661, 22, True))
    proto = model(
        "HzRequantize", {}, (1, 6, 6, 4), **MAP, output_scale=[26214] * 4, output_right_shift=[14] * 4, output_bits=8
    )
    np.testing.assert_array_equal(computed(proto, x), through(x, 0, 26214, 14, True))
    proto = model(
        "HzQuantizedMaxPool", {}, (1, 3, 3, 4), **MAP, kernel_shape=[2, 2], pads=[0] * 4, strides=[2, 2], output_bit=8
    )
    np.testing.assert_array_equal(computed(proto, x), x.reshape(1, 3, 2, 3, 2, 4).max((2, 4)))
    proto = model("HzQuantizedResizeUpsample", {}, (1, 12, 12, 4), **MAP, mode="nearest", scale=[2, 2])
    np.testing.assert_array_equal(computed(proto, x), x.repeat(2, 1).repeat(2, 2))


def test_pixels() -> None:
    """Bytes less 128 through the preprocess node: the very numbers of hb_mapper at 1/255 and a range of 1."""
    constants = {"w": np.full((3, 1, 1, 1), 127, np.int8), "b": np.full(3, 16383, np.int32), "s": np.zeros(3, np.int8)}
    numbers = {"right_shift": [0] * 3, "scale": [16448] * 3, "out_shift": [22] * 3, "output_bit": 8}
    numbers |= {**MAP, "input_type": "RGB_128", "channel_group": 3}
    node = helper.make_node("HzSQuantizedPreprocess", ["x0", *constants], ["y_q"], "node", domain="horizon", **numbers)
    out = helper.make_node("HzDequantize", ["y_q", "one"], ["y"], "out", domain="horizon")
    stored = [
        numpy_helper.from_array(value, name) for name, value in {**constants, "one": np.ones(1, np.float32)}.items()
    ]
    graph = helper.make_graph(
        [node, out], "g", [helper.make_tensor_value_info("x0", TensorProto.INT8, (1, 16, 16, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 16, 16, 3))], stored,
        value_info=[helper.make_tensor_value_info("y_q", TensorProto.INT8, (1, 16, 16, 3))],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11), helper.make_opsetid("horizon", 1)])
    pixels = np.arange(256).reshape(1, 16, 16, 1).repeat(3, -1)
    np.testing.assert_array_equal(computed(proto, pixels), ((pixels - 128) * 127 + 16383) * 16448 >> 22)
    node.attribute[[entry.name for entry in node.attribute].index("input_type")].s = b"YUV_BT601_FULL_RANGE_128"
    proto.graph.node[0].CopyFrom(node)
    with pytest.raises(UserError, match="arrives as b'YUV_BT601_FULL_RANGE_128'"):
        to_standard(proto, "m.onnx")


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    proto = model("HzSQuantizedLstm", {}, (1, 6, 6, 4))
    assert is_quantized(proto)
    onnx.save(proto, tmp_path / "m_quantized_model.onnx")
    with pytest.raises(UserError, match="node is a HzSQuantizedLstm, which this reader does not know"):
        open_model(tmp_path / "m_quantized_model.onnx")
