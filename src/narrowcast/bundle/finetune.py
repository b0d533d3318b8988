"""Finetune a bundle without labels: from a bundle and images to a bundle with better weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.analyze.subject import unseen
from narrowcast.base.errors import UserError
from narrowcast.base.progress import phase, track
from narrowcast.bundle import Bundle
from narrowcast.bundle.make import remake
from narrowcast.bundle.manifest import check_out
from narrowcast.calibrate import Images, ImageSet
from narrowcast.calibrate import images as find_images
from narrowcast.engine.network import QuantizedNetwork
from narrowcast.graph import Model, Runner
from narrowcast.improve import Judge
from narrowcast.improve.finetune import LEAST_IMAGES, Settings, require_torch
from narrowcast.improve.finetune.settings import features
from narrowcast.improve.judge import judged_pairs
from narrowcast.tasks import TaskError

if TYPE_CHECKING:
    from narrowcast.improve.finetune.training import Finetuned


__all__ = ["JUDGES", "finetune"]

#: Images that decide what is kept, and report: at least, at most, and one in so many.
LEAST_JUDGES, JUDGES, JUDGE_EVERY = 2, 16, 4


@phase("finetune")
def finetune(
    bundle: Bundle,
    images: Images,
    *,
    out: str | Path,
    settings: Settings | None = None,
    force: bool = False,
    threads: int = 0,
    command: Sequence[str] = (),
) -> Bundle:
    """Distil the float model of a bundle into its quantized one.

    Args:
        bundle: to start from; not changed.
        images: what :func:`narrowcast.images` gives or takes, of the kind that the model will see; none needs a
            label. One in four judges (fewer where calibration saw most of them), the others teach.
        out: folder to write.
        settings: how.
        force: replace an existing bundle.
        threads: of onnxruntime; 0 for all cores.
        command: recorded in the manifest.

    Returns:
        The new bundle; its manifest's ``calibration["finetune"]`` says what was gained. Where nothing was better on the
        judging images, its weights are those of the start.

    Raises:
        UserError: torch is missing, an operator that cannot be trained, too few images, too few that calibration has
            not seen, an existing folder.
    """
    place = check_out(out, force)
    require_torch()
    settings = settings or Settings()
    found = find_images(images, bundle.manifest.preprocess).usable()
    if len(found) < LEAST_IMAGES:
        raise UserError(f"{len(found)} images are too few to finetune", f"give {LEAST_IMAGES} or more, better 50")
    start, target = bundle.whole_network(), bundle.target
    teachers, judges = _sides(found, bundle)
    gate = _Gate(bundle, start, list(track(judges, "read", len(judges))), threads)
    from narrowcast.improve.finetune.training import Course, train  # needs torch

    manifest = bundle.manifest
    learned = tuple(gate.judge.pairs)
    inside = {str(output.name) for node in bundle.model.ir.graph for output in node.outputs}
    course = Course(
        bundle.model.to_proto(), learned, features(start.model.graph, inside, learned), manifest.meaning, teachers,
        target, manifest.runtime_version,
    )  # fmt: skip
    learnt = train(start, course, gate, settings, threads)
    images_used = {"teach": teachers.hashes(), "judge": judges.hashes()}
    record = {"settings": settings.to_dict(), **learnt.to_dict(), **gate.record(learnt), "images": images_used}
    record["image_notes"] = list(found.notes)
    return remake(
        bundle, learnt.network, {"finetune": record}, judges,
        out=place, force=force, threads=threads, command=command,
    )  # fmt: skip


def _sides(images: ImageSet, bundle: Bundle) -> tuple[ImageSet, ImageSet]:
    """Images that teach, and images that judge: of those that made neither the ranges nor the weights of the bundle.

    Raises:
        UserError: fewer than :data:`LEAST_JUDGES` of them can judge.
    """
    record = bundle.manifest.calibration
    used = {*record.get("images", ()), *record.get("finetune", {}).get("images", {}).get("teach", ())}
    fresh = unseen(images, used)[0]
    if len(fresh) < LEAST_JUDGES:
        raise UserError(
            f"{len(fresh)} of {len(images)} images was not used to make the bundle: too few to judge",
            f"give {LEAST_JUDGES} others or more, better {JUDGES}",
        )
    judges = fresh.spread(min(JUDGES, max(LEAST_JUDGES, len(images) // JUDGE_EVERY)))
    return unseen(images, judges.hashes())[0], judges


class _Gate:
    """Loss in task units on the judging images, through the exact integers where the target has them.

    Attributes:
        judge: holds the float outputs.
        errors: of every network so far.
        exact: whether the last one was run as exact integers.
    """

    def __init__(
        self, bundle: Bundle, start: QuantizedNetwork, inputs: list[NDArray[np.float32]], threads: int
    ) -> None:
        self.threads = threads
        model = _with_task(bundle)
        encoded = {name for name, encoding in start.plan.tensors.items() if encoding.dtype != "int32"}
        self.judge = Judge(model, judged_pairs(model, encoded), inputs, threads)
        self.errors: list[TaskError] = []
        self.exact = True

    def record(self, found: Finetuned) -> dict[str, Any]:
        """Errors before and after."""
        kept = [step for step, _ in found.judged].index(found.kept)
        return {
            "before": self.errors[0].to_dict(),
            "after": self.errors[kept].to_dict(),
            "judged_by": "exact integers" if self.exact else "QDQ graph",
        }

    def __call__(self, network: QuantizedNetwork) -> float:
        """Loss of a network."""
        pairs = self.judge.pairs
        proto, self.exact = network.best()
        if any(name != other for name, other in pairs.items()) or set(pairs) - {o.name for o in proto.graph.output}:
            proto, self.exact = network.qdq()[0], False  # logits before a Softmax exist in the QDQ graph only
        if self.exact:
            runner = Runner(proto, self.threads)
            error = self.judge.error(list(runner.run(x, list(pairs)).values()) for x in self.judge.inputs)
        else:
            error = self.judge.error_of(proto)
        self.errors.append(error)
        return error.loss


def _with_task(bundle: Bundle) -> Model:
    """The float model with what the manifest knows of its outputs."""
    manifest = bundle.manifest
    return replace(bundle.model, meaning=manifest.meaning, preprocess=manifest.preprocess)
