"""Where every node of a model would run on a chip, and what its runtime would refuse, before anything is quantized."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from narrowcast.base.errors import UserError
from narrowcast.bundle.kits import kits_of
from narrowcast.calibrate import TensorStatistics
from narrowcast.chips import CheckRow, RuntimeRow, Target, check_rows, load_target
from narrowcast.engine.integer import lower_integer
from narrowcast.graph import Model, load
from narrowcast.plan import Pins, draft, finish

__all__ = ["Checked", "check", "findings"]


@dataclass(frozen=True)
class Checked:
    """What :func:`check` found.

    Attributes:
        target: the chip.
        rows: one a node in graph order, and those that the vendor's tool adds.
        runtime: what the runtime would refuse or compute wrongly, beyond what the table of operators says.
    """

    target: Target
    rows: list[CheckRow]
    runtime: list[RuntimeRow]

    def __repr__(self) -> str:
        count = f"{len(self.rows)} nodes, {len(self.refused)} cannot run, {len(self.elsewhere)} elsewhere"
        return f"<Checked for {self.target.name}: {count}>"

    @property
    def refused(self) -> list[CheckRow]:
        """Nodes that the chip cannot run."""
        return [row for row in self.rows if not row.supported]

    @property
    def elsewhere(self) -> list[CheckRow]:
        """Nodes that run, but not on the chip's first unit."""
        return [row for row in self.rows if row.supported and row.on != self.target.units[0]]

    @property
    def runs(self) -> bool:
        """Whether the chip runs the whole model rightly."""
        return not self.refused and not any(row.severity == "error" for row in self.runtime)


def check(model: Model | str | Path, target: str = "onnx", *, runtime: str | None = None) -> Checked:
    """Say where every node will run, and what to do about those that cannot.

    Args:
        model: from :func:`narrowcast.load`, or the path of one.
        target: name of a target, or the path of a target file.
        runtime: version of the chip's runtime; the newest known by default.

    Raises:
        UserError: a bad model or an unknown target or version.
    """
    chip = load_target(target)
    loaded = model if isinstance(model, Model) else load(model)
    rows = check_rows(loaded.ir.graph, chip, runtime)
    refused = {row.node for row in rows if not row.supported}
    return Checked(chip, rows, [row for row in findings(loaded, chip, runtime) if row.node not in refused])


def findings(model: Model, chip: Target, runtime: str | None = None, pins: Pins | None = None) -> list[RuntimeRow]:
    """What would go wrong behind the table of operators, said before anything slow starts.

    The whole job is rehearsed without images: every tensor gets the same range, the graph is lowered to integers, and
    the chip's own file is made. So what is not refused here is not refused later for a form that nobody thought of.

    Args:
        model: from :func:`narrowcast.load`.
        chip: the target.
        runtime: version of its runtime; the newest known by default.
        pins: what the person fixed. Only what they leave in float counts here: a plan whose types do not fit the
            chip's file is still good for the exact integers, and a note says so.
    """
    left = pins
    if pins is not None:
        left = replace(pins, nodes={name: kind for name, kind in pins.nodes.items() if kind == "float32"}, tensors={})
    checks = [kit.check for kit in kits_of(chip) if kit.check is not None]
    rows = [row for check in checks for row in check(model.ir, chip, runtime)]
    if any(row.severity == "error" for row in rows):
        return rows
    try:
        _rehearse(model, chip, runtime, left)
    except UserError as error:
        node = next((n for n in model.ir.graph if error.what.startswith(f"{n.name}:")), None)
        name, op_type = ("--", "--") if node is None else (str(node.name), node.op_type)
        problem = error.what.removeprefix(f"{name}:").strip()
        rows.append(RuntimeRow(name, op_type, "--", "error", problem, error.remedy))
    return rows


def _rehearse(model: Model, chip: Target, runtime: str | None, pins: Pins | None) -> None:
    try:
        drafted = draft(model.ir.graph, chip, pins, runtime)
    except UserError:  # an operator that the table refuses, or a wrong pin: said where the job begins
        return
    anything = TensorStatistics()
    anything.add(np.asarray([-4, 4], np.float32), 0, False)
    plan, _ = finish(drafted, defaultdict(lambda: anything), "minmax")
    lower_integer(model.ir, plan, chip)
    for kit in kits_of(chip):
        if kit.rehearse is not None:
            kit.rehearse(model, plan, chip, runtime)
