"""Rules of the house that a machine can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import narrowcast

SOURCE = Path(narrowcast.__file__).parent
ROOMS = (
    "base", "vision", "config", "graph", "targets", "calibrate", "plan", "lower", "analyze", "improve", "bundle",
    "evaluate", "deploy", "zoo", "cli",
)  # fmt: skip


def imports(file: Path) -> set[str]:
    """Rooms and modules of the package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "narrowcast":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("narrowcast.")}
    return found


def test_rooms_import_only_rooms_above_them() -> None:
    for file in sorted(SOURCE.rglob("*.py")):
        room = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        if room not in ROOMS:
            continue
        allowed = {room} if room in ("base", "vision") else set(ROOMS[: ROOMS.index(room) + 1])
        wrong = {name for name in imports(file) if name not in allowed and name != "__version__"}
        assert not wrong, f"{file.relative_to(SOURCE)} imports {wrong}"


def test_no_chip_is_named_in_algorithms() -> None:
    names = [file.stem for file in (SOURCE / "targets").glob("*.yaml") if file.stem != "onnx"]
    for file in sorted(SOURCE.rglob("*.py")):
        room = file.relative_to(SOURCE).parts[0]
        if room in ("targets", "deploy"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare):
                values = [c.value for c in ast.walk(node) if isinstance(c, ast.Constant)]
                assert not set(values) & set(names), f"{file.relative_to(SOURCE)}:{node.lineno} asks for a chip"


def fresh(code: str) -> str:
    """Output of code in a new interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_is_lean() -> None:
    heavy = "numpy,onnx,onnxruntime,onnx_ir,cv2,torch,pydantic,rich"
    code = f"import narrowcast, sys; print([m for m in '{heavy}'.split(',') if m in sys.modules])"
    assert fresh(code) == "[]"


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys; sys.argv = ['narrowcast', '--help']\n"
        "from narrowcast.cli import main\n"
        "import contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main()\n"
        "print([m for m in ('numpy', 'onnx', 'onnxruntime', 'onnx_ir', 'cv2', 'pydantic') if m in sys.modules])"
    )
    assert fresh(code) == "[]"


def test_vision_runs_with_numpy_and_opencv_only() -> None:
    code = (
        "import sys\n"
        "import narrowcast.vision, narrowcast.vision.draw, narrowcast.vision.masks\n"
        "bad = {'onnx', 'onnxruntime', 'onnx_ir', 'pydantic', 'rich', 'typer', 'yaml', 'narrowcast.base.errors'}\n"
        "print(sorted(bad & set(sys.modules)))"
    )
    assert fresh(code) == "[]"


def test_public_names_are_sorted_documented_and_there() -> None:
    assert list(narrowcast.__all__) == sorted(narrowcast.__all__)
    for name in narrowcast.__all__:
        assert getattr(narrowcast, name).__doc__, f"{name} has no docstring"


def test_sessions_are_made_in_one_place_without_telemetry() -> None:
    makers = {
        str(file.relative_to(SOURCE))
        for file in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "InferenceSession"
    }
    assert makers == {"graph/run.py"}
    code = (
        "import onnxruntime\ncalls = []\nonnxruntime.disable_telemetry_events = lambda: calls.append(1)\n"
        "import narrowcast.graph.run\nprint(len(calls))"
    )
    assert fresh(code) == "1"


#: Lines of the package; lower it whenever they become fewer (scripts/size counts them a room).
MOST_LINES = 35_150


def test_the_package_does_not_grow() -> None:
    script = Path(__file__).parent.parent / "scripts" / "size"
    lines = int(subprocess.run([sys.executable, script, "--total"], capture_output=True, check=True).stdout)
    assert lines <= MOST_LINES, f"{lines} lines: make room first"
    assert lines > MOST_LINES - 500, f"only {lines} lines: hold the gain by lowering MOST_LINES"
