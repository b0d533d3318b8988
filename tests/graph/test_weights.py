"""Large weights are held once: the same files, the same numbers, and no copies."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import builders
from builders import save, silu_net
from narrowcast.analyze import analyze
from narrowcast.bundle import Bundle, modify, open_bundle, quantize
from narrowcast.bundle.analysis import subject_of
from narrowcast.bundle.contents import proto_bytes
from narrowcast.calibrate import collect, images
from narrowcast.chips import Target, load_target
from narrowcast.chips.esp.kit import deploy_espdl
from narrowcast.engine.integer import IntegerRunner, lower_integer
from narrowcast.engine.integer.sums import ProductSum
from narrowcast.engine.noise import compare_tensors
from narrowcast.engine.qdq import lower_qdq
from narrowcast.graph import Runner, load, run
from narrowcast.graph import run as weights
from narrowcast.graph.run import open_session
from narrowcast.improve import reconstruct
from narrowcast.improve.factors import equalize, scale_outputs
from narrowcast.ops.net import constant_of
from narrowcast.plan import Plan, draft, finish
from narrowcast.zoo import sample

X = np.random.default_rng(1).random((8, 3, 16, 16), dtype=np.float32)


@pytest.fixture
def all_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every constant were large but for those that shapes are computed from."""
    monkeypatch.setattr(weights, "LEAST_BYTES", 64)


def test_a_held_model_computes_and_writes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(silu_net(), tmp_path / "m.onnx")
    plain = load(path)
    monkeypatch.setattr(weights, "LEAST_BYTES", 16)
    held = load(path)
    proto = held.to_proto()
    names = [name for name, _ in weights.held_arrays(proto)]
    assert len(names) == 6 and proto.ByteSize() < plain.to_proto().ByteSize()
    assert proto_bytes(proto) == proto_bytes(plain.to_proto())
    assert proto_bytes(held.original) == proto_bytes(plain.original)
    for model in (proto, held.original):
        np.testing.assert_array_equal(Runner(model).run(X[:1])["y"], Runner(plain.to_proto()).run(X[:1])["y"])
    serialized = proto.SerializeToString()
    assert [name for name, _ in weights.held_arrays(serialized)] == names
    (found,) = open_session(serialized, 1, "basic").run(["y"], {"x": X[:1]})
    np.testing.assert_array_equal(found, Runner(plain.to_proto(), 1, "basic").run(X[:1])["y"])


def test_equal_weights_are_one_array_which_goes_with_its_last_holder() -> None:
    array = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    first, second = weights.HeldTensor(array, "a"), weights.HeldTensor(array.copy(), "b")
    other = weights.HeldTensor(array.reshape(32, 128), "c")
    assert first.numpy() is second.numpy() and first.location == second.location != other.location
    np.testing.assert_array_equal(first.numpy(), array)
    assert first.tobytes() == array.tobytes() and not first.numpy().flags.writeable
    gc.collect()
    known = len(weights._known)
    del first, second, other
    gc.collect()
    assert len(weights._known) == known - 2


def test_a_session_keeps_what_it_needs(tmp_path: Path, all_held: None) -> None:
    model = load(save(silu_net(), tmp_path / "m.onnx"))
    runner = Runner(model.to_proto())
    expected = runner.run(X[:1])["y"].copy()
    del model
    gc.collect()
    np.testing.assert_array_equal(runner.run(X[:1])["y"], expected)


def test_without_a_place_for_files_memory_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    array = np.random.default_rng(2).random((16, 16), dtype=np.float32)
    tensor = weights.HeldTensor(array, "a")
    np.testing.assert_array_equal(tensor.numpy(), array)


@pytest.mark.parametrize("effort", ["fast", "standard"])
@pytest.mark.parametrize("target", ["onnx", "esp32p4"])
def test_a_bundle_is_the_same_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, effort: str, target: str
) -> None:
    path = save(silu_net(), tmp_path / "m.onnx")
    made = []
    for name in ("plain", "held"):
        if name == "held":
            monkeypatch.setattr(weights, "LEAST_BYTES", 16)
        model = load(path)
        made.append(quantize(model, images(X, model.preprocess), target, out=tmp_path / name, effort=effort))
    plain, held = ({f.name: f.read_bytes() for f in bundle.path.iterdir()} for bundle in made)
    assert plain == held


def test_the_rest_of_the_program_takes_a_held_bundle(pose_bundle: Bundle, tmp_path: Path, all_held: None) -> None:
    """Changed ends, the chip's file, the board's package and an analysis are those of a bundle opened plainly."""
    again = open_bundle(pose_bundle.path)
    assert next(weights.held_arrays(again.model.to_proto()), None) is not None
    made = [modify(bundle, out=tmp_path / name, remove_dequantize=["all"]) for name, bundle in
            (("held", again), ("plain", pose_bundle))]  # fmt: skip
    for name in ("qdq.onnx", "integer.onnx", "float.onnx"):
        assert made[0].file(name).read_bytes() == made[1].file(name).read_bytes()
    files = [deploy_espdl(bundle, tmp_path / f"{name}.espdl") for name, bundle in
             (("held", again), ("plain", pose_bundle))]  # fmt: skip
    assert files[0][0].read_bytes() == files[1][0].read_bytes()
    few = images(sample("pose").validation, again.manifest.preprocess, limit=2)
    results = [analyze(subject_of(bundle, few), layers="products").to_dict() for bundle in (again, pose_bundle)]
    assert results[0] == results[1]


def _planned(folder: Path, proto: onnx.ModelProto | None = None) -> tuple[ir.Model, Plan, Target]:
    target = load_target("esp32p4")
    model = load(save(proto or silu_net(), folder / "m.onnx"))
    drafted = draft(model.ir.graph, target)
    statistics = collect(model.to_proto(), drafted.wanted_statistics(), [x[None] for x in X])
    return model.ir, finish(drafted, statistics, "minmax")[0], target


def test_sessions_that_do_not_fold_weights_give_the_same_integers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = lower_integer(*_planned(tmp_path))
    folded = [IntegerRunner(graph, 1, "basic").run(x[None]) for x in X]
    monkeypatch.setattr(run, "_MANY_BYTES", 1)
    unfolded = IntegerRunner(graph, 1, "basic")
    for x, expected in zip(X, folded, strict=True):
        found = unfolded.run(x[None])
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_constants_are_computed_from_the_first_nodes() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y)
        <int8[2] w = {3, 4}, float s = {2}> {
            a = Relu(x)
            c = Cast<to = 1>(w)
            d = Mul(c, s)
            y = Add(a, d)
        }"""
    )
    ordered = run._constants_first(proto)
    assert [node.op_type for node in ordered.graph.node] == ["Cast", "Mul", "Relu", "Add"]
    assert [node.op_type for node in proto.graph.node] == ["Relu", "Cast", "Mul", "Add"]


def test_lowering_lets_go_of_the_sums_it_has_written(tmp_path: Path) -> None:
    given = _planned(tmp_path)
    gc.collect()
    gc.disable()  # nothing waits for the collector
    try:
        graph = lower_integer(*given)
        assert not [entry for entry in gc.get_objects() if isinstance(entry, ProductSum)]
    finally:
        gc.enable()
    assert graph.proofs


def test_a_qdq_graph_lets_go_of_the_integers_it_has_written(tmp_path: Path) -> None:
    model, plan, _ = _planned(tmp_path)
    stored = plan.tensors["w1"].quantize(constant_of(model.graph.initializers["w1"]))
    gc.collect()
    gc.disable()
    try:
        lower_qdq(model, plan)
        tensors = [entry for entry in gc.get_objects() if isinstance(entry, ir.Tensor) and entry.shape == stored.shape]
    finally:
        gc.enable()
    assert not [tensor for tensor in tensors if np.array_equal(tensor.numpy(), stored)]


def test_lowering_a_large_weight_takes_little_memory(tmp_path: Path) -> None:
    weight = builders.weights(np.random.default_rng(0), "w", 512, 512, 3, 3)
    nodes = [onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    model = load(save(builders.model(nodes, [weight], shape=(1, 512, 3, 3)), tmp_path / "m.onnx"))
    target = load_target("onnx")
    drafted = draft(model.ir.graph, target)
    few = np.random.default_rng(1).normal(size=(2, 1, 512, 3, 3)).astype(np.float32)
    plan = finish(drafted, collect(model.to_proto(), drafted.wanted_statistics(), few), "minmax")[0]
    tracemalloc.start()
    try:
        graph = lower_integer(model.ir, plan, target)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert graph.proofs[0].products > 1
    assert peak < 3.2 * len(weight.raw_data)


def test_a_comparison_lets_the_float_weights_rest_while_the_other_graph_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, all_held: None
) -> None:
    model = load(save(silu_net(), tmp_path / "m.onnx"))
    proto, rested = model.to_proto(), []
    monkeypatch.setattr(weights._Held, "rest", lambda held: rested.append(held))
    (found,) = compare_tensors(proto, proto, {"y": "y"}, [x[None] for x in X[:2]]).values()
    own = len(list(weights.held_arrays(proto)))
    assert found.max_abs == 0 and len(rested) == 2 * len(weights._known) + 2 * own  # before a session, after an image


def test_a_session_gives_back_what_others_read_and_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = weights.HeldTensor(np.random.default_rng(3).random((64, 64), dtype=np.float32), "a")
    rested: list[object] = []
    monkeypatch.setattr(weights._Held, "rest", lambda held: rested.append(held))
    monkeypatch.setattr(weights, "_TRIM", lambda kept: rested.append(kept))
    Runner(
        onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) {y = Relu(x)}')
    )
    assert tensor._held in rested and rested[-1] == 0


def test_corrected_weights_are_held(tmp_path: Path, all_held: None) -> None:
    rng, node = np.random.default_rng(0), onnx.helper.make_node
    nodes = [node("Conv", ["x", "w0"], ["c"], name="c0"), node("Relu", ["c"], ["r"], name="r"),
             node("Conv", ["r", "w1"], ["y"], name="c1")]  # fmt: skip
    constants = [builders.weights(rng, "w0", 8, 3, 3, 3), builders.weights(rng, "w1", 4, 8, 3, 3)]
    model, plan, _ = _planned(tmp_path, builders.model(nodes, constants))
    before = dict(weights.held_arrays(ir.to_proto(model)))
    made = [equalize(model)[0], scale_outputs(model, {"y": np.full(4, 2.0)}),
            reconstruct(model, plan, [x[None] for x in X])[0]]  # fmt: skip
    for other in made:
        after = dict(weights.held_arrays(ir.to_proto(other)))
        assert list(after) == list(before) == ["w0", "w1"]
        assert not np.array_equal(after["w1"], before["w1"])
