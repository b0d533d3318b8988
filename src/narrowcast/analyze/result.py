"""The whole analysis: what was measured, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from narrowcast.analyze.ablation import Ablation, ablate
from narrowcast.analyze.findings import Finding, Measured, findings
from narrowcast.analyze.measure import Effect, measure, reference
from narrowcast.analyze.regions import macs, regions
from narrowcast.analyze.resolution import Resolution, pixels_per_lsb
from narrowcast.analyze.sensitivity import Sensitivity, choose, sensitivity
from narrowcast.analyze.subject import Subject, subplan
from narrowcast.analyze.tensors import Tensor, graphwise
from narrowcast.base.progress import phase

__all__ = ["Analysis", "analyze"]


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
    findings: list[Finding]
    tensors: list[Tensor] = field(default_factory=list)
    layers: list[Effect] = field(default_factory=list)
    ablation: list[Ablation] = field(default_factory=list)
    sensitivity: list[Sensitivity] = field(default_factory=list)
    regions: dict[str, str] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        loss = self.everything.task.loss
        return f"<Analysis on {self.images} images: {self.task}, task loss {loss:.4f}, {len(self.findings)} findings>"

    @property
    def chosen(self) -> list[Sensitivity]:
        """Nodes worth 16 bits, by gain per cost, within a tenth of the multiplications."""
        return choose(self.sensitivity)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        lists = ("resolution", "findings", "tensors", "layers", "ablation", "sensitivity")
        return {
            "task": self.task,
            "images": self.images,
            "detections": self.detections,
            "everything": self.everything.to_dict(),
            **{name: [entry.to_dict() for entry in getattr(self, name)] for name in lists},
            "chosen": [entry.name for entry in self.chosen],
            "regions": self.regions,
            "macs": self.macs,
            "notes": list(self.notes),
        }


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
    references = reference(subject, threads)
    whole = ablate(subject, references, threads) if parts else []
    if whole:
        everything = whole[0].only
    else:
        plans = {"everything": subject.plan}
        everything = measure(subject, references, plans, subject.float_graph, title="whole", workers=threads)[
            "everything"
        ]
    tensors = graphwise(subject, threads) if graph else []
    names = {"products": subject.products, "all": subject.quantized_nodes, "none": list[str]}[layers]()
    single = {name: subplan(subject, [name]) for name in names}
    effects = measure(subject, references, single, subject.float_graph, title="layerwise", workers=threads)
    gains = sensitivity(subject, references, everything, workers=threads, threads=threads) if wide else []
    resolution = pixels_per_lsb(subject.head, subject.output_encodings)
    measured = Measured(subject, everything, resolution, tensors, list(effects.values()), whole, gains)
    return Analysis(
        references.judge.kind,
        len(subject.inputs),
        everything.task.detections,
        everything,
        resolution,
        findings(measured),
        tensors,
        list(effects.values()),
        whole,
        gains,
        regions(subject),
        {name: count for name, node in subject.nodes.items() if (count := macs(node))},
        notes,
    )
