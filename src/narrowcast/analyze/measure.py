"""Run many partly quantized variants of a model and say what each does to its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from narrowcast.analyze.incremental import Outputs, Variant, run_variants
from narrowcast.analyze.metrics import Noise, NoiseSums
from narrowcast.analyze.subject import Subject
from narrowcast.analyze.task_units import TaskError, TaskJudge, combine
from narrowcast.base.progress import track
from narrowcast.graph.run import Runner
from narrowcast.plan.types import Plan

__all__ = ["Effect", "References", "measure", "reference"]


@dataclass(frozen=True)
class Effect:
    """What a variant does to the outputs, over all images.

    Attributes:
        name: of the variant.
        task: error in the units of the task.
        outputs: noise of every output by name.
    """

    name: str
    task: TaskError
    outputs: dict[str, Noise]

    @property
    def noise_ratio(self) -> float:
        """Noise-to-signal power ratio, mean over outputs."""
        return float(np.mean([noise.ratio for noise in self.outputs.values()]))

    @property
    def worst_db(self) -> float:
        """Lowest SQNR of an output in dB; infinite when all are equal."""
        return min(noise.sqnr_db for noise in self.outputs.values())

    @property
    def cosine(self) -> float:
        """Lowest cosine similarity of an output."""
        return min(noise.cosine for noise in self.outputs.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "noise_ratio": self.noise_ratio,
            "worst_sqnr_db": self.worst_db if np.isfinite(self.worst_db) else None,
            "worst_cosine": self.cosine,
            "task": self.task.to_dict(),
            "outputs": {name: noise.to_dict() for name, noise in self.outputs.items()},
        }


@dataclass(frozen=True)
class References:
    """What the float model gives.

    Attributes:
        outputs: of each image by name.
        judge: compares others with them.
    """

    outputs: list[dict[str, NDArray[Any]]]
    judge: TaskJudge


@dataclass
class _Scores:
    """Collects one variant."""

    task: dict[int, TaskError] = field(default_factory=dict)
    sums: dict[str, NoiseSums] = field(default_factory=dict)


def reference(subject: Subject, threads: int = 0) -> References:
    """Run the float model (as it was before any correction of weights) on every image."""
    runner = Runner(subject.float_graph, threads, "basic")
    names = subject.output_names
    outputs = [subject.true_outputs(runner.run(tensor, names)) for tensor in subject.inputs]
    judge = TaskJudge(
        subject.task, subject.head, outputs, softmax_missing=subject.softmax_missing, input_size=subject.input_size
    )
    return References(outputs, judge)


def measure(
    subject: Subject,
    references: References,
    plans: Mapping[str, Plan | Callable[[], Plan]],
    base: onnx.ModelProto,
    *,
    title: str,
    workers: int = 0,
) -> dict[str, Effect]:
    """Effect of every plan on the outputs.

    Args:
        subject: the model and its images.
        references: from :func:`reference`.
        plans: by name, or functions that make them; best in graph order.
        base: the graph that they differ least from: what equals it is not run again.
        title: for the progress bar.
        workers: variants at the same time; 0 for one a core.

    Returns:
        By name, in the order of ``plans``. The same numbers whatever the number of workers.
    """
    names = subject.output_names
    scores = {key: _Scores(sums={name: NoiseSums() for name in names}) for key in plans}

    def take(key: str, index: int, outputs: Outputs, same: set[str]) -> None:
        expected, found = references.outputs[index], scores[key]
        actual = subject.true_outputs(outputs)
        found.task[index] = references.judge.judge(index, actual)
        for name in names:
            found.sums[name].add(expected[name], actual[name])

    run_variants(
        base,
        _variants(subject, plans),
        subject.inputs,
        take,
        workers=workers,
        progress=lambda variants: track(variants, title, len(plans)),
    )
    return {
        key: Effect(
            key,
            combine(found.task[index] for index in sorted(found.task)),
            {name: sums.result() for name, sums in found.sums.items()},
        )
        for key, found in scores.items()
    }


def _variants(subject: Subject, plans: Mapping[str, Plan | Callable[[], Plan]]) -> Sequence[Variant]:
    def variant(key: str, plan: Plan | Callable[[], Plan]) -> Variant:
        return Variant(key, lambda: subject.lower(plan if isinstance(plan, Plan) else plan()))

    return [variant(key, plan) for key, plan in plans.items()]
