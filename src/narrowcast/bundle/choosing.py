"""The best plan (and weights) for a model: several calibration methods measured, then the steps of recovery."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import onnx

from narrowcast.base.errors import UserError, nearest
from narrowcast.base.progress import phase, track
from narrowcast.calibrate import METHODS, ImageSet, TensorStatistics
from narrowcast.chips.vendors import offers
from narrowcast.engine.network import Planner, QuantizedNetwork
from narrowcast.engine.noise import compare_tensors, mean_sqnr
from narrowcast.graph.model import Model
from narrowcast.graph.run import Runner
from narrowcast.improve import EFFORTS, LEAST_IMAGES, Effort, Judge, recover, refine_ranges, split
from narrowcast.improve.judge import judged_pairs
from narrowcast.ops.net import with_outputs
from narrowcast.plan import Draft, Plan, finish
from narrowcast.tasks import combine

__all__ = ["AUTO_METHODS", "Choice", "Job", "check_effort", "choose", "vendor_search"]

#: What the method "auto" tries. Which is best depends on the model (docs/calibration.md), so it is measured.
AUTO_METHODS = ("mse", "lp", "percentile", "mean-minmax")
#: Calibration images on which "auto" compares methods.
AUTO_IMAGES = 6
#: Images that decide nothing on which the manifest says what each step bought, at most.
REPORT_IMAGES = 12
#: Trials of the refinement of the effort "fast". With three images it fitted them and lost on others.
REFINE_TRIALS = 24


@dataclass(frozen=True)
class Job:
    """What there is to choose for.

    Attributes:
        model: the user's model.
        float_model: the same as ONNX.
        drafted: its structure on the target.
        statistics: of the draft's tensors.
        calibration: the images.
        held: images that choose nothing.
        method: calibration method, or ``"auto"``.
        percentile: for the method of that name.
        threads: of onnxruntime; 0 for all cores.
        factors: outputs may leave with a scale a channel.
    """

    model: Model
    float_model: onnx.ModelProto
    drafted: Draft
    statistics: dict[str, TensorStatistics]
    calibration: ImageSet
    held: ImageSet
    method: str
    percentile: float
    threads: int
    factors: bool

    @property
    def pairs(self) -> dict[str, str]:
        """What is judged, float name to QDQ name."""
        return judged_pairs(self.model, self.drafted.structure.of)


@dataclass(frozen=True)
class Choice:
    """Result of :func:`choose`.

    Attributes:
        method: calibration method, and what became of it.
        network: the best one.
        record: for the manifest: ``mean_output_sqnr_db`` by method and, where steps were taken, ``task_loss`` by method
            and ``steps``.
        notes: for a person.
    """

    method: str
    network: QuantizedNetwork
    record: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def check_effort(effort: str) -> None:
    """Raise now if there is no such effort."""
    if effort not in ("fast", *EFFORTS):
        raise UserError(f"unknown effort {effort!r}", f"use fast, {', '.join(EFFORTS)}")


@dataclass(frozen=True)
class Searched:
    """What a vendor's own search tried; vendors' folders offer ``SEARCHES``: pairs of a name and a function of a job.

    Attributes:
        plans: further candidates for the method ``"auto"``, with notes for a person, by name.
        record: for the manifest.
    """

    plans: dict[str, tuple[Plan, list[str]]]
    record: dict[str, Any]


@phase("search")
def vendor_search(job: Job, name: str) -> Searched:
    """What a vendor's own search would choose from; refused where there is no such search."""
    searches: dict[str, Callable[[Job], Searched]] = dict(offers("SEARCHES"))
    if name not in searches:
        raise UserError(f"unknown search {name!r}", nearest(name, ("auto", *searches)))
    return searches[name](job)


@phase("choose")
def choose(job: Job, effort: str, vendor: Searched | None = None) -> Choice:
    """The plan of the asked method, or of the best one, improved as far as the effort goes.

    Args:
        job: what to choose for.
        effort: ``"fast"``, or a key of :data:`narrowcast.improve.EFFORTS`.
        vendor: further candidates for the method ``"auto"``.
    """
    check_effort(effort)
    few = list(islice(job.calibration, AUTO_IMAGES))
    scores: dict[str, float] = {}
    losses: dict[str, float] = {}
    names = AUTO_METHODS if job.method == "auto" else (job.method,)
    plans = {name: finish(job.drafted, job.statistics, name, job.percentile) for name in names}
    if vendor is not None and job.method == "auto":
        plans.update(vendor.plans)
    chip = job.drafted.target
    found = {n: QuantizedNetwork(job.model.ir, plan, chip, notes=tuple(said)) for n, (plan, said) in plans.items()}
    improved = _Recovery.of(job, EFFORTS[effort]) if effort != "fast" and len(job.calibration) >= LEAST_IMAGES else None
    for name in track(list(found), "ranges"):
        proto = found[name].qdq()[0]
        noises = compare_tensors(job.float_model, proto, job.pairs, few, job.threads)
        scores[name] = round(mean_sqnr(noises.values()), 3)
        if improved is not None:
            losses[name] = improved.loss(proto)
        del proto  # before the next one is made
    if improved is not None:
        return _recovered(job, improved, found, scores, losses)
    notes = () if effort == "fast" else (f"under {LEAST_IMAGES} calibration images: nothing is corrected",)
    best = max(found, key=lambda name: scores[name])
    method, network = _refined(job, best, found, scores, few) if job.method == "auto" else (best, found[best])
    return Choice(method, network, {"mean_output_sqnr_db": scores}, notes)


def _planner(job: Job, method: str, plan: Plan) -> Planner:
    """Makes plans as the chosen method does, for graphs with other weights too."""
    known = method if method in METHODS else "minmax"  # a vendor's name: all its encodings are given
    groups = enumerate(job.drafted.structure.groups)
    given = {} if known == method else {i: plan.tensors[group.values[0]] for i, group in groups}

    def make(network: QuantizedNetwork) -> tuple[Plan, list[str]]:
        drafted = job.drafted.on(network.model.graph)
        statistics = {**job.statistics, **network.statistics}
        return finish(drafted, statistics, known, job.percentile, {**given, **network.chosen})

    return make


def _refined(
    job: Job, best: str, found: Mapping[str, QuantizedNetwork], scores: dict[str, float], few: list[Any]
) -> tuple[str, QuantizedNetwork]:
    """The effort "fast": ranges on which methods disagree, by output noise."""
    start = found[best]
    runner = Runner(with_outputs(job.float_model, list(job.pairs)), job.threads, "basic")
    chosen, _, score = refine_ranges(
        job.model.ir,
        job.drafted,
        start.plan,
        [other.plan for name, other in found.items() if name != best],
        few,
        [runner.run(tensor, list(job.pairs)) for tensor in few],
        outputs=job.pairs,
        trials=REFINE_TRIALS,
        threads=job.threads,
    )
    if not chosen:
        return best, start
    scores["refined"] = round(score, 3)
    network = replace(start, chosen=chosen).planned(_planner(job, best, start.plan))
    return f"{best}, {len(chosen)} of them refined", network


@dataclass(frozen=True)
class _Recovery:
    """What the steps are chosen by: effort, indices of the images that teach and that judge, and the loss on both."""

    effort: Effort
    teaching: list[int]
    judging: list[int]
    own: Judge
    judge: Judge

    @classmethod
    def of(cls, job: Job, effort: Effort) -> _Recovery:
        sized = effort.at(job.model.preprocess.height, job.model.preprocess.width)
        halves = split(len(job.calibration), sized.teachers, sized.judges)
        inputs = (list(job.calibration.subset(half)) for half in halves)
        return cls(sized, *halves, *(Judge(job.model, job.pairs, given, job.threads) for given in inputs))

    def loss(self, proto: onnx.ModelProto) -> float:
        """By which methods are compared: every method saw all images, so all of them may."""
        return combine([judged.error_of(proto) for judged in (self.own, self.judge)]).choosing_loss


def _recovered(
    job: Job,
    improved: _Recovery,
    found: Mapping[str, QuantizedNetwork],
    scores: dict[str, float],
    losses: dict[str, float],
) -> Choice:
    """The method with the least loss on some images, then the steps, judged on others."""
    best = min(found, key=lambda name: losses[name])
    others = [other.plan for name, other in found.items() if name != best]
    # the ranges of output channels need all the objects there are; what they can fit to is little
    every = job.calibration
    unused = _reporting(job, {*improved.teaching, *improved.judging})
    reporter = Judge(job.model, job.pairs, list(unused), job.threads)
    network, steps = recover(
        job.model, found[best], job.drafted, _planner(job, best, found[best].plan), others, improved.own,
        improved.judge, improved.effort, every, reporter, factors=job.factors,
    )  # fmt: skip
    searched = len(set(network.chosen) - _factored(job, network))
    record = {
        "mean_output_sqnr_db": scores,
        "task_loss": {name: round(loss, 6) for name, loss in losses.items()},
        "steps": [step.to_dict() for step in steps],
        "step_images": {"teach": len(improved.teaching), "judge": len(improved.judging), "report": len(unused)},
    }
    return Choice(f"{best}, {searched} of them searched" if searched else best, network, record)


def _reporting(job: Job, used: set[int]) -> ImageSet:
    """Images that decide nothing: those held back, then what neither teaches nor judges (only ranges have seen it)."""
    rest = job.calibration.subset([index for index in range(len(job.calibration)) if index not in used])
    return replace(job.held, sources=job.held.sources + rest.sources).spread(REPORT_IMAGES)


def _factored(job: Job, network: QuantizedNetwork) -> set[int]:
    groups = enumerate(job.drafted.structure.groups)
    return {index for index, group in groups if set(group.values) & set(network.factors)}
