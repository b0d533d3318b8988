"""Range search in task units: encodings of groups of tensors are tried where the network notices them.

Every calibration method judges a tensor by itself. What a coarser or narrower range costs depends on what comes behind,
so encodings are tried one after the other (coordinate descent), from the outputs backwards, because most of what decode
sees is made close to it. Scales and zero points are inputs of the trial graph, so a trial costs only its inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from narrowcast.base.progress import track
from narrowcast.improve.judge import Judge, loss_of
from narrowcast.improve.state import Planner, State
from narrowcast.improve.trial import Trial
from narrowcast.plan import Draft
from narrowcast.plan.structure import Group
from narrowcast.plan.types import Encoding, Plan

__all__ = ["proposals", "search_ranges"]

#: A change must lower the loss by this share, or it is noise of the few images.
LEAST_SHARE = 0.01
#: Neighbours of a free scale that are tried, as factors; of a power of two the ones above and below.
FREE_NEIGHBOURS = (0.8, 1.25)


def search_ranges(
    state: State, drafted: Draft, planner: Planner, alternatives: Sequence[Plan], judge: Judge, trials: int
) -> State:
    """Choose encodings that lower the loss.

    Args:
        state: where to start.
        drafted: its structure.
        planner: makes the plan of the chosen encodings.
        alternatives: plans of other calibration methods for the same structure.
        judge: of the images to choose on.
        trials: how many encodings to try at most.

    Returns:
        The same state when nothing helps.
    """
    groups = drafted.structure.groups
    chosen: dict[int, Encoding] = {}
    power_of_two = drafted.target.activation.scale == "power-of-two"
    pinned = {index for index, group in enumerate(groups) if set(group.values) & set(drafted.pins.tensors)}
    fixed = pinned | {index for index, group in enumerate(groups) if set(group.values) & set(state.factors)}
    tried = proposals(groups, state.plan, alternatives, power_of_two, fixed)[:trials]
    if not tried:
        return state
    trial = Trial(
        state.model, drafted, state.plan, list(judge.pairs.values()), judge.inputs,
        tunable={index for index, _ in tried}, factors=state.factors, threads=judge.threads,
    )  # fmt: skip
    best = loss_of(judge.error(trial.run(trial.current)))
    for index, encoding in track(tried, "search"):
        changed = trial.with_encoding(index, encoding)
        loss = loss_of(judge.error(trial.run(changed)))
        if loss < best * (1 - LEAST_SHARE):
            best, trial.current, chosen[index] = loss, changed, encoding
    if not chosen:
        return state
    return replace(state, chosen={**state.chosen, **chosen}).planned(planner)


def proposals(
    groups: Sequence[Group], plan: Plan, alternatives: Sequence[Plan], power_of_two: bool, fixed: set[int]
) -> list[tuple[int, Encoding]]:
    """(group index, encoding), from the last group to the first.

    Args:
        groups: of the structure, in graph order.
        plan: where to start.
        alternatives: plans of other methods.
        power_of_two: scales are powers of two.
        fixed: indices of groups that stay.
    """
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
