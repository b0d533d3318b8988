"""Runs a package's board/run.py against the stub of the board's package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from narrowcast.bundle import Bundle
from narrowcast.vision import preprocess, read_image

STUB = Path(__file__).parent / "board_stub"


def compile_stub(bundle: Bundle, package: Path, image: Path, *, floats: bool = False, rename: bool = False) -> None:
    """Write board/model.bin: what the bundle's integers give for an image, as the compiled model would.

    Args:
        bundle: with an integer graph.
        package: from the kit.
        image: to run.
        floats: outputs are dequantized, as without the modifier.
        rename: outputs have other names than in the ONNX file.
    """
    tensor, _ = preprocess(read_image(image), bundle.manifest.preprocess)
    found = bundle.engine("integer", 1).runner.run(tensor)
    described = json.loads((package / "board/model.json").read_text())["outputs"]
    known = {entry.name: entry for entry in bundle.manifest.outputs}
    arrays: dict[str, Any] = {"names": [f"out_{entry['name']}" if rename else entry["name"] for entry in described]}
    for index, entry in enumerate(described):
        values, info = found[entry["name"]], known[entry["name"]]
        values = values.transpose(0, 2, 3, 1) if entry["moved"] else values.reshape(entry["shape"])
        assert list(values.shape) == entry["shape"]
        scale = np.atleast_1d(np.asarray([] if info.scale is None else info.scale, np.float32))
        if floats and scale.size:
            values, scale = values.astype(np.float32) * scale, scale[:0]
        arrays |= {f"value_{index}": values, f"scale_{index}": scale}
        assert scale.size or entry["whole"] or values.dtype == np.float32
    with (package / "board/model.bin").open("wb") as file:
        np.savez(file, **arrays)


def run_board(package: Path, *arguments: str, stub: bool = True) -> subprocess.CompletedProcess[str]:
    """Run board/run.py in a process of its own, which sees the package's copy of the vision room first."""
    environment = {**os.environ, "PYTHONPATH": str(STUB) if stub else "", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(package / "board/run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=package, check=False)
