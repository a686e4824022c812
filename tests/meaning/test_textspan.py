"""Text labels: planted texts are found in order of their variance, by every method."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_lib.coordinates import Source, encode
from pipeline_lib.errors import DataError
from pipeline_lib.maps import Maps, identity_maps, unit
from pipeline_lib.scores import Moments, moments
from pipeline_lib.textspan import METHODS, explained, label_components, label_table, random_pool

E, POOL = 40, 300
COMPONENTS = pd.DataFrame(
    {
        "component": [0, 1, 2],
        "id": ["block0/head0", "block0/head1", "bias"],
        "kind": ["head", "head", "bias"],
        "layer": [0, 0, -1],
        "head": [0, 1, -1],
    }
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(n: int = 500, noise: float = 0.02, seed: int = 0) -> tuple[Moments, torch.Tensor]:
    """Two heads made of texts of a random pool, a constant component, and the pool.

    Head 0 varies along texts 3, 14 and 15 with variances 9, 4 and 1; head 1 along 92 and 65.
    """
    pool = unit(normal(POOL, E, seed=42))
    contributions = noise * normal(n, 3, E, seed=seed)
    scales = {0: {3: 3.0, 14: 2.0, 15: 1.0}, 1: {92: 2.0, 65: 1.0}}
    for component, parts in scales.items():
        for text, scale in parts.items():
            amounts = scale * normal(n, 1, seed=100 * seed + text)
            contributions[:, component] += amounts * pool[text] + 0.5
    contributions[:, 2] = 1.0
    return moments(encode(Source.of_array(contributions)), identity_maps(E)), pool


@pytest.mark.parametrize("method", METHODS)
def test_planted_texts_are_found_in_order_of_variance(method) -> None:
    found, pool = planted()
    labels = label_components(found, pool, count=3, method=method)
    assert labels[0].texts == [3, 14, 15]
    assert labels[1].texts[:2] == [92, 65]
    assert sum(labels[0].gains) > 0.99


def test_default_stops_when_nothing_is_left_and_published_does_not() -> None:
    found, pool = planted()
    counts = {
        method: [len(one.texts) for one in label_components(found, pool, count=8, method=method)]
        for method in METHODS
    }
    assert counts == {"textspan": [3, 2, 0], "omp": [3, 2, 0], "published": [8, 8, 0]}


@pytest.mark.parametrize("method", METHODS)
def test_explained_variance_is_that_of_the_removed_directions(method) -> None:
    """The shares agree with removing the texts from the contributions themselves."""
    contributions = normal(200, 1, E) @ torch.diag(torch.linspace(0.1, 2, E))
    pool = unit(normal(POOL, E, seed=3))
    found = moments(encode(Source.of_array(contributions)), identity_maps(E))
    label = label_components(found, pool, count=6, method=method, min_gain=0)[0]
    assert len(label.texts) == 6
    torch.testing.assert_close(
        label.directions @ label.directions.T, torch.eye(6, dtype=torch.float64)
    )
    rest = (contributions[:, 0] - contributions[:, 0].mean(0)).double()
    whole = rest.square().sum()
    for gain, direction in zip(label.gains, label.directions, strict=True):
        before = rest.square().sum()
        rest = rest - (rest @ direction)[:, None] * direction
        assert gain == pytest.approx(float((before - rest.square().sum()) / whole), abs=1e-6)
    assert 1 - sum(label.gains) == pytest.approx(float(rest.square().sum() / whole), abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_no_texts_explain_more_than_principal_components(method) -> None:
    contributions = normal(200, 1, E) @ torch.diag(torch.linspace(0.1, 2, E))
    found = moments(encode(Source.of_array(contributions)), identity_maps(E))
    label = label_components(found, unit(normal(POOL, E)), count=10, method=method, min_gain=0)[0]
    assert (np.cumsum(label.gains) <= np.array(label.bounds) + 1e-9).all()
    variances = np.sort(np.linalg.eigvalsh(np.cov(contributions[:, 0].numpy().T)))[::-1]
    np.testing.assert_allclose(label.bounds, (np.cumsum(variances) / variances.sum())[:10])


def test_published_is_the_published_algorithm() -> None:
    """Against the algorithm written out on the contributions, as P1 gives it."""
    contributions = normal(300, E, seed=5) @ torch.diag(torch.linspace(0.05, 2, E)) + 0.7
    texts = unit(normal(POOL, E, seed=6))
    found = moments(encode(Source.of_array(contributions[:, None])), identity_maps(E))
    rank = 25
    right = torch.linalg.svd(contributions.double(), full_matrices=False).Vh[:rank]
    remaining = texts.double() @ right.T @ right
    data = (contributions - contributions.mean(0)).double()
    picked = []
    for _ in range(8):
        best = int((data @ remaining.T).std(dim=0).argmax())
        picked.append(best)
        direction = remaining[best] / remaining[best].norm()
        data = data - (data @ direction)[:, None] * direction
        remaining = remaining - (remaining @ direction)[:, None] * direction
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline_lib.textspan.PUBLISHED_RANK", rank)
        label = label_components(found, texts, count=8, method="published")[0]
    assert label.texts == picked


@pytest.mark.parametrize("seed", range(5))
def test_omp_is_simultaneous_orthogonal_matching_pursuit(seed: int) -> None:
    """Against the algorithm written out on the contributions, on texts that resemble each other."""
    contributions = normal(300, E, seed=seed) @ torch.diag(torch.linspace(0.05, 2, E))
    texts = unit(normal(POOL, E, seed=seed + 50) + 2.0 * normal(8, E, seed=9).repeat(38, 1)[:POOL])
    found = moments(encode(Source.of_array(contributions[:, None])), identity_maps(E))
    label = label_components(found, texts, count=12, method="omp", min_gain=0)[0]
    data = (contributions - contributions.mean(0)).double().numpy()
    atoms = unit(texts.double() - texts.double().mean(0)).numpy()
    picked, shares, rest = [], [], data
    for _ in range(12):
        picked.append(int(np.square(rest @ atoms.T).sum(axis=0).argmax()))
        amounts = np.linalg.lstsq(atoms[picked].T, data.T, rcond=None)[0]
        rest = data - amounts.T @ atoms[picked]
        shares.append(1 - np.square(rest).sum() / np.square(data).sum())
    assert label.texts == picked
    np.testing.assert_allclose(np.cumsum(label.gains), shares, atol=1e-6)
    # Orthogonal least squares picks what explains most together with the picked ones.
    gram, best = data.T @ data, []
    for _ in range(12):
        spans = [np.linalg.qr(atoms[[*best, text]].T)[0] for text in range(POOL)]
        best.append(int(np.argmax([np.sum(span * (gram @ span)) for span in spans])))
    assert best != picked


def test_texts_no_better_than_random_vectors_are_left_out() -> None:
    """One planted text in a component of white noise: the noise is not labelled."""
    pool = unit(normal(POOL, E, seed=42))
    contributions = normal(3000, 1, E) + 3.0 * normal(3000, 1, 1, seed=1) * pool[5]
    found = moments(encode(Source.of_array(contributions)), identity_maps(E))
    random = label_components(found, random_pool(POOL, E, seed=1), count=8, min_gain=0)
    texts = label_components(found, pool, count=8, min_gain=0)[0].texts
    assert len(texts) == 8
    kept = label_components(found, pool, count=8, min_gain=0, random=random)[0].texts
    assert kept[0] == 5
    assert len(kept) < 6


def test_the_first_text_stays_even_where_random_vectors_do_better() -> None:
    contributions = normal(2000, 1, E)
    found = moments(encode(Source.of_array(contributions)), identity_maps(E))
    random = label_components(found, random_pool(5000, E, seed=1), count=8, min_gain=0)
    label = label_components(found, unit(normal(20, E, seed=3)), count=8, random=random)[0]
    assert len(label.texts) >= 1
    assert label.gains[0] < random[0].gains[0]


def test_a_component_of_one_direction_gets_the_text_that_lies_along_it() -> None:
    pool = unit(normal(POOL, E, seed=42))
    apart = unit(pool - pool.mean(0))
    contributions = normal(200, 1, 1) * apart[17]
    found = moments(encode(Source.of_array(contributions)), identity_maps(E))
    for method in ("textspan", "omp"):
        assert label_components(found, pool, count=2, method=method)[0].texts[:1] == [17]


def test_texts_like_a_picked_one_are_passed_over() -> None:
    found, pool = planted(noise=0.05)
    twin = unit(pool[3] + 0.01 * normal(E, seed=8))
    pool = torch.cat([pool, twin[None]])
    texts = label_components(found, pool, count=6, min_gain=0)[0].texts
    assert len({3, POOL} & set(texts)) == 1


def test_a_direction_that_all_texts_share_is_no_label() -> None:
    """A component that varies along the common direction alone, and one text of its own."""
    common = unit(normal(1, E, seed=11))
    own = unit(normal(POOL, E, seed=12))
    pool = unit(own + 3.0 * common)
    contributions = 2.0 * normal(400, 1, seed=1) * common + 1.0 * normal(400, 1, seed=2) * own[7]
    contributions = (contributions + 0.01 * normal(400, E, seed=3))[:, None]
    found = moments(encode(Source.of_array(contributions)), identity_maps(E))
    assert label_components(found, pool, count=1)[0].texts == [7]
    assert label_components(found, pool, count=1, method="published")[0].gains[0] > 0.6


def test_component_without_structure_is_not_explained_by_few_texts() -> None:
    contributions = normal(2000, 1, E)
    found = moments(encode(Source.of_array(contributions)), identity_maps(E))
    label = label_components(found, unit(normal(POOL, E, seed=3)), count=5)[0]
    assert sum(label.gains) < 5 / E * 1.3


def test_labels_follow_the_maps() -> None:
    maps = Maps("ridge", normal(1, 12, E, seed=4), torch.zeros(E))
    contributions = normal(300, 2, 12)
    found = moments(encode(Source.of_array(contributions)), maps)
    mapped = maps.apply(contributions)
    direct = moments(encode(Source.of_array(mapped)), identity_maps(E))
    pool = unit(normal(POOL, E, seed=3))
    through, straight = (label_components(m, pool, count=4) for m in (found, direct))
    assert [one.texts for one in through] == [one.texts for one in straight]


def test_heldout_variance_is_near_that_of_the_fit_where_texts_are_true() -> None:
    found, pool = planted(seed=0)
    other, _ = planted(seed=1)
    label = label_components(found, pool, count=3)[0]
    shares = explained(other, 0, label.directions)
    assert float(explained(found, 0, label.directions)[-1]) == pytest.approx(sum(label.gains))
    assert float(shares[-1]) > 0.99
    assert (shares.diff() > 0).all()


def test_table_has_a_row_per_text() -> None:
    found, pool = planted()
    labels = label_components(found, pool, count=3)
    random = label_components(found, random_pool(POOL, E, seed=1), count=3, min_gain=0)
    texts, categories = [f"text {i}" for i in range(POOL)], ["colour"] * POOL
    other, _ = planted(seed=1)
    fresh = [explained(other, c, one.directions).tolist() for c, one in enumerate(labels[:2])]
    others = label_components(found, random_pool(POOL, E, seed=2), count=3, min_gain=0)
    asked = {"random": random, "random_texts": others, "heldout": [*fresh, []]}
    table = label_table(found, labels, texts, categories, COMPONENTS, **asked)
    for name, each in (("cumulative_random", random), ("cumulative_random_texts", others)):
        want = np.cumsum(each[0].gains)
        np.testing.assert_allclose(table[name][:3], want)
    assert list(table["component"]) == [0, 0, 0, 1, 1]
    assert list(table["rank"]) == [0, 1, 2, 0, 1]
    assert table["text"][0] == "text 3"
    np.testing.assert_allclose(table["cumulative"][:3], table["variance"][:3].cumsum())
    assert (table["cumulative"] <= table["cumulative_pca"] + 1e-9).all()
    assert (table["cumulative_random"] < 0.7 * table["cumulative"]).all()
    np.testing.assert_allclose(table["cumulative_heldout"], table["cumulative"], atol=0.1)
    assert list(table["strength"].unique()) == found.strengths[:2].tolist()
    alone = label_table(found, labels, texts, categories, COMPONENTS, random=random)
    absent = ["cumulative_heldout", "cumulative_random_texts", "strength_low", "strength_high"]
    assert alone[absent].isna().all(axis=None)
    ends = ([0.1, 0.2], [0.3, 0.4])
    sure = label_table(found, labels, texts, categories, COMPONENTS, random=random, interval=ends)
    assert sure.groupby("component")["strength_high"].first().tolist() == [0.3, 0.4]


def test_bad_input_is_refused() -> None:
    found, pool = planted(n=30)
    with pytest.raises(DataError, match="too few for 40 directions"):
        label_components(found, pool, method="published")
    with pytest.raises(DataError, match="too few for 35 directions"):
        label_components(found, pool, count=35)
    with pytest.raises(DataError, match="the pool has 5"):
        label_components(found, pool[:5], count=10)
    with pytest.raises(DataError, match="different CLIP spaces"):
        label_components(found, pool[:, 1:])
    with pytest.raises(DataError, match="NaN"):
        label_components(found, pool * float("nan"))
    with pytest.raises(DataError, match="did you mean textspan"):
        label_components(found, pool, method="textspam")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="it cannot give"):
        label_components(planted(n=300)[0], pool, method="published", count=50)
