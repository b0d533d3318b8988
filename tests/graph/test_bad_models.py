"""Model files that are wrong: one line, and nothing computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import builders
from narrowcast.base.errors import UserError
from narrowcast.graph import load


def _input(proto: ModelProto, *dims: int) -> None:
    for dim, size in zip(proto.graph.input[0].type.tensor_type.shape.dim, dims, strict=True):
        dim.dim_value = size


def _metadata(key: str, value: str) -> Callable[[ModelProto], None]:
    return lambda proto: helper.set_model_props(proto, {key: value})


def _short_weights(proto: ModelProto) -> None:
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]


def _negative_weights(proto: ModelProto) -> None:
    proto.graph.initializer[0].dims[0] = -8


def _huge_weights(proto: ModelProto) -> None:
    proto.graph.initializer[0].dims[0] = 2**40


def _sequence(proto: ModelProto) -> None:
    proto.graph.node.add(op_type="SequenceConstruct", input=["c1"], output=["many"])
    proto.graph.output.append(
        helper.make_tensor_sequence_value_info("many", TensorProto.FLOAT, None)  # type: ignore[arg-type]
    )


def _branch(proto: ModelProto) -> None:
    inner = helper.make_graph([helper.make_node("Identity", ["c1"], ["z"])], "g",
                              [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)])  # fmt: skip
    proto.graph.node.append(helper.make_node("If", ["flag"], ["end"], name="if0", then_branch=inner, else_branch=inner))
    proto.graph.initializer.append(builders.constant("flag", np.array(True)))
    proto.graph.output[0].name = "end"


def _bytes_for_text(proto: ModelProto) -> None:
    proto.graph.node[0].attribute.append(helper.make_attribute("auto_pad", b"\x80NOTSET"))


def _far_padding(proto: ModelProto) -> None:
    proto.graph.node[0].attribute[0].ints[3] = 200_000


def _of_a_function(proto: ModelProto) -> None:
    next(node for node in proto.graph.node if node.op_type == "Concat").attribute[0].ref_attr_name = "w0"


def _unsorted(proto: ModelProto) -> None:
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _grown(proto: ModelProto) -> None:
    shape = builders.constant("shape", np.array([100_000, 100_000], np.int64))
    proto.graph.initializer.append(shape)
    proto.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["z"]))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["a", "b"]))


def _not_a_number(proto: ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Sqrt", ["c1"], ["z"]))
    proto.graph.output[0].name = "z"


def _unknown_operator(proto: ModelProto) -> None:
    proto.graph.node[1].op_type = "Sigmoidal"


def _custom_domain(proto: ModelProto) -> None:
    proto.graph.node[1].domain = "ai.somebody"
    proto.opset_import.append(helper.make_opsetid("ai.somebody", 1))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_short_weights, "constant w0 of shape"),
        (_negative_weights, "constant w0 has the impossible shape"),
        (_huge_weights, "constant w0 has the impossible shape"),
        (lambda proto: proto.graph.ClearField("output"), "has no outputs"),
        (lambda proto: _input(proto, 1, 3, 200_000, 200_000), "1x3x200000x200000 is impossible"),
        (lambda proto: _input(proto, 1, 3, -16, 16), "1x3x-16x16 is impossible"),
        (lambda proto: _input(proto, 1, 4, 16, 16), "cannot be run|contradict"),
        (_grown, "z would hold 100000x100000 values"),
        (_sequence, "many is no tensor but a sequence"),
        (_branch, "decides while it runs what it computes .If if0."),
        (_unsorted, "is not valid ONNX"),
        (_far_padding, "pads of Conv conv0 is impossible"),
        (_of_a_function, "axis of Concat concat is of no function"),
        (_bytes_for_text, "auto_pad of Conv conv0 is no text"),
        (_unknown_operator, "is not valid ONNX"),
        (_custom_domain, "cannot be run by onnxruntime"),
        (_not_a_number, "gives NaN or infinite values in z"),
        (_metadata("names", "3"), "'names' is no list"),
        (_metadata("names", "{0: 'a', 'b': 1}"), "'names' is no list"),
        (_metadata("names", "(" * 5000), "'names' is not understood"),
        (_metadata("kpt_shape", "[17,"), "'kpt_shape' is not understood"),
        (_metadata("kpt_shape", "['a', 3]"), "'kpt_shape' is no list of numbers"),
        (_metadata("preprocess", "[1]"), "'preprocess' is not understood"),
        (_metadata("preprocess", '{"mean": [NaN], "std": [1]}'), "NaN is no number"),
        (_metadata("narrowcast.head", "{}"), "narrowcast.head.* is missing"),
        (
            _metadata("narrowcast.head", '{"task": "detect", "strides": [8], "num_classes": 1}'),
            "the head needs the output box_s8 with 64 channels",
        ),
    ],
)
def test_wrong_models(tmp_path: Path, spoil: Callable[[ModelProto], None], words: str) -> None:
    proto = builders.silu_net()
    spoil(proto)
    with pytest.raises(UserError, match=words) as caught:
        load(builders.save(proto, tmp_path / "m.onnx"))
    assert len(str(caught.value)) < 500


def test_names_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(builders.silu_net().SerializeToString().replace(b"conv0", b"conv\x80"))
    with pytest.raises(UserError, match="a name is no UTF-8 text"):
        load(file)


def test_image_size_of_the_metadata(tmp_path: Path) -> None:
    proto = builders.silu_net(shape=(1, 3, "h", "w"))
    for text in ("[16]", "'x'", "[16, 16.5]", "[0, 16]", "None"):
        _metadata("imgsz", text)(proto)
        with pytest.raises(UserError, match=r"imgsz|impossible"):
            load(builders.save(proto, tmp_path / "m.onnx"))


def test_weights_in_other_files(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    onnx.save(builders.silu_net(), str(file), save_as_external_data=True, location="m.data", size_threshold=0)
    load(file)
    good = file.read_bytes()
    for place in ("../m.data", "/etc/passwd", "none.data"):
        proto = onnx.load_from_string(good)
        for tensor in proto.graph.initializer:
            tensor.external_data[0].value = place
        with pytest.raises(UserError, match="weights"):
            load(builders.save(proto, file))
    file.write_bytes(good)
    (tmp_path / "m.data").write_bytes(b"\0\0\0")
    with pytest.raises(UserError, match=r"weights|constant"):
        load(file)
