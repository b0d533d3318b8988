"""The one exception that a person sees: what is wrong, where, and what to do."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(Exception):
    """Something in the user's input that only the user can mend.

    The command line prints it as one line and exits with code 2.

    Args:
        what: what is wrong and where, e.g. ``"model.onnx is truncated"``.
        remedy: what to do about it, e.g. ``"export it again"``.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = " ".join(what.split())
        self.remedy = " ".join(remedy.split())
        super().__init__(f"{self.what}: {self.remedy}" if self.remedy else self.what)
