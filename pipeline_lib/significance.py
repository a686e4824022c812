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
from scipy.stats import false_discovery_control
from torch import Tensor

from pipeline_lib.coordinates import Encoded
from pipeline_lib.redraws import Weights
from pipeline_lib.scores import (
    CONSTANT,
    Moments,
    feature_basis,
    ordered_basis,
    pearson,
    sum_blocks,
)

_CHUNK = 512
_DIRECTIONS = 512
#: Random subspaces for each component, at least: the smallest p-value times the components is 0.04.
DRAWS_EACH = 25


def add_statistics(
    table: pd.DataFrame,
    redraws: pd.DataFrame,
    found: Moments,
    features: Mapping[str, Float[Tensor, "k e"]],
    *,
    draws: int,
    seed: int,
    level: float = 0.95,
) -> pd.DataFrame:
    """The table of scores with the columns low, high, p_value, q_value and margin of `scores`.

    Parameters
    ----------
    table
        From `scores.score_components`.
    redraws
        From `redrawn_scores`, of the same components and features.
    found, features
        What both were made of.
    draws
        Random subspaces for the p-values.
    seed
        Of these.
    level
        Share of the redraws within `low` and `high`.
    """
    ends = np.quantile(np.stack(redraws["score"]), _ends(level), axis=1)
    bounds = redraws[["feature", "component"]].assign(low=ends[0], high=ends[1])
    known = table.merge(bounds, on=["feature", "component"], validate="one_to_one")
    return add_margins(add_chance(known, found, features, draws=draws, seed=seed))


def add_chance(
    table: pd.DataFrame,
    found: Moments,
    features: Mapping[str, Float[Tensor, "k e"]],
    *,
    draws: int,
    seed: int,
) -> pd.DataFrame:
    """The table of scores with p_value and q_value, which need moments only.

    Parameters
    ----------
    table, found, features
        As for `add_statistics`.
    draws
        Random subspaces at least; there are `DRAWS_EACH` for each component, so that the only
        carrier of a feature among any number of components can have a q-value below 0.05.
    seed
        Of the subspaces.

    Notes
    -----
    The q-value is the p-value corrected for the number of components, feature by feature (Benjamini
    and Hochberg 1995): of the components of a feature with a q-value of at most 0.05, 5 % are there
    by chance at most, on average. That holds for independent tests and positively dependent ones;
    scores of one feature share the random subspaces and sum to 1, so it is a guide.
    """
    ranks = {name: feature_basis(rows).shape[1] for name, rows in features.items()}
    draws = max(draws, DRAWS_EACH * len(found.within))
    random = random_scores(found, sorted(set(ranks.values())), draws=draws, seed=seed)
    parts = []
    for name, part in table.groupby("feature", sort=False):
        part = part.sort_values("component")
        chance = p_values(part["score"].to_numpy(), random[ranks[str(name)]])
        parts.append(part.assign(p_value=chance, q_value=false_discovery_control(chance)))
    return pd.concat(parts, ignore_index=True)


def redrawn_scores(
    encoded: Encoded,
    found: Moments,
    features: Mapping[str, Float[Tensor, "k e"]],
    weights: Weights,
) -> pd.DataFrame:
    """Columns of table `redraws` that are scores: what each is in every redraw of the images.

    Parameters
    ----------
    encoded, found, features
        As for `scores.score_components`.
    weights
        The images and redraws of them, from `redraws.redraw`.

    Returns
    -------
    DataFrame
        Columns feature, component, and score, score_published and variance_explained as lists, one
        number for each redraw but the first, which is the images themselves.
    """
    spans = {name: feature_basis(rows) for name, rows in features.items()}
    ordered = {name: ordered_basis(rows) for name, rows in features.items()}
    images = torch.from_numpy(weights.sum(axis=1, dtype=np.float64)).clamp_min(1.0)
    inside = {name: _Sums(found, basis, images) for name, basis in spans.items()}
    along = {name: _Sums(found, basis, images) for name, basis in ordered.items()}
    variances = _Variances(found, images)
    for centred, counts in _drawn(encoded, found, weights):
        variances.add(centred, counts)
        for sums in (*inside.values(), *along.values()):
            sums.add(centred, counts)
    constant = found.variances() <= CONSTANT * found.total.trace()
    spread = variances.found().clamp_min(1e-300)
    tables = []
    for name, sums in inside.items():
        own, covariance, whole = sums.moments()
        share = covariance.sum(dim=2) / whole.sum(dim=1, keepdim=True).clamp_min(1e-300)
        explained = torch.where(constant, 0.0, own.sum(dim=2) / spread)
        alike = torch.where(constant, 0.0, pearson(*along[name].moments()).mean(dim=2))
        columns = {"score": share, "score_published": alike, "variance_explained": explained}
        lists = {key: list(value[1:].T.float().numpy()) for key, value in columns.items()}
        count = len(found.bases.slices)
        tables.append(pd.DataFrame({"feature": name, "component": range(count)} | lists))
    return pd.concat(tables, ignore_index=True)


def bootstrap_strengths(
    encoded: Encoded, found: Moments, weights: Weights, *, level: float = 0.95
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Lower and upper end of an interval of every component's direct effect, `Moments.strengths`.

    Images are drawn as `weights` says; deviations are from the means over all images.
    """
    summing = sum_blocks(encoded.bases)
    sums = torch.zeros(len(weights), len(encoded.bases.slices), dtype=torch.float64)
    for centred, counts in _drawn(encoded, found, weights):
        products = centred * (centred @ summing @ summing.T)
        sums += counts @ torch.stack([products[:, s].sum(1) for s in encoded.bases.slices], dim=1)
    drawn = sums / sums.sum(dim=1, keepdim=True).clamp_min(1e-300)
    low, high = np.quantile(drawn[1:].numpy(), _ends(level), axis=0)
    return low, high


def _ends(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2


def _drawn(
    encoded: Encoded, found: Moments, weights: Weights
) -> Iterator[tuple[Float[Tensor, "b r"], Float[Tensor, "w b"]]]:
    """Centred coordinates batch by batch, and how often each redraw holds each of these images."""
    for positions, rows in encoded.batches(size=_CHUNK):
        counts = torch.from_numpy(weights[:, positions].astype(np.float32))
        yield rows - found.mean.float(), counts


class _Sums:
    """Weighted sums over images along the directions of a basis, in every redraw.

    `images` is how many images each redraw holds.
    """

    def __init__(
        self, found: Moments, basis: Float[Tensor, "e q"], images: Float[Tensor, " w"]
    ) -> None:
        self.reading = (found.blocks @ basis).float()
        self.slices = found.bases.slices
        self.images = images[:, None]
        shape = (len(images), len(self.slices), basis.shape[1])
        self.own, self.square, self.product = torch.zeros(3, *shape, dtype=torch.float64)
        self.whole = torch.zeros(len(images), basis.shape[1], dtype=torch.float64)

    def add(self, rows: Float[Tensor, "b r"], counts: Float[Tensor, "w b"]) -> None:
        values = torch.stack([rows[:, s] @ self.reading[s] for s in self.slices], dim=1)
        whole = values.sum(dim=1)
        self.own += (counts @ values.flatten(1)).view_as(self.own)
        self.square += (counts @ values.square().flatten(1)).view_as(self.own)
        self.product += (counts @ (values * whole[:, None]).flatten(1)).view_as(self.own)
        self.whole += counts @ whole.square()

    def moments(
        self,
    ) -> tuple[Float[Tensor, "w c q"], Float[Tensor, "w c q"], Float[Tensor, "w q"]]:
        """Variance of each component, its covariance with the whole, and the whole's variance."""
        count = self.images[:, None]
        mean = self.own / count
        whole = mean.sum(dim=1)
        own = (self.square / count - mean.square()).clamp_min(0)
        covariance = self.product / count - mean * whole[:, None]
        return own, covariance, self.whole / self.images - whole.square()


class _Variances:
    """Total variance of each mapped component, in every redraw."""

    def __init__(self, found: Moments, images: Float[Tensor, " w"]) -> None:
        self.blocks, self.slices = found.blocks, found.bases.slices
        self.maps, self.images = found.blocks.float(), images[:, None]
        self.rows = torch.zeros(len(images), len(self.blocks), dtype=torch.float64)
        self.square = torch.zeros(len(images), len(self.slices), dtype=torch.float64)

    def add(self, rows: Float[Tensor, "b r"], counts: Float[Tensor, "w b"]) -> None:
        mapped = [(rows[:, s] @ self.maps[s]).square().sum(dim=1) for s in self.slices]
        self.rows += counts @ rows
        self.square += counts @ torch.stack(mapped, dim=1)

    def found(self) -> Float[Tensor, "w c"]:
        mean = self.rows / self.images
        means = [(mean[:, s] @ self.blocks[s]).square().sum(dim=1) for s in self.slices]
        return (self.square / self.images - torch.stack(means, dim=1)).clamp_min(0)


def random_scores(
    found: Moments, ranks: Sequence[int], *, draws: int, seed: int
) -> dict[int, Float[np.ndarray, "w c"]]:
    """Scores of every component for random subspaces of CLIP space, by number of directions.

    Each draw is one set of orthonormal directions; a subspace of fewer takes its first ones.

    Parameters
    ----------
    found
        Moments of the components.
    ranks
        Numbers of directions, from 1 to the width of the space.
    draws
        Subspaces of each number.
    seed
        Of the directions.
    """
    generator = torch.Generator().manual_seed(seed)
    out, most = found.total.shape[0], max(ranks)
    at_once = max(1, _DIRECTIONS // most)
    blocks, cross = found.blocks.float(), found.cross.float()
    scores: dict[int, list[Tensor]] = {rank: [] for rank in ranks}
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        normal = torch.randn(count, out, most, generator=generator, dtype=torch.float64)
        bases = torch.linalg.qr(normal).Q.permute(1, 0, 2).reshape(out, count * most).float()
        products = (blocks @ bases) * (cross @ bases)
        along = torch.stack([products[s].sum(dim=0) for s in found.bases.slices])
        sums = along.view(-1, count, most).double().cumsum(dim=2)
        for rank, parts in scores.items():
            shares = sums[:, :, rank - 1]
            parts.append((shares / shares.sum(dim=0).clamp_min(1e-300)).T)
    return {rank: torch.cat(parts).numpy() for rank, parts in scores.items()}


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
