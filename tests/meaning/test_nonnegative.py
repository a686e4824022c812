"""Labels with non-negative amounts: amounts by scipy, planted texts, opposites told apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from pipeline_lib.coordinates import Source, encode
from pipeline_lib.errors import DataError
from pipeline_lib.maps import Maps, identity_maps, unit
from pipeline_lib.nonnegative import (
    label_nonnegative,
    nonnegative_amounts,
    nonnegative_parts,
    nonnegative_shares,
    pursue,
)
from pipeline_lib.scores import moments
from pipeline_lib.textspan import explained, label_components

N, E, POOL = 400, 24, 150


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_of(texts: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Images that each show one of the texts, in an amount of its own."""
    generator = np.random.default_rng(seed)
    which = torch.from_numpy(generator.integers(0, len(texts), N))
    amount = torch.from_numpy(generator.uniform(0.5, 1.5, N)).float()
    return amount[:, None] * texts[which]


def test_amounts_by_scipy() -> None:
    texts = unit(normal(6, E, seed=1)).double()
    images = normal(20, E, seed=2).double()
    found = nonnegative_amounts(images @ texts.T, texts @ texts.T, torch.zeros(20, 6).double())
    want = [nnls(texts.numpy().T, image)[0] for image in images.numpy()]
    np.testing.assert_allclose(found, want, atol=2e-3)


def test_planted_texts_are_found_and_explain_everything() -> None:
    texts = unit(normal(POOL, E, seed=3))
    amounts = torch.rand(N, 3, generator=torch.Generator().manual_seed(4))
    images = amounts @ texts[[5, 60, 149]]
    picked, shares = pursue(images, texts, count=6, min_gain=0.005)
    assert set(picked[:3]) == {5, 60, 149}
    assert len(picked) == 3
    assert shares[2] > 0.999
    assert shares == sorted(shares)


def test_share_is_that_of_scipys_residual() -> None:
    texts, images = unit(normal(POOL, E, seed=5)).double(), normal(40, E, seed=6).double()
    picked, shares = pursue(images, texts, count=4, min_gain=0.0)
    for step, share in enumerate(shares, start=1):
        rows = texts[picked[:step]].numpy().T
        rest = sum(nnls(rows, image)[1] ** 2 for image in images.numpy())
        assert share == pytest.approx(1 - rest / float(images.square().sum()), abs=1e-4)


def test_a_component_that_tells_two_things_apart_needs_both_words() -> None:
    """Red or green: one text and its opposite for the default, two texts for this method."""
    pool = unit(normal(POOL, E, seed=7))
    apart = unit(pool - pool.mean(0))
    contributions = one_of(apart[[11, 77]])[:, None] + 0.01 * normal(N, 1, E, seed=8)
    encoded = encode(Source.of_array(contributions))
    found = moments(encoded, identity_maps(E))
    label = label_nonnegative(encoded, found, pool, count=4)[0]
    assert set(label.texts[:2]) == {11, 77}
    plain = label_components(found, pool, count=1)[0]
    assert plain.gains[0] > 0.5


def test_held_out_share_is_that_of_amounts_fitted_by_scipy() -> None:
    """On other images, which show the opposite of what the texts were chosen on, too."""
    pool = unit(normal(POOL, E, seed=7))
    apart = unit(pool - pool.mean(0)).double()
    encoded = encode(Source.of_array(one_of(apart[[11, 77, 5]].float())[:, None]))
    labels = label_nonnegative(encoded, moments(encoded, identity_maps(E)), pool, count=3)
    fresh = encode(Source.of_array(normal(60, 1, E, seed=9)))
    other = moments(fresh, identity_maps(E))
    (shares,) = nonnegative_shares(fresh, other, pool, labels)
    images = normal(60, 1, E, seed=9)[:, 0].double()
    images = (images - images.mean(0)).numpy()
    for step, share in enumerate(shares, start=1):
        rows = apart[labels[0].texts[:step]].numpy().T
        rest = sum(nnls(rows, image)[1] ** 2 for image in images)
        assert share == pytest.approx(1 - rest / np.square(images).sum(), abs=1e-4)
        span = float(explained(other, 0, labels[0].directions)[step - 1])
        assert share < 0.8 * span  # of normal images one half lies on the other side


def test_what_texts_keep_of_images_is_their_amounts_by_scipy() -> None:
    pool = unit(normal(POOL, E, seed=7))
    apart = unit(pool - pool.mean(0)).double().numpy()
    images = normal(30, E, seed=3)
    texts = torch.from_numpy(apart)[[4, 8, 15]]
    for count, kept in zip((0, 2, 9), nonnegative_parts(images, texts, (0, 2, 9))):
        rows = apart[[4, 8, 15][:count]].T
        want = [rows @ nnls(rows, image)[0] if count else 0 * image for image in images.numpy()]
        np.testing.assert_allclose(kept, want, atol=2e-3)


def test_labels_follow_the_maps_and_constants_have_none() -> None:
    maps = Maps("ridge", normal(2, 16, E, seed=9), torch.zeros(E))
    pool = unit(normal(POOL, E, seed=10))
    apart = unit(pool - pool.mean(0))
    contributions = torch.ones(N, 2, 16)
    back = torch.linalg.pinv(maps.weights[0])
    contributions[:, 0] = one_of(apart[[3, 4, 5]]) @ back
    encoded = encode(Source.of_array(contributions))
    first, constant = label_nonnegative(encoded, moments(encoded, maps), pool, count=3)
    assert (constant.texts, constant.gains) == ([], [])
    assert len(first.texts) == 3
    assert sum(first.gains) <= first.bounds[-1] + 1e-6
    torch.testing.assert_close(
        first.directions @ first.directions.T, torch.eye(3, dtype=torch.float64)
    )


def test_bad_pools_are_refused_as_by_the_other_methods() -> None:
    encoded = encode(Source.of_array(normal(30, 1, E)))
    found = moments(encoded, identity_maps(E))
    with pytest.raises(DataError, match="the pool has 5"):
        label_nonnegative(encoded, found, unit(normal(5, E)), count=10)
    with pytest.raises(DataError, match="different CLIP spaces"):
        label_nonnegative(encoded, found, unit(normal(50, E + 1)), count=10)
    with pytest.raises(DataError, match="too few for 40"):
        label_nonnegative(encoded, found, unit(normal(50, E)), count=40)
