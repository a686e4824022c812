"""Searching a dump by one property: the images nearest to a text, or to any probe image.

How well a way searches is measured in `retrieval`; here one way answers one question.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from pipeline_lib.errors import DataError, close_matches
from pipeline_lib.maps import Maps
from pipeline_lib.passes import ContributionSource, Held, hold
from pipeline_lib.retrieval_truth import stacked
from pipeline_lib.retrieval_ways import (
    COMPONENTS,
    Way,
    contrast,
    published_way,
    rank_components,
    unit_rows,
)

#: Images compared at once.
_ROWS = 512


def concepts_of(texts: pd.DataFrame, feature: str) -> pd.DataFrame:
    """Texts of a feature among the rows of table `text_features`."""
    return texts[(texts["use"] == "concept") & (texts["feature"] == feature)]


def way_to_search(
    scores: pd.DataFrame,
    choices: pd.DataFrame | None,
    query: str,
    feature: str,
    components: int | None = None,
) -> Way:
    """The way that a run has chosen for a feature; the published one where there is no choice.

    Parameters
    ----------
    scores, choices
        Rows of tables `scores` and `retrieval_choices` of the model; None where there are none.
    query
        `text` or `image`.
    feature
        Property.
    components
        Number of components of the published way, where the question names it.
    """
    if components is None and choices is not None:
        rows = choices[choices["chosen"] & (choices["query"] == query)]
        for row in rows[rows["feature"] == feature].itertuples():
            ranked = rank_components(scores, feature, by=row.by).tolist()
            return Way(row.way, row.by, tuple(ranked[: row.components]))
    return published_way(scores, feature, components or COMPONENTS)


def similarities(
    source: ContributionSource,
    maps: Maps,
    concepts: pd.DataFrame,
    way: Way,
    held: Held,
    *,
    text: str | None = None,
    probe: Float[np.ndarray, "c d"] | None = None,
) -> Float[np.ndarray, " n"]:
    """Similarity of every image of a dump to a text of a feature, or to a probe image.

    Parameters
    ----------
    source
        Dump of the contributions.
    maps
        Maps of the model's components.
    concepts
        Texts of the feature, from `concepts_of`.
    way
        The components, and how they are compared.
    held
        Reference images.
    text
        One of the feature's texts.
    probe
        Contributions of the probe image, which need not be an image of the dump.

    Raises
    ------
    DataError
        Not exactly one of text and probe is given, or the text is none of the feature's.
    """
    if (text is None) == (probe is None):
        raise DataError("ask either by a text or by an image: give one of the two")
    names, used = [str(name) for name in concepts["text"]], list(way.components)
    if text is not None and text not in names:
        feature = concepts["feature"].iloc[0]
        raise DataError(f"{text!r} is no text of {feature!r}; {close_matches(text, names)}")
    vectors = torch.from_numpy(stacked(concepts["embedding"]))
    directions = maps.directions(vectors, len(source.components)).numpy()[used]
    usual = held.contributions(np.arange(len(held.values)), used)
    centre, reference = usual.mean(axis=0), _products(usual, directions)

    def seen(values: Float[np.ndarray, "b k d"]) -> Float[np.ndarray, "b t"]:
        """What images are compared by."""
        if way.kind == "subspace":
            return contrast(_products(values, directions), reference)
        if probe is not None:
            return unit_rows((values - centre).sum(axis=1))
        return _products(values, directions)

    index = np.arange(len(source.manifest))
    parts = [index[start : start + _ROWS] for start in range(0, len(index), _ROWS)]
    found = np.concatenate([seen(source.contributions(part, used)) for part in parts])
    return found[:, names.index(str(text))] if probe is None else found @ seen(probe[None, used])[0]


def nearest(
    manifest: pd.DataFrame, similarity: Float[np.ndarray, " n"], count: int
) -> pd.DataFrame:
    """Columns `image_id`, `path` and `score` of the most similar images, the best first."""
    first = np.argsort(-similarity, kind="stable")[:count]
    found = manifest.iloc[first][["image_id", "path"]].reset_index(drop=True)
    return found.assign(score=similarity[first].astype(float))


def alike(
    source: ContributionSource,
    maps: Maps,
    texts: pd.DataFrame,
    scores: pd.DataFrame,
    choices: pd.DataFrame,
    probe: Float[np.ndarray, "c d"],
    *,
    components: int | None,
    count: int,
    seed: int,
) -> pd.DataFrame:
    """Images like a probe image, property by property: rows of table `retrieval_probes`.

    Parameters
    ----------
    source, maps, probe
        As for `similarities`.
    texts, scores, choices
        Tables `text_features`, `scores` and `retrieval_choices` of the model.
    components
        Components of a property; None for what was chosen.
    count
        Images of each property.
    seed
        Of the reference images.
    """
    held, tables = hold(source, np.arange(len(source.manifest)), seed), []
    for feature in dict.fromkeys(scores["feature"]):
        concepts = concepts_of(texts, feature)
        way = way_to_search(scores, choices, "image", feature, components)
        found = similarities(source, maps, concepts, way, held, probe=probe)
        first = nearest(source.manifest, found, count)
        facts = {"feature": feature, "way": way.kind, "components": len(way.components)}
        tables.append(first.assign(**facts, rank=np.arange(len(first))))
    return pd.concat(tables, ignore_index=True)


def _products(
    values: Float[np.ndarray, "b k d"], directions: Float[np.ndarray, "k d t"]
) -> Float[np.ndarray, "b t"]:
    return np.einsum("bkd,kdt->bt", values, directions, optimize=True)
