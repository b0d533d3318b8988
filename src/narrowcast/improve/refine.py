"""Where calibration methods disagree on a range, ask the network: keep what leaves the least noise at its outputs.

Every method judges a tensor by itself. How much a coarser or narrower range costs depends on what comes behind, so the
ranges on which methods disagree most are tried one after the other on a few calibration images (coordinate descent).
Scales and zero points are inputs of the trial graph, so a trial costs only its inference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from narrowcast.calibrate.statistics import with_outputs
from narrowcast.lower.qdq import SCALE_INPUT, ZERO_POINT_INPUT, lower_qdq
from narrowcast.plan.build import Draft
from narrowcast.plan.structure import Group
from narrowcast.plan.types import Encoding, Plan
from narrowcast.progress import track

__all__ = ["refine_ranges"]

#: A change must buy at least this much, in dB of the mean over outputs, or it is noise of the few images.
LEAST_GAIN = 0.06
#: Better than this is not counted, so that one perfect output does not outweigh the others; in dB.
CAP = 60.0

Parameters = dict[str, NDArray[Any]]


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
    trial = _Trial(model, drafted, plan, inputs, references, outputs, threads)
    best = start = trial.score(trial.current)
    chosen: dict[int, Encoding] = {}
    for index, encoding in track(_proposals(groups, plan, alternatives)[:trials], "refine"):
        changed = trial.with_encoding(index, encoding)
        score = trial.score(changed)
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


class _Trial:
    """The QDQ graph with scales as inputs, and the score of a set of scales."""

    def __init__(
        self,
        model: ir.Model,
        drafted: Draft,
        plan: Plan,
        inputs: Sequence[NDArray[np.float32]],
        references: Sequence[Mapping[str, NDArray[Any]]],
        outputs: Mapping[str, str],
        threads: int,
    ) -> None:
        names = {id(group): str(index) for index, group in enumerate(drafted.structure.groups)}
        tunable = {name: names[id(group)] for name, group in drafted.structure.of.items()}
        edges = {key: plan.tensors[group.values[0]] for key, group in drafted.structure.edges.items()}
        tunable.update({key: names[id(group)] for key, group in drafted.structure.edges.items()})
        # biases depend on the input scales and lose next to nothing at 32 bits: they stay float here
        tensors = {name: encoding for name, encoding in plan.tensors.items() if encoding.dtype != "int32"}
        other_edges = {key: value for key, value in plan.edges.items() if key not in edges}
        trial_plan = replace(plan, tensors=tensors, edges={**edges, **other_edges})
        proto = with_outputs(lower_qdq(model, trial_plan, tunable)[0], list(outputs.values()))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self.session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.known = {entry.name for entry in self.session.get_inputs()}
        self.image = str(model.graph.inputs[0].name)
        self.inputs, self.references, self.outputs = inputs, references, outputs
        self.current: Parameters = {}
        for index, group in enumerate(drafted.structure.groups):
            self.current = self.with_encoding(index, plan.tensors[group.values[0]])

    def with_encoding(self, index: int, encoding: Encoding) -> Parameters:
        """The current parameters with another encoding for one group."""
        values = {
            f"{SCALE_INPUT}{index}": np.asarray(encoding.scale, np.float32),
            f"{ZERO_POINT_INPUT}{index}": np.asarray(encoding.zero_point, encoding.dtype),
        }
        return {**self.current, **{name: value for name, value in values.items() if name in self.known}}

    def score(self, parameters: Parameters) -> float:
        """Mean over outputs of the SQNR over all inputs, in dB."""
        names = list(self.outputs)
        signal, noise = np.zeros(len(names)), np.full(len(names), 1e-30)
        for tensor, reference in zip(self.inputs, self.references, strict=True):
            outputs = self.session.run(list(self.outputs.values()), {self.image: tensor, **parameters})
            for position, (name, actual) in enumerate(zip(names, outputs, strict=True)):
                expected = reference[name].reshape(-1)
                difference = expected - actual.reshape(-1)
                signal[position] += float(np.dot(expected, expected))
                noise[position] += float(np.dot(difference, difference))
        return float(np.minimum(10 * np.log10(np.maximum(signal, 1e-30) / noise), CAP).mean())
