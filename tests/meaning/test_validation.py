"""Scores held against truths: planted carriers are found, and scores dealt at random are not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from known_world import C, E, N, normal, world
from scipy.stats import spearmanr

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.coordinates import Source, encode
from pipeline_lib.maps import identity_maps, unit
from pipeline_lib.redraws import redraw
from pipeline_lib.scores import moments, score_components, with_components
from pipeline_lib.significance import redrawn_scores
from pipeline_lib.truths import Factors, truth_table
from pipeline_lib.validation import (
    CONFIRMING,
    SCORES,
    VERDICTS,
    confirmed_table,
    spearman,
    validation_table,
)

SHUFFLES, REDRAWS = 40, 60
ASKED = {"images": N, "deals": 1000, "seed": 0}
Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


@pytest.fixture(scope="module")
def tables() -> Tables:
    return tables_of(*world())


def tables_of(contributions, images, features, order: np.ndarray | None = None) -> Tables:
    """Scores, truths and redraws of the planted world; CLIP sees what the two carriers say.

    CLIP's images are taken in another order where one is given.
    """
    encoded = encode(Source.of_array(contributions))
    found = moments(encoded, identity_maps(E))
    clip = unit(contributions[:, 1] + contributions[:, 3] + 0.3 * normal(N, E, seed=5))
    clip = clip if order is None else clip[order]
    weights = redraw(N, REDRAWS, seed=0)
    truth, drawn = truth_table(
        encoded,
        found,
        features,
        factors=Factors.of(images, ["colour", "shape"]),
        rankings={name: (clip @ texts.T).numpy() for name, texts in features.items()},
        shuffles=SHUFFLES,
        seed=0,
        weights=weights,
    )
    again = redrawn_scores(encoded, found, features, weights)
    drawn = again.merge(drawn, on=["feature", "component"])
    components = pd.DataFrame({"component": range(C), "id": [f"c{i}" for i in range(C)]})
    components = components.assign(kind="head", layer=0, block=0, head=0)
    scores = score_components(found, features)
    return with_components(scores, components), with_components(truth, components), drawn


def test_spearman_by_hand_and_by_scipy() -> None:
    score = np.array([0.5, 0.3, 0.2, 0.1])
    pairs = [(score, score**2, 1.0), (score, -score, -1.0), (score, np.ones(4), 0.0)]
    for one, other, want in pairs:
        assert spearman(one[None, :, None], other[None, :, None], axis=1).tolist() == [[want]]
    one, other = np.random.default_rng(3).random((2, 2, 6, 5))
    for axis in (1, 2):
        want = [
            [
                spearmanr(*pair).statistic
                for pair in zip(*(np.moveaxis(v, axis - 1, 1) for v in both))
            ]
            for both in zip(one, other, strict=True)
        ]
        np.testing.assert_allclose(spearman(one, other, axis=axis), want, atol=1e-9)


def test_validation_finds_the_carrier(tables: Tables) -> None:
    table = validation_table(*tables, **ASKED)
    rows = table.query("across == 'components' and score == 'score' and feature != ''")
    rows = rows.set_index(["truth", "feature"])
    measured = ["decodability", "decodability_in_words", "ablation_loss", "joint_loss"]
    measured += ["margin_loss", "clip"]
    assert (rows.loc[measured, "percentile"] == 1.0).all()
    for truth in measured:
        assert rows.loc[(truth, "colour"), "top"] == "c1"
        assert rows.loc[(truth, "shape"), "top"] == "c3"
    assert set(table["score"]) == set(SCORES)
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()
    assert len(table) == 7 * 4 * 3  # two features and their mean; nothing across features
    again = validation_table(*tables, **ASKED)
    pd.testing.assert_frame_equal(table, again)


def test_scores_dealt_at_random_agree_with_nothing(tables: Tables) -> None:
    """The mean over deals is near 0; single deals of four components go from -1 to 1."""
    table = validation_table(*tables, **ASKED).query(
        "score == 'random' and truth != 'clip_shuffled'"
    )
    assert table["value"].abs().max() < 0.08  # 1,000 deals, each with a standard error of 0.58
    assert (table["low"] < -0.5).all() and (table["high"] > 0.5).all()
    assert (table["top"] == "").all()
    each = table[table["feature"] != ""]["percentile"]
    assert each.between(0.5, 0.75).all()  # one of four is not above 2.5 of them on average


def test_intervals_hold_what_more_images_say() -> None:
    """The agreement over many images of a noisy world is inside most intervals of few."""
    truth = validation_table(*noisy(20_000, seed=0), **ASKED)
    inside = []
    for seed in range(1, 13):
        table = validation_table(*noisy(400, seed=seed), **ASKED)
        chosen = (table["score"] != "random") & (table["feature"] == "")
        inside.append(
            (table["low"] - 1e-9 <= truth["value"]) & (truth["value"] <= table["high"] + 1e-9)
        )
        inside[-1] = inside[-1][chosen]
    assert 0.8 <= np.mean(inside)
    widths = [(t["high"] - t["low"])[chosen].mean() for t in (truth, table)]
    assert 0.02 < widths[1] and widths[0] < 0.5 * widths[1]


def noisy(images: int, seed: int) -> Tables:
    """Scores that are means of noisy numbers of images, and truths that are, too."""
    rng, usual = np.random.default_rng(seed), np.linspace(0.0, 1.0, 8)
    weights = redraw(images, REDRAWS, seed=seed).astype(float)
    weights /= weights.sum(axis=1, keepdims=True)
    parts = []
    for feature in "ab":
        seen = usual[:, None] + rng.standard_normal((2, 8, images))
        means = np.einsum("wn,scn->swc", weights, seen)
        parts.append(
            pd.DataFrame({"feature": feature, "component": range(8), "id": "x"}).assign(
                score=means[0, 0],
                decodability=means[1, 0],
                score_drawn=list(means[0, 1:].T),
                decodability_drawn=list(means[1, 1:].T),
            )
        )
    table = pd.concat(parts, ignore_index=True)
    columns = {"score_published": table["score"], "variance_explained": table["score"] + 9.0}
    nothing = dict.fromkeys(set(CONFIRMING) | {"margin_loss", "clip"}, np.nan)
    truths = table.assign(
        **nothing | {"decodability": table["decodability"], "clip_shuffled": None}
    )
    names = ("score", "score_published", "variance_explained")
    drawn = dict.fromkeys(names, table["score_drawn"])
    drawn["decodability"] = table["decodability_drawn"]
    return table.assign(**columns), truths, table[["feature", "component"]].assign(**drawn)


def test_means_are_those_of_the_features(tables: Tables) -> None:
    table = validation_table(*tables, **ASKED).query("truth == 'decodability'")
    for _, part in table.groupby("score"):
        each, mean = part[part["feature"] != ""], part[part["feature"] == ""]
        assert mean["value"].item() == pytest.approx(each["value"].mean())


def test_shuffled_images_give_no_agreement(tables: Tables) -> None:
    """Shuffles of one world: the mean over them is near zero, and the middle of them holds zero."""
    table = validation_table(*tables, **ASKED)
    control = table.query("truth == 'clip_shuffled' and score == 'score' and feature != ''")
    assert ((control["low"] < 0) & (control["high"] > 0)).all()
    assert control["value"].abs().max() < 0.35  # 40 shuffles of four components
    assert np.abs(np.stack(tables[1]["clip_shuffled"])).mean() < 0.05


def test_images_of_clip_in_another_order_are_noticed() -> None:
    """One row off, and the component that says what CLIP says agrees with it no more."""
    right, wrong = (tables_of(*world(), order=order)[1] for order in (None, np.roll(range(N), 1)))
    carrier = right.query("id == 'c1' and feature == 'colour'").index
    assert right.loc[carrier, "clip"].item() > 0.6
    assert abs(wrong.loc[carrier, "clip"].item()) < 0.1


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
    drawn = truth[["feature", "component"]].copy()
    for name in ("score", "score_published", "variance_explained"):
        drawn[name] = [np.repeat(value, 3) for value in scores[name]]
    drawn["decodability"] = [np.repeat(value, 3) for value in truth["decodability"]]
    table = validation_table(scores, truth, drawn, **ASKED)
    assert set(table["truth"]) == {"decodability"}
    within = table.query("across == 'features'").set_index("score")
    assert within.loc["score", ["value", "low", "high"]].tolist() == [1.0] * 3
    assert within.loc["score_published", "value"] == 0.0
    # What all components have in common for a feature stays where its scores are dealt.
    assert abs(within.loc["random", "value"]) < 0.3
    assert within.loc["random", "high"] - within.loc["random", "low"] > 0.5


CONFIRMED = [f"confirmed{end}" for end in VERDICTS]


def test_the_carrier_is_confirmed_and_a_wrong_top_is_not(tables: Tables) -> None:
    scores, truths, redraws = tables
    table = confirmed_table(*tables)
    assert list(zip(table["feature"], table["by"], table["top"], strict=True)) == [
        ("colour", "score", "c1"),
        ("colour", "score_published", "c1"),
        ("shape", "score", "c3"),
        ("shape", "score_published", "c3"),
    ]
    assert table[CONFIRMED].all(axis=None)
    assert (table[[f"{name}_share" for name in CONFIRMED]] > 0.9).all(axis=None)
    for truth in CONFIRMING:
        low, value, high = (table[f"{truth}_{end}"] for end in ("low", "value", "high"))
        assert ((low < value) & (value < high) & (high - low < 0.3)).all()
    assert (table[[f"candidates{end}" for end in VERDICTS]] == 1).all(axis=None)
    assert (table["components"] == C - 1).all()  # the constant one is no candidate
    wrong = scores.assign(score=(scores["component"] == 2).astype(float))
    both = confirmed_table(wrong, truths, redraws).set_index(["by", "feature"])
    refused = both.loc["score"]
    assert refused["top"].tolist() == ["c2", "c2"]
    assert not refused[CONFIRMED].any(axis=None)
    assert refused.loc["colour", "decodability_best"] == "c1"
    assert refused.loc["colour", "decodability_percentile"] == pytest.approx(3 / 4)
    assert both.loc["score_published", CONFIRMED].all(axis=None)  # each score has its own first


@pytest.mark.parametrize("truth", CONFIRMING)
def test_a_truth_that_tells_nothing_apart_confirms_nothing(tables: Tables, truth: str) -> None:
    scores, truths, redraws = tables
    flat = redraws.assign(**{truth: [np.zeros(REDRAWS)] * len(redraws)})
    table = confirmed_table(scores, truths.assign(**{truth: 0.0}), flat)
    for end, pair in VERDICTS.items():
        assert (table[f"confirmed{end}"] == (truth not in pair)).all()
        assert ((table[f"confirmed{end}_share"] > 0) == (truth not in pair)).all()
        assert (table[f"candidates{end}"] == (truth not in pair)).all()


def test_a_feature_that_is_no_known_factor_is_left_out(tables: Tables) -> None:
    scores, truths, redraws = tables
    unknown = truths.assign(
        ablation_loss=truths["ablation_loss"].where(truths["feature"] != "shape")
    )
    assert set(confirmed_table(scores, unknown, redraws)["feature"]) == {"colour"}


def test_without_known_factors_there_is_an_empty_table(tables: Tables, tmp_path) -> None:
    scores, truths, redraws = tables
    table = confirmed_table(scores, truths.assign(decodability=np.nan), redraws)
    assert table.empty
    path = tmp_path / "confirmed.parquet"
    write_table("confirmed", table.assign(model="deit", dataset="world"), path)
    assert read_table("confirmed", path).empty
