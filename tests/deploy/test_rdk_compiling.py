"""``deploy --compile``: an installed compiler is run and read; here it is a script that prints as hb_mapper 1.24.3."""

from __future__ import annotations

from pathlib import Path

import pytest
from rdk_bundles import sample_images

from narrowcast.base.errors import UserError
from narrowcast.bundle import Bundle
from narrowcast.bundle.kits import Delivery, compiled, deploy
from narrowcast.chips.rdk.compiling import compile_package
from narrowcast.chips.rdk.export import prefix

SAID = """\
\x1b[92mINFO\x1b[0m FPS=52.93, latency = 18893.4 us, DDR = 120572096 bytes   (see ./.hb_check/g_subgraph_0.html)
\x1b[92mINFO\x1b[0m FPS=51.59, latency = 19384.4 us, DDR = 123849088 bytes   (see g_subgraph_0.html)
2026-11-25 13:45:37,226 \x1b[92mINFO\x1b[0m The main quantized node information:
=====================================================================================
Node        ON   Subgraph  Type              Cosine Similarity  Threshold  DataType
-------------------------------------------------------------------------------------
/a/conv     BPU  id(0)     HzSQuantizedConv  0.999932           1.0        int8
/a/Softmax  CPU  --        Softmax           0.999810           --         float
last        BPU  id(1)     HzSQuantizedConv  0.999959           3.175      int8
2026-11-25 13:45:37,227 \x1b[92mINFO\x1b[0m The quantized model output:
"""
MAPPER = """#!/usr/bin/env bash
[ "$1" = makertbin ] || exit 0
grep -q "optimize_level: O0" hb_mapper.yaml || exit 3
mkdir -p model_output
{work}
cat <<'END'
{said}END
"""
MODIFIER = """#!/usr/bin/env bash
cp "$1" "${1%.bin}_modified.bin"
"""


def tools(folder: Path, name: str, *, fails: bool = False) -> Path:
    """An environment with the two commands."""
    work = "echo '2026 ERROR the model is odd' >&2" if fails else f"echo compiled > model_output/{name}.bin"
    (folder / "bin").mkdir(parents=True)
    for tool, text in (("hb_mapper", MAPPER.format(work=work, said=SAID)), ("hb_model_modifier", MODIFIER)):
        (folder / "bin" / tool).write_text(text)
        (folder / "bin" / tool).chmod(0o755)
    return folder


def test_a_package_is_compiled_and_the_result_read(rdk_pose: Bundle, tmp_path: Path) -> None:
    made = deploy(rdk_pose, "rdk-x5", tmp_path / "package", images=sample_images("pose", rdk_pose.manifest.preprocess))
    env = tools(tmp_path / "env", prefix(rdk_pose))
    found = compiled(made, "rdk-x5", env, "O0")
    assert (tmp_path / "package" / "board" / "model.bin").read_text() == "compiled\n"
    assert found.facts["estimated by the vendor's compiler"] == ["g_subgraph_0: 19.38 ms, 123.8 MB DDR, 51.6 a second"]
    assert found.facts["nodes on the BPU, by the vendor's tool"] == 2
    assert found.facts["nodes on the CPU, by the vendor's tool"] == ["/a/Softmax (Softmax)"]
    assert found.steps == made.steps[1:]
    assert "The main quantized node" in (tmp_path / "package" / "compile.log").read_text()


def test_what_goes_wrong_is_one_line(rdk_pose: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = deploy(rdk_pose, "rdk-x5", tmp_path / "package", images=sample_images("pose", rdk_pose.manifest.preprocess))
    with pytest.raises(UserError, match="O9 is no optimization level"):
        compile_package(made.path, None, "O9")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(UserError, match=r"hb_mapper and hb_model_modifier is not on the path.*rdkx5-yolo-mapper"):
        compile_package(made.path, None, "O0")
    with pytest.raises(UserError, match="made no model: 2026 ERROR the model is odd"):
        compile_package(made.path, tools(tmp_path / "env", "x", fails=True), "O0")
    assert not (made.path / "board" / "model.bin").exists()


def test_a_kit_without_a_compiler(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="espdl has nothing to compile"):
        compiled(Delivery(tmp_path), "espdl")
