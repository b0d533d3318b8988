"""A tiny net for every form of every operator that a target lists: what ``test_operator_matrix.py`` runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from builders import constant

#: Shape of the image, and of what the convolution behind it gives to every case.
IMAGE, STEM = (1, 4, 8, 8), (1, 8, 8, 8)


@dataclass(frozen=True)
class Case:
    """One form of one operator.

    Attributes:
        op: operator type, as the target files name it.
        form: what is special; unique for an operator.
        nodes: (operator, inputs, attributes) in a chain; "x" is the convolution's result, "<" what the last one gave,
            any other name a constant, "~" the second convolution's result.
        constants: by name.
        clip: range to which the convolution's result is clipped before, for functions with a domain.
        opset: of the net.
        kind: element type of the result.
        outputs: how many results the last node has.
        floor: least signal to noise of the int8 result, dB.
    """

    op: str
    form: str
    nodes: tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    clip: tuple[float, float] | None = None
    opset: int = 17
    kind: int = TensorProto.FLOAT
    outputs: int = 1
    floor: float = 24.0

    @property
    def name(self) -> str:
        """Also the name of the node that it is about."""
        return f"{self.op}.{self.form}".replace(" ", "_")

    def results(self) -> list[str]:
        """Names of the graph's outputs."""
        return [f"{self.name}.y{index}" for index in range(self.outputs)]


def reals(*shape: int, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    return np.random.default_rng(shape).uniform(low, high, shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def one(op: str, form: str, *operands: Any, clip: tuple[float, float] | None = None, opset: int = 17,
        kind: int = TensorProto.FLOAT, outputs: int = 1, floor: float = 24.0, first: str | None = None,
        shape: tuple[int, ...] = (), **attributes: Any) -> Case:  # fmt: skip
    """A single node on the stem. Operands are arrays, ``None`` (absent), "~" (the second convolution), or "x" itself.

    Args:
        first: instead of the stem as first operand: "constant" puts the first array there.
        shape: reshapes the stem before.
    """
    constants, names = {}, []
    for index, operand in enumerate(operands):
        name = operand if isinstance(operand, str) else "" if operand is None else f"k{index}"
        if isinstance(operand, (np.ndarray, np.generic)):
            constants[name] = np.asarray(operand)
        names.append(name)
    nodes: list[tuple[str, tuple[str, ...], dict[str, Any]]] = []
    source = "x"
    if shape:
        constants["shape"] = ints(*shape)
        nodes.append(("Reshape", ("x", "shape"), {}))
        source = "<"
    inputs = (*names, source) if first == "constant" else (source, *names)
    kind_of = {"Silu": "Mul"}.get(op, op)
    nodes.append((kind_of, inputs, attributes))
    return Case(op, form, tuple(nodes), constants, clip, opset, kind, outputs, floor)


def chain(op: str, form: str, nodes: Sequence[tuple[Any, ...]], opset: int = 17, **options: Any) -> Case:
    """Several nodes; the one about which the case is comes last."""
    full = tuple((n[0], n[1], n[2] if len(n) > 2 else {}) for n in nodes)
    return Case(op, form, full, opset=opset, **options)


def _unary() -> list[Case]:
    plain = ("HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "Selu", "Erf", "Exp", "Abs", "Asinh",
             "Atan", "Cos", "Sin", "Sinh", "Cosh", "Softplus", "Softsign", "Relu", "Neg")  # fmt: skip
    found = [one(op, "plain") for op in plain]
    domains = {"Log": (0.5, 4), "Sqrt": (0.1, 4), "Reciprocal": (0.5, 4), "Acos": (-0.9, 0.9), "Asin": (-0.9, 0.9),
               "Acosh": (1.2, 4), "Atanh": (-0.8, 0.8), "Tan": (-1, 1)}  # fmt: skip
    found += [one(op, "domain", clip=domain) for op, domain in domains.items()]
    steps = ("Ceil", "Floor", "Round", "Sign")  # a value near a step may fall on its other side
    found += [one(op, "steps", floor=8.0) for op in steps]
    found += [
        one("LeakyRelu", "slope", alpha=0.3), one("Elu", "alpha", alpha=0.5),
        one("HardSigmoid", "beta", alpha=0.1, beta=0.4),
        one("Pow", "square", np.float32(2)), one("Pow", "root", np.float32(0.5), clip=(0.1, 4)),
        one("Pow", "cube", np.float32(3), floor=20.0), one("Pow", "inverse", reals(1, low=-1, high=-1), clip=(0.5, 4)),
        one("Pow", "int exponent", np.asarray(2, np.int64)),
        one("Pow", "channels", reals(1, 8, 1, 1, low=1, high=2), clip=(0.1, 2)),
        one("Pow", "computed", "~", clip=(0.5, 2), floor=14.0),
        one("PRelu", "one slope", reals(1)), one("PRelu", "channels", reals(8, 1, 1)),
        one("PRelu", "full", reals(8, 8, 8)),
        one("Clip", "six", np.float32(0), np.float32(6)), one("Clip", "low", np.float32(-0.5)),
        one("Clip", "high", None, np.float32(0.75)), one("Clip", "both", np.float32(-0.3), np.float32(0.6)),
        one("Gelu", "plain", opset=20), one("Gelu", "tanh", opset=20, approximate="tanh"),
        chain("Silu", "plain", [("Sigmoid", ("x",)), ("Mul", ("x", "<"))]),
    ]  # fmt: skip
    return found


def _binary() -> list[Case]:
    found = []
    for op in ("Add", "Sub", "Mul", "Div", "Max", "Min"):
        low = 0.5 if op == "Div" else -1.0
        clip = (0.5, 4.0) if op == "Div" else None
        found += [
            one(op, "computed", "~") if op != "Div" else
            chain(op, "computed", [("Clip", ("~", "low", "high")), ("Div", ("x", "<"))],
                  constants={"low": np.asarray(0.5, np.float32), "high": np.asarray(4, np.float32)}),
            one(op, "constant right", reals(1, 8, 1, 1, low=low, high=2)),
            one(op, "constant left", reals(1, 8, 1, 1, low=low, high=2), first="constant", clip=clip),
            one(op, "scalar", np.float32(0.7)), one(op, "scalar left", np.float32(0.7), first="constant", clip=clip),
            one(op, "full", reals(*STEM, low=low, high=2)),
            one(op, "rank 3", reals(1, 8, 64, low=low, high=2), shape=(1, 8, 64)),
            chain(op, "broadcast", [("GlobalMaxPool", ("x",)), (op, ("x", "<"))]) if op != "Div" else
            one(op, "same", "x", clip=(0.5, 4.0)),
        ]  # fmt: skip
    found += [one(op, "three", "~", reals(1, 8, 1, 1)) for op in ("Max", "Min")]
    for op in ("Equal", "Greater", "Less"):
        quantity = np.float32(0.3) if op != "Equal" else np.float32(100)
        found += [
            one(op, "constant", quantity, kind=TensorProto.BOOL), one(op, "computed", "~", kind=TensorProto.BOOL),
            one(op, "constant left", quantity, first="constant", kind=TensorProto.BOOL),
        ]
    return found


def _products() -> list[Case]:
    w = reals
    return [
        one("Conv", "plain", w(6, 8, 3, 3), w(6), pads=[1] * 4), one("Conv", "no bias", w(16, 8, 1, 1)),
        one("Conv", "stride", w(6, 8, 3, 3), w(6), strides=[2, 1], pads=[1, 0, 1, 2]),
        one("Conv", "dilation", w(6, 8, 3, 3), dilations=[2, 2], pads=[2] * 4),
        one("Conv", "depthwise", w(8, 1, 3, 3), w(8), group=8, pads=[1] * 4),
        one("Conv", "multiplier", w(16, 1, 3, 3), w(16), group=8, pads=[1] * 4),
        one("Conv", "groups", w(8, 4, 3, 3), w(8), group=2, pads=[1] * 4),
        one("Conv", "same", w(6, 8, 3, 3), w(6), auto_pad="SAME_UPPER", strides=[2, 2]),
        one("Conv", "same lower", w(6, 8, 4, 4), w(6), auto_pad="SAME_LOWER"),
        one("Conv", "rank 3", w(6, 8, 3), w(6), shape=(1, 8, 64)),
        one("Conv", "rank 5", w(6, 8, 1, 3, 3), w(6), shape=(1, 8, 2, 4, 8)),
        one("Conv", "large", w(2, 8, 8, 8), w(2)),
        one("ConvTranspose", "plain", w(8, 6, 2, 2), w(6), strides=[2, 2]),
        one("ConvTranspose", "pads", w(8, 6, 3, 3), strides=[2, 2], pads=[1] * 4, output_padding=[1, 1]),
        one("ConvTranspose", "groups", w(8, 3, 2, 2), w(6), strides=[2, 2], group=2),
        one("ConvTranspose", "depthwise", w(8, 1, 2, 2), w(8), strides=[2, 2], group=8),
        one("ConvTranspose", "rank 3", w(8, 6, 2), w(6), strides=[2], shape=(1, 8, 64)),
        one("ConvTranspose", "dilation", w(8, 6, 3, 3), w(6), dilations=[2, 2]),
        one("ConvTranspose", "same", w(8, 6, 3, 3), w(6), strides=[2, 2], auto_pad="SAME_UPPER"),
        one("Gemm", "plain", w(512, 6), w(6), shape=(1, 512)),
        one("Gemm", "transB", w(7, 512), w(7), shape=(1, 512), transB=1, floor=15),
        one("Gemm", "no bias", w(512, 6), shape=(1, 512)),
        one("Gemm", "alpha", w(512, 6), w(6), shape=(1, 512), alpha=0.5, beta=2.0),
        one("Gemm", "rows", w(8, 6), w(6), shape=(64, 8)),
        one("Gemm", "transA", w(8, 6), w(6), shape=(8, 64), transA=1),
        one("Gemm", "matrix bias", w(8, 6), w(64, 6), shape=(64, 8)),
        chain("Gemm", "computed",
            [("Reshape", ("x", "rows")), ("Reshape", ("~", "columns")), ("Gemm", ("inner0", "<"))],
              constants={"rows": ints(64, 8), "columns": ints(8, 64)}),
        chain("Conv", "computed", [("Reshape", ("~", "filters")), ("Conv", ("x", "<"))],
            constants={"filters": ints(1, 8, 8, 8)}),
        one("MatMul", "constant", w(8, 6)), one("MatMul", "constant left", w(6, 8), first="constant"),
        one("MatMul", "constant stack", w(1, 8, 8, 6)), one("MatMul", "computed", "~"),
        one("MatMul", "rank 3", w(64, 6), shape=(1, 8, 64)), one("MatMul", "rank 2", w(512, 6), shape=(1, 512)),
        chain("MatMul", "attention", [("Transpose", ("~",), {"perm": [0, 1, 3, 2]}), ("MatMul", ("x", "<"))]),
    ]  # fmt: skip


def _windows() -> list[Case]:
    two = {"kernel_shape": [2, 2], "strides": [2, 2]}
    three = {"kernel_shape": [3, 3], "strides": [2, 2]}
    found = []
    for op in ("AveragePool", "MaxPool"):
        found += [
            one(op, "plain", **two), one(op, "pads", **three, pads=[1] * 4), one(op, "ceil", **three, ceil_mode=1),
            one(op, "same", **three, auto_pad="SAME_UPPER"), one(op, "rank 3", shape=(1, 8, 64), kernel_shape=[3]),
        ]
    return [
        *found, one("AveragePool", "padding counts", **three, pads=[1] * 4, count_include_pad=1),
        one("AveragePool", "dilation", opset=19, kernel_shape=[2, 2], dilations=[2, 2]),
        one("MaxPool", "dilation", kernel_shape=[2, 2], dilations=[2, 2]),
        one("GlobalAveragePool", "plain", floor=18.0), one("GlobalMaxPool", "plain"),
        one("GlobalAveragePool", "rank 3", shape=(1, 8, 64), floor=18.0),
        one("GlobalMaxPool", "rank 3", shape=(1, 8, 64)),
        *(one(op, f"keep {keep}", axes=[2, 3], keepdims=keep) for op in ("ReduceMean", "ReduceMax", "ReduceMin")
            for keep in (0, 1)),
        *(one(op, "channels", axes=[1]) for op in ("ReduceMean", "ReduceMax", "ReduceMin")),
        *(one(op, "last", axes=[-1], keepdims=0) for op in ("ReduceMean", "ReduceMax", "ReduceMin")),
        *(one("ReduceSum", form, ints(*axes), keepdims=keep) for form, axes, keep in
          (("plane", (2, 3), 1), ("channels", (1,), 1), ("last", (-1,), 0))),
        *(one(op, "axes input", ints(2, -1), opset=18) for op in ("ReduceMean", "ReduceMax", "ReduceMin")),
        *(one(op, "one axis input", ints(1), opset=18) for op in ("ReduceMean", "ReduceMax", "ReduceMin")),
        *(one(op, form, axis=axis, keepdims=keep, kind=TensorProto.INT64) for op in ("ArgMax", "ArgMin")
          for form, axis, keep in (("channels", 1, 0), ("kept", 1, 1), ("last", -1, 0))),
        one("ArgMax", "last index", axis=1, select_last_index=1, kind=TensorProto.INT64),
        *(one("Softmax", form, axis=axis) for form, axis in (("channels", 1), ("last", -1), ("rows", 2))),
        one("Softmax", "rank 2", axis=-1, shape=(8, 64)), one("Softmax", "opset 11", axis=3, opset=13),
    ]  # fmt: skip


def _moving() -> list[Case]:
    scales = np.asarray([1, 1, 2, 2], np.float32)
    asymmetric = {"coordinate_transformation_mode": "asymmetric"}
    return [
        one("Reshape", "flat", ints(1, -1)), one("Reshape", "rows", ints(0, 4, -1)), one("Flatten", "plain"),
        one("Flatten", "axis", axis=2), one("Transpose", "last", perm=[0, 2, 3, 1]), one("Transpose", "default"),
        chain("Squeeze", "plain", [("GlobalMaxPool", ("x",)), ("Squeeze", ("<", "axes"))],
            constants={"axes": ints(2, 3)}),
        one("Unsqueeze", "plain", ints(2), shape=(1, 8, 64)), one("Unsqueeze", "last", ints(-1), shape=(8, 64)),
        one("Slice", "plain", ints(1), ints(7), ints(2)),
        one("Slice", "step", ints(0, 1), ints(8, 99), ints(2, 3), ints(2, 3)),
        one("Slice", "negative", ints(-1), ints(-99), ints(3), ints(-1)),
        one("Slice", "channels", ints(2), ints(5), ints(1)),
        one("Split", "equal", ints(4, 4), axis=1, outputs=2), one("Split", "uneven", ints(3, 5), axis=1, outputs=2),
        one("Split", "negative", ints(2, 6), axis=-1, outputs=2), one("Split", "default", axis=2, outputs=2),
        one("Split", "num_outputs", axis=1, outputs=3, num_outputs=3, opset=18),
        one("Split", "num_outputs equal", axis=-1, outputs=2, num_outputs=2, opset=18),
        one("Concat", "channels", "~", axis=1), one("Concat", "last", "~", axis=-1),
        one("Concat", "three", "~", "x", axis=2),
        one("Concat", "constant right", reals(1, 2, 8, 8), axis=1),
        one("Concat", "constant left", reals(1, 3, 8, 8), first="constant", axis=1),
        one("Concat", "class token", reals(1, 1, 64), first="constant", axis=1, shape=(1, 8, 64)),
        one("Pad", "plain", ints(0, 0, 1, 2, 0, 0, 0, 1)),
        one("Pad", "value", ints(0, 0, 1, 1, 0, 0, 1, 1), np.float32(0.5)),
        one("Pad", "reflect", ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"),
        one("Pad", "edge", ints(0, 0, 1, 1, 0, 0, 1, 1), mode="edge"),
        one("Pad", "channels", ints(0, 1, 0, 0, 0, 2, 0, 0)), one("Pad", "cut", ints(0, 0, -1, 1, 0, 0, 0, -2)),
        one("Pad", "axes", ints(1, 2), np.float32(0), ints(-1), opset=18),
        one("Pad", "wrap", ints(0, 0, 1, 1, 0, 0, 1, 1), mode="wrap", opset=19),
        one("Expand", "rows", ints(1, 8, 3, 64), shape=(1, 8, 1, 64)), one("Tile", "plain", ints(1, 1, 2, 1)),
        one("Gather", "list", ints(2, 0), axis=1), one("Gather", "single", np.asarray(3, np.int64), axis=2),
        one("Gather", "negative", ints(-1, 1), axis=-1),
        one("Gather", "matrix", ints(0, 1, 2, 3).reshape(2, 2), axis=2),
        one("Identity", "plain"),
        one("DepthToSpace", "DCR", blocksize=2), one("DepthToSpace", "CRD", blocksize=2, mode="CRD"),
        one("SpaceToDepth", "plain", blocksize=2), one("SpaceToDepth", "four", blocksize=4),
        one("Resize", "nearest", None, scales, mode="nearest", **asymmetric, nearest_mode="floor"),
        one("Resize", "nearest half pixel", None, scales, mode="nearest"),
        one("Resize", "nearest sizes", None, None, ints(1, 8, 24, 24), mode="nearest", **asymmetric),
        one("Resize", "linear", None, scales, mode="linear"),
        one("Resize", "linear corners", None, scales, mode="linear", coordinate_transformation_mode="align_corners"),
        one("Resize", "linear asymmetric", None, scales, mode="linear", **asymmetric),
        one("Resize", "linear down", None, None, ints(1, 8, 5, 3), mode="linear"),
        one("Resize", "cubic", None, scales, mode="cubic"),
        one("Resize", "axes", None, scales[2:], mode="linear", axes=[2, 3], opset=18),
        one("Resize", "antialias", None, scales / 4 * np.asarray([4, 4, 1, 1], np.float32), mode="linear",
            antialias=1, opset=18),
        one("Resize", "aspect", None, None, ints(12, 16), mode="linear", axes=[2, 3],
            keep_aspect_ratio_policy="not_larger", opset=18),
    ]  # fmt: skip


CASES: tuple[Case, ...] = (*_unary(), *_binary(), *_products(), *_windows(), *_moving())


def net(cases: Sequence[Case], opset: int, *, behind: bool = False) -> onnx.ModelProto:
    """All cases behind two convolutions of one image.

    Args:
        cases: of that opset.
        opset: of the net.
        behind: a Clip that changes nothing follows every real result, so that it is no output of the net.
    """
    rng = np.random.default_rng(7)
    constants = [constant(f"stem_{n}", rng.normal(0, 0.4, (8, 4, 1, 1)).astype(np.float32)) for n in "ab"]
    constants += [constant("low", np.float32(-1000)), constant("high", np.float32(1000))]
    nodes = [helper.make_node("Conv", ["image", f"stem_{n}"], [f"stem.{n}"], name=f"stem_{n}") for n in "ab"]
    outputs = [helper.make_tensor_value_info("stem.a", TensorProto.FLOAT, STEM)]  # keeps operands out of its weights
    for case in cases:
        constants += [constant(f"{case.name}.{key}", array) for key, array in case.constants.items()]
        source = "stem.a"
        if case.clip is not None:
            bounds = [constant(f"{case.name}.bound{i}", np.float32(b)) for i, b in enumerate(case.clip)]
            constants += bounds
            source = f"{case.name}.clipped"
            nodes.append(helper.make_node("Clip", ["stem.a", *(b.name for b in bounds)], [source], name=source))
        known = {"x": source, "~": "stem.b", "": ""}
        for index, (op, inputs, attributes) in enumerate(case.nodes):
            last = index == len(case.nodes) - 1
            results = case.results() if last else [f"{case.name}.inner{index}"]
            if last and behind and case.kind == TensorProto.FLOAT:
                results = [f"{name}.before" for name in case.results()]
            names = [known.get(entry, f"{case.name}.{entry}") for entry in inputs]
            nodes.append(helper.make_node(op, names, results, name=case.name if last else results[0], **attributes))
            known["<"] = known[f"inner{index}"] = results[0]
        if behind and case.kind == TensorProto.FLOAT:
            nodes += [
                helper.make_node("Clip", [f"{name}.before", "low", "high"], [name], name=f"{name}.behind")
                for name in case.results()
            ]
        outputs += [helper.make_tensor_value_info(name, case.kind, None) for name in case.results()]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, IMAGE)
    graph = helper.make_graph(nodes, "cases", [image], outputs, constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    del proto.graph.output[:]
    proto.graph.output.extend(inferred.graph.output)
    return proto
