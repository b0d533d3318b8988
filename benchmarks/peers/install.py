"""The other tools in a virtual environment of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

#: What the table of docs/peers.md was measured with.
PINS = ("onnxruntime==1.31.1", "nncf==3.4.0", "esp-ppq==1.3.12")
#: ESP-PPQ needs torch without saying so. A build without CUDA that is installed in the environment already will do.
TORCH = "torch==2.13.0"


class InstallError(Exception):
    """The tools cannot be installed; the message is pip's."""


def install(folder: Path) -> Path:
    """Make the environment unless it is there.

    Args:
        folder: of the environment.

    Returns:
        Its Python.

    Raises:
        InstallError: no network, no such package, no space.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    marker = folder / "side-by-side.txt"
    wanted = "\n".join((*PINS, TORCH)) + "\n"
    if marker.exists() and marker.read_text() == wanted and python.exists():
        return python
    print(f"installing {', '.join((*PINS, 'torch'))} into {folder}", flush=True)
    if not python.exists():
        venv.create(folder, with_pip=True)
    if failure := _pip(python, TORCH):
        raise InstallError(failure)
    if failure := _pip(python, *PINS):
        raise InstallError(failure)
    if failure := _run([str(python), "-c", "import onnxruntime, nncf, torch, esp_ppq.api"]):
        raise InstallError(failure)
    marker.write_text(wanted)
    return python


def _pip(python: Path, *arguments: str) -> str:
    return _run([str(python), "-m", "pip", "install", "--quiet", *arguments])


def _run(command: list[str]) -> str:
    """Empty, or the last line of what went wrong."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.strip() and "[notice]" not in line]
    return lines[-1] if lines else f"{' '.join(command[:4])} ended with {done.returncode} on {sys.platform}"
