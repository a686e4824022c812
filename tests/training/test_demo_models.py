"""The shipped models: loaded by their libraries' own code, and as good as their cards say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline_lib.training.card import overview_table
from pipeline_lib.training.data import Pool, encode
from pipeline_lib.training.evaluate import (
    outputs,
    probe_accuracy,
    supervised_accuracy,
    zero_shot_accuracy,
)
from pipeline_lib.training.recipes import EVALUATION_SEED, RECIPES, TRAIN_SEED
from pipeline_lib.training.train import load_open_clip, load_timm
from pipeline_lib.world import render, sample_factors, task_labels

MODELS = Path(__file__).parents[2] / "resources" / "models"
CPU = torch.device("cpu")
FRESH_SEED = 303
SHIPPED = sorted(path.parent.name for path in MODELS.glob("*/metrics.json"))


def _pool(n: int, seed: int) -> Pool:
    factors = [sample_factors(seed, index) for index in range(n)]
    images = [render(row, seed, index).image for index, row in enumerate(factors)]
    return Pool(images=np.stack(images), codes=np.array([encode(row) for row in factors], np.int8))


@pytest.fixture(scope="module")
def fresh() -> Pool:
    assert FRESH_SEED not in (TRAIN_SEED, EVALUATION_SEED)
    return _pool(200, FRESH_SEED)


def _metrics(name: str) -> dict:
    return json.loads((MODELS / name / "metrics.json").read_text())


def _kind(name: str) -> str:
    return _metrics(name)["recipe"]["kind"]


def _of_kind(kind: str) -> list[str]:
    return [name for name in SHIPPED if _kind(name) == kind]


def test_every_recipe_has_its_model():
    assert set(SHIPPED) == set(RECIPES)


def test_all_models_together_are_small():
    size = sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file())
    assert size < 25e6


@pytest.mark.parametrize("name", _of_kind("SupervisedRecipe"))
def test_supervised_models_name_the_factors(name, fresh):
    model = load_timm(MODELS / name)
    assert model.pretrained_cfg["label_names"] == task_labels()
    measured = supervised_accuracy(model, fresh, CPU)
    for factor, promised in _metrics(name)["accuracy"].items():
        assert measured[factor] > promised - 0.08, factor


@pytest.mark.parametrize("name", _of_kind("ContrastiveRecipe"))
def test_clips_name_the_factors_without_a_classifier(name, fresh):
    model, tokenizer = load_open_clip(MODELS / name)
    measured = zero_shot_accuracy(model, tokenizer, fresh, CPU)
    for factor, promised in _metrics(name)["accuracy"].items():
        assert measured[factor] > promised - 0.1, factor


@pytest.mark.parametrize("name", _of_kind("SelfDistillationRecipe"))
def test_a_probe_reads_scene_and_colour_from_self_distilled_models(name, fresh):
    features = outputs(fresh, load_timm(MODELS / name), CPU)
    seen, unseen = slice(0, 140), slice(140, 200)
    train, test = (Pool(fresh.images[part], fresh.codes[part]) for part in (seen, unseen))
    factors = ("scene", "colour")
    measured = probe_accuracy(features[seen], train, features[unseen], test, factors)
    assert measured["scene"] > 0.7
    assert measured["colour"] > 0.25


@pytest.mark.parametrize("name", SHIPPED)
def test_the_card_states_the_measured_numbers(name):
    metrics, card = _metrics(name), (MODELS / name / "README.md").read_text()
    for factor, value in metrics["accuracy"].items():
        assert f"| {factor} | {100 * value:.1f} % |" in card
    assert f"{metrics['seconds'] / 60:.1f} min" in card
    assert f"on {metrics['evaluation_images']} held-out images" in card
    assert metrics["evaluation_images"] >= 2000
    assert metrics["evaluation_seed"] != metrics["train_seed"]


def test_the_documentation_states_the_measured_numbers():
    text = (MODELS.parents[1] / "docs" / "demo-world.md").read_text()
    assert overview_table(MODELS) in text


@pytest.mark.parametrize("name", _of_kind("ContrastiveRecipe"))
def test_the_vocabulary_encodes_any_word(name):
    _, tokenizer = load_open_clip(MODELS / name)
    start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
    known = tokenizer(["a striped ring"])[0].tolist()
    assert known[0] == start and known[4] == end  # one token a word
    strange = tokenizer(["zebra xylophone"])[0]
    assert (strange == end).sum() == 1
    spelled = strange[1 : strange.tolist().index(end)]
    assert tokenizer.decode(spelled.tolist()).strip() == "zebra xylophone"


def test_the_rule_waits_for_the_models_that_others_start_from():
    rules = (MODELS.parents[1] / "workflow" / "rules" / "train_demo_models.smk").read_text()
    started = sorted(name for name, recipe in RECIPES.items() if getattr(recipe, "start", ""))
    listed = ", ".join(f'"{name}"' for name in started)
    assert f"STARTED_FROM_DEIT = [{listed}]" in rules
    assert {RECIPES[name].start for name in started} == {"deit"}
