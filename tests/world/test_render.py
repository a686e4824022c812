"""Pictures: the same bytes from the same seed, objects where the mask says."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from pipeline_lib.errors import DataError
from pipeline_lib.world import FACTORS, render, sample_factors
from pipeline_lib.world.objects import COLOURS, CONTOURS, TEXTURES
from pipeline_lib.world.scenes import PAINTERS

BASE = {
    "shape": "circle",
    "colour": "red",
    "texture": "plain",
    "scene": "lake",
    "position": "left",
    "size": "medium",
    "count": "one",
}


def test_every_value_can_be_drawn():
    assert set(CONTOURS) == set(FACTORS["shape"])
    assert set(COLOURS) == set(FACTORS["colour"])
    assert set(TEXTURES) == set(FACTORS["texture"])
    assert set(PAINTERS) == set(FACTORS["scene"])


def test_picture_and_mask_have_the_promised_form():
    drawn = render(BASE, 0, 0)
    assert drawn.image.shape == (96, 96, 3) and drawn.image.dtype == np.uint8
    assert drawn.mask.shape == (96, 96) and drawn.mask.dtype == bool
    assert drawn.factors == BASE


def test_same_seed_and_index_give_the_same_bytes():
    digests = [
        hashlib.sha256(render(sample_factors(5, i), 5, i).image.tobytes()).hexdigest()
        for i in (0, 1, 2, 0, 1, 2)
    ]
    assert digests[:3] == digests[3:]
    assert len(set(digests)) == 3


def test_the_index_changes_scene_and_object_of_equal_factors():
    first, second = render(BASE, 0, 0), render(BASE, 0, 1)
    outside = ~(first.mask | second.mask)
    assert (first.image != second.image).any(axis=2)[outside].mean() > 0.5
    assert (first.mask != second.mask).any()


@pytest.mark.parametrize("index", range(6))
def test_only_pixels_of_the_mask_change_with_the_object(index):
    factors = sample_factors(1, index)
    other = FACTORS["colour"][(FACTORS["colour"].index(factors["colour"]) + 3) % 8]
    first = render(factors, 1, index)
    second = render(factors | {"colour": other}, 1, index)
    changed = (first.image != second.image).any(axis=2)
    np.testing.assert_array_equal(first.mask, second.mask)
    assert not changed[~_grown(first.mask)].any()
    assert changed[first.mask].mean() > 0.5


def test_only_pixels_outside_the_mask_change_with_the_scene():
    first, second = render(BASE, 1, 3), render(BASE | {"scene": "city"}, 1, 3)
    inner = ~_grown(~first.mask)
    changed = (first.image != second.image).any(axis=2)
    assert changed[inner].mean() < 0.005  # a pixel of the outline may be covered in part


@pytest.mark.parametrize("position, axis, sign", [("left", 1, -1), ("bottom", 0, 1)])
def test_objects_stand_where_the_position_says(position, axis, sign):
    drawn = render(BASE | {"position": position, "size": "small"}, 0, 7)
    centre = np.argwhere(drawn.mask).mean(axis=0) - 47.5
    assert sign * centre[axis] > 12


def test_size_and_count_change_the_area():
    area = {
        size: np.mean([render(BASE | {"size": size}, 0, i).mask.mean() for i in range(5)])
        for size in FACTORS["size"]
    }
    assert area["small"] < area["medium"] < area["large"]
    assert render(BASE | {"count": "three"}, 0, 0).mask.sum() > render(BASE, 0, 0).mask.sum()


@pytest.mark.parametrize("scene", FACTORS["scene"])
def test_the_object_stands_out_from_every_scene(scene):
    for number, colour in enumerate(FACTORS["colour"]):
        drawn = render(BASE | {"scene": scene, "colour": colour}, 2, number)
        edge = _grown(drawn.mask) & ~drawn.mask
        rim = drawn.mask & _grown(~drawn.mask)
        difference = drawn.image[rim].mean() - drawn.image[edge].mean()
        inside = np.ptp(drawn.image[_grown(rim) & drawn.mask].astype(float), axis=0).max()
        assert max(abs(difference), inside) > 40, colour


def test_other_sizes_show_the_same_picture():
    small, large = render(BASE, 0, 0, size=96), render(BASE, 0, 0, size=192)
    assert large.image.shape == (192, 192, 3)
    halved = large.mask.reshape(96, 2, 96, 2).mean(axis=(1, 3)) > 0.5
    assert (halved == small.mask).mean() > 0.98


@pytest.mark.parametrize("size", [0, 31, 5000])
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(DataError, match="32 to 1024"):
        render(BASE, 0, 0, size=size)


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and the pixels next to it."""
    padded = np.pad(mask, 1)
    shifts = [padded[r : r + 96, c : c + 96] for r in range(3) for c in range(3)]
    return np.any(shifts, axis=0)


def test_objects_can_stand_further_away():
    factors = sample_factors(seed=3, index=5) | {"count": "one"}
    near, far = (render(factors, 3, 5, object_scale=scale) for scale in (1.0, 0.5))
    assert far.mask.sum() < 0.45 * near.mask.sum()
    outside = ~(near.mask | far.mask)
    assert (near.image[outside] == far.image[outside]).mean() > 0.97
    with pytest.raises(DataError, match="object_scale must be between"):
        render(factors, 3, 5, object_scale=0.0)
