"""Places in which scenes are drawn: park, street, room, plain; and what stands around there."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from samples_training.canvas import Canvas, Color, color, shade

__all__ = ["add_clutter", "backdrop", "finish", "texture"]


def texture(random: np.random.Generator, height: int, width: int, cells: int, strength: float) -> NDArray[np.float32]:
    """Smooth noise, float32 (height, width, 1), about +-``strength``; ``cells`` bumps across."""
    grid = random.normal(0, strength, (max(2, cells * height // width), max(2, cells))).astype(np.float32)
    return np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)[..., None], np.float32)


def _gradient(height: int, width: int, top: Color, bottom: Color) -> NDArray[np.float32]:
    share = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    rows = np.asarray(top, np.float32) * (1 - share) + np.asarray(bottom, np.float32) * share
    return np.repeat(rows, width, axis=1)


def _to_image(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def backdrop(random: np.random.Generator, height: int, width: int) -> Canvas:
    """An empty place of the given size in pixels."""
    place = (_park, _street, _room, _plain)[int(random.choice(4, p=[0.3, 0.25, 0.25, 0.2]))]
    return place(random, height, width)


def _ground(random: np.random.Generator, canvas: Canvas, horizon: int, fill: Color) -> None:
    """Textured ground from the horizon down."""
    height, width = canvas.height - horizon, canvas.width
    ground = _gradient(height, width, shade(fill, 0.85), shade(fill, 1.1))
    ground += texture(random, height, width, int(random.integers(8, 40)), 7)
    canvas.image[horizon:] = _to_image(ground)


def _park(random: np.random.Generator, height: int, width: int) -> Canvas:
    sky = _gradient(height, width, color(random, (98, 112), (70, 170), (180, 245)), (235, 225, 205))
    canvas = Canvas(_to_image(sky + texture(random, height, width, 6, 5)))
    horizon = int(height * random.uniform(0.4, 0.7))
    for _ in range(int(random.integers(1, 4))):
        hill = (random.uniform(0, width), horizon + random.uniform(0, 0.1) * height)
        size = (random.uniform(0.3, 0.7) * width, random.uniform(0.08, 0.3) * height)
        canvas.ellipse(hill, size, color(random, (35, 75), (50, 130), (90, 170)))
    _ground(random, canvas, horizon, color(random, (32, 60), (70, 170), (100, 190)))
    return canvas


def _street(random: np.random.Generator, height: int, width: int) -> Canvas:
    sky = _gradient(height, width, color(random, (95, 125), (20, 110), (150, 240)), (225, 220, 215))
    canvas = Canvas(_to_image(sky))
    horizon = int(height * random.uniform(0.5, 0.75))
    x = -random.uniform(0, 0.1) * width
    while x < width:
        size = (random.uniform(0.14, 0.34) * width, random.uniform(0.2, 0.9) * horizon)
        _building(random, canvas, (x, horizon - size[1]), size)
        x += size[0] * random.uniform(1.0, 1.1)
    _ground(random, canvas, horizon, color(random, (0, 180), (0, 40), (90, 190)))
    return canvas


def _building(
    random: np.random.Generator, canvas: Canvas, corner: tuple[float, float], size: tuple[float, float]
) -> None:
    wall = color(random, saturation=(15, 130), value=(80, 220))
    pane = color(random, (90, 120), (20, 120), (60, 240))
    canvas.rectangle(corner, size, wall)
    columns, rows = int(random.integers(2, 5)), int(random.integers(2, 7))
    step_x, step_y = size[0] / columns, size[1] / rows
    for row in range(rows):
        for column in range(columns):
            at = (corner[0] + (column + 0.25) * step_x, corner[1] + (row + 0.25) * step_y)
            canvas.rectangle(at, (step_x * 0.5, step_y * 0.5), pane)


def _room(random: np.random.Generator, height: int, width: int) -> Canvas:
    wall = color(random, saturation=(10, 110), value=(120, 235))
    canvas = Canvas(
        _to_image(_gradient(height, width, wall, shade(wall, 0.88)) + texture(random, height, width, 10, 3))
    )
    if random.random() < 0.5:
        stripe = shade(wall, random.uniform(0.8, 0.95))
        step = random.uniform(0.05, 0.12) * width
        for index in range(int(width / step) + 1):
            canvas.rectangle((index * step, 0), (step * 0.4, height), stripe)
    for _ in range(int(random.integers(0, 4))):
        corner = (random.uniform(0, 0.8) * width, random.uniform(0.02, 0.35) * height)
        size = (random.uniform(0.1, 0.28) * width, random.uniform(0.1, 0.3) * height)
        canvas.rectangle(corner, size, color(random, value=(40, 130)))
        inner = (corner[0] + 0.06 * size[0], corner[1] + 0.06 * size[1])
        canvas.rectangle(inner, (size[0] * 0.88, size[1] * 0.88), color(random, saturation=(20, 140)))
    floor = color(random, (5, 25), (40, 150), (80, 190))
    horizon = int(height * random.uniform(0.6, 0.85))
    _ground(random, canvas, horizon, floor)
    canvas.rectangle((0, horizon), (width, 0.015 * height), shade(floor, 0.6))
    return canvas


def _plain(random: np.random.Generator, height: int, width: int) -> Canvas:
    values = _gradient(height, width, color(random, saturation=(5, 150)), color(random, saturation=(5, 150)))
    values += texture(random, height, width, int(random.integers(4, 30)), random.uniform(3, 18))
    return Canvas(_to_image(values))


def add_clutter(random: np.random.Generator, canvas: Canvas, count: int, owner: int | None = None) -> None:
    """Draw ``count`` things that are no person: trees, lamp posts, boxes, balls, sticks, patches."""
    things = (_tree, _lamp, _box, _ball, _stick, _patch, _snowman)
    for _ in range(count):
        base = (random.uniform(0, canvas.width), random.uniform(0.35, 1.05) * canvas.height)
        thing = things[int(random.integers(len(things)))]
        thing(random, canvas, base, random.uniform(0.12, 0.5) * canvas.height, owner)


Point = tuple[float, float]


def _tree(random: np.random.Generator, canvas: Canvas, base: Point, size: float, owner: int | None) -> None:
    top = (base[0] + random.normal(0, 0.04) * size, base[1] - 0.6 * size)
    canvas.limb(base, top, (0.06 * size, 0.04 * size), color(random, (5, 20), (60, 160), (50, 120)), owner)
    leaves = color(random, (30, 75), (80, 200), (60, 180))
    for _ in range(5):
        at = (top[0] + random.normal(0, 0.12) * size, top[1] - random.uniform(-0.05, 0.25) * size)
        radius = random.uniform(0.12, 0.2) * size
        canvas.ellipse(at, (radius, radius), shade(leaves, random.uniform(0.8, 1.2)), owner)


def _lamp(random: np.random.Generator, canvas: Canvas, base: Point, size: float, owner: int | None) -> None:
    metal = color(random, saturation=(0, 60), value=(30, 150))
    top = (base[0], base[1] - size)
    canvas.limb(base, top, (0.025 * size, 0.018 * size), metal, owner)
    canvas.ellipse(top, (0.09 * size, 0.09 * size), color(random, (15, 35), (20, 160), (180, 255)), owner)


def _box(random: np.random.Generator, canvas: Canvas, base: Point, size: float, owner: int | None) -> None:
    fill = color(random)
    width, height = size * random.uniform(0.3, 0.9), size * random.uniform(0.25, 0.6)
    canvas.rectangle((base[0] - width / 2, base[1] - height), (width, height), fill, owner)
    canvas.rectangle((base[0] - width / 2, base[1] - height), (width, height * 0.15), shade(fill, 1.2), owner)


def _ball(random: np.random.Generator, canvas: Canvas, base: Point, size: float, owner: int | None) -> None:
    fill, radius = color(random), size * random.uniform(0.06, 0.2)
    center = (base[0], base[1] - radius)
    canvas.ellipse(center, (radius, radius), fill, owner)
    canvas.ellipse((center[0] - 0.3 * radius, center[1] - 0.3 * radius), (0.3 * radius, 0.3 * radius), shade(fill, 1.4))


def _stick(random: np.random.Generator, canvas: Canvas, base: Point, size: float, owner: int | None) -> None:
    angle = random.uniform(0, np.pi)
    end = (base[0] + np.cos(angle) * size * 0.6, base[1] - np.sin(angle) * size * 0.6)
    radius = random.uniform(0.015, 0.06) * size
    canvas.limb(base, end, (radius, radius), color(random), owner)


def _patch(random: np.random.Generator, canvas: Canvas, base: Point, size: float, owner: int | None) -> None:
    corners = int(random.integers(3, 7))
    angles = np.sort(random.uniform(0, 2 * np.pi, corners))
    reach = random.uniform(0.1, 0.3, corners) * size
    canvas.polygon(
        np.stack([base[0] + reach * np.cos(angles), base[1] + reach * np.sin(angles)], 1), color(random), owner
    )


def _snowman(random: np.random.Generator, canvas: Canvas, base: Point, size: float, owner: int | None) -> None:
    """Roughly a person's outline, with a skin-like colour at times: what a detector must learn to leave alone."""
    fill, y = color(random, (0, 180), (0, 110), (120, 250)), base[1]
    for radius in (0.2 * size, 0.15 * size, 0.1 * size):
        canvas.ellipse((base[0], y - radius), (radius, radius), fill, owner)
        y -= 1.6 * radius


def finish(random: np.random.Generator, image: NDArray[np.uint8], strength: float = 1.0) -> NDArray[np.uint8]:
    """Light, blur, contrast and sensor noise, as a camera adds them; ``strength`` 1 is a middling camera."""
    height, width = image.shape[:2]
    values = image.astype(np.float32)
    values *= 1 + strength * texture(random, height, width, 3, 0.07)
    values = (values - 128) * random.uniform(1 - 0.25 * strength, 1.1) + 128 + random.uniform(-18, 18) * strength
    sigma = random.uniform(0.0, 0.9) * strength
    if sigma > 0.3:
        values = cv2.GaussianBlur(values, (0, 0), sigma).reshape(image.shape)
    values += random.standard_normal(image.shape, np.float32) * np.float32(random.uniform(0.5, 6) * strength)
    return _to_image(values)
