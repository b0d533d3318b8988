"""Mixed precision: from a bundle to one with some nodes at 16 bits, chosen on some images and reported on others.

One half of the images chooses, the other reports.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from narrowcast.analyze.subject import Subject, telling, unseen
from narrowcast.base.errors import UserError
from narrowcast.base.progress import Journal, phase, track
from narrowcast.bundle import Bundle, Predictor
from narrowcast.bundle.make import remake
from narrowcast.bundle.manifest import check_out
from narrowcast.calibrate import Images, ImageSet, TensorStatistics, collect
from narrowcast.calibrate import images as find_images
from narrowcast.engine.network import QuantizedNetwork
from narrowcast.evaluate import CocoData, ImageNetData, Report
from narrowcast.graph import Runner
from narrowcast.improve.tune import Budget, Nodes, Step, TaskMeter, first_that_meets, members, search
from narrowcast.improve.wider import Candidate, Costs, Widener, candidates
from narrowcast.plan import Plan
from narrowcast.tasks import Look, Task, TaskJudge, combine

Labelled = CocoData | ImageNetData


def halves(images: ImageSet, labelled: tuple[Labelled, Labelled] | None) -> tuple[ImageSet, ImageSet]:
    """Images that choose and images that report; labelled ones stay on their side."""
    if len(images) < 2:
        raise UserError("one image is left beside those of the calibration", "give at least two others")
    sides = [{file.name: side for file in half.files} for side, half in enumerate(labelled or ())]
    known = {name: side for entry in sides for name, side in entry.items()}
    names = [source.name if isinstance(source, Path) else "" for source in images.sources]
    split: tuple[list[int], list[int]] = ([], [])
    for index, name in enumerate(names):
        split[known.get(name, index % 2)].append(index)
    if not split[0] or not split[1]:
        raise UserError("the images cannot be halved", "give more images that calibration has not seen")
    return images.subset(split[0]), images.subset(split[1])


def halves_of_labels(data: Labelled, used: set[str]) -> tuple[Labelled, Labelled]:
    """Every other labelled image that calibration has not seen."""
    left = [i for i, file in enumerate(data.files) if hashlib.sha256(file.read_bytes()).hexdigest() not in used]
    if len(left) < 2:
        raise UserError(
            f"{len(left)} labelled images of {data.source} are left beside those of the calibration",
            "tune needs at least two",
        )
    return _part(data, left[::2]), _part(data, left[1::2])


def _part(data: Labelled, indices: Sequence[int]) -> Labelled:
    files = tuple(data.files[index] for index in indices)
    if isinstance(data, ImageNetData):
        return replace(data, files=files, labels=tuple(data.labels[index] for index in indices))
    images = [data.document["images"][index] for index in indices]
    kept = {entry["id"] for entry in images}
    annotations = [entry for entry in data.document["annotations"] if entry["image_id"] in kept]
    return replace(data, files=files, document={**data.document, "images": images, "annotations": annotations})


#: Images at 640 x 640 on which sets are compared, and the most of a smaller input.
LOSS_IMAGES, MOST_LOSS_IMAGES = 20, 96
#: Images whose ranges 16-bit tensors take, at most.
RANGE_IMAGES = 24


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Attributes:
        max_drop: the most that the metric may lose, relative to float, 0..1.
        budget: share of what may run at 16 bits (0..1), or with ``unit`` ``"convolutions"`` a count from 1 on.
        unit: what the budget counts, ``"convolutions"`` or ``"macs"``.
        metric: family and name, such as ``("keypoints", "AP")``; ``None`` without labels.
    """

    max_drop: float = 0.01
    budget: float = 0.1
    unit: str = "convolutions"
    metric: tuple[str, str] | None = None


def usual_metric(meaning: Task) -> tuple[str, str]:
    """What a task is judged by.

    Raises:
        UserError: the outputs of the model are not known.
    """
    if not meaning.metrics:
        raise UserError(f"a {meaning.name} model has no metric", "leave the labels out")
    return next(iter(meaning.metrics.values()))


@phase("tune")
def tune(
    bundle: Bundle,
    images: Images,
    *,
    out: str | Path,
    wish: Wish | None = None,
    data: Labelled | None = None,
    loss_images: int | None = None,
    workers: int = 0,
    fresh: bool = False,
    force: bool = False,
    command: Sequence[str] = (),
) -> Bundle:
    """Give 16 bits to the nodes that gain most by it.

    Args:
        bundle: to start from; not changed.
        images: what :func:`narrowcast.images` gives or takes, of the kind that the model will see; those used for
            calibration are left out. Half of them choose, the other half reports.
        out: folder to write. Until it is written, measurements are kept in ``.<name>.tune.jsonl`` beside it.
        wish: drop and budget.
        data: labelled images, for the metric; needed when the wish names one.
        loss_images: on which sets are compared; by default :data:`LOSS_IMAGES`, more of inputs below 640 x 640.
        workers: variants or images in work at once; 0 for one a core.
        fresh: forget an interrupted run.
        force: replace an existing bundle.
        command: recorded in the manifest.

    Returns:
        The new bundle; its manifest's ``calibration["tune"]`` says what each step bought.

    Raises:
        UserError: a target without 16 bits, too few images, a budget that allows nothing.
    """
    place = check_out(out, force)
    found = find_images(images, bundle.manifest.preprocess)
    job = _Job.of(bundle, found, wish or Wish(), data, loss_images, workers)
    path = place.path.absolute()
    file = path.with_name(f".{path.name}.tune.jsonl")
    with Journal(file, job.key(), fresh=fresh) as journal:
        record, network = job.run(journal)
        return remake(
            bundle, network, {"tune": record}, job.report_images, out=place, force=force, command=command
        )


@dataclass(frozen=True)
class _Job:
    """One run: where it starts, what it may look at.

    Attributes:
        bundle: to start from.
        start: the network that it holds.
        wish: what is asked for.
        chosen_by, report_images: images that choose, and that report.
        range_images: whose ranges 16-bit tensors take; they are of the half that chooses.
        labelled: the same for labelled images, or nothing.
        excluded: images left out because calibration saw them.
        workers: in work at once; 0 for one a core.
    """

    bundle: Bundle
    start: QuantizedNetwork
    wish: Wish
    chosen_by: ImageSet
    report_images: ImageSet
    range_images: ImageSet
    labelled: tuple[Labelled, Labelled] | None
    excluded: int
    workers: int

    @classmethod
    def of(
        cls, bundle: Bundle, images: ImageSet, wish: Wish, data: Labelled | None, count: int | None, workers: int
    ) -> _Job:
        manifest = bundle.manifest
        start = bundle.whole_network()
        if wish.metric is not None and data is None:
            raise UserError(f"{'.'.join(wish.metric)} needs labelled images", "give labels, or no metric")
        if data is not None and wish.metric is None:
            wish = replace(wish, metric=usual_metric(manifest.meaning))
        used = {*manifest.calibration.get("images", ()), *manifest.calibration.get("held_back", ())}
        left, excluded = unseen(images, used)
        labelled = None if data is None else halves_of_labels(data, used)
        choosing, reporting = halves(left, labelled)
        limit = count or _loss_images(bundle)
        floating = bundle.model.to_proto()
        pick = partial(telling, limit=limit, proto=floating, meaning=manifest.meaning)
        few = pick(choosing), pick(reporting)
        seen = choosing.spread(RANGE_IMAGES).usable()
        return cls(bundle, start, wish, *few, seen, labelled, excluded, workers)

    def key(self) -> dict[str, Any]:
        """Everything that the measurements depend on."""
        return {
            "files": self.bundle.manifest.files,
            "chosen_by": self.chosen_by.hashes(),
            "ranges": self.range_images.hashes(),
            "report": self.report_images.hashes(),
            "family": self._family,
            "version": 3,
        }

    def run(self, journal: Journal) -> tuple[dict[str, Any], QuantizedNetwork]:
        """Search, choose, report: the record for the manifest, and the network."""
        tensors, judge = self._judge(self.chosen_by)
        subject = self._subject(tensors)
        own = {name: onnx.numpy_helper.to_array(tensor) for name, tensor in subject.uncorrected.items()}
        runtime = self.bundle.manifest.runtime_version
        widener = Widener(self.start, self._statistics(), runtime=runtime, uncorrected=own)
        known = candidates(widener)
        costs = Costs(self.start.model.graph, self.wish.unit)
        budget = self._budget(costs, known, widener)
        families = {family.name: family.objective for family in self.bundle.manifest.meaning.families}
        parts = families.get(self._family, ())
        meter = TaskMeter(widener, subject, costs, judge, journal, parts, self.workers)

        def enough(nodes: Nodes) -> bool:
            return self.labelled is None and meter.error(nodes).similarity_loss <= self.wish.max_drop

        steps = search(known, meter, budget, enough=enough)
        if self.labelled is not None:
            index, drops = self._by_metric(steps, widener, journal)
        else:
            index = len(steps) - 1
            drops = {i: meter.error(members(steps, i)).similarity_loss for i in range(len(steps))}
        nodes = members(steps, index)
        network = widener.network(nodes)
        record = {
            "wish": {"max_drop": self.wish.max_drop, "budget": self.wish.budget, "unit": self.wish.unit},
            "budget": {"limit": budget.limit, "total": budget.total},
            "steps": [{**step.to_dict(), "drop": drops.get(i)} for i, step in enumerate(steps)],
            "kept_steps": index,
            "nodes": sorted(nodes),
            "cost": {unit: self._cost(unit, network.plan) for unit in ("convolutions", "macs")},
            "images": {"choose": self.chosen_by.hashes(), "report": self.report_images.hashes()},
            "excluded": self.excluded,
            "image_notes": [*self.chosen_by.notes, *self.report_images.notes],
            "report": self._report(network),
        }
        return record, network

    @property
    def _family(self) -> str:
        """Of the metric that counts, labels or not."""
        usual = next(iter(self.bundle.manifest.meaning.metrics.values()), ("", ""))
        return (self.wish.metric or usual)[0]

    def _statistics(self) -> dict[str, TensorStatistics]:
        images = self.range_images
        names = Widener.tensors(self.start.model.graph)
        return collect(ir.to_proto(self.start.model), names, track(images, "ranges", len(images)), threads=self.workers)

    def _budget(self, costs: Costs, known: Sequence[Candidate], widener: Widener) -> Budget:
        share = self.wish.budget < 1 or self.wish.unit == "macs"
        limit = self.wish.budget * costs.total if share else self.wish.budget
        least = min(costs.of(widener.plan(each.nodes)) for each in known)
        if limit < least:
            raise UserError(
                f"a budget of {limit:.3g} of {costs.total:.3g} {self.wish.unit} allows no candidate",
                f"the smallest needs {least / costs.total:.2%}",
            )
        return Budget(limit, costs.total, self.wish.unit)

    def _cost(self, unit: str, plan: Plan) -> dict[str, float]:
        costs = Costs(self.start.model.graph, unit)
        return {"wide": costs.of(plan), "total": costs.total, "share": round(costs.share(plan), 6)}

    @cached_property
    def _floating(self) -> Runner:
        return Runner(self.bundle.model.to_proto(), self.workers)

    def _judge(self, images: ImageSet) -> tuple[list[Any], TaskJudge]:
        manifest = self.bundle.manifest
        tensors = list(images)
        references = [self._floating.run(tensor) for tensor in track(tensors, "float")]
        size = manifest.preprocess.height, manifest.preprocess.width
        return tensors, TaskJudge(manifest.meaning, references, Look(size))

    def _subject(self, tensors: list[Any]) -> Subject:
        manifest, start = self.bundle.manifest, self.start
        size = manifest.preprocess.height, manifest.preprocess.width
        source = self.bundle.model.ir if start.changed else None
        return Subject(
            start.model, start.plan, start.target, start.factors, meaning=manifest.meaning, inputs=tensors,
            input_size=size, source=source,
        )  # fmt: skip

    def _by_metric(self, steps: Sequence[Step], widener: Widener, journal: Journal) -> tuple[int, dict[int, float]]:
        """The first step at which the metric is kept, on the labelled images that choose, and the measured drops."""
        assert self.labelled is not None and self.wish.metric is not None
        half, metric = self.labelled[0], ".".join(self.wish.metric)
        metric += f" {hashlib.sha256(' '.join(file.name for file in half.files).encode()).hexdigest()[:16]}"
        floating = journal.get(f"{metric} float", lambda: self._metric(half, lambda: self.bundle.engine("float", 1)))
        if not floating:
            raise UserError(
                f"the float model has a {metric.split()[0]} of 0 on these images", "check images and labels"
            )
        drops: dict[int, float] = {}

        def drop(index: int) -> float:
            nodes = members(steps, index)
            make = partial(self.bundle.predictor_of, widener.network(nodes))
            value = journal.get(f"{metric} {' '.join(sorted(nodes))}", lambda: self._metric(half, make))
            drops[index] = 1 - value / floating
            return drops[index]

        index, _ = first_that_meets([step.loss for step in steps], drop(0), self.wish.max_drop, drop)
        return index, drops

    def _metric(self, data: Labelled, make: Callable[[], Predictor]) -> float:
        assert self.wish.metric is not None
        value = self._evaluate(data, {"tune": make}).metric("tune", *self.wish.metric)
        return value or 0.0

    def _evaluate(self, data: Labelled, graphs: Mapping[str, Callable[[], Predictor]]) -> Report:
        return data.evaluate(graphs, workers=self.workers or None)

    def _report(self, network: QuantizedNetwork) -> dict[str, Any]:
        """Before and after on what chose nothing, with the exact integers."""
        graphs = {
            "before": partial(self.bundle.predictor_of, self.start),
            "after": partial(self.bundle.predictor_of, network),
        }
        tensors, judge = self._judge(self.report_images)
        result: dict[str, Any] = {}
        for name, make in graphs.items():
            predictor = make()
            errors = (judge.judge(i, predictor.run(tensor)) for i, tensor in enumerate(track(tensors, name)))
            error = combine(errors)
            result[name] = {**error.to_dict(), "drop": error.similarity_loss}
        if self.labelled is not None:
            every = {"float": partial(self.bundle.engine, "float", 1), **graphs}
            found = self._evaluate(self.labelled[1], every)
            result["metrics"] = {"images": found.images, "rows": found.to_dict()["rows"]}
            for row in result["metrics"]["rows"]:
                del row["images_per_second"]  # equal work gives equal bytes
        return result


def _loss_images(bundle: Bundle) -> int:
    spec = bundle.manifest.preprocess
    return max(LOSS_IMAGES, min(MOST_LOSS_IMAGES, LOSS_IMAGES * 640 * 640 // (spec.height * spec.width)))
