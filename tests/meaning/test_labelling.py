"""One method for all that stands in a table: texts, random vectors, and parts of a model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_lib import labelling, nonnegative
from pipeline_lib.coordinates import Source, encode
from pipeline_lib.errors import DataError
from pipeline_lib.hierarchy import parts_of
from pipeline_lib.labelling import Labeller, Sample
from pipeline_lib.maps import Maps, unit
from pipeline_lib.nonnegative import label_nonnegative, sampled
from pipeline_lib.scores import moments
from pipeline_lib.textspan import METHODS, label_components, random_pool

N, D, E, POOL, C = 700, 20, 16, 150, 3
COMPONENTS = pd.DataFrame({"component": range(C), "id": ["b0/head0", "b0/head1", "b1/mlp"]}).assign(
    kind=["head", "head", "mlp"], stage=-1, block=[0, 0, 1], layer=0, head=-1
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def contributions() -> torch.Tensor:
    spread = torch.diag(torch.linspace(0.2, 2, 10)) @ normal(10, D, seed=5)
    return normal(N, C, 10) @ spread + normal(D, seed=6)


@pytest.fixture(scope="module")
def maps() -> Maps:
    return Maps("ridge", normal(C, D, E, seed=1), torch.zeros(E))


@pytest.fixture(scope="module")
def seen(contributions: torch.Tensor, maps: Maps) -> Sample:
    encoded = encode(Source.of_array(contributions))
    return Sample(moments(encoded, maps), encoded)


def test_methods_by_name(seen: Sample) -> None:
    pool = unit(normal(POOL, E, seed=2))
    picked = {}
    for method in METHODS:
        found = Labeller(method, pool).labels(seen, count=4)
        want = label_components(seen.found, pool, count=4, method=method)
        assert [one.texts for one in found] == [one.texts for one in want]
        picked[method] = [one.texts for one in found]
    found = Labeller("nonnegative", pool).labels(seen, count=4)
    want = label_nonnegative(seen.encoded, seen.found, pool, count=4)
    assert [one.texts for one in found] == [one.texts for one in want]
    picked["nonnegative"] = [one.texts for one in found]
    assert len({str(texts) for texts in picked.values()}) == len(METHODS) + 1
    with pytest.raises(DataError, match="did you mean textspan"):
        Labeller("textspam", pool).labels(seen, count=2)


def test_a_list_without_an_end_is_as_long_as_asked(seen: Sample) -> None:
    vectors = random_pool(POOL, E, seed=3)
    for method in (*METHODS, "nonnegative"):
        labels = Labeller(method, vectors).labels(seen, count=9, min_gain=0.0)
        assert [len(label.texts) for label in labels] == [9] * C, method


def test_most_texts_of_a_component(contributions: torch.Tensor, maps: Maps) -> None:
    """Fewer than images; as many as the pool; for the published method its rank."""
    encoded = encode(Source.of_array(contributions[:15]))
    few = Sample(moments(encoded, maps), encoded)
    pool = unit(normal(POOL, E, seed=2))
    for method in ("textspan", "omp", "nonnegative"):
        labeller = Labeller(method, pool)
        assert labeller.most(few) == 14
        labeller.labels(few, count=14, min_gain=0.0)
        with pytest.raises(DataError, match="15 images are too few for 15 directions"):
            labeller.labels(few, count=15)
        assert Labeller(method, pool[:9]).most(few) == 9
    assert Labeller("published", pool).most(Sample(few.found)) == 14


@pytest.mark.parametrize("method", [*METHODS, "nonnegative"])
def test_parts_are_labelled_as_components_of_their_sums_would_be(
    method: str, seen: Sample, contributions: torch.Tensor, maps: Maps
) -> None:
    """The sums over a part's components, mapped by hand, as contributions of their own."""
    parts = [part for part in parts_of(COMPONENTS) if part.level != "component"]
    mapped = maps.apply(contributions)
    sums = torch.stack([mapped[:, list(part.members)].sum(dim=1) for part in parts], dim=1)
    encoded = encode(Source.of_array(sums))
    direct = moments(encoded, Maps("identity", torch.eye(E)[None], torch.zeros(E)))
    labeller = Labeller(method, unit(normal(POOL, E, seed=4)))
    want = labeller.labels(Sample(direct, encoded), count=3)
    found = labeller.labels(seen.parts(parts), count=3)
    assert [one.texts for one in found] == [one.texts for one in want]
    for one, other in zip(found, want, strict=True):
        assert one.gains == pytest.approx(other.gains, rel=1e-3)


def test_held_out_images_like_those_of_the_fit_are_explained_as_far(seen: Sample) -> None:
    pool = unit(normal(POOL, E, seed=2))
    for method in (*METHODS, "nonnegative"):
        labeller = Labeller(method, pool)
        labels = labeller.labels(seen, count=4)
        for label, shares in zip(labels, labeller.shares(labels, seen), strict=True):
            np.testing.assert_allclose(shares, np.cumsum(label.gains), atol=1e-3, err_msg=method)


def test_what_texts_keep_asks_nothing_of_the_pool_for_each_component(
    seen: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large pool that would be most of the work, once for each component and chunk."""
    labeller = Labeller("nonnegative", unit(normal(POOL, E, seed=2)))
    labels = labeller.labels(seen, count=4)
    kept = labeller.kept(labels)
    for module in (labelling, nonnegative):
        monkeypatch.delattr(module, "apart")
    for component, label in enumerate(labels):
        coordinates = seen.images().rows(sampled(N)) - seen.found.mean.float()
        columns = seen.found.bases.slices[component]
        images = coordinates[:, columns] @ seen.found.blocks[columns].float()
        parts = kept(component, images, [1, 4])
        shares = [1 - float((images - p).square().sum() / images.square().sum()) for p in parts]
        np.testing.assert_allclose(shares, np.cumsum(label.gains)[[0, -1]], atol=1e-3)


def test_what_reads_every_image_says_so_where_none_is_kept(seen: Sample) -> None:
    labeller = Labeller("nonnegative", unit(normal(POOL, E, seed=2)))
    with pytest.raises(DataError, match="only moments are kept"):
        labeller.labels(Sample(seen.found), count=2)
    with pytest.raises(DataError, match="only moments are kept"):
        Sample(seen.found).parts([])
