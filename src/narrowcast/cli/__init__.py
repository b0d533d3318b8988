"""The command line: parses, calls the same functions as the Python API, prints."""

from __future__ import annotations

import signal
import sys

from narrowcast.base.errors import UserError, printable
from narrowcast.base.progress import Interrupted, interrupt

#: Exit codes: of a person's mistake, and of Ctrl-C as shells have it.
_MISTAKE, _INTERRUPTED = 2, 130


def main() -> None:
    """Run the command line; a user's mistake is one line and exit code 2, Ctrl-C one line and 130."""
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        from narrowcast.cli.app import app  # slow: Ctrl-C is already known

        app()
    except UserError as error:
        _fail(str(error), _MISTAKE)
    except Interrupted as error:
        _fail(str(error), _INTERRUPTED)
    except OSError as error:
        _fail(str(UserError(f"{error.filename or 'the file system'}: {error.strerror or error}")), _MISTAKE)
    finally:
        signal.signal(signal.SIGINT, before)


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"narrowcast: {printable(' '.join(message.split()))}\n")
    sys.exit(code)
