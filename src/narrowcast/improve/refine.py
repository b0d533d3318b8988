"""Where calibration methods disagree on a range, ask the network: keep what leaves the least noise at its outputs.

Every method judges a tensor by itself. How much a coarser or narrower range costs depends on what comes behind, so the
ranges on which methods disagree most are tried one after the other on a few calibration images (coordinate descent).
Scales and zero points are inputs of the trial graph, so a trial costs only its inference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.progress import track
from narrowcast.graph.run import as_reals
from narrowcast.improve.trial import Parameters, Trial
from narrowcast.plan import Draft
from narrowcast.plan.structure import Group
from narrowcast.plan.types import Encoding, Plan

__all__ = ["refine_ranges"]

#: A change must buy at least this much, in dB of the mean over outputs, or it is noise of the few images.
LEAST_GAIN = 0.06
#: Better than this is not counted, so that one perfect output does not outweigh the others; in dB.
CAP = 60.0


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
    """Choose among the encodings that several plans propose for each group of tensors.

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
    score_of = _Score(trial, list(outputs), references)
    best = start = score_of.of(trial.current)
    chosen: dict[int, Encoding] = {}
    for index, encoding in track(_proposals(groups, plan, alternatives)[:trials], "refine"):
        changed = trial.with_encoding(index, encoding)
        score = score_of.of(changed)
        if score > best + LEAST_GAIN:
            best, trial.current, chosen[index] = score, changed, encoding
    return chosen, start, best


def _proposals(groups: Sequence[Group], plan: Plan, alternatives: Sequence[Plan]) -> list[tuple[int, Encoding]]:
    """(group index, encoding) by disagreement, largest first, then in graph order."""
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


class _Score:
    """The output SQNR of a set of scales."""

    def __init__(
        self,
        trial: Trial,
        names: Sequence[str],
        references: Sequence[Mapping[str, NDArray[Any]]],
    ) -> None:
        self.trial, self.names, self.references = trial, names, references

    def of(self, parameters: Parameters) -> float:
        """Mean over outputs of the SQNR over all inputs, in dB."""
        signal, noise = np.zeros(len(self.names)), np.full(len(self.names), 1e-30)
        for outputs, reference in zip(self.trial.run(parameters), self.references, strict=True):
            for position, (name, actual) in enumerate(zip(self.names, outputs, strict=True)):
                expected, given = as_reals(reference[name], actual)
                difference = expected - given
                signal[position] += float(np.dot(expected, expected))
                noise[position] += float(np.dot(difference, difference))
        return float(np.minimum(10 * np.log10(np.maximum(signal, 1e-30) / noise), CAP).mean())
