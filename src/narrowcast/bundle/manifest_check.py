"""What a manifest's entries must be beside each other, so that nobody who uses them has to ask again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from narrowcast.base.reading import reading, typed
from narrowcast.bundle.manifest import (
    FLOAT_FILE,
    JOIN_FILE,
    NODES_FILE,
    PLAN_FILE,
    QDQ_FILE,
    UNQUANTIZED,
    Manifest,
    OutputInfo,
)
from narrowcast.plan.types import DTYPES, Encoding

__all__ = ["ComparisonRow", "check_manifest"]

_TASKS = ("detect", "pose", "segment", "classify", "generic")
#: Values of an input or output, at most: 1 GiB in float32.
_MOST_VALUES = 1 << 28


class _Record(BaseModel):
    model_config = ConfigDict(extra="allow")


class _InputEncoding(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dtype: str
    scale: float
    zero_point: int


class _Noise(_Record):
    name: str
    sqnr_db: float | None


class ComparisonRow(_Noise):
    """How far a quantized tensor is from the float one, as :class:`narrowcast.bundle.compare.Comparison` writes it."""

    cosine: float
    mean_abs: float
    max_abs: float
    equal: float | None = None


class _Step(_Record):
    step: str
    kept: bool
    loss_before: float
    loss_after: float
    held_before: float | None = None
    held_after: float | None = None


class _Calibration(_Record):
    method: str
    mean_output_sqnr_db: dict[str, float]
    images: list[str]
    held_back: list[str]
    steps: list[_Step] = []


class _Source(_Record):
    source: str
    sha256: str


class _Removed(_Record):
    node: str
    type: str


class _Modified(_Record):
    dequantize: list[str] = []
    removed: list[_Removed] = []
    input_rounding: Literal["half-even", "half-up"] = "half-even"


class _Join(BaseModel):
    model_config = ConfigDict(extra="forbid")

    file: Literal["join.onnx"]
    outputs: list[str]
    joined: dict[str, list[int]]
    parts: list[str]
    steps: list[dict[str, Any]]


class _Lost(_Record):
    output: str
    axis: int
    columns: list[int]


def check_manifest(manifest: Manifest, file: Path, remedy: str) -> None:
    """Compare entries with each other.

    Args:
        manifest: whose entries have their types.
        file: its name, for messages.
        remedy: what a person should do.

    Raises:
        UserError: naming what is impossible.
    """
    tables: dict[str, tuple[Any, Any]] = {
        "comparison": (list[ComparisonRow], manifest.comparison),
        "qdq_distance": (list[_Noise], manifest.qdq_distance),
        "calibration": (_Calibration, manifest.calibration),
        "model": (_Source, manifest.model),
        "modified": (_Modified, manifest.modified),
        "lost_columns": (list[_Lost], manifest.lost_columns),
        **({"join": (_Join, manifest.join)} if manifest.join else {}),
    }
    for name, (kind, entry) in tables.items():
        typed(kind, entry, f"{file}: {name}", remedy)
    if manifest.input_encoding is not None:
        typed(_InputEncoding, manifest.input_encoding, f"{file}: input_encoding", remedy)
    with reading(file, remedy):
        _check(manifest)


def _check(manifest: Manifest) -> None:
    lost = {FLOAT_FILE, QDQ_FILE, PLAN_FILE, NODES_FILE} - manifest.files.keys()
    _require(not lost, f"files does not name {', '.join(sorted(lost))}")
    _require(manifest.task in _TASKS, f"the task is {manifest.task!r}")
    _check_input(manifest)
    _require(bool(manifest.outputs), "there are no outputs")
    names = [output.name for output in manifest.outputs]
    _require(len(set(names)) == len(names), "two outputs have one name")
    for output in manifest.outputs:
        _check_output(output)
    _require(bool(manifest.join) == (JOIN_FILE in manifest.files), f"join and {JOIN_FILE} do not go together")
    if manifest.join:
        known = {*names, *manifest.join["joined"]}
        _require(known.issuperset((*manifest.join["parts"], *manifest.join["outputs"])), "join names unknown outputs")
    limbs = [end for limb in manifest.skeleton for end in limb]
    points = 0
    if manifest.head is not None:
        _require(manifest.head.task == manifest.task, f"the head's task is {manifest.head.task!r}")
        manifest.head.check({output.name: output.shape for output in manifest.outputs})
        points = manifest.head.keypoint_shape[0] if manifest.head.keypoint_shape else 0
    _require(all(0 <= end < points for end in limbs), "the skeleton has ends that are no keypoints")
    unknown = set(manifest.modified.get("dequantize", ())) - set(manifest.encodings)
    _require(not unknown, f"modified names {', '.join(sorted(unknown))}, which are no integer outputs")


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


def _possible(shape: tuple[int, ...]) -> bool:
    return all(size > 0 for size in shape) and math.prod(shape) <= _MOST_VALUES


def _check_input(manifest: Manifest) -> None:
    spec, shape = manifest.preprocess, manifest.input_shape
    channels = 1 if spec.color == "gray" else 3
    planar = (1, channels, spec.height, spec.width)
    wanted = planar if spec.layout == "NCHW" else (1, spec.height, spec.width, channels)
    _require(_possible(shape), f"an input of {shape} is impossible")
    _require(shape == wanted, f"the input is {shape}, preprocess gives {wanted}")
    if manifest.input_encoding is not None:
        Encoding(**manifest.input_encoding)


def _check_output(output: OutputInfo) -> None:
    where = f"output {output.name}"
    _require(_possible(output.shape), f"{where} has the shape {output.shape}")
    _require(output.layout in ("", "NCHW", "NHWC"), f"{where} has the layout {output.layout!r}")
    if output.scale is None:
        _require(output.chip_dtype in (*DTYPES, *UNQUANTIZED), f"{where} has the type {output.chip_dtype!r}")
        return
    code = Encoding(output.chip_dtype, output.scale, output.zero_point, output.axis)
    if code.axis is not None:
        fits = 0 <= code.axis < len(output.shape) and output.shape[code.axis] == len(code.scales)
        _require(fits, f"{where} of shape {output.shape} has {len(code.scales)} scales along axis {code.axis}")
