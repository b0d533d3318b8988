"""Ten kinds of drawn objects, some of them alike on purpose (star, gear, flower)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from samples_training.canvas import Canvas, Color, color, shade

__all__ = ["OBJECT_NAMES", "draw_object"]

OBJECT_NAMES = ("house", "tree", "car", "fish", "star", "gear", "flower", "mug", "umbrella", "key")


class _Frame:
    """Maps object coordinates (-1..1, y down) to the canvas, turned and sheared."""

    def __init__(self, canvas: Canvas, center: tuple[float, float], size: float, angle: float, aspect: float) -> None:
        self.canvas = canvas
        self._center = np.asarray(center)
        self._size = size
        cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        self._matrix = np.array([[cos * aspect, sin * aspect], [-sin / aspect, cos / aspect]]) * size

    def _at(self, points: object) -> NDArray[np.float64]:
        return np.asarray(np.asarray(points, np.float64) @ self._matrix + self._center, np.float64)

    def polygon(self, points: object, fill: Color) -> None:
        self.canvas.polygon(self._at(points), fill)

    def rectangle(self, x: float, y: float, width: float, height: float, fill: Color) -> None:
        self.polygon([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], fill)

    def ellipse(self, x: float, y: float, a: float, b: float, fill: Color, arc: tuple[float, float] = (0, 360)) -> None:
        t = np.radians(np.linspace(arc[0], arc[1], 28))
        self.polygon(np.stack([x + a * np.cos(t), y + b * np.sin(t)], axis=1), fill)

    def line(self, start: tuple[float, float], end: tuple[float, float], radius: float, fill: Color) -> None:
        a, b = self._at([start, end])
        self.canvas.limb(a, b, (radius * self._size, radius * self._size), fill)


def draw_object(
    canvas: Canvas, name: str, center: tuple[float, float], size: float, random: np.random.Generator
) -> None:
    """Draw one of :data:`OBJECT_NAMES` in random colours, turned by up to 40 degrees.

    Args:
        canvas: drawn on.
        name: kind of object.
        center: x, y in pixels.
        size: half the object's extent, pixels.
        random: source of all choices.
    """
    frame = _Frame(canvas, center, size, random.uniform(-40, 40), random.uniform(0.85, 1.18))
    main = color(random, saturation=(20, 230), value=(40, 250))
    other = color(random, saturation=(10, 230), value=(30, 250))
    _DRAW[name](frame, main, other, random)


def _house(frame: _Frame, main: Color, other: Color, random: np.random.Generator) -> None:
    frame.rectangle(-0.65, -0.15, 1.3, 1.0, main)
    frame.polygon([(-0.85, -0.12), (0, -0.9), (0.85, -0.12)], other)
    door = random.uniform(-0.45, 0.15)
    frame.rectangle(door, 0.3, 0.3, 0.55, shade(other, 0.7))
    frame.rectangle(-door - 0.15, 0.1, 0.28, 0.28, shade(main, 1.5))


def _tree(frame: _Frame, main: Color, other: Color, random: np.random.Generator) -> None:
    frame.rectangle(-0.13, 0.2, 0.26, 0.75, other)
    if random.random() < 0.5:
        for top, width in ((-0.95, 0.42), (-0.55, 0.58), (-0.15, 0.72)):
            frame.polygon([(-width, top + 0.65), (0, top), (width, top + 0.65)], shade(main, 1 + top / 4))
        return
    for x, y in ((-0.35, 0.0), (0.35, 0.0), (0, -0.4), (-0.25, -0.35), (0.25, -0.35)):
        frame.ellipse(x, y, 0.42, 0.42, shade(main, 0.9 + 0.3 * random.random()))


def _car(frame: _Frame, main: Color, other: Color, random: np.random.Generator) -> None:
    rear, front = random.uniform(0.35, 0.6), random.uniform(0.2, 0.5)
    frame.polygon(
        [(-rear, -0.05), (-rear + 0.22, -0.5), (front - 0.15, -0.5), (front + 0.15, -0.05)], shade(main, 0.85)
    )
    frame.polygon([(-rear + 0.1, -0.08), (-rear + 0.27, -0.42), (-0.05, -0.42), (-0.05, -0.08)], shade(other, 1.3))
    frame.rectangle(-0.95, -0.08, 1.9, 0.42, main)
    for x in (-0.52, 0.52):
        frame.ellipse(x, 0.36, 0.22, 0.22, (30, 30, 30))
        frame.ellipse(x, 0.36, 0.1, 0.1, shade(other, 1.2))


def _fish(frame: _Frame, main: Color, other: Color, random: np.random.Generator) -> None:
    sign = 1 if random.random() < 0.5 else -1
    frame.polygon([(-0.5 * sign, 0), (-0.98 * sign, -0.42), (-0.85 * sign, 0), (-0.98 * sign, 0.42)], shade(main, 0.8))
    frame.polygon([(-0.2 * sign, -0.3), (0.2 * sign, -0.62), (0.3 * sign, -0.3)], shade(main, 0.8))
    frame.ellipse(0.1 * sign, 0, 0.72, 0.4, main)
    for x in (-0.15, 0.1):
        frame.rectangle(x * sign - 0.05, -0.32, 0.1, 0.64, other)
    frame.ellipse(0.52 * sign, -0.1, 0.09, 0.09, (250, 250, 250))
    frame.ellipse(0.54 * sign, -0.1, 0.045, 0.045, (20, 20, 20))


def _radial(points: int, inner: float, outer: float, shares: tuple[float, ...], turn: float) -> NDArray[np.float64]:
    """Outline that goes out and in ``points`` times; ``shares`` of a period at which the radius changes."""
    period = 2 * np.pi / points
    angles = np.array([(index + share) * period + turn for index in range(points) for share in shares])
    radii = np.tile([outer] * (len(shares) // 2) + [inner] * (len(shares) - len(shares) // 2), points)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _star(frame: _Frame, main: Color, other: Color, random: np.random.Generator) -> None:
    points = int(random.integers(5, 8))
    turn = random.uniform(0, 2)
    frame.polygon(_radial(points, random.uniform(0.4, 0.55), 0.95, (0.0, 0.5), turn), main)
    if random.random() < 0.5:
        frame.ellipse(0, 0, 0.25, 0.25, other)


def _gear(frame: _Frame, main: Color, other: Color, random: np.random.Generator) -> None:
    teeth = int(random.integers(6, 10))
    outline = _radial(teeth, random.uniform(0.62, 0.72), 0.92, (0.0, 0.4, 0.5, 0.9), random.uniform(0, 2))
    frame.polygon(outline, main)
    frame.ellipse(0, 0, 0.28, 0.28, other)


def _flower(frame: _Frame, main: Color, other: Color, random: np.random.Generator) -> None:
    petals = int(random.integers(5, 9))
    turn = random.uniform(0, 2)
    for index in range(petals):
        angle = turn + index * 2 * np.pi / petals
        radius = 1.5 / petals + 0.04
        tone = shade(main, 0.9 if index % 2 else 1.05)
        frame.ellipse(0.6 * np.cos(angle), 0.6 * np.sin(angle), radius, radius, tone)
    frame.ellipse(0, 0, 0.32, 0.32, other)


def _mug(frame: _Frame, main: Color, other: Color, random: np.random.Generator) -> None:
    sign = 1 if random.random() < 0.5 else -1
    handle = [(0.5, -0.35), (0.88, -0.25), (0.92, 0.2), (0.5, 0.4)]
    for a, b in pairwise(handle):
        frame.line((a[0] * sign, a[1]), (b[0] * sign, b[1]), 0.09, shade(main, 0.85))
    frame.rectangle(-0.55, -0.6, 1.1, 1.3, main)
    frame.ellipse(0, -0.6, 0.55, 0.16, shade(main, 0.7))
    frame.rectangle(-0.55, random.uniform(-0.2, 0.3), 1.1, 0.22, other)


def _umbrella(frame: _Frame, main: Color, other: Color, random: np.random.Generator) -> None:
    frame.line((0, -0.1), (0, 0.8), 0.05, other)
    frame.line((0, 0.8), (0.2, 0.85), 0.05, other)
    frame.ellipse(0, 0.0, 0.92, 0.85, main, (180, 360))
    frame.ellipse(0, 0.0, 0.35, 0.85, shade(main, random.uniform(0.7, 1.3)), (180, 360))
    for x in (-0.62, 0.0, 0.62):
        frame.ellipse(x, 0.02, 0.3, 0.1, shade(main, 0.6), (180, 360))


def _key(frame: _Frame, main: Color, other: Color, random: np.random.Generator) -> None:
    sign = 1 if random.random() < 0.5 else -1
    frame.line((-0.2, 0), (0.85, 0), 0.09, main)
    for x in (0.5, 0.78):
        frame.line((x, 0), (x, 0.3 * sign), 0.08, main)
    frame.ellipse(-0.55, 0, 0.4, 0.38, main)
    frame.ellipse(-0.6, 0, 0.17, 0.17, other)


_DRAW: dict[str, Callable[[_Frame, Color, Color, np.random.Generator], None]] = {
    "house": _house, "tree": _tree, "car": _car, "fish": _fish, "star": _star,
    "gear": _gear, "flower": _flower, "mug": _mug, "umbrella": _umbrella, "key": _key,
}  # fmt: skip
