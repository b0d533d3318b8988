"""Operators are named in one place, and every kind of them has every rule."""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

import onnx

import narrowcast
from narrowcast.chips.schema import Limits
from narrowcast.chips.support import _CHECKS
from narrowcast.engine.integer import lowering
from narrowcast.engine.reference import walk
from narrowcast.ops.facts import Kind, known

SOURCE = Path(narrowcast.__file__).parent
#: What ONNX knows, and our own.
OPERATORS = {schema.name for schema in onnx.defs.get_all_schemas()} | {entry.name for entry in known()}
#: Where names of operators belong: the table, the chips' own formats and words, the forms that exporters write, and
#: what a task says its heads end in, or do not.
ALLOWED = ("ops/", "chips/", "vendors/", "graph/forms.py", "tasks/classify.py", "tasks/maps.py")


@cache
def trees() -> tuple[tuple[str, ast.Module], ...]:
    return tuple((str(file.relative_to(SOURCE)), ast.parse(file.read_text())) for file in sorted(SOURCE.rglob("*.py")))


def exported(tree: ast.Module) -> set[ast.AST]:
    """The strings of ``__all__``."""
    lists = [n for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"]
    return {node for entry in lists for node in ast.walk(entry)}


def test_no_operator_is_named_outside_its_home() -> None:
    found = [
        f"{file}:{node.lineno} names {node.value}"
        for file, tree in trees()
        if not file.startswith(ALLOWED)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in OPERATORS and node not in exported(tree)
    ]
    assert not found, found


def test_few_places_compare_operators() -> None:
    found = [
        f"{file}:{node.lineno}"
        for file, tree in trees()
        if not file.startswith(("vendors/", "chips/esp", "chips/rdk"))
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and any(getattr(side, "attr", getattr(side, "id", "")) == "op_type" for side in (node.left, *node.comparators))
    ]
    assert len(found) < 30, found


def test_every_kind_has_its_rules() -> None:
    kinds = set(Kind) - {Kind.FLOAT}
    assert set(lowering._RULES) == kinds and set(walk._RULES) == kinds
    for entry in known():
        assert (entry.kind is Kind.FUNCTION) <= (entry.function is not None), entry.name
        assert entry.is_product == (entry.weight_axis is not None), entry.name


def test_the_table_needs_no_heavy_import() -> None:
    assert "torch" not in sys.modules


def test_every_limit_is_checked() -> None:
    assert set(_CHECKS) == set(Limits.model_fields)
