"""Where every node of a model would run on a chip, and what its runtime would refuse, before anything is quantized."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from narrowcast.deploy.espdl import RuntimeRow, check_runtime
from narrowcast.graph import Model, load
from narrowcast.targets import CheckRow, Target, check_rows, load_target

__all__ = ["Checked", "check"]


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
    found = check_runtime(loaded.ir, chip, None, runtime) if "espdl" in chip.kits else []
    return Checked(chip, rows, [row for row in found if row.node not in refused])
