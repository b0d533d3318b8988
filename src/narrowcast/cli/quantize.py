"""The command ``quantize``.

Settings of ``quantize`` that are carried out around it: wide types everywhere, and nodes removed at the ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from narrowcast.base.errors import UserError
from narrowcast.cli.options import (
    Color,
    Force,
    Head,
    Json,
    KeepHead,
    Limit,
    Mean,
    Quiet,
    Resize,
    Runtime,
    Scale,
    Size,
    StrictImages,
    app,
    change_preprocessing,
    parse_size,
)
from narrowcast.cli.tables import (
    comparison_table,
    node_table,
    output_table,
    print_json,
    say,
    say_notes,
    search_table,
    suggest,
)

if TYPE_CHECKING:
    from narrowcast.bundle import Bundle
    from narrowcast.bundle.settings import QuantizeSettings
    from narrowcast.calibrate import ImageSet
    from narrowcast.chips import Target
    from narrowcast.graph import Model
    from narrowcast.plan import Pins
    from narrowcast.vision import Preprocess


def check_chip(settings: QuantizeSettings, chip: Target) -> None:
    """Compare the settings with what the chip can.

    Raises:
        UserError: zero points, or 16 bits, on a chip without them; corrected biases with an effort that corrects none.
    """
    if settings.asymmetric and chip.activation.symmetric:
        raise UserError(
            f"asymmetric: activations of {chip.name} have no zero point, as far as its vendor says", "remove it"
        )
    if settings.bias_correction and settings.effort == "fast":
        raise UserError("bias_correction: the effort 'fast' corrects nothing", "use --effort standard, which does")
    if settings.all_int16 and "int16" not in chip.activation.types:
        raise UserError(f"all_int16: {chip.name} has no 16-bit activations", "remove it")


def wide_pins(settings: QuantizeSettings, model: Model, chip: Target) -> Pins:
    """``all_int16`` as pins of every node that the chip runs with 16 bits without being asked for the node."""
    from narrowcast.chips.placement import place
    from narrowcast.plan import Pins

    if not settings.all_int16:
        return Pins()
    verdicts = place(model.ir.graph, chip, settings.runtime)
    return Pins({name: "int16" for name, verdict in verdicts.items() if "int16" in verdict.types})


def apply_removals(settings: QuantizeSettings, bundle: Bundle) -> Bundle:
    """Take the nodes off the ends that ``remove`` and ``remove_nodes`` name; kinds that are not there are no mistake.

    Raises:
        UserError: ``remove_nodes`` names no node at an end.
    """
    from narrowcast.bundle.modify import modify

    if not settings.remove and not settings.remove_nodes:
        return bundle
    return modify(
        bundle, out=bundle.path, remove=settings.remove, nodes=settings.remove_nodes, force=True, lenient=True
    )


@app.command()
def quantize(
    model: Annotated[
        Path | None, typer.Argument(help="Float model: ONNX file, or .pt with your own 'yolo' command.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Calibration images: a folder, a list file, or a .npy batch of model inputs.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with any of these settings; options win.")] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="Chip: a name (see 'targets') or a YAML file [onnx]."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Calibration: auto, minmax, mean-minmax, percentile, kl, mse or lp [auto].")
    ] = None,
    percentile: Annotated[float | None, typer.Option(help="For the method 'percentile' [99.99].")] = None,
    limit: Limit = None,
    strict_images: StrictImages = False,
    plan: Annotated[Path | None, typer.Option(help="Edited plan.json whose types and pins are kept.")] = None,
    int16: Annotated[list[str] | None, typer.Option(help="Node (or pattern with *) to run at 16 bits.")] = None,
    float_: Annotated[list[str] | None, typer.Option("--float", help="Node (or pattern) to leave in float.")] = None,
    size: Size = None,
    mean: Mean = None,
    scale: Scale = None,
    color: Color = None,
    resize: Resize = None,
    camera: Annotated[str | None, typer.Option(help="Simulate the board's camera: nv12-full or nv12-studio.")] = None,
    keep_head: KeepHead = False,
    head: Head = "",
    attention: Annotated[
        str | None, typer.Option(help="keep, or rewrite: Softmax as operators that stay on the chip [keep].")
    ] = None,
    effort: Annotated[
        str | None, typer.Option(help="fast: ranges only; standard: corrected weights too; max: longer [standard].")
    ] = None,
    search: Annotated[
        str | None, typer.Option(help="What the method auto tries: auto, or hb-mapper's candidates too [auto].")
    ] = None,
    output_factors: Annotated[
        bool | None,
        typer.Option("--output-factors", help="Outputs with a scale a channel [where the chip's readers can]."),
    ] = None,
    runtime: Runtime = None,
    force: Force = False,
    threads: Annotated[int | None, typer.Option(help="Threads of onnxruntime; 0 for all cores.", min=0)] = None,
    save_intermediates: Annotated[
        Path | None, typer.Option(help="Folder for the four models under hb_mapper's names.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also print a table of all tensors.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn a float model into integers and compare the two.

    Compared on images held back from calibration.
    """
    from narrowcast.base.progress import phase, set_quiet

    set_quiet(quiet or json)
    with phase("start"):
        from narrowcast.bundle import quantize
        from narrowcast.bundle.manifest import check_out
        from narrowcast.bundle.settings import check_input, read_settings
        from narrowcast.chips import load_target
        from narrowcast.graph import load
    options = {
        "model": model, "images": images, "out": out, "target": target, "method": method, "percentile": percentile,
        "limit": limit, "plan": plan, "int16": int16, "float": float_, "size": size, "mean": mean, "scale": scale,
        "color": color, "resize": resize, "camera": camera, "keep_head": keep_head or None, "head": head or None,
        "runtime": runtime, "threads": threads, "attention": attention, "effort": effort, "search": search,
        "output_factors": output_factors,
    }  # fmt: skip
    start = time.perf_counter()
    settings, notes = read_settings(config, options)
    chip = load_target(settings.target)  # a wrong name is said before anything slow
    check_chip(settings, chip)
    check_out(settings.out, force)
    loaded = load(
        settings.model,
        size=parse_size(settings.size),
        keep_head=settings.keep_head,
        attention=settings.attention,
        output_nodes=settings.output_nodes,
        head=settings.head,
    )
    changes = {name: getattr(settings, name) for name in ("mean", "scale", "color", "resize", "camera")}
    loaded = loaded.prepared_as(change_preprocessing(loaded.preprocess, changes), _given(settings, changes))
    image = loaded.ir.graph.inputs[0]
    shape = tuple(int(dim) for dim in image.shape or ())
    if len(shape) == 4:
        check_input(settings, loaded.input_name, shape)
    bundle = quantize(
        loaded,
        _images(settings, loaded.preprocess, strict_images),
        settings.target,
        out=settings.out,
        method=settings.method,
        percentile=settings.percentile,
        pins=wide_pins(settings, loaded, chip).merged(_pins(settings, loaded)),
        runtime=settings.runtime,
        force=force,
        threads=settings.threads,
        command=_command(sys.argv),
        effort=settings.effort,
        output_factors=settings.output_factors,
        search=settings.search,
    )
    bundle = apply_removals(settings, bundle)
    if save_intermediates is not None:
        from narrowcast.chips.rdk.intermediates import save_intermediates as save

        save(loaded, bundle, save_intermediates, settings.out.name, force=force)
    if json:
        seconds = round(time.perf_counter() - start, 2)
        print_json({"bundle": str(settings.out), **_summary(bundle), "seconds": seconds})
        return
    for note in notes:
        say(f"- {note}")
    report(bundle, verbose)
    say(f"{settings.out} written in {time.perf_counter() - start:.1f} s")
    suggest(*after(bundle))


def after(bundle: Bundle) -> list[tuple[object, ...]]:
    """What a person may do with a new bundle: measure it, look at it, hand it over."""
    path, meaning = bundle.path, bundle.manifest.meaning
    known: list[tuple[object, ...]] = []
    if meaning.known:
        known.append(("narrowcast", "evaluate", path, "--images", "FOLDER", *meaning.labels))
        known.append(("narrowcast", "predict", path, "IMAGE.jpg", "--out", "found.jpg"))
    known.append(("narrowcast", "analyze", path, "--images", "FOLDER"))
    return [*known, ("narrowcast", "deploy", path)] if bundle.target.kits else known


def wider(bundle: Bundle, images: Path, labels: Sequence[object] = ()) -> list[tuple[object, ...]]:
    """The command that buys accuracy back with 16 bits, where the chip and the task allow it."""
    if "int16" not in bundle.target.activation.types or not bundle.manifest.meaning.known:
        return []
    return [("narrowcast", "tune", bundle.path, "--images", images, *labels, "--int16-budget", "10%")]


def _given(settings: QuantizeSettings, changes: Mapping[str, object]) -> set[str]:
    """Entries of the preprocessing that a person gave; files without header are as the model takes them."""
    raw = {"color", "resize"} if settings.calibration_data != "images" else set()
    return raw | {name for name, value in changes.items() if value is not None}


def _command(arguments: Sequence[str]) -> list[str]:
    """The command line without what only says where the result goes, so that equal work gives equal bytes."""
    kept, skip = ["narrowcast"], False
    for argument in arguments[1:]:
        if skip:
            skip = False
        elif argument in ("--out", "-o"):
            skip = True
        elif argument not in ("--force", "--json", "--quiet", "-q", "--verbose", "-v") and not argument.startswith(
            "--out="
        ):
            kept.append(argument)
    return kept


def _images(settings: QuantizeSettings, spec: Preprocess, strict: bool) -> ImageSet:
    from narrowcast.calibrate import images
    from narrowcast.chips.rdk.calibration import vendor_images

    if settings.calibration_data == "images":
        return images(settings.images, spec, limit=settings.limit, strict=strict)
    return vendor_images(settings.images, spec, settings.calibration_data, limit=settings.limit)


def _pins(settings: QuantizeSettings, model: Model) -> Pins:
    from narrowcast.bundle.settings import pinned_types
    from narrowcast.plan import Pins, TensorPin, read_pins

    base = read_pins(settings.plan) if settings.plan is not None else Pins()
    nodes = [
        (
            str(node.name),
            node.op_type,
            ["" if v is None or v.const_value is not None else str(v.name) for v in node.inputs],
        )
        for node in model.ir.graph
    ]
    types, tensors = pinned_types(settings, nodes)
    return base.merged(Pins(types, {name: TensorPin(dtype) for name, dtype in tensors.items()}))


def _summary(bundle: Bundle) -> dict[str, object]:
    manifest = bundle.manifest
    return {
        "task": manifest.task,
        "target": manifest.target,
        "method": manifest.calibration["method"],
        "scores": manifest.calibration["mean_output_sqnr_db"],
        "difference_to_source": manifest.difference_to_source,
        "comparison": manifest.comparison,
        "notes": list(manifest.notes),
        "assumed": manifest.assumed,
        "lost_columns": manifest.lost_columns,
        "join": manifest.join,
    }


def _decided(record: Mapping[str, Any]) -> str:
    """What chose the calibration method, with the numbers."""
    sqnr = record["mean_output_sqnr_db"]
    decibels = ", ".join(f"{name} {value:.1f}" for name, value in sqnr.items())
    if record["requested"] != "auto":
        return f", as asked (mean output SQNR {decibels} dB)"
    if "task_loss" not in record:
        return f", which keeps the outputs best (mean output SQNR in dB: {decibels})"
    losses = ", ".join(f"{name} {value:.4f}" for name, value in record["task_loss"].items())
    return f", which has the least task loss: {losses} (mean output SQNR in dB, which decides nothing: {decibels})"


def _held(step: dict[str, Any]) -> str:
    """What a step did on images that decided nothing."""
    if "held_after" not in step:
        return ""
    return f" (on others {step['held_before']:.4f} -> {step['held_after']:.4f})"


def report(bundle: Bundle, verbose: bool) -> None:
    """Print what was done and how far the integers are from float."""
    manifest = bundle.manifest
    say_notes(manifest.notes)
    worst = ", ".join(f"{name} {value:.2g}" for name, value in manifest.difference_to_source.items())
    say(f"- largest difference of the prepared float graph to {manifest.model['source']}: {worst}")
    record = manifest.calibration
    search_table(record.get("hb_search"), record["mean_output_sqnr_db"])
    say(f"- ranges by {record['method']}{_decided(record)}")
    if "step_images" in record:
        count = record["step_images"]
        taught, judged, rest = (count[name] for name in ("teach", "judge", "report"))
        say(f"- {taught} images teach, a step stays where the task loss falls on {judged} more; {rest} others confirm")
    for step in record.get("steps", []):
        kept = "" if step["kept"] else ", not kept"
        say(f"- {step['step']}: task loss {step['loss_before']:.4f} -> {step['loss_after']:.4f}{kept}{_held(step)}")
    if verbose:
        node_table(bundle)
        output_table(bundle)
    comparison_table(
        f"Outputs, float against {manifest.target} integers, on {manifest.compared_on}",
        manifest.comparison,
        "output",
    )
    if manifest.qdq_distance:
        say(f"- {distance_sentence(manifest.qdq_distance)}")


#: Differences this far below a tensor are float32's own rounding: it holds 24 bits, about 144 dB.
_ROUNDING_DB = 120.0


def distance_sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """How far the QDQ graph is from the exact integers, in one sentence."""
    apart = [row for row in rows if row.get("sqnr_db") is not None and row["sqnr_db"] < _ROUNDING_DB]
    if not apart:
        return "the QDQ graph in onnxruntime gives the same outputs as the chip's integers"
    worst = min(apart, key=lambda row: float(row["sqnr_db"]))
    return (
        f"the QDQ graph in onnxruntime is not the chip: its outputs differ from the exact integers, at worst "
        f"{worst['sqnr_db']:.0f} dB below the signal ({worst['name']})"
    )
