"""What each step on the way to a bundle bought, as its manifest tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

__all__ = ["HistoryRow", "history", "tuned_scores"]


@dataclass(frozen=True)
class HistoryRow:
    """One step.

    Attributes:
        command: that took it.
        step: its name.
        outcome: whether it is in the bundle.
        before, after: task loss on the images that decided; ``None`` where nothing was measured there. Commands weigh
            the parts of the loss differently, so compare within one.
        held_before, held_after: the same on images that decided nothing; ``None`` where that was not measured.
    """

    command: str
    step: str
    outcome: str
    before: float | None
    after: float | None
    held_before: float | None = None
    held_after: float | None = None


def history(calibration: Mapping[str, Any]) -> list[HistoryRow]:
    """Steps of ``quantize``, ``finetune`` and ``tune``, in the order in which they were taken.

    Args:
        calibration: of the manifest.
    """
    rows = [
        HistoryRow(
            "quantize", step["step"], "kept" if step["kept"] else "not kept", step["loss_before"], step["loss_after"],
            step.get("held_before"), step.get("held_after"),
        )
        for step in calibration.get("steps", [])
    ]  # fmt: skip
    makers = {"tune": _tuned, "finetune": _finetuned}
    for command, record in calibration.items():  # in the order in which they were added
        if command in makers:
            rows += makers[command](record)
    return rows


def _tuned(record: Mapping[str, Any]) -> Iterator[HistoryRow]:
    steps = record["steps"]
    for index, (last, step) in enumerate(pairwise(steps), 1):
        kept = "kept" if index <= record["kept_steps"] else "not needed"
        words = {"add": "16 bits for", "remove": "8 bits again for"}[step["action"]]
        yield HistoryRow("tune", f"{words} {step['name']}", kept, last["loss"], step["loss"])
    report = record["report"]
    if record["kept_steps"]:
        losses = report["before"]["loss"], report["after"]["loss"]
        yield HistoryRow("tune", "all that was kept", "kept", None, None, *losses)


def _finetuned(record: Mapping[str, Any]) -> Iterator[HistoryRow]:
    name = f"{record['kept_step']} of {record['settings']['steps']} steps"
    kept = "kept" if record["kept_step"] else "nothing was better"
    yield HistoryRow("finetune", name, kept, record["before"]["loss"], record["after"]["loss"])


def tuned_scores(calibration: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Metrics before and after ``tune`` on labelled images that chose nothing, if they were measured."""
    found: Mapping[str, Any] | None = calibration.get("tune", {}).get("report", {}).get("metrics")
    return found
