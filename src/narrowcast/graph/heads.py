"""What the outputs of a graph mean: a head found and cut off here, one cut off before, one that a person names.

And whether the prepared graph computes what the original computes: measured, not assumed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from narrowcast.base.errors import UserError, nearest
from narrowcast.base.reading import parse_json, reading, typed
from narrowcast.graph import ends, files
from narrowcast.graph.run import Runner
from narrowcast.ops.net import dims
from narrowcast.tasks import TASKS, UNSUPPORTED, Cut, Given, HeadSpec, Task, head_at, meaning_of, whole_graph

__all__ = [
    "HEAD_KEY", "Asked", "Meaning", "as_read", "compare", "differences", "find", "outputs_of", "parse", "random_image",
    "violation",
]  # fmt: skip

#: Metadata of a prepared file: the head that was cut off, as JSON.
HEAD_KEY = "narrowcast.head"
#: What a person calls the layout of keypoints.
_KEYPOINTS = "keypoints"


@dataclass(frozen=True)
class Asked:
    """What a person says of the outputs; all of it may be left out.

    Attributes:
        text: as it was said.
        task: name of one.
        keypoint_shape: (keypoints, 2 or 3).
        named: output as in :class:`HeadSpec` to the name in the file.
    """

    text: str = ""
    task: str = ""
    keypoint_shape: tuple[int, int] | None = None
    named: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Meaning:
    """What the outputs mean.

    Attributes:
        task: that they are for.
        note: what was done, or why nothing.
        given: of a head that was cut off before, our output to the user's.
    """

    task: Task
    note: str
    given: Mapping[str, Given] = field(default_factory=dict)


def parse(text: str) -> Asked:
    """What a person writes: a task, ``keypoints=17x3``, ``box_s8=output0``, with commas between.

    Raises:
        UserError: an unknown task, no layout of keypoints, an output named twice.
    """
    task, shape, named = "", None, dict[str, str]()
    for part in filter(None, (part.strip() for part in text.split(","))):
        ours, equals, theirs = (word.strip() for word in part.partition("="))
        if not equals:
            known = [name for name, task_there in TASKS.items() if task_there.kind]
            if ours not in known:
                raise UserError(f"--head: no task with a head is called {ours!r}", f"use {', '.join(known)}")
            task = ours
        elif ours == _KEYPOINTS:
            found = re.fullmatch(r"([1-9]\d{0,3})x([23])", theirs)
            if found is None:
                raise UserError(f"--head: {part} is not understood", f"write {_KEYPOINTS}=17x3: points, values of each")
            shape = int(found[1]), int(found[2])
        elif not theirs or ours in named or theirs in named.values():
            raise UserError(f"--head: {part} is not understood", "write each output once, such as box_s8=output0")
        else:
            named[ours] = theirs
    return Asked(text, task, shape, named)


def find(
    model: ir.Model,
    expected: Mapping[str, NDArray[Any]],
    image: NDArray[np.float32],
    metadata: Mapping[str, str],
    asked: Asked,
    classes: int,
    source: str,
) -> Meaning:
    """What the outputs mean; the decode arithmetic of a known head is cut off in place.

    Args:
        model: prepared graph.
        expected: what the user's graph gives for the image.
        image: model input.
        metadata: of the file.
        asked: what a person says, which counts more.
        classes: how many class names are known.
        source: file name, for messages.

    Raises:
        UserError: wrong metadata, or no such head as the person says.
    """
    said = asked.task or metadata.get("task", "")
    whole = whole_graph(ends.ends_of(model.graph, task=said))
    if HEAD_KEY in metadata and not asked.text:
        return Meaning(_written_head(metadata[HEAD_KEY], model, source), "the decode head was cut off before")
    if said in UNSUPPORTED:
        return Meaning(whole, whole.kept or f"{UNSUPPORTED[said]}: the graph stays whole")
    shape = asked.keypoint_shape or _keypoint_shape(metadata, source)
    _check_named(asked.named, expected)
    looked = ends.ends_of(model.graph, task=said, keypoint_shape=shape, classes=classes, named=asked.named)
    found = head_at(looked, asked.task)
    if asked.named and isinstance(found, Cut) and not found.given:
        found = "its outputs are decoded, not raw"
    worst = found if isinstance(found, str) else _cut_off(model, found, expected, image)
    if isinstance(found, Cut) and not worst:
        count = len(found.values)
        done = f"cut off before: {count} raw outputs" if found.given else f"decode cut off after {count} outputs"
        return Meaning(found.task, f"{found.task.kind} head recognised, {done}", found.given)
    if asked.text:
        raise UserError(f"{source}, --head {asked.text}: {worst}", "narrowcast inspect shows its outputs")
    what = "no decode head recognised" if isinstance(found, str) else "the decode head is not the known one"
    return Meaning(whole, whole.kept or f"{what} ({worst}): the graph stays whole")


def _check_named(named: Mapping[str, str], outputs: Mapping[str, Any]) -> None:
    for theirs in named.values():
        if theirs not in outputs:
            raise UserError(f"--head: the model has no output {theirs}", nearest(theirs, outputs, 0.3))


def _cut_off(
    model: ir.Model, found: Cut, expected: Mapping[str, NDArray[Any]], image: NDArray[np.float32]
) -> str:
    """Cut in place; what differs then, as a clause, and nothing is cut."""
    if not found.given:
        trial = model.clone()
        ends.cut(trial, found.values)
        worst = violation(differences(expected, ir.to_proto(trial), found.task, image), found.task)
        if worst:
            return worst
    turned = [ours for ours, theirs in found.given.items() if theirs.last and found.values[ours] == theirs.name]
    ends.cut(model, found.values, turned)
    return ""


def as_read(expected: Mapping[str, NDArray[Any]], given: Mapping[str, Given]) -> dict[str, NDArray[Any]]:
    """What the user's graph gives, by our names and channels first."""
    return {
        ours: np.moveaxis(expected[theirs.name], -1, 1) if theirs.last else expected[theirs.name]
        for ours, theirs in given.items()
    }


def _written_head(text: str, model: ir.Model, source: str) -> Task:
    """What the head means that a prepared file says it had."""
    where, remedy = f"{source}: its metadata key {HEAD_KEY!r}", "prepare the model again"
    head = typed(HeadSpec, parse_json(text, where, remedy), where, remedy)
    with reading(where, remedy):
        meaning = meaning_of(head.task, head)
        meaning.check({str(out.name): dims(out) for out in model.graph.outputs})
    return meaning


def _keypoint_shape(metadata: Mapping[str, str], source: str) -> tuple[int, int] | None:
    """Keypoints and values of each, where the file says it."""
    if not metadata.get("kpt_shape"):
        return None
    shape = files.literal(metadata["kpt_shape"], "kpt_shape", source)
    if not isinstance(shape, (list, tuple)) or not all(isinstance(size, int) and size > 0 for size in shape):
        raise UserError(f"{source}: its metadata key 'kpt_shape' is no list of numbers", "export the model again")
    return (shape[0], shape[1]) if len(shape) == 2 else None


def random_image(shape: Sequence[int]) -> NDArray[np.float32]:
    """A reproducible input of a shape: uniform in 0..1."""
    return np.random.default_rng(0).random(tuple(shape), dtype=np.float32)


def differences(
    expected: Mapping[str, NDArray[Any]], prepared: onnx.ModelProto, meaning: Task, tensor: NDArray[np.float32]
) -> dict[str, float]:
    """Largest absolute differences for one input to what the original gives, by quantity."""
    return meaning.differences(expected, Runner(prepared, level="basic").run(tensor))


def violation(found: dict[str, float], meaning: Task) -> str:
    """What exceeds its tolerance, as a clause; empty when nothing does (NaN exceeds)."""
    limits = meaning.tolerances
    return ", ".join(f"{key} differs by {value:.3g}" for key, value in found.items() if not value <= limits[key])


def outputs_of(original: onnx.ModelProto, tensor: NDArray[np.float32], source: str) -> dict[str, NDArray[Any]]:
    """What the user's graph gives for one input, by output.

    Raises:
        UserError: onnxruntime cannot run it, or what it gives are no finite numbers.
    """
    with reading(source, "export it again, or try it in onnxruntime first", "cannot be run by onnxruntime"):
        found = Runner(original, level="basic").run(tensor)
    for name, values in found.items():
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf" or not values.size:
            raise UserError(f"{source}: the output {name} holds no numbers", "export the model without it")
        if not np.isfinite(values).all():
            raise UserError(f"{source} gives NaN or infinite values in {name}", "train or export it again")
    return found


def compare(
    expected: Mapping[str, NDArray[Any]],
    prepared: onnx.ModelProto,
    meaning: Task,
    tensor: NDArray[np.float32],
    source: str,
) -> dict[str, float]:
    """:func:`differences`, with an error when one is above tolerance.

    Raises:
        UserError: naming the quantity.
    """
    with reading(source, "export it again", "is not what its head needs"):
        found = differences(expected, prepared, meaning, tensor)
    worst = violation(found, meaning)
    if worst:
        raise UserError(
            f"the simplified graph of {source} computes something else ({worst})", "please report the model"
        )
    return found
