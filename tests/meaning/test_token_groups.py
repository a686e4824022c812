"""Groups of a head's tokens: where they lie by hand, sums, planted texts, shares that add up."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_lib.errors import DataError
from pipeline_lib.labelling import Labeller as by
from pipeline_lib.maps import unit
from pipeline_lib.token_groups import group_sums, token_group_table, token_groups

N, T, D, POOL = 300, 6, 16, 80


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_groups_by_hand() -> None:
    masks = np.zeros((1, 8, 8), dtype=bool)
    masks[0, :4, :4] = True  # the first patch of two by two, and a corner of no other
    masks[0, 4, 4] = True
    assert token_groups(masks, 1, leading=1, grid=(2, 2)).tolist() == [[0, 1, 2, 2, 2, 0]]
    middle = token_groups(None, 2, leading=0, grid=(4, 4))[1, :-1].reshape(4, 4)
    assert (middle[1:3, 1:3] == 1).all()
    assert (middle == 1).sum() == 4


def test_masks_coarser_than_patches_are_refused() -> None:
    with pytest.raises(DataError, match="coarser than the grid of 4×4"):
        token_groups(np.ones((1, 2, 2), dtype=bool), 1, leading=0, grid=(4, 4))


def test_groups_sum_to_the_component() -> None:
    values = normal(N, 2, T, D)
    groups = np.random.default_rng(0).integers(0, 3, (N, T))
    sums = group_sums(values, groups, 3)
    torch.testing.assert_close(sums.sum(2), values.sum(2), rtol=1e-4, atol=1e-4)
    image, group = 7, 2
    want = values[image, 1, torch.from_numpy(groups[image] == group)].sum(0)
    torch.testing.assert_close(sums[image, 1, group], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["textspan", "omp", "nonnegative"])
def test_planted_texts_and_shares(method: str) -> None:
    """The object says text 3, the background half as loud text 9, the rest is constant."""
    pool = unit(normal(POOL, D, seed=1))
    apart = unit(pool - pool.mean(0))
    sums = torch.ones(N, 1, 3, D)
    sums[:, 0, 1] += 2.0 * normal(N, 1, seed=2) * apart[3]
    sums[:, 0, 2] += 1.0 * normal(N, 1, seed=3) * apart[9]
    heads = pd.DataFrame({"id": ["b1/head0"], "share": [0.25]})
    texts, names = [f"text {i}" for i in range(POOL)], ("no patch", "object", "background")
    table = token_group_table(sums, heads, names, by(method, pool), texts, ["any"] * POOL, count=2)
    first = table[table["rank"] == 0].set_index("node")
    assert first.loc["b1/head0: object", "text"] == "text 3"
    assert first.loc["b1/head0: background", "text"] == "text 9"
    assert first.loc["b1/head0: no patch", "text"] == ""
    assert first["share"].sum() == pytest.approx(0.25, abs=1e-6)
    assert first.loc["b1/head0: object", "share"] == pytest.approx(0.2, abs=0.03)
    assert set(first["parent"]) == {"b1/head0"}
    assert set(table["level"]) == {"tokens"}
