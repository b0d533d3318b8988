"""What the board gets."""

from narrowcast.deploy.make import ESPDL_FILE, quantize

__all__ = ["ESPDL_FILE", "quantize"]
