"""Folders of vendors: what a chip needs beyond its YAML is in one folder here, which nothing outside names.

A folder has a module ``offers``, whose lists say what it adds: ``KITS`` (:class:`narrowcast.bundle.kits.Kit`) and
others that the rooms which ask for them describe.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import narrowcast.chips

__all__ = ["offers"]


def offers(kind: str) -> tuple[Any, ...]:
    """What the folders offer of one kind, in the order of their names.

    Args:
        kind: name of a list in a folder's module ``offers``; a folder may have none.
    """
    folders = [entry.name for entry in pkgutil.iter_modules(narrowcast.chips.__path__) if entry.ispkg]
    found = [importlib.import_module(f"narrowcast.chips.{name}.offers") for name in sorted(folders)]
    return tuple(entry for module in found for entry in getattr(module, kind, ()))
