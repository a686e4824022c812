"""Scores held against truths: planted carriers are found, and random scores find nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from known_world import C, E, N, normal, world
from scipy.stats import spearmanr

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.coordinates import Source, encode
from pipeline_lib.maps import identity_maps, unit
from pipeline_lib.scores import moments, score_components, with_components
from pipeline_lib.truths import Factors, truth_table
from pipeline_lib.validation import (
    CONFIRMING,
    VERDICTS,
    agreement,
    confirmed_table,
    spearman,
    validation_table,
)

SHUFFLES = 40


@pytest.fixture(scope="module")
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables of scores and truths of the planted world; CLIP sees what the two carriers say."""
    contributions, images, features = world()
    encoded = encode(Source.of_array(contributions))
    found = moments(encoded, identity_maps(E))
    clip = unit(contributions[:, 1] + contributions[:, 3] + 0.3 * normal(N, E, seed=5))
    truth = truth_table(
        encoded,
        found,
        features,
        factors=Factors.of(images, ["colour", "shape"]),
        rankings={name: (clip @ texts.T).numpy() for name, texts in features.items()},
        shuffles=SHUFFLES,
        seed=0,
    )
    components = pd.DataFrame({"component": range(C), "id": [f"c{i}" for i in range(C)]})
    components = components.assign(kind="head", layer=0, block=0, head=0)
    scores = score_components(found, features)
    return with_components(scores, components), with_components(truth, components)


def test_agreement_by_hand() -> None:
    score = np.array([0.5, 0.3, 0.2, 0.1])
    perfect = agreement(score, score[:, None] ** 2, draws=50, seed=0)
    assert (perfect.value, perfect.top, perfect.percentile) == (1.0, 0, 1.0)
    reverse = agreement(score, -score[:, None], draws=50, seed=0)
    assert (reverse.value, reverse.percentile) == (-1.0, 0.25)
    assert agreement(score, np.ones((4, 1)), draws=50, seed=0).value == 0.0
    both = agreement(score, np.stack([score, -score], axis=1), draws=50, seed=0)
    assert both.value == 0.0
    assert both.low < 0.0 < both.high


def test_agreement_and_its_interval_by_scipy() -> None:
    generator = np.random.default_rng(3)
    score = generator.random(60)
    truth = score + 0.4 * generator.random(60)
    found = agreement(score, truth[:, None], draws=400, seed=1)
    assert found.value == pytest.approx(spearmanr(score, truth).statistic)
    error = (1 - found.value**2) / np.sqrt(59)  # of large samples
    assert (found.high - found.low) / 4 == pytest.approx(error, rel=0.5)


def test_spearman_of_a_constant_is_zero() -> None:
    assert spearman(np.ones(5), np.arange(5.0)[:, None]).tolist() == [0.0]


def test_validation_finds_the_carrier_and_random_scores_do_not(tables) -> None:
    table = validation_table(*tables, images=N, draws=40, seed=0)
    rows = table.query("across == 'components' and score == 'score' and feature != ''")
    rows = rows.set_index(["truth", "feature"])
    measured = ["decodability", "decodability_in_words", "ablation_loss", "joint_loss"]
    measured += ["margin_loss", "clip"]
    assert (rows.loc[measured, "percentile"] == 1.0).all()
    for truth in measured:
        assert rows.loc[(truth, "colour"), "top"] == "c1"
        assert rows.loc[(truth, "shape"), "top"] == "c3"
    assert set(table["score"]) == {"score", "score_published", "variance_explained", "random"}
    assert (table["low"] <= table["value"] + 1e-9).all()
    assert len(table) == 7 * 4 * 3  # two features and their mean; nothing across features
    again = validation_table(*tables, images=N, draws=40, seed=0)
    pd.testing.assert_frame_equal(table, again)


def test_means_are_those_of_the_features(tables) -> None:
    table = validation_table(*tables, images=N, draws=20, seed=0).query("truth == 'decodability'")
    for _, part in table.groupby("score"):
        each, mean = part[part["feature"] != ""], part[part["feature"] == ""]
        assert mean["value"].item() == pytest.approx(each["value"].mean())


def test_shuffled_images_give_no_agreement(tables) -> None:
    """Shuffles of one world: the mean over them is near zero, and the interval says how near."""
    scores, truths = tables
    table = validation_table(scores, truths, images=N, draws=200, seed=0)
    control = table.query("truth == 'clip_shuffled' and score == 'score' and feature != ''")
    assert ((control["low"] < 0.05) & (control["high"] > -0.05)).all()
    assert np.abs(np.stack(truths["clip_shuffled"])).mean() < 0.05


def test_across_features() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((6, 4))
    names = list("abcd")
    scores = pd.concat(
        pd.DataFrame({"feature": f, "component": range(6), "id": "x", "score": values[:, i]})
        for i, f in enumerate(names)
    ).assign(score_published=0.0, variance_explained=1.0)
    truth = scores[["feature", "component"]].assign(
        decodability=scores["score"] ** 3,
        ablation_loss=np.nan,
        joint_loss=np.nan,
        margin_loss=np.nan,
        decodability_in_words=np.nan,
        clip=np.nan,
        clip_shuffled=None,
    )
    table = validation_table(scores, truth, images=9, draws=20, seed=0)
    assert set(table["truth"]) == {"decodability"}
    within = table.query("across == 'features'").set_index("score")["value"]
    assert within["score"] == 1.0
    assert within["score_published"] == 0.0
    assert abs(within["random"]) < 0.9


CONFIRMED = [f"confirmed{end}" for end in VERDICTS]


def test_the_carrier_is_confirmed_and_a_wrong_top_is_not(tables) -> None:
    scores, truths = tables
    table = confirmed_table(scores, truths)
    assert list(zip(table["feature"], table["by"], table["top"], strict=True)) == [
        ("colour", "score", "c1"),
        ("colour", "score_published", "c1"),
        ("shape", "score", "c3"),
        ("shape", "score_published", "c3"),
    ]
    assert table[CONFIRMED].all(axis=None)
    assert (table[[f"candidates{end}" for end in VERDICTS]] == 1).all(axis=None)
    assert (table["components"] == C - 1).all()  # the constant one is no candidate
    wrong = scores.assign(score=(scores["component"] == 2).astype(float))
    both = confirmed_table(wrong, truths).set_index(["by", "feature"])
    refused = both.loc["score"]
    assert refused["top"].tolist() == ["c2", "c2"]
    assert not refused[CONFIRMED].any(axis=None)
    assert refused.loc["colour", "decodability_best"] == "c1"
    assert refused.loc["colour", "decodability_percentile"] == pytest.approx(3 / 4)
    assert both.loc["score_published", CONFIRMED].all(axis=None)  # each score has its own first


@pytest.mark.parametrize("truth", CONFIRMING)
def test_a_truth_that_tells_nothing_apart_confirms_nothing(tables, truth: str) -> None:
    scores, truths = tables
    table = confirmed_table(scores, truths.assign(**{truth: 0.0}))
    for end, pair in VERDICTS.items():
        assert (table[f"confirmed{end}"] == (truth not in pair)).all()
        assert (table[f"candidates{end}"] == (truth not in pair)).all()


def test_a_feature_that_is_no_known_factor_is_left_out(tables) -> None:
    scores, truths = tables
    unknown = truths.assign(
        ablation_loss=truths["ablation_loss"].where(truths["feature"] != "shape")
    )
    assert set(confirmed_table(scores, unknown)["feature"]) == {"colour"}


def test_without_known_factors_there_is_an_empty_table(tables, tmp_path) -> None:
    scores, truths = tables
    table = confirmed_table(scores, truths.assign(decodability=np.nan))
    assert table.empty
    path = tmp_path / "confirmed.parquet"
    write_table("confirmed", table.assign(model="deit", dataset="world"), path)
    assert read_table("confirmed", path).empty
