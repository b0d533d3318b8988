"""What was recorded: digests of files and text of outputs, and on what machine."""

from __future__ import annotations

import hashlib
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["DIGESTS", "OUTPUTS", "digests", "environment", "read", "short", "tidy", "update", "write"]

DIGESTS = Path(__file__).with_name("digests.json")
OUTPUTS = Path(__file__).with_name("outputs.json")
#: Packages whose other version may give other bytes.
_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxslim", "opencv-python-headless", "flatbuffers")
#: Keys of JSON outputs that tell time, memory, versions or paths.
_UNSTEADY = re.compile(r"seconds|_ms$|^ms|per_second|fps|version|rss|peak|command|^path$|^file$|^bundle$")


def environment() -> dict[str, str]:
    """Everything beside this project that float results depend on."""
    features = np._core._multiarray_umath.__cpu_features__  # type: ignore[attr-defined]
    widest = next((name for name in ("AVX512_SPR", "AVX512_ICL", "AVX512F", "AVX2") if features.get(name)), "other")
    return {"processor": widest, **{package: version(package) for package in _PACKAGES}}


def digests(folder: Path) -> dict[str, str]:
    """First 16 hexadecimal digits of the SHA-256 of every file; of a manifest and a node list without versions."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            data = file.read_bytes()
            if file.name == "manifest.json":
                data = json.dumps(tidy(json.loads(data))).encode()
            found[file.relative_to(folder).as_posix()] = hashlib.sha256(data).hexdigest()[:16]
    return found


def tidy(data: Any) -> Any:
    """JSON data without what differs between two runs, and without the hashes of other files."""
    if isinstance(data, dict):
        steady = {key: value for key, value in data.items() if not _UNSTEADY.search(str(key)) and key != "files"}
        return {key: tidy(value) for key, value in steady.items()}
    if isinstance(data, list):
        return [tidy(entry) for entry in data]
    return data


def short(data: Any) -> Any:
    """Data itself where a person would read it, else its keys and the SHA-256 of its text."""
    text = json.dumps(data, ensure_ascii=False)
    if len(text) < 4000:
        return data
    shown = {key: short(value) for key, value in data.items()} if isinstance(data, dict) else {"length": len(data)}
    return shown if isinstance(data, dict) else {**shown, "sha256": hashlib.sha256(text.encode()).hexdigest()[:16]}


def read(file: Path) -> dict[str, Any]:
    """The record, empty where there is none."""
    return dict(json.loads(file.read_text())) if file.exists() else {}


def update(file: Path, key: str, value: Any) -> None:
    """Put one entry into the record."""
    write(file, {**read(file), key: value})


def write(file: Path, record: dict[str, Any]) -> None:
    """Write the whole record."""
    record = {**record, "environment": environment()}
    file.write_text(json.dumps(dict(sorted(record.items())), indent=1, ensure_ascii=False) + "\n")
