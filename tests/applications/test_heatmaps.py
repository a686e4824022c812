"""Heat maps: geometry, mass in the mask by hand, pictures, directions, sizes that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline_lib.classify import LinearClassifier
from pipeline_lib.errors import ArtifactError, DataError
from pipeline_lib.heatmaps import (
    class_directions,
    common_scale,
    draw_overlay,
    mass_in_mask,
    pixel_range,
    seen_by_model,
    squash,
    upsample,
)

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def preprocess(picture: Image.Image) -> torch.Tensor:
    """A usual preprocessing: shorter side to 20, centre crop of 16, mean and deviation."""
    width, height = picture.size
    scale = 20 / min(width, height)
    picture = picture.resize((round(width * scale), round(height * scale)))
    left, top = (picture.width - 16) // 2, (picture.height - 16) // 2
    picture = picture.crop((left, top, left + 16, top + 16))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    return (pixels - MEAN) / STD


def test_the_picture_shown_is_the_crop_that_the_model_sees() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    span = pixel_range(preprocess, (20, 20))
    shown = seen_by_model(preprocess(picture)[None], span)[0]
    np.testing.assert_array_equal(shown, np.asarray(picture.crop((7, 2, 23, 18))))


def test_squashing_cuts_nothing_off_and_scales_like_the_model() -> None:
    pixels = np.zeros((10, 40, 3), np.uint8)
    pixels[:, :10] = 255  # the left quarter, which a centre crop would lose
    span = pixel_range(preprocess, (20, 20))
    image = squash(Image.fromarray(pixels), (16, 16), span)
    back = (image * STD + MEAN)[0]
    assert image.shape == (3, 16, 16)
    assert back[:, :3].min() > 0.95 and back[:, 6:].max() < 0.05


def test_mass_counts_the_positive_part_alone() -> None:
    heat = np.array([[3.0, -5.0], [1.0, 0.0]])
    mask = np.array([[True, True], [False, False]])
    assert mass_in_mask(heat, mask) == (0.75, 0.5)


def test_a_flat_map_has_the_mass_of_the_area_and_a_negative_one_has_none() -> None:
    mask = np.zeros((4, 8), bool)
    mask[:, :2] = True
    assert mass_in_mask(np.ones((4, 8)), mask) == (0.25, 0.25)
    assert mass_in_mask(-np.ones((4, 8)), mask) == (None, 0.25)


def test_mask_of_another_size_is_refused() -> None:
    with pytest.raises(DataError, match=r"4×4 pixels and its mask 4×8"):
        mass_in_mask(np.ones((4, 4)), np.ones((4, 8), bool))


def test_upsampling_keeps_places_on_a_grid_that_is_not_square() -> None:
    grid = np.zeros((1, 3, 5))
    grid[0, 2, 1] = 1.0
    large = upsample(grid, (30, 100))
    assert large.shape == (1, 30, 100)
    rows, columns = np.where(large[0] == large[0].max())
    assert rows.min() >= 20 and 20 <= columns.mean() < 40
    np.testing.assert_allclose(upsample(np.full((2, 3, 5), 7.0), (9, 11)), 7.0)


def test_class_directions_are_centred_weights() -> None:
    weight = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 5.0]])
    classifier = LinearClassifier("own", ("a", "b", "c"), weight, np.zeros(3))
    np.testing.assert_allclose(class_directions(classifier, ["c", "a", "c"])[0], [1.0, 3.0])
    assert class_directions(classifier, ["c", "a", "c"]).shape == (3, 2)
    assert np.abs(class_directions(classifier, ["a", "b", "c"]).sum(axis=0)).max() < 1e-9
    with pytest.raises(DataError, match="'d'"):
        class_directions(classifier, ["d"])


def test_scale_is_common_and_never_zero() -> None:
    maps = np.zeros((2, 10, 10))
    assert common_scale(maps) == 1.0
    maps[1] = -4.0
    assert common_scale(maps) == 4.0


def test_overlay_is_a_picture_with_warm_where_positive(tmp_path: Path) -> None:
    image = np.full((40, 40, 3), 128, np.uint8)
    heat = np.zeros((40, 40))
    heat[:, :20], heat[:, 20:] = 0.7, -0.7
    path = tmp_path / "overlay.png"
    draw_overlay(image, heat, 1.0, path, mask=heat > 0)
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    warm = np.argwhere((pixels[..., 0] - pixels[..., 2]) > 60)
    cold = np.argwhere((pixels[..., 2] - pixels[..., 0]) > 60)
    middle = pixels.shape[1] * 0.9  # left of the colour bar
    assert warm[warm[:, 1] < middle][:, 1].mean() < cold[cold[:, 1] < middle][:, 1].mean()
    assert [p.name for p in tmp_path.iterdir()] == ["overlay.png"]


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot be written"):
        draw_overlay(np.zeros((8, 8, 3), np.uint8), np.eye(8), 1.0, blocked / "overlay.png")
