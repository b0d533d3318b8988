"""The optimizer: small steps of the weights towards what the float model gives, on many views of few images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from narrowcast.base.errors import UserError
from narrowcast.base.progress import track
from narrowcast.calibrate.images import ImageSet
from narrowcast.chips.schema import Target
from narrowcast.engine.network import QuantizedNetwork
from narrowcast.graph.run import Runner
from narrowcast.improve.finetune.network import Network, Scales
from narrowcast.improve.finetune.settings import Region, Settings, Tied, region, tie
from narrowcast.ops.net import set_constant, with_outputs
from narrowcast.tasks import Task
from narrowcast.tasks.teaching import noise
from narrowcast.vision.preprocess import Preprocess

Array = NDArray[Any]
#: Side of what is shown over the side of the image: smaller values cut out, larger ones add a border.
SMALLEST, LARGEST = 0.65, 1.6
#: Brightness of half of the views.
DARKEST, BRIGHTEST = 0.7, 1.3
Tensor = Any
#: Share of the steps in which the rate rises from nothing, so that the moments of the optimizer settle.
WARM_UP = 0.05
#: Weight of the noise-to-signal ratio inside the network beside the loss of the outputs.
FEATURE_SHARE = 5.0
#: Share of the running mean that a step leaves. Weights near the middle between two steps swap sides at random (Nagel
#: et al., Overcoming oscillations in quantization-aware training, 2022); their mean says on which side they are mostly.
MEMORY = 0.95


@dataclass(frozen=True)
class Lesson:
    """One view.

    Attributes:
        entering: values at the frontier, rounded as the plan says.
        teacher: tensors of the float model.
    """

    entering: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]


def lessons(
    network: Network, region: Region, teacher: Runner, targets: Sequence[str], inputs: Iterable[NDArray[np.float32]]
) -> Iterator[Lesson]:
    """Run the float model, and the part of the quantized one that is not trained, once for each input.

    Args:
        network: quantized.
        region: what is trained.
        teacher: the float model, with ``targets`` among its outputs.
        targets: its tensors that are learned.
        inputs: of both models.
    """
    for tensor in inputs:
        expected = {
            name: torch.from_numpy(np.array(x)).to(network.device)
            for name, x in teacher.run(tensor, list(targets)).items()
        }
        with torch.no_grad():
            image = network.enter(teacher.input_name, torch.from_numpy(tensor).to(network.device))
            entering = network.run({teacher.input_name: image}, region.before, region.frontier)
        yield Lesson(entering, expected)


def views(images: ImageSet, seed: int, vary: bool) -> Iterator[NDArray[np.float32]]:
    """Model inputs without end; every image comes once before any comes again.

    Args:
        images: read again at every visit, so that memory does not grow with their number.
        seed: of the order and of the views.
        vary: show another part of the image each time, mirrored half of the time; ready-made inputs are mirrored only.

    Yields:
        float32 (1, C, H, W) or (1, H, W, C).
    """
    rng = np.random.default_rng(seed)
    wide = 3 if images.preprocess.layout == "NCHW" else 2
    while True:
        for index in rng.permutation(len(images)):
            mirrored = vary and bool(rng.integers(2))
            view = _View(images.preprocess, rng) if vary else None
            tensor = images.tensor(int(index), view)
            yield np.ascontiguousarray(np.flip(tensor, wide) if mirrored else tensor)


class _View:
    """A part of an image, drawn when made, so that the draws do not depend on what the image is."""

    def __init__(self, spec: Preprocess, rng: np.random.Generator) -> None:
        self.pad = spec.pad_value
        largest = LARGEST if spec.resize == "letterbox" else 1.0  # only a letterbox has borders anyway
        self.share = math.exp(rng.uniform(math.log(SMALLEST), math.log(largest)))
        self.down, self.across = rng.random(2)
        self.gain = rng.uniform(DARKEST, BRIGHTEST) if rng.integers(2) else 1.0

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 (H, W, 3) to another size of the same proportions."""
        height, width = (max(1, round(side * self.share)) for side in image.shape[:2])
        top = round((image.shape[0] - height) * self.down)
        left = round((image.shape[1] - width) * self.across)
        moved = np.array([[1, 0, -left], [0, 1, -top]], np.float32)
        shown = cv2.warpAffine(
            image, moved, (width, height), flags=cv2.INTER_NEAREST, borderValue=(self.pad, self.pad, self.pad)
        )
        return np.asarray(shown if self.gain == 1.0 else cv2.convertScaleAbs(shown, alpha=self.gain), np.uint8)


@dataclass(frozen=True)
class Course:
    """What there is to learn.

    Attributes:
        floating: the teacher.
        targets: its outputs that are learned, by the same names as in the quantized graph.
        features: its tensors inside that are learned too, by the same names.
        meaning: of the outputs.
        images: to learn from.
        target: of the plan.
        runtime: version of the chip's runtime; ``None`` for the newest known.
    """

    floating: onnx.ModelProto
    targets: tuple[str, ...]
    features: tuple[str, ...]
    meaning: Task
    images: ImageSet
    target: Target
    runtime: str | None = None


@dataclass
class Finetuned:
    """Result of :func:`train`.

    Attributes:
        network: the best one; the one given where nothing was better.
        judged: (step, loss in task units on other images), the start first.
        taught: mean training loss up to each of these steps; the start has none.
        kept: the step that was kept; 0 for the start.
    """

    network: QuantizedNetwork
    judged: list[tuple[int, float]] = field(default_factory=list)
    taught: list[float] = field(default_factory=list)
    kept: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; six digits."""
        return {
            "judged": [{"step": step, "loss": round(loss, 6)} for step, loss in self.judged],
            "training_loss": [round(loss, 6) for loss in self.taught],
            "kept_step": self.kept,
        }


def train(
    start: QuantizedNetwork,
    course: Course,
    judge: Callable[[QuantizedNetwork], float],
    settings: Settings,
    threads: int = 0,
) -> Finetuned:
    """Finetune weights and biases without labels.

    Args:
        start: the quantized network.
        course: what to learn.
        judge: loss of a network on images that are not learned from; decides what is kept.
        settings: how.
        threads: of onnxruntime; 0 for all cores.

    Returns:
        Never a network that is judged worse than the start.

    Raises:
        UserError: an operator without a rule.
    """
    device = _device(settings.device)
    before, cores = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    torch.set_num_threads(threads or cores)
    try:
        return _Training(start, course, settings, device, threads).run(judge)
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_num_threads(cores)


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        first = str(error).partition("\n")[0]
        raise UserError(f"torch has no device {wanted!r} here: {first}", "use auto or cpu") from error
    return wanted


class _Training:
    def __init__(self, start: QuantizedNetwork, course: Course, settings: Settings, device: str, threads: int) -> None:
        self.start, self.settings, self.device = start, settings, device
        self.targets = course.targets
        self.region: Region = region(start.model.graph, course.targets, settings.scope)
        made = {str(output.name) for node in self.region.trained for output in node.outputs}
        self.features = [name for name in course.features if name in made]
        movable = self.region.trained if settings.scale_rate else ()
        self.tied: Tied = tie(start.model.graph, start.plan, course.target, course.runtime, movable)
        self.network = self._network(course)
        wanted = [*self.targets, *self.features]
        shown = views(course.images, settings.seed, settings.vary and course.meaning.known)
        self.lessons = lessons(
            self.network, self.region, Runner(with_outputs(course.floating, wanted), threads, "basic"), wanted, shown
        )
        self.loss = course.meaning.loss(device)
        self.factors = {
            name: torch.tensor(values, dtype=torch.float32, device=device).reshape(1, -1, *[1] * 2)
            for name, values in start.factors.items()
        }
        groups = [(self.network.parameters(self.region.trained), settings.rate)]
        if not groups[0][0]:
            raise UserError("no node that can be trained has quantized weights", "finetune has nothing to do here")
        if self.network.scales is not None:
            groups.append(([self.network.scales.log2], settings.scale_rate))
        for parameters, _ in groups:
            for parameter in parameters:
                parameter.requires_grad_(True)
        self.optimizer = torch.optim.Adam([{"params": p, "lr": rate, "rate": rate} for p, rate in groups])
        self.trained = [parameter for parameters, _ in groups for parameter in parameters]
        self.means = [parameter.detach().clone() for parameter in self.trained]

    def _network(self, course: Course) -> Network:
        if not self.tied.groups:
            return Network(self.start.model, self.start.plan, self.device)
        whole = course.target.activation.scale == "power-of-two"
        scales = Scales(self.tied.groups, self.tied.encodings(), whole, self.device)
        return Network(self.start.model, self.tied.plan, self.device, scales)

    def run(self, judge: Callable[[QuantizedNetwork], float]) -> Finetuned:
        """Train, judge now and then, keep the best."""
        result = Finetuned(self.start, [(0, judge(self.start))])
        best = result.judged[0][1]
        steps, checks = self.settings.steps, min(self.settings.checks, self.settings.steps)
        stops = {round(steps * (check + 1) / checks) for check in range(checks)}
        losses: list[float] = []
        for step in track(range(1, steps + 1), "finetune", steps):
            losses.append(self._step(step))
            if step not in stops:
                continue
            network = self.trained_network()
            loss = judge(network)
            result.judged.append((step, loss))
            result.taught.append(float(np.mean(losses)))
            losses.clear()
            if loss < best:
                best, result.network, result.kept = loss, network, step
        return result

    def _step(self, step: int) -> float:
        """One step of the optimizer; the mean loss of its images."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * _schedule(step, self.settings.steps)
        self.optimizer.zero_grad()
        total = 0.0
        for _ in range(self.settings.batch):
            loss = self._image_loss(next(self.lessons)) / self.settings.batch
            loss.backward()
            total += float(loss.detach())
        self.optimizer.step()
        with torch.no_grad():
            for mean, parameter in zip(self.means, self.trained, strict=True):
                mean.lerp_(parameter, 1 - MEMORY)
        return total

    def _image_loss(self, lesson: Lesson) -> Tensor:
        outputs = self.network.run(dict(lesson.entering), self.region.trained, [*self.targets, *self.features])
        for name, factors in self.factors.items():
            if name in outputs:
                outputs[name] = outputs[name] / factors
        loss = self.loss(outputs, {name: lesson.teacher[name] for name in self.targets})
        if not self.features:
            return loss
        return loss + FEATURE_SHARE * noise(outputs, {name: lesson.teacher[name] for name in self.features})

    def trained_network(self) -> QuantizedNetwork:
        """The network with the running means of what is trained."""
        now = [parameter.detach().clone() for parameter in self.trained]
        self._set(self.means)
        found = _with_weights(self.start, self.network.arrays())
        scales = [] if self.network.scales is None else self.network.scales.found()
        found = replace(found, plan=self.tied.planned(found.model.graph, scales))
        self._set(now)
        return found

    def _set(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.trained, values, strict=True):
                parameter.copy_(value)


def _schedule(step: int, steps: int) -> float:
    """Share of the rate: a short rise, then half a cosine down to nothing."""
    warm = max(1.0, WARM_UP * steps)
    return min(1.0, step / warm) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))


def _with_weights(network: QuantizedNetwork, arrays: Mapping[str, Any]) -> QuantizedNetwork:
    model: ir.Model = network.model.clone()
    for name, array in arrays.items():
        set_constant(model.graph.initializers[name], array)
    return replace(network, model=model, changed=True)
