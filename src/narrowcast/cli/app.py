"""The entry point. The commands register themselves when their modules are imported, in the order of ``--help``."""

from __future__ import annotations

import signal
import sys

# isort: off
from narrowcast.cli import commands_job  # noqa: F401
from narrowcast.cli import commands_accuracy  # noqa: F401
from narrowcast.cli import commands_board  # noqa: F401

# isort: on
from narrowcast.cli.interrupt import Interrupted, interrupt
from narrowcast.cli.root import app
from narrowcast.errors import UserError

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; a user's mistake is one line and exit code 2."""
    signal.signal(signal.SIGINT, interrupt)
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except Interrupted as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'the file system'}: {error.strerror or error}")


def _fail(message: str) -> None:
    sys.stderr.write(f"narrowcast: {' '.join(message.split())}\n")
    sys.exit(2)
