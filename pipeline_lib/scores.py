"""How much of a feature's variation each component carries, from moments of its contributions.

A feature (colour, shape, …) is a list of descriptors; its subspace of CLIP space is spanned by
their text embeddings. Every score follows from second moments, which are summed over batches once
and then serve any number of features. Text labels of components are made in `textspan` from the
same moments. Axis letters: `c` component, `e` width of the CLIP space, `k` text, `q` direction of
a feature's subspace, `r` coordinates of all components side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline_lib.coordinates import Bases, Encoded
from pipeline_lib.errors import DataError
from pipeline_lib.maps import Maps

#: Directions of a feature's descriptors below this share of the largest singular value are noise.
RANK_TOLERANCE = 1e-4
#: A component of at most this share of the representation's variance has rounding noise only.
CONSTANT = 1e-12


@dataclass(frozen=True)
class Moments:
    """First and second moments over images of all mapped contributions; all in float64.

    Attributes
    ----------
    n
        Number of images.
    bases
        Bases in which the coordinates `r` are taken.
    blocks
        Maps to CLIP space in these coordinates `[r, e]`.
    mean
        Mean of the coordinates `[r]`.
    within
        For each component the covariance of its coordinates `[r_c, r_c]`.
    cross
        Covariance of the coordinates with the mapped representation `[r, e]`.
    total
        Covariance of the mapped representation `[e, e]`.
    strengths
        Share of each component in the variance of the unmapped representation `[c]`: its
        covariance with the representation, summed over directions; sums to 1.
    """

    n: int
    bases: Bases
    blocks: Float[Tensor, "r e"]
    mean: Float[Tensor, " r"]
    within: Sequence[Float[Tensor, "p p"]]
    cross: Float[Tensor, "r e"]
    total: Float[Tensor, "e e"]
    strengths: Float[Tensor, " c"]

    def variances(self) -> Float[Tensor, " c"]:
        """Total variance of each component's mapped contribution `[c]`."""
        pairs = zip(self.within, self.bases.slices, strict=True)
        found = [(self.blocks[s] * (within @ self.blocks[s])).sum() for within, s in pairs]
        return torch.stack(found)


def map_blocks(maps: Maps, bases: Bases) -> Float[Tensor, "r e"]:
    """What maps do to coordinates in `bases` `[r, e]`."""
    count = len(bases.vectors)
    maps.check(count, bases.width)
    weights = torch.eye(bases.width)[None] if maps.weights is None else maps.weights
    return bases.project(weights.expand(count, -1, -1))


def sum_blocks(bases: Bases) -> Float[Tensor, "r d"]:
    """What turns coordinates in `bases` into the representation `[r, d]`."""
    return bases.project(torch.eye(bases.width).expand(len(bases.vectors), -1, -1))


def moments(encoded: Encoded, maps: Maps) -> Moments:
    """Moments of all components' mapped contributions, in two passes over coordinates.

    Parameters
    ----------
    encoded
        Coordinates of the images, from `coordinates.encode`.
    maps
        Maps to CLIP space.

    Raises
    ------
    DataError
        There are fewer than two images.
    """
    if len(encoded) < 2:
        raise DataError(f"scores need at least 2 images, there are {len(encoded)}")
    bases, slices = encoded.bases, encoded.bases.slices
    blocks = map_blocks(maps, bases)
    summing = sum_blocks(bases)
    mean = encoded.mean()
    width, out = blocks.shape
    within = [torch.zeros(rank, rank, dtype=torch.float64) for rank in bases.ranks]
    cross = torch.zeros(width, out, dtype=torch.float64)
    total = torch.zeros(out, out, dtype=torch.float64)
    shares = torch.zeros(width, dtype=torch.float64)
    for _, rows in encoded.batches():
        centred = (rows.double() - mean).float()  # a large mean would be rounded
        mapped = centred @ blocks
        cross += centred.T @ mapped
        total += mapped.T @ mapped
        shares += (centred * (centred @ summing @ summing.T)).sum(dim=0)
        for matrix, columns in zip(within, slices, strict=True):
            part = centred[:, columns].double()  # products in float32 would hide small directions
            matrix += part.T @ part
    count = len(encoded)
    strengths = torch.stack([shares[columns].sum() for columns in slices])
    return Moments(
        n=count,
        bases=bases,
        blocks=blocks.double(),
        mean=mean,
        within=[matrix / count for matrix in within],
        cross=cross / count,
        total=total / count,
        strengths=strengths / shares.sum().clamp_min(torch.finfo(torch.float64).tiny),
    )


def feature_basis(descriptors: Float[Tensor, "k e"]) -> Float[Tensor, "e q"]:
    """Orthonormal basis of the descriptors' span; the span does not depend on their order.

    Raises
    ------
    DataError
        There are no descriptors, or they hold NaN, or all are zero.
    """
    _check_descriptors(descriptors)
    _, singular, right = torch.linalg.svd(descriptors.double(), full_matrices=False)
    return right[singular > RANK_TOLERANCE * singular[0]].T.contiguous()


def ordered_basis(descriptors: Float[Tensor, "k e"]) -> Float[Tensor, "e q"]:
    """Orthonormal basis by QR of the descriptors in their order, as published.

    A descriptor that lies in the span of those before it adds no direction.
    """
    _check_descriptors(descriptors)
    basis: list[Tensor] = []
    for row in descriptors.double():
        rest = row.clone()
        for _ in range(2):  # twice is enough to be orthogonal to rounding
            for direction in basis:
                rest -= (rest @ direction) * direction
        if rest.norm() > RANK_TOLERANCE * row.norm():
            basis.append(rest / rest.norm())
    return torch.stack(basis, dim=1)


def score_components(found: Moments, features: Mapping[str, Float[Tensor, "k e"]]) -> pd.DataFrame:
    """Scores of every component for every feature.

    Parameters
    ----------
    found
        Moments of the contributions.
    features
        For each feature the text embeddings of its descriptors.

    Returns
    -------
    DataFrame
        Columns feature, component, and the score columns of table `scores`. `covariance` sums over
        components to the variance of the mapped representation in the feature's subspace, `score`
        (its share of that variance) to 1.

    Raises
    ------
    DataError
        A feature has no descriptors, or the representation does not vary in its subspace.

    Notes
    -----
    P2 section 5 (CompAttribute); `score_published` is the mean over QR directions of the Pearson
    correlation of a component with the whole.
    """
    tables = [_score_feature(found, name, rows) for name, rows in features.items()]
    if not tables:
        raise DataError("no features to score: the config's concepts are empty")
    return pd.concat(tables, ignore_index=True)


def with_components(table: pd.DataFrame, components: pd.DataFrame) -> pd.DataFrame:
    """`table` with id, kind, layer, block and head of its components (table `components`)."""
    facts = components[["component", "id", "kind", "layer", "block", "head"]]
    return table.merge(facts, on="component", how="left", validate="many_to_one")


def _score_feature(found: Moments, feature: str, descriptors: Float[Tensor, "k e"]) -> pd.DataFrame:
    try:
        basis, published = feature_basis(descriptors), ordered_basis(descriptors)
    except DataError as error:
        raise DataError(f"feature {feature!r}: {error}") from error
    spread = (basis * (found.total @ basis)).sum()
    if spread <= torch.finfo(torch.float32).eps * found.total.trace() or spread == 0:
        raise DataError(
            f"feature {feature!r}: the representation does not vary in the subspace of its "
            f"{len(descriptors)} descriptors over these {found.n} images; use other descriptors"
        )
    own, covariance = _projected(found, basis)
    published_own, published_covariance = _projected(found, published)
    whole = (published * (found.total @ published)).sum(dim=0)
    correlations = pearson(published_own, published_covariance, whole)
    variances = found.variances()
    explained = own.sum(dim=1) / variances.clamp_min(1e-300)
    constant = variances <= CONSTANT * found.total.trace()
    return pd.DataFrame(
        {
            "feature": feature,
            "component": np.arange(len(own)),
            "score": (covariance.sum(dim=1) / spread).numpy(),
            "score_published": torch.where(constant, 0.0, correlations.mean(dim=1)).numpy(),
            "covariance": covariance.sum(dim=1).numpy(),
            "variance_explained": torch.where(constant, 0.0, explained).numpy(),
        }
    )


def pearson(
    own: Float[Tensor, "*w c q"], covariance: Float[Tensor, "*w c q"], whole: Float[Tensor, "*w q"]
) -> Float[Tensor, "*w c q"]:
    """Correlation of components with the whole along directions; 0 where one of them is constant.

    Parameters
    ----------
    own, covariance
        Variances of the components, and their covariances with the whole.
    whole
        Variances of the whole.
    """
    scale = (own * whole[..., None, :].clamp_min(0)).sqrt()
    return torch.where(scale > 0, covariance / scale.clamp_min(1e-300), 0.0)


def _projected(
    found: Moments, basis: Float[Tensor, "e q"]
) -> tuple[Float[Tensor, "c q"], Float[Tensor, "c q"]]:
    """Each component's variance along each direction, and its covariance with the whole there."""
    reading = found.blocks @ basis
    products = reading * (found.cross @ basis)
    own, covariance = [], []
    for within, columns in zip(found.within, found.bases.slices, strict=True):
        own.append((reading[columns] * (within @ reading[columns])).sum(dim=0))
        covariance.append(products[columns].sum(dim=0))
    return torch.stack(own), torch.stack(covariance)


def _check_descriptors(descriptors: Tensor) -> None:
    if len(descriptors) == 0:
        raise DataError("it has no descriptors; give at least one in the config's concepts")
    if not torch.isfinite(descriptors).all():
        raise DataError("the text embeddings of its descriptors hold NaN or infinity")
    if not (descriptors.norm(dim=1) > 0).all():
        raise DataError("a descriptor has a zero text embedding")
