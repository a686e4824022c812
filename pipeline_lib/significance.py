"""How sure the scores of components are: intervals over images, random directions, other features.

Everything here qualifies the table that `scores.score_components` makes. Axis letters as there;
`w` draw of the bootstrap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline_lib.coordinates import Encoded
from pipeline_lib.scores import Moments, feature_basis, sum_blocks

_CHUNK = 512
_DIRECTIONS = 512


def add_statistics(
    table: pd.DataFrame,
    encoded: Encoded,
    found: Moments,
    features: Mapping[str, Float[Tensor, "k e"]],
    *,
    draws: int,
    seed: int,
) -> pd.DataFrame:
    """The table of scores with the columns low, high, p_value and margin of table `scores`.

    Parameters
    ----------
    table
        From `scores.score_components`.
    encoded, found, features
        What it was made of.
    draws
        Draws of images for the interval, and of random directions for the p-value.
    seed
        Of both.
    """
    bounds = bootstrap_scores(encoded, found, features, draws=draws, seed=seed)
    parts = []
    for name, part in table.groupby("feature", sort=False):
        low, high = bounds[str(name)]
        parts.append(part.sort_values("component").assign(low=low, high=high))
    known = pd.concat(parts, ignore_index=True)
    return add_margins(add_chance(known, found, features, draws=draws, seed=seed))


def add_chance(
    table: pd.DataFrame,
    found: Moments,
    features: Mapping[str, Float[Tensor, "k e"]],
    *,
    draws: int,
    seed: int,
) -> pd.DataFrame:
    """The table of scores with the column p_value, which needs moments only."""
    parts = []
    for name, part in table.groupby("feature", sort=False):
        rank = feature_basis(features[str(name)]).shape[1]
        random = random_scores(found, rank, draws=draws, seed=seed)
        part = part.sort_values("component")
        parts.append(part.assign(p_value=p_values(part["score"].to_numpy(), random)))
    return pd.concat(parts, ignore_index=True)


def bootstrap_scores(
    encoded: Encoded,
    found: Moments,
    features: Mapping[str, Float[Tensor, "k e"]],
    *,
    draws: int,
    seed: int,
    level: float = 0.95,
) -> dict[str, tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]]:
    """For each feature the lower and upper end of an interval of every component's score.

    Images are drawn with replacement (each as often as a Poisson variable of mean 1 says, so that
    batches can be drawn one after another), and the score is computed anew from each draw.
    """
    bases = {name: feature_basis(descriptors) for name, descriptors in features.items()}
    sums = {name: _Sums(found, basis, draws) for name, basis in bases.items()}
    for centred, weights in _drawn(encoded, found, draws, seed):
        for part in sums.values():
            part.add(centred, weights)
    return {name: _interval(part.scores(), level) for name, part in sums.items()}


def bootstrap_strengths(
    encoded: Encoded, found: Moments, *, draws: int, seed: int, level: float = 0.95
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Lower and upper end of an interval of every component's direct effect, `Moments.strengths`.

    Images are drawn as in `bootstrap_scores`; deviations are from the means over all images.
    """
    summing = sum_blocks(encoded.bases)
    sums = torch.zeros(draws, len(encoded.bases.slices), dtype=torch.float64)
    for centred, weights in _drawn(encoded, found, draws, seed):
        products = centred * (centred @ summing @ summing.T)
        sums += weights @ torch.stack([products[:, s].sum(1) for s in encoded.bases.slices], dim=1)
    return _interval(sums / sums.sum(dim=1, keepdim=True).clamp_min(1e-300), level)


def _drawn(
    encoded: Encoded, found: Moments, draws: int, seed: int
) -> Iterator[tuple[Float[Tensor, "b r"], Float[Tensor, "w b"]]]:
    """Centred coordinates batch by batch, and how often each draw holds each of these images."""
    generator = np.random.default_rng(seed)
    for start in range(0, len(encoded), _CHUNK):
        rows = encoded.rows(np.arange(start, min(start + _CHUNK, len(encoded))))
        weights = torch.from_numpy(generator.poisson(1.0, (draws, len(rows))).astype(np.float32))
        yield rows - found.mean.float(), weights


def _interval(
    values: Float[Tensor, "w c"], level: float
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Lower and upper end of the middle `level` of all draws."""
    low, high = np.quantile(values.numpy(), ((1 - level) / 2, (1 + level) / 2), axis=0)
    return low, high


class _Sums:
    """Weighted sums over images from which the scores of each draw follow."""

    def __init__(self, found: Moments, basis: Float[Tensor, "e q"], draws: int) -> None:
        self.reading = (found.blocks @ basis).float()
        self.slices = found.bases.slices
        count, rank = len(self.slices), basis.shape[1]
        self.weight = torch.zeros(draws, dtype=torch.float64)
        self.own = torch.zeros(draws, count, rank, dtype=torch.float64)
        self.product = torch.zeros(draws, count, dtype=torch.float64)
        self.square = torch.zeros(draws, dtype=torch.float64)

    def add(self, rows: Float[Tensor, "b r"], weights: Float[Tensor, "w b"]) -> None:
        values = torch.stack([rows[:, s] @ self.reading[s] for s in self.slices], dim=1)
        whole = values.sum(dim=1)
        products = torch.einsum("bcq,bq->bc", values, whole)
        self.weight += weights.sum(dim=1)
        self.own += (weights @ values.flatten(1)).view_as(self.own)
        self.product += weights @ products
        self.square += weights @ whole.square().sum(dim=1)

    def scores(self) -> Float[Tensor, "w c"]:
        """Covariance with the whole over variance of the whole, in each draw."""
        count = self.weight.clamp_min(1.0)
        own = self.own / count[:, None, None]
        whole = own.sum(dim=1)
        covariance = self.product / count[:, None] - torch.einsum("wcq,wq->wc", own, whole)
        variance = self.square / count - whole.square().sum(dim=1)
        return covariance / variance.clamp_min(1e-300)[:, None]


def random_scores(found: Moments, rank: int, *, draws: int, seed: int) -> Float[np.ndarray, "w c"]:
    """Scores of every component for random subspaces of `rank` directions of CLIP space."""
    generator = torch.Generator().manual_seed(seed)
    out, at_once = found.total.shape[0], max(1, _DIRECTIONS // rank)
    scores = []
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        normal = torch.randn(count, out, rank, generator=generator, dtype=torch.float64)
        bases = torch.linalg.qr(normal).Q.permute(1, 0, 2).reshape(out, count * rank)
        products = (found.blocks @ bases) * (found.cross @ bases)
        along = torch.stack([products[s].sum(dim=0) for s in found.bases.slices])
        shares = along.view(-1, count, rank).sum(dim=2)
        scores.append((shares / shares.sum(dim=0).clamp_min(1e-300)).T)
    return torch.cat(scores).numpy()


def p_values(
    scores: Float[np.ndarray, " c"], random: Float[np.ndarray, "w c"]
) -> Float[np.ndarray, " c"]:
    """Share of random draws in which a component scores at least as high, the score counted in.

    A small value says that the component carries the feature more than it carries CLIP space at
    large.
    """
    return (1 + (random >= scores).sum(axis=0)) / (1 + len(random))


def add_margins(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the column margin: a component's score less its best for another feature."""
    wide = table.pivot(index="component", columns="feature", values="score")
    margins = wide.copy()
    for feature in wide.columns:
        others = wide.drop(columns=feature)
        margins[feature] = wide[feature] - (others.max(axis=1) if len(others.columns) else 0.0)
    long = margins.stack().rename("margin").reset_index()
    return table.merge(long, on=["feature", "component"], how="left", validate="one_to_one")


def carriers(scores: Sequence[float], share: float = 0.9) -> int:
    """Fewest components whose scores sum to `share` of all positive ones.

    >>> carriers([0.5, 0.45, 0.05, -0.1])
    2
    """
    positive = np.sort(np.clip(np.asarray(scores, dtype=float), 0, None))[::-1]
    return int(np.searchsorted(positive.cumsum(), share * positive.sum() - 1e-12) + 1)
