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
import torch
from jaxtyping import Float, Int

from pipeline_lib.errors import DataError, close_matches
from pipeline_lib.mapped import mapped_representation, maps_on_coordinates
from pipeline_lib.maps import Maps
from pipeline_lib.passes import ContributionSource, read_both

#: How components are ranked: by their score on the property, or by how far it exceeds their best
#: score on another one.
RANKINGS = ("score", "margin")


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
    whole = _Whole(source, index, maps)
    directions = torch.from_numpy(np.ascontiguousarray(texts.directions))
    maps.check(count, texts.directions.shape[1])
    for where, values, coordinates in read_both(source, index):
        whole.add(where, values, coordinates)
        if visit is not None:
            visit.add(where, values)
        data = torch.from_numpy(values).transpose(0, 1)
        shares = torch.bmm(data, directions).numpy()  # [c, b, t]
        for feature, some in keys.items():
            part = shares[:, :, texts.columns[feature]]
            summed = member[feature] @ part.reshape(count, -1)
            for one, rows in zip(some, summed, strict=True):
                products[feature, one][where] = rows.reshape(part.shape[1:])
    return Sums(products, whole.mapped)


class Visit:
    """Cosines of images with probes in the unmapped sums of sets of components, piece by piece.

    Parameters
    ----------
    sets
        Sets of components.
    probes
        Contributions of the probe images.
    centre
        Mean contributions over reference images: a component's constant part says nothing of an
        image but would dominate the cosine.
    count
        Images searched.
    """

    def __init__(
        self,
        sets: Sequence[tuple[int, ...]],
        probes: Float[np.ndarray, "q c d"],
        centre: Float[np.ndarray, "c d"],
        count: int,
    ) -> None:
        self._member = _membership(sets, len(centre))
        self._centre = self._member @ centre
        self._sets = list(sets)
        self._asked = self._vectors(probes)
        self._found = np.empty((len(sets), len(probes), count), dtype=np.float32)

    def add(self, where: slice, values: Float[np.ndarray, "b c d"]) -> None:
        """Compare the images at the places `where` with the probes."""
        if self._sets:
            self._found[:, :, where] = self._asked @ self._vectors(values).transpose(0, 2, 1)

    def similarity(self, one: tuple[int, ...]) -> Float[np.ndarray, "q n"]:
        """Cosine of every probe with every image in one set."""
        return self._found[self._sets.index(one)]

    def _vectors(self, values: Float[np.ndarray, "b c d"]) -> Float[np.ndarray, "s b d"]:
        used = np.flatnonzero(self._member.any(axis=0))
        few = np.ascontiguousarray(values[:, used].transpose(1, 0, 2))
        summed = self._member[:, used] @ few.reshape(len(used), few.shape[1] * few.shape[2])
        rows = summed.reshape(len(self._sets), *few.shape[1:])
        return unit_rows(rows - self._centre[:, None])


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


class _Whole:
    """The mapped representation of some images, without a pass where one map serves all."""

    def __init__(
        self, source: ContributionSource, index: Int[np.ndarray, " n"], maps: Maps
    ) -> None:
        self._maps = maps
        self._each = maps.weights is not None and len(maps.weights) > 1
        self._blocks = maps_on_coordinates(source, maps)
        if self._each:
            self.mapped = np.empty((len(index), len(maps.bias)), dtype=np.float32)
        else:
            self.mapped = mapped_representation(source, index, maps)

    def add(
        self,
        where: slice,
        values: Float[np.ndarray, "b c d"],
        coordinates: Float[np.ndarray, "b r"] | None,
    ) -> None:
        if self._each and self._blocks is not None and coordinates is not None:
            found = torch.from_numpy(coordinates) @ self._blocks + self._maps.bias
            self.mapped[where] = found.numpy()
        elif self._each:
            self.mapped[where] = self._maps.apply_total(torch.from_numpy(values)).numpy()
