"""Files: written, read, run; bad ones."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nets import Net, attention, convolutions, odd_layouts, planned, round_trip

from narrowcast.base.errors import UserError
from narrowcast.chips import load_target
from narrowcast.chips.esp.codec import decode_espdl, encode_espdl, read_espdl
from narrowcast.chips.esp.file import EspdlFile, EspdlNode, EspdlTensor, EspdlValue, describe
from narrowcast.chips.esp.kit import check_runtime
from narrowcast.chips.esp.model import EspdlRunner, build_espdl, restore
from narrowcast.engine.integer import IntegerRunner, lower_integer


def tiny() -> EspdlFile:
    """Every kind of attribute and of number."""
    tensors = {
        name: EspdlTensor(name, array.shape, array.ravel(), exponents, layout)
        for name, array, exponents, layout in (
            ("w", np.arange(-20, 20, dtype=np.int8).reshape(1, 1, 2, 20), tuple(range(20)), "(N/16)HWC16_UNALIGNED"),
            ("i64", np.asarray([2**40, -1]), (0,), "UNK"),
            ("f", np.asarray([0.5], np.float32), (0,), ""),
            ("i16", np.asarray([-300, 5, 7], np.int16), (-3,), ""),
        )
    }
    attributes = {"a": 1, "b": 2.5, "c": "Relu", "d": (1, -2), "e": (0.5, 2.0), "f": ("x", "y")}
    node = EspdlNode("n", "Conv", ("x", "w", ""), ("y",), attributes)
    x, y = EspdlValue("x", "int8", (1, 2, 2, 2), (-3,)), EspdlValue("y", "int16", (1, 2, 2, 20), (4,))
    return EspdlFile("g", (node,), (x,), (y,), {"x": x, "y": y}, tensors, metadata={"k": "v"}, producer="narrowcast 1")


def test_data_comes_back_and_is_aligned() -> None:
    data = encode_espdl(tiny())
    again = decode_espdl(data)
    assert replace(again, tensors={}, bytes=0) == replace(tiny(), tensors={})
    for name, tensor in tiny().tensors.items():
        got = again.tensors[name]
        np.testing.assert_array_equal(got.data, tensor.data)
        assert (got.dims, got.exponents, got.layout) == (tensor.dims, tensor.exponents, tensor.layout)
        assert data.index(tensor.data.tobytes()) % 16 == 0
    assert encode_espdl(again) == data and len(data) % 16 == 0 and data[:4] == b"EDL2"


def broken(data: bytes, kind: str) -> bytes:
    if kind == "cut":
        return data[:-20]
    if kind == "header":
        return data[:9]
    if kind == "encrypted":
        return data[:4] + struct.pack("<I", 1) + data[8:]
    return kind.encode() + data[4:]


@pytest.mark.parametrize(
    ("kind", "says"),
    [("cut", "truncated"), ("header", "truncated"), ("encrypted", "encrypted"), ("EDL1", "EDL1"), ("EDL3", "newer"),
     ("PDL2", "pack"), ("ABCD", "no .espdl")],
)  # fmt: skip
def test_bad_files_end_in_one_line(kind: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.espdl"
    path.write_bytes(broken(encode_espdl(tiny()), kind))
    with pytest.raises(UserError, match=says) as error:
        read_espdl(path)
    assert "bad.espdl" in str(error.value) and "\n" not in str(error.value)


def test_a_newer_schema_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from narrowcast.chips.esp import codec

    monkeypatch.setattr(codec, "_code", lambda dtype: 77)
    with pytest.raises(UserError, match="newer schema"):
        decode_espdl(encode_espdl(tiny()))


def test_damage_never_escapes_as_another_error() -> None:
    data = bytearray(encode_espdl(tiny()))
    rng = np.random.default_rng(0)
    for _ in range(300):
        hurt = bytearray(data)
        for position in rng.integers(16, len(data), 4):
            hurt[position] = rng.integers(256)
        try:
            decode_espdl(bytes(hurt))
        except UserError as error:
            assert "damaged" in str(error) or "newer" in str(error)


def test_missing_file() -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_espdl("nowhere.espdl")


@pytest.mark.parametrize("target", ["esp32p4", "esp32s3"])
@pytest.mark.parametrize("int16", [(), ("depthwise", "gate", "product", "relu1", "fully")])
def test_convolutions_come_back(target: str, int16: tuple[str, ...], tmp_path: Path) -> None:
    net = planned(convolutions(), tmp_path, target, int16)
    file = round_trip(net).file
    kinds = [node.op_type for node in file.nodes]
    assert "Transpose" not in kinds and kinds.count("InsertZeros") == 1
    assert file.values["y"].dims == (1, 16, 16, 3) and file.inputs[0].dims == (1, 16, 16, 3)
    first = file.nodes[0]
    assert first.text("activation") == "Relu" and first.text("quant_type") == "S8"
    assert file.tensors["w0"].dims == (3, 3, 3, 20) and file.tensors["w1"].dims == (3, 3, 20, 1)
    wide = file.tensors["w1"].data.dtype == np.int16
    assert file.tensors["w1"].layout == ("(N/8)HWC8_UNALIGNED" if int16 else "(N/16)HWC16_UNALIGNED")
    assert wide == bool(int16)


@pytest.mark.parametrize(("target", "size"), [("esp32p4", 4), ("esp32p4", 5), ("esp32p4", 3), ("esp32s3", 4)])
@pytest.mark.parametrize("int16", [(), ("*",)])
def test_attention_comes_back(target: str, size: int, int16: tuple[str, ...], tmp_path: Path) -> None:
    net = planned(attention(size), tmp_path, target, int16)
    runner = round_trip(net)
    softmax = next(index for index, node in enumerate(runner.file.nodes) if node.op_type == "Softmax")
    assert runner.file.nodes[softmax + 1].op_type == "QuantizeLinear"
    assert runner.file.values[runner.file.nodes[softmax].outputs[0]].dtype == "float32"


@pytest.mark.parametrize("target", ["esp32p4", "esp32s3"])
def test_odd_layouts_come_back(target: str, tmp_path: Path) -> None:
    file = round_trip(planned(odd_layouts(), tmp_path, target)).file
    turned = [node.outputs[0] for node in file.nodes if node.op_type == "Transpose"]
    assert file.inputs[0].dims == (1, 6, 6, 3) and file.values["y"].dims == (1, 6, 6, 16)
    # of seven in the model only the network's output and the swap before the pool are left, one for Gather and one
    # that is DepthToSpace
    assert len(turned) == 4 and "y" in turned


def test_every_tensor_of_the_file_has_the_plans_integers(tmp_path: Path) -> None:
    net = planned(convolutions(), tmp_path, "esp32p4")
    runner = round_trip(net)
    ours = IntegerRunner(lower_integer(net.model, net.plan, net.target), 1, all_tensors=True).integers(net.image)
    graph = lower_integer(runner.restored.model, runner.restored.plan, net.target, integer_input=True)
    theirs = IntegerRunner(graph, 1, all_tensors=True).integers(ours["x"])
    common = set(ours) & set(theirs)
    assert len(common) >= 12
    for name in common:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_same_input_same_bytes(tmp_path: Path) -> None:
    first, second = (planned(convolutions(), tmp_path, "esp32p4") for _ in range(2))
    one, two = (
        encode_espdl(build_espdl(net.model, net.plan, net.target, metadata={"b": "1", "a": "2"}))
        for net in (first, second)
    )
    assert one == two
    file = decode_espdl(one)
    assert file.metadata == {"a": "2", "b": "1", "target": "esp32p4", "runtime": "ESP-DL 3.3"}
    assert file.producer.startswith("narrowcast ")


def test_equal_tables_are_stored_once(tmp_path: Path) -> None:
    net = planned(convolutions(), tmp_path, "esp32p4")
    file = build_espdl(net.model, net.plan, net.target)
    luts = [node.text("lut") for node in file.nodes if "lut" in node.attributes]
    assert luts and set(luts) <= set(file.tensors)
    contents = [file.tensors[name].data.tobytes() for name in set(luts)]
    assert len(contents) == len(set(contents))


def test_conversions_stand_where_exponents_differ(tmp_path: Path) -> None:
    net = planned(convolutions(), tmp_path, "esp32p4")
    file = build_espdl(net.model, net.plan, net.target)
    for node in file.nodes:
        if node.op_type in ("Concat", "Add", "Sub"):
            exponents = {file.values[name].exponents for name in (*node.inputs, *node.outputs)}
            assert len(exponents) == 1
    assert sum(node.op_type == "RequantizeLinear" for node in file.nodes) >= len(net.plan.edges) > 0


def test_description(tmp_path: Path) -> None:
    net = planned(convolutions(), tmp_path, "esp32p4")
    told = describe(decode_espdl(encode_espdl(build_espdl(net.model, net.plan, net.target))))
    assert sum(row.bytes for row in told.nodes) == told.constant_bytes
    assert told.operators["Conv"] == 4 and not told.test_vector
    first = told.nodes[0]
    assert first.weight_layout == "(N/16)HWC16_UNALIGNED" and first.details == "kernel 3x3, stride 2, Relu"
    assert [row.direction for row in told.values] == ["input", "output", "output"]


def test_a_file_without_its_own_table_is_noticed(tmp_path: Path) -> None:
    net = planned(convolutions(), tmp_path, "esp32p4")
    file = build_espdl(net.model, net.plan, net.target)
    name = next(node.text("lut") for node in file.nodes if "lut" in node.attributes)
    changed = file.tensors[name].data.copy()
    changed[7] ^= 1
    hurt = replace(file, tensors={**file.tensors, name: replace(file.tensors[name], data=changed)})
    assert list(EspdlRunner(hurt, net.target, 1).differing_tables().values()) == [1]


def test_unknown_operators_are_told() -> None:
    file = tiny()
    with pytest.raises(UserError, match="node n"):
        restore(replace(file, tensors={}), load_target("esp32p4"))


def test_unknown_runtime(tmp_path: Path) -> None:
    net = planned(convolutions(), tmp_path, "esp32p4")
    with pytest.raises(UserError, match="no known version"):
        encode_espdl(build_espdl(net.model, net.plan, net.target, runtime="9.1"))


def rows(net: Net, runtime: str) -> set[tuple[str, str]]:
    return {(row.node, row.severity) for row in check_runtime(net.model, net.target, runtime)}


def test_versions_of_the_runtime(tmp_path: Path) -> None:
    net = planned(convolutions(), tmp_path, "esp32p4", ("gate",))
    assert rows(net, "3.3") == set()
    assert ("first", "error") in rows(net, "3.2")
    with pytest.raises(UserError, match="no version"):
        check_runtime(net.model, net.target, "new")
    with pytest.raises(UserError, match=r"first: .* per-channel"):
        build_espdl(net.model, net.plan, net.target, runtime="3.2")
    single = {name: replace(code, scale=code.scale[0], axis=None) if code.axis is not None else code
              for name, code in net.plan.tensors.items()}  # fmt: skip
    plan = replace(net.plan, tensors=single)
    with pytest.raises(UserError, match=r"gate: .* LUT nodes"):  # the plan decides, not what the target would plan
        build_espdl(net.model, plan, net.target, runtime="3.2")


def test_scales_beyond_the_runtimes_numbers_are_refused(tmp_path: Path) -> None:
    net = planned(convolutions(), tmp_path, "esp32p4")
    far = {**net.plan.tensors, "y": replace(net.plan.tensors["y"], scale=2.0**-140)}
    with pytest.raises(UserError, match="out of range"):
        build_espdl(net.model, replace(net.plan, tensors=far), net.target)
