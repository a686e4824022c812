"""Ways of retrieval: which components of a property are used, and how their parts are compared.

`sum` is the published way: contributions of the components are added up. `subspace` compares what
they say along the property's texts alone: the products with these texts, less their mean over the
texts (what all of them share) and over reference images. Which way, which ranking of components and
how many of them is chosen on images that are not reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from pipeline_lib.errors import DataError, close_matches
from pipeline_lib.factors import Factors
from pipeline_lib.mapped import each_mapped, mapped_representation
from pipeline_lib.maps import Maps
from pipeline_lib.passes import ContributionSource, work_through
from pipeline_lib.products import Products

#: How components are ranked: by their score on the property, or by how far it exceeds their best
#: score on another one.
RANKINGS = ("score", "margin")

#: Components of a property where neither a question nor a choice says how many.
COMPONENTS = 8


@dataclass(frozen=True)
class Way:
    """One way to search by a property.

    Attributes
    ----------
    kind
        `sum` or `subspace`.
    by
        Ranking of the components: a key of `RANKINGS`.
    components
        The components used, best first.
    """

    kind: str
    by: str
    components: tuple[int, ...]


def rank_components(
    scores: pd.DataFrame, feature: str, *, by: str = "score"
) -> Int[np.ndarray, " c"]:
    """Components from the highest to the lowest score on a feature; the bias is left out.

    Parameters
    ----------
    scores
        Rows of table `scores` of one model.
    feature
        Feature asked for.
    by
        A score column of the table, or `margin`: `score` less the best other feature's.

    Raises
    ------
    DataError
        The table does not have the feature.
    """
    scores = scores[scores["kind"] != "bias"]
    features = list(scores["feature"].unique())
    if feature not in features:
        raise DataError(
            f"no scores for property {feature!r}; {close_matches(feature, features)} "
            "Properties are the keys of `concepts` in the config."
        )
    values = scores.pivot(index="component", columns="feature", values="score")
    if by == "margin":
        others = values.drop(columns=feature)
        ranked = values[feature] - (others.max(axis=1) if len(others.columns) else 0.0)
    else:
        ranked = scores[scores["feature"] == feature].set_index("component")[by]
    return ranked.sort_values(ascending=False, kind="stable").index.to_numpy(dtype=np.int64)


def random_sets(
    components: pd.DataFrame, count: int, draws: int, seed: int
) -> Int[np.ndarray, "r k"]:
    """Random sets of components of the same number, the bias left out: the control.

    Raises
    ------
    DataError
        More components are asked for than the model has.
    """
    choice = components.index[components["kind"] != "bias"].to_numpy()
    if count > len(choice):
        raise DataError(
            f"{count} components are asked for, but the model has {len(choice)} besides the bias"
        )
    rng = np.random.default_rng(seed)
    return np.array([np.sort(rng.choice(choice, size=count, replace=False)) for _ in range(draws)])


def published_way(scores: pd.DataFrame, feature: str, count: int) -> Way:
    """The sum of the `count` components with the highest scores on a feature."""
    return Way("sum", "score", tuple(rank_components(scores, feature)[:count].tolist()))


def candidates(
    scores: pd.DataFrame, feature: str, counts: Sequence[int], kinds: Sequence[str]
) -> list[Way]:
    """Every way to search by a feature: each kind, ranking and number of components."""
    found = []
    for by in RANKINGS:
        ranked = rank_components(scores, feature, by=by).tolist()
        sizes = sorted({min(count, len(ranked)) for count in counts})
        found += [Way(kind, by, tuple(ranked[:size])) for size in sizes for kind in kinds]
    return found


@dataclass(frozen=True)
class Texts:
    """The texts of each feature, as directions of the model.

    Attributes
    ----------
    directions
        Texts pulled back through the maps, from `Maps.directions`.
    columns
        Feature to the columns of its texts.
    """

    directions: Float[np.ndarray, "c d t"]
    columns: Mapping[str, Int[np.ndarray, " t"]]


@dataclass(frozen=True)
class Sums:
    """What sets of components say of some images.

    Attributes
    ----------
    products
        For each feature and set: the products of its summed mapped contributions with the texts.
    mapped
        The whole representation in CLIP space.
    """

    products: Mapping[tuple[str, tuple[int, ...]], Float[np.ndarray, "n t"]]
    mapped: Float[np.ndarray, "n e"]


def take_sums(
    source: ContributionSource,
    index: Int[np.ndarray, " n"],
    texts: Texts,
    sets: Mapping[str, Iterable[tuple[int, ...]]],
    maps: Maps,
    visit: Visit | None = None,
) -> Sums:
    """Products of sets of components with the texts of their feature, in one pass.

    Parameters
    ----------
    source
        Dump of the contributions.
    index
        Images.
    texts
        Texts of every feature.
    sets
        Sets of components of each feature.
    maps
        Maps of the model's components.
    visit
        Is shown every piece of the pass too.
    """
    keys = {feature: list(dict.fromkeys(some)) for feature, some in sets.items()}
    count = len(source.components)
    member = {f: _membership(some, count) for f, some in keys.items()}
    products = {
        (f, one): np.empty((len(index), len(texts.columns[f])), np.float32)
        for f, some in keys.items()
        for one in some
    }
    maps.check(count, source.factors.width)
    directions = Products.of(source.factors, texts.directions)
    each = each_mapped(source, maps)
    mapped = (
        mapped_representation(source, index, maps)
        if each is None
        else np.empty((len(index), len(maps.bias)), dtype=np.float32)
    )

    def work(where: slice, coordinates: Float[np.ndarray, "b r"]) -> None:
        if each is not None:
            mapped[where] = each.total(coordinates) + maps.bias.numpy()
        if visit is not None:
            visit.add(where, coordinates)
        shares = directions.parts(coordinates)
        for feature, some in keys.items():
            part = shares[:, :, texts.columns[feature]]
            summed = member[feature] @ part.reshape(count, -1)
            for one, rows in zip(some, summed, strict=True):
                products[feature, one][where] = rows.reshape(part.shape[1:])

    work_through(source, index, work)
    return Sums(products, mapped)


class Visit:
    """Cosines of images with probes in the unmapped sums of sets of components, piece by piece.

    Parameters
    ----------
    sets
        Sets of components.
    factors
        Bases of the coordinates.
    probes
        Coordinates of the probe images.
    centre
        Mean coordinates over reference images: a component's constant part says nothing of an
        image but would dominate the cosine.
    count
        Images searched.
    """

    def __init__(
        self,
        sets: Sequence[tuple[int, ...]],
        factors: Factors,
        probes: Float[np.ndarray, "q r"],
        centre: Float[np.ndarray, " r"],
        count: int,
    ) -> None:
        self._sets, self._centre = list(sets), centre
        self._summed = [_Summed.of(one, factors) for one in self._sets]
        self._asked = [unit_rows(one.total(probes - centre)) for one in self._summed]
        self._found = np.empty((len(sets), len(probes), count), dtype=np.float32)

    def add(self, where: slice, coordinates: Float[np.ndarray, "b r"]) -> None:
        """Compare the images at the places `where` with the probes."""
        beside = coordinates - self._centre
        for summed, asked, found in zip(self._summed, self._asked, self._found, strict=True):
            rows = summed.total(beside)
            length = np.sqrt(np.einsum("bd,bd->b", rows, rows))
            found[:, where] = asked @ rows.T / np.where(length > 0, length, 1.0)

    def similarity(self, one: tuple[int, ...]) -> Float[np.ndarray, "q n"]:
        """Cosine of every probe with every image in one set."""
        return self._found[self._sets.index(one)]


@dataclass(frozen=True)
class _Summed:
    """The sum of a set of components, from coordinates.

    Attributes
    ----------
    factored
        Columns of the components that have a basis.
    bases
        Their bases, one below the other: one product of all is several times faster than one each.
    whole
        Columns of the components that are stored whole.
    """

    factored: list[slice]
    bases: Float[np.ndarray, "f d"]
    whole: list[slice]

    @classmethod
    def of(cls, components: Sequence[int], factors: Factors) -> _Summed:
        """What a set needs of the bases."""
        bases = {c: rows for c in components if (rows := factors.vectors[c]) is not None}
        nothing = np.zeros((0, factors.width), dtype=np.float32)
        return cls(
            [factors.slices[c] for c in bases],
            np.concatenate([nothing, *bases.values()]),
            [factors.slices[c] for c in components if c not in bases],
        )

    def total(self, coordinates: Float[np.ndarray, "b r"]) -> Float[np.ndarray, "b d"]:
        """Sum over the set for each image."""
        nothing = coordinates[:, :0]
        rows = np.concatenate([nothing, *(coordinates[:, s] for s in self.factored)], axis=1)
        found = rows @ self.bases
        for columns in self.whole:
            found += coordinates[:, columns]
        return found


def contrast(
    products: Float[np.ndarray, "n t"], reference: Float[np.ndarray, "m t"]
) -> Float[np.ndarray, "n t"]:
    """Products with the texts of a feature as unit vectors: which of the texts, not how much.

    The mean over the texts is taken off, and the mean over the reference images' products.
    """
    centred = products - products.mean(axis=1, keepdims=True)
    usual = reference - reference.mean(axis=1, keepdims=True)
    return unit_rows(centred - usual.mean(axis=0))


def unit_rows(rows: Float[np.ndarray, "*s d"]) -> Float[np.ndarray, "*s d"]:
    """Rows scaled to length 1; rows of zeros stay zero."""
    norm = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norm > 0, norm, 1.0)


def _membership(sets: Sequence[tuple[int, ...]], count: int) -> Float[np.ndarray, "s c"]:
    member = np.zeros((len(sets), count), dtype=np.float32)
    for row, chosen in enumerate(sets):
        member[row, list(chosen)] = 1.0
    return member
