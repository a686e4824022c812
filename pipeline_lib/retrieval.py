"""Retrieval by one property: images ranked by the components that carry it, and how well.

By text, the mapped contributions of the components that score highest on a feature are compared
with the text; by image, their unmapped contributions with those of a probe image. Which components
carry what is measured in `scores`; the maps to CLIP space are fitted in `maps`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from pipeline_lib.errors import DataError, close_matches
from pipeline_lib.maps import Maps
from pipeline_lib.passes import ContributionSource, batches, mean_contributions

logger = logging.getLogger(__name__)


#: Random sets of components over which the control is averaged.
RANDOM_DRAWS = 5

#: Labels that count as near to a probe's where every image has a label of its own.
NEIGHBOURS = 10

#: Columns of the manifest that say nothing of what a picture shows.
_MANIFEST_ONLY = frozenset({"row", "image_id", "path", "active", "sha256", "mask", "split"})

METRIC_COLUMNS = (
    ["query", "feature", "measured", "method"]  # what is asked, measured, and how
    + ["components", "k", "precision", "queries", "n"]
)


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


def text_similarity(
    source: ContributionSource,
    index: Int[np.ndarray, " n"],
    directions: Float[np.ndarray, "c d t"],
    member: Bool[np.ndarray, "s c t"],
) -> Float[np.ndarray, "s t n"]:
    """Sum of the mapped contributions' inner products with each text, for sets of components.

    Parameters
    ----------
    source
        Dump of the contributions.
    index
        Images to search.
    directions
        Texts pulled back through the maps, from `Maps.directions`.
    member
        Which components are summed for each text, in each of `s` sets.

    Notes
    -----
    Centring the contributions over images would subtract a constant per text and leave every
    ranking as it is, so it is not done.
    """
    count, width, texts = directions.shape
    result = np.empty((len(member), texts, len(index)), dtype=np.float32)
    weights = member.astype(np.float32)
    start = 0
    for batch in batches(index, count, width):
        data = torch.from_numpy(source.contributions(batch)).transpose(0, 1)
        shares = torch.bmm(data, torch.from_numpy(directions)).numpy()  # [c, b, t]
        stop = start + len(batch)
        result[:, :, start:stop] = np.einsum("cbt,sct->stb", shares, weights, optimize=True)
        start = stop
    return result


def image_similarity(
    source: ContributionSource,
    index: Int[np.ndarray, " n"],
    probes: Int[np.ndarray, " q"],
    sets: Sequence[Int[np.ndarray, " k"]],
) -> Float[np.ndarray, "s q n"]:
    """Cosine between images and probes in the summed contributions of each set of components.

    Parameters
    ----------
    source
        Dump of the contributions.
    index
        Images to search, as positions in the dump.
    probes
        Probe images, as positions in `index`.
    sets
        Sets of components; each is summed over its components.

    Notes
    -----
    Contributions are unmapped, and centred on the mean of the images searched: a component's
    constant part says nothing of an image but would dominate the cosine.
    """
    used = sorted({int(c) for chosen in sets for c in chosen})
    place = {component: i for i, component in enumerate(used)}
    member = np.zeros((len(sets), len(used)), dtype=np.float32)
    for row, chosen in enumerate(sets):
        member[row, [place[int(c)] for c in chosen]] = 1.0
    means = mean_contributions(source, index, used)

    def vectors(batch: Int[np.ndarray, " b"]) -> Float[np.ndarray, "s b d"]:
        summed = np.matmul(member, source.contributions(batch, used)) - member @ means
        return unit_rows(summed.transpose(1, 0, 2))

    asked = np.concatenate(
        [vectors(batch) for batch in batches(index[probes], *means.shape)], axis=1
    )
    found = [asked @ vectors(b).transpose(0, 2, 1) for b in batches(index, *means.shape)]
    return np.concatenate(found, axis=2)


def unit_rows(rows: Float[np.ndarray, "*s d"]) -> Float[np.ndarray, "*s d"]:
    """Rows scaled to length 1; rows of zeros stay zero."""
    norm = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norm > 0, norm, 1.0)


def ranking(
    similarity: Float[np.ndarray, "q n"], count: int, leave_out: Int[np.ndarray, " q"] | None = None
) -> Int[np.ndarray, "q m"]:
    """Positions of the `count` most similar images of each query, best first.

    Parameters
    ----------
    similarity
        Similarity of each query to each image.
    count
        Images to retrieve per query.
    leave_out
        One image per query that is not retrieved: the probe, which always finds itself first.

    Raises
    ------
    DataError
        Fewer images are searched than asked for.
    """
    available = similarity.shape[1] - (leave_out is not None)
    if count > available:
        raise DataError(
            f"{count} images are asked for, but only {available} are searched; "
            "lower `k` or use more images"
        )
    if leave_out is not None:
        similarity = similarity.copy()
        similarity[np.arange(len(similarity)), leave_out] = -np.inf
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]


def precision_at(ranks: Int[np.ndarray, "q m"], relevant: Bool[np.ndarray, "q n"], k: int) -> float:
    """Mean over queries of the share of relevant images among the first `k`, 0 to 1."""
    return float(np.take_along_axis(relevant, ranks[:, :k], axis=1).mean())


@dataclass(frozen=True)
class SearchSetting:
    """What both kinds of retrieval share.

    Attributes
    ----------
    index
        Images searched, as positions in the dump.
    sets
        Components of each feature, best first, all sets of one size.
    random
        Random sets of that size, the control.
    ks
        Numbers of images retrieved at which precision is taken.
    shown
        Images per query in the table of examples.
    """

    index: Int[np.ndarray, " n"]
    sets: Mapping[str, Int[np.ndarray, " k"]]
    random: Int[np.ndarray, "r k"]
    ks: tuple[int, ...]
    shown: int = 8

    @property
    def depth(self) -> int:
        """Images to rank per query."""
        return max(*self.ks, self.shown)


def by_text(
    source: ContributionSource,
    setting: SearchSetting,
    texts: pd.DataFrame,
    maps: Maps,
    clip: tuple[Float[np.ndarray, "n e2"], Float[np.ndarray, "t e2"]] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Precision of retrieval by text and its baselines, and the first images of some queries.

    Parameters
    ----------
    source
        Dump of the contributions.
    setting
        What is searched, with which components.
    texts
        Rows of table `text_features`: `feature`, `text`, `embedding`; features of `setting` only.
        A text is judged against the column of its feature's name; where there is none, against
        the first column in which one of the feature's texts is a value (such as the label). Texts
        that no image has are left out, which is logged.
    maps
        Maps of the model's components to the CLIP space of the texts.
    clip
        The reference CLIP's embeddings of the images searched and of the same texts.

    Returns
    -------
    tuple
        Rows of tables `retrieval` and `retrieval_examples`, without model and data set.

    Notes
    -----
    Baselines: cosine of the whole mapped representation to the text; random components; the
    reference CLIP's own cosine; chance, the share of images that have the property.
    """
    texts = texts[texts["feature"].isin(list(setting.sets))].reset_index(drop=True)
    manifest = source.manifest.iloc[setting.index]
    columns = {name: _column_of(manifest, name, texts) for name in setting.sets}
    relevant = _has_text(manifest, texts, columns)
    vectors = _rows(texts["embedding"])
    mapped = _mapped_representation(source, setting.index, maps)
    directions = maps.directions(torch.from_numpy(vectors), len(source.components)).numpy()
    similar: dict[str, list[Float[np.ndarray, "t n"]]] = {}
    members = _text_members(texts, setting, len(source.components))
    found = text_similarity(source, setting.index, directions, members)
    similar["components"], similar["random"] = [found[0]], list(found[1:])
    similar["representation"] = [vectors @ unit_rows(mapped).T]
    if clip is not None:
        similar["clip"] = [clip[1] @ unit_rows(clip[0]).T]
    metrics, examples = [], []
    for feature in setting.sets:
        rows = np.flatnonzero((texts["feature"] == feature).to_numpy())
        judged = rows[relevant[rows].any(axis=1)]
        _log_unjudged(feature, texts["text"].to_numpy()[np.setdiff1d(rows, judged)])
        for method, draws in similar.items():
            ranked = [ranking(draw[rows], setting.depth) for draw in draws]
            chosen = np.isin(rows, judged)
            if len(judged):
                metrics += _metric_rows(
                    ("text", feature, columns[feature] or feature, method),
                    [ranks[chosen] for ranks in ranked],
                    relevant[judged],
                    setting,
                )
            if method != "random" and len(rows):
                truth = relevant[rows] if len(judged) else None
                examples += _example_rows(
                    ("text", feature, method),
                    [str(name) for name in texts["text"].to_numpy()[rows]],
                    ranked[0],
                    draws[0][rows],
                    truth,
                    source.manifest["image_id"].to_numpy()[setting.index],
                    setting.shown,
                )
        if len(judged):
            key = ("text", feature, columns[feature] or feature)
            metrics += _chance_rows(key, relevant[judged], setting)
    return pd.DataFrame(metrics), pd.DataFrame(examples)


def by_image(
    source: ContributionSource,
    setting: SearchSetting,
    probes: Int[np.ndarray, " q"],
    relevant: Mapping[str, Bool[np.ndarray, "q n"]],
    clip: Float[np.ndarray, "n e"] | None = None,
    *,
    examples_per_feature: int = 1,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Precision of retrieval by image on the asked property and on the others, with baselines.

    Parameters
    ----------
    source
        Dump of the contributions.
    setting
        What is searched, with which components.
    probes
        Probe images, as positions in `setting.index`; each is left out of what it retrieves.
    relevant
        Property to the images that have the same value of it as each probe, from `same_values`.
        Precision on the asked property should be high, on the others (leakage) near chance.
    clip
        The reference CLIP's embeddings of the images searched.
    examples_per_feature
        Probes per feature in the table of examples.

    Returns
    -------
    tuple
        Rows of tables `retrieval` and `retrieval_examples`, without model and data set.
    """
    sets = [*setting.sets.values(), *setting.random]
    found = image_similarity(source, setting.index, probes, sets)
    shared = {"random": list(found[len(setting.sets) :])}
    shared["representation"] = [_cosine(source.representation(setting.index), probes)]
    if clip is not None:
        shared["clip"] = [_cosine(clip, probes)]
    ranked = {
        method: [ranking(draw, setting.depth, probes) for draw in draws]
        for method, draws in shared.items()
    }
    metrics, examples = [], []
    ids = source.manifest["image_id"].to_numpy()[setting.index]
    for row, feature in enumerate(setting.sets):
        own = {"components": [ranking(found[row], setting.depth, probes)]}
        for name, truth in relevant.items():
            for method, ranks in {**own, **ranked}.items():
                metrics += _metric_rows(("image", feature, name, method), ranks, truth, setting)
            metrics += _chance_rows(("image", feature, name), truth, setting, without_probe=True)
        first = slice(row * examples_per_feature, (row + 1) * examples_per_feature)
        for method, similar in (("components", [found[row]]), *shared.items()):
            if method != "random":
                examples += _example_rows(
                    ("image", feature, method),
                    [str(name) for name in ids[probes[first]]],
                    {**own, **ranked}[method][0][first],
                    similar[0][first],
                    relevant[feature][first] if feature in relevant else None,
                    ids,
                    setting.shown,
                )
    return pd.DataFrame(metrics), pd.DataFrame(examples)


def retrieve(
    source: ContributionSource,
    maps: Maps,
    scores: pd.DataFrame,
    texts: pd.DataFrame,
    index: Int[np.ndarray, " n"],
    *,
    components: int,
    ks: Sequence[int],
    queries: int,
    seed: int,
    shown: int = 8,
    clip: tuple[Float[np.ndarray, "n e"], pd.DataFrame] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Retrieval by text and by image for every feature that has scores.

    Parameters
    ----------
    source
        Dump of the contributions.
    maps
        Maps of the model's components.
    scores
        Rows of table `scores` of the model: which components carry which feature.
    texts
        Rows of table `text_features` of the space that `maps` lead to.
    index
        Images searched; best ones that neither maps nor scores have seen.
    components
        Components used for a feature: its highest scores.
    ks
        Numbers of images retrieved at which precision is taken.
    queries
        Probe images, drawn from those searched.
    seed
        Of the probes and of the random components.
    shown
        Images per query in the table of examples.
    clip
        The reference CLIP's embeddings of the images searched, and its own table of texts.

    Returns
    -------
    tuple
        Rows of tables `retrieval` and `retrieval_examples`, without model and data set.

    Notes
    -----
    A feature is judged where the manifest has a column of its name; by image, precision is also
    measured on the other such columns, which a query by one property should not follow. Where
    there is none, but every image has a label of its own, `label_neighbours` is measured.
    """
    features = [str(name) for name in dict.fromkeys(scores["feature"])]
    setting = SearchSetting(
        index=index,
        sets={name: rank_components(scores, name)[:components] for name in features},
        random=random_sets(source.components, components, RANDOM_DRAWS, seed),
        ks=tuple(ks),
        shown=min(shown, len(index) - 1),
    )
    manifest = source.manifest.iloc[index]
    known = [n for n in features if n in manifest.columns and manifest[n].notna().any()]
    concepts = texts[(texts["use"] == "concept") & texts["feature"].isin(features)]
    text_clip = None if clip is None else (clip[0], _same_texts(concepts, clip[1]))
    tables = [by_text(source, setting, concepts, maps, text_clip)]
    probes = choose_probes(manifest, known, queries, seed)
    relevant = same_values(manifest, known, probes)
    neighbours = None if known else label_neighbours(manifest, texts, probes)
    if neighbours is not None:
        relevant["label_neighbours"] = neighbours
    if not relevant:
        logger.warning("no feature is a column of the manifest: images are shown, not judged")
    tables += [by_image(source, setting, probes, relevant, None if clip is None else clip[0])]
    metrics, examples = (pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True))
    return metrics.reindex(columns=METRIC_COLUMNS), examples


def same_values(
    manifest: pd.DataFrame, properties: Sequence[str], probes: Int[np.ndarray, " q"]
) -> dict[str, Bool[np.ndarray, "q n"]]:
    """For each property, which images have the same value of it as each probe.

    Raises
    ------
    DataError
        A property is not a column of the manifest.
    """
    _check_properties(manifest, properties)
    result = {}
    for name in properties:
        values = manifest[name].to_numpy(dtype=object)
        result[name] = (values[probes][:, None] == values) & manifest[name].notna().to_numpy()
    return result


def label_neighbours(
    manifest: pd.DataFrame, texts: pd.DataFrame, probes: Int[np.ndarray, " q"]
) -> Bool[np.ndarray, "q n"] | None:
    """Images whose label is among the nearest to each probe's, by the text embeddings of labels.

    The truth where every image has a label of its own and no other property is known: the
    `NEIGHBOURS` labels nearest to the probe's, out of those that occur. None where labels repeat,
    or have no embedding.
    """
    classes = texts[texts["use"] == "class"].drop_duplicates("text").set_index("text")["embedding"]
    labels = manifest["label"] if "label" in manifest.columns else pd.Series(dtype=object)
    alone = labels.notna().all() and labels.is_unique and labels.isin(classes.index).all()
    if not alone or len(labels) <= NEIGHBOURS + 1:
        return None
    vectors = unit_rows(_rows(classes.loc[labels]))
    near = ranking(vectors[probes] @ vectors.T, NEIGHBOURS, leave_out=probes)
    result = np.zeros((len(probes), len(labels)), dtype=bool)
    np.put_along_axis(result, near, True, axis=1)
    result[np.arange(len(probes)), probes] = True
    return result


def choose_probes(
    manifest: pd.DataFrame, properties: Sequence[str], count: int, seed: int
) -> Int[np.ndarray, " q"]:
    """Positions of `count` random images of a manifest that have all the properties."""
    _check_properties(manifest, properties)
    usable = np.flatnonzero(manifest[list(properties)].notna().all(axis=1).to_numpy())
    if len(usable) == 0:
        raise DataError(f"no image has a value for every property of {list(properties)}")
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(usable, size=min(count, len(usable)), replace=False))


def _check_properties(manifest: pd.DataFrame, properties: Sequence[str]) -> None:
    unknown = [name for name in properties if name not in manifest.columns]
    if unknown:
        raise DataError(
            f"unknown property {unknown[0]!r}: the manifest has no such column; "
            f"{close_matches(unknown[0], map(str, manifest.columns))}"
        )


def _rows(embeddings: pd.Series) -> Float[np.ndarray, "t e"]:
    return np.stack([np.asarray(row, dtype=np.float32) for row in embeddings])


def _same_texts(texts: pd.DataFrame, others: pd.DataFrame) -> Float[np.ndarray, "t e"]:
    """Embeddings in another table of the same concepts, in the same order."""
    other = others[others["use"] == "concept"].set_index(["feature", "text"])["embedding"]
    wanted = list(zip(texts["feature"], texts["text"], strict=True))
    missing = [key for key in wanted if key not in other.index]
    if missing:
        raise DataError(
            f"the reference's texts lack {missing[0][1]!r} of {missing[0][0]!r}; run snakemake to "
            "make them anew"
        )
    return _rows(other.loc[wanted])


def _column_of(manifest: pd.DataFrame, feature: str, texts: pd.DataFrame) -> str | None:
    """Column whose values tell whether an image has a text of a feature."""
    if feature in manifest.columns:
        return feature
    wanted = texts.loc[texts["feature"] == feature, "text"]
    own = [name for name in manifest.columns if name not in _MANIFEST_ONLY]
    return next((name for name in own if manifest[name].isin(wanted).any()), None)


def _has_text(
    manifest: pd.DataFrame, texts: pd.DataFrame, columns: Mapping[str, str | None]
) -> Bool[np.ndarray, "t n"]:
    """Which images have which text as their value in the column of the text's feature."""
    result = np.zeros((len(texts), len(manifest)), dtype=bool)
    for row, (feature, text) in enumerate(zip(texts["feature"], texts["text"], strict=True)):
        column = columns[str(feature)]
        if column is not None:
            result[row] = (manifest[column] == text).to_numpy(dtype=bool, na_value=False)
    return result


def _text_members(
    texts: pd.DataFrame, setting: SearchSetting, components: int
) -> Bool[np.ndarray, "s c t"]:
    member = np.zeros((1 + len(setting.random), components, len(texts)), dtype=bool)
    for column, feature in enumerate(texts["feature"]):
        member[0, setting.sets[feature], column] = True
    for row, chosen in enumerate(setting.random, start=1):
        member[row, chosen] = True
    return member


def _mapped_representation(
    source: ContributionSource, index: Int[np.ndarray, " n"], maps: Maps
) -> Float[np.ndarray, "n e"]:
    first = source.contributions(index[:1])
    pieces = [
        maps.apply_total(torch.from_numpy(source.contributions(batch))).numpy()
        for batch in batches(index, *first.shape[1:])
    ]
    return np.concatenate(pieces)


def _cosine(
    rows: Float[np.ndarray, "n d"], probes: Int[np.ndarray, " q"]
) -> Float[np.ndarray, "q n"]:
    centred = unit_rows(rows - rows.mean(axis=0))
    return centred[probes] @ centred.T


def _metric_rows(
    key: tuple[str, str, str, str],
    ranked: Sequence[Int[np.ndarray, "q m"]],
    relevant: Bool[np.ndarray, "q n"],
    setting: SearchSetting,
) -> list[dict[str, object]]:
    query, feature, measured, method = key
    used = {"components": len(setting.sets[feature]), "random": setting.random.shape[1]}
    return [
        {
            "query": query,
            "feature": feature,
            "measured": measured,
            "method": method,
            "components": used.get(method, 0),
            "k": k,
            "precision": float(np.mean([precision_at(ranks, relevant, k) for ranks in ranked])),
            "queries": len(relevant),
            "n": relevant.shape[1],
        }
        for k in setting.ks
    ]


def _chance_rows(
    key: tuple[str, str, str],
    relevant: Bool[np.ndarray, "q n"],
    setting: SearchSetting,
    without_probe: bool = False,
) -> list[dict[str, object]]:
    """What a random order of the images gives, at any `k`."""
    hits = relevant.sum(axis=1) - without_probe
    chance = float(np.mean(hits / (relevant.shape[1] - without_probe)))
    rows = _metric_rows((*key, "chance"), [np.zeros((len(relevant), 1), int)], relevant, setting)
    return [{**row, "precision": chance} for row in rows]


def _example_rows(
    key: tuple[str, str, str],
    names: Sequence[str],
    ranks: Int[np.ndarray, "q m"],
    similarity: Float[np.ndarray, "q n"],
    relevant: Bool[np.ndarray, "q n"] | None,
    image_ids: np.ndarray,
    shown: int,
) -> list[dict[str, object]]:
    query, feature, method = key
    return [
        {
            "query": query,
            "feature": feature,
            "probe": name,
            "method": method,
            "rank": rank,
            "image_id": str(image_ids[image]),
            "score": float(similarity[row, image]),
            "correct": None if relevant is None else bool(relevant[row, image]),
        }
        for row, name in enumerate(names)
        for rank, image in enumerate(ranks[row, :shown])
    ]


def _log_unjudged(feature: str, texts: Sequence[str]) -> None:
    if len(texts):
        logger.warning(
            "retrieval by text: no image has %s = %s; not judged", feature, ", ".join(texts)
        )
