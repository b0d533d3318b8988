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
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.base.progress import phase
from narrowcast.base.reading import parse_json, reading
from narrowcast.graph import ends, files, heads, prepare
from narrowcast.graph import files as validity
from narrowcast.graph import forms as attentions
from narrowcast.graph import run as weights
from narrowcast.graph.ends import Join
from narrowcast.graph.heads import HEAD_KEY, Meaning, compare, outputs_of, random_image
from narrowcast.ops.units import inline_units
from narrowcast.tasks import Given, HeadSpec, Task, whole_graph
from narrowcast.vision.preprocess import Preprocess

#: How a note begins that says what is assumed of the preprocessing.
ASSUMED = "WARNING: preprocessing"


@dataclass(frozen=True)
class Model:
    """A prepared model. Nothing edits :attr:`ir` after :func:`load`.

    Attributes:
        ir: static shapes, constants as initializers, unique names, the decode head cut off where recognised.
        original: the user's graph with static shapes, for comparison.
        meaning: of the outputs.
        classes: class names, by index.
        skeleton: limbs as pairs of keypoint indices.
        preprocess: what happens to an image before the input.
        source: file name.
        sha256: of the file.
        difference: largest differences to the original, by quantity, as :mod:`narrowcast.graph.model` measures them.
        notes: what was done and what was not, one sentence each.
        join: makes the user's outputs from those of ``ir``; ``None`` where they are the same.
        assumed: entries of ``preprocess`` that nobody gave and the file does not say.
        kept: keeps the large weights of ``original`` alive, which names them only.
        given: of a head that was cut off before, output of ``ir`` to the user's.
    """

    ir: ir.Model
    original: onnx.ModelProto
    meaning: Task
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
    given: Mapping[str, Given] = field(default_factory=dict)

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
    def task(self) -> str:
        """Name of the task."""
        return self.meaning.name

    @property
    def head(self) -> HeadSpec | None:
        """Layout of the raw outputs; ``None`` when the graph is whole."""
        return self.meaning.head

    def compare(self, tensor: np.ndarray[Any, np.dtype[np.float32]]) -> dict[str, float]:
        """Largest differences between the original and the prepared graph for one input.

        Raises:
            UserError: when one is above tolerance.
        """
        return self.differences(outputs_of(self.original, tensor, self.source), tensor)

    def differences(self, expected: Mapping[str, NDArray[Any]], tensor: NDArray[np.float32]) -> dict[str, float]:
        """:meth:`compare` with what the original gives."""
        expected = heads.as_read(expected, self.given) if self.given else expected
        meaning = Task() if tuple(expected) == self.output_names else self.meaning  # cut before, or kept whole
        return compare(expected, self.to_proto(), meaning, tensor, self.source)

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
    translate: files.Translate | None = None,
    head: str = "",
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
        translate: a vendor's form into ONNX (:func:`narrowcast.bundle.open_model`).
        head: what the outputs are where the file does not say it: a task, ``keypoints=17x3``, outputs by name such as
            ``box_s8=output0``, with commas between.

    Returns:
        The prepared model, compared with the original on a random image.

    Raises:
        UserError: a bad file (see :func:`narrowcast.graph.files.read_onnx`), or a prepared graph that computes
            something else than the original.
    """
    asked = heads.parse(head)
    if head and (keep_head or output_nodes):
        raise UserError(f"--head {head} is given for a graph kept whole or cut at nodes", "leave one of them out")
    read, sha256 = files.read_onnx(path, translate)
    proto, kept = weights.hold(read)
    del read
    name = Path(path).name
    original = files.fix_shapes(proto, name, size)
    validity.check_sizes(original, name)
    image = random_image(files.input_shape(original))
    expected = outputs_of(original, image, name)
    weights.rest(original)
    metadata = files.metadata(proto)
    ready = prepare.as_it_is if files.NOTES_KEY in metadata else prepare.tidy
    tidy, notes = ready(files.to_supported_opset(original, name), name)
    for output in tidy.graph.outputs:
        shape, real = tuple(output.shape or ()), expected[str(output.name)].shape
        if shape != real:
            raise UserError(f"{name} says that {output.name} is {shape}, it is {real}", "export it again")
    names = _names(classes, metadata, name)
    if output_nodes:
        found = Meaning(Task(), f"cut at {', '.join(output_nodes)}, as asked")
        original = _cut(tidy, original, output_nodes)
        expected = outputs_of(original, image, name)
    elif keep_head:
        whole = whole_graph(ends.ends_of(tidy.graph, task=metadata.get("task", "")))
        found = Meaning(whole, whole.kept or "the graph is kept whole, as asked")
    else:
        found = heads.find(tidy, expected, image, metadata, asked, len(names or ()), name)
    notes = (*notes, *_rewritten(tidy)) if attention == "rewrite" else notes
    model = Model(
        ir=tidy,
        original=original,
        meaning=found.task,
        classes=names if names is not None else _numbered(found.task),
        skeleton=found.task.skeleton,
        preprocess=Preprocess(height=1, width=1),
        source=name,
        sha256=sha256,
        notes=(*_said(metadata), *notes, found.note),
        kept=kept,
        given=found.given,
    )
    with reading(name, "export it for images", "has no image input"):
        spec, assumed = (preprocess, ()) if preprocess is not None else _preprocess(model, metadata)
    return replace(model, preprocess=spec, difference=model.differences(expected, image), assumed=assumed)


def _said(metadata: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(metadata[files.NOTES_KEY].split("\n")) if files.NOTES_KEY in metadata else ()


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


def _names(given: Sequence[str] | None, metadata: dict[str, str], source: str) -> tuple[str, ...] | None:
    """Class names, ``None`` where nobody says them."""
    if given is not None or "names" not in metadata:
        return None if given is None else tuple(given)
    names = files.literal(metadata["names"], "names", source)
    if isinstance(names, dict) and all(isinstance(key, int) for key in names):
        names = [names[key] for key in sorted(names)]
    if not isinstance(names, (list, tuple)):
        raise UserError(f"{source}: its metadata key 'names' is no list of class names", "export the model again")
    return tuple(map(str, names))


def _numbered(meaning: Task) -> tuple[str, ...]:
    """Names of classes that nobody named."""
    count = meaning.class_count([]) if meaning.head is not None else 0
    return tuple(f"class {index}" for index in range(count))


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
    if files.PIXELS_KEY in metadata:  # mean and scale are in the graph
        common |= {"mean": (0.0,) * channels, "scale": (1.0,) * channels, "color": metadata[files.PIXELS_KEY]}
        return Preprocess(**common, resize=model.meaning.resize), ("resize",)
    if "preprocess" in metadata:
        return _written_preprocess(metadata["preprocess"], common, model.source), ()
    # Ultralytics writes these into its exports, and always trains on RGB / 255
    known = "Ultralytics" in metadata.get("author", "") or {"task", "imgsz"} <= metadata.keys()
    assumed = () if known else ("color", "mean", "scale", "resize")
    shorter = min(height, width) if model.meaning.resize == "center-crop" else None
    return Preprocess(**common, resize=model.meaning.resize, resize_shorter=shorter), assumed


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
