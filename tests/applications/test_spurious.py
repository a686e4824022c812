"""Spurious cues: the planted one is removed, random ones are not; averages by hand; bad groups."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from planted import SCENES, SHAPES, WIDTH, ArrayDump, planted_dump, value_directions

from pipeline_lib.ablation import mean_ablate
from pipeline_lib.errors import DataError
from pipeline_lib.groups import Groups, group_accuracy, make_groups
from pipeline_lib.maps import identity_maps
from pipeline_lib.passes import images_of_split
from pipeline_lib.spurious import (
    Asked,
    Removal,
    rank_spurious,
    remove_cue,
    score_words,
    within_groups,
)

CARRIER = "blocks.0.attn/head1"  # of the scene, in a planted dump


@pytest.fixture
def biased() -> ArrayDump:
    """The label follows the scene in nearly all train images; its own signal is faint."""
    dump = planted_dump(1200, biased=0.97, noise=0.3)
    shape = dump.components["id"] == "blocks.2.attn/head1"
    dump.values[:, shape.to_numpy()] *= 0.8
    return dump


def removed(dump: ArrayDump, **asked: object) -> Removal:
    directions = value_directions()
    words = [np.stack([directions[word] for word in names]) for names in (SCENES, SHAPES)]
    return remove_cue(dump, identity_maps(WIDTH), *words, Asked(**{"seeds": 4, **asked}))


def accuracy(table: pd.DataFrame, method: str, group: str) -> float:
    part = table[(table["method"] == method) & (table["group"] == group)]
    return float(part["accuracy"].mean())


def test_removing_the_cue_lifts_the_worst_group_and_the_controls_do_not(
    biased: ArrayDump,
) -> None:
    found = removed(biased, top_k=1)
    assert found.ablated == (CARRIER,)
    gain = accuracy(found.table, "ablated", "worst") - accuracy(found.table, "full", "worst")
    assert gain > 0.15
    mean = accuracy(found.table, "ablated", "mean") - accuracy(found.table, "full", "mean")
    assert mean > 0
    others = found.table[(found.table["method"] == "random") & (found.table["group"] == "worst")]
    assert others["draw"].nunique() == 20
    missed = [CARRIER not in ids for ids in others["ablated"]]
    assert max(others["accuracy"][missed]) < accuracy(found.table, "full", "worst") + 0.05
    labelled = found.table[found.table["method"] == "group_labels"]["ablated"].iloc[0]
    assert CARRIER in labelled
    early = found.table[found.table["method"] == "early"]["ablated"].iloc[0]
    assert all(name.startswith(("blocks.0", "blocks.1", "stem")) for name in early)
    published = found.table[found.table["method"] == "published"]
    assert (published["components"] == 10).all() and CARRIER in published["ablated"].iloc[0]


def test_the_number_is_chosen_on_the_split_of_selection_without_group_labels(
    biased: ArrayDump,
) -> None:
    found = removed(biased, max_k=5)
    choices = found.choices
    assert choices["components"].tolist() == list(range(6))
    best = choices[choices["chosen"]].iloc[0]
    assert choices["chosen"].sum() == 1
    assert best["class_accuracy"] == choices["class_accuracy"].max()
    assert best["components"] == len(found.ablated) >= 1
    shuffled = biased.manifest["group"].sample(frac=1.0, random_state=0).to_numpy()
    biased.manifest["group"] = shuffled  # other groups, the same choice
    assert removed(biased, max_k=5).ablated == found.ablated


def test_intervals_are_over_redraws_that_keep_the_groups(biased: ArrayDump) -> None:
    summary = removed(biased, top_k=1, seeds=8).summary
    row = summary[(summary["method"] == "ablated") & (summary["group"] == "worst")].iloc[0]
    assert row["seeds"] == 8
    assert row["gain_low"] <= row["gain_high"] and row["gain_low"] > 0
    full = summary[summary["method"] == "full"]
    assert (full["gain"] == 0).all() and (full["gain_high"] == 0).all()
    groups = np.array(["a"] * 5 + ["b"] * 30)
    drawn = groups[within_groups(groups, np.random.default_rng(0))]
    assert (drawn == "a").sum() == 5 and len(set(drawn.tolist())) == 2


def test_the_values_are_those_of_mean_ablation_done_the_long_way(biased: ArrayDump) -> None:
    found = removed(biased, top_k=2)
    test = images_of_split(biased.manifest, "test")
    means = biased.values[images_of_split(biased.manifest, "val")].mean(axis=0)
    keep = ~biased.components["id"].isin(found.ablated).to_numpy()
    labels = biased.manifest["label"].to_numpy()[test].tolist()
    logits = found.classifier.logits(mean_ablate(biased.values[test], means, keep))
    by_hand = found.classifier.accuracy(logits, found.classifier.encode(labels))
    assert accuracy(found.table, "ablated", "test") == by_hand
    shift = found.classifier.weight @ means[~keep].sum(axis=0)
    np.testing.assert_allclose(found.shift, shift, atol=1e-4)


def test_the_carrier_of_the_cue_is_found_by_its_words_on_the_selection_split(
    biased: ArrayDump,
) -> None:
    val = images_of_split(biased.manifest, "val")
    directions = value_directions()
    words = [np.stack([directions[word] for word in names]) for names in (SCENES, SHAPES)]
    for published in (False, True):
        scores = score_words(biased, val, identity_maps(WIDTH), *words, published=published)
        order = rank_spurious(*scores, biased.components)
        ids = biased.components["id"].to_numpy()
        assert ids[order[0]] == CARRIER
        assert ids[order[-1]] == "blocks.2.attn/head1"


def test_nothing_ablated_is_the_full_model(biased: ArrayDump) -> None:
    table = removed(biased, top_k=0).table
    full = table[table["method"] == "full"]["accuracy"].tolist()
    assert full == table[table["method"] == "ablated"]["accuracy"].tolist()


def test_the_averages_by_hand() -> None:
    groups = Groups(("a", "b", "c"), np.array([0] * 10 + [1] * 20 + [2] * 30), np.array([90, 5, 5]))
    result = group_accuracy(np.array([9, 10, 27]), groups)
    assert result["a"] == (0.9, 10)
    assert result["worst"] == (0.5, 20)
    assert result["mean"] == (pytest.approx((0.9 + 0.5 + 0.9) / 3), 60)
    assert result["test"] == (pytest.approx(46 / 60), 60)
    assert result["train_weighted"] == (pytest.approx(0.9 * 0.9 + 0.05 * 0.5 + 0.05 * 0.9), 60)


def test_rank_is_by_difference_and_leaves_the_bias_out() -> None:
    components = pd.DataFrame({"kind": ["head", "mlp", "head", "bias"]})
    order = rank_spurious(
        np.array([0.3, 0.5, 0.4, 9.0]), np.array([0.0, 0.45, 0.05, 0.0]), components
    )
    assert order.tolist() == [2, 0, 1]


def test_an_empty_group_is_named() -> None:
    with pytest.raises(DataError, match="'b/land' in test"):
        make_groups(["a/sea", "b/sea"], ["a/sea", "b/land", "b/sea"], "test")
    with pytest.raises(DataError, match="'b/land' in train"):
        make_groups(["a/sea", "b/land"], ["a/sea"], "test")


def test_a_group_named_like_an_average_is_refused() -> None:
    with pytest.raises(DataError, match="may not be named 'worst'"):
        make_groups(["worst"], ["worst"], "test")
