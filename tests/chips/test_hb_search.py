"""The vendor's search: its order, its stop, its score, and what a target leaves out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from builders import save, silu_net
from narrowcast.base.errors import UserError
from narrowcast.bundle.choosing import vendor_search
from narrowcast.calibrate import collect
from narrowcast.chips import load_target
from narrowcast.chips.rdk import calibration as module
from narrowcast.chips.rdk.calibration import hb_search
from narrowcast.engine import lower_qdq
from narrowcast.graph import Runner, load
from narrowcast.plan import draft


def search(tmp_path: Path, target: str) -> tuple[SimpleNamespace, list[np.ndarray], object]:
    net = load(save(silu_net(), tmp_path / "m.onnx"))
    inputs = list(np.random.default_rng(0).normal(0, 1, (5, 1, 3, 16, 16)).astype(np.float32))
    drafted = draft(net.ir.graph, load_target(target))
    proto = net.to_proto()
    statistics = collect(proto, drafted.wanted_statistics(), inputs)
    job = SimpleNamespace(
        model=net,
        drafted=drafted,
        statistics=statistics,
        float_model=proto,
        calibration=inputs,
        pairs={"y": "y"},
        threads=1,
    )  # fmt: skip
    found = hb_search(job)  # type: ignore[arg-type]
    record = found.record["hb_search"]
    entries = [SimpleNamespace(**entry) for entry in record["candidates"]]
    return SimpleNamespace(plans=found.plans, selected=record["selected"], candidates=entries), inputs, net


def test_symmetric_chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP", 2.0)
    found, inputs, net = search(tmp_path, "bayes-e")
    tried = [entry.name for entry in found.candidates if not entry.skipped]
    assert tried == ["max-percentile 0.99995", "max", "kl"] == list(found.plans)
    assert len(found.candidates) == 12
    reasons = {entry.skipped for entry in found.candidates if "per_channel" in entry.name}
    assert reasons == {"an activation has one scale here, not one a channel"}
    assert all("no zero point" in e.skipped for e in found.candidates if e.name.endswith(("0.99995, asymmetric",)))
    best = max((e for e in found.candidates if e.cosine is not None), key=lambda e: e.cosine or 0)
    assert found.selected == best.name
    x = Runner(net.to_proto()).run(inputs[0])["y"].reshape(-1).astype(np.float64)  # type: ignore[attr-defined]
    y = Runner(lower_qdq(net.ir, found.plans["max"][0])[0], level="basic").run(inputs[0])["y"].reshape(-1)  # type: ignore[attr-defined]
    entry = next(e for e in found.candidates if e.name == "max")
    assert entry.cosine == pytest.approx(float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)), abs=1e-6)


def test_it_stops_at_the_first_good_one(tmp_path: Path) -> None:
    found, _, _ = search(tmp_path, "bayes-e")
    assert [e.name for e in found.candidates if not e.skipped] == ["max-percentile 0.99995"] == list(found.plans)
    assert found.candidates[1].skipped == "an earlier one reached 0.995"
    assert found.selected == "max-percentile 0.99995"


def test_zero_points_where_the_chip_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP", 2.0)
    found, _, _ = search(tmp_path, "onnx")
    assert len(found.plans) == 6
    points = {name: {e.zero_point for e in plan.tensors.values()} for name, (plan, _) in found.plans.items()}
    assert points["max"] == {0} and len(points["max, asymmetric"]) > 1


def test_an_unknown_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown search 'hb_mapper': did you mean hb-mapper"):
        vendor_search(SimpleNamespace(), "hb_mapper")  # type: ignore[arg-type]
