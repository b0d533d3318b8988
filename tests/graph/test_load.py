"""Loading: what comes in, what comes out tidy, and what is refused with one line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from builders import constant, model, save, silu_net, weights
from narrowcast.base.errors import UserError
from narrowcast.graph import Model, Runner, load
from narrowcast.graph.ends import ends_of
from narrowcast.graph.heads import random_image
from narrowcast.tasks import head_at
from narrowcast.zoo import sample


def op_types(loaded: Model) -> list[str]:
    return [node.op_type for node in loaded.ir.graph]


@pytest.mark.parametrize("opset", [11, 12, 13, 15, 17, 18, 20, 21, 22])
def test_every_supported_opset_computes_the_same(tmp_path: Path, opset: int) -> None:
    loaded = load(save(silu_net(opset), tmp_path / "m.onnx"))
    assert "Silu" in op_types(loaded) and "Sigmoid" not in op_types(loaded)
    assert loaded.difference["output"] < 1e-5


def test_external_weights(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(silu_net(), str(path), save_as_external_data=True, location="m.data", size_threshold=0)
    assert load(path).ir.graph.num_nodes() == 7
    (tmp_path / "m.data").unlink()
    with pytest.raises(UserError, match=r"m\.onnx"):
        load(path)


def normalized(*before: onnx.NodeProto, channels: int, shape: tuple[int, ...] = (1, 4, 5, 5)) -> onnx.ModelProto:
    """BatchNormalization of ``channels`` behind nodes that make "c"."""
    rng = np.random.default_rng(1)
    parameters = [constant(n, rng.uniform(0.5, 2, channels).astype(np.float32)) for n in ("g", "b", "mean", "var")]
    sizes = {"conv": (6, 4, 3, 3), "depth": (4, 1, 3, 3), "up": (4, 6, 2, 2), "groups": (4, 3, 2, 2), "full": (100, 6),
             "turned": (6, 100), "row": (6,), "last": (25, 6)}  # fmt: skip
    used = {name for node in before for name in node.input}
    shapes = {"flat": [1, 4, 25]}
    constants = [weights(rng, name, *size) for name, size in sizes.items() if name in used]
    constants += [constant(name, np.asarray(value, np.int64)) for name, value in shapes.items() if name in used]
    source = before[-1].output[0] if before else "x"
    norm = helper.make_node("BatchNormalization", [source, "g", "b", "mean", "var"], ["y"], name="norm", epsilon=1e-3)
    return model([*before, norm], [*constants, *parameters], shape=shape)


node = helper.make_node
FLAT, PLANE = node("Flatten", ["x"], ["f"], name="flat"), node("Reshape", ["x", "flat"], ["f"], name="reshape")


@pytest.mark.parametrize(
    ("proto", "left"),
    [
        (normalized(node("Conv", ["x", "conv"], ["c"], name="a", pads=[1] * 4), channels=6), ["Conv"]),
        (normalized(node("Conv", ["x", "depth"], ["c"], name="a", group=4), channels=4), ["Conv"]),
        (normalized(node("ConvTranspose", ["x", "up"], ["c"], name="a"), channels=6), ["ConvTranspose"]),
        (normalized(node("ConvTranspose", ["x", "groups"], ["c"], name="a", group=2), channels=6), ["ConvTranspose"]),
        (normalized(FLAT, node("Gemm", ["f", "full", "row"], ["c"], name="a"), channels=6), ["Flatten", "Gemm"]),
        (normalized(FLAT, node("Gemm", ["f", "turned", "row"], ["c"], name="a", transB=1, alpha=0.5, beta=2.0),
                    channels=6), ["Flatten", "Gemm"]),
        (normalized(FLAT, node("MatMul", ["f", "full"], ["m"], name="a"), node("Add", ["m", "row"], ["c"], name="b"),
                    channels=6), ["Flatten", "Gemm"]),
        (normalized(PLANE, node("MatMul", ["f", "last"], ["c"], name="a"), channels=4),
         ["Reshape", "MatMul", "Mul", "Add"]),
        (normalized(PLANE, channels=4), ["Reshape", "Mul", "Add"]),
        (normalized(node("Relu", ["x"], ["c"], name="a"), channels=4), ["Relu", "Conv"]),
        (normalized(channels=4), ["Conv"]),
    ],
)  # fmt: skip
def test_batch_normalization_is_folded(tmp_path: Path, proto: onnx.ModelProto, left: list[str]) -> None:
    loaded = load(save(proto, tmp_path / "m.onnx"), keep_head=True)
    assert op_types(loaded) == left and str(loaded.ir.graph.outputs[0].name) == "y"
    tensor = np.random.default_rng(2).normal(size=(1, 4, 5, 5)).astype(np.float32)
    expected = Runner(proto, 1, "none").run(tensor)["y"]
    np.testing.assert_allclose(Runner(loaded.to_proto(), 1).run(tensor)["y"], expected, rtol=1e-5, atol=1e-5)


def test_batch_normalization_before_a_padded_convolution_or_behind_a_shared_one(tmp_path: Path) -> None:
    proto = normalized(channels=4)
    proto.graph.node[0].output[0] = "n"
    rng = np.random.default_rng(3)
    proto.graph.initializer.extend([weights(rng, "w", 5, 4, 3, 3), weights(rng, "v", 4, 4, 1, 1)])
    proto.graph.node.append(node("Conv", ["n", "w"], ["y"], name="padded", pads=[1] * 4))
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    for size in (1, 5, 5, 5):
        proto.graph.output[0].type.tensor_type.shape.dim.add(dim_value=size)
    loaded = load(save(proto, tmp_path / "m.onnx"), keep_head=True)
    tensor = rng.normal(size=(1, 4, 5, 5)).astype(np.float32)
    expected = Runner(proto, 1, "none").run(tensor)["y"]
    np.testing.assert_allclose(Runner(loaded.to_proto(), 1).run(tensor)["y"], expected, rtol=1e-4, atol=1e-4)
    shared = normalized(node("Conv", ["x", "conv"], ["c"], name="a"), node("Relu", ["c"], ["z"], name="r"), channels=6)
    shared.graph.node[2].input[0] = "c"
    shared.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 6, 3, 3]))
    assert load(save(shared, tmp_path / "m.onnx"), keep_head=True).difference["output"] < 1e-5


def number(name: str, array: object, dtype: type) -> onnx.NodeProto:
    tensor = constant(name, np.asarray(array, dtype))
    return node("Constant", [], [name], name=f"make_{name}", value=tensor)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Constant", [], ["low"], name="k", value_float=0.0), node("Clip", ["c", "low"], ["y"], name="clip")],
        [node("Constant", [], ["k"], name="k", value_floats=[1.0, 2.0, 3.0, 4.0]),
         node("Constant", [], ["s"], name="s", value_ints=[4, 1, 1]), node("Reshape", ["k", "s"], ["r"], name="r"),
         node("Mul", ["c", "r"], ["y"], name="mul")],
        [number("k", 0.25, np.float16), node("Cast", ["k"], ["f"], name="cast", to=TensorProto.FLOAT),
         node("Add", ["c", "f"], ["y"], name="add")],
        [node("Cast", ["c"], ["d"], name="wide", to=TensorProto.DOUBLE), number("k", 2.5, np.float64),
         node("Mul", ["d", "k"], ["m"], name="mul"), node("Cast", ["m"], ["y"], name="cast", to=TensorProto.FLOAT)],
        [node("Cast", ["c"], ["h"], name="narrow", to=TensorProto.FLOAT16), node("Relu", ["h"], ["r"], name="relu"),
         node("Cast", ["r"], ["y"], name="cast", to=TensorProto.FLOAT)],
        [node("Cast", ["c"], ["y"], name="wide", to=TensorProto.DOUBLE)],
        [number("s", [1, 64], np.int32), node("Cast", ["s"], ["l"], name="cast", to=TensorProto.INT64),
         node("Reshape", ["c", "l"], ["y"], name="reshape")],
    ],
    ids=["value_float", "value_floats", "float16", "float64 inside", "float16 inside", "float64 out", "int32"],
)  # fmt: skip
def test_other_float_types_become_float32(tmp_path: Path, nodes: list[onnx.NodeProto]) -> None:
    conv = node("Conv", ["x", "w"], ["c"], name="conv")
    proto = model([conv, *nodes], [weights(np.random.default_rng(4), "w", 4, 3, 1, 1)], shape=(1, 3, 4, 4))
    if nodes[-1].name == "wide":
        proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.DOUBLE, [1, 4, 4, 4]))
    loaded = load(save(proto, tmp_path / "m.onnx"), keep_head=True)
    assert loaded.difference["output"] < 1e-3
    values = [*loaded.ir.graph.initializers.values(), *(value for n in loaded.ir.graph for value in n.outputs)]
    assert {value.dtype for value in values if value.dtype is not None} <= {ir.DataType.FLOAT, ir.DataType.INT64}


def hard_swish_nodes() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Add", ["c", "three"], ["a"], name="add"),
        helper.make_node("Clip", ["a", "zero", "six"], ["k"], name="clip"),
        helper.make_node("Mul", ["c", "k"], ["m"], name="mul"),
        helper.make_node("Div", ["m", "six"], ["y"], name="div"),
    ]


def gelu_nodes() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Div", ["c", "root2"], ["d"], name="div"),
        helper.make_node("Erf", ["d"], ["e"], name="erf"),
        helper.make_node("Add", ["e", "one"], ["g"], name="add"),
        helper.make_node("Mul", ["c", "g"], ["m"], name="mul"),
        helper.make_node("Mul", ["m", "half"], ["y"], name="half_mul"),
    ]


def hard_sigmoid_nodes() -> list[onnx.NodeProto]:
    return [*hard_swish_nodes()[:2], helper.make_node("Div", ["k", "six"], ["y"], name="div")]


@pytest.mark.parametrize(
    ("nodes", "unit"),
    [(hard_swish_nodes(), "HardSwish"), (gelu_nodes(), "Gelu"), (hard_sigmoid_nodes(), "HardSigmoid")],
)
def test_activation_patterns_become_one_unit(tmp_path: Path, nodes: list[onnx.NodeProto], unit: str) -> None:
    rng = np.random.default_rng(2)
    numbers = {"three": 3.0, "zero": 0.0, "six": 6.0, "one": 1.0, "half": 0.5, "root2": math.sqrt(2)}
    constants = [constant(name, np.float32(value)) for name, value in numbers.items()]
    conv = helper.make_node("Conv", ["x", "w"], ["c"], name="conv")
    proto = model([conv, *nodes], [weights(rng, "w", 4, 3, 1, 1), *constants])
    loaded = load(save(proto, tmp_path / "m.onnx"))
    assert op_types(loaded) == ["Conv", unit]
    assert loaded.difference["output"] < 1e-5


def test_a_sigmoid_with_a_second_reader_is_no_silu(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"], name="s"),
        helper.make_node("Mul", ["x", "s"], ["m"], name="m"),
        helper.make_node("Add", ["m", "s"], ["y"], name="a"),
    ]
    assert "Silu" not in op_types(load(save(model(nodes), tmp_path / "m.onnx")))


def test_dynamic_axes_are_fixed(tmp_path: Path) -> None:
    proto = silu_net(shape=("batch", 3, "height", "width"))
    path = save(proto, tmp_path / "m.onnx")
    with pytest.raises(UserError, match="--size"):
        load(path)
    loaded = load(path, size=(24, 16))
    assert list(loaded.ir.graph.inputs[0].shape or []) == [1, 3, 24, 16]
    with_size = silu_net(shape=("batch", 3, "height", "width"))
    with_size.metadata_props.add(key="imgsz", value="[32, 16]")
    assert load(save(with_size, tmp_path / "n.onnx")).preprocess.height == 32


def test_names_are_unique_and_kept(tmp_path: Path) -> None:
    proto = silu_net()
    proto.graph.node[0].name = ""
    loaded = load(save(proto, tmp_path / "m.onnx"))
    names = [node.name for node in loaded.ir.graph]
    assert len(set(names)) == len(names) and all(names)
    assert "conv1" in names


def test_nodes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    proto = silu_net()
    for index in (0, 3, 7):
        proto.graph.node[index].name = "conv"
    proto.graph.node[4].name = "conv_1"
    loaded = load(save(proto, tmp_path / "m.onnx"))
    assert [n.name for n in loaded.ir.graph if n.op_type in ("Conv", "Add")] == ["conv", "conv_2", "conv_1", "conv_3"]
    assert loaded.difference["output"] < 1e-5


def test_pose_head_is_cut_and_decodes_to_the_same(people_model: Model) -> None:
    assert people_model.task == "pose"
    assert people_model.output_names[:3] == ("box_s8", "cls_s8", "kpt_s8")
    assert people_model.head is not None and people_model.head.keypoint_shape == (17, 3)
    image = random_image(people_model.ir.graph.inputs[0].shape)
    whole = Runner(people_model.original).run(image)["output0"][0]
    cut = people_model.meaning.dense(Runner(people_model.to_proto()).run(image))
    assert np.abs(cut[:4] - whole[:4]).max() < 0.05
    assert np.abs(cut[4:5] - whole[4:5]).max() < 1e-4


def test_topology_not_names_finds_the_head(tmp_path: Path) -> None:
    proto = onnx.load(str(sample("pose").model))
    renamed = {}
    for index, node in enumerate(proto.graph.node):
        node.name = f"n{index}"
        for position, name in enumerate(node.output):
            if name != "output0":
                renamed[name] = f"t{index}_{position}"
                node.output[position] = renamed[name]
    for node in proto.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
    del proto.graph.value_info[:]
    del proto.metadata_props[:]
    assert load(save(proto, tmp_path / "m.onnx")).task == "pose"


def test_keep_head(pose_model: Model) -> None:
    whole = load(sample("pose").model, keep_head=True)
    assert whole.head is None and whole.output_names == ("output0",)


def test_unknown_head_stays_whole_and_says_why(tmp_path: Path) -> None:
    loaded = load(save(silu_net(), tmp_path / "m.onnx"))
    assert loaded.task == "generic"
    assert any("stays whole" in note for note in loaded.notes)
    assert isinstance(head_at(ends_of(loaded.ir.graph)), str)


def test_loading_does_not_touch_the_file() -> None:
    path = sample("pose").model
    before = path.read_bytes()
    load(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.onnx", None, "does not exist"),
        ("text.onnx", b"this is no model", "not an ONNX"),
        ("empty.onnx", b"", "not an ONNX"),
        ("model.txt", b"x", "suffix"),
        ("model.pt", b"x", "yolo"),
    ],
)
def test_bad_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | None, words: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_truncated_file(tmp_path: Path) -> None:
    data = sample("pose").model.read_bytes()
    path = tmp_path / "m.onnx"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="truncated"):
        load(path)


def broken(kind: str) -> onnx.ModelProto:
    proto = silu_net()
    if kind == "nan":
        array = np.full((8, 3, 3, 3), np.nan, np.float32)
        proto.graph.initializer[0].CopyFrom(constant("w0", array))
    elif kind == "opset":
        proto.opset_import[0].version = 23
    elif kind == "batch":
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    elif kind == "two inputs":
        proto.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    elif kind == "integer input":
        proto.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
        proto.graph.node.insert(0, helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT))
        proto.graph.node[1].input[0] = "f"
    elif kind == "half":
        proto.graph.initializer[0].CopyFrom(constant("w0", np.zeros((8, 3, 3, 3), np.float16)))
    elif kind == "rank":
        return model([helper.make_node("Relu", ["x"], ["y"])], shape=(1, 3))
    return proto


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nan", "NaN"), ("opset", "opset 23"), ("batch", "batch of 4"), ("two inputs", "2 inputs"),
        ("integer input", "uint8"), ("half", "16-bit"), ("rank", "axes"),
    ],
)  # fmt: skip
def test_refused_models(tmp_path: Path, kind: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(save(broken(kind), tmp_path / "m.onnx"))


def test_silu_function_is_standard_enough_for_the_checker(pose_model: Model) -> None:
    onnx.checker.check_model(pose_model.to_proto())
    assert ("narrowcast", "Silu", "") in pose_model.ir.functions
    assert isinstance(pose_model.ir, ir.Model)


def shared_head(share: bool) -> onnx.ModelProto:
    """Two convolutions on two levels with equal weights and biases, as one constant or as two."""
    rng = np.random.default_rng(0)
    other = {name: name if share else f"{name}2" for name in ("wh", "bh")}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["p3"], "c0", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Conv", ["p3", "w1"], ["p4"], "c1", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Conv", ["p3", "wh", "bh"], ["out3"], "head3"),
        helper.make_node("Conv", ["p4", other["wh"], other["bh"]], ["level4"], "head4"),
        helper.make_node("Add", ["level4", "step"], ["shifted"], "add"),
        helper.make_node("Mul", ["shifted", "step"], ["out4"], "mul"),
    ]
    constants = [weights(rng, "w0", 8, 3, 3, 3), weights(rng, "w1", 8, 8, 3, 3), constant("step", np.float32([0.5]))]
    head = {"wh": rng.normal(0, 0.3, (4, 8, 1, 1)), "bh": rng.normal(0, 2, 4)}
    for name, array in head.items():
        constants += [constant(each, array.astype(np.float32)) for each in dict.fromkeys((name, other[name]))]
    return model(nodes, constants, outputs=("out3", "out4"))


@pytest.mark.parametrize("share", [True, False])
def test_every_operand_has_a_constant_of_its_own(tmp_path: Path, share: bool) -> None:
    loaded = load(save(shared_head(share), tmp_path / "m.onnx"))
    constants = [value for node in loaded.ir.graph for value in node.inputs if value and value.const_value is not None]
    names = [str(value.name) for value in constants]
    assert len(set(names)) == len(names) == 8
    again = load(save(loaded.to_proto(), tmp_path / "again.onnx"))
    assert [str(v.name) for node in again.ir.graph for v in node.inputs if v and v.const_value is not None] == names
    if share:
        assert {"head3.operand1", "head4.operand1", "add.operand1", "mul.operand1"} <= set(names)
