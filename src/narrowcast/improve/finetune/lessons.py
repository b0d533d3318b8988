"""What is learned from: for every image what the float model gives, and what enters the trained part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from narrowcast.calibrate.images import ImageSet
from narrowcast.calibrate.statistics import with_outputs
from narrowcast.graph.run import Runner
from narrowcast.improve.finetune.network import Network
from narrowcast.improve.finetune.regions import Region
from narrowcast.plan.types import Encoding
from narrowcast.progress import track

__all__ = ["Lesson", "lessons"]

Tensor = Any


@dataclass(frozen=True)
class Lesson:
    """One image.

    Attributes:
        entering: values at the frontier; integers where they are 8-bit codes.
        teacher: outputs of the float model.
    """

    entering: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]

    def values(self, encodings: Mapping[str, Encoding], device: str) -> dict[str, Tensor]:
        """Real values at the frontier."""
        return {name: _real(x.to(device), encodings.get(name)) for name, x in self.entering.items()}

    def expected(self, device: str) -> dict[str, Tensor]:
        """Outputs of the float model."""
        return {name: x.to(device) for name, x in self.teacher.items()}


def lessons(
    network: Network,
    region: Region,
    floating: onnx.ModelProto,
    targets: Sequence[str],
    images: ImageSet,
    *,
    flip: bool,
    threads: int = 0,
) -> list[Lesson]:
    """Run the float model, and the part of the quantized one that is not trained, once for each image.

    Args:
        network: quantized.
        region: what is trained.
        floating: the teacher.
        targets: its tensors that are learned.
        images: to learn from.
        flip: also mirrored.
        threads: of onnxruntime; 0 for all cores.
    """
    teacher = Runner(with_outputs(floating, list(targets)), threads, "basic")
    wide = 3 if images.preprocess.layout == "NCHW" else 2
    count = len(images) * (2 if flip else 1)
    found = []
    for tensor in track(_views(images, wide if flip else None), "float", count):
        expected = {name: torch.from_numpy(np.array(x)) for name, x in teacher.run(tensor, list(targets)).items()}
        with torch.no_grad():
            image = torch.from_numpy(tensor).to(network.device)
            values = {teacher.input_name: network.enter(teacher.input_name, image)}
            entering = network.run(values, region.before, region.frontier)
        encodings = network.plan.tensors
        found.append(Lesson({name: _stored(x, encodings.get(name)) for name, x in entering.items()}, expected))
    return found


def _views(images: ImageSet, axis: int | None) -> Iterator[NDArray[np.float32]]:
    for tensor in images:
        yield np.ascontiguousarray(tensor)
        if axis is not None:
            yield np.ascontiguousarray(np.flip(tensor, axis))


def _is_short(encoding: Encoding | None) -> bool:
    return encoding is not None and encoding.dtype in ("int8", "uint8")


def _stored(x: Tensor, encoding: Encoding | None) -> Tensor:
    """Codes of an 8-bit tensor, a quarter of the memory; everything else as it is."""
    if encoding is None or not _is_short(encoding):
        return x.cpu()
    codes = torch.round(x / float(encoding.scales)) + encoding.zero_point
    return codes.to(torch.int8 if encoding.dtype == "int8" else torch.uint8).cpu()


def _real(x: Tensor, encoding: Encoding | None) -> Tensor:
    if encoding is None or not _is_short(encoding):
        return x
    return (x.to(torch.float32) - encoding.zero_point) * float(np.float32(encoding.scales))
