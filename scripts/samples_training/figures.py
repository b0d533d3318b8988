"""Articulated cartoon people with the 17 COCO keypoints."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samples_training.canvas import Canvas, Color, color, shade

__all__ = ["KEYPOINT_NAMES", "SKELETON", "Figure", "draw_figure", "random_figure"]

KEYPOINT_NAMES = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip

#: Limbs as COCO writes them: pairs of keypoint numbers from 1.
SKELETON = (
    (16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9),
    (8, 10), (9, 11), (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7),
)  # fmt: skip

_FACE = slice(0, 3)
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """One person: where its joints are and how it is dressed.

    Attributes:
        keypoints: (17, 2) x, y in pixels, in the order of :data:`KEYPOINT_NAMES`.
        height: of the person standing upright, pixels.
        frontal: the person looks at the camera; from behind the face is hidden.
        skin, hair, shirt, trousers, shoes: colours.
        long_sleeves, long_trousers, long_hair, hat, striped: how it is dressed.
    """

    keypoints: Points
    height: float
    frontal: bool
    skin: Color
    hair: Color
    shirt: Color
    trousers: Color
    shoes: Color
    long_sleeves: bool
    long_trousers: bool
    long_hair: bool
    hat: bool
    striped: bool

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(17,) keypoints that a person could label: all, but for eyes and nose from behind."""
        known = np.ones(17, np.bool_)
        known[_FACE] = self.frontal
        return known


def random_figure(random: np.random.Generator, center: tuple[float, float], height: float) -> Figure:
    """A person in a random pose.

    Args:
        random: source of all choices.
        center: of the hips, x and y in pixels.
        height: of the person standing upright, pixels.
    """
    frontal = bool(random.random() < 0.8)
    keypoints = _pose(random, frontal) * height + np.asarray(center)
    skin_value = random.uniform(90, 250)
    return Figure(
        keypoints=keypoints,
        height=height,
        frontal=frontal,
        skin=color(random, (6, 16), (60, 150), (skin_value, skin_value + 1)),
        hair=color(random, (0, 25), (30, 200), (15, 190)),
        shirt=color(random),
        trousers=color(random, value=(30, 200)),
        shoes=color(random, saturation=(0, 200), value=(20, 240)),
        long_sleeves=bool(random.random() < 0.4),
        long_trousers=bool(random.random() < 0.65),
        long_hair=bool(random.random() < 0.4),
        hat=bool(random.random() < 0.2),
        striped=bool(random.random() < 0.3),
    )


def _direction(angle: float) -> Points:
    """Unit vector, 0 degrees down, 90 degrees to the right."""
    return np.array([np.sin(np.radians(angle)), np.cos(np.radians(angle))])


def _arm_angles(random: np.random.Generator) -> tuple[float, float]:
    """Upper arm and forearm in degrees outward from hanging down: hanging, raised, on the hip, or anything."""
    kind = random.random()
    if kind < 0.3:
        upper = random.normal(14, 8)
        return upper, upper + random.normal(0, 14)
    if kind < 0.6:
        upper = random.uniform(55, 165)
        return upper, upper + random.uniform(-20, 80)
    if kind < 0.75:
        upper = random.uniform(30, 55)
        return upper, upper - random.uniform(70, 110)
    upper = random.uniform(0, 130)
    return upper, upper + random.uniform(-100, 100)


def _leg_angles(random: np.random.Generator) -> tuple[float, float]:
    """Thigh and shin in degrees outward from straight down."""
    kind = random.random()
    if kind < 0.5:
        thigh = random.normal(5, 5)
        return thigh, thigh + random.normal(0, 5)
    if kind < 0.8:
        thigh = random.uniform(8, 42)
        return thigh, thigh - random.uniform(0, 45)
    thigh = random.uniform(25, 75)
    return thigh, thigh - random.uniform(40, 100)


def _pose(random: np.random.Generator, frontal: bool) -> Points:
    """(17, 2) joints for a person of height 1 with the hips at the origin, y down."""
    tilt = float(random.normal(0, 9))
    breadth = random.uniform(0.75, 1.1)
    up, side = -_direction(-tilt), np.array([np.cos(np.radians(tilt)), np.sin(np.radians(tilt))])
    neck = up * 0.29
    head = neck + up * 0.125 + side * random.normal(0, 0.012)
    joints: dict[str, Points] = {}
    # On the right side of the image is the person's left when facing the camera, the right from behind.
    for sign in (1, -1):
        name = "left" if (sign == 1) == frontal else "right"
        upper, lower = _arm_angles(random)
        shoulder = neck + side * sign * 0.115 * breadth - up * 0.01
        elbow = shoulder + _direction(sign * upper + tilt) * 0.165 * random.uniform(0.8, 1.0)
        wrist = elbow + _direction(sign * lower + tilt) * 0.15 * random.uniform(0.8, 1.0)
        thigh, shin = _leg_angles(random)
        hip = side * sign * 0.068 * breadth
        knee = hip + _direction(sign * thigh) * 0.23 * random.uniform(0.85, 1.0)
        ankle = knee + _direction(sign * shin) * 0.22 * random.uniform(0.85, 1.0)
        ear = head + side * sign * 0.078
        eye = head + side * (sign * 0.032) - up * -0.012
        parts = {"shoulder": shoulder, "elbow": elbow, "wrist": wrist, "hip": hip, "knee": knee, "ankle": ankle}
        joints.update({f"{name}_{part}": point for part, point in {**parts, "ear": ear, "eye": eye}.items()})
    turn = side * random.uniform(-0.022, 0.022)
    for name in ("left_eye", "right_eye"):
        joints[name] = joints[name] + turn
    joints["nose"] = head - up * 0.014 + turn * 1.5
    return np.stack([joints[name] for name in KEYPOINT_NAMES])


def draw_figure(canvas: Canvas, figure: Figure, owner: int, random: np.random.Generator) -> None:
    """Draw a person on top of what is there and mark its pixels as ``owner``."""
    joint = dict(zip(KEYPOINT_NAMES, figure.keypoints, strict=True))
    sides = ["left", "right"] if random.random() < 0.5 else ["right", "left"]
    arms_behind = int(random.choice([0, 0, 1, 2]))
    for side in sides[:arms_behind]:
        _draw_arm(canvas, figure, joint, side, owner)
    for side in sides:
        _draw_leg(canvas, figure, joint, side, owner)
    if figure.long_hair:
        _draw_long_hair(canvas, figure, joint, owner)
    _draw_torso(canvas, figure, joint, owner)
    _draw_head(canvas, figure, joint, owner)
    for side in sides[arms_behind:]:
        _draw_arm(canvas, figure, joint, side, owner)


def _draw_arm(canvas: Canvas, figure: Figure, joint: dict[str, Points], side: str, owner: int) -> None:
    unit = figure.height
    shoulder, elbow, wrist = (joint[f"{side}_{part}"] for part in ("shoulder", "elbow", "wrist"))
    sleeve = shade(figure.shirt, 0.88 if side == "left" else 0.8)
    lower = sleeve if figure.long_sleeves else shade(figure.skin, 0.96)
    hand = wrist + (wrist - elbow) / max(1e-6, float(np.linalg.norm(wrist - elbow))) * 0.018 * unit
    canvas.limb(wrist, hand, (0.021 * unit, 0.026 * unit), figure.skin, owner)
    canvas.limb(elbow, wrist, (0.03 * unit, 0.022 * unit), lower, owner)
    canvas.limb(shoulder, elbow, (0.04 * unit, 0.033 * unit), sleeve, owner)


def _draw_leg(canvas: Canvas, figure: Figure, joint: dict[str, Points], side: str, owner: int) -> None:
    unit = figure.height
    hip, knee, ankle = (joint[f"{side}_{part}"] for part in ("hip", "knee", "ankle"))
    cloth = shade(figure.trousers, 1.0 if side == "left" else 0.88)
    outward = np.sign(ankle[0] - (joint["left_hip"][0] + joint["right_hip"][0]) / 2) or 1.0
    toe = ankle + np.array([0.045 * outward, 0.022]) * unit
    canvas.limb(ankle + np.array([0, 0.012 * unit]), toe, (0.026 * unit, 0.02 * unit), figure.shoes, owner)
    canvas.limb(knee, ankle, (0.038 * unit, 0.026 * unit), cloth if figure.long_trousers else figure.skin, owner)
    canvas.limb(hip, knee, (0.056 * unit, 0.042 * unit), cloth, owner)


def _draw_torso(canvas: Canvas, figure: Figure, joint: dict[str, Points], owner: int) -> None:
    unit = figure.height
    shoulders = [joint["left_shoulder"], joint["right_shoulder"]]
    hips = [joint["right_hip"], joint["left_hip"]]
    neck = (shoulders[0] + shoulders[1]) / 2
    chin = neck + (joint["left_ear"] + joint["right_ear"] - shoulders[0] - shoulders[1]) / 4
    canvas.limb(neck, chin, (0.036 * unit, 0.034 * unit), shade(figure.skin, 0.85), owner)
    canvas.limb(hips[0], hips[1], (0.056 * unit, 0.056 * unit), figure.trousers, owner)
    canvas.polygon([*shoulders, *hips], figure.shirt, owner)
    radius = 0.042 * unit
    for a, b in ((0, 1), (1, 2), (2, 3), (3, 0)):
        corners = [*shoulders, *hips]
        canvas.limb(corners[a], corners[b], (radius, radius), figure.shirt, owner)
    if figure.striped:
        for share in (0.25, 0.5, 0.75):
            left = shoulders[0] * (1 - share) + hips[1] * share
            right = shoulders[1] * (1 - share) + hips[0] * share
            canvas.limb(left, right, (0.014 * unit, 0.014 * unit), shade(figure.shirt, 0.55), owner)


def _draw_long_hair(canvas: Canvas, figure: Figure, joint: dict[str, Points], owner: int) -> None:
    unit = figure.height
    center = (joint["left_ear"] + joint["right_ear"]) / 2
    neck = (joint["left_shoulder"] + joint["right_shoulder"]) / 2
    canvas.limb(center, neck, (0.088 * unit, 0.1 * unit), figure.hair, owner)


def _draw_head(canvas: Canvas, figure: Figure, joint: dict[str, Points], owner: int) -> None:
    unit = figure.height
    ears = [joint["left_ear"], joint["right_ear"]]
    center = (ears[0] + ears[1]) / 2
    across = (ears[0] - ears[1]) * (1 if figure.frontal else -1)
    angle = float(np.degrees(np.arctan2(across[1], across[0])))
    up = np.array([across[1], -across[0]]) / max(1e-6, float(np.linalg.norm(across)))
    size = (0.074 * unit, 0.09 * unit)
    for ear in ears:
        canvas.ellipse(ear, (0.017 * unit, 0.024 * unit), shade(figure.skin, 0.86), owner, angle)
    canvas.ellipse(center, size, figure.skin, owner, angle)
    if figure.frontal:
        canvas.ellipse(
            center + up * 0.016 * unit, (size[0] * 1.04, size[1] * 0.9), figure.hair, owner, angle, (190, 350)
        )
        _draw_face(canvas, figure, joint, center, up, angle)
    else:
        canvas.ellipse(center + up * 0.012 * unit, (size[0] * 0.98, size[1] * 0.95), figure.hair, owner, angle)
    if figure.hat:
        brim = across / 2 * 1.3
        cap = shade(figure.shoes, 0.9)
        top = center + up * 0.05 * unit
        canvas.limb(top - brim, top + brim, (0.012 * unit, 0.012 * unit), cap, owner)
        canvas.ellipse(top, (size[0], 0.075 * unit), cap, owner, angle, (180, 360))


def _draw_face(
    canvas: Canvas, figure: Figure, joint: dict[str, Points], center: Points, up: Points, angle: float
) -> None:
    unit = figure.height
    for name in ("left_eye", "right_eye"):
        canvas.ellipse(joint[name], (0.015 * unit, 0.017 * unit), (245, 245, 245), None, angle)
        canvas.ellipse(joint[name], (0.009 * unit, 0.011 * unit), (25, 20, 20), None, angle)
    canvas.ellipse(joint["nose"], (0.011 * unit, 0.014 * unit), shade(figure.skin, 0.72), None, angle)
    mouth = center - up * 0.046 * unit + (joint["nose"] - center) * 0.5
    canvas.ellipse(mouth, (0.026 * unit, 0.012 * unit), (60, 50, 150), None, angle, (0, 180))
