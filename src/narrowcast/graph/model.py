"""A loaded model: the tidy graph, what a person needs to know about it, and how far it computes what the original does:
measured, not assumed."""

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
from narrowcast.base.reading import parse_json, reading, typed
from narrowcast.graph import ends, files, prepare
from narrowcast.graph import files as validity
from narrowcast.graph import forms as attentions
from narrowcast.graph import run as weights
from narrowcast.graph.ends import Join
from narrowcast.graph.run import Runner
from narrowcast.ops.units import inline_units
from narrowcast.tasks import UNSUPPORTED, HeadSpec, Task, head_at, meaning_of, whole_graph
from narrowcast.vision.preprocess import Preprocess


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
    found = differences(expected, prepared, meaning, tensor)
    worst = violation(found, meaning)
    if worst:
        raise UserError(
            f"the simplified graph of {source} computes something else ({worst})", "please report the model"
        )
    return found


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
        cut_before = tuple(output.name for output in self.original.graph.output) == self.output_names
        meaning = Task() if cut_before else self.meaning
        expected = outputs_of(self.original, tensor, self.source)
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

    Returns:
        The prepared model, compared with the original on a random image.

    Raises:
        UserError: a bad file (see :func:`narrowcast.graph.files.read_onnx`), or a prepared graph that computes
            something else than the original.
    """
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
    meaning, head_note = Task(), f"cut at {', '.join(output_nodes)}, as asked"
    if not output_nodes:
        meaning, head_note = _meaning(tidy, expected, image, metadata, keep_head, name)
    if output_nodes:
        original = _cut(tidy, original, output_nodes)
        expected = outputs_of(original, image, name)
    notes = (*notes, *_rewritten(tidy)) if attention == "rewrite" else notes
    model = Model(
        ir=tidy,
        original=original,
        meaning=meaning,
        classes=_classes(classes, metadata, meaning, name),
        skeleton=meaning.skeleton,
        preprocess=Preprocess(height=1, width=1),
        source=name,
        sha256=sha256,
        notes=(*_said(metadata), *notes, head_note),
        kept=kept,
    )
    with reading(name, "export it for images", "has no image input"):
        spec, assumed = (preprocess, ()) if preprocess is not None else _preprocess(model, metadata)
    cut_before = model.head is not None and HEAD_KEY in metadata
    difference = compare(expected, model.to_proto(), Task() if cut_before else meaning, image, name)
    return replace(model, preprocess=spec, difference=difference, assumed=assumed)


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


def _meaning(
    model: ir.Model,
    expected: Mapping[str, np.ndarray[Any, Any]],
    image: np.ndarray[Any, np.dtype[np.float32]],
    metadata: dict[str, str],
    keep_head: bool,
    source: str,
) -> tuple[Task, str]:
    """What the outputs mean, with a note; the decode arithmetic of a known head is cut off in place.

    ``expected`` is what the user's graph gives for the image.
    """
    said = metadata.get("task", "")
    whole = whole_graph(ends.ends_of(model.graph, said))
    if keep_head:
        return whole, whole.kept or "the graph is kept whole, as asked"
    if HEAD_KEY in metadata:
        return _written_head(metadata[HEAD_KEY], model, source), "the decode head was cut off before"
    if said in UNSUPPORTED:
        return whole, whole.kept or f"{UNSUPPORTED[said]}: the graph stays whole"
    found = head_at(ends.ends_of(model.graph, said, _keypoint_shape(metadata, source)))
    if isinstance(found, str):
        return whole, whole.kept or f"no decode head recognised ({found}): the graph stays whole"
    trial = model.clone()
    ends.cut(trial, found.values)
    worst = violation(differences(expected, ir.to_proto(trial), found.task, image), found.task)
    if worst:
        return whole, whole.kept or f"the decode head is not the known one ({worst}): the graph stays whole"
    ends.cut(model, found.values)
    return found.task, f"{found.task.kind} head recognised, decode cut off after {len(found.values)} outputs"


def _written_head(text: str, model: ir.Model, source: str) -> Task:
    """What the head means that a prepared file says it had."""
    where, remedy = f"{source}: its metadata key {HEAD_KEY!r}", "prepare the model again"
    head = typed(HeadSpec, parse_json(text, where, remedy), where, remedy)
    with reading(where, remedy):
        meaning = meaning_of(head.task, head)
        meaning.check({str(out.name): tuple(int(dim) for dim in out.shape or ()) for out in model.graph.outputs})
    return meaning


def _keypoint_shape(metadata: dict[str, str], source: str) -> tuple[int, int] | None:
    """Keypoints and values of each, where the file says it."""
    if not metadata.get("kpt_shape"):
        return None
    shape = files.literal(metadata["kpt_shape"], "kpt_shape", source)
    if not isinstance(shape, (list, tuple)) or not all(isinstance(size, int) and size > 0 for size in shape):
        raise UserError(f"{source}: its metadata key 'kpt_shape' is no list of numbers", "export the model again")
    return (shape[0], shape[1]) if len(shape) == 2 else None


def _classes(
    given: Sequence[str] | None, metadata: dict[str, str], meaning: Task, source: str
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
