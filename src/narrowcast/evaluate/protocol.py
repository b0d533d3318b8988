"""How results are taken from a model before they are scored."""

from __future__ import annotations

from dataclasses import dataclass, replace

from narrowcast.base.errors import UserError

__all__ = ["PROTOCOLS", "Protocol", "choose"]


@dataclass(frozen=True)
class Protocol:
    """Options of decoding for scoring.

    Attributes:
        confidence: least score of a detection, 0..1.
        iou: boxes of a class that overlap more than this are one object.
        max_detections: kept an image; COCO scores the best 100 of each category (20 for keypoints).
        multi_label: an anchor may give a detection of several classes.
    """

    confidence: float = 0.001
    iou: float = 0.7
    max_detections: int = 300
    multi_label: bool = True


#: ``ultralytics`` is what ``yolo val`` does; ``rdk`` what the RDK model zoo's evaluation scripts do (score 0.25 cuts
#: the precision-recall curve, so that float and quantized both read lower).
PROTOCOLS = {"ultralytics": Protocol(), "rdk": Protocol(confidence=0.25, multi_label=False)}


def choose(
    name: str, confidence: float | None = None, iou: float | None = None, max_detections: int | None = None
) -> Protocol:
    """A protocol with changes.

    Raises:
        UserError: an unknown name or an impossible value.
    """
    if name not in PROTOCOLS:
        raise UserError(f"there is no protocol {name!r}", f"use {' or '.join(PROTOCOLS)}")
    given = {"confidence": confidence, "iou": iou, "max_detections": max_detections}
    protocol = replace(PROTOCOLS[name], **{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
    if not 0 < protocol.confidence < 1:
        raise UserError(f"a confidence of {protocol.confidence} is outside 0..1", "0.001 is usual for AP")
    if not 0 < protocol.iou <= 1:
        raise UserError(f"an overlap (iou) of {protocol.iou} is outside 0..1", "0.7 is usual")
    if protocol.max_detections < 1:
        raise UserError(f"{protocol.max_detections} detections an image leave none", "300 is usual")
    return protocol
