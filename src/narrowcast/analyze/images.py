"""Which images an analysis may use, and which say most."""

from __future__ import annotations

from collections.abc import Collection

import onnx

from narrowcast.analyze.task_units import TaskJudge
from narrowcast.base.errors import UserError
from narrowcast.base.progress import track
from narrowcast.calibrate.images import ImageSet, spread
from narrowcast.graph.run import Runner
from narrowcast.vision.heads import HeadSpec

__all__ = ["telling", "unseen"]


def unseen(images: ImageSet, used: Collection[str]) -> tuple[ImageSet, int]:
    """Images that nothing was made from yet, each content once.

    Args:
        images: those given.
        used: SHA-256 of those that something was made from, such as the calibration images.

    Returns:
        What remains, and how many were left out because they were used.

    Raises:
        UserError: nothing remains.
    """
    digests, known = images.hashes(), set(used)
    first = {digest: index for index, digest in reversed(list(enumerate(digests)))}
    keep = sorted(index for digest, index in first.items() if digest not in known)
    if not keep:
        raise UserError(
            f"all {len(images)} images were used for calibration", "give others, or calibrate on fewer of them"
        )
    return images.subset(keep), sum(digest in known for digest in digests)


def telling(images: ImageSet, limit: int, proto: onnx.ModelProto, task: str, head: HeadSpec | None) -> ImageSet:
    """At most ``limit`` images, those in which the float model finds something first.

    An image in which nothing is found only tells about false positives. Up to four times as many images are looked
    at, spread evenly; unreadable ones are left out.

    Args:
        images: to choose from.
        limit: how many.
        proto: float graph.
        task: of the model.
        head: of the model; without one the images are spread evenly.
    """
    count = len(images)
    wanted = min(limit, count)
    looked_at = images.spread(min(count, wanted if head is None else 4 * limit)).usable()
    seen = len(looked_at)
    if head is None or seen <= wanted:
        return looked_at
    size = images.preprocess.height, images.preprocess.width
    runner = Runner(proto, 0, "basic")
    found = []
    for tensor in track(looked_at, "choose", seen):
        found.append(TaskJudge(task, head, [runner.run(tensor)], input_size=size).detections[0] > 0)
    order = sorted(range(seen), key=lambda index: (not found[index], index))
    first = [index for index in order if found[index]]
    chosen = spread(first, wanted) if len(first) >= wanted else order[:wanted]
    return looked_at.subset(sorted(chosen))
