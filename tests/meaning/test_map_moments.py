"""Maps from moments: the ridge that images give, chosen by a share that images give too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline_lib.coordinates import Source
from pipeline_lib.errors import DataError
from pipeline_lib.factors import Factors, factorise
from pipeline_lib.map_fits import fit_maps
from pipeline_lib.map_moments import explained, fit_from_moments
from pipeline_lib.map_problem import Problem
from pipeline_lib.map_ridge import STRENGTHS, ridge
from pipeline_lib.maps import Maps, explained_share, unit
from pipeline_lib.streamed import StreamedMoments, stored_coordinates

N, D, E = 400, 12, 6
HELDOUT = np.arange(N) % 4 == 0


@pytest.fixture(scope="module")
def factors() -> Factors:
    """Components of 12, 3, 2 and 12 coordinates: the order of a store is not that of `Bases`."""
    rng = np.random.default_rng(0)
    return factorise([None, rng.normal(size=(3, D)), rng.normal(size=(2, D)), None], D, 500)


@pytest.fixture(scope="module")
def coordinates(factors: Factors) -> np.ndarray:
    rng = np.random.default_rng(1)
    mixing = np.eye(factors.columns) + 0.1 * rng.normal(size=2 * (factors.columns,))
    return (rng.normal(size=(N, factors.columns)) @ mixing + 3.0).astype("float32")


@pytest.fixture(scope="module")
def targets(factors: Factors, coordinates: np.ndarray) -> torch.Tensor:
    """Unit vectors made by planted maps of every component, and noise."""
    rng = np.random.default_rng(2)
    planted = rng.normal(size=(factors.columns, E)) / 4
    noise = rng.normal(size=(N, E))
    return unit(torch.from_numpy(coordinates @ planted + noise))


def sides(
    coordinates: np.ndarray, targets: torch.Tensor, *cuts: int
) -> tuple[StreamedMoments, StreamedMoments]:
    """Moments of the images fitted on and of those held out, in batches cut at some places."""
    rows = np.hstack([coordinates, targets.numpy()])
    fit, held = (StreamedMoments.of(np.split(rows[side], cuts)) for side in (~HELDOUT, HELDOUT))
    return fit, held


def problem_of(factors: Factors, coordinates: np.ndarray, targets: torch.Tensor) -> Problem:
    """The fit to the same images of a factored dump."""
    encoded = stored_coordinates(factors, lambda at: coordinates[at], np.arange(N))
    return Problem(encoded, targets, np.flatnonzero(~HELDOUT), np.flatnonzero(HELDOUT))


@pytest.mark.parametrize("strength", STRENGTHS)
def test_weights_are_those_of_the_same_ridge_fitted_to_a_factored_dump(
    strength: float,
    factors: Factors,
    coordinates: np.ndarray,
    targets: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("map_ridge", "map_moments"):
        monkeypatch.setattr(f"pipeline_lib.{module}.STRENGTHS", (strength,))
    problem = problem_of(factors, coordinates, targets)
    expected = ridge(problem)
    found = fit_from_moments(*sides(coordinates, targets), factors).maps
    assert found.weights is not None and found.facts["strength"] == strength
    size = float(found.weights.abs().max())
    torch.testing.assert_close(found.weights, expected.weights(problem), rtol=0, atol=1e-5 * size)
    torch.testing.assert_close(found.bias, expected.bias, rtol=1e-4, atol=1e-6)


def test_shards_in_any_cut_give_the_maps_of_all_images_at_once(
    factors: Factors, coordinates: np.ndarray, targets: torch.Tensor
) -> None:
    once = fit_from_moments(*sides(coordinates, targets), factors)
    cut = fit_from_moments(*sides(coordinates, targets, 1, 37, 90), factors)
    assert once.maps.weights is not None and cut.maps.weights is not None
    torch.testing.assert_close(cut.maps.weights, once.maps.weights, rtol=1e-5, atol=1e-7)
    rows = np.hstack([coordinates, targets.numpy()])
    parts = [StreamedMoments.none(rows.shape[1]) for _ in range(2)]
    for shard in np.split(np.arange(N), (150, 151)):
        for part, side in zip(parts, (~HELDOUT, HELDOUT), strict=True):
            part.merge(StreamedMoments.of([rows[shard][side[shard]]]))
    merged = fit_from_moments(*parts, factors)
    assert merged.maps.facts == once.maps.facts
    assert merged.maps.weights is not None
    torch.testing.assert_close(merged.maps.weights, once.maps.weights, rtol=1e-5, atol=1e-7)


def test_the_explained_share_is_that_of_the_images(
    factors: Factors, coordinates: np.ndarray, targets: torch.Tensor
) -> None:
    fit = fit_from_moments(*sides(coordinates, targets), factors)
    mapped = fit.maps.apply_total(torch.from_numpy(factors.decode(coordinates)))
    metrics = fit.metrics.set_index("split")
    for split, side in (("train", ~HELDOUT), ("heldout", HELDOUT)):
        expected = explained_share(mapped[side], targets[side])
        assert metrics.loc[split, "explained"] == pytest.approx(expected, abs=1e-5)
        assert metrics.loc[split, "n"] == side.sum()
    assert 0.1 < metrics.loc["heldout", "explained"] < metrics.loc["train", "explained"] < 1.0


def test_the_explained_share_is_that_of_scikit_learn(
    coordinates: np.ndarray, targets: torch.Tensor
) -> None:
    from sklearn.metrics import r2_score

    blocks = torch.randn(coordinates.shape[1], E, generator=torch.Generator().manual_seed(3)) / 20
    bias = torch.full((E,), 0.2)
    mapped = torch.from_numpy(coordinates) @ blocks + bias
    held = sides(coordinates, targets)[1]
    expected = r2_score(targets[HELDOUT], mapped[HELDOUT], multioutput="variance_weighted")
    assert explained(held, blocks.double(), bias.double()) == pytest.approx(expected, rel=1e-5)
    assert explained_share(mapped[HELDOUT], targets[HELDOUT]) == pytest.approx(expected, rel=1e-5)


def test_the_strength_is_the_one_that_explains_most_of_the_held_out_images(
    factors: Factors, coordinates: np.ndarray, targets: torch.Tensor
) -> None:
    """Few images and much noise: neither the weakest nor the strongest ridge is best."""
    from sklearn.linear_model import Ridge
    from sklearn.metrics import r2_score

    few = np.flatnonzero(~HELDOUT)[:60]
    rows = np.hstack([coordinates, targets.numpy()])
    fit = fit_from_moments(
        StreamedMoments.of([rows[few]]), StreamedMoments.of([rows[HELDOUT]]), factors
    )
    x, y = coordinates.astype(float), targets.double().numpy()
    spread = ((x[few] - x[few].mean(0)) ** 2).sum() / x.shape[1]
    shares = {
        strength: r2_score(
            y[HELDOUT],
            Ridge(alpha=strength * spread).fit(x[few], y[few]).predict(x[HELDOUT]),
            multioutput="variance_weighted",
        )
        for strength in STRENGTHS
    }
    best = max(shares, key=lambda strength: shares[strength])
    assert fit.maps.facts["strength"] == best not in (STRENGTHS[0], STRENGTHS[-1])
    assert fit.metrics["explained"].iloc[1] == pytest.approx(shares[best], abs=1e-6)


def test_fits_to_images_say_the_explained_share_of_least_squares_alone(
    factors: Factors, coordinates: np.ndarray, targets: torch.Tensor
) -> None:
    source = Source.of_array(factors.decode(coordinates))
    result = fit_maps(source, targets, HELDOUT, method="ridge", baselines=["shared", "procrustes"])
    share = result.metrics.set_index(["method", "split"])["explained"]
    mapped = result.maps.apply_total(source.take(np.flatnonzero(HELDOUT)))
    expected = explained_share(mapped, targets[HELDOUT])
    assert share["ridge", "heldout"] == pytest.approx(expected, abs=1e-4)
    assert np.isfinite(share["shared"]).all() and share["procrustes"].isna().all()


def test_too_few_images_and_equal_targets_are_refused(
    factors: Factors, coordinates: np.ndarray, targets: torch.Tensor
) -> None:
    fit, held = sides(coordinates, targets)
    alone = StreamedMoments.of([np.hstack([coordinates, targets.numpy()])[:1]])
    for pair in ((fit, alone), (alone, held)):
        with pytest.raises(DataError, match=r"too few.*maps\.heldout"):
            fit_from_moments(*pair, factors)
    with pytest.raises(DataError, match="targets of all 100 images are the same"):
        fit_from_moments(*sides(coordinates, targets[:1].expand(N, -1)), factors)
    assert isinstance(fit_from_moments(fit, held, factors).maps, Maps)
