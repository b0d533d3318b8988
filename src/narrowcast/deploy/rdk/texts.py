"""build.sh and README.md of a package."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import jinja2

from narrowcast.base.errors import printable
from narrowcast.bundle import Manifest
from narrowcast.deploy.rdk.heads import ExportedOutput
from narrowcast.deploy.rdk.opset import IR_VERSION, OPSET
from narrowcast.deploy.rdk.settings import WORKING_DIR

__all__ = ["CONFIG_FILE", "MODEL_FILE", "Facts", "build_script", "readme", "removal_script"]

MODEL_FILE, CONFIG_FILE = "model.onnx", "hb_mapper.yaml"
_FEEDS = {
    "nv12-full": "NV12, full range (`input_space_and_range: regular`)",
    "nv12-studio": "NV12, BT.601 studio range (`input_space_and_range: bt601_video`)",
}
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("narrowcast.deploy.rdk"),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=jinja2.StrictUndefined,
)


@dataclass(frozen=True)
class Facts:
    """What the texts tell of a package.

    Attributes:
        name: of the compiled model, without suffix.
        outputs: of the exported model.
        removed: those whose dequantize node is removed.
        data: folder of the calibration files.
        count: of the calibration files.
        dtype: of the calibration files.
        difference: of the exported model to the bundle's float graph, as a share of an output's range.
        nodes: what the plan asks of single nodes, one line each.
    """

    name: str
    outputs: tuple[ExportedOutput, ...]
    removed: tuple[ExportedOutput, ...]
    data: str
    count: int
    dtype: str
    difference: float
    nodes: tuple[str, ...]


def build_script(manifest: Manifest, facts: Facts) -> str:
    """The script for the vendor's image: checker, makertbin, and modifier where outputs leave as integers."""
    return _TEMPLATES.get_template("build.sh.j2").render(
        march=shlex.quote(manifest.target),
        model=MODEL_FILE,
        config=CONFIG_FILE,
        folder=WORKING_DIR,
        name=facts.name,
        input=shlex.quote(manifest.input_name),
        shape=shlex.quote("x".join(map(str, manifest.input_shape))),
        removals=removal_script(facts.name, facts.removed) if facts.removed else "",
    )


def removal_script(name: str, removed: Sequence[ExportedOutput], *, strict: bool = False) -> str:
    """Lines of bash that let outputs leave a compiled model as integers, and say so where one does not.

    Args:
        name: of the compiled model, without suffix.
        removed: the outputs.
        strict: an output that stays float ends the script.
    """
    nodes = [shlex.quote(output.dequantize) for output in removed]
    return _TEMPLATES.get_template("remove.sh.j2").render(name=name, removals=nodes, strict=strict).rstrip()


def readme(manifest: Manifest, facts: Facts) -> str:
    """The package's README with the numbers to expect."""
    spec = manifest.preprocess
    return _TEMPLATES.get_template("README.md.j2").render(
        manifest=manifest,
        spec=spec,
        model=MODEL_FILE,
        config=CONFIG_FILE,
        opset=OPSET,
        ir=IR_VERSION,
        feed=_FEEDS.get(spec.camera, f"{spec.color.upper()} bytes, {spec.layout}"),
        comparison=_comparison(manifest),
        **{**vars(facts), "outputs": _outputs(manifest, facts)},
    )


def _scale(scale: float | tuple[float, ...] | None) -> str:
    if scale is None:
        return "-"
    if isinstance(scale, tuple) and len(set(scale)) > 1:
        return f"{len(scale)} values, {min(scale):.4g} to {max(scale):.4g}"
    return f"{scale[0] if isinstance(scale, tuple) else scale:.4g}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[_cell(text) for text in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *cells])


def _cell(text: str) -> str:
    """Text that neither ends its cell nor is markup."""
    return escape(printable(text).replace("|", "\\|"), quote=False)


def _outputs(manifest: Manifest, facts: Facts) -> str:
    known = {entry.name: entry for entry in manifest.outputs}
    rows = []
    for output in facts.outputs:
        shape, layout = "x".join(map(str, output.shape)), output.layout or "-"
        entry = known[output.name]
        integer = output in facts.removed
        rows.append(
            (
                output.name,
                shape,
                layout,
                entry.chip_dtype if integer or entry.scale is None else "float32",
                _scale(entry.scale) if integer else "-",
            )
        )
    return _table(("output", "shape", "layout", "leaves as", "scale"), rows)


def _comparison(manifest: Manifest) -> str:
    rows = [
        (
            str(entry["name"]),
            f"{entry['cosine']:.5f}",
            "equal" if entry["sqnr_db"] is None else f"{entry['sqnr_db']:.1f}",
            f"{entry['mean_abs']:.4g}",
            f"{entry['max_abs']:.4g}",
        )
        for entry in manifest.comparison
    ]
    return _table(("output", "cosine", "SQNR dB", "mean difference", "largest difference"), rows)
