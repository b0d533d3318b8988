"""Which nodes to give 16 bits: greedy on measured gain per cost, measured again after every choice.

What one node gains depends on what the others do, so after each choice the most promising candidates are measured
again, and the best of those is taken (Minoux, Accelerated greedy algorithms, 1978: only while an old value could still
win). At the end members that no longer pay leave.

Changing any node shuffles the rounding noise behind it, which moves the loss of few images by more than most nodes are
worth. Picking the largest gain in the quantized network would pick luck: on 6 images it more than halved a loss that
stayed as it was on others. So the rounding that 16 bits would remove is measured alone, in a float network, where
nothing is shuffled (losses are about quadratic in small errors, so independent ones add up). It counts only as far as
the images agree on it: its mean minus its standard error. The whole quantized network has to confirm every choice.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from narrowcast.analyze.measure import run_variants
from narrowcast.analyze.subject import Subject
from narrowcast.base.errors import UserError
from narrowcast.base.progress import Journal, track
from narrowcast.improve.wider import Candidate, Costs, Widener
from narrowcast.tasks import TaskError, TaskJudge, combine

Nodes = frozenset[str]
#: One value an image.
Losses = tuple[float, ...]
#: A choice must lower the loss by this share of the loss at the start, or it is noise of the few images.
LEAST_SHARE = 0.004
#: Candidates measured again at once, and of the first screening.
_BATCH, _FIRST = 6, 24
#: Standard errors taken off a gain.
_SURE = 1.0
#: Cost of what costs nothing, relative to the budget, so that gain per cost stays finite.
_FREE = 1e-3
#: Weight of the whole task loss beside it.
_REST = 0.1
#: One image in so many screens candidates.
SCREEN = 3
#: Sets measured in one go: what an interruption loses.
CHUNK = 24


@dataclass(frozen=True)
class Budget:
    """How much may run at 16 bits, of how much: ``"convolutions"``, or multiplications (``"macs"``)."""

    limit: float
    total: float
    unit: str


@dataclass(frozen=True)
class Step:
    """One change of the set.

    Attributes:
        action: ``"start"``, ``"add"`` or ``"remove"``.
        name: of the candidate.
        nodes: that went to 16 bits with this step, or left them; sorted.
        gain: how much the loss fell.
        loss: after the step, in task units on the tuning images.
        cost: of the whole set after the step, in the unit of the budget.
        share: the same as a share of the model, 0..1.
    """

    action: str
    name: str
    nodes: tuple[str, ...]
    gain: float
    loss: float
    cost: float
    share: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "nodes": list(self.nodes)}


def parse_share(text: str, option: str) -> tuple[float, bool]:
    """A share as a person writes it.

    Args:
        text: ``"10%"``, ``"0.1"`` or a count such as ``"9"``.
        option: for the message.

    Returns:
        (0.1, True) for a share, (9.0, False) for a count.

    Raises:
        UserError: no number, or not above 0, or a share above 100 %.
    """
    plain = text.strip()
    percent = plain.endswith("%")
    try:
        number = float(plain.rstrip("% "))
    except ValueError as error:
        raise UserError(f"{option} {text!r} is no number", "write a share such as 10%") from error
    if not number > 0 or number == float("inf"):
        raise UserError(f"{option} {text} leaves nothing to do", "give more than 0, such as 10%")
    if percent and number > 100:
        raise UserError(f"{option} {text} is more than everything", "give at most 100%")
    if percent:
        return number / 100, True
    return number, number < 1


@dataclass
class _State:
    """A search under way."""

    meter: TaskMeter
    budget: Budget
    nodes: Nodes
    losses: Losses
    least: float
    steps: list[Step]
    gains: dict[Nodes, float] = field(default_factory=dict)
    fresh: set[Nodes] = field(default_factory=set)

    @property
    def loss(self) -> float:
        """Mean over the images."""
        return _mean(self.losses)

    def record(self, action: str, name: str, nodes: Nodes) -> None:
        """Take a new set over, measured as a whole."""
        changed = nodes ^ self.nodes
        before, cost = self.loss, self.meter.cost(nodes)
        self.nodes, self.losses, self.fresh = nodes, self.meter.loss(nodes), set()
        share = cost / self.budget.total if self.budget.total else 0.0
        self.steps.append(Step(action, name, tuple(sorted(changed)), before - self.loss, self.loss, cost, share))

    def rank(self, candidate: Candidate) -> float:
        """Gain per cost, as last measured."""
        extra = self.meter.cost(self.nodes | candidate.nodes) - self.meter.cost(self.nodes)
        return self.gains[candidate.nodes] / max(extra, _FREE * max(self.budget.limit, 1e-9))

    def measure(self, some: Sequence[Candidate]) -> None:
        """Gains of these candidates over the present set."""
        present, *losses = self.meter.losses(self.nodes, [self.nodes, *(self.nodes | each.nodes for each in some)])
        for candidate, loss in zip(some, losses, strict=True):
            self.gains[candidate.nodes] = sure_gain(present, loss)
            self.fresh.add(candidate.nodes)

    def affordable(self, known: Sequence[Candidate]) -> list[Candidate]:
        """Candidates that add something and fit what is left."""
        return [
            each
            for each in known
            if not each.nodes <= self.nodes and self.meter.cost(self.nodes | each.nodes) <= self.budget.limit + 1e-9
        ]


def sure_gain(before: Losses, after: Losses) -> float:
    """How much the mean over images surely falls: mean of the differences minus :data:`_SURE` standard errors."""
    gains = [one - other for one, other in zip(before, after, strict=True)]
    mean, count = _mean(gains), len(gains)
    if count < 2:
        return mean
    return mean - _SURE * math.sqrt(sum((gain - mean) ** 2 for gain in gains) / (count - 1) / count)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def search(
    known: Sequence[Candidate],
    meter: TaskMeter,
    budget: Budget,
    *,
    enough: Callable[[Nodes], bool] = lambda nodes: False,
) -> list[Step]:
    """Choose nodes for 16 bits.

    Args:
        known: what may be chosen.
        meter: measures.
        budget: what may be spent.
        enough: ends the search when it holds for the present set.

    Returns:
        Steps from the start (nothing at 16 bits beyond the plan) on; the loss never rises from one to the next.
    """
    losses, base = meter.loss(frozenset()), meter.cost(frozenset())
    start = _mean(losses)
    first = Step("start", "the bundle", (), 0.0, start, base, base / budget.total if budget.total else 0.0)
    state = _State(meter, budget, frozenset(), losses, LEAST_SHARE * start, [first])
    for _ in range(2):  # what leaves makes room for something else
        _add(state, known, enough)
        if not _drop(state, known):
            break
    return state.steps


def _add(state: _State, known: Sequence[Candidate], enough: Callable[[Nodes], bool]) -> None:
    if not state.gains:
        first = state.affordable(known)
        state.gains = dict(
            zip((each.nodes for each in first), state.meter.screen([e.nodes for e in first]), strict=True)
        )
        state.measure(sorted(first, key=lambda each: (-state.rank(each), each.name))[:_FIRST])
    while not enough(state.nodes):
        best = _best(state, state.affordable(known))
        if best is None:
            return
        after = state.meter.loss(state.nodes | best.nodes)
        if _mean(after) >= state.loss:  # measured as a whole it does not help
            state.gains[best.nodes] = 0.0
            continue
        state.record("add", best.name, state.nodes | best.nodes)


def _best(state: _State, known: Sequence[Candidate]) -> Candidate | None:
    """The candidate with the most gain per cost; only what could be it is measured again."""
    unknown = [each for each in known if each.nodes not in state.gains]
    if unknown:
        state.measure(unknown)
    while True:
        order = sorted(known, key=lambda each: (-state.rank(each), each.name))
        paying = [each for each in order if state.gains[each.nodes] > state.least]
        if paying and paying[0].nodes in state.fresh:
            return paying[0]
        stale = [each for each in (paying or order[:_BATCH]) if each.nodes not in state.fresh][:_BATCH]
        if not stale:
            return None
        state.measure(stale)


def _drop(state: _State, known: Sequence[Candidate]) -> bool:
    """Take out members that buy next to nothing, the least useful first; whether there were any."""
    any_left = False
    while True:
        members = [each for each in known if each.nodes <= state.nodes and each.nodes != state.nodes]
        rests = [state.nodes - each.nodes for each in members]
        cheaper = [i for i, rest in enumerate(rests) if state.meter.cost(rest) < state.meter.cost(state.nodes)]
        present, *losses = state.meter.losses(state.nodes, [state.nodes, *(rests[i] for i in cheaper)])
        # where not one image changes, none of them shows what the member is for: no reason to give it up
        lost = [(_mean(e) - _mean(present), i) for e, i in zip(losses, cheaper, strict=True) if e != present]
        useless = sorted((gain, members[i].name, i) for gain, i in lost if gain <= state.least)
        for _, name, index in useless[:1]:
            if _mean(state.meter.loss(rests[index])) <= state.loss:
                state.record("remove", name, rests[index])
                any_left = True
                break
        else:
            return any_left


def first_that_meets(
    losses: Sequence[float], start_drop: float, max_drop: float, measure: Callable[[int], float], most: int = 3
) -> tuple[int, float]:
    """The shortest prefix of the steps that keeps the metric, by few measurements.

    A metric of some hundred images is noisy and costs minutes, the loss is smooth and known for every step. The drop is
    taken as proportional to the loss, as at the start, to guess where it is met; the metric then has to confirm.

    Args:
        losses: of every step, the start first.
        start_drop: drop of the metric at the start, 0..1.
        max_drop: the most that is allowed, 0..1.
        measure: drop of the metric after the step of an index.
        most: measurements at most.

    Returns:
        Index of the step, and its drop. The last step where none meets ``max_drop``.
    """
    last = len(losses) - 1
    if start_drop <= max_drop or not last:
        return 0, start_drop
    per_loss = start_drop / losses[0] if losses[0] else 0.0
    low = next((i for i in range(1, last + 1) if per_loss * losses[i] <= max_drop), last)
    best: tuple[float, int] = (start_drop, 0)
    for attempt in range(most):
        index = last if attempt == most - 1 else low
        drop = measure(index)
        best = min(best, (drop, index))
        if drop <= max_drop:
            return index, drop
        if index == last:
            break
        low = min(last, low + max(1, (last - low + 1) // 2))
    return best[1], best[0]


def members(steps: Sequence[Step], until: int) -> Nodes:
    """The set after the step of an index."""
    nodes: set[str] = set()
    for step in steps[: until + 1]:
        nodes ^= set(step.nodes)
    return frozenset(nodes)


class TaskMeter:
    """Measures sets of nodes at 16 bits in task units on a few images, each once, also across an interruption.

    Args:
        widener: makes the plans.
        subject: the network to start from, and the images.
        costs: what the budget counts.
        judge: holds the float outputs of the images.
        journal: where measurements are kept.
        parts: quantities of the error that the metric depends on most; nothing for the whole loss.
        workers: variants at the same time; 0 for one a core.
    """

    def __init__(
        self,
        widener: Widener,
        subject: Subject,
        costs: Costs,
        judge: TaskJudge,
        journal: Journal,
        parts: Sequence[str] = (),
        workers: int = 0,
    ) -> None:
        self.widener, self.subject, self.costs = widener, subject, costs
        self.judge, self.inputs, self.journal, self.workers = judge, subject.inputs, journal, workers
        self.parts = tuple(parts)
        self._costs: dict[Nodes, float] = {}

    def cost(self, nodes: Nodes) -> float:
        """What the set costs, in the unit of the budget."""
        if nodes not in self._costs:
            self._costs[nodes] = self.costs.of(self.widener.plan(nodes))
        return self._costs[nodes]

    def loss(self, nodes: Nodes) -> Losses:
        """Loss of every image under one set, run as a whole."""
        return self._losses(self._whole(nodes))

    def error(self, nodes: Nodes) -> TaskError:
        """Error of one set over all images, run as a whole."""
        return combine(TaskError.from_dict(entry) for entry in self._whole(nodes))

    def _losses(self, records: Sequence[dict[str, Any]]) -> Losses:
        return tuple(objective(TaskError.from_dict(entry), self.parts) for entry in records)

    def losses(self, base: Nodes, sets: Sequence[Nodes]) -> list[Losses]:
        """About the loss of every image under every set: that of none, less what the rounding costs that goes."""
        start = self.loss(frozenset())
        return [tuple(np.subtract(start, each)) for each in self._alone(sets, len(self.inputs))]

    def screen(self, sets: Sequence[Nodes]) -> list[float]:
        """About how much lower the loss of every set is than that of none, on fewer images than :meth:`losses`."""
        return [float(np.mean(each)) for each in self._alone(sets, max(1, len(self.inputs) // SCREEN))]

    def _whole(self, nodes: Nodes) -> list[dict[str, Any]]:
        name = f"whole {_digest(nodes)}"
        if name not in self.journal.known:
            graph = self.widener.network(nodes).qdq()[0]
            self._run(graph, {name: lambda: graph}, "measure", len(self.inputs), lambda outputs: outputs)
        return list(self.journal.known[name])

    def _alone(self, sets: Sequence[Nodes], images: int) -> list[Losses]:
        """Loss of the rounding that goes with each set, everything else in float."""
        names = [f"alone {images} {_digest(nodes)}" for nodes in sets]
        missing = {
            name: partial(self._removed, nodes)
            for name, nodes in zip(names, sets, strict=True)
            if name not in self.journal.known
        }
        if missing:
            self._run(self.subject.float_graph, missing, "16 bits", images, self.subject.true_outputs)
        return [self._losses(self.journal.known[name]) for name in names]

    def _removed(self, nodes: Nodes) -> onnx.ModelProto:
        return self.subject.lower(self.widener.removed(nodes))

    def _run(
        self,
        base: onnx.ModelProto,
        graphs: Mapping[str, Callable[[], onnx.ModelProto]],
        title: str,
        images: int,
        read: Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]],
    ) -> None:
        found: dict[str, dict[int, TaskError]] = {name: {} for name in graphs}

        def consume(name: str, index: int, outputs: dict[str, NDArray[Any]], same: set[str]) -> None:
            found[name][index] = self.judge.judge(index, read(outputs))
            if len(found[name]) == images:
                self.journal.put(name, [found[name][i].to_dict() for i in range(images)])

        variants = iter(graphs.items() if len(graphs) == 1 else track(graphs.items(), title, len(graphs)))
        while some := list(islice(variants, CHUNK)):
            run_variants(base, some, self.inputs[:images], consume, workers=self.workers)


def objective(error: TaskError, parts: Sequence[str]) -> float:
    """What is made small for one image: the parts, and a tenth of the task loss; the task loss without parts."""
    if not parts:
        return error.loss
    return sum(error.values.get(part, 0.0) for part in parts) + _REST * error.loss


def _digest(nodes: Nodes) -> str:
    return hashlib.sha256("\n".join(sorted(nodes)).encode()).hexdigest()[:24]
