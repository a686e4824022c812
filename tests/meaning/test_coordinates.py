"""Coordinates of contributions: exact, lower-dimensional where components are, checked for NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline_lib.coordinates import Bases, Source, encode, find_bases
from pipeline_lib.errors import ArtifactError, DataError


def low_rank(n: int, ranks: list[int], width: int, seed: int = 0) -> torch.Tensor:
    """Contributions whose component `c` lies in a random subspace of `ranks[c]` dimensions."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    parts = [(normal(n, rank) + normal(rank)) @ normal(rank, width) for rank in ranks]
    return torch.stack(parts, dim=1)


def test_ranks_of_planted_components_are_found() -> None:
    contributions = low_rank(300, [3, 24, 1, 3], width=24)
    found = find_bases(Source.of_array(contributions))
    assert found.ranks == [3, 24, 1, 3]
    assert found.vectors[1] is None
    assert found.groups == [(0, 1, 1), (1, 2, 3), (7, 1, 24)]


def test_slices_and_groups_tile_the_coordinates() -> None:
    found = find_bases(Source.of_array(low_rank(200, [5, 2, 5, 16, 2], width=16)))
    columns = sorted((s.start, s.stop) for s in found.slices)
    assert columns == [(0, 2), (2, 4), (4, 9), (9, 14), (14, 30)]


def test_coordinates_carry_everything() -> None:
    contributions = low_rank(150, [4, 20, 2], width=20)
    encoded = encode(Source.of_array(contributions, batch_size=40))
    weights = torch.randn(3, 20, 7, generator=torch.Generator().manual_seed(1))
    want = torch.einsum("ncd,cde->ne", contributions, weights)
    got = torch.from_numpy(encoded.values) @ encoded.bases.project(weights)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


def test_expanded_blocks_act_as_on_coordinates_and_elsewhere_as_asked() -> None:
    contributions = low_rank(150, [4, 20], width=20)
    bases = find_bases(Source.of_array(contributions))
    generator = torch.Generator().manual_seed(2)
    blocks = torch.randn(sum(bases.ranks), 7, generator=generator)
    elsewhere = torch.randn(2, 20, 7, generator=generator)
    weights = bases.expand(blocks, elsewhere)
    torch.testing.assert_close(bases.project(weights), blocks, rtol=1e-4, atol=1e-4)
    outside = torch.randn(5, 20, generator=generator)
    outside -= outside @ bases.vectors[0].T @ bases.vectors[0]
    torch.testing.assert_close(outside @ weights[0], outside @ elsewhere[0], rtol=1e-4, atol=1e-4)
    assert (outside @ bases.expand(blocks)[0]).abs().max() < 1e-4


def test_component_that_leaves_its_sampled_subspace_gets_all_axes() -> None:
    contributions = low_rank(1000, [3, 3], width=20)
    contributions[1, 0] = torch.randn(20, generator=torch.Generator().manual_seed(5))
    source = Source.of_array(contributions)
    assert find_bases(source).ranks == [3, 3]  # image 1 is not in the sample
    assert encode(source).bases.ranks == [20, 3]


@pytest.mark.parametrize("batch_size", [7, 64, 1000])
def test_batch_size_does_not_matter(batch_size: int) -> None:
    contributions = low_rank(130, [4, 12], width=12)
    got = encode(Source.of_array(contributions, batch_size=batch_size)).values
    np.testing.assert_allclose(got, encode(Source.of_array(contributions)).values, atol=1e-4)


def test_large_coordinates_go_to_a_file_and_are_the_same(tmp_path) -> None:
    source = Source.of_array(low_rank(130, [4, 12], width=12))
    on_disk = encode(source, memory_bytes=100, folder=tmp_path)
    assert isinstance(on_disk.values, np.memmap)
    np.testing.assert_array_equal(on_disk.values, encode(source).values)
    np.testing.assert_array_equal(on_disk.rows(np.array([5, 2])), on_disk.values[[5, 2]])


def test_temporary_file_that_cannot_be_made_is_a_clear_error(tmp_path) -> None:
    source = Source.of_array(low_rank(130, [4], width=12))
    with pytest.raises(ArtifactError, match="TMPDIR"):
        encode(source, memory_bytes=1, folder=tmp_path / "absent")


def test_constant_and_zero_components_have_rank_one() -> None:
    contributions = low_rank(100, [3, 3, 3], width=12)
    contributions[:, 0] = contributions[0, 0]
    contributions[:, 2] = 0.0
    assert encode(Source.of_array(contributions)).bases.ranks == [1, 3, 1]


def test_positions_of_a_part_of_the_images() -> None:
    contributions = low_rank(20, [3], width=6)
    part = Source.of_array(contributions, batch_size=4).at(np.array([3, 8, 9, 15, 17]))
    got = torch.cat([values for _, values in part.batches()])
    torch.testing.assert_close(got, contributions[[3, 8, 9, 15, 17]])
    with pytest.raises(DataError, match="no images"):
        encode(part.at(np.array([], dtype=int)), bases=Bases([None], 6))


def test_nan_names_image_and_component() -> None:
    contributions = low_rank(50, [3, 3], width=6)
    contributions[42, 1, 2] = float("nan")
    with pytest.raises(ArtifactError, match="component 1 of image 42"):
        encode(Source.of_array(contributions, batch_size=16))


def test_components_stored_in_half_precision_are_still_low_rank() -> None:
    exact = low_rank(600, [4, 20], width=20)
    rounded = exact.half().float()
    coarse = Source(600, lambda index: rounded[index], precision=float(np.finfo(np.float16).eps))
    encoded = encode(coarse)
    assert encoded.bases.ranks[0] < 20
    assert encode(Source.of_array(rounded)).bases.ranks[0] == 20
    back = encoded.values @ encoded.bases.project(torch.eye(20).expand(2, -1, -1)).numpy()
    np.testing.assert_allclose(back, exact.sum(1), atol=0.05)
