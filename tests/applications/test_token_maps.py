"""Token maps and baselines of a real, small model: sums, directions, geometry, batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline_lib.classify import LinearClassifier
from pipeline_lib.decomposition import decompose
from pipeline_lib.errors import DataError
from pipeline_lib.heatmaps import (
    Shown,
    choose_images,
    class_heatmaps,
    draw_heatmaps,
    gradient_maps,
    image_directions,
    representations,
    text_token_maps,
    token_maps,
)
from pipeline_lib.maps import Maps
from pipeline_lib.models import VisionModel, load_model
from pipeline_lib.segmentation import methods
from pipeline_lib.token_recipes import (
    RECIPES,
    Form,
    Recipe,
    Usual,
    energy,
    evidence_directions,
    evidence_maps,
)

GRID = (2, 3)


@pytest.fixture(scope="module")
def model() -> VisionModel:
    """ViT of one block on pictures that are not square: patches of 16, a grid of 2 by 3."""
    torch.manual_seed(0)
    return load_model(
        "timm:vit_tiny_patch16_224", pretrained=False, img_size=(32, 48), depth=1, embed_dim=48
    )


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def classifier(model: VisionModel) -> LinearClassifier:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 48)).astype(np.float32)
    return LinearClassifier("probe", tuple("abcd"), weight, np.zeros(4, np.float32))


def test_each_image_gets_the_map_of_its_own_direction(
    model: VisionModel, images: torch.Tensor, classifier: LinearClassifier
) -> None:
    directions, names = image_directions(classifier, np.empty((0, 0)), ["c", "a", "c"])
    assert names == ["c", "a", "c"]
    maps = token_maps(model, images, directions)
    assert maps.shape == (3, *GRID)
    parts = decompose(model, images, per="token", directions=torch.from_numpy(directions))
    for image in range(3):
        alone = parts.maps()[image, :, image].sum(dim=0)
        np.testing.assert_allclose(maps[image], alone, atol=1e-5)


def test_maps_of_all_components_sum_to_the_logit_with_what_is_no_patch(
    model: VisionModel, images: torch.Tensor, classifier: LinearClassifier
) -> None:
    direction = classifier.weight[:1]
    parts = decompose(model, images, per="token", directions=torch.from_numpy(direction))
    rest = parts.values.sum(dim=(1, 2))[:, 0] - parts.maps().sum(dim=(1, 3, 4))[:, 0]
    maps = token_maps(model, images, np.repeat(direction, 3, axis=0))
    z = representations(model, images)
    np.testing.assert_allclose(
        maps.sum(axis=(1, 2)) + rest.numpy(), z @ direction[0], rtol=1e-3, atol=1e-4
    )


def test_components_can_be_chosen(
    model: VisionModel, images: torch.Tensor, classifier: LinearClassifier
) -> None:
    directions = classifier.weight[:3]
    whole = token_maps(model, images, directions)
    components = decompose(model, images[:1]).components
    heads = components.loc[components["kind"] == "head", "id"]
    pieces = [token_maps(model, images, directions, [name]) for name in heads]
    # The representation is read at the class token: nothing else takes from the patches.
    np.testing.assert_allclose(np.sum(pieces, axis=0), whole, atol=1e-5)
    with pytest.raises(DataError, match=r"no token map: blocks\.0\.mlp take nothing"):
        token_maps(model, images, directions, ["blocks.0.mlp"])


def test_text_maps_go_through_each_component_s_map(
    model: VisionModel, images: torch.Tensor
) -> None:
    count = len(decompose(model, images[:1]).components)
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(count, 48, 5, generator=generator)
    texts = np.random.default_rng(3).normal(size=(2, 5)).astype(np.float32)
    neutral = texts.mean(axis=0)
    found = text_token_maps(model, images, Maps("ridge", weights, torch.zeros(5)), texts, neutral)
    assert found.shape == (3, 2, *GRID)
    np.testing.assert_allclose(found[:, 0], -found[:, 1], atol=1e-4)  # the two differ by sign alone
    by_hand = np.zeros((3, *GRID))
    heads = decompose(model, images[:1]).components.query("kind == 'head'")["component"]
    for component in heads:
        direction = (weights[component] @ torch.from_numpy(texts[0] - neutral)).numpy()
        by_hand += token_maps(model, images, np.repeat(direction[None], 3, axis=0), [component])
    np.testing.assert_allclose(found[:, 0], by_hand, atol=1e-4)


def test_the_gradient_baseline_is_the_first_order_change_of_each_cell(
    model: VisionModel, images: torch.Tensor, classifier: LinearClassifier
) -> None:
    direction = classifier.weight[:1]
    one = images[:1]
    cells = gradient_maps(model, one, direction, GRID)[0]
    assert cells.shape == GRID and (cells >= 0).all()
    # A single lit pixel: its cell holds the derivative along it times its value, over 256 pixels.
    lit = torch.zeros_like(one)
    lit[0, 1, 20, 40] = 1e-2
    cell = gradient_maps(model, lit, direction, GRID)[0]
    more, less = lit.clone(), lit.clone()
    more[0, 1, 20, 40] += 1e-3
    less[0, 1, 20, 40] -= 1e-3
    z = representations(model, torch.cat([more, less])) @ direction[0]
    slope = abs(float(z[0] - z[1])) / 2e-3
    assert np.flatnonzero(cell.ravel() > 0).tolist() == [5]
    assert cell[1, 2] == pytest.approx(slope * 1e-2 / 256, rel=0.05)


def test_predicted_classes_are_the_largest_logits(
    model: VisionModel, images: torch.Tensor, classifier: LinearClassifier
) -> None:
    maps, names = class_heatmaps(model, images, classifier)
    logits = classifier.logits(representations(model, images))
    assert [row[0] for row in names] == [classifier.classes[i] for i in logits.argmax(axis=1)]
    assert maps.shape == (3, 1, *GRID)


@pytest.fixture(scope="module")
def recipe(model: VisionModel, images: torch.Tensor, classifier: LinearClassifier) -> Recipe:
    directions = evidence_directions(classifier)
    return Recipe("energy_1.5", directions, Usual.of(evidence_maps(model, images, directions)))


def test_methods_give_one_map_per_image_whatever_the_batch(
    model: VisionModel, images: torch.Tensor, classifier: LinearClassifier, recipe: Recipe
) -> None:
    for labels in (None, ["b", "d", "a"]):
        found = methods(model, classifier, recipe, labels)
        assert {"decomposition", "gradient", "gradcam", "attention", "rollout"} <= set(found)
        for name, mapper in found.items():
            whole = mapper(images, np.arange(3))
            single = [mapper(images[i : i + 1], np.array([i]))[0] for i in range(3)]
            assert len(whole) == 3
            np.testing.assert_allclose(whole, np.stack(single), atol=1e-5, err_msg=name)


def test_evidence_along_few_directions_is_that_of_all_classes(
    model: VisionModel, images: torch.Tensor, classifier: LinearClassifier
) -> None:
    classes = classifier.weight - classifier.weight.mean(axis=0)
    few, all_classes = (
        np.square(evidence_maps(model, images, d)).sum(axis=2)
        for d in (evidence_directions(classifier), classes)
    )
    assert len(evidence_directions(classifier)) == 3  # four classes less their mean
    np.testing.assert_allclose(few, all_classes, rtol=1e-3, atol=1e-6)


def plain_usual(count: int, directions: int) -> Usual:
    """No mean, all components alike, no mixing."""
    mixing = np.repeat(np.eye(directions, dtype=np.float32)[None], count, axis=0)
    means = np.zeros((count, directions, 3, 3), np.float32)
    return Usual(means, np.ones(count, np.float32), mixing)


def test_energy_by_hand() -> None:
    maps = np.zeros((1, 2, 2, 3, 3), np.float32)
    maps[0, 0, :, 1, 1] = [3.0, 4.0]  # one component speaks at one place, length 5
    maps[0, 1] = 7.0  # the other alike everywhere: nothing
    usual = plain_usual(2, 2)
    found = energy(maps, usual, Form(2.0))
    assert found[0, 1, 1] == pytest.approx(25.0, rel=1e-3)
    assert np.delete(found.ravel(), 4).max() < 0.1
    moved = energy(maps + 2.0, replace(usual, means=usual.means + 2.0), Form(2.0))
    np.testing.assert_allclose(found, moved, atol=1e-4)
    halved = energy(maps, replace(usual, peaks=np.array([0.5, 1.0])), Form(2.0, peaked=True))
    np.testing.assert_allclose(halved, found / 2, atol=1e-4)
    with pytest.raises(DataError, match="is no energy"):
        energy(maps, usual, Form(None))


def test_what_is_usual_tells_gathered_from_spread_and_strong_from_weak_directions() -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(40, 2, 2, 4, 4)).astype(np.float32)
    maps[:, :, 1] *= 9.0  # one direction varies nine times as much everywhere
    maps[:, 1] *= rng.random((40, 1, 4, 4)) < 0.1  # the second component in few places
    usual = Usual.of(maps)
    assert usual.peaks[1] == 1.0 and usual.peaks[0] < 0.6
    mixed = np.einsum("nrgh,rs->nsgh", maps[:, 0], usual.mixing[0])
    spread = np.sort(mixed.std(axis=(0, 2, 3)))
    assert spread[1] / spread[0] == pytest.approx(3.0, rel=0.1)  # half of what it was, in logs
    for name, form in RECIPES.items():
        if form.power is not None:
            found = energy(maps, usual, form)
            assert found.shape == (40, 4, 4) and (found >= 0).all(), name


def test_the_class_recipe_takes_what_speaks_for_the_class(
    model: VisionModel, images: torch.Tensor, classifier: LinearClassifier, recipe: Recipe
) -> None:
    own = replace(recipe, name="class")
    found = methods(model, classifier, own, ["b", "d", "a"])["decomposition"](images, np.arange(3))
    directions, _ = image_directions(classifier, np.empty((0, 0)), ["b", "d", "a"])
    np.testing.assert_allclose(found, np.clip(token_maps(model, images, directions), 0, None))
    with pytest.raises(DataError, match="unknown recipe 'energy_3'; did you mean energy_"):
        replace(recipe, name="energy_3")


def test_overlays_are_named_by_image_and_map(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((2, 32, 48), bool)
    masks[0, :16] = True
    maps = np.zeros((2, 2, *GRID))
    maps[:, 0, 0] = 1.0  # the upper half
    maps[:, 1, 1] = -1.0
    shown = Shown(
        ["a.png", "b.png"],
        rng.integers(0, 255, (2, 32, 48, 3), dtype=np.uint8),
        masks,
        maps,
        [["x", "y"], ["x", "y"]],
    )
    table = draw_heatmaps(shown, tmp_path, "set")
    files = ["set/0-0.png", "set/0-1.png", "set/1-0.png", "set/1-1.png"]
    assert table["file"].tolist() == files
    for file in files:
        with Image.open(tmp_path / file) as picture:
            assert picture.width > 100
    first = table[table["image_id"] == "a.png"]
    assert first["mass"].iloc[0] > 0.7 and np.isnan(first["mass"].iloc[1])
    assert first["area"].tolist() == [0.5, 0.5]
    assert table[table["image_id"] == "b.png"][["mass", "area"]].isna().all(axis=None)


def test_images_are_chosen_by_seed_from_those_that_have_what_is_needed() -> None:
    manifest = pd.DataFrame({"split": ["test"] * 8 + ["train"] * 2, "mask": [None, "m"] * 5})
    first = choose_images(manifest, "test", ["mask"], 2, seed=0)
    assert len(first) == 2 and first["mask"].notna().all() and (first["split"] == "test").all()
    pd.testing.assert_frame_equal(first, choose_images(manifest, "test", ["mask"], 2, seed=0))
    assert len(choose_images(manifest, None, ["mask"], 99, seed=0)) == 5
    with pytest.raises(DataError, match="no column 'masks'; did you mean mask"):
        choose_images(manifest, "test", ["masks"], 2, seed=0)


DEMO = Path(__file__).parents[2] / "resources" / "models"
FAMILIES = {
    "clip-small": "open_clip", "deit": "timm", "dino": "timm", "dinov2": "timm", "swin": "timm",
    "maxvit": "timm",
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_changed_patch_of_a_demo_model_changes_the_map_most_at_itself(name: str) -> None:
    own = load_model(f"{FAMILIES[name]}:local-dir:{DEMO / name}")
    height, width = own.input_size
    generator = torch.Generator().manual_seed(0)
    plain = 0.1 * torch.randn(1, 3, height, width, generator=generator)
    found = decompose(own, plain, per="token", directions=torch.eye(own_width(own))[:2])
    rows, columns = found.grid
    # Convolutions before the tokens carry a change to the neighbours: there a block is changed.
    reach = 1 if name == "maxvit" else 0
    cells = [(reach, 1), (rows // 2, columns - 2), (rows - 2, columns // 3)]
    tall, wide = height // rows, width // columns
    images = plain.repeat(1 + len(cells), 1, 1, 1)
    for image, (row, column) in zip(images[1:], cells, strict=True):
        high = slice((row - reach) * tall, (row + reach + 1) * tall)
        image[:, high, (column - reach) * wide : (column + reach + 1) * wide] += 2.0
    directions = torch.randn(8, own_width(own), generator=generator)
    maps = decompose(own, images, per="token", directions=directions).maps()
    moved = (maps[1:] - maps[:1]).square().sum(dim=(1, 2))
    for one, (row, column) in zip(moved, cells, strict=True):
        peak = divmod(int(one.argmax()), columns)
        assert abs(peak[0] - row) <= reach and abs(peak[1] - column) <= reach


def own_width(model: VisionModel) -> int:
    """Length of a model's representation."""
    return representations(model, torch.zeros(1, 3, *model.input_size)).shape[1]
