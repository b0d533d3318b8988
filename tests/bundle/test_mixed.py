"""Outputs that join pixels and probabilities: nothing is lost without a word."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from builders import constant, model, save, weights
from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle, open_bundle, quantize
from narrowcast.bundle.kits import deploy
from narrowcast.bundle.make import remake
from narrowcast.bundle.mixed import channel_axes, part
from narrowcast.bundle.modify import modify
from narrowcast.calibrate import images
from narrowcast.chips import load_target
from narrowcast.cli.verify import run
from narrowcast.graph import load
from narrowcast.plan import Pins, draft
from narrowcast.vision import Preprocess

CLASSES = 2
ANCHORS = np.float32([[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]])


class Net:
    """Nodes and constants of a small graph of an image 16x24."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def add(self, kind: str, inputs: Sequence[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"make_{name}", **attributes))
        return name

    def constant(self, name: str, values: object, kind: type = np.float32) -> str:
        self.tensors.append(constant(name, np.asarray(values, kind)))
        return name

    def conv(self, source: str, name: str, wanted: int, given: int, stride: int = 2) -> str:
        self.tensors.append(weights(self.rng, f"{name}_w", wanted, given, 3, 3))
        return self.add("Conv", [source, f"{name}_w"], name, strides=[stride, stride], pads=[1, 1, 1, 1])

    def levels(self) -> list[tuple[str, int, int, int]]:
        """Three feature maps: name, height, width, stride."""
        source, found = "x", []
        for index, stride in enumerate((2, 4, 8)):
            conv = self.conv(source, f"f{index}", 8, 3 if index == 0 else 8)
            source = self.add("Relu", [conv], f"r{index}")
            found.append((source, 16 // stride, 24 // stride, stride))
        return found

    def proto(self, *outputs: str) -> onnx.ModelProto:
        return model(self.nodes, self.tensors, shape=(1, 3, 16, 24), outputs=outputs)


def anchors() -> onnx.ModelProto:
    """YOLOv5 as it decodes itself: sigmoid, pixels, Concat a level, Concat of the levels."""
    net = Net()
    ends = net.constant
    found = []
    for level, (source, height, width, stride) in enumerate(net.levels()):
        n = f"l{level}"
        raw = net.conv(source, f"{n}_raw", 3 * (5 + CLASSES), 8, 1)
        shaped = net.add("Reshape", [raw, ends(f"{n}_s", [1, 3, 5 + CLASSES, height * width], np.int64)], f"{n}_5d")
        p = net.add("Sigmoid", [net.add("Transpose", [shaped], f"{n}_t", perm=[0, 1, 3, 2])], f"{n}_p")
        pieces = [
            net.add("Slice", [p, *(ends(f"{n}_{a}_{i}", [v], np.int64) for i, v in enumerate((a, b, 3)))], f"{n}_at{a}")
            for a, b in ((0, 2), (2, 4), (4, 5 + CLASSES))
        ]
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        grid = np.stack([x, y], -1).reshape(1, 1, -1, 2) - 0.5
        centred = net.add("Mul", [pieces[0], ends(f"{n}_two", 2)], f"{n}_d")
        moved = net.add("Add", [centred, ends(f"{n}_g", grid)], f"{n}_m")
        xy = net.add("Mul", [moved, ends(f"{n}_stride", stride * 4)], f"{n}_xy")
        doubled = net.add("Mul", [pieces[1], ends(f"{n}_two_b", 2)], f"{n}_e")
        square = net.add("Mul", [doubled, doubled], f"{n}_q")
        wh = net.add("Mul", [square, ends(f"{n}_anchor", ANCHORS[level].reshape(1, 3, 1, 2))], f"{n}_wh")
        joined = net.add("Concat", [xy, wh, pieces[2]], f"{n}_cat", axis=-1)
        flat = ends(f"{n}_flat", [1, -1, 5 + CLASSES], np.int64)
        found.append(net.add("Reshape", [joined, flat], f"{n}_out"))
    net.add("Concat", found, "output0", axis=1)
    return net.proto("output0")


def _columns(net: Net, name: str, channels: int, size: float, bounded: bool) -> str:
    """(1, channels, cells) over three levels; ``size`` is the largest number."""
    found = []
    for level, (source, height, width, _) in enumerate(LEVELS[id(net)]):
        n = f"{name}{level}"
        raw = net.conv(source, n, channels, 8, 1)
        value = net.add("Sigmoid", [raw], f"{n}_sig") if bounded else raw
        scaled = net.add("Mul", [value, net.constant(f"{n}_size", size)], f"{n}_big") if size != 1 else value
        shape = net.constant(f"{n}_shape", [1, channels, height * width], np.int64)
        found.append(net.add("Reshape", [scaled, shape], f"{n}_flat"))
    return net.add("Concat", found, name, axis=2)


LEVELS: dict[int, list[tuple[str, int, int, int]]] = {}


def rotated() -> onnx.ModelProto:
    """[x, y, w, h, scores, angle] in one output, as oriented boxes leave."""
    net = Net()
    LEVELS[id(net)] = net.levels()
    kinds = (("box", 4, 320), ("score", 3, 1), ("angle", 1, 1.5))
    net.add("Concat", [_columns(net, name, count, size, True) for name, count, size in kinds], "output0", axis=1)
    return net.proto("output0")


def moved() -> onnx.ModelProto:
    """The same behind a Transpose and a Reshape, with a second output that has one unit."""
    net = Net()
    LEVELS[id(net)] = net.levels()
    net.add("Concat", [_columns(net, "box", 4, 320, True), _columns(net, "score", 3, 1, True)], "cat", axis=1)
    net.add("Transpose", ["cat"], "turned", perm=[0, 2, 1])
    net.add("Reshape", ["turned", net.constant("last", [1, 1, -1, 7], np.int64)], "output0")
    return net.proto("output0", "r2")


def factors() -> onnx.ModelProto:
    """Shares of the image joined with scores, and only then multiplied to pixels, a factor a column."""
    net = Net()
    LEVELS[id(net)] = net.levels()
    net.add("Concat", [_columns(net, "box", 4, 1, True), _columns(net, "score", 3, 1, True)], "cat", axis=1)
    pixels = net.constant("pixels", np.float32([480, 320, 480, 320, 1, 1, 1]).reshape(1, 7, 1))
    net.add("Mul", ["cat", pixels], "output0")
    return net.proto("output0")


def one_unit() -> onnx.ModelProto:
    """Two score tensors joined."""
    net = Net()
    LEVELS[id(net)] = net.levels()
    net.add("Concat", [_columns(net, "first", 4, 1, True), _columns(net, "second", 3, 1, True)], "output0", axis=1)
    return net.proto("output0")


SPEC = Preprocess(16, 24)


def inputs() -> np.ndarray:
    rng = np.random.default_rng(1)
    coarse = rng.random((8, 3, 2, 3)).astype(np.float32)
    return np.kron(coarse, np.ones((1, 1, 8, 8), np.float32))


def bundle_of(proto: onnx.ModelProto, folder: Path, target: str, pins: Pins | None = None) -> Bundle:
    np.save(folder / "inputs.npy", inputs())
    loaded = load(save(proto, folder / "net.onnx"), preprocess=SPEC)
    found = images(folder / "inputs.npy", SPEC)
    return quantize(loaded, found, target, out=folder / "bundle", method="minmax", effort="fast", pins=pins)


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of :func:`rotated` for an RDK X5; nobody changes it."""
    return bundle_of(rotated(), tmp_path_factory.mktemp("turned"), "bayes-e")


@pytest.mark.parametrize(
    ("make", "target"),
    [(anchors, "bayes-e"), (anchors, "esp32p4"), (rotated, "onnx"), (moved, "bayes-e"), (factors, "esp32p4")],
)
def test_scores_survive(make, target: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    proto = make()
    bundle = bundle_of(proto, tmp_path, target)
    cut = any("joins quantities of different size" in note for note in bundle.manifest.notes)
    assert cut or bundle.target.outputs.type == "float32"  # there, no output has a scale
    assert not bundle.manifest.lost_columns
    session = ReferenceEvaluator(proto)
    again = open_bundle(bundle.path)
    names = [value.name for value in proto.graph.output]
    for tensor in inputs()[:2, None]:
        wanted = dict(zip(names, session.run(None, {"x": tensor}), strict=True))
        given, floating = again.run(tensor), again.floating.run(tensor)
        assert list(given) == list(floating) == names
        assert given["output0"].shape == wanted["output0"].shape and given["output0"].dtype == np.float32
        np.testing.assert_allclose(floating["output0"], wanted["output0"], rtol=1e-4, atol=1e-4)
        axis = 1 if make in (rotated, factors) else -1
        rows = slice(4, 7)
        scores, right = (np.moveaxis(t["output0"], axis, 0)[rows] for t in (given, wanted))
        assert np.abs(scores - right).max() < 0.08  # a step of 320 pixels is 1.3 or 2
        assert np.ptp(scores, axis=tuple(range(1, scores.ndim))).min() > 0


def test_one_unit_stays_one_output(tmp_path: Path) -> None:
    bundle = bundle_of(one_unit(), tmp_path, "esp32p4")
    assert not bundle.manifest.join and [out.name for out in bundle.manifest.outputs] == ["output0"]
    assert not any("WARNING" in note for note in bundle.manifest.notes)


def test_sixteen_bits_hold_both(tmp_path: Path) -> None:
    """Asked for, they need no cut."""
    bundle = bundle_of(rotated(), tmp_path, "bayes-e", Pins({"*": "int16"}))
    assert not bundle.manifest.join and not bundle.manifest.lost_columns


def test_the_bundle_tells_how_to_join(turned: Bundle, tmp_path: Path) -> None:
    join = json.loads((turned.path / "manifest.json").read_text())["join"]
    assert join["outputs"] == ["output0"] and join["joined"] == {"output0": [1, 8, 126]}
    assert [out.name for out in turned.manifest.outputs] == join["parts"] == ["box", "score", "angle"]
    assert join["steps"] == [{"op": "Concat", "inputs": join["parts"], "output": "output0", "axis": 1}]
    first = onnx.load(str(turned.path / "join.onnx")).SerializeToString()
    again = bundle_of(rotated(), tmp_path, "bayes-e")
    assert (again.path / "join.onnx").read_bytes() == first


def test_the_file_for_the_chip_says_that_it_holds_parts(tmp_path: Path) -> None:
    bundle = bundle_of(rotated(), tmp_path, "esp32p4")
    notes = [note for note in deploy(bundle, "espdl", tmp_path / "m.espdl").notes if "the parts of" in note]
    assert len(notes) == 1
    assert notes[0].startswith("the file gives box, score, angle, the parts of output0: ") and "by Concat" in notes[0]


def test_ends_of_joined_outputs(tmp_path: Path) -> None:
    bundle = bundle_of(moved(), tmp_path, "bayes-e")
    changed = modify(bundle, out=tmp_path / "integers", remove_dequantize=["all"])
    for engine in ("integer", "qdq"):
        before, after = (entry.engine(engine).run(inputs()[:1])["output0"] for entry in (bundle, changed))
        np.testing.assert_allclose(after, before, atol=2.6)
        assert after.shape == (1, 1, 126, 7)


def test_ends_that_the_join_needs(tmp_path: Path) -> None:
    net = Net()
    source, height, width, _ = net.levels()[0]
    parts = [
        net.add("Reshape", [net.add("Mul", [net.add("Sigmoid", [net.conv(source, f"{n}_c", 2, 8, 1)], f"{n}_s"),
                net.constant(f"{n}_k", size)], f"{n}_m"),
                net.constant(f"{n}_to", [1, 2, height * width], np.int64)], n)
        for n, size in (("box", 320), ("score", 1.5))
    ]  # fmt: skip
    net.add("Concat", parts, "output0", axis=1)
    bundle = bundle_of(net.proto("output0"), tmp_path, "bayes-e")
    with pytest.raises(UserError, match="which needs them as they are"):
        modify(bundle, out=tmp_path / "shorter", remove=["Reshape"])


def test_run_prints_the_users_output(
    turned: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "one.npy", inputs()[:1])
    run(turned.path, tmp_path / "one.npy", json=True)
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["tensor"] == "output0" and rows[0]["shape"] == [1, 8, 126]
    assert [row["tensor"] for row in rows[1:]] == ["box", "score", "angle"]


def small_column() -> onnx.ModelProto:
    """One convolution whose last channel is 5000 times smaller than the first, behind an activation."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 3, 1, 1)).astype(np.float32) * np.float32([1, 1, 2e-4]).reshape(3, 1, 1, 1)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Add", ["r", "one"], ["y"], name="add"),
    ]
    return model(nodes, [constant("w", w), constant("one", np.float32(1))], shape=(1, 3, 16, 24))


@pytest.mark.parametrize(("target", "option"), [("bayes-e", "int16"), ("esp32p4", "int16"), ("bernoulli2", "float")])
def test_a_constant_column_is_said(target: str, option: str, tmp_path: Path) -> None:
    bundle = bundle_of(small_column(), tmp_path, target)
    (row,) = bundle.manifest.lost_columns
    assert (row["output"], row["axis"], row["columns"], row["count"]) == ("y", 1, [2], 3)
    assert 0 < row["varies_by"] < 1e-3
    (note,) = [entry for entry in bundle.manifest.notes if entry.startswith("WARNING: lost: columns 2 of y (axis 1")]
    assert note.endswith(f"try --{option} add")


def test_which_axes_hold_columns(tmp_path: Path) -> None:
    def axes(shape: tuple[int, ...], permutation: Sequence[int] | None = None) -> tuple[int, ...]:
        rng = np.random.default_rng(0)
        nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv")]
        last = "c"
        if permutation is not None:
            nodes.append(helper.make_node("Transpose", ["c"], ["t"], name="turn", perm=permutation))
            last = "t"
        nodes.append(helper.make_node("Sigmoid", [last], ["y"], name="act"))
        proto = model(nodes, [weights(rng, "w", shape[1], 3, 1, 1)], shape=(1, 3, *shape[2:]))
        return channel_axes(load(save(proto, tmp_path / "n.onnx"), keep_head=True).ir.graph.outputs[0])

    assert axes((1, 5, 8, 12)) == (1,)
    assert axes((1, 40, 8, 12), (0, 2, 3, 1)) == (3,)
    assert axes((1, 5, 8, 12), (0, 3, 1, 2)) == (2,)


def test_a_join_that_cannot_be_cut_is_said(tmp_path: Path) -> None:
    """Behind the Concat stands a Gather: nothing to leave to a join."""
    net = Net()
    LEVELS[id(net)] = net.levels()
    net.add("Concat", [_columns(net, "box", 4, 20, True), _columns(net, "score", 3, 1, True)], "cat", axis=1)
    net.add("Gather", ["cat", net.constant("best", np.arange(0, 120, 2), np.int64)], "output0", axis=2)
    bundle = bundle_of(net.proto("output0"), tmp_path, "bayes-e")
    assert not bundle.manifest.join
    rows = bundle.manifest.lost_columns
    assert all(set(row["columns"]) <= {4, 5, 6} and row["axis"] == 1 for row in rows)
    bundle.path.rename(tmp_path / "first")
    net.tensors = [constant(t.name, np.float32(900)) if t.name.startswith("box") and t.name.endswith("_size") else t
                   for t in net.tensors]  # fmt: skip
    bundle = bundle_of(net.proto("output0"), tmp_path, "bayes-e")
    assert {column for row in bundle.manifest.lost_columns for column in row["columns"]} == {4, 5, 6}
    assert any(note.startswith("WARNING: lost: columns 4..6 of output0") for note in bundle.manifest.notes)


def joined_inside(size: float) -> onnx.ModelProto:
    """Boxes of a size and scores, mixed by a convolution behind them."""
    net = Net()
    LEVELS[id(net)] = net.levels()
    net.add("Concat", [_columns(net, "box", 4, size, True), _columns(net, "score", 3, 1, True)], "cat", axis=1)
    flat = net.add("Reshape", ["cat", net.constant("map", [1, 7, 1, -1], np.int64)], "flat")
    net.conv(flat, "mixed", 5, 7, 1)
    return net.proto("mixed")


@pytest.mark.parametrize("target", ["bayes-e", "esp32p4", "onnx"])
def test_a_part_that_is_lost_inside_is_said(target: str, tmp_path: Path) -> None:
    bundle = bundle_of(joined_inside(900), tmp_path, target)
    (row,) = bundle.manifest.lost_columns
    assert (row["output"], row["axis"], row["columns"], row["count"]) == ("cat", 1, [4, 5, 6], 7)
    (note,) = [note for note in bundle.manifest.notes if note.startswith("WARNING: lost: columns 4..6 of cat (axis 1")]
    assert note.endswith("try --int16 make_cat")
    bundle.path.rename(tmp_path / "first")
    pins = Pins({"make_cat": "int16"})
    assert not bundle_of(joined_inside(900), tmp_path, target, pins).manifest.lost_columns
    bundle.path.rename(tmp_path / "second")
    assert not bundle_of(joined_inside(2), tmp_path, target).manifest.lost_columns


def test_more_parts_than_the_chip_takes(tmp_path: Path) -> None:
    loaded = load(save(rotated(), tmp_path / "net.onnx"), preprocess=SPEC)
    chip = load_target("bayes-e")
    narrow = chip.model_copy(update={"runtime": chip.runtime.model_copy(update={"most_outputs": 2})})
    kept = part(loaded, draft(loaded.ir.graph, narrow), list(inputs()[:2, None]))
    assert kept.join is None and kept.ir is loaded.ir
    assert kept.notes[-1].startswith("WARNING: mixed units: output0 (")
    assert kept.notes[-1].endswith("stays whole, because 3 outputs are more than bayes-e takes")


def test_a_bundle_made_again_keeps_its_join(turned: Bundle, tmp_path: Path) -> None:
    again = remake(turned, turned.network, {}, images(inputs(), SPEC), out=tmp_path / "again")
    assert again.manifest.join == turned.manifest.join
    tensor = inputs()[:1]
    np.testing.assert_array_equal(again.run(tensor)["output0"], turned.run(tensor)["output0"])
