"""Scores of components for features: identities, planted signals, hand computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline_lib.coordinates import Source, encode
from pipeline_lib.errors import ArtifactError, DataError
from pipeline_lib.maps import Maps, identity_maps
from pipeline_lib.scores import feature_basis, moments, ordered_basis, score_components

N, C, D, E = 3000, 5, 16, 12


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_maps(seed: int = 1) -> Maps:
    return Maps("ridge", normal(C, D, E, seed=seed) / D**0.5, normal(E, seed=seed + 1))


def planted_feature() -> tuple[torch.Tensor, torch.Tensor]:
    """Contributions of which component 2 alone varies in the span of the descriptors."""
    descriptors = torch.linalg.qr(normal(E, 3)).Q.T
    contributions = normal(N, C, E, seed=1)
    contributions -= contributions @ descriptors.T @ descriptors
    contributions[:, 2] += 2 * normal(N, 3, seed=2) @ descriptors
    contributions[:, 4] = normal(E, seed=3)  # a constant, like the bias component
    return contributions, descriptors


def scored(contributions: torch.Tensor, maps: Maps, **features: torch.Tensor):
    found = moments(encode(Source.of_array(contributions)), maps)
    return score_components(found, features)


def test_component_that_alone_carries_a_feature_scores_one() -> None:
    contributions, descriptors = planted_feature()
    table = scored(contributions, identity_maps(E), planted=descriptors)
    np.testing.assert_allclose(table["score"], [0, 0, 1, 0, 0], atol=1e-5)
    assert table["score_published"][2] == pytest.approx(1.0, abs=1e-5)
    assert table["score_published"][4] == 0.0
    share = 3 * 4 / (E - 3 + 3 * 4)  # variances: 9 directions of 1, 3 of 4
    assert table["variance_explained"][2] == pytest.approx(share, abs=0.03)
    assert table["variance_explained"][0] == pytest.approx(0.0, abs=1e-6)


def test_two_equal_carriers_share_the_score() -> None:
    contributions, descriptors = planted_feature()
    contributions[:, 0] += 2 * normal(N, 3, seed=7) @ descriptors
    table = scored(contributions, identity_maps(E), planted=descriptors)
    np.testing.assert_allclose(table["score"][[0, 2]], 0.5, atol=0.03)
    np.testing.assert_allclose(table["score_published"][[0, 2]], 0.5**0.5, atol=0.03)


def test_component_that_cancels_another_scores_below_zero() -> None:
    contributions, descriptors = planted_feature()
    contributions[:, 1] -= 0.5 * (contributions[:, 2] @ descriptors.T) @ descriptors
    table = scored(contributions, identity_maps(E), planted=descriptors)
    # The whole is half of component 2: shares 0.5·1 / 0.25 = 2 and 0.5·(-0.5) / 0.25 = -1.
    np.testing.assert_allclose(table["score"], [0, -1, 2, 0, 0], atol=1e-4)


def test_random_components_score_near_zero_beside_a_carrier() -> None:
    contributions, descriptors = planted_feature()
    contributions += 0.1 * normal(N, C, E, seed=9)
    table = scored(contributions, identity_maps(E), planted=descriptors)
    assert table["score"].drop(2).abs().max() < 0.02
    assert table["score"][2] > 0.95


def test_scores_sum_to_one_and_covariances_to_the_total_variance() -> None:
    contributions, maps = normal(N, C, D) + 5.0, random_maps()
    descriptors = normal(4, E, seed=5)
    table = scored(contributions, maps, colour=descriptors, shape=normal(2, E, seed=6))
    basis = feature_basis(descriptors).float()
    total = (maps.apply_total(contributions) @ basis).var(dim=0, unbiased=False).sum()
    sums = table.groupby("feature")[["score", "covariance"]].sum()
    np.testing.assert_allclose(sums["score"], 1.0, atol=1e-6)
    assert sums["covariance"]["colour"] == pytest.approx(float(total), rel=1e-4)


def test_scores_are_those_of_their_definitions() -> None:
    contributions, maps = normal(400, C, D, seed=8), random_maps()
    descriptors = normal(3, E, seed=5)
    table = scored(contributions, maps, colour=descriptors)
    mapped, total = maps.apply(contributions), maps.apply_total(contributions)
    directions = torch.linalg.qr(descriptors.T).Q
    for component in range(C):
        own, whole = (mapped[:, component] @ directions).numpy(), (total @ directions).numpy()
        pearson = [np.corrcoef(own[:, q], whole[:, q])[0, 1] for q in range(3)]
        row = table.iloc[component]
        assert row["score_published"] == pytest.approx(np.mean(pearson), abs=1e-4)
        explained = own.var(axis=0).sum() / mapped[:, component].numpy().var(axis=0).sum()
        assert row["variance_explained"] == pytest.approx(explained, rel=1e-3)


def test_order_of_descriptors_changes_only_the_published_score() -> None:
    contributions, maps = normal(400, C, D), random_maps()
    descriptors = normal(4, E, seed=5)
    table = scored(contributions, maps, one=descriptors, other=descriptors[[2, 0, 3, 1]])
    first, second = (table[table["feature"] == name].reset_index() for name in ("one", "other"))
    same = ["score", "covariance", "variance_explained"]
    np.testing.assert_allclose(first[same], second[same], rtol=1e-6)
    assert np.abs(first["score_published"] - second["score_published"]).max() > 1e-3


def test_published_score_ignores_scale_and_trace_score_does_not() -> None:
    contributions, descriptors = planted_feature()
    contributions[:, 0] += 0.1 * (contributions[:, 2] @ descriptors.T) @ descriptors
    table = scored(contributions, identity_maps(E), planted=descriptors)
    assert table["score_published"][0] == pytest.approx(1.0, abs=1e-4)
    assert table["score"][0] == pytest.approx(0.1 / 1.1, abs=1e-4)


def test_batches_of_any_size_give_the_same_moments() -> None:
    contributions, maps = normal(500, C, D), random_maps()
    small = moments(encode(Source.of_array(contributions, batch_size=13)), maps)
    large = moments(encode(Source.of_array(contributions, batch_size=500)), maps)
    torch.testing.assert_close(small.total, large.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(small.variances(), large.variances(), rtol=1e-5, atol=1e-5)


def test_strengths_are_shares_of_the_unmapped_variance() -> None:
    contributions = normal(N, C, D) * torch.tensor([1.0, 2, 3, 0, 1])[:, None]
    found = moments(encode(Source.of_array(contributions)), random_maps())
    np.testing.assert_allclose(found.strengths, np.array([1, 4, 9, 0, 1]) / 15, atol=0.02)
    assert float(found.strengths.sum()) == pytest.approx(1.0)


def test_bases_span_the_descriptors() -> None:
    descriptors = normal(3, E)
    for basis in (feature_basis(descriptors), ordered_basis(descriptors)):
        torch.testing.assert_close(basis.T @ basis, torch.eye(3, dtype=torch.float64))
        inside = descriptors.double() @ basis @ basis.T
        torch.testing.assert_close(inside, descriptors.double(), rtol=1e-6, atol=1e-6)
    first = descriptors[0].double() / descriptors[0].double().norm()
    torch.testing.assert_close(ordered_basis(descriptors)[:, 0], first)


def test_dependent_descriptors_add_no_direction() -> None:
    descriptors = normal(2, E)
    descriptors = torch.cat([descriptors, descriptors.sum(0, keepdim=True)])
    assert feature_basis(descriptors).shape == (E, 2)
    assert ordered_basis(descriptors).shape == (E, 2)


def test_bad_features_are_named() -> None:
    found = moments(encode(Source.of_array(normal(50, C, D))), random_maps())
    good = normal(2, E)
    with pytest.raises(DataError, match="feature 'shape': it has no descriptors"):
        score_components(found, {"colour": good, "shape": good[:0]})
    with pytest.raises(DataError, match="feature 'shape': the text embeddings .* NaN"):
        score_components(found, {"shape": good * float("nan")})
    with pytest.raises(DataError, match="zero text embedding"):
        score_components(found, {"shape": good * 0})
    with pytest.raises(DataError, match="no features"):
        score_components(found, {})


def test_feature_in_which_nothing_varies_is_refused() -> None:
    contributions, descriptors = planted_feature()
    contributions -= contributions @ descriptors.T @ descriptors
    with pytest.raises(DataError, match="does not vary"):
        scored(contributions, identity_maps(E), planted=descriptors)


def test_bad_contributions_and_maps_are_refused() -> None:
    with pytest.raises(DataError, match="at least 2 images"):
        moments(encode(Source.of_array(normal(1, C, D))), random_maps())
    with pytest.raises(ArtifactError, match="do not fit"):
        moments(encode(Source.of_array(normal(9, C + 1, D))), random_maps())
