"""A task is one file: this one, with a number an image, is quantized, predicted, judged and scored as any other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

import narrowcast as nc
from builders import constant, model, save, weights
from narrowcast.cli.app import app
from narrowcast.tasks import QUANTITIES, TASKS, Ends, Family, Quantity, Task, TaskError, register
from narrowcast.vision import Result

OFF = Quantity("score_off", 5, "score off", 3, "how far the score moves", alone=True)


@dataclass(frozen=True)
class Scored(Result):
    """One number of an image."""

    score: float

    def __len__(self) -> int:
        return 1

    def to_dict(self, classes: Sequence[str] = ()) -> list[dict[str, Any]]:
        """See :class:`Result`."""
        return [{"score": round(self.score, 5)}]


@dataclass(frozen=True)
class Score(Task):
    """One number of an image, above 0 or not."""

    name: ClassVar[str] = "score"
    known: ClassVar[bool] = True
    one_answer: ClassVar[bool] = True
    kept: ClassVar[str] = "one number: the graph stays whole"
    quantities: ClassVar[tuple[Quantity, ...]] = (OFF,)
    families: ClassVar[tuple[Family, ...]] = (Family("signs", (OFF.name,)),)
    labels: ClassVar[tuple[str, ...]] = ("--labels", "LABELS.txt")
    columns: ClassVar[tuple[str, ...]] = ("score",)

    @classmethod
    def whole(cls, ends: Ends) -> Task | None:
        return cls() if [output.shape for output in ends.outputs] == [(1, 1)] else None

    def class_count(self, shapes: Sequence[tuple[int, ...]]) -> int:
        return 2

    def decode(self, outputs: Any, geometry: Any, *, encodings: Any = None, **options: Any) -> Result:
        name, values = next(iter(outputs.items()))
        return Scored((encodings[name].real(values) if name in (encodings or {}) else values).item())

    def row(self, entry: Mapping[str, Any]) -> tuple[str, ...]:
        return (f"{entry['score']:.3f}",)

    def summary(self, result: Result) -> dict[str, Any]:
        return result.to_dict()[0]

    def answer(self, entry: Mapping[str, Any]) -> Any:
        return entry["score"] > 0

    def scores(self, entries: Sequence[Mapping[str, Any]], labels: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        return {"right": np.array([entry["score"] > 0 for entry in entries]) == labels.astype(bool)}

    def error(self, seen: Any, outputs: Any) -> TaskError:
        return TaskError(1, 0, 1, {OFF.name: max(abs(outputs[name] - seen[name]).item() for name in seen)})


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    register(Score)
    yield
    del TASKS[Score.name], QUANTITIES[OFF.name]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> nc.Bundle:
    """Brightness less a half, and pictures whose brightness is known."""
    folder = tmp_path_factory.mktemp("score")
    rng = np.random.default_rng(0)
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "w0"], ["c0"], name="conv"), node("Relu", ["c0"], ["r0"], name="relu"),
        node("GlobalAveragePool", ["r0"], ["g"], name="pool"), node("Flatten", ["g"], ["f"], name="flatten"),
        node("Gemm", ["f", "w1", "b1"], ["y"], name="gemm"),
    ]  # fmt: skip
    first = np.abs(onnx.numpy_helper.to_array(weights(rng, "w0", 4, 3, 1, 1)))
    last = np.full((4, 1), 1 / first.sum(), np.float32)
    constants = [constant("w0", first), constant("w1", last), constant("b1", np.array([-0.5], np.float32))]
    (folder / "images").mkdir()
    lines = []
    for index, level in enumerate((240, 20, 60, 90, 170, 200, 240, 240, 240)):
        noise = rng.integers(-15, 15, (16, 16, 3))
        cv2.imwrite(str(folder / f"images/{index}.png"), (level + noise).astype(np.uint8))
        lines.append(f"{index}.png {int(level > 127)}")
    (folder / "labels.txt").write_text("\n".join(lines))
    made = nc.load(save(model(nodes, constants), folder / "score.onnx"))
    assert made.task == "score" and Score.kept in made.notes
    images = nc.images(folder / "images", made.preprocess)
    return nc.quantize(made, images, "onnx", out=folder / "bundle", method="minmax")


def test_it_is_quantized_and_predicts(bundle: nc.Bundle) -> None:
    again = nc.open_bundle(bundle.path)
    assert again.manifest.task == "score" and again.manifest.meaning == Score()
    files = sorted((bundle.path.parent / "images").iterdir())
    found = [bundle.predict(file).to_dict()[0]["score"] for file in files]
    expected = [bundle.floating.predict(file).to_dict()[0]["score"] for file in files]
    assert found == pytest.approx(expected, abs=0.02) and found[1] < 0 < found[0]


def test_it_is_scored(bundle: nc.Bundle) -> None:
    data = nc.imagenet(bundle.path.parent / "images", bundle.path.parent / "labels.txt")
    report = bundle.evaluate(data, fresh=True)
    assert report.metric("float", "signs") == report.metric("integer", "signs") == 1.0
    assert report.metric("integer", "signs", "agreement") == 1.0


def test_it_is_judged_in_its_own_unit(bundle: nc.Bundle) -> None:
    rng = np.random.default_rng(1)
    others = [rng.random((3, 16, 16), np.float32) for _ in range(3)]
    found = nc.analyze(bundle, others)
    assert found.task == "score" and 0 < found.everything.task.values["score_off"] == found.everything.task.loss < 0.05


def test_the_command_line_prints_and_draws_it(bundle: nc.Bundle, tmp_path: Path) -> None:
    picture, drawn = bundle.path.parent / "images/0.png", tmp_path / "drawn.png"
    done = CliRunner().invoke(app, ["predict", str(bundle.path), str(picture), "--out", str(drawn)])
    assert done.exit_code == 0 and "score" in done.output and drawn.exists()
