"""A chip with a file format of its own is one folder and one YAML: a toy one, counted."""

from __future__ import annotations

from pathlib import Path

import pytest

import narrowcast as nc
import narrowcast.chips
from builders import save, silu_net
from narrowcast.base.errors import UserError
from narrowcast.bundle.kits import kits
from narrowcast.cli.inspect import inspect
from narrowcast.zoo import sample

CHIP = "extends: esp32p4\nname: toychip\ntitle: Toy\nkits: [toy]\n"
OFFERS = '''
from dataclasses import asdict
from narrowcast.base.errors import UserError
from narrowcast.bundle.kits import Delivery, Description, Kit, Table
from narrowcast.chips import RuntimeRow

def data(plan):
    return "\\n".join(f"{name} {placement.type}" for name, placement in plan.nodes.items()).encode()

def deploy(request):
    request.out.write_bytes(data(request.bundle.plan))
    return Delivery(request.out, steps=("toy run",))

def files(origin, runtime):
    return lambda model, plan, target, factors: {"model.toy": data(plan)}

def check(model, target, runtime):
    wide = [node for node in model.graph if node.op_type == "Softmax"]
    return [RuntimeRow(node.name, "Softmax", "--", "error", "toys have none", "cut it off") for node in wide]

def rehearse(model, plan, target, runtime):
    if model.ir.graph.inputs[0].shape[2] > 16:
        raise UserError("toys see 16 rows at most", "use a smaller input")

def describe(path):
    rows = [tuple(line.split()) for line in path.read_text().splitlines()]
    table = Table(("node", "type"), rows, 2)
    return Description((f"{path.name}: a toy",), table, Table(("nodes",), [(str(len(rows)),)]), table, {"nodes": rows})

KITS = (Kit("toy", "a toy's file", deploy, ".toy", files, check, rehearse, describe),)
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of the toy's chip, whose vendor's folder stands beside those of the package."""
    folder = tmp_path / "vendors" / "toy"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "offers.py").write_text(OFFERS)
    (tmp_path / "toychip.yaml").write_text(CHIP)
    monkeypatch.setattr(narrowcast.chips, "__path__", [*narrowcast.chips.__path__, str(folder.parent)])
    monkeypatch.setattr("narrowcast.bundle.kits.kits", kits.__wrapped__)
    return str(tmp_path / "toychip.yaml")


def test_a_format_is_one_folder(toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = sorted(sample("classify").calibration.iterdir())[:3]
    bundle = nc.quantize(save(silu_net(), tmp_path / "a.onnx"), photos, toy, out=tmp_path / "b", effort="fast")
    made = nc.deploy(bundle, out=tmp_path / "a.toy")
    assert made.steps == ("toy run",)
    assert made.path.read_bytes() == (bundle.path / "model.toy").read_bytes() != b""
    inspect(made.path, True, False)
    printed = capsys.readouterr().out
    assert printed.startswith("a.toy: a toy") and all(name in printed for name in bundle.plan.nodes)


def test_what_a_format_refuses_is_said_by_check(toy: str, tmp_path: Path) -> None:
    found = nc.check(sample("classify").model, toy)
    assert not found.runs and found.runtime[0].problem == "toys have none"
    large = nc.check(save(silu_net(shape=(1, 3, 32, 32)), tmp_path / "large.onnx"), toy)
    assert [row.problem for row in large.runtime] == ["toys see 16 rows at most"]
    with pytest.raises(UserError, match="cannot run"):
        nc.quantize(sample("classify").model, sample("classify").calibration, toy)
