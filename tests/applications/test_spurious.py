"""Spurious cues: the planted one is removed, random ones are not; averages by hand; bad groups."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from planted import SCENES, SHAPES, WIDTH, ArrayDump, planted_dump, value_directions

from pipeline_lib.classify import fit_probe
from pipeline_lib.errors import DataError
from pipeline_lib.maps import identity_maps
from pipeline_lib.passes import images_of_split
from pipeline_lib.retrieval_ways import random_sets
from pipeline_lib.spurious import (
    Groups,
    ablate_groups,
    group_accuracy,
    make_groups,
    rank_spurious,
    score_words,
)

CARRIER = "blocks.0.attn/head1"  # of the scene, in a planted dump


@pytest.fixture
def biased() -> ArrayDump:
    """The label follows the scene in nearly all train images; its own signal is faint."""
    dump = planted_dump(1200, biased=0.97, noise=0.3)
    shape = dump.components["id"] == "blocks.2.attn/head1"
    dump.values[:, shape.to_numpy()] *= 0.8
    return dump


def removal(dump: ArrayDump, chosen: list[int], draws: int = 8) -> pd.DataFrame:
    train = images_of_split(dump.manifest, "train", ["label", "group"])
    test = images_of_split(dump.manifest, "test", ["label", "group"])
    labels = dump.manifest["label"].to_numpy()
    groups = dump.manifest["group"].to_numpy()
    probe = fit_probe(dump.representation(train), labels[train])
    sets: dict[tuple[str, int], list[int]] = {("full", 0): [], ("ablated", 0): chosen}
    for draw, drawn in enumerate(random_sets(dump.components, len(chosen), draws, seed=0)):
        sets["random", draw] = drawn.tolist()
    return ablate_groups(
        dump,
        probe,
        labels[test].tolist(),
        make_groups(groups[test], groups[train], "test"),
        test,
        images_of_split(dump.manifest, "val"),
        sets,
    )


def test_ablating_the_carrier_lifts_the_worst_group_and_random_ones_do_not(
    biased: ArrayDump,
) -> None:
    component = int(biased.components.index[biased.components["id"] == CARRIER][0])
    table = removal(biased, [component])
    worst = table[table["group"] == "worst"].set_index(["method", "draw"])["accuracy"]
    assert worst["ablated", 0] > worst["full", 0] + 0.15
    others = table[(table["method"] == "random") & (table["group"] == "worst")]
    missed = [ids != [CARRIER] for ids in others["ablated"]]
    assert max(others["accuracy"][missed]) < worst["full", 0] + 0.05
    mean = table[table["group"] == "mean"].set_index(["method", "draw"])["accuracy"]
    assert mean["ablated", 0] > mean["full", 0]
    assert table[table["method"] == "ablated"]["ablated"].iloc[0] == [CARRIER]


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
    table = removal(biased, [])
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
