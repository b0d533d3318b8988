"""The streaming pass: exact where it claims to be, constant memory, nothing lost when a histogram grows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import save, silu_net
from narrowcast.base.errors import UserError
from narrowcast.calibrate import ImageSet, collect, images
from narrowcast.calibrate.statistics import BINS, SAMPLES, Histogram, TensorStatistics, _step
from narrowcast.graph import load
from narrowcast.vision import Preprocess

SPEC = Preprocess(height=16, width=16)


@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20), min_size=1, max_size=6))
def test_histogram_grows_without_losing_values(batches: list[list[float]]) -> None:
    histogram = Histogram()
    for batch in batches:
        values = np.array(batch, np.float32)
        histogram.add(values, float(np.abs(values).max()))
    everything = np.concatenate([np.array(batch, np.float32) for batch in batches])
    assert histogram.counts.sum() == everything.size
    assert histogram.limit == 2.0 ** np.round(np.log2(histogram.limit))
    width = 2 * histogram.limit / BINS
    lowest = histogram.centers[np.flatnonzero(histogram.counts)[0]]
    assert abs(lowest - everything.min()) <= width  # half a bin, and the last bin holds the limit itself


@given(st.integers(1, 10**8))
def test_sub_sampling_never_falls_in_step_with_rows(size: int) -> None:
    step = _step(size)
    assert step == 1 or (step % 2 and step % 5)
    assert size / step <= SAMPLES * 2


def test_merging_keeps_all_counts() -> None:
    a, b = Histogram(), Histogram()
    a.add(np.array([0.5, -0.25], np.float32), 0.5)
    b.add(np.array([100.0], np.float32), 100.0)
    merged = a.merge(b)
    assert merged.counts.sum() == 3 and merged.limit == b.limit
    assert a.counts.sum() == 2


def test_minima_and_maxima_are_exact(tmp_path: Path) -> None:
    loaded = load(save(silu_net(), tmp_path / "m.onnx"))
    rng = np.random.default_rng(0)
    inputs = [rng.normal(0, 1, (1, 3, 16, 16)).astype(np.float32) for _ in range(5)]
    found = collect(loaded.to_proto(), ["x", "y"], inputs, per_channel=["x"])
    stacked = np.concatenate(inputs)
    assert found["x"].minimum == stacked.min() and found["x"].maximum == stacked.max()
    assert found["x"].mean_maximum == pytest.approx(np.mean([x.max() for x in inputs]))
    assert found["x"].images == 5
    np.testing.assert_array_equal(found["x"].channel_maximum, stacked.max(axis=(0, 2, 3)))
    assert found["y"].histogram.counts.sum() == 5 * 4 * 16 * 16
    assert found["y"].channel_maximum is None


def test_the_pass_streams(tmp_path: Path) -> None:
    """The next image is asked for before the one after it exists: nothing collects them first."""
    loaded = load(save(silu_net(), tmp_path / "m.onnx"))
    alive = 0

    def inputs():  # type: ignore[no-untyped-def]
        nonlocal alive
        for _ in range(50):
            alive += 1
            yield np.zeros((1, 3, 16, 16), np.float32)

    statistics = collect(loaded.to_proto(), ["y"], inputs())
    assert alive == 50
    assert statistics["y"].histogram.counts.nbytes == BINS * 8


def test_nan_activations_are_named(tmp_path: Path) -> None:
    loaded = load(save(silu_net(), tmp_path / "m.onnx"))
    with pytest.raises(FloatingPointError, match="image 1"):
        collect(loaded.to_proto(), ["y"], [np.full((1, 3, 16, 16), np.inf, np.float32)])


def test_statistics_of_zeros_do_not_divide_by_zero() -> None:
    statistics = TensorStatistics()
    statistics.add(np.zeros((1, 2, 3, 3), np.float32), 0, True)
    assert statistics.minimum == statistics.maximum == 0


def test_spread_keeps_the_first_and_the_order() -> None:
    found = images([np.full((1, 3, 16, 16), value, np.float32) for value in range(10)], SPEC)
    assert [int(x.max()) for x in found.spread(4)] == [0, 2, 5, 7] and found.spread(10) == found.spread(99) == found
    with pytest.raises(UserError, match="leaves none"):
        found.spread(0)


def test_hold_back_is_disjoint_and_repeatable() -> None:
    found = images(np.zeros((25, 3, 16, 16), np.float32), SPEC)
    kept, held = found.hold_back()
    assert len(kept) + len(held) == 25 and len(held) == 2
    one = images(np.zeros((1, 3, 16, 16), np.float32), SPEC)
    assert [len(part) for part in one.hold_back()] == [1, 0]  # the one image is not held back from itself


def write_image(path: Path, shape: tuple[int, ...]) -> Path:
    import cv2

    cv2.imwrite(str(path), np.full(shape, 90, np.uint8))
    return path


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3), (20, 30, 4), (10, 10, 3), (1, 1, 3)])
def test_grey_transparent_and_tiny_images_are_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_image(tmp_path / "a.png", shape)
    (tensor,) = images(tmp_path, SPEC)
    assert tensor.shape == (1, 3, 16, 16) and tensor.dtype == np.float32


def test_sources(tmp_path: Path) -> None:
    for index in range(4):
        write_image(tmp_path / f"{index}.png", (8, 8, 3))
    (tmp_path / "list.txt").write_text("0.png\n# comment\n3.png\n")
    np.save(tmp_path / "batch.npy", np.zeros((3, 3, 16, 16), np.float32))
    assert len(images(tmp_path / "list.txt", SPEC)) == 2
    assert len(images(tmp_path / "batch.npy", SPEC)) == 3
    assert len(images([tmp_path / "0.png", np.zeros((9, 9, 3), np.uint8)], SPEC)) == 2
    assert len(images(tmp_path / "1.png", SPEC)) == 1
    (tmp_path / "batch.npy").unlink()
    assert len(images(tmp_path, SPEC, limit=2)) == 2
    assert images(tmp_path, SPEC).hashes() == images(tmp_path, SPEC).hashes()


def corrupt(folder: Path, kind: str) -> Path:
    if kind == "empty folder":
        return folder
    if kind == "corrupt":
        (folder / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
        return folder
    if kind == "missing":
        return folder / "nowhere"
    if kind == "listed":
        (folder / "list.txt").write_text("gone.jpg\n")
        return folder / "list.txt"
    if kind == "shape":
        np.save(folder / "a.npy", np.zeros((2, 3, 8, 8), np.float32))
        return folder / "a.npy"
    if kind == "nan":
        np.save(folder / "a.npy", np.full((2, 3, 16, 16), np.nan, np.float32))
        return folder / "a.npy"
    (folder / "a.npy").write_bytes(b"no array")
    return folder / "a.npy"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty folder", "no images"), ("corrupt", r"a\.jpg is corrupt"), ("missing", "does not exist"),
        ("listed", r"gone\.jpg"), ("shape", r"\(1, 3, 16, 16\)"), ("nan", "NaN"), ("no array", "no .npy array"),
    ],
)  # fmt: skip
def test_bad_images(tmp_path: Path, kind: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        list(images(corrupt(tmp_path, kind), SPEC))
    assert "\n" not in str(error.value)


def test_hold_back_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in indices put into sets, on 100,000 images."""
    count, put = 100_000, 0

    def counting(items: Iterable[int] = ()) -> set[int]:
        nonlocal put
        made = set(items)
        put += len(made)
        return made

    monkeypatch.setattr("narrowcast.calibrate.images.set", counting, raising=False)
    found = ImageSet(tuple(Path(f"{index}.jpg") for index in range(count)), SPEC)
    kept, held = found.hold_back()
    assert len(held) == count // 10 and put <= count
    assert len({*kept.sources, *held.sources}) == len(kept) + len(held) == count
