"""manifest.json: everything that a program needs to use a bundle, and everything needed to make it again."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from narrowcast.base.errors import UserError
from narrowcast.base.reading import check_plain_names, read_json, reading, typed
from narrowcast.base.writing import Place, check_folder
from narrowcast.calibrate.images import input_shape
from narrowcast.plan.types import DTYPES, Encoding
from narrowcast.tasks import HeadSpec, Task, meaning_of
from narrowcast.vision.preprocess import Preprocess
from narrowcast.vision.reader import OutputEncoding

MANIFEST_FILE = "manifest.json"
FLOAT_FILE, QDQ_FILE, INTEGER_FILE = "float.onnx", "qdq.onnx", "integer.onnx"
PLAN_FILE, NODES_FILE = "plan.json", "nodes.json"
#: Puts the outputs of all other graphs together to those of the user's, where the graph was cut before its last Concat.
JOIN_FILE = "join.onnx"
#: The float graph that the integers come from, where corrections changed weights; its outputs may have factors.
PREPARED_FILE = "prepared.onnx"
#: The chip's rules when the bundle was made, so that a target file of one's own is needed only once.
TARGET_FILE = "target.json"
VERSION = 1
_PACKAGES = ("narrowcast", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxslim", "opencv-python-headless")


#: Types of outputs that hold what the model says, real numbers or whole ones (class maps), and no quantized ones.
UNQUANTIZED = ("float32", "bool", "uint8", "uint16", "uint32", "int32", "int64")
#: Values of an input or output, at most: 1 GiB in float32.
_MOST_VALUES = 1 << 28


@dataclass(frozen=True)
class OutputInfo:
    """One output of the quantized graph.

    Attributes:
        name: e.g. ``"box_s8"``.
        shape: static shape.
        layout: ``"NCHW"`` for maps, else empty.
        chip_dtype: how it leaves the chip, e.g. ``"int8"`` or ``"int32"``; one of :data:`UNQUANTIZED` when it is not
            quantized.
        scale, zero_point, axis: of ``chip_dtype``; ``None`` where it is not quantized.
    """

    name: str
    shape: tuple[int, ...]
    layout: str
    chip_dtype: str
    scale: float | tuple[float, ...] | None = None
    zero_point: int = 0
    axis: int | None = None


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json. No time stamps: the same command writes the same bytes."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # for reading: an entry that nobody knows is a mistake

    version: int
    task: str
    target: str
    runtime: str
    model: dict[str, str]
    input_name: str
    input_shape: tuple[int, ...]
    input_encoding: dict[str, Any] | None
    preprocess: Preprocess
    outputs: tuple[OutputInfo, ...]
    head: HeadSpec | None
    softmax_missing: bool
    classes: tuple[str, ...]
    skeleton: tuple[tuple[int, int], ...]
    calibration: dict[str, Any]
    difference_to_source: dict[str, float]
    comparison: list[dict[str, Any]]
    qdq_distance: list[dict[str, Any]]
    int16_domain: str
    notes: tuple[str, ...]
    command: tuple[str, ...]
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    modified: dict[str, Any] = field(default_factory=dict)  # what `narrowcast modify` changed
    join: dict[str, Any] = field(default_factory=dict)  # how the user's outputs are made of ours, in float
    assumed: list[str] = field(default_factory=list)  # entries of preprocess that nobody gave
    lost_columns: list[dict[str, Any]] = field(default_factory=list)  # constant in the integers, not in float

    @property
    def compared_on(self) -> str:
        """The images of :attr:`comparison`, in words."""
        held = len(self.calibration["held_back"])
        if not held:
            return "the calibration image itself (nothing was held back: give more images)"
        return f"{held} image{'s' if held != 1 else ''} held back from calibration"

    @property
    def meaning(self) -> Task:
        """Of the outputs."""
        return meaning_of(self.task, self.head, self.softmax_missing)

    def __repr__(self) -> str:
        return f"<Manifest of {self.model.get('source')}: {self.task} for {self.target}>"

    def to_json(self) -> str:
        """As text, keys in the order above."""
        data = asdict(self)
        data["preprocess"] = self.preprocess.to_dict()
        data["head"] = self.head.to_dict() if self.head is not None else None
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"

    @property
    def user_outputs(self) -> tuple[str, ...]:
        """Names of the outputs of the user's graph, in order."""
        return tuple(self.join["outputs"]) if self.join else tuple(out.name for out in self.outputs)

    @property
    def runtime_version(self) -> str:
        """Version of the chip's runtime that the bundle was made for."""
        return self.runtime.rpartition(" ")[2]

    @property
    def integer_outputs(self) -> dict[str, OutputEncoding]:
        """Those of :attr:`encodings` whose dequantize nodes ``modify`` removed from the QDQ graph."""
        return {name: code for name, code in self.encodings.items() if name in self.modified.get("dequantize", ())}

    @property
    def encodings(self) -> dict[str, OutputEncoding]:
        """How the integer outputs of the chip are read, by name."""
        return {
            out.name: OutputEncoding(out.chip_dtype, out.scale, out.zero_point, out.axis)  # type: ignore[arg-type]
            for out in self.outputs
            if out.scale is not None
        }


def read_manifest(folder: str | Path) -> Manifest:
    """Read a bundle's manifest; refused where it is none, broken, or written by a newer version."""

    file, remedy = Path(folder) / MANIFEST_FILE, "quantize again"
    if Path(folder).is_file():
        raise UserError(f"{folder} is no bundle but a file", "give the folder that narrowcast quantize wrote")
    if not file.exists():
        raise UserError(f"{folder} is no bundle (it has no {MANIFEST_FILE})", "make one with narrowcast quantize")
    data = read_json(file, remedy)
    if not isinstance(data, dict) or data.get("version") != VERSION:
        raise UserError(f"{file} is of another version", f"quantize again; this narrowcast reads version {VERSION}")
    manifest = typed(Manifest, data, file, remedy)
    check_plain_names(manifest.files, file, "take the bundle from somebody you trust, or quantize again")
    check_manifest(manifest, file, remedy)
    return manifest


def versions() -> dict[str, str]:
    """Versions of Python and the packages that influence the result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


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
    """How far a quantized tensor is from the float one, as :meth:`narrowcast.engine.noise.Noise.row` writes it."""

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
    """Raise what is impossible in entries beside each other, which have their types."""
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
    meaning = manifest.meaning
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
    meaning.check({output.name: output.shape for output in manifest.outputs})
    limbs = [end for limb in manifest.skeleton for end in limb]
    _require(all(0 <= end < meaning.points for end in limbs), "the skeleton has ends that are no keypoints")
    unknown = set(manifest.modified.get("dequantize", ())) - set(manifest.encodings)
    _require(not unknown, f"modified names {', '.join(sorted(unknown))}, which are no integer outputs")


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


def _possible(shape: tuple[int, ...]) -> bool:
    return all(size > 0 for size in shape) and math.prod(shape) <= _MOST_VALUES


def _check_input(manifest: Manifest) -> None:
    shape, wanted = manifest.input_shape, input_shape(manifest.preprocess)
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


def check_out(out: str | Path, force: bool) -> Place:
    """The place of a bundle; see :func:`narrowcast.base.writing.check_folder`."""
    return check_folder(out, MANIFEST_FILE, force)
