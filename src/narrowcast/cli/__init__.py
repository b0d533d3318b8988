"""The command line: parses, calls the same functions as the Python API, prints."""

from narrowcast.cli.app import main

__all__ = ["main"]
