"""What is learned from: for every view of an image what the float model gives, and what enters the trained part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from narrowcast.graph.run import Runner
from narrowcast.improve.finetune.network import Network
from narrowcast.improve.finetune.regions import Region

__all__ = ["Lesson", "lessons"]

Tensor = Any


@dataclass(frozen=True)
class Lesson:
    """One view.

    Attributes:
        entering: values at the frontier, rounded as the plan says.
        teacher: tensors of the float model.
    """

    entering: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]


def lessons(
    network: Network, region: Region, teacher: Runner, targets: Sequence[str], inputs: Iterable[NDArray[np.float32]]
) -> Iterator[Lesson]:
    """Run the float model, and the part of the quantized one that is not trained, once for each input.

    Args:
        network: quantized.
        region: what is trained.
        teacher: the float model, with ``targets`` among its outputs.
        targets: its tensors that are learned.
        inputs: of both models.
    """
    for tensor in inputs:
        expected = {
            name: torch.from_numpy(np.array(x)).to(network.device)
            for name, x in teacher.run(tensor, list(targets)).items()
        }
        with torch.no_grad():
            image = network.enter(teacher.input_name, torch.from_numpy(tensor).to(network.device))
            entering = network.run({teacher.input_name: image}, region.before, region.frontier)
        yield Lesson(entering, expected)
