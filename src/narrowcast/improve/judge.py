"""The loss that the steps of recovery are chosen by: task units, on images that are given for judging."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from narrowcast.analyze.task_units import TaskError, TaskJudge, combine
from narrowcast.graph.model import Model
from narrowcast.graph.run import Runner
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.net import with_outputs

__all__ = ["Judge", "judged_pairs", "loss_of"]

#: Cells of an image that are looked at, at most: without masks, which cost little, and with masks. Every cell that
#: decode might keep counts, not only the best of each object: a few images hold too few objects to tell methods apart.
CELLS, MASKS = 300, 60
#: What an error counts towards the loss. A judgement, not a fit: in a few runs of yolo11n-pose keypoint AP fell about
#: as much as 1 - OKS rose and box AP far less than 1 - IoU; probabilities that move together reorder nothing.
WEIGHTS = {"oks_loss": 1.0, "mask_iou_loss": 1.0, "iou_loss": 0.5, "probability": 0.25, "candidate_probability": 0.25}


def loss_of(error: TaskError) -> float:
    """One number to choose by, 0 or more: weighted losses of objects, the divergence of a classifier, or the noise."""
    if error.divergence is not None or error.noise_ratio is not None:
        return error.loss
    parts = ((getattr(error, name), weight) for name, weight in WEIGHTS.items())
    return float(sum(value * weight for value, weight in parts if value is not None))


def judged_pairs(model: Model, encoded: Container[str]) -> dict[str, str]:
    """What is judged, float name to QDQ name: the outputs, or the logits where probabilities leave.

    A probability of a few images says next to nothing of the classes that they do not show.

    Args:
        model: the user's model.
        encoded: tensors that exist as integers and are dequantized in the QDQ graph.
    """
    last = model.ir.graph.outputs[0].producer()
    if model.task != "classify" or last is None or facts(last).kind is not Kind.SOFTMAX or last.inputs[0] is None:
        return {name: name for name in model.output_names}
    logits = str(last.inputs[0].name)
    return {logits: f"{logits}_dequantized" if logits in encoded else logits}


class Judge:
    """Float outputs of a few images, and how far quantized outputs are from them.

    Args:
        model: the user's model.
        pairs: tensor of the float graph to the tensor of the QDQ graph that stands for it: the outputs, or the logits
            of a classifier.
        inputs: model inputs to judge on.
        threads: of onnxruntime; 0 for all cores.
    """

    def __init__(
        self, model: Model, pairs: Mapping[str, str], inputs: Sequence[NDArray[np.float32]], threads: int = 0
    ) -> None:
        self.pairs, self.inputs, self.threads = dict(pairs), list(inputs), threads
        runner = Runner(with_outputs(model.to_proto(), list(pairs)), threads, "basic")
        references = [runner.run(tensor, list(pairs)) for tensor in self.inputs]
        logits = tuple(pairs) != model.output_names
        image = model.preprocess
        self.task = TaskJudge(
            model.task, model.head, references, softmax_missing=model.softmax_missing or logits,
            input_size=(image.height, image.width), most=MASKS if model.task == "segment" else CELLS, overlap=1.0,
        )  # fmt: skip

    def error(self, outputs: Iterable[Sequence[NDArray[Any]]]) -> TaskError:
        """Error over all images; each image's outputs in the order of ``pairs``."""
        names = list(self.pairs)
        return combine(
            self.task.judge(index, dict(zip(names, values, strict=True))) for index, values in enumerate(outputs)
        )

    def error_of(self, proto: onnx.ModelProto) -> TaskError:
        """Error of a QDQ graph."""
        wanted = list(self.pairs.values())
        runner = Runner(with_outputs(proto, wanted), self.threads, "basic")
        return self.error(list(runner.run(tensor, wanted).values()) for tensor in self.inputs)
