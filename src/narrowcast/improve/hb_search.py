"""The calibration search of hb_mapper's ``calibration_type: default``, rebuilt from what its logs and documents say.

It tries {max, kl} x max_percentile {0.99995, 1.0} x per_channel x asymmetric for the whole model, judges by the cosine
similarity of the outputs for the FIRST calibration sample, and stops at the first candidate that reaches 0.995.
Inferred: the order (the candidate that 12 of 15 published logs chose comes first), and that the cosines of several
outputs are averaged. The cosine of one image hides most of what costs accuracy, so ``auto`` measures otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.calibrate.statistics import TensorStatistics
from narrowcast.graph.run import Runner
from narrowcast.lower.qdq import lower_qdq
from narrowcast.ops.net import with_outputs
from narrowcast.plan import Draft, finish
from narrowcast.plan.types import Plan

__all__ = ["STOP", "HbCandidate", "HbSearch", "hb_search"]

#: Mean output cosine at which the search ends.
STOP = 0.995
#: Name as the vendor's log prints it, our method, its percentile in percent.
_METHODS = (("max-percentile 0.99995", "percentile", 99.995), ("max", "minmax", 100.0), ("kl", "kl", 100.0))


@dataclass(frozen=True)
class HbCandidate:
    """One setting of the search.

    Attributes:
        name: as in the vendor's log, with ``per_channel`` and ``asymmetric`` behind it.
        cosine: mean over the outputs on the first sample; ``None`` when it was not tried.
        outputs: cosine of every output.
        skipped: why it was not tried, empty when it was.
    """

    name: str
    cosine: float | None = None
    outputs: dict[str, float] = field(default_factory=dict)
    skipped: str = ""


@dataclass(frozen=True)
class HbSearch:
    """The result.

    Attributes:
        candidates: all settings, in the order of the search.
        selected: name of the one with the best cosine.
        plans: of those that were tried, with notes for a person, by name.
    """

    candidates: tuple[HbCandidate, ...]
    selected: str
    plans: dict[str, tuple[Plan, list[str]]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the plans."""
        return {"selected": self.selected, "stop": STOP, "candidates": [asdict(entry) for entry in self.candidates]}


def hb_search(
    model: ir.Model,
    drafted: Draft,
    statistics: Mapping[str, TensorStatistics],
    float_model: onnx.ModelProto,
    first: NDArray[np.float32],
    outputs: Mapping[str, str],
    *,
    threads: int = 0,
) -> HbSearch:
    """Search as the vendor's tool does, within what the target allows.

    Args:
        model: prepared graph.
        drafted: its draft for the target.
        statistics: of the draft's tensors.
        float_model: the prepared graph as ONNX.
        first: first calibration input.
        outputs: tensor of the float graph to the tensor of the QDQ graph that stands for it.
        threads: of onnxruntime; 0 for all cores.
    """
    expected = Runner(with_outputs(float_model, list(outputs)), threads, "basic").run(first, list(outputs))
    found: list[HbCandidate] = []
    plans: dict[str, tuple[Plan, list[str]]] = {}
    for name, method, percentile, draft_here, skipped in _settings(drafted):
        best = max((entry.cosine for entry in found if entry.cosine is not None), default=0.0)
        if not skipped and best >= STOP:
            skipped = f"an earlier one reached {STOP}"
        if skipped or draft_here is None:
            found.append(HbCandidate(name, skipped=skipped))
            continue
        plan, notes = finish(draft_here, statistics, method, percentile)
        actual = Runner(with_outputs(lower_qdq(model, plan)[0], list(outputs.values())), threads, "basic").run(
            first, list(outputs.values())
        )
        cosines = {key: round(_cosine(expected[key], actual[other]), 6) for key, other in outputs.items()}
        found.append(HbCandidate(name, round(float(np.mean(list(cosines.values()))), 6), cosines))
        plans[name] = plan, notes
    selected = max(plans, key=lambda name: next(e.cosine or 0.0 for e in found if e.name == name))
    return HbSearch(tuple(found), selected, plans)


def _settings(drafted: Draft) -> Iterator[tuple[str, str, float, Draft | None, str]]:
    """(name, method, percentile, draft, why it is skipped) in the order of the search."""
    target = drafted.target
    plain = replace(
        drafted,
        target=target.model_copy(update={"activation": target.activation.model_copy(update={"symmetric": True})}),
    )
    for asymmetric in (False, True):
        for name, method, percentile in _METHODS:
            full = f"{name}, asymmetric" if asymmetric else name
            why = (
                f"activations of {target.name} have no zero point" if asymmetric and target.activation.symmetric else ""
            )
            yield full, method, percentile, drafted if asymmetric else plain, why
    for asymmetric in (False, True):
        for name, method, percentile in _METHODS:
            full = f"{name}, per_channel{', asymmetric' if asymmetric else ''}"
            yield full, method, percentile, None, "an activation has one scale here, not one a channel"


def _cosine(x: NDArray[Any], y: NDArray[Any]) -> float:
    a, b = x.reshape(-1).astype(np.float64), y.reshape(-1).astype(np.float64)
    norm = float(np.sqrt(np.dot(a, a) * np.dot(b, b)))
    return float(np.dot(a, b)) / norm if norm else float(np.array_equal(a, b))
