"""What a target's file promises of an operator is quantized, exact, close to float, and written; the rest is refused.

One tiny net holds many forms (see ``operator_cases.py``); a target runs all that it promises in a type at once. What
``check`` refuses, ``quantize`` must refuse with the same words.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import narrowcast.chips
from builders import save
from narrowcast.base.errors import UserError
from narrowcast.bundle import quantize
from narrowcast.bundle.check import check
from narrowcast.calibrate import collect
from narrowcast.chips import Target, load_target
from narrowcast.chips.esp.codec import decode_espdl, encode_espdl
from narrowcast.chips.esp.model import EspdlRunner, build_espdl, make_test_vectors
from narrowcast.chips.placement import place
from narrowcast.chips.rdk.opset import to_opset_11
from narrowcast.chips.support import support
from narrowcast.engine.integer import dequantized, lower_integer
from narrowcast.engine.qdq import lower_qdq
from narrowcast.engine.verify import verify
from narrowcast.graph import Model, Runner, load
from narrowcast.graph.ends import remove_unused
from narrowcast.ops.units import inline_units
from narrowcast.plan import Pins, Plan, draft, finish
from operator_cases import CASES, IMAGE, Case, net

TARGETS = ("onnx", "onnx-symmetric", "bayes-e", "bayes", "bernoulli2", "esp32p4", "esp32s3")
COMBINATIONS = [
    (name, kind) for name in TARGETS for kind in ("int8", "int16", "float32")
    if (kind != "int16" or name != "bernoulli2") and (kind != "float32" or not name.startswith("esp32"))
]  # fmt: skip
#: Graph outputs of a net, at most: the least that a target takes, less one for the convolution.
MOST = 31
BY_NAME = {case.name: case for case in CASES}
#: Forms that the vendor's compiler of the RDK boards cannot be told, in no type.
NOT_AT_OPSET_11 = {
    "ArgMax.last_index": "select_last_index", "AveragePool.dilation": "dilations", "Pad.wrap": "wrap",
    "Resize.antialias": "antialias",
}  # fmt: skip


def images(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(seed).normal(0, 1, IMAGE).astype(np.float32) for seed in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


def grouped(cases: Sequence[Case]) -> Iterator[tuple[Case, ...]]:
    """Cases of one opset whose outputs fit a net."""
    for opset in sorted({case.opset for case in cases}):
        group: list[Case] = []
        for case in (c for c in cases if c.opset == opset):
            if sum(c.outputs for c in (*group, case)) > MOST:
                yield tuple(group)
                group = []
            group.append(case)
        yield tuple(group)


GROUPS = tuple(grouped(CASES))


@functools.cache
def prepared(index: int, folder: Path, behind: bool) -> Model:
    """The net of a group."""
    group = GROUPS[index]
    return load(save(net(group, group[0].opset, behind=behind), folder / "net.onnx"), keep_head=True)


def part(model: Model, cases: Sequence[Case]) -> Model:
    """Some cases of a net, and the convolution that makes their operand."""
    copy = model.ir.clone()
    wanted = {"stem.a", *(name for case in cases for name in case.results())}
    copy.graph.outputs[:] = [value for value in copy.graph.outputs if value.name in wanted]
    remove_unused(copy)
    return replace(model, ir=copy)


def judged(model: Model, target: Target, kind: str) -> tuple[list[Case], list[Case]]:
    """Cases of a net that the target promises in a type, and those that it cannot run in any."""
    good, bad = [], []
    for node in model.ir.graph:
        case, verdict = BY_NAME.get(str(node.name)), support(node, target, None, kind)
        if case is None:
            continue
        if not verdict.supported or ("rdk-x5" in target.kits and case.name in NOT_AT_OPSET_11):
            bad.append(case)
        elif kind in verdict.types:
            good.append(case)
    return good, bad


def pins(model: Model, target: Target, kind: str, cases: Sequence[Case]) -> Pins:
    """The cases in the type, and for int16 all that can be."""
    names = {case.name: kind for case in cases}
    if kind != "int16":
        return Pins(names)
    verdicts = place(model.ir.graph, target)
    return Pins({**{name: "int16" for name, verdict in verdicts.items() if "int16" in verdict.types}, **names})


def likeness(expected: np.ndarray, actual: np.ndarray) -> float:
    """Signal to noise in dB; for whole numbers and truth values the share of equal ones in percent."""
    if expected.dtype != np.float32:
        assert expected.dtype == actual.dtype
        return 100 * float(np.mean(expected == actual))
    wanted, given = expected.astype(np.float64), np.asarray(actual, np.float64)
    noise = np.square(wanted - given).sum()
    return float(10 * np.log10(np.square(wanted).sum() / noise)) if noise else 300.0


def problems(model: Model, target: Target, kind: str, cases: Sequence[Case]) -> list[str]:
    """Quantize, verify, compare with float and write; what went wrong."""
    drafted = draft(model.ir.graph, target, pins(model, target, kind, cases))
    floating = model.to_proto()
    plan, _ = finish(drafted, collect(floating, drafted.wanted_statistics(), images(4)), "minmax")
    graph = lower_integer(model.ir, plan, target)
    image = images(4)[-1]
    # float nodes are copied, not lowered: one target of a kind is enough for the slow walk over them
    slow = kind != "float32" or target.name in ("onnx", "bayes-e")
    rows = verify(model.ir, plan, target, graph, [image], threads=1, level="basic") if slow else []
    found = [f"{row.tensor}: {row.differing} of {row.total} differ" for row in rows if row.differing]
    expected = Runner(floating, 1, "basic").run(image)
    qdq, _ = lower_qdq(model.ir, plan)
    for name, proto in (("integers", dequantized(graph)), ("QDQ", qdq)):
        given = Runner(proto, 1, "basic").run(image)
        for case in cases:
            for output in case.results():
                got = likeness(expected[output], given[output])
                if not got >= (case.floor if expected[output].dtype == np.float32 else 90):
                    found.append(f"{output}: {got:.1f} dB or % by the {name}")
    return found + written(model, plan, target, image)


def written(model: Model, plan: Plan, target: Target, image: np.ndarray) -> list[str]:
    """The chip's own file: read back and run, it gives the same; what does not."""
    if "espdl" in target.kits:
        (vector,) = make_test_vectors(model.ir, plan, target, [image], 1)
        data = encode_espdl(build_espdl(model.ir, plan, target, test_vector=vector))
        runner = EspdlRunner(decode_espdl(data), target, 1)
        checks = runner.check_vectors()
        assert {check.output for check in checks} == set(model.output_names)
        return [f"{check.output}: {check.differing} differ in the file" for check in checks if check.differing]
    if target.name == "bayes-e":  # the package holds the float graph, the same for all chips of the kit
        proto = inline_units(model.to_proto())
        expected, actual = (Runner(p, 1, "basic").run(image) for p in (proto, to_opset_11(proto)))
        return [
            f"{name}: opset 11 differs" for name, value in expected.items()
            if value.shape != actual[name].shape or not np.allclose(value, actual[name], rtol=1e-4, atol=1e-4)
        ]  # fmt: skip
    return []


def test_every_operator_of_every_target_file_has_a_case(folder: Path) -> None:
    files = Path(narrowcast.chips.__file__).parent.glob("*.yaml")
    assert {file.stem for file in files} == set(TARGETS), "a new target belongs into TARGETS"
    known = {case.op for case in CASES}
    for name in TARGETS:
        target = load_target(name)
        listed = {op for rule in target.ops for op in rule.ops}
        listed |= {op for chain in target.fusions for op in chain}
        listed |= {*target.tables, *target.shared, *target.constant_operands}
        listed |= {entry.split(":")[0] for entry in target.passive}
        assert listed <= known, f"{name}: {sorted(listed - known)} in no case"
    kept = {str(node.name) for index in range(len(GROUPS)) for node in prepared(index, folder, False).ir.graph}
    assert set(BY_NAME) <= kept, "preparing removes the node that a case is about"


@pytest.mark.parametrize(("name", "kind"), COMBINATIONS)
def test_what_is_promised_is_quantized_exact_and_written(name: str, kind: str, folder: Path) -> None:
    target = load_target(name)
    behind = target.outputs.type != "activation"  # there a result that leaves is no tensor of its own
    found, count = [], 0
    for index in range(len(GROUPS)):
        model = prepared(index, folder, behind)
        good, _ = judged(model, target, kind)
        if good:
            found += problems(part(model, good), target, kind, good)
            count += len(good)
    assert not found
    sys.stdout.write(f"{name} {kind}: {count} forms of operators\n")


@pytest.mark.parametrize("name", TARGETS)
def test_what_check_refuses_quantize_refuses_with_the_same_words(name: str, folder: Path, tmp_path: Path) -> None:
    target = load_target(name)
    count = 0
    for index in range(len(GROUPS)):
        whole = prepared(index, folder, False)
        for case in judged(whole, target, "int8")[1]:
            model = part(whole, [case])
            found = check(model, name)
            said = [(row.reason, row.remedy) for row in found.refused] + [(r.problem, r.remedy) for r in found.runtime]
            assert said and not found.runs, case.name
            (reason, remedy), *_ = said
            with pytest.raises(UserError) as error:
                quantize(model, images(2), name, out=tmp_path / "out")
            assert reason in error.value.what and remedy == error.value.remedy != "", (case.name, said, error.value)
            assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
            assert "espdl" in target.kits or NOT_AT_OPSET_11[case.name] in reason
            count += 1
    sys.stdout.write(f"{name}: {count} forms refused\n")
