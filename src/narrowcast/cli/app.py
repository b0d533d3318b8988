"""The application with all its commands, in the order of ``--help``: they register when their modules are imported."""

from __future__ import annotations

# isort: off
from narrowcast.cli import demo  # noqa: F401
from narrowcast.cli import check  # noqa: F401
from narrowcast.cli import quantize  # noqa: F401
from narrowcast.cli import inspect  # noqa: F401
from narrowcast.cli import evaluate  # noqa: F401
from narrowcast.cli import analyze  # noqa: F401
from narrowcast.cli import tune  # noqa: F401
from narrowcast.cli import verify  # noqa: F401
from narrowcast.cli import deploy  # noqa: F401

# isort: on
from narrowcast.cli.options import app

__all__ = ["app"]
