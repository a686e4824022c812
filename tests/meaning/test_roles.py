"""Roles of components: by hand, and with categories that mean nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_lib.coordinates import Source, encode
from pipeline_lib.errors import DataError
from pipeline_lib.maps import identity_maps
from pipeline_lib.roles import NO_ROLE, ONE_CATEGORY, category_shares, entropy, role_table
from pipeline_lib.scores import Moments, moments

E = 8
POOL = ["colour"] * 40 + ["shape"] * 40 + ["food"] * 40 + ["style"] * 40


def found(scales: list[float]) -> Moments:
    """Moments of two components with these standard deviations along the axes."""
    normal = torch.randn(4000, 2, E, generator=torch.Generator().manual_seed(0))
    scale = torch.zeros(E)
    scale[: len(scales)] = torch.tensor(scales)
    return moments(encode(Source.of_array(normal * scale)), identity_maps(E))


def labels(*components: list[tuple[str, float]]) -> pd.DataFrame:
    rows = [
        {"component": number, "id": f"c{number}", "kind": "head", "layer": 0, "head": number}
        | {"category": category, "variance": gain}
        for number, texts in enumerate(components)
        for category, gain in texts
    ]
    return pd.DataFrame(rows)


def test_one_category_throughout_is_a_clear_role() -> None:
    same = [("colour", gain) for gain in (0.3, 0.1, 0.1, 0.1, 0.1)] + [("shape", 0.1)]
    mixed = [("colour", 0.2), ("shape", 0.2), ("food", 0.15), ("style", 0.15), ("shape", 0.02)]
    table = role_table(labels(same, mixed), found([1, 1]), POOL, draws=500, seed=0)
    assert table["role"].tolist() == ["colour", NO_ROLE]
    assert table["share"][0] == pytest.approx(7 / 8)
    assert table["margin"][0] == pytest.approx(6 / 8)
    assert table["texts_in_role"].tolist() == [5, 2]
    assert table["texts"].tolist() == [6, 5]
    assert table["p_value"][0] < 0.025 and 0.05 < table["p_value"][1]
    assert table["q_value"][0] == pytest.approx(2 * table["p_value"][0])
    assert table["entropy"][0] < table["entropy"][1] <= 1.0


def test_a_category_that_fills_the_pool_is_no_finding() -> None:
    same = [("colour", 0.3), ("colour", 0.2), ("colour", 0.1), ("colour", 0.1)]
    pool = ["colour"] * 95 + ["shape"] * 5
    table = role_table(labels(same), found([1]), pool, draws=300, seed=0)
    assert table["p_value"][0] > 0.5
    assert table["role"][0] == NO_ROLE


def test_from_a_pool_of_one_category_no_role_can_be_told() -> None:
    same = [("name", 0.3), ("name", 0.2)]
    table = role_table(labels(same), found([1]), ["name"] * 40, draws=20, seed=0)
    assert table["role"].tolist() == [ONE_CATEGORY]


def test_p_values_of_meaningless_categories_are_uniform() -> None:
    generator = np.random.default_rng(1)
    gains = [0.3, 0.25, 0.2, 0.15, 0.1]
    parts = [list(zip(generator.choice(POOL, 5), gains, strict=True)) for _ in range(200)]
    table = role_table(labels(*parts), _many(200), POOL, draws=200, seed=2)
    assert (table["p_value"] <= 0.05).mean() < 0.12
    assert 0.3 < table["p_value"].mean() < 0.85
    assert set(table["role"]) == {NO_ROLE}  # of 200 by chance, some at p = 0.05 and none at q


def _many(count: int) -> Moments:
    normal = torch.randn(50, count, E, generator=torch.Generator().manual_seed(0))
    return moments(encode(Source.of_array(normal)), identity_maps(E))


def test_effective_rank_counts_directions() -> None:
    one = labels([("colour", 0.5)])
    for scales, expected in (([1.0], 1.0), ([1.0, 1.0], 2.0), ([1.0] * E, E), ([3.0, 0.01], 1.0)):
        table = role_table(one, found(scales), POOL, draws=2, seed=0)
        assert table["effective_rank"][0] == pytest.approx(expected, rel=0.02)


def test_shares_and_entropy_by_hand() -> None:
    shares = category_shares(np.array([0.2, 0.1, 0.1]), np.array([[0, 1, 0], [2, 2, 2]]), 3)
    np.testing.assert_allclose(shares, [[0.75, 0.25, 0], [0, 0, 1]])
    assert entropy(np.array([1.0, 0.0])) == 0.0
    assert entropy(np.full(4, 0.25)) == pytest.approx(np.log(4))


def test_labels_of_another_pool_are_refused() -> None:
    with pytest.raises(DataError, match="'vehicle'"):
        role_table(labels([("vehicle", 0.5)]), found([1]), POOL, draws=2, seed=0)
