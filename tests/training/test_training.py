"""The trainings on tiny settings: they run, repeat exactly, and their parts do what they say."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline_lib.errors import DataError, VitAtlasError
from pipeline_lib.training import optimise, vocabulary
from pipeline_lib.training.contrastive import build_clip, contrastive_loss, model_config
from pipeline_lib.training.data import (
    Pool,
    alike_batches,
    batches,
    encode,
    load_pool,
    mirrored,
    normalise,
    shifted,
)
from pipeline_lib.training.recipes import RECIPES, TRAIN_SEED, Recipe, recipe_of
from pipeline_lib.training.self_distillation import (
    Partners,
    balanced_targets,
    crop,
    follow,
    koleo_loss,
)
from pipeline_lib.training.supervised import multi_attribute_loss, task_slices
from pipeline_lib.training.train import load_timm, train_demo_model
from pipeline_lib.training.warm_start import (
    load_weights,
    principal_patches,
    start_from_supervised,
    waves_of_grid,
)
from pipeline_lib.world import FACTORS, render, sample_factors
from pipeline_lib.world.factors import TASK_FACTORS

CPU = torch.device("cpu")
MODELS = Path(__file__).parents[2] / "resources" / "models"


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    return tmp_path_factory.mktemp("pools")


def _tiny(name: str) -> Recipe:
    return dataclasses.replace(recipe_of(name), steps=2, batch=8, images=24)


@pytest.mark.parametrize("name", ["deit", "clip-small", "dinov2"])
def test_two_trainings_of_one_seed_give_the_same_folder(name, pools, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline_lib.training.train.PROBE_IMAGES", 24)
    weights = []
    for number in range(2):
        folder = tmp_path / str(number) / name
        metrics = train_demo_model(_tiny(name), folder, pools, evaluation_images=16, models=MODELS)
        weights.append(next(folder.glob("*.safetensors")).read_bytes())
        assert json.loads((folder / "metrics.json").read_text()) == metrics
        assert (folder / "README.md").is_file()
        assert [path.name for path in folder.parent.iterdir()] == [name]
    assert weights[0] == weights[1]


def test_a_pool_holds_the_images_of_the_world(pools):
    pool = load_pool(pools, 24, TRAIN_SEED)
    factors = sample_factors(TRAIN_SEED, 7)
    np.testing.assert_array_equal(pool.images[7], render(factors, TRAIN_SEED, 7).image)
    assert pool.factors(7) == factors


def test_a_pool_without_images_or_place_is_a_clear_error(tmp_path):
    with pytest.raises(DataError, match="at least one image"):
        load_pool(tmp_path, 0, seed=0)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write the training images"):
        load_pool(tmp_path / "file" / "pools", 2, seed=0)


def test_batches_show_every_image_equally_often():
    numbers = np.concatenate(list(batches(10, batch=5, steps=6, seed=1)))
    assert np.bincount(numbers, minlength=10).tolist() == [3] * 10
    with pytest.raises(DataError, match="pool at least as large"):
        next(batches(4, batch=5, steps=1, seed=0))


def test_alike_batches_come_in_groups_of_equal_factors():
    codes = np.array([encode(sample_factors(0, i)) for i in range(2000)], np.int8)
    pool = Pool(images=np.zeros((2000, 1)), codes=codes)
    for numbers in alike_batches(pool, 32, 8, steps=3, seed=0, factors=("scene", "colour")):
        assert len(set(numbers)) == 32
        columns = [list(FACTORS).index(name) for name in ("scene", "colour")]
        _, counts = np.unique(codes[numbers][:, columns], axis=0, return_counts=True)
        assert counts.tolist() == [8, 8, 8, 8]


def test_an_image_tower_started_from_a_supervised_model_gives_its_representation(pools):
    pool = load_pool(pools, 24, TRAIN_SEED)
    images = normalise(torch.from_numpy(pool.images))
    weights = load_weights(MODELS / "deit")
    config = model_config(recipe_of("clip-small"), vocabulary=600)
    tower = build_clip(config).visual.eval()
    tower.proj = None
    start_from_supervised(tower, weights)
    deit = load_timm(MODELS / "deit")
    plain = timm_without_distillation(deit)
    with torch.inference_mode():
        expected = plain(images)
        given = tower(images)
    assert torch.allclose(given, expected, atol=2e-2)


def timm_without_distillation(deit):
    """Class token of the distilled model with its distillation token taken out."""

    def forward(images):
        patches = deit.patch_embed(images) + deit.pos_embed[:, 2:]
        first = (deit.cls_token + deit.pos_embed[:, :1]).expand(len(images), -1, -1)
        return deit.norm(deit.blocks(torch.cat([first, patches], dim=1)))[:, 0]

    return forward


def test_a_missing_start_is_a_clear_error(tmp_path):
    with pytest.raises(DataError, match="train the model 'deit' first"):
        load_weights(tmp_path / "deit")


def test_recipes_are_known_by_name():
    assert all(recipe.name == name for name, recipe in RECIPES.items())
    with pytest.raises(DataError, match="did you mean deit"):
        recipe_of("deitt")


def test_augmentation_keeps_the_form_and_moves_the_pixels():
    images = torch.arange(2 * 8 * 8 * 3, dtype=torch.uint8).reshape(2, 8, 8, 3)
    rng = torch.Generator().manual_seed(0)
    assert shifted(images, rng).shape == images.shape
    assert torch.equal(shifted(images, rng, reach=0), images)
    flipped = mirrored(images.expand(2, 8, 8, 3), rng)
    assert all(
        torch.equal(one, two) or torch.equal(one, two.flip(1))
        for one, two in zip(flipped, images, strict=True)
    )
    assert crop(images, rng, side=4, scale=(0.5, 1.0)).shape == (2, 3, 4, 4)
    assert normalise(images).shape == (2, 3, 8, 8)


def test_supervised_loss_is_small_only_for_right_logits():
    codes = torch.tensor([[1, 2, 3, 4, 0, 0, 0]])
    right = torch.zeros(1, 30)
    for name, part in task_slices().items():
        right[0, part.start + codes[0, list(FACTORS).index(name)]] = 10.0
    assert multi_attribute_loss(right, codes) < multi_attribute_loss(-right, codes) - 5


def test_contrastive_loss_takes_equal_captions_as_equally_right():
    vectors = torch.eye(3)[[0, 0, 1]]
    same, different = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2])
    scale = torch.tensor(50.0)
    assert contrastive_loss(vectors, vectors, scale, same) == pytest.approx(
        2 / 3 * math.log(2), abs=1e-4
    )
    aligned = torch.eye(3)
    assert contrastive_loss(aligned, aligned, scale, different) < 1e-4


def test_balanced_targets_are_distributions_that_use_all_prototypes_alike():
    scores = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    scores[:, 0] += 5  # a prototype that every row would choose
    targets = balanced_targets(scores, temperature=0.5, rounds=50)
    assert torch.allclose(targets.sum(1), torch.ones(8), atol=1e-5)
    assert torch.allclose(targets.sum(0), torch.full((4,), 2.0), atol=1e-2)
    alone = balanced_targets(torch.eye(4), temperature=0.05)
    assert torch.allclose(alone, torch.eye(4), atol=1e-5)


def test_partners_show_the_same_in_another_picture(pools):
    pool = load_pool(pools, 60, TRAIN_SEED)
    codes = pool.codes.copy()
    task = [list(FACTORS).index(name) for name in TASK_FACTORS]
    codes[:, task] = np.arange(60)[:, None] // 3 % 2
    codes[0, task] = 5
    numbers = np.arange(60)
    partners = Partners(Pool(pool.images, codes), seed=0).of(numbers)
    assert (codes[partners][:, task] == codes[:, task]).all()
    assert partners[0] == 0  # the only one of its kind
    assert (partners[1:] != numbers[1:]).all()


def test_koleo_prefers_spread_vectors():
    rng = torch.Generator().manual_seed(0)
    spread = torch.randn(16, 8, generator=rng)
    assert koleo_loss(spread) < koleo_loss(spread * 0.01 + 1)


def test_teacher_moves_towards_the_student():
    teacher, student = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    before = (teacher.weight - student.weight).norm()
    follow(teacher, student, momentum=0.5)
    after = (teacher.weight - student.weight).norm()
    assert after.item() == pytest.approx(0.5 * before.item())


def test_learning_rate_rises_and_falls_to_zero():
    rates = [optimise.learning_rate_factor(step, 100) for step in range(100)]
    assert max(rates) == 1.0 and rates[0] < 0.2 and rates[-1] < 0.01
    assert rates.index(1.0) < 10


def test_a_loss_that_is_not_finite_stops_the_training():
    layer = torch.nn.Linear(1, 1)
    recipe = dataclasses.replace(recipe_of("deit"), steps=1)
    with pytest.raises(VitAtlasError, match="not finite at step 0"):
        optimise.fit(layer, recipe, [None], lambda item: layer.weight.sum() * math.nan)


def test_vocabulary_makes_each_known_word_one_token(tmp_path):
    merges = vocabulary.learn_merges(["star", "stars", "a"])
    assert ("star", "s</w>") in merges or len(merges) >= 4
    path = tmp_path / vocabulary.VOCABULARY
    size = vocabulary.write_vocabulary(path)
    first = path.read_bytes()
    assert vocabulary.write_vocabulary(path) == size and path.read_bytes() == first
    tokenizer = vocabulary.load_tokenizer(tmp_path, context_length=16)
    assert tokenizer.vocab_size == size
    assert len(tokenizer.encode("a photo of a small checkered crescent in a swamp")) == 10


def test_principal_patches_whiten_the_patches(pools):
    pool = load_pool(pools, 24, TRAIN_SEED)
    basis = principal_patches(pool, patch=12, components=16)
    images = normalise(torch.from_numpy(pool.images))
    channels = torch.nn.functional.conv2d(images, basis, stride=12)
    spread = channels.permute(1, 0, 2, 3).flatten(1).std(dim=1)
    assert spread == pytest.approx(torch.ones(16), abs=0.05)


def test_waves_tell_the_patches_apart():
    waves = waves_of_grid(8, 96)
    assert waves.shape == (64, 96)
    distance = torch.cdist(waves, waves) + 100 * torch.eye(64)
    assert distance.min() > 0.1
