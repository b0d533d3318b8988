"""Error in the units of the task: pixels, probability, overlap, on what decode keeps of the float model's output.

Noise ratios say little about accuracy: one step of a keypoint tensor at 39 dB can be 8 pixels. So the float model's own
detections are the reference, and the quantized outputs are read at the cells that produced them. There is no second
non-maximum suppression, so the error changes smoothly with the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrowcast.analyze.detections import Found, boxes_at, find, overlaps, values_at
from narrowcast.analyze.resolution import Resolution, pixels_per_lsb
from narrowcast.analyze.task_error import TaskError, combine
from narrowcast.graph.run import as_reals
from narrowcast.vision.heads import HeadSpec, sigmoid

__all__ = [
    "COCO_SIGMAS",
    "OTHER_SIGMA",
    "PERSON_SHARE",
    "Resolution",
    "TaskError",
    "TaskJudge",
    "combine",
    "pixels_per_lsb",
]

#: Standard deviations of the annotators' COCO keypoints, as a share of the object's size (pycocotools, ``Params``).
COCO_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089,
    0.089,
)  # fmt: skip
#: The same for keypoints that are not COCO's.
OTHER_SIGMA = 0.07
#: Share of its box that an object covers, where only the box is known (Ultralytics takes the same).
PERSON_SHARE = 0.53
#: Keeps divisions finite.
_LEAST = 1e-6
#: Classes that a classifier is judged by, and the probability below which they are not told apart: the many unlikely
#: ones, which an 8-bit softmax rounds to 0, would otherwise outweigh them.
_BEST, _TOLD_APART = 5, 1e-3

Outputs = Mapping[str, NDArray[Any]]


class TaskJudge:
    """Compares quantized outputs with float ones in the units of the task.

    Args:
        task: ``"detect"``, ``"pose"``, ``"segment"``, ``"classify"`` or anything else, which is judged by its noise.
        head: layout of the raw outputs; ``None`` for a whole graph.
        references: float model outputs of each image by name: raw head tensors (1, C, H, W) float32, or class scores.
        softmax_missing: class scores are logits.
        input_size: height and width of the model input in pixels; boxes are clipped to it.
        confidence: least probability of what counts as found by the float model.
        candidate: least probability, float or quantized, of a cell whose class probability is compared.
        most: detections an image at most.
        overlap: above which two boxes of a class are one object; 1 keeps every cell that is sure enough, which gives
            several times as many samples of the same image.

    Attributes:
        detections: how many objects the float model finds in each image.
        kind: the task that is judged by; ``"generic"`` where nothing was found in any image.
    """

    def __init__(
        self,
        task: str,
        head: HeadSpec | None,
        references: Sequence[Outputs],
        *,
        softmax_missing: bool = False,
        input_size: tuple[int, int],
        confidence: float = 0.15,
        candidate: float = 0.1,
        most: int = 60,
        overlap: float = 0.7,
    ) -> None:
        self.head = head
        self.softmax_missing = softmax_missing
        self.input_size = input_size
        self.references = references
        self.kind = task if task == "classify" or head is not None else "generic"
        self._found: list[Found] = []
        if head is not None and task != "classify":
            self._found = [find(entry, head, input_size, confidence, candidate, most, overlap) for entry in references]
            if not any(len(found.cells) or len(found.candidates) for found in self._found):
                self.kind = "generic"
        self.detections = [len(found.cells) for found in self._found]
        self._masks = [self._masks_of(found, references[i], found) for i, found in enumerate(self._found)]

    def judge(self, index: int, outputs: Outputs) -> TaskError:
        """Error of one image.

        Args:
            index: of the image in ``references``.
            outputs: quantized outputs as float32, by the same names and in the same shapes.
        """
        judges: dict[str, Callable[[int, Outputs], TaskError]] = {
            "classify": self._classification,
            "generic": self._noise,
        }
        return judges.get(self.kind, self._objects)(index, outputs)

    def _objects(self, index: int, outputs: Outputs) -> TaskError:
        assert self.head is not None
        found = self._found[index]
        candidates, candidate_error = self._candidate_error(found, outputs)
        count = len(found.cells)
        if not count:
            return TaskError(0, candidates, 1, candidate_probability=candidate_error)
        boxes = boxes_at(outputs, self.head, found, self.input_size)
        logits = values_at(outputs, self.head, "cls", found)[found.classes, np.arange(count)]
        points = self._keypoint_error(found, outputs) if self.head.extra == "kpt" else (None, None)
        masks = self._mask_loss(index, outputs) if self.head.extra == "mask" else None
        return TaskError(
            count,
            candidates,
            1,
            box_pixels=float(np.abs(boxes - found.boxes).mean()),
            iou_loss=float(1 - overlaps(found.boxes, boxes).mean()),
            probability=float(np.abs(sigmoid(logits) - found.scores).mean()),
            candidate_probability=candidate_error,
            keypoint_pixels=points[0],
            oks_loss=points[1],
            mask_iou_loss=masks,
        )

    def _candidate_error(self, found: Found, outputs: Outputs) -> tuple[int, float]:
        """How many (class, cell) pairs either graph thinks possible, and their mean probability error."""
        assert self.head is not None
        parts = []
        for stride, reference, likely in zip(self.head.strides, found.logits, found.likely, strict=True):
            actual = np.asarray(outputs[f"cls_s{stride}"], np.float32).reshape(-1)
            pairs = np.union1d(likely, np.flatnonzero(actual >= found.candidate_logit))
            parts.append(np.abs(sigmoid(actual[pairs]) - sigmoid(reference[pairs])))
        errors = np.concatenate(parts)
        return len(errors), float(errors.mean()) if len(errors) else 0.0

    def _keypoint_error(self, found: Found, outputs: Outputs) -> tuple[float, float]:
        """Pixels and 1 - object keypoint similarity, weighted by how visible the float model thinks each point is."""
        assert self.head is not None and self.head.keypoint_shape is not None
        count, dims = self.head.keypoint_shape
        raw = values_at(outputs, self.head, "kpt", found).reshape(count, dims, -1)
        assert found.raw_keypoints is not None
        shift = (raw[:, :2] - found.raw_keypoints[:, :2]) * 2 * found.strides  # (K, 2, n) pixels
        squared = np.square(shift).sum(axis=1)
        sure = sigmoid(found.raw_keypoints[:, 2]) if dims == 3 else np.ones_like(squared)
        weight = sure / np.maximum(sure.sum(axis=0), _LEAST)
        sigmas = np.array(COCO_SIGMAS if count == len(COCO_SIGMAS) else [OTHER_SIGMA] * count)[:, None]
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        area = PERSON_SHARE * np.maximum(sides.prod(axis=1), 1.0)
        losses = (weight * -np.expm1(-squared / (2 * area * np.square(2 * sigmas)))).sum(axis=0)
        pixels = (weight * np.sqrt(squared)).sum(axis=0)
        return float(pixels.mean()), float(losses.mean())

    def _masks_of(self, found: Found, outputs: Outputs, windows: Found) -> list[NDArray[np.bool_]]:
        """Mask of every detection on the prototypes inside the float model's box."""
        if self.head is None or self.head.extra != "mask" or not len(found.cells):
            return []
        coefficients = values_at(outputs, self.head, "mask", found)
        prototypes = np.asarray(outputs["proto"][0], np.float32)
        height, width = prototypes.shape[1:]
        step = np.array([width / self.input_size[1], height / self.input_size[0]] * 2)
        masks = []
        for position, box in enumerate(windows.boxes * step):
            left, top = (int(v) for v in np.floor(box[:2]))
            right, bottom = max(left + 1, int(np.ceil(box[2]))), max(top + 1, int(np.ceil(box[3])))
            part = prototypes[:, top:bottom, left:right]
            masks.append(np.tensordot(coefficients[:, position], part, 1) > 0)
        return masks

    def _mask_loss(self, index: int, outputs: Outputs) -> float:
        found = self._found[index]
        losses = []
        for one, other in zip(self._masks[index], self._masks_of(found, outputs, found), strict=True):
            union = int((one | other).sum())
            losses.append(1 - int((one & other).sum()) / union if union else 0.0)
        return float(np.mean(losses))

    def _classification(self, index: int, outputs: Outputs) -> TaskError:
        name = next(iter(self.references[index]))
        expected, actual = self._probabilities(self.references[index][name]), self._probabilities(outputs[name])
        best = int(expected.argmax())
        kept = np.union1d(np.argsort(-expected, kind="stable")[:_BEST], [int(actual.argmax())])
        p, q = (np.maximum([*v[kept], 1 - v[kept].sum()], _TOLD_APART) for v in (expected, actual))
        return TaskError(
            1,
            0,
            1,
            probability=float(abs(actual[best] - expected[best])),
            top1_disagreement=float(actual.argmax() != best),
            divergence=max(0.0, float((p * np.log(p / q)).sum() - p.sum() + q.sum())),
        )

    def _probabilities(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        values = np.asarray(scores, np.float64).reshape(-1)
        if self.softmax_missing:
            values = np.exp(values - values.max())
            values /= values.sum()
        return np.asarray(values, np.float64)

    def _noise(self, index: int, outputs: Outputs) -> TaskError:
        ratios = []
        for name, expected in self.references[index].items():
            x, y = (values.astype(np.float64) for values in as_reals(expected, outputs[name]))
            ratios.append(float(np.square(y - x).sum() / (np.square(x).sum() + 1e-7)))
        return TaskError(0, 0, 1, noise_ratio=float(np.mean(ratios)))
