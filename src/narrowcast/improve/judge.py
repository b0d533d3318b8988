"""The loss that the steps of recovery are chosen by: task units, on images that are given for judging."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from narrowcast.graph.model import Model
from narrowcast.graph.run import Runner
from narrowcast.ops.net import with_outputs
from narrowcast.tasks import Look, TaskError, TaskJudge, combine

__all__ = ["Judge", "judged_pairs"]


def judged_pairs(model: Model, encoded: Container[str]) -> dict[str, str]:
    """What is judged, float name to QDQ name: the outputs, or the logits where probabilities leave.

    A probability of a few images says next to nothing of the classes that they do not show.

    Args:
        model: the user's model.
        encoded: tensors that exist as integers and are dequantized in the QDQ graph.
    """
    last = model.ir.graph.outputs[0].producer()
    if last is None or last.op_type != model.meaning.last or last.inputs[0] is None:
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
        image, meaning = model.preprocess, model.meaning
        meaning = meaning.without(meaning.last) if tuple(pairs) != model.output_names else meaning
        how = Look((image.height, image.width), most=meaning.judged, overlap=1.0)
        self.task = TaskJudge(meaning, references, how)

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
