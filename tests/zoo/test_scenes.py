"""The generator: the same seed gives the same bytes, and the labels describe the image."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from samples_training.figures import KEYPOINT_NAMES
from samples_training.scenes import OBJECT_NAMES, coco_annotations, label_lines, object_scene, pose_scene

SEEDS = range(20)


@pytest.fixture(scope="module")
def scenes():
    return [(f"{seed}.jpg", pose_scene(seed)) for seed in SEEDS]


def test_same_seed_same_bytes(scenes) -> None:
    for seed in (0, 7):
        again = pose_scene(seed)
        assert np.array_equal(again.image, scenes[seed][1].image)
        for one, other in zip(again.people, scenes[seed][1].people, strict=True):
            assert np.array_equal(one.keypoints, other.keypoints)
            assert (one.box, one.area, one.segmentation) == (other.box, other.area, other.segmentation)
        assert np.array_equal(object_scene(seed).image, object_scene(seed).image)
    assert scenes[0][1].image.tobytes() != scenes[7][1].image.tobytes()


def test_scenes_are_images_of_several_sizes_and_crowds(scenes) -> None:
    for _, scene in scenes:
        assert scene.image.dtype == np.uint8 and scene.image.ndim == 3 and scene.image.flags.c_contiguous
        assert scene.image.std() > 5
    assert len({scene.image.shape for _, scene in scenes}) > 2
    assert len(Counter(len(scene.people) for _, scene in scenes)) > 2


def test_size_can_be_given() -> None:
    assert pose_scene(3, size=(200, 120)).image.shape == (120, 200, 3)


def test_keypoints_lie_in_the_image_and_boxes_around_them(scenes) -> None:
    seen_in_box = []
    for _, scene in scenes:
        height, width = scene.image.shape[:2]
        for person in scene.people:
            x, y, visible = person.keypoints.T
            assert person.keypoints.shape == (17, 3) and set(np.unique(visible)) <= {0, 1, 2}
            assert not person.keypoints[visible == 0].any()
            known = visible > 0
            assert (x[known] >= 0).all() and (x[known] < width).all()
            assert (y[known] >= 0).all() and (y[known] < height).all()
            left, top, box_width, box_height = person.box
            assert min(left, top) >= 0 and left + box_width <= width and top + box_height <= height
            assert 0 < person.area <= box_width * box_height
            seen = visible == 2
            inside = (x >= left) & (x <= left + box_width) & (y >= top) & (y <= top + box_height)
            seen_in_box.extend(inside[seen])
    assert np.all(seen_in_box) and len(seen_in_box) > 100


def test_left_and_right_follow_the_facing_direction(scenes) -> None:
    left, right = KEYPOINT_NAMES.index("left_shoulder"), KEYPOINT_NAMES.index("right_shoulder")
    facing, turned = [], []
    for _, scene in scenes:
        for person in scene.people:
            if person.keypoints[[left, right], 2].all():
                frontal = person.keypoints[0, 2] > 0
                (facing if frontal else turned).append(person.keypoints[left, 0] > person.keypoints[right, 0])
    assert facing and turned
    assert np.mean(facing) > 0.95 and np.mean(turned) < 0.5


def test_coco_annotations_are_consistent(scenes) -> None:
    document = coco_annotations(scenes, "test")
    images = {image["id"]: image for image in document["images"]}
    assert sorted(images) == list(range(1, len(scenes) + 1))
    ids = [annotation["id"] for annotation in document["annotations"]]
    assert ids == list(range(1, sum(len(scene.people) for _, scene in scenes) + 1))
    for annotation in document["annotations"]:
        assert annotation["image_id"] in images and annotation["category_id"] == 1
        assert annotation["num_keypoints"] == sum(v > 0 for v in annotation["keypoints"][2::3])
        assert all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in annotation["segmentation"])
    assert document["categories"][0]["keypoints"] == list(KEYPOINT_NAMES)


def test_every_object_can_be_drawn() -> None:
    things = [(f"{label}.jpg", object_scene(5, label)) for label in range(len(OBJECT_NAMES))]
    assert label_lines(things) == [f"{label}.jpg {label}" for label in range(len(OBJECT_NAMES))]
    images = [scene.image for _, scene in things]
    assert len({image.tobytes() for image in images}) == len(OBJECT_NAMES)
    assert {object_scene(seed).label for seed in range(60)} == set(range(len(OBJECT_NAMES)))
