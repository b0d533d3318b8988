"""The bundle: a folder with the manifest, the graphs and the plan, and what runs them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.base.progress import phase
from narrowcast.base.reading import read_json, reading, typed
from narrowcast.bundle.manifest import (
    FLOAT_FILE,
    INTEGER_FILE,
    JOIN_FILE,
    NODES_FILE,
    PLAN_FILE,
    PREPARED_FILE,
    QDQ_FILE,
    TARGET_FILE,
    ComparisonRow,
    Manifest,
    read_manifest,
)
from narrowcast.chips import Target, load_target, read_target
from narrowcast.chips.vendors import offers
from narrowcast.engine.integer import IntegerGraph, open_integer
from narrowcast.engine.network import QuantizedNetwork
from narrowcast.graph.ends import Join
from narrowcast.graph.files import check_texts
from narrowcast.graph.model import Model, load
from narrowcast.graph.run import Runner
from narrowcast.plan import Plan, read_plan
from narrowcast.plan.invariants import violations
from narrowcast.plan.types import Encoding, check_fit
from narrowcast.tasks import Task
from narrowcast.vision.preprocess import Geometry, Preprocess, preprocess, read_image
from narrowcast.vision.reader import OutputEncoding
from narrowcast.vision.types import Result

#: Engine to the graph that it runs, the most exact quantized one first.
ENGINE_FILES = {"float": FLOAT_FILE, "integer": INTEGER_FILE, "qdq": QDQ_FILE}


def quantize_input(tensor: NDArray[Any], encoding: Encoding, rounding: str) -> NDArray[Any]:
    """The image as the chip's first QuantizeLinear would give it, with its rounding; integers stay as they are."""
    if tensor.dtype.kind != "f":
        return tensor
    scale = np.float32(encoding.scales)
    power = math.frexp(float(scale))[0] == 0.5
    steps = tensor * (np.float32(1) / scale) if power else tensor / scale
    whole = np.rint(steps) if rounding == "half-even" else np.floor(steps + np.float32(0.5))
    clipped: NDArray[Any] = np.clip(whole + encoding.zero_point, encoding.qmin, encoding.qmax).astype(encoding.dtype)
    return clipped


def chip_input(tensor: NDArray[Any], manifest: Manifest) -> NDArray[Any]:
    """A model input as a bundle's quantized graphs take it: integers if ``modify`` removed the quantize node."""
    coding, rounding = manifest.input_encoding, manifest.modified.get("input_rounding")
    return tensor if coding is None or rounding is None else quantize_input(tensor, Encoding(**coding), rounding)


class _ChipRunner(Runner):
    """A session for a quantized graph; whichever type its input has, it takes the float image."""

    def __init__(self, path: Path, threads: int, level: str, manifest: Manifest) -> None:
        super().__init__(path, threads, level)
        self.manifest = manifest

    def run(self, tensor: NDArray[Any], names: Sequence[str] | None = None) -> dict[str, NDArray[np.generic]]:
        """Outputs by name."""
        return super().run(chip_input(tensor, self.manifest), names)


@dataclass(frozen=True)
class Predictor:
    """A graph that runs, with what surrounds it.

    Attributes:
        meaning: of the outputs.
        classes: class names, by index.
        skeleton: limbs as pairs of keypoint indices.
        preprocess: what happens to an image before the input.
        runner: runs the graph.
        encodings: how integer outputs are read; empty when the outputs are float.
        digest: SHA-256 of the graph's file, to tell graphs apart.
        join: makes the user's outputs from the graph's; ``None`` where they are the same.
        note: what was found of the outputs.
    """

    meaning: Task
    classes: tuple[str, ...]
    skeleton: tuple[tuple[int, int], ...]
    preprocess: Preprocess
    runner: Runner
    encodings: Mapping[str, OutputEncoding] | None = None
    digest: str = ""
    join: Join | None = None
    note: str = ""

    def __repr__(self) -> str:
        return f"<Predictor: {self.meaning.name}, {self.preprocess.height}x{self.preprocess.width}>"

    @classmethod
    def of_model(cls, model: Model, threads: int = 0) -> Predictor:
        """Run a float model."""
        runner = Runner(model.to_proto(), threads)
        note = model.notes[-1] if model.notes else ""
        said = model.meaning, model.classes, model.skeleton, model.preprocess
        return cls(*said, runner, digest=model.sha256, join=model.join, note=note)

    @property
    def class_count(self) -> int:
        """How many classes the model tells apart; 0 for a whole graph."""
        return self.meaning.class_count([tuple(out.shape) for out in self.runner.session.get_outputs()])

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

    def decode(self, outputs: Mapping[str, NDArray[Any]], geometry: Geometry, **options: Any) -> Result:
        """Raw outputs to a result; options as the task's ``decode``.

        Refused where the graph was left whole, so that nothing is known of its outputs."""
        if not self.meaning.known:
            why = f": {self.note}" if self.note else ""
            raise UserError(f"the outputs of this model are not known{why}", "use run() and decode them yourself")
        return self.meaning.decode(outputs, geometry, encodings=self.encodings, **options)

    def predict(self, image: str | Path | NDArray[np.uint8], **options: Any) -> Result:
        """The result of an image.

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


@dataclass(frozen=True)
class Bundle:
    """A quantized model on disk: its folder, and its description."""

    path: Path
    manifest: Manifest

    def __repr__(self) -> str:
        manifest = self.manifest
        return f"<Bundle {self.path}: {manifest.task} for {manifest.target}, {len(manifest.outputs)} outputs>"

    @cached_property
    def plan(self) -> Plan:
        """How every tensor is represented and where every node runs, of :attr:`prepared`; see :attr:`plan_edited`."""
        plan = read_plan(self.path / PLAN_FILE)
        check_fit(plan, self.prepared.ir.graph, self.path / PLAN_FILE)
        return plan

    @cached_property
    def model(self) -> Model:
        """The user's float graph, prepared. Its outputs are raw, so its task is generic."""
        return replace(load(self.file(FLOAT_FILE), keep_head=True), join=self.join)

    @cached_property
    def join(self) -> Join | None:
        """What makes the user's outputs from those of the bundle's graphs, where these were cut before a Concat."""
        if JOIN_FILE not in self.manifest.files:
            return None
        join = Join(self.graph(JOIN_FILE), self.manifest.user_outputs)
        with reading(self.path / JOIN_FILE, "quantize again", "joins other outputs than the manifest says"):
            found = join.run({out.name: np.zeros(out.shape, np.float32) for out in self.manifest.outputs})
            wanted = self.manifest.join["joined"]
            shapes = {name: list(values.shape) for name, values in found.items() if name in wanted}
            if list(join.parts) != self.manifest.join["parts"] or shapes != wanted:
                raise ValueError("parts or shapes differ")
        return join

    @cached_property
    def prepared(self) -> Model:
        """The float graph that the plan belongs to and that is lowered: the user's, or one with corrected weights.

        Where :attr:`factors` has an entry, that output is multiplied by it here.
        """
        if PREPARED_FILE not in self.manifest.files:
            return self.model
        return replace(load(self.file(PREPARED_FILE), keep_head=True), join=self.join)

    @cached_property
    def target(self) -> Target:
        """The rules of the chip that it was made for."""
        if TARGET_FILE not in self.manifest.files:
            return load_target(self.manifest.target)
        return read_target(self.file(TARGET_FILE))

    @cached_property
    def violations(self) -> list[str]:
        """What is wrong with the plan, one line each: a file that a person edited, or that an old version made."""
        plan = read_plan(self.path / PLAN_FILE)
        return violations(self.prepared.ir.graph, plan, self.target, self.manifest.runtime_version)

    def check_plan(self) -> None:
        """Raise when the plan was edited, or with the first line of :attr:`violations`."""
        self.file(PLAN_FILE)
        if self.violations:
            more = len(self.violations) - 1
            rest = f" (and {more} more lines of verify)" if more else ""
            raise UserError(f"the plan of {self.path} is wrong: {self.violations[0]}{rest}", "quantize the model again")

    @cached_property
    def factors(self) -> dict[str, NDArray[np.float64]]:
        """Factors of the channels of outputs, folded into the weights of :attr:`prepared`; (C,) by output."""
        found = {}
        for out in self.manifest.outputs:
            inner = self.plan.tensors.get(out.name)
            if out.scale is not None and inner is not None and inner.scales.ndim < np.ndim(out.scale):
                found[out.name] = inner.scales / np.asarray(out.scale, np.float64)
        return found

    @property
    def network(self) -> QuantizedNetwork:
        """The quantized network that the bundle holds; refused where its plan is wrong."""
        self.check_plan()
        changed = PREPARED_FILE in self.manifest.files
        return QuantizedNetwork(self.prepared.ir, self.plan, self.target, self.factors, changed)

    def whole_network(self) -> QuantizedNetwork:
        """The same, to make another bundle of; refused where the ends were changed since."""
        if self.manifest.modified:
            raise UserError(f"the ends of {self.path} were changed by modify", "modify the result instead")
        return self.network

    @cached_property
    def integer_graph(self) -> IntegerGraph:
        """The exact integer graph; refused where the bundle holds none."""
        if INTEGER_FILE not in self.manifest.files:
            raise UserError(f"{self.path} holds no {INTEGER_FILE}", "its manifest's notes say why")
        self.predictor(INTEGER_FILE, 1)  # so that a file that does not run is refused with its name
        return open_integer(self.file(INTEGER_FILE))

    @cached_property
    def quantized(self) -> Predictor:
        """The quantized model, ready to run: the exact integers where the bundle holds them."""
        return self.engine(self.engines[0])

    @cached_property
    def floating(self) -> Predictor:
        """The float model that it came from, ready to run."""
        return self.predictor(FLOAT_FILE)

    def file(self, name: str) -> Path:
        """Path of one of the bundle's files; refused where it is missing or was changed since it was written."""
        path = self.path / name
        if name not in self.manifest.files:
            raise UserError(f"{path} is not in the bundle's manifest", "quantize again")
        if self._digest(name) != self.manifest.files[name]:
            plan = f"make a bundle of it with quantize --plan {path}"
            raise UserError(
                f"{path} was changed since the bundle was written", plan if name == PLAN_FILE else "quantize again"
            )
        return path

    def _digest(self, name: str) -> str:
        with reading(self.path / name, "quantize again"):
            return hashlib.sha256((self.path / name).read_bytes()).hexdigest()

    @property
    def plan_edited(self) -> bool:
        """Whether somebody edited ``plan.json``, which is what it is for: a new bundle is made of it."""
        return self._digest(PLAN_FILE) != self.manifest.files.get(PLAN_FILE)

    def graph(self, name: str) -> onnx.ModelProto:
        """One of the bundle's graphs as ONNX; refused as by :meth:`file`."""
        with reading(path := self.file(name), "quantize again"):
            proto = onnx.load(str(path))
            check_texts(proto, path)
            return proto

    @cached_property
    def noise(self) -> dict[str, dict[str, Any]]:
        """How far every quantized tensor is from the float one, by name; entries as in :class:`ComparisonRow`."""
        path, remedy = self.file(NODES_FILE), "quantize again"
        rows = typed(list[ComparisonRow], read_json(path, remedy), path, remedy)
        return {row.name: row.model_dump() for row in rows}

    @phase("load")
    def predictor(self, file: str, threads: int = 0) -> Predictor:
        """One of the bundle's files, ready to run; refused as by :meth:`file`, or where it has other ends."""
        manifest = self.manifest
        path = self.file(file)
        with reading(path, "quantize again"):
            # "basic" keeps QuantizeLinear and DequantizeLinear where the plan put them
            level = "basic" if file == QDQ_FILE else "all"
            floating = file == FLOAT_FILE  # the one graph whose input stays float
            runner = Runner(path, threads, level) if floating else _ChipRunner(path, threads, level, manifest)
            ends = {"input": runner.input_shape, **dict(zip(runner.output_names, runner.output_shapes, strict=True))}
            if ends != {"input": manifest.input_shape, **{out.name: out.shape for out in manifest.outputs}}:
                raise ValueError("its inputs and outputs are not those of the manifest")
        encodings = {INTEGER_FILE: manifest.encodings, QDQ_FILE: manifest.integer_outputs}.get(file)
        return self._predictor(runner, encodings, manifest.files[file])

    def _predictor(self, runner: Runner, encodings: Mapping[str, OutputEncoding] | None, digest: str) -> Predictor:
        manifest = self.manifest
        return Predictor(
            manifest.meaning, manifest.classes, manifest.skeleton, manifest.preprocess, runner, encodings, digest,
            self.join,
        )

    def predictor_of(self, network: QuantizedNetwork) -> Predictor:
        """Another network of the same model, ready to run with one thread: the exact integers where there are any."""
        proto, exact = network.best()
        digest = hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
        return self._predictor(Runner(proto, 1, "all" if exact else "basic"), None, digest)

    @property
    def engines(self) -> tuple[str, ...]:
        """Names of the quantized graphs that the bundle holds."""
        return tuple(name for name, file in ENGINE_FILES.items() if name != "float" and file in self.manifest.files)

    def graphs(self, engines: Sequence[str] | None = None) -> dict[str, Callable[[], Predictor]]:
        """Ways to open engines with one thread each, as ``evaluate`` takes them; by default the float model's and the
        first of :attr:`engines`."""
        wanted = ("float", self.engines[0]) if engines is None else engines
        return {engine: partial(self.engine, self._known(engine), 1) for engine in wanted}

    def engine(self, name: str, threads: int = 0) -> Predictor:
        """``"float"``, or one of :attr:`engines`, ready to run; with 0 threads on all cores."""
        return self.predictor(ENGINE_FILES[self._known(name)], threads)

    def _known(self, engine: str) -> str:
        if engine not in ("float", *self.engines):
            raise UserError(f"there is no engine {engine!r}", f"use float, {', '.join(self.engines)}")
        return engine

    def evaluate(self, data: Any, **options: Any) -> Any:
        """Score the float and the quantized graph on labelled images, from :func:`narrowcast.coco` or
        :func:`narrowcast.imagenet`; gives a :class:`narrowcast.evaluate.Report`."""
        return data.evaluate(self.graphs(), **options)

    def run(self, tensor: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Raw outputs of the quantized model for one model input, by name."""
        return self.quantized.run(tensor)

    def predict(self, image: str | Path | NDArray[np.uint8], **options: Any) -> Result:
        """The result of an image with the quantized model; see :meth:`Predictor.predict`."""
        return self.quantized.predict(image, **options)


def open_model(path: str | Path, head: str = "") -> Model:
    """A float model, or what a vendor's tool wrote of one in ONNX, with that tool's integers.

    ``head``: as in :func:`narrowcast.load`.
    """
    return load(path, translate=_translated, head=head)


def _translated(proto: onnx.ModelProto, source: str) -> onnx.ModelProto:
    found = next((translate for recognises, translate in offers("READERS") if recognises(proto)), None)
    return proto if found is None else found(proto, source)


def open_bundle(path: str | Path) -> Bundle:
    """Open a bundle that :func:`narrowcast.quantize` wrote."""
    return Bundle(Path(path), read_manifest(path))
