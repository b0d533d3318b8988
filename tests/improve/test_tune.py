"""Mixed precision: the search, the plans it makes, and the whole job on a small network."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from builders import model, save, silu_net, weights
from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle, open_bundle, quantize
from narrowcast.calibrate import ImageSet, collect, images
from narrowcast.chips import load_target
from narrowcast.cli.tune import _last
from narrowcast.cli.tune import tune as run
from narrowcast.engine.integer import lower_integer
from narrowcast.engine.network import QuantizedNetwork
from narrowcast.engine.verify import verify
from narrowcast.evaluate import imagenet
from narrowcast.evaluate.tune import Wish, tune
from narrowcast.graph import Model, load
from narrowcast.improve import tune as tune_meter
from narrowcast.improve.tune import Budget, Nodes, first_that_meets, members, parse_share, search, sure_gain
from narrowcast.improve.wider import Candidate, Costs, Widener, candidates, wide_products
from narrowcast.plan import DTYPES, Pins, draft, finish

TARGETS = ("onnx", "bayes-e", "esp32p4")


def tensors(count: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (count, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(save(silu_net(), tmp_path_factory.mktemp("net") / "m.onnx"))


@pytest.fixture(scope="module")
def bundles(net: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    given = images(tensors(4), net.preprocess)
    return {name: quantize(net, given, name, out=folder / name, method="minmax") for name in TARGETS}


def widener(net: Model, bundle: Bundle) -> Widener:
    ranges = collect(net.to_proto(), Widener.tensors(net.ir.graph), list(tensors(4)[:, None]))
    return Widener(bundle.network, ranges)


def others(bundle: Bundle, count: int = 8) -> ImageSet:
    return images(tensors(count, 77), bundle.manifest.preprocess)


# ---- plans


def test_a_node_whose_weights_widen_goes_back_to_its_own(net: Model, bundles: dict[str, Bundle]) -> None:
    for target, widens in (("esp32p4", True), ("bayes-e", False)):  # w16a16, and 8-bit weights in any case
        made = widener(net, bundles[target])
        graph = made.graph
        own = {name: graph.initializers[name].const_value.numpy() + np.float32(0.5) for name in ("w1", "b1")}
        made.uncorrected = own
        state = made.network(["conv1"])
        for name in ("w0", "w1", "b1", "w2"):
            found = state.model.graph.initializers[name].const_value.numpy()
            expected = own[name] if widens and name in own else graph.initializers[name].const_value.numpy()
            np.testing.assert_array_equal(found, expected)
        if widens:
            assert np.abs(own["w1"]).max() <= float(np.max(state.plan.tensors["w1"].scales)) * 2**15


def test_the_rounding_that_goes_is_that_of_what_is_read_at_16_bits(net: Model, bundles: dict[str, Bundle]) -> None:
    made = widener(net, bundles["esp32p4"])
    assert not made.removed([]).tensors and not made.removed([]).edges
    gone = made.removed(["conv1"])
    assert set(gone.tensors) == {"w1"} and gone.tensors["w1"] == made.base.tensors["w1"]
    # c1 is read by Add and Concat, which stay at 8 bits: they read it rounded as before
    assert not [key for key in gone.edges if key.startswith(("add", "concat"))]


@pytest.mark.parametrize("target", TARGETS)
def test_only_what_is_asked_for_changes(net: Model, bundles: dict[str, Bundle], target: str) -> None:
    bundle = bundles[target]
    base = bundle.plan
    made = widener(net, bundle)
    plan = made.plan(["conv1"])
    assert [name for name, place in plan.nodes.items() if place != base.nodes[name]] == ["conv1"]
    assert plan.nodes["conv1"].type == "int16"
    changed = {name for name in plan.tensors if plan.tensors[name] != base.tensors.get(name)}
    wide = {name for name in changed if plan.tensors[name].dtype == "int16"}
    int16_weight = load_target(target).weight.int16_nodes == "int16"
    assert wide >= {"w1"} if int16_weight else "w1" not in changed
    assert base.tensors["a0"] == plan.tensors["a0"] and base.tensors["x"] == plan.tensors["x"]
    assert {name for name in changed if plan.tensors[name].dtype == "int8"} == set()
    assert "conv1" in wide_products(bundle.prepared.ir.graph, plan)
    assert made.plan([]) is base


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("wide", [["conv0"], ["conv1"], ["conv2"], ["conv0", "conv1", "conv2"]])
def test_sixteen_bit_ranges_hold_the_float_range(
    net: Model, bundles: dict[str, Bundle], target: str, wide: list[str]
) -> None:
    made = widener(net, bundles[target])
    plan = made.plan(wide)
    for name, encoding in plan.tensors.items():
        if encoding.dtype == "int16" and name in made.statistics:
            seen = made.statistics[name]
            qmin, qmax = DTYPES["int16"]
            assert (qmin - encoding.zero_point) * float(encoding.scales) <= seen.minimum + float(encoding.scales)
            assert (qmax - encoding.zero_point) * float(encoding.scales) >= seen.maximum - float(encoding.scales)


@pytest.mark.parametrize("target", TARGETS)
def test_the_plan_is_what_planning_with_these_pins_gives(net: Model, target: str) -> None:
    """Independent path: plan anew with pins; where nothing was chosen by hand, both agree on types and edges."""
    chip = load_target(target)
    statistics = collect(net.to_proto(), Widener.tensors(net.ir.graph), list(tensors(4)[:, None]))
    base = finish(draft(net.ir.graph, chip), statistics, "minmax")[0]
    expected = finish(draft(net.ir.graph, chip, Pins({"conv1": "int16"})), statistics, "minmax")[0]
    found = Widener(QuantizedNetwork(net.ir, base, chip), statistics).plan(["conv1"])
    assert {name: code.dtype for name, code in found.tensors.items()} == {
        name: code.dtype for name, code in expected.tensors.items()
    }
    assert set(found.edges) == set(expected.edges)
    assert {key: code.dtype for key, code in found.edges.items()} == {k: c.dtype for k, c in expected.edges.items()}
    for name in ("w0", "w1", "w2", "x", "a0"):
        assert found.tensors[name] == expected.tensors[name]


@pytest.mark.parametrize("target", TARGETS)
def test_every_candidate_computes_exactly(net: Model, bundles: dict[str, Bundle], target: str) -> None:
    bundle, chip = bundles[target], load_target(target)
    made = widener(net, bundle)
    graph = bundle.prepared.ir
    for candidate in candidates(made):
        plan = made.plan(candidate.nodes)
        integers = lower_integer(graph, plan, chip)
        rows = verify(graph, plan, chip, integers, [tensors(1, 9)])
        assert sum(row.differing for row in rows) == 0


# ---- search


class Fake:
    """Losses and costs that are known: gains add up, but for a pair that only helps together."""

    def __init__(self, gains: dict[str, float], costs: dict[str, float], spread: float = 0.0) -> None:
        self.gains, self.costs, self.spread, self.asked = gains, costs, spread, 0

    def loss(self, nodes: Nodes) -> tuple[float, ...]:
        gone = sum(self.gains.get(name, 0.0) for name in nodes)
        return tuple(1.0 - gone * (1 + self.spread * side) for side in (-1, 0, 1, 0))

    def losses(self, base: Nodes, sets: Sequence[Nodes]) -> list[tuple[float, ...]]:
        self.asked += len(sets)
        return [self.loss(each) for each in sets]

    def screen(self, sets: Sequence[Nodes]) -> list[float]:
        return [1.0 - float(np.mean(self.loss(each))) for each in sets]

    def cost(self, nodes: Nodes) -> float:
        return sum(self.costs[name] for name in nodes)


def singles(names: Sequence[str]) -> list[Candidate]:
    return [Candidate(name, frozenset([name])) for name in names]


def test_the_best_gain_per_cost_comes_first_and_the_budget_holds() -> None:
    meter = Fake({"a": 0.3, "b": 0.2, "c": 0.02, "d": -0.1}, {"a": 6, "b": 2, "c": 1, "d": 1})
    steps = search(singles("abcd"), meter, Budget(8, 20, "convolutions"))
    assert [step.name for step in steps[1:]] == ["b", "a"]
    assert [step.loss for step in steps] == pytest.approx([1.0, 0.8, 0.5])
    assert steps[-1].cost == 8 and steps[-1].share == 0.4
    assert members(steps, 1) == {"b"} and members(steps, 2) == {"a", "b"}


def test_a_gain_on_which_images_do_not_agree_is_luck() -> None:
    assert sure_gain((1.0, 1.0), (0.9, 0.9)) == pytest.approx(0.1)
    assert sure_gain((1.0, 1.0, 1.0, 1.0), (0.2, 1.2, 1.2, 1.2)) < 0
    lucky = Fake({"a": 0.1}, {"a": 1}, spread=5.0)
    assert len(search(singles("a"), lucky, Budget(5, 5, "convolutions"))) == 1


def test_what_no_longer_pays_leaves() -> None:
    class Pair(Fake):
        def loss(self, nodes: Nodes) -> tuple[float, ...]:
            gone = 0.5 - 0.01 * ("cheap" in nodes) if "group" in nodes else 0.3 * ("cheap" in nodes)
            return (1.0 - gone,) * 4

    meter = Pair({}, {"cheap": 1, "group": 4})
    steps = search(singles(["cheap", "group"]), meter, Budget(5, 10, "convolutions"))
    assert [(step.action, step.name) for step in steps[1:]] == [
        ("add", "cheap"), ("add", "group"), ("remove", "cheap"),
    ]  # fmt: skip
    assert members(steps, 3) == {"group"} and steps[-1].cost == 4


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-0.02, 0.05), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=14),
    st.integers(1, 12),
)
def test_the_loss_never_rises_and_the_budget_is_never_exceeded(
    entries: list[tuple[float, int, int]], limit: int
) -> None:
    names = [f"n{i}" for i in range(len(entries))]
    meter = Fake(
        {name: gain for name, (gain, _, _) in zip(names, entries, strict=True)},
        {name: float(cost) for name, (_, cost, _) in zip(names, entries, strict=True)},
        spread=0.1,
    )
    groups = {key: [n for n, e in zip(names, entries, strict=True) if e[2] == key] for key in range(3)}
    known = singles(names) + [Candidate(f"group {k}", frozenset(v)) for k, v in groups.items() if len(v) > 1]
    steps = search(known, meter, Budget(limit, 30, "convolutions"))
    losses = [step.loss for step in steps]
    assert all(later <= before + 1e-12 for before, later in itertools.pairwise(losses))
    assert all(step.cost <= limit for step in steps)


def test_what_no_image_shows_stays() -> None:
    class Unseen(Fake):
        def loss(self, nodes: Nodes) -> tuple[float, ...]:
            return (1.0 - 0.5 * ("seen" in nodes),) * 4

    known = [Candidate("both", frozenset(["seen", "unseen"])), *singles(["unseen"])]
    steps = search(known, Unseen({}, {"seen": 1, "unseen": 1}), Budget(5, 10, "convolutions"))
    assert [(step.action, step.name) for step in steps[1:]] == [("add", "both")]


def test_enough_ends_the_search() -> None:
    meter = Fake({"a": 0.3, "b": 0.2}, {"a": 1, "b": 1})
    steps = search(singles("ab"), meter, Budget(8, 20, "macs"), enough=lambda nodes: "a" in nodes)
    assert [step.name for step in steps[1:]] == ["a"]


def test_the_metric_is_measured_where_the_loss_says_it_is_met() -> None:
    losses = [0.08, 0.06, 0.04, 0.02, 0.01]
    asked: list[int] = []

    def drop(index: int) -> float:
        asked.append(index)
        return {2: 0.03, 3: 0.009, 4: 0.008}[index]

    assert first_that_meets(losses, 0.06, 0.03, drop) == (2, 0.03) and asked == [2]
    asked.clear()
    assert first_that_meets(losses, 0.06, 0.01, drop) == (4, 0.008) and asked == [4]
    assert first_that_meets(losses, 0.004, 0.01, drop) == (0, 0.004)
    asked.clear()
    assert first_that_meets(losses, 0.06, 0.001, drop)[0] == 4


@pytest.mark.parametrize("text", ["0", "0%", "-1%", "much", "101%", "inf"])
def test_impossible_shares_are_said(text: str) -> None:
    with pytest.raises(UserError, match="--int16-budget"):
        parse_share(text, "--int16-budget")


def test_shares_and_counts() -> None:
    assert parse_share("10%", "x") == (0.1, True)
    assert parse_share("0.25", "x") == (0.25, True)
    assert parse_share("9", "x") == (9.0, False)


# ---- the whole job


@pytest.mark.parametrize("target", TARGETS)
def test_a_small_network(bundles: dict[str, Bundle], target: str, tmp_path: Path) -> None:
    bundle = bundles[target]
    wish = Wish(max_drop=1e-9, budget=2, unit="convolutions")
    tuned = tune(bundle, others(bundle), out=tmp_path / "out", wish=wish, loss_images=3)
    record = tuned.manifest.calibration["tune"]
    losses = [step["loss"] for step in record["steps"]]
    assert len(losses) > 1 and losses == sorted(losses, reverse=True)
    assert 0 < record["cost"]["convolutions"]["wide"] <= 2
    assert {name for name, place in tuned.plan.nodes.items() if place.type == "int16"} == set(record["nodes"])
    assert record["report"]["after"]["loss"] < record["report"]["before"]["loss"]
    assert not set(record["images"]["choose"]) & set(record["images"]["report"])
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files >= {"float.onnx", "qdq.onnx", "integer.onnx", "plan.json", "nodes.json", "manifest.json"}
    assert ("model.espdl" in files) == (target == "esp32p4")
    rows = verify(tuned.prepared.ir, tuned.plan, load_target(target), tuned.integer_graph, [tensors(1, 3)])
    assert sum(row.differing for row in rows) == 0
    assert (tuned.path / "float.onnx").read_bytes() == (bundle.path / "float.onnx").read_bytes()
    costs = Costs(tuned.prepared.ir.graph, "convolutions")
    assert costs.of(tuned.plan) == record["cost"]["convolutions"]["wide"]


def contents(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(
    bundles: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundles["bayes-e"]
    wish = Wish(max_drop=1e-9, budget=2, unit="convolutions")
    calls, stop, real = [0], [0], tune_meter.TaskMeter._run

    def limited(self: tune_meter.TaskMeter, *arguments: object) -> None:
        calls[0] += 1
        if calls[0] == stop[0]:
            raise KeyboardInterrupt
        real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tune_meter.TaskMeter, "_run", limited)
    straight = tune(bundle, others(bundle), out=tmp_path / "a", wish=wish, loss_images=3)
    whole, calls[0], stop[0] = calls[0], 0, 4
    with pytest.raises(KeyboardInterrupt):
        tune(bundle, others(bundle), out=tmp_path / "b", wish=wish, loss_images=3)
    assert not (tmp_path / "b").exists() and (tmp_path / ".b.tune.jsonl").exists()
    calls[0], stop[0] = 0, 0
    resumed = tune(bundle, others(bundle), out=tmp_path / "b", wish=wish, loss_images=3)
    assert calls[0] == whole - 3  # what was measured before is not measured again
    assert contents(straight.path) == contents(resumed.path)
    assert not (tmp_path / ".b.tune.jsonl").exists()


def test_images_of_the_calibration_are_left_out(net: Model, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    bundle = bundles["onnx"]
    both = images(np.concatenate([tensors(4), tensors(4, 77)]), net.preprocess)
    tuned = tune(bundle, both, out=tmp_path / "out", wish=Wish(0.5, 0.9), loss_images=2)
    record = tuned.manifest.calibration["tune"]
    assert record["excluded"] == 4
    with pytest.raises(UserError, match="used for calibration"):
        tune(bundle, images(tensors(4), net.preprocess), out=tmp_path / "no")


def classifier() -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], name="conv0", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu0"),
        helper.make_node("GlobalAveragePool", ["r0"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w1"], ["y"], name="gemm", transB=1),
    ]
    return model(nodes, [weights(rng, "w0", 8, 3, 3, 3), weights(rng, "w1", 6, 8)], shape=(1, 3, 16, 16))


def test_with_labels_the_metric_decides(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(3)
    for index in range(12):
        cv2.imwrite(str(folder / f"{index:02}.png"), rng.integers(0, 256, (16, 16, 3), np.uint8))
    net = load(save(classifier(), tmp_path / "m.onnx"))
    calibration = images(rng.random((4, 3, 16, 16), np.float32), net.preprocess)
    bundle = quantize(net, calibration, "onnx", out=tmp_path / "int8", method="minmax")
    found = [bundle.floating.predict(folder / f"{index:02}.png") for index in range(12)]
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"{i:02}.png {entry.class_ids[0]}\n" for i, entry in enumerate(found)))  # type: ignore[union-attr]
    tuned = tune(
        bundle, images(folder, net.preprocess), out=tmp_path / "out", wish=Wish(0.9, 1, metric=("classes", "top-1")),
        data=imagenet(folder, labels), loss_images=3,
    )  # fmt: skip
    record = tuned.manifest.calibration["tune"]
    assert record["steps"][0]["drop"] is not None and record["kept_steps"] == 0  # the start is good enough
    rows = {row["name"]: row["metrics"][0] for row in record["report"]["metrics"]["rows"]}
    assert list(rows) == ["float", "before", "after"] and rows["float"]["values"]["top-1"] == 1.0
    assert record["report"]["metrics"]["images"] == 6
    assert "drop" in _last(record)


# ---- mistakes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    made.mkdir()
    for index, tensor in enumerate(tensors(4, 77)):
        np.save(made / f"{index}.npy", tensor)
    return made


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "keypoints.AP"}, "has no metric"),
        ({"int16_budget": "0"}, "--int16-budget 0"),
        ({"int16_budget": "0.001%"}, "allows no candidate"),
        ({"max_drop": "5"}, "no share below 1"),
        ({"budget_unit": "latency"}, "no cost model"),
        ({"budget_unit": "grams"}, "cannot count"),
        ({"budget_unit": "macs", "int16_budget": "9"}, "no share of the multiplications"),
        ({"limit": 1}, "cannot be halved"),
        ({"annotations": Path("none.json")}, "none.json does not exist"),
    ],
)
def test_mistakes_are_one_line(
    bundles: dict[str, Bundle], folder: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(bundles["onnx"].path, folder, out=tmp_path / "out", quiet=True, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_no_bundle_no_sixteen_bits_no_overwriting(
    net: Model, bundles: dict[str, Bundle], folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no bundle"):
        run(folder, folder, quiet=True)
    with pytest.raises(UserError, match="exists"):
        run(bundles["onnx"].path, folder, out=folder, quiet=True)
    narrow = quantize(net, images(tensors(4), net.preprocess), "bernoulli2", out=tmp_path / "x3", method="minmax")
    with pytest.raises(UserError, match="bernoulli2 has no 16-bit"):
        tune(narrow, others(narrow), out=tmp_path / "out", loss_images=2)


def test_the_command_prints_the_steps(
    bundles: dict[str, Bundle], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(bundles["onnx"].path, folder, out=out, max_drop="0.0001%", int16_budget="2", loss_images=2, quiet=True)
    text = capsys.readouterr().out
    assert "the bundle" in text and "convolutions at 16 bits" in text and "drop " in text
    run(bundles["onnx"].path, folder, out=out, int16_budget="2", loss_images=2, force=True, json=True)
    data = json.loads(capsys.readouterr().out)
    assert data["bundle"] == str(out) and open_bundle(out).manifest.calibration["tune"]["nodes"] == data["nodes"]
