"""report.html: one file that needs no network, from an analysis and the bundle's history."""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from narrowcast import __version__
from narrowcast.analyze.drawing import Pair, depth, histogram, scatter
from narrowcast.analyze.findings import Analysis
from narrowcast.analyze.measure import Effect
from narrowcast.analyze.parts import Tensor
from narrowcast.base.progress import phase
from narrowcast.base.writing import write_file
from narrowcast.plan.types import Plan
from narrowcast.tasks import TASKS, Quantity, shown

#: Tensors whose histogram is shown.
_HISTOGRAMS = 9
_MOST_DB = 70.0
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("narrowcast.analyze", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
#: All that runs in the page; its policy lets nothing else run, whatever a name in a model says.
_SCRIPT = "\n" + files("narrowcast.analyze").joinpath("report.js").read_text(encoding="utf-8")


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
    """Steps of ``quantize``, ``finetune`` and ``tune`` in a manifest's ``calibration``, in the order of taking."""
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


@phase("write")
def write_report(
    file: Path,
    analysis: Analysis,
    manifest: Mapping[str, Any],
    plan: Plan,
    pictures: Sequence[Pair] = (),
    evaluation: Mapping[str, Any] | None = None,
) -> None:
    """Write the report; a file that is there is replaced when the new one is complete.

    Args:
        file: to write.
        analysis: from :func:`narrowcast.analyze.analyze`.
        manifest: of the bundle, as in ``manifest.json``.
        plan: of the bundle.
        pictures: float beside quantized.
        evaluation: what ``narrowcast evaluate --json`` gave, or ``None``.

    Raises:
        UserError: the file cannot be written.
    """
    write_file(file, render(analysis, manifest, plan, pictures, evaluation), force=True)


def render(
    analysis: Analysis,
    manifest: Mapping[str, Any],
    plan: Plan,
    pictures: Sequence[Pair] = (),
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """The report as text; the same arguments give the same bytes. Arguments as :func:`write_report`."""
    effects = [analysis.everything, *analysis.layers, *(entry.only for entry in analysis.ablation)]
    calibration = manifest.get("calibration", {})
    tuned = tuned_scores(calibration)
    columns = shown(effect.task for effect in effects)
    kinds = Counter((place.unit, place.type) for place in plan.nodes.values())
    return _TEMPLATES.get_template("report.html.j2").render(
        version=__version__,
        script=Markup(_SCRIPT),
        script_hash=base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode(),
        analysis=analysis,
        manifest=manifest,
        columns=columns,
        counted=TASKS[analysis.task].counted,
        headings=_headings,
        tiles=_tiles(analysis.everything, columns),
        scores=_scores(evaluation),
        scored_images=(evaluation or {}).get("images"),
        history=history(calibration),
        step_images=calibration.get("step_images"),
        tuned=_scores(tuned),
        tuned_images=(tuned or {}).get("images"),
        depth=_depth(analysis.tensors),
        layers=sorted(analysis.layers, key=lambda effect: (-effect.task.loss, effect.name)),
        scatter=_scatter(analysis),
        chosen=[entry.name for entry in analysis.chosen],
        costliest=_costliest(analysis),
        histogram=histogram,
        kinds=sorted(kinds.items(), key=lambda entry: (-entry[1], entry[0])),
        plan=plan,
        multiplications=sum(analysis.macs.values()) or 1,
        pictures=pictures,
        uri=_uri,
        number=_number,
        decibel=_decibel,
    )


def _headings(columns: Sequence[Quantity], ratio: bool = True) -> list[tuple[str, int]]:
    """Of the cells that the template's ``effect_cells`` writes."""
    last = [("noise/signal", 0)] * ratio + [("worst dB", 0), ("worst cosine", 0)]
    return [*((quantity.heading, 0) for quantity in columns), *last]


def _uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _decibel(value: float | None) -> str:
    return "equal" if value is None or math.isinf(value) else f"{value:.1f}"


def _tiles(effect: Effect, columns: Sequence[Quantity]) -> list[dict[str, str]]:
    values = effect.task.values
    return [
        {"value": quantity.text(values[quantity.name], min(quantity.digits, 3)), "words": quantity.words}
        for quantity in columns
        if quantity.name in values
    ]


def _scores(evaluation: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """One row a metric family and graph: value, interval, what is kept."""
    rows = []
    for row in (evaluation or {}).get("rows", []):
        for metrics in row["metrics"]:
            name, value = next(iter(metrics["values"].items()))
            kept = metrics.get("retention")
            rows.append(
                {
                    "family": metrics["family"], "graph": row["name"], "name": name, "value": _percent(value),
                    "interval": _range(metrics["interval"]), "kept": _percent(kept) if kept is not None else "",
                    "kept_interval": _range(metrics.get("retention_interval")),
                }
            )  # fmt: skip
    return sorted(rows, key=lambda entry: entry["family"])


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _range(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _depth(tensors: Sequence[Tensor]) -> str:
    lines = [
        ("total", [min(t.noise.sqnr_db, _MOST_DB) for t in tensors]),
        ("own", [min(t.own_db, _MOST_DB) for t in tensors]),
    ]
    return depth([f"{t.name} ({t.op})" for t in tensors], lines, "dB")


def _scatter(analysis: Analysis) -> str:
    chosen = {entry.name for entry in analysis.chosen}
    points = [
        (entry.name, entry.cost, entry.gain, "chosen" if entry.name in chosen else "group" if entry.group else "single")
        for entry in analysis.sensitivity
    ]
    return scatter(points, ("share of the multiplications, logarithmic", "gain in task loss"))


def _costliest(analysis: Analysis) -> list[Tensor]:
    """The tensors with the most noise of their own, weighed by what their node costs."""
    cost = {effect.name: effect.task.loss for effect in analysis.layers}
    return sorted(analysis.tensors, key=lambda t: (-cost.get(t.node, 0.0), t.own_db, t.name))[:_HISTOGRAMS]
