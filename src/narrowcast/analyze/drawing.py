"""Pictures for the report: small SVG charts, and float beside quantized on an image with what differs marked.

Colours of charts come from the page's style sheet, so that they follow its theme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from narrowcast.tasks.objects import overlaps
from narrowcast.vision.draw import LEAST_KEYPOINT_CONFIDENCE, draw
from narrowcast.vision.types import Detections, Result

_WIDTH, _HEIGHT = 960, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 34

#: BGR of what only the float model found, of what only the quantized one found, and of keypoints that moved.
MISSED, INVENTED, MOVED = (60, 60, 230), (0, 140, 255), (220, 60, 220)
#: Longer side of a picture in the report, pixels.
_SIDE = 720
_QUALITY = 82


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover low to high."""
    span = max(high - low, 1e-12)
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(step * k, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _frame(body: str, label: str, height: int = _HEIGHT) -> Markup:
    return Markup(f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">{body}</svg>')


def _axes(
    xs: Sequence[tuple[float, str]], ys: Sequence[tuple[float, str]], titles: tuple[str, str], height: int = _HEIGHT
) -> str:
    """Grid lines with numbers; positions in pixels."""
    parts = []
    for y, text in ys:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for x, text in xs:
        parts.append(f'<text x="{x:.1f}" y="{height - 18}" text-anchor="middle">{escape(text)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{height - 3}" text-anchor="middle" class="axis">{escape(titles[0])}</text>')
    parts.append(f'<text x="{_LEFT + 4}" y="{_TOP + 6}" class="axis">{escape(titles[1])}</text>')
    return "".join(parts)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def depth(names: Sequence[str], lines: Sequence[tuple[str, Sequence[float]]], unit: str) -> Markup:
    """Lines (CSS class, and one value a position) over the position in the graph; ``names`` are for tooltips."""
    values = [value for _, line in lines for value in line]
    if not values:
        return Markup("")
    low, high = min(0.0, *values), max(values)
    place = _scale(0, max(1, len(names) - 1), _LEFT, _WIDTH - _RIGHT)
    level = _scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    ys = [(level(tick), f"{tick:g}") for tick in _ticks(low, high)]
    xs = [(place(tick), f"{tick:g}") for tick in _ticks(0, max(1, len(names) - 1), 8)]
    parts = [_axes(xs, ys, ("position in the graph", unit))]
    for kind, line in lines:
        points = " ".join(f"{place(i):.1f},{level(value):.1f}" for i, value in enumerate(line))
        parts.append(f'<polyline class="line {kind}" points="{points}"/>')
        parts += [
            f'<circle class="dot {kind}" cx="{place(i):.1f}" cy="{level(value):.1f}" r="2.6">'
            f"<title>{escape(names[i])}: {value:.1f} {escape(unit)}</title></circle>"
            for i, value in enumerate(line)
        ]
    return _frame("".join(parts), f"{unit} along the graph")


def scatter(points: Sequence[tuple[str, float, float, str]], titles: tuple[str, str]) -> Markup:
    """Gain against cost, which is above 0 and on a logarithmic axis; points are (name, cost, gain, CSS class)."""
    if not points:
        return Markup("")
    costs = [math.log10(max(cost, 1e-6)) for _, cost, _, _ in points]
    most = max(max(gain for _, _, gain, _ in points), 0.0)
    least = -most if most > 0 else -math.inf  # a node that 16 bits hurt badly must not flatten the rest
    gains = [max(gain, least) for _, _, gain, _ in points]
    place = _scale(min(costs) - 0.1, max(costs) + 0.1, _LEFT, _WIDTH - _RIGHT)
    level = _scale(min(0.0, *gains), max(0.0, *gains), _HEIGHT + 60 - _BOTTOM, _TOP)
    powers = range(math.floor(min(costs)), math.ceil(max(costs)) + 1)
    decades = [float(power) for power in powers if min(costs) - 0.1 <= power <= max(costs) + 0.1]
    xs = [(place(power), f"{100 * 10**power:g} %") for power in decades]
    ys = [(level(tick), f"{tick:g}") for tick in _ticks(min(0.0, *gains), max(0.0, *gains))]
    dots = [
        f'<circle class="mark {kind}" cx="{place(cost):.1f}" cy="{level(max(gain, least)):.1f}" r="4.5">'
        f"<title>{escape(name)}: gain {gain:.4f}, {100 * share:.2f} % of the multiplications</title></circle>"
        for cost, (name, share, gain, kind) in zip(costs, points, strict=True)
    ]
    return _frame(_axes(xs, ys, titles, _HEIGHT + 60) + "".join(dots), "gain against cost", _HEIGHT + 60)


def _count(number: int) -> str:
    """1, 100, 10k, 1M."""
    return f"{number // 10**6}M" if number >= 10**6 else f"{number // 1000}k" if number >= 1000 else str(number)


def histogram(edges: Sequence[float], counts: Sequence[int], low: float, high: float, label: str) -> Markup:
    """Bars on a logarithmic count axis between ``edges``, one more than counts, and clip points that are in sight."""
    width, height, bottom = 320, 140, 104
    first, last = min(edges[0], low), max(edges[-1], high)
    reach = edges[-1] - edges[0]
    first, last = max(first, edges[0] - 0.6 * reach), min(last, edges[-1] + 0.6 * reach)
    place = _scale(first, last, 34, width - 8)
    top = math.log1p(max(counts, default=1)) or 1.0
    level = _scale(0, top, bottom, 12)
    parts = [
        f'<rect class="bar" x="{place(a):.1f}" width="{max(0.6, place(b) - place(a) - 0.4):.1f}" '
        f'y="{level(math.log1p(count)):.1f}" height="{bottom - level(math.log1p(count)):.1f}"/>'
        for a, b, count in zip(edges, edges[1:], counts, strict=False)
        if count
    ]
    parts += [
        f'<line class="clip" x1="{place(limit):.1f}" x2="{place(limit):.1f}" y1="4" y2="{bottom}"/>'
        for limit in (low, high)
        if first <= limit <= last
    ]
    parts.append(f'<line class="grid" x1="34" x2="{width - 8}" y1="{bottom}" y2="{bottom}"/>')
    for power in range(0, math.ceil(top / math.log(10)), 2):
        y = level(math.log1p(10**power))
        parts.append(f'<text x="30" y="{y + 4:.1f}" text-anchor="end">{_count(10**power)}</text>')
    for tick in _ticks(first, last, 4):
        x = f"{place(tick):.1f}"
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{x}" y="{bottom + 17}" text-anchor="middle">{tick:.4g}</text>')
    parts.append(f'<text x="{(34 + width - 8) / 2}" y="{height - 4}" text-anchor="middle" class="axis">value</text>')
    parts.append('<text x="38" y="11" class="axis">count</text>')
    return Markup(f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>')


@dataclass(frozen=True)
class Pair:
    """JPEGs of the float and the quantized model's result on one image, what differs in words, and how much."""

    name: str
    left: bytes
    right: bytes
    words: str
    difference: float


def pair(
    name: str,
    image: NDArray[np.uint8],
    expected: Result,
    actual: Result,
    classes: Sequence[str] = (),
    skeleton: Sequence[tuple[int, int]] = (),
) -> Pair:
    """Draw the float and the quantized model's result on a uint8 (H, W, 3) BGR image."""
    left, right = draw(image, expected, classes, skeleton), draw(image, actual, classes, skeleton)
    if isinstance(expected, Detections) and isinstance(actual, Detections):
        words, difference = _mark(right, expected, actual)
    else:
        words, difference = expected.against(actual)
    return Pair(name, _jpeg(left), _jpeg(right), words, difference)


def match(expected: Detections, actual: Detections) -> list[tuple[int, int]]:
    """Pairs of detections of a class that overlap by half or more, best float detections first."""
    free = list(range(len(actual)))
    found = []
    for one in range(len(expected)):
        same = [other for other in free if actual.class_ids[other] == expected.class_ids[one]]
        if not same:
            continue
        shared = overlaps(np.repeat(expected.boxes[one : one + 1], len(same), axis=0), actual.boxes[same])
        best = int(shared.argmax())
        if shared[best] >= 0.5:
            found.append((one, same[best]))
            free.remove(same[best])
    return found


def _mark(canvas: NDArray[np.uint8], expected: Detections, actual: Detections) -> tuple[str, float]:
    pairs = match(expected, actual)
    missed = sorted(set(range(len(expected))) - {one for one, _ in pairs})
    invented = sorted(set(range(len(actual))) - {other for _, other in pairs})
    thick = max(2, max(canvas.shape[:2]) // 240)
    for boxes, indices, color in ((expected.boxes, missed, MISSED), (actual.boxes, invented, INVENTED)):
        for index in indices:
            left, top, right, bottom = (int(v) for v in np.rint(boxes[index]))
            cv2.rectangle(canvas, (left, top), (right, bottom), color, thick)
            cv2.line(canvas, (left, top), (right, bottom), color, thick, cv2.LINE_AA)
    moved = _moved(canvas, expected, actual, pairs, thick)
    words = [f"{len(pairs)} object{'' if len(pairs) == 1 else 's'} in both"]
    words += [f"{len(missed)} missed"] if missed else []
    words += [f"{len(invented)} only quantized"] if invented else []
    sides = [float(np.abs(expected.boxes[a] - actual.boxes[b]).mean()) for a, b in pairs]
    words += [f"box sides differ by {np.mean(sides):.1f} px"] if sides else []
    words += [f"keypoints by {np.mean(moved):.1f} px"] if moved else []
    difference = 5.0 * (len(missed) + len(invented)) + (float(np.mean(moved)) if moved else 0.0)
    return ", ".join(words), difference + (float(np.mean(sides)) if sides else 0.0)


def _moved(
    canvas: NDArray[np.uint8],
    expected: Detections,
    actual: Detections,
    pairs: Sequence[tuple[int, int]],
    thick: int,
) -> list[float]:
    """Distances of sure keypoints in pixels; the long ones are drawn as lines from where float puts them."""
    if expected.keypoints is None or actual.keypoints is None:
        return []
    distances = []
    for one, other in pairs:
        sure = expected.keypoints[one][:, 2] >= LEAST_KEYPOINT_CONFIDENCE
        for a, b in zip(expected.keypoints[one][sure], actual.keypoints[other][sure], strict=True):
            distance = float(np.hypot(*(a[:2] - b[:2])))
            distances.append(distance)
            if distance >= 2 * thick:
                start, end = (tuple(int(v) for v in np.rint(point[:2])) for point in (a, b))
                cv2.line(canvas, start, end, MOVED, thick, cv2.LINE_AA)
                cv2.circle(canvas, start, thick + 1, MOVED, thick, cv2.LINE_AA)
    return distances


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    scale = _SIDE / max(image.shape[:2])
    if scale < 1:
        image = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise ValueError("the picture cannot be written as JPEG")
    return bytes(data.tobytes())
