"""What every command prints with ``--json``, as recorded, but for times, versions and paths."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import record

from narrowcast.cli import main
from narrowcast.zoo import sample

POSE, THINGS = sample("pose"), sample("classify")
WORDS = {
    "POSE": POSE.model, "PEOPLE": POSE.calibration, "PEOPLE_SEEN": POSE.validation, "KEYPOINTS": POSE.annotations,
    "CLASSIFY": THINGS.model, "THINGS": THINGS.calibration, "THINGS_SEEN": THINGS.validation, "LABELS": THINGS.labels,
}  # fmt: skip
#: In this order: later commands read what earlier ones wrote.
COMMANDS = (
    "targets",
    "check POSE --target esp32p4",
    "check POSE --target bernoulli2",
    "check CLASSIFY --target onnx",
    "quantize POSE --images PEOPLE --limit 8 --target esp32p4 --out pose --effort fast --method mse",
    "quantize CLASSIFY --images THINGS --limit 8 --target bayes-e --out classify --method mse",
    "inspect pose",
    "inspect pose --nodes",
    "inspect classify",
    "verify pose --images PEOPLE_SEEN --limit 1",
    "evaluate pose --images PEOPLE_SEEN --annotations KEYPOINTS --limit 4",
    "evaluate classify --images THINGS_SEEN --labels LABELS --limit 6",
    "analyze classify --images THINGS --limit 4 --layerwise",
    "predict classify THINGS_SEEN",
    "modify pose --remove-dequantize all --out integers",
    "deploy pose --kit espdl --out pose.espdl",
    "inspect pose.espdl",
    "deploy classify --kit rdk-x5 --out kit --images THINGS --limit 4",
)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """All commands, in one folder and this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("outputs"))
        yield {command: record.short(record.tidy(printed(command, patch))) for command in COMMANDS}


def printed(command: str, patch: pytest.MonkeyPatch) -> Any:

    words = [str(WORDS.get(word, word)) for word in shlex.split(command)]
    patch.setattr("sys.argv", ["narrowcast", *words, "--json"])
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (0, None), (command, stopped.value.code)
    return json.loads(plain(stream.getvalue()))


def plain(text: str) -> str:
    """Without folders of this machine."""
    return text.replace(f"{os.getcwd()}/", "").replace(f"{POSE.model.parent}/", "samples/")


def test_same_words(outputs: dict[str, Any], request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--record"):
        record.write(record.OUTPUTS, outputs)
        return
    known = record.read(record.OUTPUTS)
    if known.pop("environment") != record.environment():
        pytest.skip("recorded with other packages or on another processor")
    different = [command for command in COMMANDS if outputs[command] != known.get(command)]
    assert not different, json.dumps({command: outputs[different[0]] for command in different[:1]}, indent=1)
