"""manifest.json: everything that a program needs to use a bundle, and everything needed to make it again."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from narrowcast.base.errors import UserError
from narrowcast.base.reading import check_plain_names, read_json, typed
from narrowcast.vision.heads import HeadSpec, OutputEncoding
from narrowcast.vision.preprocess import Preprocess

__all__ = [
    "FLOAT_FILE", "INTEGER_FILE", "JOIN_FILE", "MANIFEST_FILE", "NODES_FILE", "PLAN_FILE", "PREPARED_FILE", "QDQ_FILE",
    "TARGET_FILE", "UNQUANTIZED", "Manifest", "OutputInfo", "read_manifest", "versions",
]  # fmt: skip

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
    """Read a bundle's manifest.

    Raises:
        UserError: no bundle, a broken manifest, or one written by a newer version.
    """
    from narrowcast.bundle.manifest_check import check_manifest

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
