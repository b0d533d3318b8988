"""The steps that get accuracy back, one after the other, each kept only where it helps on images it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.calibrate.statistics import collect
from narrowcast.engine.network import Planner, QuantizedNetwork
from narrowcast.graph.model import Model
from narrowcast.graph.run import Runner
from narrowcast.improve.factors import equalize, output_factors
from narrowcast.improve.judge import Judge
from narrowcast.improve.ranges import search_ranges
from narrowcast.improve.reconstruct import reconstruct
from narrowcast.plan import Draft, replan
from narrowcast.plan.types import Plan

__all__ = ["EFFORTS", "LEAST_IMAGES", "Effort", "Recovery", "Step", "recover", "split"]


@dataclass(frozen=True)
class Effort:
    """How much is spent.

    Attributes:
        teachers: images of 640 x 640 that corrections are made from.
        judges: images of that size that decide whether a step is kept.
        trials: encodings tried by the range search.
    """

    teachers: int
    judges: int
    trials: int

    def at(self, height: int, width: int) -> Effort:
        """The same effort for another input size: smaller images hold fewer positions, and cost less."""
        share = max(1.0, 640 * 640 / max(1, height * width))
        return replace(
            self,
            teachers=max(self.teachers, min(round(self.teachers * share), MOST_IMAGES)),
            judges=max(self.judges, min(round(self.judges * share), MOST_IMAGES)),
        )


#: ``"fast"`` chooses ranges and corrects nothing.
EFFORTS = {"standard": Effort(9, 12, 40), "max": Effort(18, 20, 120)}
#: Images of any size in either role, at most.
MOST_IMAGES = 64
#: With fewer images there is nothing to judge by.
LEAST_IMAGES = 6


@dataclass(frozen=True)
class Step:
    """One step and what it bought, as recorded in the manifest.

    Attributes:
        step: its name.
        loss_before, loss_after: in task units (:class:`narrowcast.tasks.TaskError`) on the judging images.
        kept: whether the loss fell.
        held_before, held_after: the same loss on images that neither taught nor judged, where there are any.
    """

    step: str
    loss_before: float
    loss_after: float
    kept: bool
    held_before: float | None = None
    held_after: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; six digits."""
        found: dict[str, Any] = {
            "step": self.step,
            "loss_before": round(self.loss_before, 6),
            "loss_after": round(self.loss_after, 6),
            "kept": self.kept,
        }
        if self.held_before is not None and self.held_after is not None:
            found |= {"held_before": round(self.held_before, 6), "held_after": round(self.held_after, 6)}
        return found


def split(count: int, teachers: int, judges: int) -> tuple[list[int], list[int]]:
    """Indices of the images that teach and of those that judge; no image does both.

    Args:
        count: of calibration images, :data:`LEAST_IMAGES` or more.
        teachers, judges: how many are wanted; with fewer images, half of them judge.
    """
    judging = sorted({int(place) for place in np.linspace(1, count - 1, min(judges, count // 2))})
    rest = [index for index in range(count) if index not in judging]
    chosen = np.linspace(0, len(rest) - 1, min(teachers, len(rest)))
    return [rest[int(place)] for place in chosen], judging


class Recovery:
    """Runs steps and keeps the best network so far.

    Args:
        network: where to start.
        judge: on images that no step sees.
        reporter: on images that decide nothing, to say what each step bought; ``None`` to say nothing.
    """

    def __init__(self, network: QuantizedNetwork, judge: Judge, reporter: Judge | None = None) -> None:
        self.network, self.judge, self.reporter = network, judge, reporter
        self.loss, self.held = self._losses(network)
        self.steps: list[Step] = []

    def _losses(self, network: QuantizedNetwork) -> tuple[float, float | None]:
        proto = network.qdq()[0]
        held = None if self.reporter is None else self.reporter.error_of(proto).choosing_loss
        return self.judge.error_of(proto).choosing_loss, held

    def attempt(self, name: str, step: Callable[[QuantizedNetwork], QuantizedNetwork]) -> None:
        """Take a step back unless it lowers the loss; nothing is recorded where there was nothing to do."""
        changed = step(self.network)
        if changed is self.network:
            return
        loss, held = self._losses(changed)
        kept = loss < self.loss
        self.steps.append(Step(name, self.loss, loss, kept, self.held, held))
        if kept:
            self.network, self.loss, self.held = changed, loss, held


def recover(
    model: Model,
    network: QuantizedNetwork,
    drafted: Draft,
    planner: Planner,
    alternatives: Sequence[Plan],
    teachers: Judge,
    judge: Judge,
    effort: Effort,
    images: Iterable[NDArray[np.float32]] | None = None,
    reporter: Judge | None = None,
    factors: bool = True,
) -> tuple[QuantizedNetwork, list[Step]]:
    """Improve a quantized network without labels.

    Args:
        model: the user's model.
        network: where to start.
        drafted: its structure.
        planner: makes the plan of changed weights.
        alternatives: plans of other calibration methods; none: ranges stay.
        teachers: on the images that corrections are made from.
        judge: on other images.
        effort: how much is spent.
        images: for what needs many and fits little, the ranges of output channels; those of ``teachers`` by default.
        reporter: on images that decide nothing.
        factors: outputs may leave with a scale a channel.

    Returns:
        The best network, and what each step did.
    """
    recovery = Recovery(network, judge, reporter)

    def spread(before: QuantizedNetwork) -> QuantizedNetwork:
        def outputs() -> Iterator[dict[str, NDArray[Any]]]:  # runs where a factor can be had at all
            runner = Runner(model.to_proto(), judge.threads)
            yield from map(runner.run, teachers.inputs if images is None else images)

        return output_factors(before, drafted, model.meaning, outputs(), planner)

    def ranges(before: QuantizedNetwork) -> QuantizedNetwork:
        return search_ranges(before, drafted, planner, alternatives, teachers, effort.trials)

    def weights(rounding: bool, biases: bool) -> Callable[[QuantizedNetwork], QuantizedNetwork]:
        def correct(before: QuantizedNetwork) -> QuantizedNetwork:
            model, changed = reconstruct(
                before.model, before.plan, teachers.inputs, rounding=rounding, biases=biases, threads=judge.threads
            )
            if not changed:
                return before
            plan, _ = replan(drafted.on(model.graph), before.plan)
            return replace(before, model=model, plan=plan, changed=True)

        return correct

    def equalized(before: QuantizedNetwork) -> QuantizedNetwork:
        changed, names = equalize(before.model)
        if not names:
            return before
        proto = ir.to_proto(changed)
        wanted = [name for name in names if name in drafted.wanted_statistics()]
        statistics = collect(proto, wanted, teachers.inputs if images is None else images, threads=judge.threads)
        return replace(before, model=changed, statistics=statistics, changed=True).planned(planner)

    recovery.attempt("equalization", equalized)
    if factors:
        recovery.attempt("output factors", spread)
    if alternatives:
        recovery.attempt("range search", ranges)
    recovery.attempt("rounding and biases", weights(True, True))
    if recovery.steps and not recovery.steps[-1].kept:
        recovery.attempt("biases", weights(False, True))
    return recovery.network, recovery.steps
