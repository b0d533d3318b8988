"""The package of the kit through an installed hb_mapper: ``build.sh`` with its log read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from narrowcast.base.errors import UserError
from narrowcast.base.progress import phase

__all__ = ["compile_package"]

LOG_FILE = "compile.log"
LEVELS = ("O0", "O1", "O2", "O3")
_TOOLS = ("hb_mapper", "hb_model_modifier")
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
#: What the compiler estimates of a subgraph.
_ESTIMATE = re.compile(r"FPS=([\d.]+), latency = ([\d.]+) us, DDR = (\d+) bytes\s+\(see ([^)]*)\.html\)")
#: A row of the tool's table: node, unit, subgraph, type, and others.
_NODE = re.compile(r"^(\S+)\s+(BPU|CPU|JIT)\s+(\S+)\s+(\w+)\s")


def compile_package(package: Path, toolchain: Path | None, level: str) -> dict[str, Any]:
    """Run ``build.sh`` in a package of the kit.

    Args:
        package: as :func:`narrowcast.chips.rdk.package.deploy_rdk` wrote it.
        toolchain: folder of an environment whose ``bin`` holds the vendor's tools; on the path by default.
        level: of optimization, ``"O0"`` (seconds; the same integers) to ``"O3"`` (many minutes; a faster model).

    Returns:
        What the tool says of the result, by what it is, JSON-ready.

    Raises:
        UserError: no such tools, an unknown level, or a build that fails; its log stays in the package.
    """
    if level not in LEVELS:
        raise UserError(f"{level} is no optimization level of hb_mapper", f"use one of {', '.join(LEVELS)}")
    path = os.environ.get("PATH", "")
    if toolchain is not None:
        path = os.pathsep.join((str(toolchain.absolute() / "bin"), str(toolchain.absolute()), path))
    missing = [tool for tool in _TOOLS if shutil.which(tool, path=path) is None]
    if missing:
        where = f"in {toolchain} or on the path" if toolchain is not None else "on the path"
        raise UserError(
            f"{' and '.join(missing)} is not {where}",
            "install rdkx5-yolo-mapper into a Python 3.10 environment and give it with --toolchain, or run build.sh "
            "in the vendor's image",
        )
    config = package / "hb_mapper.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(re.sub(r"(?m)^(\s*optimize_level:).*$", rf"\1 {level}", text), encoding="utf-8")
    log, result = package / LOG_FILE, package / "board" / "model.bin"
    result.unlink(missing_ok=True)
    with phase(f"compile at {level}"), log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            ["bash", "build.sh"], cwd=package, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "PATH": path},
            check=False,
        )  # fmt: skip
    lines = _COLOR.sub("", log.read_text(encoding="utf-8", errors="replace")).splitlines()
    if done.returncode or not result.is_file():  # the tool's own exit code does not tell
        errors = [line.strip() for line in lines if "ERROR" in line or "error:" in line.lower()]
        said = (errors or [line for line in lines if line.strip()] or ["it said nothing"])[-1]
        raise UserError(f"the vendor's tool made no model: {said[:200]}", f"read {log}")
    return _told(lines, result)


def _told(lines: list[str], result: Path) -> dict[str, Any]:
    """Sizes, estimates by subgraph (the last ones: checker and makertbin both print), nodes by unit."""
    estimates = {Path(found[4]).name: found for line in lines if (found := _ESTIMATE.search(line))}
    table = max((index for index, line in enumerate(lines) if re.match(r"Node\s+ON\s+Subgraph", line)), default=0)
    nodes: dict[str, tuple[str, str]] = {}
    for line in lines[table + 2 :]:
        row = _NODE.match(line)
        if row is None:
            break
        nodes[row[1]] = row[2], row[4]
    slow = [f"{name} ({kind})" for name, (unit, kind) in nodes.items() if unit != "BPU"]
    return {
        "board/model.bin, bytes": result.stat().st_size,
        "estimated by the vendor's compiler": [
            f"{name}: {float(found[2]) / 1000:.2f} ms, {int(found[3]) / 1e6:.1f} MB DDR, {float(found[1]):.1f} a second"
            for name, found in estimates.items()
        ],
        "nodes on the BPU, by the vendor's tool": sum(unit == "BPU" for unit, _ in nodes.values()),
        "nodes on the CPU, by the vendor's tool": slow or "none",
    }
