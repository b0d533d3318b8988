"""Range search: encodings of groups of tensors are tried where the network notices them.

Every calibration method judges a tensor by itself. What a coarser or narrower range costs depends on what comes behind,
so encodings are tried one after the other on a few images (coordinate descent). Scales and zero points are inputs of
the trial graph, so a trial costs only its inference.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.progress import track
from narrowcast.engine.cutting import cut_behind
from narrowcast.engine.network import Planner, QuantizedNetwork
from narrowcast.engine.noise import Noise, mean_sqnr
from narrowcast.engine.qdq import SCALE_INPUT, ZERO_POINT_INPUT, Factors, lower_qdq, undo_factors
from narrowcast.graph.run import open_session
from narrowcast.improve.judge import Judge
from narrowcast.plan import Draft
from narrowcast.plan.structure import Group
from narrowcast.plan.types import Encoding, Plan

__all__ = ["Trial", "proposals", "refine_ranges", "search_ranges"]

#: A change must lower the loss by this share, or it is noise of the few images.
LEAST_SHARE = 0.01
#: A change must buy at least this much, in dB of the mean over outputs, where noise is judged by.
LEAST_GAIN = 0.06
#: Neighbours of a free scale that are tried, as factors; of a power of two the ones above and below.
FREE_NEIGHBOURS = (0.8, 1.25)

Parameters = Mapping[str, NDArray[Any]]
#: A group by its index, and an encoding for it.
Proposal = tuple[int, Encoding]


class Trial:
    """Sessions in which the encodings of some groups of tensors are inputs, one scale and zero point a group.

    What these groups do not reach runs once an input.

    Args:
        model: prepared graph.
        drafted: its structure.
        plan: its encodings; the first parameters.
        outputs: tensors of the QDQ graph to give out.
        inputs: model inputs.
        tunable: indices of the groups; all by default.
        factors: of the outputs, divided out.
        threads: of onnxruntime; 0 for all cores.
    """

    def __init__(
        self,
        model: ir.Model,
        drafted: Draft,
        plan: Plan,
        outputs: Sequence[str],
        inputs: Sequence[NDArray[np.float32]],
        *,
        tunable: Collection[int] | None = None,
        factors: Factors | None = None,
        threads: int = 0,
    ) -> None:
        groups = drafted.structure.groups
        indices = sorted(range(len(groups)) if tunable is None else tunable)
        proto = undo_factors(_lowered(model, drafted, plan, indices), factors or {})
        known = {value.name for value in proto.graph.input}
        names = [f"{stem}{index}" for index in indices for stem in (SCALE_INPUT, ZERO_POINT_INPUT)]
        before, after = cut_behind(proto, [name for name in names if name in known], outputs)
        self.outputs, self.late = list(outputs), [value.name for value in after.graph.output]
        self.session = open_session(after, threads, "basic") if self.late else None
        self.known = {value.name for value in after.graph.input}
        self._before = _run_before(before, str(model.graph.inputs[0].name), inputs, threads)
        self.current: Parameters = {}
        for index in indices:
            self.current = self.with_encoding(index, plan.tensors[groups[index].values[0]])

    def with_encoding(self, index: int, encoding: Encoding) -> Parameters:
        """The current parameters with another encoding for one group."""
        values = {
            f"{SCALE_INPUT}{index}": np.asarray(encoding.scale, np.float32),
            f"{ZERO_POINT_INPUT}{index}": np.asarray(encoding.zero_point, encoding.dtype),
        }
        return {**self.current, **{name: value for name, value in values.items() if name in self.known}}

    def run(self, parameters: Parameters) -> Iterator[list[NDArray[Any]]]:
        """Outputs for each input, in the order asked for."""
        for before in self._before:
            found = dict(before)
            if self.session is not None:
                feeds = {name: value for name, value in before.items() if name in self.known}
                found.update(zip(self.late, self.session.run(self.late, {**feeds, **parameters}), strict=True))
            yield [found[name] for name in self.outputs]


def _lowered(model: ir.Model, drafted: Draft, plan: Plan, indices: Sequence[int]) -> onnx.ModelProto:
    groups = drafted.structure.groups
    names = {id(groups[index]): str(index) for index in indices}
    tunable = {name: names[id(group)] for name, group in drafted.structure.of.items() if id(group) in names}
    read = {key: group for key, group in drafted.structure.edges.items() if id(group) in names}
    edges = {key: plan.tensors[group.values[0]] for key, group in read.items()}
    tunable.update({key: names[id(group)] for key, group in read.items()})
    # biases depend on the input scales and lose next to nothing at 32 bits: they stay float here
    tensors = {name: encoding for name, encoding in plan.tensors.items() if encoding.dtype != "int32"}
    changed = replace(plan, tensors=tensors, edges={**plan.edges, **edges})
    return lower_qdq(model, changed, tunable)[0]


def _run_before(
    proto: onnx.ModelProto, image: str, inputs: Sequence[NDArray[np.float32]], threads: int
) -> list[dict[str, NDArray[Any]]]:
    """The inputs, and what a graph makes of each, by name."""
    names = [value.name for value in proto.graph.output]
    session = open_session(proto, threads, "basic") if names else None
    found = []
    for tensor in inputs:
        values = session.run(names, {image: tensor}) if session is not None else []
        found.append({image: tensor, **dict(zip(names, values, strict=True))})
    return found


def _descend(
    trial: Trial,
    tried: Sequence[Proposal],
    loss_of_outputs: Callable[[Iterable[list[NDArray[Any]]]], float],
    wanted: Callable[[float], float],
    title: str,
) -> tuple[dict[int, Encoding], float, float]:
    """Keep each proposal that brings the loss below what is wanted of the least so far; with the loss before, after."""
    best = start = loss_of_outputs(trial.run(trial.current))
    chosen: dict[int, Encoding] = {}
    for index, encoding in track(tried, title):
        changed = trial.with_encoding(index, encoding)
        loss = loss_of_outputs(trial.run(changed))
        if loss < wanted(best):
            best, trial.current, chosen[index] = loss, changed, encoding
    return chosen, start, best


def search_ranges(
    network: QuantizedNetwork, drafted: Draft, planner: Planner, alternatives: Sequence[Plan], judge: Judge, trials: int
) -> QuantizedNetwork:
    """Choose encodings that lower the loss in task units.

    Args:
        network: where to start.
        drafted: its structure.
        planner: makes the plan of the chosen encodings.
        alternatives: plans of other calibration methods for the same structure.
        judge: of the images to choose on.
        trials: how many encodings to try at most.

    Returns:
        The same network when nothing helps.
    """
    groups = drafted.structure.groups
    power_of_two = drafted.target.activation.scale == "power-of-two"
    pinned = {index for index, group in enumerate(groups) if set(group.values) & set(drafted.pins.tensors)}
    fixed = pinned | {index for index, group in enumerate(groups) if set(group.values) & set(network.factors)}
    tried = proposals(groups, network.plan, alternatives, power_of_two, fixed)[:trials]
    if not tried:
        return network
    trial = Trial(
        network.model, drafted, network.plan, list(judge.pairs.values()), judge.inputs,
        tunable={index for index, _ in tried}, factors=network.factors, threads=judge.threads,
    )  # fmt: skip
    def loss(outputs: Iterable[list[NDArray[Any]]]) -> float:
        return judge.error(outputs).choosing_loss

    chosen, _, _ = _descend(trial, tried, loss, lambda best: best * (1 - LEAST_SHARE), "search")
    return network if not chosen else replace(network, chosen={**network.chosen, **chosen}).planned(planner)


def proposals(
    groups: Sequence[Group], plan: Plan, alternatives: Sequence[Plan], power_of_two: bool, fixed: set[int]
) -> list[Proposal]:
    """Encodings to try, from the last group to the first, because most of what decode sees is made close to it.

    ``fixed`` groups stay, by index."""
    found = []
    for index in reversed(range(len(groups))):
        name = groups[index].values[0]
        current = plan.tensors[name]
        if index in fixed or current.dtype != "int8":
            continue
        factors = (0.5, 2.0) if power_of_two else FREE_NEIGHBOURS
        wanted = [other.tensors[name] for other in alternatives if other.tensors[name].dtype == current.dtype]
        if power_of_two or not wanted:
            wanted += [replace(current, scale=float(current.scales) * factor) for factor in factors]
        found += [(index, encoding) for encoding in dict.fromkeys(wanted) if encoding != current]
    return found


def refine_ranges(
    model: ir.Model,
    drafted: Draft,
    plan: Plan,
    alternatives: Sequence[Plan],
    inputs: Sequence[NDArray[np.float32]],
    references: Sequence[Mapping[str, NDArray[Any]]],
    *,
    outputs: Mapping[str, str],
    trials: int,
    threads: int = 0,
) -> tuple[dict[int, Encoding], float, float]:
    """Choose among the encodings that several plans propose for each group of tensors what leaves the least noise.

    Args:
        model: prepared graph.
        drafted: its structure.
        plan: where to start.
        alternatives: plans of other calibration methods for the same draft.
        inputs: a few model inputs.
        references: what float gives for each of them, by tensor name.
        outputs: tensor of the float graph to the tensor of the QDQ graph that stands for it; these are compared.
        trials: how many encodings to try at most.
        threads: of onnxruntime; 0 for all cores.

    Returns:
        Chosen encodings by index of the group in ``drafted.structure.groups`` where they differ from ``plan``, and
        the mean output SQNR in dB before and after.
    """
    groups = drafted.structure.groups
    trial = Trial(model, drafted, plan, list(outputs.values()), inputs, threads=threads)

    def loss(found: Iterable[list[NDArray[Any]]]) -> float:
        noises = [Noise() for _ in outputs]
        for values, reference in zip(found, references, strict=True):
            for noise, name, actual in zip(noises, outputs, values, strict=True):
                noise.add(reference[name], actual)
        return -mean_sqnr(noises)

    tried = _disagreeing(groups, plan, alternatives)[:trials]
    chosen, before, after = _descend(trial, tried, loss, lambda best: best - LEAST_GAIN, "refine")
    return chosen, -before, -after


def _disagreeing(groups: Sequence[Group], plan: Plan, alternatives: Sequence[Plan]) -> list[Proposal]:
    """Encodings to try, by disagreement, largest first, then in graph order."""
    found: list[tuple[float, int, Encoding]] = []
    for index, group in enumerate(groups):
        name = group.values[0]
        current = plan.tensors[name]
        seen = {current}
        for other in alternatives:
            encoding = other.tensors[name]
            if encoding in seen or encoding.dtype != current.dtype:
                continue
            seen.add(encoding)
            spread = abs(float(np.log2(encoding.scales / current.scales)))
            found.append((-spread, index, encoding))
    return [(index, encoding) for _, index, encoding in sorted(found, key=lambda entry: entry[:2])]
