"""Names that somebody else chose: on a terminal, in a report, in a script and in its settings."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from builders import model, save, weights
from narrowcast.analyze import analyze
from narrowcast.analyze.report import render
from narrowcast.base.errors import printable
from narrowcast.base.reading import read_yaml
from narrowcast.bundle import Bundle, quantize
from narrowcast.bundle.analysis import subject_of
from narrowcast.bundle.kits import deploy
from narrowcast.calibrate import ImageSet, images
from narrowcast.chips.rdk.export import prefix
from narrowcast.chips.rdk.hb_mapper import parse_hb_mapper
from narrowcast.cli.tables import print_json, print_table, say
from narrowcast.graph import Model, load
from narrowcast.plan import Pins
from narrowcast.vision import Preprocess
from narrowcast.zoo import sample

#: Each would leave a file named ``pwned`` behind, or end the quoting that it stands in.
NAMES = ("$(touch pwned)", "`touch pwned`", "a'; touch pwned; '", 'a"; touch pwned; "', "a\ntouch pwned\n", "-r --help")
ATTACKS = (
    "\x1b[2J\x1b]0;owned\x07", "\x9b31m", "[red]x[/red]", ":smile:", "line\nnarrowcast: fine", "\u202eevil", "\udc80",
)  # fmt: skip
MARKUP = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</title><script>x</script>", "</style>")
SPEC = Preprocess(16, 16)


def net(names: tuple[str, ...]) -> onnx.ModelProto:
    """A chain of convolutions with these names, of nodes and of tensors; the first is also the input's."""
    rng = np.random.default_rng(0)
    tensors = ["x", *(f"{name} out" for name in names)]
    nodes, constants = [], []
    for index, name in enumerate(names):
        constants.append(weights(rng, f"w{index}", 4, 3 if index == 0 else 4, 3, 3))
        nodes.append(helper.make_node("Conv", [tensors[index], f"w{index}"], [tensors[index + 1]], name=name))
        nodes[-1].attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))
    proto = model(nodes, constants, outputs=(tensors[-1], tensors[-2]))
    for node in proto.graph.node:
        node.input[:] = [names[0] if name == "x" else name for name in node.input]
    proto.graph.input[0].name = names[0]
    return proto


def bundle_of(names: tuple[str, ...], folder: Path) -> tuple[Bundle, ImageSet]:
    loaded: Model = replace(load(save(net(names), folder / "net.onnx"), keep_head=True), preprocess=SPEC)
    found = images(sample("classify").calibration, SPEC, limit=4)
    pins = Pins({names[1]: "int16"})
    return quantize(loaded, found, "bayes-e", out=folder / "b", method="minmax", effort="fast", pins=pins), found


def test_nothing_of_a_name_runs_in_the_build_script(tmp_path: Path) -> None:
    bundle, found = bundle_of(NAMES, tmp_path)
    package = tmp_path / "package"
    deploy(bundle, "rdk-x5", package, images=found)
    tools = tmp_path / "tools"
    tools.mkdir()
    log = tmp_path / "log"
    for tool in ("hb_mapper", "hb_model_modifier"):
        script = tools / tool
        script.write_text(f'#!/bin/bash\nprintf "%s\\0" {tool} "$@" END >> "{log}"\n')
        script.chmod(0o755)
    stem = prefix(bundle)
    (package / "model_output").mkdir()
    for name in (f"{stem}.bin", f"{stem}_modified.bin"):
        (package / "model_output" / name).touch()
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    subprocess.run([str(package / "build.sh")], env=environment, check=True, cwd=tmp_path)
    calls = [call.split("\0") for call in log.read_bytes().decode().split("\0END\0")]
    checker, _, modifier = calls[:3]
    assert checker[checker.index("--input-shape") + 1] == NAMES[0], "as it is, one argument"
    removed = [modifier[index + 1] for index, entry in enumerate(modifier) if entry == "-r"]
    assert len(removed) == 2 and all("touch pwned" in name for name in removed[1:])
    assert not list(tmp_path.rglob("pwned"))
    config = parse_hb_mapper(read_yaml(package / "hb_mapper.yaml")[0])
    assert config.input_parameters.input_name == (NAMES[0],)
    assert "\x1b" not in (package / "README.md").read_text()


@pytest.mark.parametrize("source", ["-rf.onnx", ".hidden.onnx", "a;b $(x).onnx", "../../x.onnx"])
def test_the_compiled_model_has_a_plain_name(pose_bundle: Bundle, source: str) -> None:
    manifest = replace(pose_bundle.manifest, model={**pose_bundle.manifest.model, "source": source})
    assert re.fullmatch(r"[A-Za-z0-9_][\w.-]*", prefix(Bundle(pose_bundle.path, manifest)))


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)


def test_nothing_of_a_name_is_markup_in_the_report(tmp_path: Path) -> None:
    bundle, found = bundle_of(MARKUP, tmp_path)
    result = analyze(subject_of(bundle, found), layers="products", wide=True)
    manifest = json.loads(bundle.manifest.to_json())
    manifest["model"]["source"] = manifest["target"] = MARKUP[0]
    text = render(result, manifest, bundle.plan)
    elements = Elements()
    elements.feed(text)
    assert elements.found.count("script") == elements.found.count("style") == 1
    assert "img" not in elements.found and text.count("alert(1)") > 4


def test_nothing_of_a_name_reaches_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ATTACKS:
        say(name)
        print_table(name, (name, "b"), [(name, name)])
        print_json({name: name})
        shown = capsys.readouterr().out
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\udc80]", shown), name
        assert "narrowcast: fine" not in shown.splitlines()
        assert json.loads(shown[shown.index("{\n") :]) == {name: name}, "JSON says the same"
    assert printable("[red] é 漢") == "[red] é 漢"
    say("[red]x :smile:")
    assert capsys.readouterr().out == "[red]x :smile:\n"
