"""Products of contributions with directions, from coordinates: those of the decoded ones."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline_lib.factors import Factors
from pipeline_lib.products import Products

WIDTH, RANKS = 12, (3, 12, 5, 1)


@pytest.fixture
def factors() -> Factors:
    rng = np.random.default_rng(0)
    bases = [np.linalg.qr(rng.normal(size=(WIDTH, rank)))[0].T for rank in RANKS if rank < WIDTH]
    return Factors(RANKS, WIDTH, np.concatenate(bases).astype(np.float32))


@pytest.mark.parametrize("each", [False, True], ids=["shared", "each"])
def test_products_are_those_of_the_decoded_contributions(factors: Factors, each: bool) -> None:
    rng = np.random.default_rng(1)
    coordinates = rng.normal(size=(7, factors.columns)).astype(np.float32)
    shape = (len(RANKS), WIDTH, 2) if each else (WIDTH, 2)
    directions = rng.normal(size=shape).astype(np.float32)
    contributions = factors.decode(coordinates)
    wanted = np.einsum("bcd,cdk->cbk", contributions, np.broadcast_to(directions, (4, WIDTH, 2)))
    found = Products.of(factors, directions)
    np.testing.assert_allclose(found.parts(coordinates), wanted, atol=1e-5)
    np.testing.assert_allclose(found.total(coordinates), wanted.sum(axis=0), atol=1e-5)


def test_directions_that_no_component_writes_into_give_nothing() -> None:
    factors = Factors((1, 1), WIDTH, np.eye(2, WIDTH, dtype=np.float32))
    products = Products.of(factors, np.eye(WIDTH, dtype=np.float32)[:, 5:6])
    assert not products.total(np.ones((3, 2), np.float32)).any()
