"""Rules of the house that a machine can check."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import narrowcast
from narrowcast.bundle.kits import kits
from narrowcast.tasks import TASKS

SOURCE = Path(narrowcast.__file__).parent
#: ``vendors``: the folders inside ``chips``; ``chips`` itself is what every chip shares.
ROOMS = (
    "base", "vision", "tasks", "ops", "graph", "chips", "calibrate", "plan", "engine", "analyze", "improve", "bundle",
    "evaluate", "vendors", "zoo", "cli",
)  # fmt: skip
VENDORS = {folder.name for folder in (SOURCE / "chips").iterdir() if (folder / "__init__.py").exists()}


def room_of(parts: Sequence[str]) -> str:
    """The room of a module, from the parts of its path below the package."""
    return "vendors" if parts[0] == "chips" and len(parts) > 1 and parts[1] in VENDORS else parts[0]


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def imported(file: Path) -> set[tuple[str, ...]]:
    """Modules and names of the package that a file imports, as parts below the package."""
    found = set()
    for node in ast.walk(tree(file)):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {tuple(name.split(".")[1:]) for name in names if name.startswith("narrowcast.")}
    return found


def test_rooms_import_only_rooms_above_them() -> None:
    for file in sorted(SOURCE.rglob("*.py")):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        room = room_of(parts)
        if room not in ROOMS:
            continue
        alone = {"base": {"base"}, "vision": {"vision"}, "tasks": {"vision", "tasks"}}  # the last two run on the board
        allowed = alone.get(room, set(ROOMS[: ROOMS.index(room) + 1]))
        wrong = {".".join(name) for name in imported(file) if room_of(name) not in allowed | {"__version__"}}
        if room == "vendors":
            wrong |= {".".join(name) for name in imported(file) if room_of(name) == room and name[1] != parts[1]}
        assert not wrong, f"{file.relative_to(SOURCE)} imports {wrong}"


def test_no_chip_is_named_in_algorithms() -> None:
    names = [file.stem for file in (SOURCE / "chips").glob("*.yaml") if file.stem != "onnx"]
    for file in sorted(SOURCE.rglob("*.py")):
        if file.relative_to(SOURCE).parts[0] == "chips":
            continue
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Compare):
                values = [c.value for c in ast.walk(node) if isinstance(c, ast.Constant)]
                assert not set(values) & set(names), f"{file.relative_to(SOURCE)}:{node.lineno} asks for a chip"


def test_no_task_is_named_outside_tasks() -> None:
    names = {name for name in TASKS if name != "score"}  # a test of tasks registers one more
    for file in sorted(SOURCE.rglob("*.py")):
        place = file.relative_to(SOURCE)
        if place.parts[0] == "tasks" or str(place) == "zoo/embedded.py":  # the samples are called after their tasks
            continue
        said = {node.value for node in ast.walk(tree(file)) if isinstance(node, ast.Constant)}
        assert not said & names, f"{place} names the task {said & names}"


def said(file: Path) -> Iterator[str]:
    """Names and strings in the code of a file; what explains it (comments, docstrings) is left out."""
    explaining = {id(node.value) for node in ast.walk(tree(file)) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in explaining:
            yield node.value
        named = [getattr(node, key, None) for key in ("id", "attr", "module", "name", "asname", "arg")]
        yield from (name for name in named if isinstance(name, str))


def test_vendors_words_stay_in_their_folders() -> None:
    words = re.compile("|".join(rf"(?<![a-z]){re.escape(word)}(?![a-z])" for word in {*kits(), "espdl", "hb_mapper"}))
    for file in sorted(SOURCE.rglob("*.py")):
        if room_of(file.relative_to(SOURCE).parts) in ("vendors", "cli"):  # the command line's help texts name them
            continue
        wrong = {word for word in said(file) if words.search(word)}
        assert not wrong, f"{file.relative_to(SOURCE)} says {wrong}"


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


def test_vision_and_tasks_run_with_numpy_and_opencv_only() -> None:
    code = (
        "import sys\n"
        "import narrowcast.tasks, narrowcast.vision, narrowcast.vision.draw, narrowcast.vision.masks\n"
        "bad = {'onnx', 'torch', 'onnxruntime', 'onnx_ir', 'pydantic', 'rich', 'typer', 'yaml', 'narrowcast.base'}\n"
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
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "InferenceSession"
    }
    assert makers == {"graph/run.py"}
    code = (
        "import onnxruntime\ncalls = []\nonnxruntime.disable_telemetry_events = lambda: calls.append(1)\n"
        "import narrowcast.graph.run\nprint(len(calls))"
    )
    assert fresh(code) == "1"


#: Lines of the package; lower it whenever they become fewer (scripts/size counts them a room).
MOST_LINES = 35_000


def test_the_package_does_not_grow() -> None:
    script = Path(__file__).parent.parent / "scripts" / "size"
    lines = int(subprocess.run([sys.executable, script, "--total"], capture_output=True, check=True).stdout)
    assert lines <= MOST_LINES, f"{lines} lines: make room first"
    assert lines > MOST_LINES - 500, f"only {lines} lines: hold the gain by lowering MOST_LINES"
