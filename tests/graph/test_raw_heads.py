"""Heads that somebody cut off before: raw maps in any order and layout are read as after our own cut, or asked for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper
from typer.testing import CliRunner

import narrowcast as nc
from builders import constant, model, save, weights
from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle, Predictor
from narrowcast.chips.rdk.export import export
from narrowcast.cli.app import app
from narrowcast.graph import Model, Runner, load
from narrowcast.graph.heads import random_image
from narrowcast.zoo import sample

SIDE, STRIDES = 64, (8, 16, 32)
#: Role and stride of every output in the orders of the vendors' guides; stride 4 is the prototypes'.
POSE_X5 = [*((r, s) for s in STRIDES for r in ("box", "cls")), *(("kpt", s) for s in STRIDES)]
SEG_X5 = [*((r, s) for s in STRIDES for r in ("cls", "box", "mask")), ("proto", 4)]
SEG8_X5 = [*((r, s) for r in ("mask", "box", "cls") for s in STRIDES), ("proto", 4)]
DETECT_X5 = [(r, s) for s in STRIDES for r in ("cls", "box")]
KIT = [(r, s) for s in STRIDES for r in ("cls", "box", "kpt")]
ESP_NAMES = ["box0", "score0", "box1", "score1", "box2", "score2", "kpt0", "kpt1", "kpt2"]
POSE, SEGMENT, DETECT = {"box": 64, "cls": 1, "kpt": 51}, {"box": 64, "cls": 80, "mask": 32, "proto": 32}, \
    {"box": 64, "cls": 80}  # fmt: skip
node = helper.make_node


def net(
    order: Sequence[tuple[str, int]],
    channels: dict[str, int],
    last: bool | Sequence[bool] = True,
    names: Sequence[str] = (),
    end: str = "",
    kind: str = "Conv",
    metadata: dict[str, str] | None = None,
) -> onnx.ModelProto:
    """A map a role and stride: windows of the image, averaged, times weights; ``end`` is an operator behind them."""
    rng, nodes, constants, outputs = np.random.default_rng(0), list[onnx.NodeProto](), list[onnx.TensorProto](), []
    lasts = [last] * len(order) if isinstance(last, bool) else last
    for index, ((role, stride), turned) in enumerate(zip(order, lasts, strict=True)):
        name, count = names[index] if names else f"output{index}", channels[role]
        nodes.append(node("AveragePool", ["x"], [f"p{index}"], kernel_shape=[stride] * 2, strides=[stride] * 2))
        if kind == "Conv":
            constants.append(weights(rng, f"w{index}", count, 3, 1, 1))
            nodes.append(node("Conv", [f"p{index}", f"w{index}"], [f"m{index}"], name=f"node{index}"))
        else:  # no weights that any rule knows as such
            constants.append(weights(rng, f"w{index}", 1, count, 1, 1))
            nodes.append(node("ReduceMean", [f"p{index}"], [f"r{index}"], axes=[1], keepdims=1))
            nodes.append(node("Mul", [f"r{index}", f"w{index}"], [f"m{index}"], name=f"node{index}"))
        before = f"m{index}"
        if end:
            nodes.append(node(end, [before], [f"e{index}"], name=f"end{index}"))
            before = f"e{index}"
        nodes.append(node("Transpose", [before], [name], perm=[0, 2, 3, 1]) if turned
                     else node("Identity", [before], [name]))  # fmt: skip
        outputs.append(name)
    return model(nodes, constants, shape=(1, 3, SIDE, SIDE), outputs=outputs, metadata=metadata)


def same(loaded: Model, proto: onnx.ModelProto, order: Sequence[tuple[str, int]], last: Sequence[bool]) -> None:
    """Every output of the loaded graph is that of the user's graph, channels first."""
    image = random_image((1, 3, SIDE, SIDE))
    theirs, ours = list(Runner(proto, 1).run(image).values()), Runner(loaded.to_proto(), 1).run(image)
    assert set(ours) == {name(*entry) for entry in order}
    for entry, values, turned in zip(order, theirs, last, strict=True):
        np.testing.assert_array_equal(ours[name(*entry)], np.moveaxis(values, -1, 1) if turned else values)


def name(role: str, stride: int) -> str:
    return role if role == "proto" else f"{role}_s{stride}"


@pytest.mark.parametrize("kind", ["Conv", "Mul"])
@pytest.mark.parametrize(
    ("order", "channels", "task"),
    [(POSE_X5, POSE, "pose"), (KIT, POSE, "pose"), (SEG_X5, SEGMENT, "segment"), (SEG8_X5, SEGMENT, "segment"),
     (DETECT_X5, DETECT, "detect")],
    ids=["pose", "kit", "seg11", "seg8", "detect"],
)  # fmt: skip
def test_guides_orders(tmp_path: Path, order: Any, channels: dict[str, int], task: str, kind: str) -> None:
    rng = np.random.default_rng(1)
    shuffled = [order[index] for index in rng.permutation(len(order))]
    mixed = [bool(turned) for turned in rng.integers(0, 2, len(order))]
    for used, last in ((order, [True] * len(order)), (order, [False] * len(order)), (shuffled, mixed)):
        proto = net(used, channels, last, kind=kind)
        loaded = load(save(proto, tmp_path / "m.onnx"))
        assert loaded.task == task and loaded.head is not None and loaded.head.strides == STRIDES
        assert loaded.head.num_classes == channels["cls"] and loaded.head.reg_max == 16
        assert loaded.difference == {"output": 0.0}
        assert loaded.output_names[:2] == ("box_s8", "cls_s8")
        assert "Transpose" not in [n.op_type for n in loaded.ir.graph]
        same(loaded, proto, used, last)


def test_nothing_behind_the_outputs_has_to_be_known(tmp_path: Path) -> None:
    """Channels last without a last Transpose: one is put there."""
    proto = net(DETECT_X5, {"box": 64, "cls": 8}, True, kind="Mul", names=[f"t{index}" for index in range(6)])
    proto.graph.initializer.append(constant("half", np.float32(0.5)))
    for index, output in enumerate(proto.graph.output):
        proto.graph.node.append(node("Mul", [output.name, "half"], [f"y{index}"]))
        output.name = f"y{index}"
    loaded = load(save(proto, tmp_path / "m.onnx"))
    assert loaded.task == "detect" and loaded.head is not None and loaded.head.num_classes == 8
    same(loaded, proto, DETECT_X5, [True] * 6)


@pytest.mark.parametrize(("kind", "last"), [*itertools.product(["Conv", "Mul"], [True, False])])
def test_maps_as_wide_as_they_have_channels(tmp_path: Path, kind: str, last: bool) -> None:
    """8 classes on 8x8 cells: the nodes before them say where the channels are, or the other outputs."""
    proto = net(DETECT_X5, {"box": 64, "cls": 8}, last, kind=kind)
    loaded = load(save(proto, tmp_path / "m.onnx"))
    assert loaded.task == "detect"
    same(loaded, proto, DETECT_X5, [last] * 6)


def test_the_sizes_of_a_wide_input(tmp_path: Path) -> None:
    proto = net(DETECT_X5, DETECT)
    proto.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 3 * SIDE
    del proto.graph.output[:], proto.graph.value_info[:]
    proto.graph.output.extend(helper.make_tensor_value_info(f"output{i}", 1, None) for i in range(6))
    loaded = load(save(onnx.shape_inference.infer_shapes(proto), tmp_path / "m.onnx"))
    assert loaded.head is not None and loaded.head.strides == STRIDES


ODD = {"box": 32, "cls": 20}
WIDE = {"box": 64, "cls": 64}
DOGS = {"box": 64, "cls": 1, "kpt": 24}
PAIRS = {"box": 64, "cls": 2, "kpt": 63}
NAMES64 = {"names": str({i: f"c{i}" for i in range(64)})}


@pytest.mark.parametrize(
    ("order", "channels", "metadata", "names", "head", "found"),
    [
        (DETECT_X5, ODD, {}, (), "", "--head detect says so"),
        (DETECT_X5, ODD, {"task": "detect"}, (), "", "--head box_s8=output1,box_s16=output3,box_s32=output5 says so"),
        (DETECT_X5, ODD, {}, (), "box_s8=output1", "box_s8 cls_s8 20"),
        (DETECT_X5, ODD, {"task": "detect", "names": str([f"c{i}" for i in range(20)])}, (), "", "box_s8 cls_s8 20"),
        (DETECT_X5, {"box": 64, "cls": 4}, {}, (), "", "box_s8 cls_s8 4"),
        (DETECT_X5, {"box": 4, "cls": 5}, {}, (), "", "--head detect says so"),
        (DETECT_X5, {"box": 4, "cls": 5}, {}, (), "detect", "box_s8 cls_s8 5"),
        (DETECT_X5, WIDE, NAMES64, (), "", "--head box_s8=output0,box_s16=output2,box_s32=output4 says so"),
        (DETECT_X5, WIDE, {}, (), "box_s8=output1,box_s16=output3,cls_s32=output4", "box_s8 cls_s8 64"),
        (DETECT_X5, WIDE, {}, (), "box_s8=output1", "--head box_s16=output2,box_s32=output4 says so"),
        (DETECT_X5, WIDE, {}, ["cls0", "reg0", "cls1", "reg1", "cls2", "reg2"], "", "box_s8 cls_s8 64"),
        (POSE_X5, DOGS, {}, (), "", "--head pose says so"),
        (POSE_X5, DOGS, {}, (), "pose", "--head keypoints=8x3 or keypoints=12x2 says which"),
        (POSE_X5, DOGS, {}, (), "pose, keypoints=12x2", "box_s8 cls_s8 1"),
        (POSE_X5, DOGS, {}, (), "keypoints=8x3", "box_s8 cls_s8 1"),
        (POSE_X5, DOGS, {"kpt_shape": "[12, 2]"}, (), "", "box_s8 cls_s8 1"),
        (POSE_X5, DOGS, {}, (), "keypoints=5x3", "are no pose head"),
        (POSE_X5, PAIRS, {"task": "pose"}, (), "", "--head cls_s8=output6,cls_s16=output7,cls_s32=output8 says so"),
        (POSE_X5, PAIRS, {"task": "pose", "names": "['a', 'b']"}, (), "", "box_s8 cls_s8 2"),
        (POSE_X5, PAIRS, {}, ESP_NAMES, "", "box_s8 cls_s8 2"),
        (POSE_X5, POSE, {}, (), "segment", "it has no segmentation head"),
        (POSE_X5, POSE, {}, (), "box_s8=output1", "are no pose head"),
        (POSE_X5, POSE, {}, (), "box_s4=output1", "box_s4 is none of box_s8, cls_s8"),
        (SEG_X5, SEGMENT, {}, (), "proto=output9", "box_s8 cls_s8 80"),
        (SEG_X5, SEGMENT, {}, (), "proto=output8", "proto can only be output9"),
        (SEG_X5, {**SEGMENT, "proto": 16}, {}, (), "", "are no segmentation head"),
        (SEG_X5, {**SEGMENT, "cls": 32}, {}, (), "", "its class map may be output0 or output2"),
        (POSE_X5, {"box": 64, "cls": 1, "kpt": 15}, {"task": "obb"}, (), "", "oriented boxes"),
        (DETECT_X5[:2], DETECT, {}, (), "", "--head detect says so"),
        (DETECT_X5[:2], DETECT, {"task": "detect"}, (), "", "box_s8 cls_s8 80"),
    ],
)  # fmt: skip
def test_what_is_known_and_what_is_asked_for(
    tmp_path: Path, order: Any, channels: dict[str, int], metadata: dict[str, str], names: Sequence[str], head: str,
    found: str,
) -> None:  # fmt: skip
    """Outputs and classes, or the words of a note; of an error where the person said something."""
    proto = net(order, channels, names=names, metadata=metadata)
    path = save(proto, tmp_path / "m.onnx")
    if found.startswith("box_s8"):
        loaded = load(path, head=head)
        assert loaded.output_names[:2] == ("box_s8", "cls_s8") and loaded.head is not None
        assert loaded.head.num_classes == int(found.split()[-1]), loaded.notes[-1]
        same(loaded, proto, order, [True] * len(order))
    elif head:
        with pytest.raises(UserError) as error:
            load(path, head=head)
        assert found in str(error.value) and "\n" not in str(error.value)
    else:
        loaded = load(path)
        assert loaded.task == "generic" and found in loaded.notes[-1], loaded.notes[-1]


@pytest.mark.parametrize(
    ("head", "words"),
    [("posee", "'posee': use detect, pose, segment"), ("classify", "use detect"),
     ("keypoints=17", "17x3"), ("keypoints=17x4", "17x3"),
     ("box_s8=", "each output once"), ("box_s8=output1,box_s8=output2", "each output once"),
     ("box_s8=output1,cls_s8=output1", "each output once"), ("box_s8=output99", "no output output99")],
)  # fmt: skip
def test_what_a_person_cannot_say(tmp_path: Path, head: str, words: str) -> None:
    path = save(net(POSE_X5, POSE), tmp_path / "m.onnx")
    with pytest.raises(UserError, match=words):
        load(path, head=head)
    with pytest.raises(UserError, match="kept whole"):
        load(path, head="pose", keep_head=True)


def test_what_is_no_raw_head_stays_whole(tmp_path: Path) -> None:
    bent = load(save(net(DETECT_X5, DETECT, end="Sigmoid"), tmp_path / "m.onnx"))
    assert bent.task == "generic" and "comes from a Sigmoid, so it is not raw" in bent.notes[-1]
    uneven = net(DETECT_X5[:-1], DETECT)
    assert "stays whole" in load(save(uneven, tmp_path / "m.onnx")).notes[-1]
    kept = load(save(net(DETECT_X5, DETECT), tmp_path / "m.onnx"), keep_head=True)
    assert kept.output_names == tuple(f"output{index}" for index in range(6))
    with pytest.raises(UserError, match="decoded, not raw"):
        load(sample("pose").model, head="box_s8=output0")
    assert load(sample("pose").model, head="pose").task == "pose"
    with pytest.raises(UserError, match="detect"):
        load(sample("pose").model, head="detect")


def by_hand(loaded: Model, order: Sequence[str], names: Sequence[str], last: bool) -> onnx.ModelProto:
    """A prepared model's graph as somebody would have cut it."""
    proto = loaded.to_stock()
    del proto.graph.output[:], proto.metadata_props[:]
    for ours, theirs in zip(order, names, strict=True):
        proto.graph.node.append(node("Transpose", [ours], [theirs], perm=[0, 2, 3, 1]) if last
                                else node("Identity", [ours], [theirs]))  # fmt: skip
        proto.graph.output.append(helper.make_tensor_value_info(theirs, 1, None))
    return onnx.shape_inference.infer_shapes(proto)


def arrays(found: Any) -> list[NDArray[Any]]:
    return [found.boxes, found.scores, found.class_ids, found.keypoints]


@pytest.mark.parametrize("last", [True, False])
def test_predictions_are_those_of_the_uncut_model(people_model: Model, tmp_path: Path, last: bool) -> None:
    order = [name(*entry) for entry in POSE_X5]
    path = save(by_hand(people_model, order, ESP_NAMES, last), tmp_path / "m.onnx")
    cut, whole = Predictor.of_model(load(path)), Predictor.of_model(people_model)
    picture = sorted(sample("pose").validation.iterdir())[0]
    found, expected = cut.predict(picture), whole.predict(picture)
    assert len(found) == len(expected) > 0
    for one, other in zip(arrays(found), arrays(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_same_integers(pose_model: Model, pose_bundle: Bundle, tmp_path: Path) -> None:
    """What is quantized after the recognition is what is quantized after our own cut."""
    order = [name(*entry) for entry in KIT]
    loaded = load(save(by_hand(pose_model, order, [f"my_{entry}" for entry in order], True), tmp_path / "pose.onnx"),
                  classes=["person"])  # fmt: skip
    found = nc.images(sample("pose").calibration, loaded.preprocess, limit=12)
    made = nc.quantize(loaded, found, "esp32p4", out=tmp_path / "pose", method="mse", effort="fast")
    for file in ("integer.onnx", "plan.json", "nodes.json"):
        assert made.manifest.files[file] == pose_bundle.manifest.files[file]
    assert made.manifest.head == pose_bundle.manifest.head


def test_the_kits_own_model_and_a_prepared_one(pose_bundle: Bundle, tmp_path: Path) -> None:
    exported = export(pose_bundle, "vendor").proto
    image = random_image((1, 3, SIDE, SIDE))
    expected = Runner(pose_bundle.model.to_proto(), 1).run(image)
    again = load(save(exported, tmp_path / "kit.onnx"))
    assert again.head == pose_bundle.manifest.head and again.output_names == tuple(expected)
    for ours, values in Runner(again.to_proto(), 1).run(image).items():
        np.testing.assert_allclose(values, expected[ours], rtol=1e-4, atol=1e-4)
    prepared = load(save(again.to_stock(), tmp_path / "prepared.onnx"))
    assert prepared.head == again.head and prepared.notes[-1] == "the decode head was cut off before"


def test_the_command_line_asks(pose_bundle: Bundle, tmp_path: Path) -> None:
    path = str(save(net(POSE_X5, DOGS), tmp_path / "m.onnx"))
    picture = str(sorted(sample("pose").validation.iterdir())[0])
    run, asked = CliRunner(), "--head pose says so"
    done = run.invoke(app, ["predict", path, picture])
    assert isinstance(done.exception, UserError) and asked in str(done.exception)
    assert run.invoke(app, ["predict", path, picture, "--head", "keypoints=12x2"]).exit_code == 0
    said = run.invoke(app, ["check", path])
    assert asked in " ".join(said.output.split())
    assert "--head keypoints=12x2" in " ".join(
        run.invoke(app, ["check", path, "--head", "keypoints=12x2"]).output.split()
    )
    refused = run.invoke(app, ["predict", str(pose_bundle.path), picture, "--head", "pose"])
    assert isinstance(refused.exception, UserError) and "which knows its outputs" in str(refused.exception)
    labels = ["--images", str(sample("pose").validation), "--annotations", str(tmp_path / "a.json")]
    (tmp_path / "a.json").write_text('{"images": [], "annotations": [], "categories": []}')
    assert run.invoke(app, ["evaluate", path, *labels]).exit_code != 0


def test_a_head_whose_outputs_are_not_there_is_one_line() -> None:
    """Found by the fuzzer: a file says that its head was cut off, and has no output of one axis of anchors."""
    from narrowcast.graph.heads import compare
    from narrowcast.tasks import meaning_of

    head = {"task": "detect", "strides": [8], "num_classes": 2, "reg_max": 1}
    meaning = meaning_of("detect", head)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.zeros((1, 3, 8, 8), np.float32)
    with pytest.raises(UserError, match="is not what its head needs"):
        compare({"y": x}, proto, meaning, x, "m.onnx")
