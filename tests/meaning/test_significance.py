"""Intervals, random directions and margins of scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_lib.coordinates import Encoded, Source, encode
from pipeline_lib.maps import identity_maps
from pipeline_lib.redraws import redraw
from pipeline_lib.scores import Moments, moments, score_components
from pipeline_lib.significance import (
    add_chance,
    add_margins,
    add_statistics,
    bootstrap_strengths,
    carriers,
    p_values,
    random_scores,
    redrawn_scores,
)

C, E = 4, 10


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(n: int = 800, seed: int = 0) -> tuple[Encoded, Moments, dict[str, torch.Tensor]]:
    """Component 1 carries three quarters of the feature, component 2 a quarter."""
    axes = torch.linalg.qr(normal(E, 4, seed=99)).Q.T
    contributions = 0.3 * normal(n, C, E, seed=seed)
    contributions[:, 1] += 3.0 * normal(n, 2, seed=seed + 1) @ axes[:2]
    contributions[:, 2] += 3.0**0.5 * normal(n, 2, seed=seed + 2) @ axes[:2]
    contributions[:, 3] += 4.0 * normal(n, 2, seed=seed + 3) @ axes[2:]
    encoded = encode(Source.of_array(contributions))
    features = {"colour": axes[:2], "shape": axes[2:]}
    return encoded, moments(encoded, identity_maps(E)), features


def interval(encoded: Encoded, found: Moments, feature: torch.Tensor, seed: int):
    """Ends of the interval of every component's score for one feature."""
    weights = redraw(found.n, 100, seed)
    table = score_components(found, {"a": feature})
    drawn = redrawn_scores(encoded, found, {"a": feature}, weights)
    table = add_statistics(table, drawn, found, {"a": feature}, draws=2, seed=0)
    return table["low"].to_numpy(), table["high"].to_numpy()


def test_draws_without_chance_give_the_score_itself() -> None:
    encoded, found, features = planted()
    weights = np.ones((3, found.n), np.uint8)
    table = score_components(found, features)
    drawn = redrawn_scores(encoded, found, features, weights)
    assert drawn[["feature", "component"]].equals(table[["feature", "component"]])
    for name in ("score", "score_published", "variance_explained"):
        for one in np.stack(drawn[name]).T:
            np.testing.assert_allclose(one, table[name], atol=1e-5)
    for end in bootstrap_strengths(encoded, found, weights):
        np.testing.assert_allclose(end, found.strengths, atol=1e-5)


def test_a_redraw_scores_as_images_that_are_there_twice() -> None:
    """Weights of 2 and 0 give the scores of those images alone."""
    encoded, found, features = planted(n=600)
    weights = np.stack([np.ones(600), 2 * (np.arange(600) % 2)]).astype(np.uint8)
    drawn = redrawn_scores(encoded, found, features, weights)
    some = replace(encoded, values=encoded.values[1::2])
    table = score_components(moments(some, identity_maps(E)), features)
    for name in ("score", "score_published", "variance_explained"):
        np.testing.assert_allclose(np.stack(drawn[name])[:, 0], table[name], atol=1e-5)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Over many samples of the same world the true share 0.75 is inside most intervals."""
    inside, widths = [], []
    for seed in range(0, 400, 10):
        encoded, found, features = planted(n=200, seed=seed)
        low, high = interval(encoded, found, features["colour"], seed)
        truth = (9 + 0.09) / (9 + 3 + C * 0.09)
        inside.append(low[1] <= truth <= high[1])
        widths.append(high[1] - low[1])
    assert 0.8 <= np.mean(inside) <= 1.0
    assert 0.02 < np.mean(widths) < 0.25


def test_more_images_narrow_the_interval() -> None:
    widths = []
    for n in (200, 3200):
        encoded, found, features = planted(n=n)
        low, high = interval(encoded, found, features["colour"], seed=0)
        widths.append(high[1] - low[1])
    assert widths[1] < 0.5 * widths[0]


def test_intervals_of_direct_effects_hold_those_of_many_images() -> None:
    """The strengths of 20,000 images are inside most intervals that 300 of the world give."""
    truth = planted(n=20_000, seed=1)[1].strengths.numpy()
    inside = []
    for seed in range(2, 402, 20):
        encoded, found, _ = planted(n=300, seed=seed)
        low, high = bootstrap_strengths(encoded, found, redraw(300, 100, seed))
        assert (low < high).all()
        inside.append((low <= truth) & (truth <= high))
    assert 0.85 <= np.mean(inside) < 1.0


def test_random_subspaces_give_each_component_its_share_of_all_variance() -> None:
    found = planted()[1]
    random = random_scores(found, [2], draws=2000, seed=0)[2]
    np.testing.assert_allclose(random.sum(axis=1), 1.0)
    one = score_components(found, {"one": torch.from_numpy(np.eye(E, dtype=np.float32))})
    # The mean of ratios is not the ratio of means; they are near for a few directions.
    np.testing.assert_allclose(random.mean(axis=0), one["score"], atol=0.12)


def test_carriers_stand_out_from_random_directions_and_others_do_not() -> None:
    _, found, features = planted()
    random = random_scores(found, [2, 5], draws=500, seed=1)[2]
    table = score_components(found, features).set_index(["feature", "component"])["score"]
    colour = p_values(table["colour"].to_numpy(), random)
    assert colour[1] < 0.01
    assert colour[3] > 0.9
    assert p_values(table["shape"].to_numpy(), random)[3] < 0.01


def test_p_values_by_hand() -> None:
    random = np.array([[0.1, 0.5], [0.2, 0.5], [0.3, 0.5]])
    np.testing.assert_allclose(p_values(np.array([0.25, 0.6]), random), [0.5, 0.25])


def test_margins_by_hand() -> None:
    table = pd.DataFrame(
        {
            "feature": ["a", "a", "b", "b"],
            "component": [0, 1, 0, 1],
            "score": [0.9, 0.1, 0.3, 0.7],
        }
    )
    assert add_margins(table)["margin"].round(6).tolist() == [0.6, -0.6, -0.6, 0.6]
    alone = add_margins(table[table["feature"] == "a"])
    assert alone["margin"].tolist() == [0.9, 0.1]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([0.9, 0.1], 1), ([0.5, 0.4, 0.1], 2), ([0.25] * 4, 4), ([1.0], 1), ([0.6, -0.5, 0.4], 2)],
)
def test_carriers_by_hand(scores: list[float], expected: int) -> None:
    assert carriers(scores) == expected


def test_table_gets_all_columns_and_the_same_ones_again() -> None:
    encoded, found, features = planted()
    table = score_components(found, features)
    drawn = redrawn_scores(encoded, found, features, redraw(found.n, 50, seed=3))
    first = add_statistics(table, drawn, found, features, draws=50, seed=3)
    assert len(first) == len(table)
    assert (first["low"] <= first["score"] + 0.02).all()
    assert (first["score"] <= first["high"] + 0.02).all()
    again = add_statistics(table, drawn, found, features, draws=50, seed=3)
    pd.testing.assert_frame_equal(first, again)


def test_q_values_are_those_of_all_rows_and_hold_their_rate() -> None:
    """Exactly the carriers are discovered."""
    _, found, features = planted()
    table = add_chance(score_components(found, features), found, features, draws=2000, seed=0)
    for _, part in table.groupby("feature"):
        ordered = part.sort_values("p_value")
        steps = ordered["p_value"] * len(part) / np.arange(1, len(part) + 1)
        want = steps[::-1].cummin()[::-1].clip(upper=1.0)
        np.testing.assert_allclose(ordered["q_value"], want)
    carried = {("colour", 1), ("colour", 2), ("shape", 3)}
    found_ = table[table["q_value"] <= 0.05]
    assert set(zip(found_["feature"], found_["component"], strict=True)) == carried


def test_a_single_carrier_among_many_components_is_found() -> None:
    """However many there are: the random subspaces grow with them."""
    count = 120
    contributions = 0.3 * normal(300, count, E, seed=4)
    axes = torch.linalg.qr(normal(E, 4, seed=99)).Q.T
    contributions[:, 7] += 9.0 * normal(300, 2, seed=5) @ axes[:2]
    contributions[:, 8] += 9.0 * normal(300, 2, seed=6) @ axes[2:]
    found, features = (
        moments(encode(Source.of_array(contributions)), identity_maps(E)),
        {"colour": axes[:2]},
    )
    table = add_chance(score_components(found, features), found, features, draws=10, seed=0)
    assert table.loc[table["q_value"] <= 0.05, "component"].tolist() == [7]


def test_fewer_directions_are_the_first_of_more() -> None:
    _, found, _ = planted()
    both = random_scores(found, [1, 3], draws=40, seed=2)
    alone = random_scores(found, [3], draws=40, seed=2)
    np.testing.assert_array_equal(both[3], alone[3])
    assert both[1].std() > both[3].std()
