"""Moments that are streamed: the same as those of the full dump, in any cut, of a fixed size."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_lib.coordinates import Source, encode
from pipeline_lib.errors import ArtifactError, DataError
from pipeline_lib.factors import Factors, factorise
from pipeline_lib.hierarchy import Part, part_moments
from pipeline_lib.maps import Maps
from pipeline_lib.scores import moments, score_components
from pipeline_lib.streamed import (
    StreamedMoments,
    load_moments,
    save_moments,
    stored_coordinates,
)
from pipeline_lib.textspan import label_components

N, D, E = 150, 12, 5


@pytest.fixture(scope="module")
def factors() -> Factors:
    rng = np.random.default_rng(0)
    spans = [None, rng.normal(size=(3, D)), rng.normal(size=(2, D)), None, rng.normal(size=(3, D))]
    return factorise(spans, D, 500)


@pytest.fixture(scope="module")
def coordinates(factors: Factors) -> np.ndarray:
    rng = np.random.default_rng(1)
    mixed = rng.normal(size=(N, factors.columns)) @ rng.normal(size=2 * (factors.columns,))
    return (mixed + 3.0).astype("float32")


@pytest.fixture(scope="module")
def maps(factors: Factors) -> Maps:
    weights = torch.randn(len(factors.ranks), D, E, generator=torch.Generator().manual_seed(0))
    return Maps("ridge", weights, torch.zeros(E))


def cut(values: np.ndarray, *places: int) -> list[np.ndarray]:
    return np.split(values, places)


def test_scores_and_labels_from_moments_equal_those_from_the_full_dump(
    factors: Factors, coordinates: np.ndarray, maps: Maps
) -> None:
    full = moments(encode(Source.of_array(factors.decode(coordinates))), maps)
    streamed = StreamedMoments.of(cut(coordinates, 40, 41)).mapped(factors, maps)
    generator = torch.Generator().manual_seed(1)
    features = {"a": torch.randn(3, E, generator=generator), "b": torch.randn(2, E)}
    expected, found = score_components(full, features), score_components(streamed, features)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(streamed.strengths, full.strengths, rtol=1e-4, atol=1e-6)
    texts = torch.nn.functional.normalize(torch.randn(30, E, generator=generator), dim=1)
    first = label_components(full, texts, count=2)
    again = label_components(streamed, texts, count=2)
    for one, other in zip(first, again, strict=True):
        assert one.texts[0] == other.texts[0]  # where one direction is left, any text will do
        np.testing.assert_allclose(one.gains, other.gains, rtol=1e-3, atol=1e-5)


def test_moments_are_those_of_numpy_however_they_are_cut(coordinates: np.ndarray) -> None:
    expected = np.cov(coordinates.astype(np.float64), rowvar=False, bias=True)
    for places in ((), (1,), (50, 100), (149,)):
        found = StreamedMoments.of(cut(coordinates, *places))
        np.testing.assert_allclose(found.squares / N, expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.mean, coordinates.mean(axis=0, dtype=np.float64))


def test_shards_merge_through_files_that_do_not_grow(
    coordinates: np.ndarray, tmp_path: Path
) -> None:
    first, second = cut(coordinates, 20)
    for name, part in (("a", first), ("b", second), ("none", first[:0])):
        save_moments({"fit": StreamedMoments.of([part])}, tmp_path / name)
    sizes = {path.stat().st_size for path in tmp_path.iterdir()}
    assert len(sizes) == 1
    whole = StreamedMoments.of([coordinates])
    for names in itertools.permutations(("a", "b", "none")):
        merged = StreamedMoments.none(coordinates.shape[1])
        for name in names:
            merged.merge(load_moments(tmp_path / name)["fit"])
        assert merged.n == whole.n
        np.testing.assert_allclose(merged.squares, whole.squares, rtol=1e-9)
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(ArtifactError, match="run snakemake again"):
        load_moments(tmp_path / "a")


def test_moments_of_parts_are_those_of_the_full_dump(
    factors: Factors, coordinates: np.ndarray, maps: Maps
) -> None:
    parts = [Part("block", "a", "", (0, 2)), Part("block", "b", "", (1, 3, 4))]
    encoded = encode(Source.of_array(factors.decode(coordinates)))
    expected = part_moments(encoded, moments(encoded, maps), parts)
    streamed = StreamedMoments.of([coordinates])
    found = streamed.parts(factors, streamed.mapped(factors, maps), parts)
    for one, other in zip(found.within, expected.within, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.cross, expected.cross, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-4, atol=1e-4)


def test_coordinates_of_a_dump_need_no_decoding(
    factors: Factors, coordinates: np.ndarray, maps: Maps
) -> None:
    direct = stored_coordinates(factors, lambda at: coordinates[at], np.arange(N), batch_size=33)
    found = moments(direct, maps)
    expected = moments(encode(Source.of_array(factors.decode(coordinates))), maps)
    torch.testing.assert_close(found.total, expected.total, rtol=1e-4, atol=1e-4)
    some = stored_coordinates(factors, lambda at: coordinates[at], np.array([7, 3]))
    np.testing.assert_array_equal(some.values, direct.values[[7, 3]])
    with pytest.raises(DataError, match="no images are left"):
        stored_coordinates(factors, lambda at: coordinates[at], np.arange(0))


def test_nan_in_a_dump_is_named_by_both_ways_to_read_it(
    factors: Factors, coordinates: np.ndarray
) -> None:
    """In the order of the store, not of the bases: component 2 stands behind two others."""
    bad, read = coordinates.copy(), np.arange(10, N)
    bad[42, factors.slices[2]] = np.nan
    bad[60, 0] = np.nan
    source = Source(N, lambda at: factors.decode(bad[at]), name="deit/world.zarr").at(read)
    for encoded in (
        lambda: encode(source),
        lambda: stored_coordinates(factors, lambda at: bad[at], read, name="deit/world.zarr"),
    ):
        with pytest.raises(ArtifactError) as error:
            encoded()
        assert str(error.value).startswith("deit/world.zarr: NaN or infinity, first for comp")
        assert "component 2 of image 32 (counted from 0 among the 140 images" in str(error.value)


def test_what_is_not_finite_or_absent_is_refused(coordinates: np.ndarray) -> None:
    with pytest.raises(DataError, match="no images"):
        StreamedMoments.of([])
    with pytest.raises(DataError, match="NaN"):
        StreamedMoments.of([np.full_like(coordinates, np.nan)])
