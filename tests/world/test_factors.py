"""The factors: declared once, unique names, drawn independently."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from pipeline_lib.errors import DataError
from pipeline_lib.world import (
    CLASSES,
    FACTORS,
    PLACES,
    TASK_FACTORS,
    class_of,
    place_of,
    sample_factors,
    split_of,
    task_labels,
)
from pipeline_lib.world.factors import check_factors, random_stream


def test_value_names_are_unique_over_all_factors():
    names = [value for values in FACTORS.values() for value in values]
    assert len(names) == len(set(names))


def test_there_are_thirty_task_labels():
    assert len(task_labels()) == 30
    assert set(TASK_FACTORS) <= set(FACTORS)


def test_places_and_classes_partition_scenes_and_shapes():
    assert sorted(sum(PLACES.values(), ())) == sorted(FACTORS["scene"])
    assert sorted(sum(CLASSES.values(), ())) == sorted(FACTORS["shape"])
    assert place_of("swamp") == "water" and place_of("city") == "land"
    assert class_of("ring") == "curved" and class_of("star") == "angular"


def test_sampling_is_deterministic_and_index_matters():
    assert sample_factors(3, 14) == sample_factors(3, 14)
    assert len({tuple(sample_factors(3, i).values()) for i in range(50)}) > 45
    assert [sample_factors(3, i) for i in range(5)] != [sample_factors(4, i) for i in range(5)]


def test_factors_are_independent_and_uniform():
    drawn = [sample_factors(0, index) for index in range(3000)]
    for first, second in combinations(FACTORS, 2):
        counts = np.zeros((len(FACTORS[first]), len(FACTORS[second])))
        for row in drawn:
            counts[FACTORS[first].index(row[first]), FACTORS[second].index(row[second])] += 1
        expected = len(drawn) / counts.size
        chi_square = ((counts - expected) ** 2 / expected).sum()
        freedom = counts.size - 1
        assert chi_square < freedom + 5 * np.sqrt(2 * freedom), (first, second)


def test_all_problems_of_wrong_factors_are_named_at_once():
    wrong = sample_factors(0, 0) | {"shape": "blob", "mood": "happy"}
    del wrong["scene"]
    with pytest.raises(DataError, match=r"'scene' is missing.*blob.*circle.*unknown factor 'mood'"):
        check_factors(wrong)


@pytest.mark.parametrize("seed, index", [(-1, 0), (0, -1)])
def test_negative_numbers_are_refused(seed, index):
    with pytest.raises(DataError, match="≥ 0"):
        random_stream(seed, index, 0)


@pytest.mark.parametrize("function, word", [(place_of, "scene"), (class_of, "shape")])
def test_unknown_values_have_no_group(function, word):
    with pytest.raises(DataError, match=f"unknown {word}"):
        function("nothing")


def test_splits_have_their_shares_and_do_not_move():
    splits = [split_of(index) for index in range(4000)]
    shares = {name: splits.count(name) / 4000 for name in ("train", "val", "test")}
    assert shares == pytest.approx({"train": 0.8, "val": 0.1, "test": 0.1}, abs=0.02)
    assert splits[:5] == [split_of(index) for index in range(5)]
