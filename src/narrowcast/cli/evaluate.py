"""The command ``evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from narrowcast.base.errors import UserError
from narrowcast.base.progress import on_interrupt
from narrowcast.cli.options import (
    Annotations,
    Color,
    Force,
    Fresh,
    Json,
    Labels,
    Mean,
    Quiet,
    Resize,
    Scale,
    SkipMissing,
    StrictImages,
    Workers,
    app,
    change_preprocessing,
    labelled_images,
)
from narrowcast.cli.quantize import wider
from narrowcast.cli.tables import print_json, print_table, say, suggest

if TYPE_CHECKING:
    from narrowcast.bundle import Predictor
    from narrowcast.evaluate import Metrics, Report


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder, or a float ONNX file.")],
    images: Annotated[Path, typer.Option(help="Folder of the labelled images.")],
    annotations: Annotations = None,
    labels: Labels = None,
    engine: Annotated[
        list[str] | None, typer.Option(help="Graph to score, several times: float, integer, qdq [float and integer].")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="ultralytics (score 0.001, NMS 0.7) or rdk (score 0.25, NMS 0.7).")
    ] = "ultralytics",
    conf: Annotated[float | None, typer.Option(help="Least score, instead of the protocol's.")] = None,
    iou: Annotated[float | None, typer.Option(help="Overlap above which two boxes are one object.")] = None,
    max_detections: Annotated[int | None, typer.Option(help="Detections an image at most [300].")] = None,
    limit: Annotated[int | None, typer.Option(help="Score this many images, drawn at random.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of the draw and of the intervals.", min=0)] = 0,
    camera: Annotated[
        str | None, typer.Option(help="What the board's camera format costs: rgb, nv12-full or nv12-studio.")
    ] = None,
    mean: Mean = None,
    scale: Scale = None,
    color: Color = None,
    resize: Resize = None,
    skip_missing: SkipMissing = False,
    workers: Workers = None,
    fresh: Fresh = False,
    save_predictions: Annotated[
        Path | None, typer.Option(help="COCO result JSON to write; '-float' and so on is added for several graphs.")
    ] = None,
    strict_images: StrictImages = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure AP or top-1 on labelled images.

    Float and quantized side by side, with 95 % intervals.
    """
    from narrowcast.base.progress import phase, set_quiet

    set_quiet(quiet or json)
    with phase("start"):
        from narrowcast.bundle import open_bundle
        from narrowcast.evaluate import CocoData
        from narrowcast.evaluate.coco_data import choose
    changes = {"camera": camera, "mean": mean, "scale": scale, "color": color, "resize": resize}
    chosen = choose(protocol, conf, iou, max_detections)
    data = labelled_images(images, annotations, labels, limit=limit, seed=seed, skip_missing=skip_missing)
    if data is None:
        raise UserError(
            "one of --annotations and --labels is needed", "give COCO annotations, or labels of a classifier"
        )
    assumption = _assumption(path, changes)
    if assumption and not json:
        say(assumption)
    graphs = _changed(_graphs(path, engine or []), changes)
    common: dict[str, Any] = {"workers": workers, "seed": seed, "fresh": fresh, "save_predictions": save_predictions}
    common |= {"force": force, "strict": strict_images}
    with on_interrupt("interrupted: finished images are kept, the same command goes on from there"):
        if isinstance(data, CocoData):
            report = data.evaluate(graphs, protocol=chosen, **common)
        else:
            report = data.evaluate(graphs, **common)
    if json:
        print_json({**report.to_dict(), **({"warnings": [assumption]} if assumption else {})})
    else:
        print_report(report, str(path))
        if path.is_dir():
            given = ("--labels", labels) if labels is not None else ("--annotations", annotations)
            more = wider(open_bundle(path), images, given)
            suggest(("narrowcast", "analyze", path, "--images", images), *more)


def _graphs(path: Path, engines: list[str]) -> dict[str, Callable[[], Predictor]]:
    from narrowcast.bundle import Predictor, open_bundle
    from narrowcast.graph import load

    if path.suffix in (".onnx", ".pt"):
        return {"float": lambda: Predictor.of_model(load(path), threads=1)}
    bundle = open_bundle(path)
    return bundle.graphs(engines or None)


def _assumption(path: Path, changes: Mapping[str, str | None]) -> str:
    """What is assumed of a float file's preprocessing; a bundle was told when it was made."""
    from narrowcast.graph import load

    if path.suffix not in (".onnx", ".pt"):
        return ""
    model = load(path)
    given = [name for name, value in changes.items() if value is not None]
    return model.prepared_as(change_preprocessing(model.preprocess, changes), given).assumption


def _changed(
    graphs: Mapping[str, Callable[[], Predictor]], changes: Mapping[str, str | None]
) -> dict[str, Callable[[], Predictor]]:
    """The graphs with the preprocessing that the person asked for."""

    def change(make: Callable[[], Predictor]) -> Callable[[], Predictor]:
        def made() -> Predictor:
            predictor = make()
            return replace(predictor, preprocess=change_preprocessing(predictor.preprocess, changes))

        return made

    return {name: change(make) for name, make in graphs.items()}


#: Metrics from left to right.
_ORDER = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large", "AR", "top-1", "top-5", "agreement")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _retention(metrics: Metrics) -> str:
    if metrics.retention is None or metrics.retention_interval is None:
        return ""
    low, high = metrics.retention_interval
    return f"{metrics.retention:.1%} [{low:.1%}, {high:.1%}]"


def print_report(report: Report, title: str) -> None:
    """One table of all rows, then the notes."""
    known = {name for row in report.rows for metrics in row.metrics for name in metrics.values}
    names = [name for name in _ORDER if name in known]
    rows = []
    for family in dict.fromkeys(m.family for row in report.rows for m in row.metrics):
        for row in report.rows:
            for metrics in row.metrics:
                if metrics.family != family:
                    continue
                low, high = metrics.interval
                values = [_percent(metrics.values[name]) if name in metrics.values else "" for name in names]
                values[0] += f" [{100 * low:.1f}, {100 * high:.1f}]"
                speed = f"{row.images_per_second:.1f}" if row.images_per_second else "resumed"
                rows.append((family, row.name, *values, _retention(metrics), speed))
    columns = (names[0] + " [95 %]", *(name.removeprefix("AP ") for name in names[1:]), "kept [95 %]", "img/s")
    print_table(f"{title} on {report.images} labelled images, in percent", ("metric", "graph", *columns), rows, 2)
    for note in report.notes:
        say(f"- {note}")
