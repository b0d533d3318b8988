"""Incremental, partly quantized runs against whole runs of the same plans."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from builders import model as build
from builders import silu_net, weights
from command_line import parse
from narrowcast.analyze import Subject, analyze
from narrowcast.analyze.findings import _reason, pattern
from narrowcast.analyze.measure import digests, measure, reference, run_variants
from narrowcast.analyze.parts import ablate, choose, graphwise, sensitivity, wider_plan
from narrowcast.analyze.subject import BACKBONE, macs, regions, subplan, telling, unseen
from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle
from narrowcast.bundle.analysis import subject_of
from narrowcast.calibrate import collect, images
from narrowcast.chips import load_target
from narrowcast.engine.noise import Noise
from narrowcast.graph import Model
from narrowcast.graph.prepare import tidy
from narrowcast.graph.run import Runner
from narrowcast.plan import Plan, draft, finish
from narrowcast.tasks import Task
from narrowcast.zoo import sample

RNG = np.random.default_rng(0)
INPUTS = [RNG.normal(0, 1, (1, 3, 16, 16)).astype(np.float32) for _ in range(3)]


def small(target: str = "esp32p4") -> Subject:
    model, _ = tidy(silu_net(), "test")
    chip = load_target(target)
    drafted = draft(model.graph, chip)
    found = collect(ir.to_proto(model), drafted.wanted_statistics(), INPUTS)
    plan, _ = finish(drafted, found, "minmax")
    return Subject(
        model, plan, chip, meaning=Task(), inputs=INPUTS, input_size=(16, 16)
    )


@pytest.fixture(scope="module")
def pose(pose_bundle: Bundle) -> Subject:
    found = images(sample("pose").validation, pose_bundle.manifest.preprocess, limit=4)
    return subject_of(pose_bundle, found)


def whole(subject: Subject, plan: Plan, index: int) -> Mapping[str, np.ndarray]:
    return subject.true_outputs(Runner(subject.lower(plan), 1, "none").run(subject.inputs[index]))


def test_noise_as_esp_ppq_defines_it() -> None:
    sums = Noise()
    pairs = [(RNG.normal(0, 1, 50), RNG.normal(0, 1, 50)) for _ in range(3)]
    for x, y in pairs:
        sums.add(x, y)
    found = sums
    assert found.ratio == pytest.approx(np.mean([((y - x) ** 2).sum() / ((x**2).sum() + 1e-7) for x, y in pairs]))
    signal, noise = sum((x**2).sum() for x, _ in pairs), sum(((y - x) ** 2).sum() for x, y in pairs)
    assert found.sqnr_db == pytest.approx(10 * math.log10(signal / noise), rel=1e-5)
    x, y = (np.concatenate(part) for part in zip(*pairs, strict=True))
    assert found.cosine == pytest.approx(x @ y / math.sqrt((x @ x) * (y @ y)), rel=1e-4)


@pytest.mark.parametrize("target", ["esp32p4", "bayes-e", "onnx"])
def test_variants_equal_whole_runs(target: str) -> None:
    subject = small(target)
    plans = {name: subplan(subject, [name]) for name in subject.quantized_nodes()}
    plans["all"], plans["none"] = subject.plan, Plan(target)
    plans["activations"] = subplan(subject, list(subject.nodes), weights=False)
    plans["weights"] = subplan(subject, list(subject.nodes), activations=False)
    seen: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    run_variants(
        subject.float_graph,
        [(key, partial(subject.lower, plan)) for key, plan in plans.items()],
        subject.inputs,
        lambda key, index, outputs, same: seen.__setitem__((key, index), outputs),
        workers=2,
    )
    assert len(seen) == len(plans) * 3
    for (key, index), outputs in seen.items():
        for name, expected in whole(subject, plans[key], index).items():
            np.testing.assert_allclose(outputs[name], expected, atol=1e-5)


def test_only_what_changed_runs_again(pose: Subject) -> None:
    same_seen: list[set[str]] = []
    last = next(value.producer() for value in pose.model.graph.outputs if value.name == "kpt_s8")
    assert last is not None
    run_variants(
        pose.float_graph,
        [("last", lambda: pose.lower(subplan(pose, [str(last.name)])))],
        pose.inputs[:1],
        lambda key, index, outputs, same: same_seen.append(same),
    )
    assert same_seen == [set(pose.output_names) - {"kpt_s8"}]


def test_digests_do_not_depend_on_names() -> None:
    one, other = silu_net(), silu_net()
    for node in other.graph.node:
        for index, name in enumerate(node.output):
            if name == "a0":
                node.output[index] = "renamed"
        for index, name in enumerate(node.input):
            if name == "a0":
                node.input[index] = "renamed"
    assert digests(one)["a0"] == digests(other)["renamed"]
    assert digests(one)["y"] == digests(other)["y"]
    other.graph.initializer[0].raw_data = bytes(len(other.graph.initializer[0].raw_data))
    assert digests(one)["y"] != digests(other)["y"]


def test_one_node_quantized_reads_and_writes_quantized() -> None:
    subject = small()
    plan = subplan(subject, ["conv1"])
    node = subject.nodes["conv1"]
    names = [str(value.name) for value in node.inputs if value is not None]
    assert set(plan.tensors) == {names[1], names[2], str(node.outputs[0].name)}
    assert set(plan.edges) == {"conv1#0"}
    assert plan.edges["conv1#0"] == subject.plan.tensors[names[0]]
    assert not subplan(subject, ["conv1"], activations=False).edges
    assert not set(subplan(subject, list(subject.nodes), weights=False).tensors) & set(names[1:])


def test_effects_equal_a_slow_computation(pose: Subject) -> None:
    few = replace(pose, inputs=pose.inputs[:2])
    references = reference(few)
    name = few.products()[-1]
    plans = {"node": subplan(few, [name]), "all": few.plan}
    found = measure(few, references, plans, few.float_graph, title="")
    for key, plan in plans.items():
        sums = {output: Noise() for output in few.output_names}
        for index in range(2):
            expected, actual = whole(few, Plan(few.plan.target), index), whole(few, plan, index)
            for output in few.output_names:
                sums[output].add(expected[output], actual[output])
        ratio = np.mean([entry.ratio for entry in sums.values()])
        assert found[key].noise_ratio == pytest.approx(ratio, rel=1e-3)
    assert found["node"].task.loss < found["all"].task.loss


def test_corrected_weights_and_factors_are_undone_where_nothing_is_quantized() -> None:
    plain = small()
    factors = np.array([1.0, 2.0, 4.0, 0.5])
    changed = plain.model.clone()
    for node in changed.graph:
        for value in node.inputs[1:3]:
            if value is None or value.const_value is None or node.op_type != "Conv":
                continue
            array = value.const_value.numpy() + np.float32(0.01)
            if node.name == "conv2":
                array = array * factors.reshape(-1, *[1] * (array.ndim - 1)).astype(np.float32)
            value.const_value = ir.tensor(array, name=value.name)
    subject = replace(plain, model=changed, source=plain.model, factors={"y": factors})
    found, expected = reference(subject), reference(plain)
    for one, other in zip(found.references, expected.references, strict=True):
        np.testing.assert_allclose(one["y"], other["y"], atol=1e-5)
    effects = measure(
        subject, found, {"none": Plan("x"), "conv2": subplan(subject, ["conv2"])}, subject.float_graph, title=""
    )
    assert effects["none"].noise_ratio < 1e-12
    assert effects["conv2"].noise_ratio > 1e-6
    assert subject.output_encodings["y"].scale == pytest.approx(tuple(plain.plan.tensors["y"].scales / factors))


def test_parts_of_a_head(pose: Subject) -> None:
    where = regions(pose)
    assert set(where.values()) == {BACKBONE, "box branch", "class branch", "keypoint branch"}
    for output in pose.model.graph.outputs:
        producer = output.producer()
        assert producer is not None
        wanted = {"box": "box branch", "cls": "class branch", "kpt": "keypoint branch"}[str(output.name).split("_")[0]]
        assert where[str(producer.name)] == wanted


def test_ablation(pose: Subject) -> None:
    few = replace(pose, inputs=pose.inputs[:1])
    found = {entry.part: entry for entry in ablate(few, reference(few))}
    assert next(iter(found)) == "everything"
    branch = found["keypoint branch"]
    assert branch.only.outputs["box_s8"].ratio == 0 and branch.only.outputs["kpt_s8"].ratio > 0
    assert branch.without is not None
    assert branch.without.outputs["box_s8"] == found["everything"].only.outputs["box_s8"]
    assert branch.without.outputs["kpt_s8"] != found["everything"].only.outputs["kpt_s8"]
    assert found["keypoint outputs"].only.outputs["cls_s8"].ratio == 0


def test_macs() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], name="c", group=1),
        helper.make_node("ConvTranspose", ["c", "t"], ["y"], name="t", strides=[2, 2]),
    ]
    made, _ = tidy(build(nodes, [weights(rng, "w", 8, 3, 3, 3), weights(rng, "t", 8, 4, 2, 2)]), "test")
    assert [macs(node) for node in made.graph] == [8 * 16 * 16 * 27, 8 * 16 * 16 * 16]


def test_graphwise_equals_direct_numbers() -> None:
    subject = small()
    found = {entry.name: entry for entry in graphwise(subject)}
    left = [Runner(subject.float_graph).run(x)["y"] for x in INPUTS]
    right = [Runner(subject.quantized_graph, 0, "basic").run(x)["y"] for x in INPUTS]
    x, y = np.concatenate(left).astype(np.float64), np.concatenate(right).astype(np.float64)
    assert found["y"].noise.sqnr_db == pytest.approx(10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()), abs=0.05)
    assert (found["y"].minimum, found["y"].maximum) == pytest.approx((x.min(), x.max()), rel=1e-5)
    encoding = subject.plan.tensors["y"]
    steps = np.rint(x / encoding.scales)
    assert found["y"].clipped == np.mean((steps < -128) | (steps > 127))
    own = encoding.dequantize(encoding.quantize(x))
    assert found["y"].own_db == pytest.approx(10 * np.log10((x**2).sum() / ((x - own) ** 2).sum()), abs=0.05)
    assert len(found["y"].counts) == 64 and sum(found["y"].counts) > 0


def test_sixteen_bits_help_and_keep_the_rest() -> None:
    subject = small()
    statistics = collect(
        subject.model_proto, ["x", *(str(o.name) for n in subject.model.graph for o in n.outputs)], INPUTS
    )
    wide = wider_plan(subject, ["conv2"], statistics)
    assert wide.tensors["y"].dtype == "int16" and wide.nodes["conv2"].type == "int16"
    changed = {name for name, encoding in wide.tensors.items() if encoding != subject.plan.tensors.get(name)}
    assert changed <= {"y", "w2", "b2"}
    assert wider_plan(subject, [], statistics) == subject.plan
    references = reference(subject)
    everything = measure(subject, references, {"all": subject.plan}, subject.float_graph, title="")["all"]
    found = sensitivity(subject, references, everything)
    assert {entry.name for entry in found} == {"conv0", "conv1", "conv2"}
    assert sum(entry.cost for entry in found) == pytest.approx(1)
    assert max(entry.gain for entry in found) > 0
    assert sum(entry.cost for entry in choose(found, 0.5)) <= 0.5


def test_patterns_match_exactly_the_nodes() -> None:
    every = ["/a/b.0/Conv", "/a/b.0/Mul", "/a/b.1/Conv", "/a/c.0/Conv"]
    products = [name for name in every if name.endswith("Conv")]
    assert pattern(["/a/b.0/Conv", "/a/b.1/Conv"], every, products) == "/a/b.*"
    assert pattern(["/a/b.0/Conv", "/a/c.0/Conv"], every, products) == "/a/*.0/Conv"
    assert pattern(["/a/b.1/Conv", "/a/c.0/Conv"], every, products) is None
    assert pattern(["/a/b.0/Conv"], every, products) is None


def test_findings_say_what_to_do(pose: Subject) -> None:
    result = analyze(replace(pose, inputs=pose.inputs[:1]), layers="none")
    assert [f.cost for f in result.findings[:-1]] == sorted((f.cost for f in result.findings[:-1]), reverse=True)
    assert all(finding.what and finding.why for finding in result.findings)
    text = " ".join(finding.text for finding in result.findings)
    assert "One step of" in text and "minmax" not in text
    commands = [finding.command for finding in result.findings if finding.command]
    assert commands and any(str(pose.bundle) in command for command in commands)
    for command in commands:
        parse(shlex.split(command)[1:])
    # what single nodes cost was not measured here, and clipping alone is no fault
    assert not any("clipping" in finding.what or "unused" in finding.what for finding in result.findings)
    joined = next(name for name, node in pose.nodes.items() if node.op_type == "Concat")
    assert "weights" not in _reason(joined, None, pose)
    assert result.to_dict()["ablation"][0]["part"] == "everything"


def test_images_of_calibration_are_left_out(pose_bundle: Bundle) -> None:
    every = images(sample("pose").validation, pose_bundle.manifest.preprocess, limit=4)
    hashes = every.hashes()
    left, excluded = unseen(every, hashes[:1])
    assert excluded == 1 and left.hashes() == hashes[1:]
    with pytest.raises(UserError, match="used for calibration"):
        unseen(every, hashes)


def test_images_with_objects_come_first(people_model: Model) -> None:
    spec = people_model.preprocess
    empty = np.full((spec.height, spec.width, 3), 114, np.uint8)
    found = images([empty, *sorted(sample("pose").validation.iterdir())[:1], empty], spec)
    if found.sources[1] and not str(found.sources[1]).endswith((".png", ".jpg")):
        pytest.skip("the first embedded file is no image")
    chosen = telling(found, 1, people_model.to_proto(), people_model.meaning)
    assert [source is found.sources[1] for source in chosen.sources] == [True]
