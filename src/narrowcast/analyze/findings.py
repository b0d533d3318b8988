"""From numbers to sentences: what costs accuracy, why, and the option that helps."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from narrowcast.analyze.ablation import OUTPUTS, WEIGHTS, Ablation
from narrowcast.analyze.measure import Effect
from narrowcast.analyze.regions import BACKBONE, regions
from narrowcast.analyze.resolution import Resolution
from narrowcast.analyze.sensitivity import Sensitivity, choose
from narrowcast.analyze.subject import Subject
from narrowcast.analyze.tensors import Tensor

__all__ = ["Finding", "Measured", "findings", "pattern"]

#: One step of an output matters from here on.
_LEAST_PIXELS, _LEAST_PROBABILITY = 1.0, 0.02
#: Share of the whole loss from which a part is worth a sentence.
_LEAST_SHARE = 0.15
#: Detections below which means are mostly chance.
_FEW = 20


@dataclass(frozen=True)
class Finding:
    """One sentence in three parts.

    Attributes:
        cost: task loss that it stands for.
        what: what was measured.
        why: the reason.
        remedy: what to do, with the exact option; empty where nothing has to be done.
        about: node, tensor or part, for links.
    """

    cost: float
    what: str
    why: str
    remedy: str
    about: str

    @property
    def text(self) -> str:
        """As one line."""
        return f"{self.what}: {self.why}. {self.remedy}".strip()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """What findings are drawn from; lists are empty where that was not measured."""

    subject: Subject
    everything: Effect
    resolution: Sequence[Resolution]
    tensors: Sequence[Tensor]
    layers: Sequence[Effect]
    ablation: Sequence[Ablation]
    sensitivity: Sequence[Sensitivity]

    @property
    def loss(self) -> float:
        """Of everything quantized."""
        return self.everything.task.loss

    def part(self, name: str) -> Ablation | None:
        """A part of the ablation."""
        return next((entry for entry in self.ablation if entry.part == name), None)


def findings(measured: Measured) -> list[Finding]:
    """Everything worth saying, the costliest first."""
    found = [
        *_resolution(measured),
        *_branches(measured),
        *_weights(measured),
        *_layers(measured),
        *_fits(measured),
        *_sixteen(measured),
    ]
    order = sorted(range(len(found)), key=lambda index: (-found[index].cost, index))
    few = measured.everything.task.detections < _FEW and measured.subject.head is not None
    return [found[index] for index in order] + ([_few(measured)] if few else [])


def _few(measured: Measured) -> Finding:
    count = measured.everything.task.detections
    return Finding(
        0.0, f"the float model finds {count} objects in these images", "means over so few are mostly chance",
        "Give more images: --images DIR --limit 32.", "",
    )  # fmt: skip


def _resolution(measured: Measured) -> list[Finding]:
    """Always the first thing checked: is one step of an output already more than the task forgives?"""
    coarse: dict[str, list[Resolution]] = {}
    for row in measured.resolution:
        least = {"pixels": _LEAST_PIXELS, "probability": _LEAST_PROBABILITY}.get(row.unit)
        if least is not None and row.per_lsb >= least:
            coarse.setdefault(row.quantity, []).append(row)
    if not coarse:
        known = [row for row in measured.resolution if row.unit != "raw"]
        if not known:
            return []
        worst = max(known, key=lambda row: row.per_lsb / (1 if row.unit == "pixels" else _LEAST_PROBABILITY))
        what = f"One step of every output is small, at most {_amount(worst)} ({worst.name}, {worst.dtype})"
        return [Finding(0.0, what, "output resolution is not where accuracy goes", "", worst.name)]
    result = []
    for quantity, rows in coarse.items():
        steps = ", ".join(f"{_amount(row)} in {row.name}" for row in rows)
        makers = _makers(measured.subject, [row.name for row in rows])
        alone = measured.part(f"{quantity} {OUTPUTS}")
        cost = alone.only.task.loss if alone is not None else 0.0
        result.append(
            Finding(
                cost,
                f"One step of the {quantity} output is worth {steps}",
                f"{rows[0].dtype} has too few steps for its range, however good its noise ratio looks",
                f"Let the last convolutions leave wider: {_options(measured.subject, makers)}."
                if makers
                else "Pin these outputs to a wider type in plan.json and use --plan.",
                rows[-1].name,
            )
        )
    return result


def _amount(row: Resolution) -> str:
    return f"{row.per_lsb:.2g} {row.unit}" if row.per_lsb < 100 else f"{row.per_lsb:.0f} {row.unit}"


def _makers(subject: Subject, outputs: Sequence[str]) -> list[str]:
    wide = {value.name: value.producer() for value in subject.model.graph.outputs if value.name in outputs}
    makers = [str(node.name) for node in wide.values() if node is not None]
    return [name for name in makers if subject.plan.nodes[name].type == "int8"]


def _branches(measured: Measured) -> list[Finding]:
    """Parts of the network that cost much by themselves."""
    where = regions(measured.subject)
    result = []
    for entry in measured.ablation:
        members = [name for name, region in where.items() if region == entry.part]
        if entry.without is None or not members:
            continue
        gain = measured.loss - entry.without.task.loss
        if gain < _LEAST_SHARE * measured.loss:
            continue
        nodes = [name for name in measured.subject.products() if name in set(members)]
        remedy = f"Run it at 16 bits: {_options(measured.subject, nodes)}, or let narrowcast tune choose within it."
        if entry.part == BACKBONE:
            remedy = "Quantize with --effort max, or let narrowcast tune choose its nodes for 16 bits."
        why = f"alone it costs {entry.only.task.loss:.3f}, its noise is {_parts(entry.only)}"
        what = f"Quantizing the {entry.part} costs {gain:.3f} of the task loss of {measured.loss:.3f}"
        result.append(Finding(gain, what, why, remedy, entry.part))
    return result


def _parts(effect: Effect) -> str:
    """The error in words, what people care for first."""
    task = effect.task
    words = [
        (task.keypoint_pixels, "{:.2f} pixels of a keypoint"),
        (task.mask_iou_loss, "{:.3f} of mask IoU"),
        (task.box_pixels, "{:.2f} pixels of a box side"),
        (task.probability, "{:.3f} of a probability"),
        (task.noise_ratio, "a noise-to-signal ratio of {:.2g}"),
    ]
    return ", ".join(text.format(value) for value, text in words if value is not None)


def _weights(measured: Measured) -> list[Finding]:
    part = measured.part(WEIGHTS)
    if part is None or part.only.task.loss < 0.4 * measured.loss:
        return []
    why = f"quantizing only them leaves {_parts(part.only)}"
    remedy = "Round and correct them on images: --effort max; what is left, narrowcast finetune."
    what = f"Weights cost {part.only.task.loss:.3f} of {measured.loss:.3f}"
    return [Finding(part.only.task.loss, what, why, remedy, WEIGHTS)]


def _layers(measured: Measured) -> list[Finding]:
    """The single nodes that cost most."""
    tensors = {entry.node: entry for entry in measured.tensors}
    worst = sorted(measured.layers, key=lambda effect: (-effect.task.loss, effect.name))[:3]
    result = []
    for effect in worst:
        if effect.task.loss < _LEAST_SHARE / 3 * measured.loss or effect.task.loss == 0:
            continue
        what = f"{effect.name} alone costs {effect.task.loss:.3f} ({_parts(effect)})"
        remedy = f"Try {_options(measured.subject, [effect.name])}."
        why = _reason(effect.name, tensors.get(effect.name), measured.subject)
        result.append(Finding(effect.task.loss, what, why, remedy, effect.name))
    return result


def _reason(name: str, tensor: Tensor | None, subject: Subject) -> str:
    if tensor is not None and tensor.clipped > 0.002:
        return f"{tensor.clipped:.2%} of its results are clipped at {tensor.low:.3g} and {tensor.high:.3g}"
    if tensor is not None and tensor.outlier_channels:
        count = len(tensor.outlier_channels)
        channels = "1 channel reaches" if count == 1 else f"{count} channels reach"
        return f"{channels} 8 times as far as the others and set the scale for all"
    if tensor is not None and tensor.unused_bits > 0.7:
        return f"{tensor.unused_bits:.1f} bits of its range are never used"
    if tensor is not None:
        return f"its own result keeps {tensor.own_db:.0f} dB and later layers depend on it"
    return "its 8-bit weights and results are too coarse for what later layers make of them"


def _fits(measured: Measured) -> list[Finding]:
    """Scales that do not fit their tensors, the worst of each kind."""
    result = []
    clipped = [entry for entry in measured.tensors if entry.clipped > 0.005]
    if clipped:
        worst = max(clipped, key=lambda entry: entry.clipped)
        many = "tensors lose" if len(clipped) > 1 else "tensor loses"
        what = f"{len(clipped)} {many} more than 0.5 % of values to clipping, most {worst.name}"
        why = f"{worst.clipped:.1%} of it is beyond {worst.low:.3g} to {worst.high:.3g}"
        remedy = "Calibrate on more, more varied images, or with --method minmax."
        result.append(Finding(_layer_cost(measured, worst.node), what, why, remedy, worst.name))
    waste = [entry for entry in measured.tensors if entry.unused_bits > 1.0 and entry.dtype in ("int8", "uint8")]
    if waste:
        worst = max(waste, key=lambda entry: entry.unused_bits)
        what = f"{len(waste)} tensors leave more than one bit of their range unused, most {worst.name}"
        why = f"it fills {worst.minimum:.3g} to {worst.maximum:.3g} of {worst.low:.3g} to {worst.high:.3g}"
        remedy = "Calibrate with --method mse or --method auto."
        result.append(Finding(_layer_cost(measured, worst.node), what, why, remedy, worst.name))
    return result


def _layer_cost(measured: Measured, node: str) -> float:
    return next((effect.task.loss for effect in measured.layers if effect.name == node), 0.0)


def _sixteen(measured: Measured) -> list[Finding]:
    """The set of nodes that 16 bits pay for."""
    chosen = choose(measured.sensitivity)
    groups = [entry for entry in measured.sensitivity if entry.group and entry.gain > 0]
    result = []
    if groups:
        best = max(groups, key=lambda entry: (entry.gain, entry.name))
        what = f"The {best.name} at 16 bits ({best.cost:.1%} of the multiplications) takes off {best.gain:.3f}"
        options = _options(measured.subject, best.nodes)
        result.append(Finding(best.gain, what, f"{_parts(best.effect)} are left", f"Use {options}.", best.name))
    if chosen:
        gain, cost = sum(entry.gain for entry in chosen), sum(entry.cost for entry in chosen)
        what = f"{len(chosen)} nodes at 16 bits ({cost:.1%} of the multiplications) gain {gain:.3f} one by one"
        remedy = "narrowcast tune BUNDLE --int16-budget 10% picks and re-measures such a set"
        first = ", ".join(entry.name for entry in sorted(chosen, key=lambda entry: (-entry.gain, entry.name))[:3])
        result.append(Finding(min(gain, measured.loss), what, f"most from {first}", f"{remedy}.", chosen[0].name))
    return result


def _options(subject: Subject, nodes: Sequence[str]) -> str:
    """``--int16`` options that mean exactly these nodes, or these with passive ones between them."""
    short = pattern(nodes, list(subject.nodes), subject.products())
    return " ".join(f"--int16 '{name}'" for name in ([short] if short else nodes))


def pattern(nodes: Sequence[str], every: Collection[str], products: Collection[str]) -> str | None:
    """A pattern that matches the nodes and no other product, or ``None``.

    Args:
        nodes: names to match.
        every: all names of the graph.
        products: names of the sums of products; other nodes may be matched too.
    """
    if len(nodes) < 2:
        return None
    start = _prefix(nodes)
    end = _prefix([name[len(start) :][::-1] for name in nodes])[::-1]
    for tried in (f"{start}*", f"{start}*{end}"):
        matched = {name for name in every if fnmatch.fnmatchcase(name, tried)}
        if start and set(nodes) <= matched and not (matched & set(products)) - set(nodes):
            return tried
    return None


def _prefix(names: Sequence[str]) -> str:
    """The longest beginning that all have."""
    first, last = min(names), max(names)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:same]
