"""What a family of operators is to the writer, to the reader and to a version of the runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from narrowcast.chips.schema import Target
from narrowcast.deploy.espdl.assembly import Assembly
from narrowcast.deploy.espdl.file import EspdlNode
from narrowcast.deploy.espdl.restoring import Restoring
from narrowcast.plan.types import Plan

__all__ = ["Fact", "Family", "Severity"]

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Fact:
    """Something that not every version of the runtime does right.

    Attributes:
        concerns: whether a node of a model needs it, by a plan or, without one, by what the target plans.
        problem: one clause.
        remedy: what to do.
        since: version from which on it works.
        until: version up to which it is known to.
        severity: of a finding: it would not run or compute something else, or it may.
    """

    concerns: Callable[[ir.Node, Plan | None, Target], bool]
    problem: str
    remedy: str
    since: tuple[int, ...] = ()
    until: tuple[int, ...] = (1 << 30,)
    severity: Severity = "error"

    def works(self, version: tuple[int, ...]) -> bool:
        """Whether it is right in a version."""
        return self.since <= version and version[: len(self.until)] <= self.until


@dataclass(frozen=True)
class Family:
    """Operators that a file holds in the same way.

    Attributes:
        operators: names, ONNX's and ESP-DL's.
        read: a node of a file into a model.
        write: a node of a model into a file; ``None`` where no model has it, or another node is written instead.
        axes: ``"last"``: its tensors have their channels last; ``"any"``: one tensor, in any order of axes;
            ``"own"``: whatever its rules say.
        facts: about versions of the runtime.
    """

    operators: tuple[str, ...]
    read: Callable[[Restoring, EspdlNode], None]
    write: Callable[[Assembly, ir.Node], None] | None = None
    axes: Literal["last", "any", "own"] = "own"
    facts: tuple[Fact, ...] = ()
