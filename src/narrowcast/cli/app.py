"""The application with all its commands, in the order of ``--help``: they register when their modules are imported."""

from __future__ import annotations

# isort: off
from narrowcast.cli import commands_job  # noqa: F401
from narrowcast.cli import commands_accuracy  # noqa: F401
from narrowcast.cli import commands_board  # noqa: F401

# isort: on
from narrowcast.cli.root import app

__all__ = ["app"]
