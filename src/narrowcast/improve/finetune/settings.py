"""What a person may choose about finetuning, and the optional package that it needs."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from typing import Any

from narrowcast.base.errors import UserError

#: ``"branches"``: what serves one output only; ``"all"``: every weight.
SCOPES = ("branches", "all")
#: With fewer images there is nothing to judge by.
LEAST_IMAGES = 8


@dataclass(frozen=True)
class Settings:
    """How to finetune.

    Attributes:
        steps: of the optimizer.
        batch: images a step.
        scope: one of :data:`SCOPES`.
        rate: largest change of a weight in a step of the optimizer, in steps of its encoding.
        scale_rate: the same for the binary logarithm of the scales of activations; 0 leaves them as they are.
        vary: show other parts of the images at every visit, larger and smaller, brighter and darker, mirrored.
        checks: how often the result so far is judged.
        seed: of the order of the images and of what is shown of them.
        device: of torch; ``"auto"`` for a GPU where torch sees one.
    """

    steps: int = 200
    batch: int = 4
    scope: str = "all"
    rate: float = 0.01
    scale_rate: float = 0.0
    vary: bool = True
    checks: int = 4
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"{self.steps} steps change nothing", "give 1 or more")
        if self.batch < 1:
            raise UserError(f"a batch of {self.batch} images is empty", "give 1 or more")
        if not 0 < self.rate <= 1:
            raise UserError(f"a rate of {self.rate} is outside 0..1", "use 0.002 to 0.02")
        if not 0 <= self.scale_rate <= 1:
            raise UserError(f"a scale rate of {self.scale_rate} is outside 0..1", "use 0 to 0.01")
        if self.scope not in SCOPES:
            raise UserError(f"unknown scope {self.scope!r}", f"use {' or '.join(SCOPES)}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def require_torch() -> None:
    """Raise now if torch is missing."""
    if importlib.util.find_spec("torch") is None:
        raise UserError("finetune needs torch", "pip install 'narrowcast[finetune]'")
