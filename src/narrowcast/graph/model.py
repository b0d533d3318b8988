"""A loaded model: the tidy graph and what a person needs to know about it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir

from narrowcast.base.errors import UserError
from narrowcast.base.progress import phase
from narrowcast.base.reading import parse_json, reading, typed
from narrowcast.graph import check, ends, files, prepare
from narrowcast.graph import ends as exposure
from narrowcast.graph import files as validity
from narrowcast.graph import forms as attentions
from narrowcast.graph import run as weights
from narrowcast.graph.ends import Join
from narrowcast.ops.facts import Kind, facts
from narrowcast.ops.units import inline_units
from narrowcast.vision.heads import HeadSpec
from narrowcast.vision.preprocess import Preprocess

__all__ = ["COCO_SKELETON", "Model", "load"]

#: Limbs between the 17 COCO keypoints (pairs of indices from 0).
COCO_SKELETON: tuple[tuple[int, int], ...] = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip

#: How a note begins that says what is assumed of the preprocessing.
ASSUMED = "WARNING: preprocessing"
#: Metadata of a prepared file: the head that was cut off, as JSON.
HEAD_KEY = "narrowcast.head"


@dataclass(frozen=True)
class Model:
    """A prepared model. Nothing edits :attr:`ir` after :func:`load`.

    Attributes:
        ir: static shapes, constants as initializers, unique names, the decode head cut off where recognised.
        original: the user's graph with static shapes, for comparison.
        task: ``"detect"``, ``"pose"``, ``"segment"``, ``"classify"`` or ``"generic"``.
        head: layout of the raw outputs; ``None`` when the graph is whole.
        classes: class names, by index.
        skeleton: limbs as pairs of keypoint indices.
        preprocess: what happens to an image before the input.
        source: file name.
        sha256: of the file.
        difference: largest differences to the original, by quantity, as :mod:`narrowcast.graph.check` measures them.
        notes: what was done and what was not, one sentence each.
        join: makes the user's outputs from those of ``ir``; ``None`` where they are the same.
        assumed: entries of ``preprocess`` that nobody gave and the file does not say.
        kept: keeps the large weights of ``original`` alive, which names them only.
    """

    ir: ir.Model
    original: onnx.ModelProto
    task: str
    head: HeadSpec | None
    classes: tuple[str, ...]
    skeleton: tuple[tuple[int, int], ...]
    preprocess: Preprocess
    source: str
    sha256: str
    difference: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    join: Join | None = None
    assumed: tuple[str, ...] = ()
    kept: tuple[Any, ...] = field(default=(), repr=False, compare=False)

    def __repr__(self) -> str:
        size, graph = f"{self.preprocess.height}x{self.preprocess.width}", self.ir.graph
        return f"<Model {self.source}: {self.task}, {size}, {len(graph)} nodes, {len(graph.outputs)} outputs>"

    def to_proto(self) -> onnx.ModelProto:
        """The prepared graph as an ONNX model (with local functions for Silu and the like)."""
        return ir.to_proto(self.ir)

    @property
    def input_name(self) -> str:
        """Name of the image input."""
        return str(self.ir.graph.inputs[0].name)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the graph's outputs, in order."""
        return tuple(str(output.name) for output in self.ir.graph.outputs)

    def prepared_as(self, preprocess: Preprocess, given: Iterable[str] = ()) -> Model:
        """The same model with other preprocessing.

        Args:
            preprocess: what happens to an image before the input.
            given: entries of it that a person gave, even if they are what was assumed.
        """
        return replace(self, preprocess=preprocess, assumed=tuple(n for n in self.assumed if n not in set(given)))

    @property
    def assumption(self) -> str:
        """What is assumed of the preprocessing and how to say otherwise, as a warning; empty where all was said."""
        spec = self.preprocess
        color = "grey" if spec.color == "gray" else spec.color.upper()
        words = {"color": color, "mean": "no mean", "scale": "pixels / 255", "resize": spec.resize}
        named = [words[name] for name in self.assumed]
        if not named:
            return ""
        options = ", ".join(f"--{name}" for name in self.assumed)
        if not {"mean", "scale"} & set(self.assumed):
            return f"not given, so taken as usual: {', '.join(named)} ({options})"
        return (
            f"{ASSUMED}: {self.source} does not say how images become its input; assumed are {', '.join(named)}. "
            f"Where it was trained on something else, give {options}, on the command line or in a YAML file"
        )

    @property
    def softmax_missing(self) -> bool:
        """Whether class scores leave as logits."""
        last = self.ir.graph.outputs[0].producer()
        return self.task == "classify" and (last is None or facts(last).kind is not Kind.SOFTMAX)

    def compare(self, tensor: np.ndarray[Any, np.dtype[np.float32]]) -> dict[str, float]:
        """Largest differences between the original and the prepared graph for one input.

        Raises:
            UserError: when one is above tolerance.
        """
        cut_before = tuple(output.name for output in self.original.graph.output) == self.output_names
        head = None if cut_before else self.head
        expected = check.outputs_of(self.original, tensor, self.source)
        return check.compare(expected, self.to_proto(), head, tensor, self.source)

    def to_stock(self) -> onnx.ModelProto:
        """The prepared graph in stock operators, with the metadata from which :func:`load` knows the head again."""
        proto = inline_units(self.to_proto())
        entries = files.metadata(self.original)
        if self.head is not None:
            entries[HEAD_KEY] = json.dumps(self.head.to_dict())
        onnx.helper.set_model_props(proto, entries)
        return proto


@phase("load")
def load(
    path: str | Path,
    *,
    keep_head: bool = False,
    size: tuple[int, int] | None = None,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] | None = None,
    attention: Literal["keep", "rewrite"] = "keep",
    output_nodes: Sequence[str] = (),
) -> Model:
    """Load a trained float model and make it tidy.

    Args:
        path: ``.onnx``, or ``.pt`` when the user's ``yolo`` command is installed.
        keep_head: do not cut the decode arithmetic off.
        size: height and width for a file with dynamic axes.
        preprocess: what happens to an image before the input; read from the file's metadata by default.
        classes: class names; read from the file's metadata by default.
        attention: ``"rewrite"`` writes the Softmax nodes of attention as operators that stay on the chip.
        output_nodes: nodes whose outputs become all the model's outputs; the graph then has no known head.

    Returns:
        The prepared model, compared with the original on a random image.

    Raises:
        UserError: a bad file (see :func:`narrowcast.graph.files.read_onnx`), or a prepared graph that computes
            something else than the original.
    """
    read, sha256 = files.read_onnx(path)
    proto, kept = weights.hold(read)
    del read
    name = Path(path).name
    original = files.fix_shapes(proto, name, size)
    validity.check_sizes(original, name)
    image = check.random_image(files.input_shape(original))
    expected = check.outputs_of(original, image, name)
    weights.rest(original)
    tidy, notes = prepare.tidy(files.to_supported_opset(original, name), name)
    for output in tidy.graph.outputs:
        shape, real = tuple(output.shape or ()), expected[str(output.name)].shape
        if shape != real:
            raise UserError(f"{name} says that {output.name} is {shape}, it is {real}", "export it again")
    metadata = files.metadata(proto)
    head, head_note = None, f"cut at {', '.join(output_nodes)}, as asked"
    if not output_nodes:
        head, head_note = _expose(tidy, expected, image, metadata, keep_head, name)
    task = _task(tidy, head, metadata) if not output_nodes else "generic"
    if task == "classify":
        head_note = "classifier: the graph stays whole"
    if output_nodes:
        original = _cut(tidy, original, output_nodes)
        expected = check.outputs_of(original, image, name)
    notes = (*notes, *_rewritten(tidy)) if attention == "rewrite" else notes
    model = Model(
        ir=tidy,
        original=original,
        task=task,
        head=head,
        classes=_classes(classes, metadata, head, name),
        skeleton=COCO_SKELETON if head is not None and head.keypoint_shape and head.keypoint_shape[0] == 17 else (),
        preprocess=Preprocess(height=1, width=1),
        source=name,
        sha256=sha256,
        notes=(*notes, head_note),
        kept=kept,
    )
    with reading(name, "export it for images", "has no image input"):
        spec, assumed = (preprocess, ()) if preprocess is not None else _preprocess(model, metadata)
    cut_before = head is not None and HEAD_KEY in metadata
    difference = check.compare(expected, model.to_proto(), None if cut_before else head, image, name)
    return replace(model, preprocess=spec, difference=difference, assumed=assumed)


def _rewritten(model: ir.Model) -> tuple[str, ...]:
    found = attentions.rewrite_attention(model)
    count = f"{len(found)} Softmax node{'s' if len(found) != 1 else ''} of attention"
    return (f"{count} became {', '.join(attentions.PARTS)}",) if found else ("no Softmax of an attention to rewrite",)


def _cut(model: ir.Model, original: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Cut in place, and give the user's graph with the same outputs (ours where simplifying renamed them)."""
    ends.cut_at_nodes(model, names)
    wanted = [str(value.name) for value in model.graph.outputs]
    produced = {name for node in original.graph.node for name in node.output}
    copy = onnx.ModelProto()
    copy.CopyFrom(original if produced.issuperset(wanted) else ir.to_proto(model))
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    return copy


def _expose(
    model: ir.Model,
    expected: Mapping[str, np.ndarray[Any, Any]],
    image: np.ndarray[Any, np.dtype[np.float32]],
    metadata: dict[str, str],
    keep_head: bool,
    source: str,
) -> tuple[HeadSpec | None, str]:
    """Cut the decode arithmetic off in place; ``expected`` is what the user's graph gives for the image."""
    if keep_head:
        return None, "the graph is kept whole, as asked"
    if HEAD_KEY in metadata:
        return _written_head(metadata[HEAD_KEY], model, source), "the decode head was cut off before"
    if metadata.get("task") in ("obb",):
        return None, "oriented boxes: the graph stays whole"
    found = exposure.find_head(model.graph, _keypoint_shape(metadata, source))
    if isinstance(found, str):
        return None, f"no decode head recognised ({found}): the graph stays whole"
    trial = model.clone()
    again = exposure.find_head(trial.graph, found.head.keypoint_shape)
    if isinstance(again, str):
        raise AssertionError(again)
    exposure.cut(trial, again)
    worst = check.violation(check.differences(expected, ir.to_proto(trial), found.head, image))
    if worst:
        return None, f"the decode head is not the known one ({worst}): the graph stays whole"
    exposure.cut(model, found)
    kind = {"detect": "detection", "pose": "pose", "segment": "segmentation"}[found.head.task]
    return found.head, f"{kind} head recognised, decode cut off after {len(found.values)} outputs"


def _written_head(text: str, model: ir.Model, source: str) -> HeadSpec:
    """The head that a prepared file says it had."""
    where, remedy = f"{source}: its metadata key {HEAD_KEY!r}", "prepare the model again"
    head = typed(HeadSpec, parse_json(text, where, remedy), where, remedy)
    with reading(where, remedy):
        head.check({str(out.name): tuple(int(dim) for dim in out.shape or ()) for out in model.graph.outputs})
    return head


def _keypoint_shape(metadata: dict[str, str], source: str) -> tuple[int, int] | None:
    """Keypoints and values of each, where the file says it."""
    if not metadata.get("kpt_shape"):
        return None
    shape = files.literal(metadata["kpt_shape"], "kpt_shape", source)
    if not isinstance(shape, (list, tuple)) or not all(isinstance(size, int) and size > 0 for size in shape):
        raise UserError(f"{source}: its metadata key 'kpt_shape' is no list of numbers", "export the model again")
    return (shape[0], shape[1]) if len(shape) == 2 else None


def _task(model: ir.Model, head: HeadSpec | None, metadata: dict[str, str]) -> str:
    if head is not None:
        return str(head.task)
    outputs = model.graph.outputs
    dims = [int(d) for d in outputs[0].shape] if outputs[0].shape is not None else []
    flat = len(outputs) == 1 and len(dims) >= 2 and int(np.prod(dims[2:])) == 1 and dims[1] > 1
    return "classify" if metadata.get("task") == "classify" or flat else "generic"


def _classes(
    given: Sequence[str] | None, metadata: dict[str, str], head: HeadSpec | None, source: str
) -> tuple[str, ...]:
    if given is not None:
        return tuple(given)
    if "names" in metadata:
        names = files.literal(metadata["names"], "names", source)
        if isinstance(names, dict) and all(isinstance(key, int) for key in names):
            names = [names[key] for key in sorted(names)]
        if not isinstance(names, (list, tuple)):
            raise UserError(f"{source}: its metadata key 'names' is no list of class names", "export the model again")
        return tuple(map(str, names))
    return tuple(f"class {index}" for index in range(head.num_classes)) if head is not None else ()


def _preprocess(model: Model, metadata: dict[str, str]) -> tuple[Preprocess, tuple[str, ...]]:
    """What the file says about its input, else what its kind of model expects, with the entries that are a guess."""
    dims = [int(d) for d in model.ir.graph.inputs[0].shape or ()]
    channels_last = dims[3] in (1, 3) and dims[1] not in (1, 3)
    height, width, channels = (dims[1], dims[2], dims[3]) if channels_last else (dims[2], dims[3], dims[1])
    common: dict[str, Any] = {
        "height": height,
        "width": width,
        "color": "gray" if channels == 1 else "rgb",
        "layout": "NHWC" if channels_last else "NCHW",
    }
    if "preprocess" in metadata:
        return _written_preprocess(metadata["preprocess"], common, model.source), ()
    # Ultralytics writes these into its exports, and always trains on RGB / 255
    known = "Ultralytics" in metadata.get("author", "") or {"task", "imgsz"} <= metadata.keys()
    assumed = () if known else ("color", "mean", "scale", "resize")
    if model.task == "classify":
        return Preprocess(**common, resize="center-crop", resize_shorter=min(height, width)), assumed
    return Preprocess(**common, resize="letterbox"), assumed


def _written_preprocess(text: str, common: dict[str, Any], source: str) -> Preprocess:
    """The metadata key ``preprocess``: JSON with mean and std in pixel units, rgb, resize (short side), crop."""
    where = f"{source}: its metadata key 'preprocess'"
    written = parse_json(text, where, "mend it")
    with reading(where, "mend it", "is not understood"):
        std = [float(value) for value in written["std"]]
        return Preprocess(
            **{**common, "color": common["color"] if written.get("rgb", True) else "bgr"},
            resize="center-crop" if "crop" in written else "stretch",
            resize_shorter=int(written["resize"]) if "resize" in written else None,
            mean=tuple(float(value) for value in written["mean"]),
            scale=tuple(1.0 / value for value in std),
        )
