"""The whole analysis: what was measured, what costs accuracy, why, and the option that helps."""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

from narrowcast.analyze.measure import Effect, measure, plain, reference
from narrowcast.analyze.parts import (
    EVERYTHING,
    OUTPUTS,
    WEIGHTS,
    Ablation,
    Sensitivity,
    Tensor,
    ablate,
    choose,
    graphwise,
    sensitivity,
)
from narrowcast.analyze.subject import BACKBONE, Subject, macs, regions, subplan
from narrowcast.base.progress import phase
from narrowcast.chips import support
from narrowcast.tasks import shown
from narrowcast.tasks.task import Resolution

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
        remedy: what to do; empty where nothing has to be done.
        command: that does it and can be pasted; what a person has to fill in is written in capitals. May be empty.
        about: node, tensor or part, for links.
    """

    cost: float
    what: str
    why: str
    remedy: str
    about: str
    command: str = ""

    @property
    def text(self) -> str:
        """As one line, without the command."""
        return f"{self.what}: {self.why}. {self.remedy}".strip()


@dataclass(frozen=True)
class Analysis:
    """What :func:`analyze` found.

    Attributes:
        task: that was judged by; ``"generic"`` where the float model found nothing.
        images: how many.
        detections: that the float model found in them.
        everything: effect of the whole plan.
        resolution: what one step of every output is worth.
        findings: the costliest first.
        tensors: cumulative error and fit, in graph order; empty where not asked for.
        layers: effect of single nodes, in graph order; empty where not asked for.
        ablation: effect of parts; empty where not asked for.
        sensitivity: gain of 16 bits; empty where not asked for.
        regions: node to part of the network.
        macs: node to multiplications, where there are any.
        notes: one sentence each.
    """

    task: str
    images: int
    detections: int
    everything: Effect
    resolution: list[Resolution]
    findings: list[Finding] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    layers: list[Effect] = field(default_factory=list)
    ablation: list[Ablation] = field(default_factory=list)
    sensitivity: list[Sensitivity] = field(default_factory=list)
    regions: dict[str, str] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        found = f"task loss {self.loss:.4f}, {len(self.findings)} findings"
        return f"<Analysis on {self.images} images: {self.task}, {found}>"

    @property
    def chosen(self) -> list[Sensitivity]:
        """Nodes worth 16 bits, by gain per cost, within a tenth of the multiplications."""
        return choose(self.sensitivity)

    @property
    def loss(self) -> float:
        """In task units, of everything quantized."""
        return self.everything.task.loss

    def part(self, name: str) -> Ablation | None:
        """A part of the ablation."""
        return next((entry for entry in self.ablation if entry.part == name), None)

    def layer_cost(self, node: str) -> float:
        """Task loss of a node alone, 0 where that was not measured."""
        return next((effect.task.loss for effect in self.layers if effect.name == node), 0.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found = {entry.name: plain(getattr(self, entry.name)) for entry in fields(self)}
        last = {name: found.pop(name) for name in ("regions", "macs", "notes")}
        return {**found, "chosen": [entry.name for entry in self.chosen], **last}


def findings(subject: Subject, measured: Analysis) -> list[Finding]:
    """Everything worth saying, the costliest first."""
    found = [
        *_resolution(subject, measured),
        *_branches(subject, measured),
        *_weights(subject, measured),
        *_layers(subject, measured),
        *_fits(subject, measured),
        *_sixteen(subject, measured),
    ]
    order = sorted(range(len(found)), key=lambda index: (-found[index].cost, index))
    few = measured.everything.task.detections < _FEW and subject.meaning.head is not None
    return [found[index] for index in order] + ([_few(subject, measured)] if few else [])


def _few(subject: Subject, measured: Analysis) -> Finding:
    what = f"the float model finds {measured.everything.task.detections} objects in these images"
    command = f"narrowcast analyze {shlex.quote(subject.bundle)} --images FOLDER --limit 32 --force"
    return Finding(0.0, what, "means over so few are mostly chance", "Give more images:", "", command)


def _resolution(subject: Subject, measured: Analysis) -> list[Finding]:
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
        makers = _makers(subject, [row.name for row in rows])
        alone = measured.part(f"{quantity} {OUTPUTS}")
        cost = alone.only.task.loss if alone is not None else 0.0
        what = f"One step of the {quantity} output is worth {steps}"
        why = f"{rows[0].dtype} has too few steps for its range, however good its noise ratio looks"
        command = _wider(subject, makers)
        remedy = "Let the last convolutions leave wider:" if command else ""
        result.append(Finding(cost, what, why, remedy, rows[-1].name, command))
    return result


def _amount(row: Resolution) -> str:
    return f"{row.per_lsb:.2g} {row.unit}" if row.per_lsb < 100 else f"{row.per_lsb:.0f} {row.unit}"


def _makers(subject: Subject, outputs: Sequence[str]) -> list[str]:
    wide = {value.name: value.producer() for value in subject.model.graph.outputs if value.name in outputs}
    makers = [str(node.name) for node in wide.values() if node is not None]
    return [name for name in makers if subject.plan.nodes[name].type == "int8"]


def _branches(subject: Subject, measured: Analysis) -> list[Finding]:
    """Parts of the network that cost much by themselves."""
    where = measured.regions
    result = []
    for entry in measured.ablation:
        members = [name for name, region in where.items() if region == entry.part]
        if entry.without is None or not members:
            continue
        gain = measured.loss - entry.without.task.loss
        if gain < _LEAST_SHARE * measured.loss:
            continue
        nodes = [name for name in subject.products() if name in set(members)]
        command = _wider(subject, nodes)
        remedy = "Run it at 16 bits:" if command else ""
        if entry.part == BACKBONE:
            remedy, command = _longer(subject)
        why = f"alone it costs {entry.only.task.loss:.3f}, its noise is {_parts(entry.only)}"
        what = f"Quantizing the {entry.part} costs {gain:.3f} of the task loss of {measured.loss:.3f}"
        result.append(Finding(gain, what, why, remedy, entry.part, command))
    return result


def _again(subject: Subject, *options: str) -> str:
    """The command that quantizes again with further options."""
    folder = f"{subject.bundle.rstrip('/')}-2" if subject.bundle != "BUNDLE" else "OUT"
    return shlex.join([*subject.command, *options, "--out", folder])


def _wider(subject: Subject, nodes: Sequence[str]) -> str:
    """The command that runs the nodes at 16 bits, empty where the chip cannot."""
    runs = [name for name in nodes if "int16" in support(subject.nodes[name], subject.target).types]
    if not runs or len(runs) < len(nodes):
        return ""
    short = pattern(nodes, list(subject.nodes), subject.products())
    return _again(subject, *(word for name in ([short] if short else nodes) for word in ("--int16", name)))


def _longer(subject: Subject) -> tuple[str, str]:
    """More work on the same numbers: what to do, and the command."""
    if ("--effort", "max") in set(pairwise(subject.command)) or "--effort=max" in subject.command:
        return "Teach it with the float model:", f"narrowcast finetune {shlex.quote(subject.bundle)} --images FOLDER"
    return "Round and correct the weights longer on images:", _again(subject, "--effort", "max")


def _parts(effect: Effect) -> str:
    """The error in words, what people care for first."""
    values = effect.task.values
    said = [q.sentence.format(values[q.name]) for q in shown([effect.task]) if q.sentence]
    return ", ".join(said)


def _weights(subject: Subject, measured: Analysis) -> list[Finding]:
    part = measured.part(WEIGHTS)
    if part is None or part.only.task.loss < 0.4 * measured.loss:
        return []
    why = f"quantizing only them leaves {_parts(part.only)}"
    what = f"Weights cost {part.only.task.loss:.3f} of {measured.loss:.3f}"
    remedy, command = _longer(subject)
    return [Finding(part.only.task.loss, what, why, remedy, WEIGHTS, command)]


def _layers(subject: Subject, measured: Analysis) -> list[Finding]:
    """The single nodes that cost most."""
    tensors = {entry.node: entry for entry in measured.tensors}
    worst = sorted(measured.layers, key=lambda effect: (-effect.task.loss, effect.name))[:3]
    result = []
    for effect in worst:
        if effect.task.loss < _LEAST_SHARE / 3 * measured.loss or effect.task.loss == 0:
            continue
        what = f"{effect.name} alone costs {effect.task.loss:.3f} ({_parts(effect)})"
        command = _wider(subject, [effect.name])
        why = _reason(effect.name, tensors.get(effect.name), subject)
        result.append(Finding(effect.task.loss, what, why, "Try 16 bits:" if command else "", effect.name, command))
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
    coarse = "weights and results are" if name in subject.products() else "result is"
    return f"its 8-bit {coarse} too coarse for what later layers make of it"


def _fits(subject: Subject, measured: Analysis) -> list[Finding]:
    """Scales that do not fit their tensors, the worst of each kind.

    Clipping is often right: methods other than minmax clip rare values so that the usual ones get finer steps, and what
    a class score loses far below its threshold changes nothing. So it counts only where the node alone costs something.
    """
    least = _LEAST_SHARE / 3 * measured.loss
    result = []
    clipped = [t for t in measured.tensors if t.clipped > 0.005 and measured.layer_cost(t.node) > least]
    if clipped:
        worst = max(clipped, key=lambda entry: (measured.layer_cost(entry.node), entry.clipped))
        many = "tensors that cost accuracy lose" if len(clipped) > 1 else "tensor that costs accuracy loses"
        what = f"{len(clipped)} {many} more than 0.5 % of values to clipping, most {worst.name}"
        why = f"{worst.clipped:.1%} of it is beyond {worst.low:.3g} to {worst.high:.3g}"
        remedy = "Calibrate on more, more varied images."
        result.append(Finding(measured.layer_cost(worst.node), what, why, remedy, worst.name))
    waste = [
        t for t in measured.tensors
        if t.unused_bits > 1.0 and t.dtype in ("int8", "uint8") and measured.layer_cost(t.node) > least
    ]  # fmt: skip
    if waste:
        worst = max(waste, key=lambda entry: entry.unused_bits)
        many = "tensors that cost accuracy leave" if len(waste) > 1 else "tensor that costs accuracy leaves"
        what = f"{len(waste)} {many} more than one bit of the range unused, most {worst.name}"
        why = f"it fills {worst.minimum:.3g} to {worst.maximum:.3g} of {worst.low:.3g} to {worst.high:.3g}"
        remedy = "Let the methods be measured:"
        if any(word.startswith("--method") for word in subject.command):
            command = _again(subject, "--method", "auto")
        else:
            remedy, command = "Calibrate on images like those that the chip will see.", ""
        result.append(Finding(measured.layer_cost(worst.node), what, why, remedy, worst.name, command))
    return result


def _sixteen(subject: Subject, measured: Analysis) -> list[Finding]:
    """The set of nodes that 16 bits pay for."""
    chosen = measured.chosen
    groups = [entry for entry in measured.sensitivity if entry.group and entry.gain > 0]
    result = []
    if groups:
        best = max(groups, key=lambda entry: (entry.gain, entry.name))
        what = f"The {best.name} at 16 bits ({best.cost:.1%} of the multiplications) takes off {best.gain:.3f}"
        command = _wider(subject, best.nodes)
        remedy = "To do so:" if command else ""
        result.append(Finding(best.gain, what, f"{_parts(best.effect)} are left", remedy, best.name, command))
    if chosen:
        gain, cost = sum(entry.gain for entry in chosen), sum(entry.cost for entry in chosen)
        what = f"{len(chosen)} nodes at 16 bits ({cost:.1%} of the multiplications) gain {gain:.3f} one by one"
        first = ", ".join(entry.name for entry in sorted(chosen, key=lambda entry: (-entry.gain, entry.name))[:3])
        command = f"narrowcast tune {shlex.quote(subject.bundle)} --images FOLDER --int16-budget 10%"
        remedy = "Such a set is picked and measured again by:"
        about = chosen[0].name
        result.append(Finding(min(gain, measured.loss), what, f"most from {first}", remedy, about, command))
    return result


def pattern(nodes: Sequence[str], every: Collection[str], products: Collection[str]) -> str | None:
    """A pattern that matches the nodes and no other of the products, or ``None``."""
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


@phase("analyze")
def analyze(
    subject: Subject,
    *,
    graph: bool = True,
    layers: str = "products",
    parts: bool = True,
    wide: bool = False,
    threads: int = 0,
    notes: tuple[str, ...] = (),
) -> Analysis:
    """Find where the accuracy goes.

    Args:
        subject: the model and its images.
        graph: cumulative error of every tensor.
        layers: which single nodes: ``"products"`` (convolutions and the like), ``"all"`` or ``"none"``.
        parts: weights, activations, backbone, branches alone.
        wide: what 16 bits would buy.
        threads: at most; 0 for all cores.
        notes: about the images, to be kept with the result.
    """
    judge = reference(subject, threads)
    whole = ablate(subject, judge, threads) if parts else []
    if whole:
        everything = whole[0].only
    else:
        plans = {EVERYTHING: subject.plan}
        everything = measure(subject, judge, plans, subject.float_graph, title="whole", workers=threads)[EVERYTHING]
    tensors = graphwise(subject, threads) if graph else []
    names = {"products": subject.products, "all": subject.quantized_nodes, "none": list[str]}[layers]()
    single = {name: subplan(subject, [name]) for name in names}
    effects = measure(subject, judge, single, subject.float_graph, title="layerwise", workers=threads)
    gains = sensitivity(subject, judge, everything, workers=threads, threads=threads) if wide else []
    resolution = subject.meaning.resolution(subject.output_encodings)
    measured = Analysis(
        judge.meaning.name,
        len(subject.inputs),
        everything.task.detections,
        everything,
        resolution,
        [],
        tensors,
        list(effects.values()),
        whole,
        gains,
        regions(subject),
        {name: count for name, node in subject.nodes.items() if (count := macs(node))},
        notes,
    )
    return replace(measured, findings=findings(subject, measured))
