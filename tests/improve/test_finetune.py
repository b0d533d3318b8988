"""Finetuning: the torch network against the QDQ graph, the losses, and the whole job on small nets."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import narrowcast as nc
from builders import constant, model, save, silu_net, weights
from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle, open_bundle
from narrowcast.bundle.make import remake
from narrowcast.calibrate import collect
from narrowcast.chips import load_target
from narrowcast.cli.tune import finetune as command
from narrowcast.engine import lower_qdq
from narrowcast.graph import Model
from narrowcast.graph.run import Runner
from narrowcast.improve.finetune import Settings
from narrowcast.improve.finetune.settings import features, region, tie
from narrowcast.plan import Pins, Plan, draft, finish
from narrowcast.tasks import HeadSpec, Look, Task, TaskJudge, meaning_of
from narrowcast.vision.preprocess import Preprocess

torch = pytest.importorskip("torch", reason="finetune needs torch: pip install 'narrowcast[finetune]'")


from narrowcast.bundle.finetune import finetune  # noqa: E402
from narrowcast.improve.finetune.network import Network, Scales, Weight  # noqa: E402
from narrowcast.improve.finetune.operators import compute  # noqa: E402
from narrowcast.improve.finetune.training import views  # noqa: E402
from narrowcast.plan.types import Encoding  # noqa: E402
from narrowcast.tasks.teaching import noise  # noqa: E402

TARGETS = ("onnx", "esp32p4", "bayes-e")


def two_heads() -> onnx.ModelProto:
    """A shared convolution, then two branches, so that there is something before the branches."""
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["a0"], name="relu"),
        helper.make_node("Conv", ["a0", "w1", "b1"], ["y"], name="left", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a0", "w2", "b2"], ["z"], name="right"),
    ]
    constants = [
        weights(rng, "w0", 8, 3, 3, 3), weights(rng, "b0", 8), weights(rng, "w1", 4, 8, 3, 3), weights(rng, "b1", 4),
        weights(rng, "w2", 4, 8, 1, 1), weights(rng, "b2", 4),
    ]  # fmt: skip
    return model(nodes, constants, outputs=("y", "z"))


def classifier() -> onnx.ModelProto:
    """Class probabilities: what is learned are the logits before the Softmax."""
    rng = np.random.default_rng(5)
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["c0", "low", "high"], ["a0"], name="relu6"),
        helper.make_node("GlobalAveragePool", ["a0"], ["p0"], name="mean"),
        helper.make_node("Flatten", ["p0"], ["f0"], name="flat"),
        helper.make_node("Gemm", ["f0", "w1", "b1"], ["logits"], name="classes", transB=1),
        helper.make_node("Softmax", ["logits"], ["y"], name="softmax", axis=1),
    ]
    constants = [
        weights(rng, "w0", 8, 3, 3, 3), weights(rng, "b0", 8), weights(rng, "w1", 5, 8), weights(rng, "b1", 5),
        constant("low", np.float32(0)), constant("high", np.float32(6)),
    ]  # fmt: skip
    return model(nodes, constants, metadata={"task": "classify"})


def inputs(count: int, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random((1, 3, 16, 16), dtype=np.float32) for _ in range(count)]


def planned(proto: onnx.ModelProto, folder: Path, target: str, pins: Pins | None = None) -> tuple[Model, Plan]:
    loaded = nc.load(save(proto, folder / "m.onnx"))
    drafted = draft(loaded.ir.graph, load_target(target), pins)
    statistics = collect(loaded.to_proto(), drafted.wanted_statistics(), inputs(4))
    return loaded, finish(drafted, statistics, "minmax")[0]


def image_folder(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index, tensor in enumerate(inputs(count, seed=9)):
        np.save(folder / f"{index:03d}.npy", tensor)
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle whose last layers are a little wrong, so that there is something to learn in a few steps."""
    loaded = nc.load(save(two_heads(), tmp_path / "m.onnx"))
    images = nc.images(str(image_folder(tmp_path / "images", 16)), loaded.preprocess)
    plain = nc.quantize(loaded, images.spread(12), "esp32p4", out=tmp_path / "plain", method="minmax", effort="fast")
    start = plain.network
    graph, rng = start.model.clone(), np.random.default_rng(4)
    for name in ("b1", "b2", "w2"):
        value = graph.graph.initializers[name]
        array = value.const_value.numpy()
        value.const_value = ir.tensor((array + rng.normal(0, 0.05, array.shape)).astype(np.float32), name=name)
    wrong = replace(start, model=graph, changed=True)
    return remake(plain, wrong, {"wrong": True}, images, out=tmp_path / "b")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("pins", [None, Pins({"conv1": "int16"})], ids=["int8", "mixed"])
def test_the_network_computes_what_the_qdq_graph_computes(tmp_path: Path, target: str, pins: Pins | None) -> None:
    if target == "onnx" and pins is not None:
        pytest.skip("the target has no 16 bits")
    loaded, plan = planned(silu_net(), tmp_path, target, pins)
    network = Network(loaded.ir, plan)
    runner = Runner(lower_qdq(loaded.ir, plan)[0], 1, "basic")
    encoding = plan.tensors.get("y")
    for tensor in inputs(3, seed=5):
        expected = runner.run(tensor)["y"]
        with torch.no_grad():
            values = {"x": network.enter("x", torch.from_numpy(tensor))}
            actual = network.run(values, network.nodes, ["y"])["y"].numpy()
        step = float(encoding.scales) if encoding is not None and encoding.dtype != "int32" else 0.05
        apart = np.abs(actual - expected) / step
        assert apart.max() <= 1.01
        assert (apart > 0.5).mean() < 0.06


def rule(op_type: str, *constants: onnx.TensorProto, **attributes: object) -> tuple[onnx.NodeProto, list]:
    """A node that reads ``x`` and these constants; a constant named "-" stands for an absent input."""
    names = ["" if tensor.name == "-" else tensor.name for tensor in constants]
    return helper.make_node(op_type, ["x", *names], ["y"], **attributes), [c for c in constants if c.name != "-"]


def rules() -> list[tuple[onnx.NodeProto, list]]:
    rng = np.random.default_rng(0)
    absent, twice = constant("-", np.zeros(1)), constant("scales", np.array([1, 1, 2, 2], np.float32))
    ones = [constant(name, np.array([value])) for name, value in (("starts", 2), ("ends", 14), ("axes", 2))]
    bounds = [constant("low", np.float32(0.2)), constant("high", np.float32(0.7))]
    return [
        rule("Conv", weights(rng, "w", 4, 3, 3, 3), pads=[0, 1, 2, 1], strides=[2, 2]),
        rule("Conv", weights(rng, "w", 3, 1, 3, 3), group=3, dilations=[2, 2]),
        rule("ConvTranspose", weights(rng, "w", 3, 5, 4, 4), weights(rng, "b", 5), strides=[2, 2], pads=[1, 1, 1, 1]),
        rule("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
        rule("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        rule("GlobalAveragePool"),
        rule("Softmax", axis=1),
        rule("HardSwish"),
        rule("HardSigmoid", alpha=0.3),
        rule("LeakyRelu", alpha=0.2),
        rule("Transpose", perm=[0, 2, 3, 1]),
        rule("Clip", *bounds),
        rule("Resize", absent, twice, nearest_mode="floor", coordinate_transformation_mode="asymmetric"),
        rule("Resize", absent, constant("scales", np.array([1, 1, 3, 0.7], np.float32)), nearest_mode="ceil"),
        rule("Resize", absent, twice, mode="linear"),
        rule("Slice", *ones),
        rule("ReduceMean", axes=[2, 3], keepdims=0),
        rule("Reshape", constant("shape", np.array([1, 3, -1]))),
        rule("GlobalMaxPool"),
        rule("ReduceMax", axes=[2]),
        rule("ReduceMin", axes=[1, 3], keepdims=0),
        rule("Elu", alpha=0.7),
        rule("Selu"),
        rule("PRelu", constant("slope", np.array([0.1, 0.2, -0.3], np.float32).reshape(3, 1, 1))),
        rule("Pow", constant("two", np.float32(2))),
        rule("Max", bounds[0]),
        rule("Min", bounds[1]),
        *(rule(name) for name in ("Erf", "Softplus", "Softsign", "Abs", "Sin", "Tanh", "Exp", "Neg", "Round", "Atan")),
    ]


def test_every_operator_rule_computes_what_onnxruntime_computes() -> None:
    x = np.random.default_rng(1).normal(size=(1, 3, 16, 16)).astype(np.float32)
    for node, constants in rules():
        proto = model([node], constants)
        graph = ir.from_proto(proto).graph
        fixed = {tensor.name: torch.from_numpy(np.array(onnx.numpy_helper.to_array(tensor))) for tensor in constants}
        known = {"x": torch.from_numpy(x), "": None, **fixed}
        operands = [known[str(value.name) if value is not None else ""] for value in graph[0].inputs]
        expected = Runner(proto, 1).run(x)["y"]
        np.testing.assert_allclose(compute(graph[0], operands)[0].numpy(), expected, atol=2e-5, err_msg=node.op_type)


def test_an_operator_without_a_rule_is_named(tmp_path: Path) -> None:
    odd = helper.make_node("CumSum", ["c", "axis"], ["y"], name="odd")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="c"), odd]
    proto = model(nodes, [weights(np.random.default_rng(0), "w", 4, 3, 3, 3), constant("axis", np.array(1))])
    loaded = nc.load(save(proto, tmp_path / "m.onnx"))
    plan = planned(silu_net(), tmp_path, "onnx")[1]
    with pytest.raises(UserError, match=r"no rule for CumSum \(odd\)"):
        Network(loaded.ir, replace(plan, tensors={}))


def test_rounding_lets_gradients_through_inside_the_range_only() -> None:
    weight = Weight(np.array([[0.26, -0.9, 5.0]]), Encoding("int8", 0.01), "cpu")
    weight.steps.requires_grad_(True)
    value = weight.value()
    np.testing.assert_allclose(value.detach().numpy(), [[0.26, -0.9, 1.27]], rtol=1e-6)
    value.sum().backward()
    np.testing.assert_allclose(weight.steps.grad.numpy(), [[0.01, 0.01, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(weight.array(), value.detach().numpy())


def test_branches_are_what_serves_one_output(tmp_path: Path) -> None:
    graph = nc.load(save(two_heads(), tmp_path / "m.onnx")).ir.graph
    found = region(graph, ("y", "z"), "branches")
    assert [node.name for node in found.before] == ["stem", "relu"]
    assert [node.name for node in found.trained] == ["left", "right"]
    assert found.frontier == ("a0",)
    assert [node.name for node in region(graph, ("y",), "branches").trained] == ["stem", "relu", "left"]
    assert region(graph, ("y", "z"), "all").frontier == ("x",)


def test_features_are_what_several_nodes_read(tmp_path: Path) -> None:
    graph = nc.load(save(two_heads(), tmp_path / "m.onnx")).ir.graph
    assert features(graph, {"c0", "a0", "y", "z"}, ("y", "z")) == ("a0",)
    assert features(graph, {"c0", "y", "z"}, ("y", "z")) == ()  # not a value of the user's model
    assert features(graph, {"a0"}, ("a0",)) == ()


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [
        np.full((40, 60, 3), 20 * (index + 1), np.uint8) + rng.integers(0, 9, (40, 60, 3), np.uint8)
        for index in range(count)
    ]


def test_views_show_every_image_before_any_comes_again(tmp_path: Path) -> None:
    spec = Preprocess(16, 16)
    plain = nc.images(pictures(5), spec)
    shown = list(islice(views(plain, 3, vary=False), 10))
    wanted = sorted(x.tobytes() for x in plain)
    assert sorted(x.tobytes() for x in shown[:5]) == wanted == sorted(x.tobytes() for x in shown[5:])
    assert [x.tobytes() for x in shown[:5]] != [x.tobytes() for x in shown[5:]]


@pytest.mark.parametrize("resize", ["letterbox", "center-crop", "stretch"])
def test_views_differ_and_come_again_with_the_same_seed(resize: str) -> None:
    spec = Preprocess(16, 16, resize=resize, layout="NHWC")
    plain = nc.images(pictures(3), spec)
    first, again, other = (list(islice(views(plain, seed, vary=True), 30)) for seed in (0, 0, 1))
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert not all(np.array_equal(x, y) for x, y in zip(first, other, strict=True))
    assert len({x.tobytes() for x in first}) == 30
    assert all(x.shape == (1, 16, 16, 3) and x.dtype == np.float32 and x.min() >= 0 and x.max() <= 1 for x in first)


def test_ready_made_inputs_are_mirrored_at_most() -> None:
    tensor = inputs(1)[0]
    shown = list(islice(views(nc.images([tensor[0]], Preprocess(16, 16)), 0, vary=True), 12))
    assert {x.tobytes() for x in shown} == {tensor.tobytes(), np.ascontiguousarray(tensor[..., ::-1]).tobytes()}


def head_outputs(rng: np.random.Generator, head: HeadSpec) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for stride in head.strides:
        size = 64 // stride
        for role in meaning_of(head.task, head).roles:
            values = rng.normal(0, 1, (1, role.channels(head), size, size))
            found[f"{role.stem}_s{stride}"] = values.astype(np.float32)
    if head.reg_max == 1:  # plain distances are positive
        found |= {name: np.abs(x) + 0.5 for name, x in found.items() if name.startswith("box")}
    if head.num_masks:
        found["proto"] = rng.normal(0, 1, (1, head.num_masks, 16, 16)).astype(np.float32)
    return found


HEADS = (
    HeadSpec("detect", (8, 16), 3),
    HeadSpec("pose", (8, 16), 1, keypoint_shape=(17, 3)),
    HeadSpec("pose", (8, 16), 1, reg_max=1, keypoint_shape=(5, 2)),
    HeadSpec("segment", (8, 16), 2, num_masks=4),
)


@pytest.mark.parametrize("head", HEADS, ids=["detect", "pose", "pose of 5", "segment"])
def test_the_loss_is_zero_for_equal_outputs_and_grows_with_the_noise(head: HeadSpec) -> None:
    rng = np.random.default_rng(0)
    outputs = head_outputs(rng, head)
    noisy = {name: rng.normal(0, 1, x.shape).astype(np.float32) for name, x in outputs.items()}
    meaning = meaning_of(head.task, head)
    loss, teacher = meaning.loss(), {name: torch.from_numpy(x) for name, x in outputs.items()}
    judge = TaskJudge(meaning, [outputs], Look((64, 64), confidence=0.3))
    found, judged = [], []
    for size in (0.0, 0.02, 0.1, 0.4):
        other = {name: x + np.float32(size) * noisy[name] for name, x in outputs.items()}
        found.append(float(loss({name: torch.from_numpy(x) for name, x in other.items()}, teacher)))
        judged.append(judge.judge(0, other).loss)
    assert found[0] == pytest.approx(0, abs=1e-4)
    assert found == sorted(found) and found[1] > found[0]
    assert judged == sorted(judged)  # the judge that keeps or refuses agrees on the order


def test_loss_of_boxes_and_keypoints_against_a_plain_reference() -> None:
    head = HeadSpec("pose", (8,), 1, reg_max=1, keypoint_shape=(1, 2))
    old = {
        "box_s8": np.full((1, 4, 1, 1), 2.0),
        "cls_s8": np.full((1, 1, 1, 1), 100.0),
        "kpt_s8": np.zeros((1, 2, 1, 1)),
    }
    new = {
        **old,
        "box_s8": np.array([2.0, 2, 3, 2]).reshape(1, 4, 1, 1),
        "kpt_s8": np.array([0.5, 0]).reshape(1, 2, 1, 1),
    }
    old, new = ({k: torch.tensor(v, dtype=torch.float32) for k, v in x.items()} for x in (old, new))
    area = 0.53 * 32 * 32
    error = (0.5 * 2 * 8) ** 2 / (2 * area * (2 * 0.07) ** 2)
    expected = (1 - 16 / 20) + error / (1 + error) + 0.1 * float(noise(new, old))
    assert float(meaning_of("pose", head).loss()(new, old)) == pytest.approx(expected, rel=1e-4)


def test_class_loss_is_the_divergence() -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.25, 0.25])
    old, new = ({"y": torch.tensor(np.log(x) + 3, dtype=torch.float32)[None]} for x in (p, q))
    assert float(meaning_of("classify").loss()(new, old)) == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-4)


@pytest.mark.parametrize("scope", ["branches", "all"])
def test_finetune_lowers_the_loss_and_writes_the_same_bytes_again(tmp_path: Path, bundle: Bundle, scope: str) -> None:
    images = nc.images(str(image_folder(tmp_path / "more", 16)), bundle.manifest.preprocess)
    settings = Settings(steps=30, batch=2, rate=0.05, checks=3, scope=scope)
    found = [finetune(bundle, images, out=tmp_path / name, settings=settings, threads=1) for name in ("one", "two")]
    record = found[0].manifest.calibration["finetune"]
    assert record["judged_by"] == "exact integers"
    losses = [entry["loss"] for entry in record["judged"]]
    assert record["kept_step"] and record["after"]["loss"] == pytest.approx(min(losses), abs=1e-6)
    assert min(losses) < 0.9 * losses[0]
    assert found[0].manifest.files == found[1].manifest.files
    for name, digest in found[0].manifest.files.items():
        assert hashlib.sha256((found[0].path / name).read_bytes()).hexdigest() == digest
    assert {"prepared.onnx", "integer.onnx", "qdq.onnx", "plan.json", "model.espdl"} <= set(found[0].manifest.files)
    stem = [bundle.prepared.ir.graph.initializers["w0"], found[0].prepared.ir.graph.initializers["w0"]]
    rounded = [found[0].plan.tensors["w0"].quantize(value.const_value.numpy()) for value in stem]
    assert (scope == "branches") == bool(np.array_equal(*rounded))


def test_a_classifier_learns_its_logits(tmp_path: Path) -> None:
    loaded = nc.load(save(classifier(), tmp_path / "m.onnx"))
    images = nc.images(str(image_folder(tmp_path / "images", 16)), loaded.preprocess)
    start = nc.quantize(loaded, images.spread(12), "esp32p4", out=tmp_path / "b", method="minmax", effort="fast")
    made = finetune(start, images, out=tmp_path / "o", settings=Settings(steps=20, batch=2, rate=0.05), threads=1)
    record = made.manifest.calibration["finetune"]
    assert record["judged_by"] == "QDQ graph" and "divergence" in record["before"]
    assert record["after"]["loss"] <= record["before"]["loss"]
    assert "integer.onnx" in made.manifest.files


def test_images_that_made_the_bundle_do_not_judge(tmp_path: Path, bundle: Bundle) -> None:
    images = nc.images(str(tmp_path / "images"), bundle.manifest.preprocess)
    used = set(bundle.manifest.calibration["images"])
    assert len(used & set(images.hashes())) == 11
    settings = Settings(steps=2, checks=1)
    made = finetune(bundle, images, out=tmp_path / "o", settings=settings, threads=1)
    sides = made.manifest.calibration["finetune"]["images"]
    assert len(sides["judge"]) == 4 and not used & set(sides["judge"])
    assert sorted(sides["teach"] + sides["judge"]) == sorted(images.hashes())
    again = finetune(made, images, out=tmp_path / "again", settings=settings, threads=1)
    assert again.manifest.calibration["finetune"]["images"]["judge"] == sides["judge"]  # nor do the teachers of before
    made_from = [index for index, digest in enumerate(images.hashes()) if digest in used]
    other = next(index for index in range(16) if index not in made_from)
    with pytest.raises(UserError, match="1 of 12 images was not used to make the bundle"):
        finetune(bundle, images.subset([*made_from, other]), out=tmp_path / "p", settings=settings)


def test_what_is_judged_is_the_running_mean(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from narrowcast.improve.finetune import training

    images = nc.images(str(tmp_path / "images"), bundle.manifest.preprocess)
    found = {}
    for memory in (1.0, 0.0):
        monkeypatch.setattr(training, "MEMORY", memory)
        settings = Settings(steps=4, rate=0.5, checks=2)
        made = finetune(bundle, images, out=tmp_path / str(memory), settings=settings, threads=1)
        found[memory] = [entry["loss"] for entry in made.manifest.calibration["finetune"]["judged"]]
    assert len(set(found[1.0])) == 1  # a mean that forgets nothing stays at the start
    assert len(set(found[0.0])) == 3  # one that keeps nothing is the network as it is now


def test_nothing_better_leaves_the_start(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:

    images = nc.images(str(tmp_path / "images"), bundle.manifest.preprocess)
    monkeypatch.setattr(Task, "loss", lambda *_: lambda outputs, teacher: -noise(outputs, teacher))
    made = finetune(bundle, images, out=tmp_path / "o", settings=Settings(steps=4, rate=0.5, checks=2), threads=1)
    assert made.manifest.calibration["finetune"]["kept_step"] == 0
    for tensor in inputs(2):
        for name, values in bundle.run(tensor).items():
            np.testing.assert_array_equal(values, made.run(tensor)[name])


def test_too_few_images_and_wrong_settings_end_in_one_line(tmp_path: Path, bundle: Bundle) -> None:
    few = nc.images(str(image_folder(tmp_path / "few", 3)), bundle.manifest.preprocess)
    with pytest.raises(UserError, match="3 images are too few"):
        finetune(bundle, few, out=tmp_path / "o")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        command(bundle.path, tmp_path / "none")
    for wrong in ({"steps": 0}, {"scope": "head"}, {"rate": 0.0}, {"batch": 0}):
        with pytest.raises(UserError):
            Settings(**wrong)
    with pytest.raises(UserError, match="no device 'warp'"):
        finetune(
            bundle,
            nc.images(str(tmp_path / "images"), few.preprocess),
            out=tmp_path / "o",
            settings=Settings(device="warp"),
        )
    assert not (tmp_path / "o").exists()


def test_the_command_prints_and_writes(tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    command(bundle.path, tmp_path / "images", steps=6, batch=1, rate=0.05, threads=1, quiet=True)
    out = capsys.readouterr().out
    assert "that taught nothing, exact integers" in out
    made = open_bundle(tmp_path / "b-finetuned")
    assert made.manifest.command[:3] == ("narrowcast", "finetune", "--steps=6")
    with pytest.raises(UserError, match="exists"):
        command(bundle.path, tmp_path / "images", quiet=True)


def test_ctrl_c_leaves_nothing(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from narrowcast.improve.finetune import training

    def stop(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(training._Training, "_step", stop)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        command(bundle.path, tmp_path / "images", quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("target", ["esp32p4", "bayes-e"])
def test_trained_scales_give_a_consistent_plan(tmp_path: Path, target: str) -> None:
    loaded, plan = planned(silu_net(), tmp_path, target)
    chip = load_target(target)
    tied = tie(loaded.ir.graph, plan, chip, None, list(loaded.ir.graph))
    assert tied.groups
    unchanged = tied.planned(loaded.ir.graph, [float(tied.encodings()[group[0]].scales) for group in tied.groups])
    assert unchanged == plan
    doubled = tied.planned(loaded.ir.graph, [2 * float(tied.encodings()[group[0]].scales) for group in tied.groups])
    for name in tied.groups[0]:
        if name in plan.tensors:
            assert float(doubled.tensors[name].scales) == 2 * float(plan.tensors[name].scales)
    bias, read, weight = doubled.tensors["b1"], doubled.tensors["a0"], doubled.tensors["w1"]
    np.testing.assert_allclose(bias.scales, read.scales * weight.scales)
    lower_qdq(loaded.ir, doubled)


@pytest.mark.parametrize("whole", [True, False])
def test_trained_scales_round_as_the_plan_that_they_give(whole: bool) -> None:
    encoding = Encoding("int8", 0.125)
    scales = Scales([["a", "n#0"]], {"a": encoding, "n#0": encoding}, whole, "cpu")
    scales.log2 += 0.4
    (found,) = scales.found()
    assert found == (0.125 if whole else pytest.approx(0.125 * 2**0.4))
    x = torch.randn(100) * 10
    expected = replace(encoding, scale=found)
    fake = scales.fake(x, encoding, "n#0").numpy()
    np.testing.assert_allclose(fake, expected.dequantize(expected.quantize(x.numpy())), atol=1e-6)
    scales.log2.requires_grad_(True)
    scales.fake(x, encoding, "a").square().sum().backward()
    assert float(scales.log2.grad) != 0


def test_finetune_with_trained_scales(tmp_path: Path, bundle: Bundle) -> None:
    images = nc.images(str(tmp_path / "images"), bundle.manifest.preprocess)
    settings = Settings(steps=20, batch=2, rate=0.05, scale_rate=0.05, checks=2, scope="all")
    made = finetune(bundle, images, out=tmp_path / "o", settings=settings, threads=1)
    assert made.manifest.calibration["finetune"]["kept_step"]
    for encoding in made.plan.tensors.values():
        assert np.all(np.log2(encoding.scales) == encoding.exponents)
