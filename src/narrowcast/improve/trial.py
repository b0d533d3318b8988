"""The QDQ graph with scales and zero points as inputs, to try encodings without making a session again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.graph.run import open_session
from narrowcast.improve.cut import Parts, cut
from narrowcast.lower.factors import Factors, undo_factors
from narrowcast.lower.qdq import SCALE_INPUT, ZERO_POINT_INPUT, lower_qdq
from narrowcast.plan import Draft
from narrowcast.plan.types import Encoding, Plan

__all__ = ["Parameters", "Trial"]

Parameters = Mapping[str, NDArray[Any]]


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
        parts = cut(proto, [name for name in names if name in known], outputs)
        self.session = open_session(parts.after, threads, "basic") if parts.late else None
        self.known = {value.name for value in parts.after.graph.input}
        self.outputs, self.late = list(outputs), list(parts.late)
        self._before = _run_before(parts, inputs, threads)
        self.inputs = len(inputs)
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


def _run_before(parts: Parts, inputs: Sequence[NDArray[np.float32]], threads: int) -> list[dict[str, NDArray[Any]]]:
    (image,) = (value.name for value in parts.before.graph.input)
    names = [value.name for value in parts.before.graph.output]
    if not names:
        return [{image: tensor} for tensor in inputs]
    session = open_session(parts.before, threads, "basic")
    found = []
    for tensor in inputs:
        values: dict[str, NDArray[Any]] = dict(zip(names, session.run(names, {image: tensor}), strict=True))
        if image in parts.between:
            values[image] = tensor
        found.append(values)
    return found
