"""Models side by side: planted depths and planted counterparts come out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_lib.comparison import comparison_table, counterpart_table, readings, similarities
from pipeline_lib.coordinates import Source
from pipeline_lib.maps import Maps, identity_maps

N, K = 200, 5


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scores(values: dict[str, list[float]], model: str = "deit") -> pd.DataFrame:
    """A model of a stem, two blocks of one head and one MLP each, and a bias."""
    facts = pd.DataFrame(
        {
            "component": range(6),
            "id": ["stem", "b0/head0", "b0/mlp", "b1/head0", "b1/mlp", "bias"],
            "kind": ["stem", "head", "mlp", "head", "mlp", "bias"],
            "layer": [-1, 0, 1, 2, 3, -1],
        }
    )
    parts = [facts.assign(feature=name, score=each) for name, each in values.items()]
    return pd.concat(parts, ignore_index=True).assign(model=model, dataset="world")


def test_comparison_by_hand() -> None:
    table = comparison_table(
        scores({"early": [1.0, 0.0, 0.0, 0, 0, 0], "late": [0, 0, 0, 0.75, 0.25, 0.0]})
    ).set_index("feature")
    early, late = table.loc["early"], table.loc["late"]
    assert (early["depth"], early["depth_spread"], early["carriers"]) == (0.0, 0.0, 1)
    depths = np.array([2 / 3, 1.0])
    mean = 0.75 * depths[0] + 0.25 * depths[1]
    assert late["depth"] == pytest.approx(mean)
    assert late["depth_spread"] == pytest.approx(
        np.sqrt(0.75 * (depths[0] - mean) ** 2 + 0.25 * (depths[1] - mean) ** 2)
    )
    assert (late["carriers"], late["carriers_share"]) == (2, 2 / 5)
    assert (late["top"], late["top_score"]) == ("b1/head0", 0.75)
    assert (late["heads"], late["mlps"]) == (0.75, 0.25)


def test_negative_scores_and_the_bias_weigh_nothing() -> None:
    table = comparison_table(scores({"odd": [-0.5, 0.0, 0.0, 0.0, 0.5, 9.0]}))
    assert (table["depth"].item(), table["mlps"].item()) == (1.0, 1.0)


def test_every_model_has_its_own_row() -> None:
    even = [0.2] * 5 + [0.0]
    both = pd.concat([scores({"a": even}), scores({"a": even}, model="clip")])
    assert comparison_table(both)["model"].tolist() == ["deit", "clip"]


def test_readings_are_mapped_contributions_times_texts() -> None:
    maps = Maps("ridge", normal(3, 6, 4, seed=1), torch.ones(4))
    contributions, texts = normal(N, 3, 6), normal(K, 4, seed=2)
    found = readings(Source.of_array(contributions, batch_size=30), maps, texts)
    want = maps.apply(contributions) @ texts.T
    torch.testing.assert_close(found, want - want.mean(0), rtol=1e-4, atol=1e-4)


def test_similarity_is_the_correlation_over_images_and_texts() -> None:
    first, second = normal(N, 2, K), normal(N, 3, K, seed=1)
    second[:, 1] = 2.0 * first[:, 0] + normal(N, K, seed=5)
    first, second = first - first.mean(0), second - second.mean(0)
    found = similarities(first, second)
    want = np.corrcoef(first[:, 0].flatten(), second[:, 1].flatten())[0, 1]
    assert found[0, 1] == pytest.approx(want, abs=1e-3)
    assert found[0].argmax() == 1
    assert abs(found[1]).max() < 0.1


def test_constant_components_are_like_none() -> None:
    first = normal(N, 2, K)
    first[:, 1] = 0.0
    assert similarities(first, first).tolist()[1] == [0.0, 0.0]


def test_planted_counterparts_are_found_across_spaces() -> None:
    """Two models that hold the same signals in other components and rotated spaces."""
    rotation = torch.linalg.qr(normal(8, 8, seed=7)).Q
    signals = normal(N, 3, 8)
    order = [2, 0, 1]
    texts = normal(K, 8, seed=3)
    said = {
        "clip": readings(Source.of_array(signals), identity_maps(8), texts),
        "deit": readings(
            Source.of_array(signals[:, order] + 0.2 * normal(N, 3, 8, seed=4)),
            Maps("shared", rotation[None], torch.zeros(8)),
            texts @ rotation,
        ),
    }
    names = {"clip": ["a", "b", "c"], "deit": ["x", "y", "z"]}
    table = counterpart_table(said, names)
    across = table.query("model == 'clip' and other_model == 'deit'")
    assert across["other_id"].tolist() == ["y", "z", "x"]
    assert across["similarity"].min() > 0.9
    back = table.query("model == 'deit' and other_model == 'clip'")
    assert back["other_id"].tolist() == ["c", "a", "b"]
    own = table.query("model == other_model")
    assert (own["id"] != own["other_id"]).all()
    assert len(table) == 12
    assert own["similarity"].abs().max() < 0.2
