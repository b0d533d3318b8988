"""The optional package that finetuning needs."""

from __future__ import annotations

import importlib.util

from narrowcast.base.errors import UserError

__all__ = ["require_torch"]


def require_torch() -> None:
    """Raise now if torch is missing.

    Raises:
        UserError: it is.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError("finetune needs torch", "pip install 'narrowcast[finetune]'")
