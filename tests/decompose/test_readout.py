"""Helpers of the readout, by properties over many random shapes."""

from __future__ import annotations

import math
import random

import pytest
import torch

from pipeline_lib.decomposition.readout import axis_groups
from pipeline_lib.decomposition.tokens import overlap


def random_factors(rng: random.Random) -> list[int]:
    return [rng.choice([1, 2, 2, 3, 4, 5]) for _ in range(rng.randint(1, 5))]


def regrouped(lengths: list[int], rng: random.Random) -> list[int]:
    """Another shape of the same size: neighbours merged, ones put in and taken out."""
    out: list[int] = []
    for length in lengths:
        if out and rng.random() < 0.4:
            out[-1] *= length
        else:
            out.append(length)
    out = [length for length in out if length != 1 or rng.random() < 0.5]
    if rng.random() < 0.5:
        out.insert(rng.randint(0, len(out)), 1)
    return out or [1]


@pytest.mark.parametrize("seed", range(60))
def test_groups_cover_both_shapes_with_equal_sizes_in_order(seed: int) -> None:
    rng = random.Random(seed)
    factors = random_factors(rng)
    before, after = regrouped(factors, rng), regrouped(factors, rng)
    if rng.random() < 0.7:
        before, after = [-1, *before], [-1, *after]
    groups = axis_groups(tuple(before), tuple(after))
    left = [axis for mine, _ in groups for axis in mine]
    right = [axis for _, yours in groups for axis in yours]
    assert left == [axis for axis, length in enumerate(before) if length != 1]
    assert right == [axis for axis, length in enumerate(after) if length != 1]
    for mine, yours in groups:
        assert math.prod(before[a] for a in mine) == math.prod(after[a] for a in yours)
        for cut in range(1, len(mine)):  # as fine as can be
            part = math.prod(before[a] for a in mine[:cut])
            assert all(part != math.prod(after[a] for a in yours[:k]) for k in range(1, len(yours)))


def test_groups_where_windows_are_folded_into_the_batch() -> None:
    assert axis_groups((-1, 4, 2, 4, 2, 8), (-16, 4, 8)) == [
        ([0, 1, 2], [0]), ([3, 4], [1]), ([5], [2]),
    ] or axis_groups((-1, 4, 4, 2, 2, 8), (-16, 4, 8)) == [
        ([0, 1, 2], [0]), ([3, 4], [1]), ([5], [2]),
    ]  # fmt: skip


@pytest.mark.parametrize("coarse", range(1, 9))
@pytest.mark.parametrize("fine", [1, 2, 3, 5, 8, 16])
def test_shares_of_cells_keep_their_sums(coarse: int, fine: int) -> None:
    shares = overlap(coarse, fine)
    assert shares.shape == (coarse, fine) and float(shares.min()) >= 0
    assert torch.allclose(shares.sum(1) if coarse <= fine else shares.sum(), _wanted(coarse, fine))
    if fine % coarse == 0:
        times = fine // coarse
        expected = torch.eye(coarse).repeat_interleave(times, 1).double() / times
        assert torch.allclose(shares, expected)


def _wanted(coarse: int, fine: int) -> torch.Tensor:
    return torch.ones(coarse).double() if coarse <= fine else torch.tensor(float(coarse)).double()
