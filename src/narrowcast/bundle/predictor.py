"""From an image to a result, with a float model or a quantized one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.graph.join import Join
from narrowcast.graph.model import Model
from narrowcast.graph.run import Runner
from narrowcast.vision.decode import decode, decode_classification
from narrowcast.vision.heads import HeadSpec, OutputEncoding
from narrowcast.vision.preprocess import Geometry, Preprocess, preprocess, read_image
from narrowcast.vision.types import Classification, Detections

__all__ = ["Predictor"]


@dataclass(frozen=True)
class Predictor:
    """A graph that runs, with what surrounds it.

    Attributes:
        task: of the model.
        head: layout of the raw outputs, ``None`` for a whole graph.
        classes: class names, by index.
        skeleton: limbs as pairs of keypoint indices.
        preprocess: what happens to an image before the input.
        runner: runs the graph.
        softmax_missing: class scores leave as logits.
        encodings: how integer outputs are read; empty when the outputs are float.
        digest: SHA-256 of the graph's file, to tell graphs apart.
        join: makes the user's outputs from the graph's; ``None`` where they are the same.
    """

    task: str
    head: HeadSpec | None
    classes: tuple[str, ...]
    skeleton: tuple[tuple[int, int], ...]
    preprocess: Preprocess
    runner: Runner
    softmax_missing: bool = False
    encodings: Mapping[str, OutputEncoding] | None = None
    digest: str = ""
    join: Join | None = None

    def __repr__(self) -> str:
        return f"<Predictor: {self.task}, {self.preprocess.height}x{self.preprocess.width}>"

    @classmethod
    def of_model(cls, model: Model, threads: int = 0) -> Predictor:
        """Run a float model."""
        runner = Runner(model.to_proto(), threads)
        return cls(
            model.task, model.head, model.classes, model.skeleton, model.preprocess, runner, model.softmax_missing,
            digest=model.sha256, join=model.join,
        )  # fmt: skip

    @property
    def class_count(self) -> int:
        """How many classes the model tells apart; 0 for a whole graph."""
        if self.task == "classify":
            return int(np.prod(self.runner.session.get_outputs()[0].shape))
        return self.head.num_classes if self.head is not None else 0

    def run(self, tensor: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Raw outputs of one model input, by name: those of the user's graph, in order."""
        return self.joined(self.runner.run(tensor))

    def joined(self, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The user's outputs from those of the graph; what is joined becomes float32."""
        if self.join is None:
            return dict(outputs)
        codes = {name: code for name, code in (self.encodings or {}).items() if name in self.join.parts}
        real = {name: codes[name].real(values) for name, values in outputs.items() if name in codes}
        return self.join.run({**outputs, **real})

    def decode(
        self, outputs: Mapping[str, NDArray[Any]], geometry: Geometry, **options: Any
    ) -> Detections | Classification:
        """Raw outputs to a result; options as :func:`narrowcast.vision.decode.decode`, or ``top_k``.

        Raises:
            UserError: the graph was left whole, so that nothing is known of its outputs.
        """
        if self.task == "classify":
            name, scores = next(iter(outputs.items()))
            encoding = (self.encodings or {}).get(name)
            if encoding is not None:
                scores = encoding.real(scores)
            return decode_classification(scores, options.get("top_k", 5), self.softmax_missing)
        if self.head is None:
            raise UserError("the outputs of this model are not known", "use run() and decode them yourself")
        options.pop("top_k", None)
        return decode(outputs, self.head, geometry, encodings=self.encodings, **options)

    def predict(self, image: str | Path | NDArray[np.uint8], **options: Any) -> Detections | Classification:
        """Detect or classify.

        Args:
            image: file, or uint8 (H, W, 3) BGR array.
            options: ``confidence``, ``iou``, ``max_detections``, ``class_agnostic``, or ``top_k``.

        Raises:
            UserError: the file is no readable image.
        """
        try:
            pixels = image if isinstance(image, np.ndarray) else read_image(image)
            tensor, geometry = preprocess(pixels, self.preprocess)
        except ValueError as error:
            raise UserError(str(error), "give another image") from error
        return self.decode(self.run(tensor), geometry, **options)
