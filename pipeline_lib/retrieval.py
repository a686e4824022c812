"""Retrieval by one property: images ranked by the components that carry it, and how well.

By text, the mapped contributions of a feature's components are compared with the text; by image,
their contributions with those of a probe image; by phrase, with a text that names another property
too. Ways to compare, and which components are used, are
in `retrieval_ways`, what is right in `retrieval_truth`, what is counted in `retrieval_metrics`;
here a way is chosen for each feature on images to choose on, and all methods are measured on the
images searched.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from pipeline_lib.maps import Maps
from pipeline_lib.passes import ContributionSource, Held, hold
from pipeline_lib.retrieval_metrics import (
    Found,
    chance_rows,
    example_rows,
    metric_rows,
    precisions,
    ranking,
)
from pipeline_lib.retrieval_truth import (
    choose_probes,
    column_of,
    has_text,
    label_neighbours,
    same_texts,
    same_values,
    stacked,
)
from pipeline_lib.retrieval_ways import (
    COMPONENTS,
    Sums,
    Texts,
    Visit,
    Way,
    candidates,
    contrast,
    published_way,
    random_sets,
    take_sums,
    unit_rows,
)
from pipeline_lib.truths import known_factors

logger = logging.getLogger(__name__)

#: Random sets of components over which the control is averaged.
RANDOM_DRAWS = 5

#: Images retrieved when ways are compared, where so many are searched.
CHOOSE_AT = 10

#: Probe images on which ways are compared.
CHOOSE_QUERIES = 100

CHOICE_COLUMNS = ["query", "feature", "way", "by", "components", "precision"]
CHOICE_COLUMNS += ["queries", "n", "chosen"]

#: Methods whose first images are shown.
EXAMPLES = ("components", "representation", "clip")


@dataclass(frozen=True)
class Asked:
    """What is asked of retrieval.

    Attributes
    ----------
    ks
        Numbers of images retrieved at which precision is taken.
    queries
        Probe images, drawn from those searched.
    components
        Components of a feature, the published way; None to choose way and number.
    counts
        Numbers of components to choose from.
    seed
        Of probes, images to choose on and random components.
    shown
        Images per query in the table of examples.
    """

    ks: tuple[int, ...] = (1, 5, 10)
    queries: int = 50
    components: int | None = None
    counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    seed: int = 0
    shown: int = 8


@dataclass(frozen=True)
class Retrieved:
    """Rows of tables `retrieval`, `retrieval_examples` and `retrieval_choices`, without names."""

    table: pd.DataFrame
    examples: pd.DataFrame
    choices: pd.DataFrame


@dataclass(frozen=True)
class Clip:
    """The reference CLIP's embeddings of the images searched, and of the same texts."""

    images: Float[np.ndarray, "n e"]
    texts: Float[np.ndarray, "t e"]


def retrieve(
    source: ContributionSource,
    maps: Maps,
    scores: pd.DataFrame,
    texts: pd.DataFrame,
    index: Int[np.ndarray, " n"],
    choose_on: Int[np.ndarray, " m"],
    asked: Asked,
    *,
    clip: tuple[Float[np.ndarray, "n e"], pd.DataFrame] | None = None,
) -> Retrieved:
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
    choose_on
        Images to choose ways on, and whose mean is taken off; other ones than `index`.
    asked
        What is asked.
    clip
        The reference CLIP's embeddings of the images searched, and its own table of texts.

    Notes
    -----
    A feature is judged where the data set has a factor of its name; by image, precision is also
    measured on the other such factors (leakage), which a query by one property should not follow.
    Where there is none, but every image has a label of its own, `label_neighbours` is measured.
    Baselines: the whole representation, also in the feature's subspace; random components in the
    same way and number; the published way with its own best number; the reference CLIP; chance.
    """
    search = _Search(source, maps, scores, texts, asked)
    held = hold(source, choose_on, asked.seed)
    ways, choices = search.choose(held)
    manifest = source.manifest.iloc[index]
    known = search.known(manifest)
    probes = choose_probes(manifest, known, asked.queries, asked.seed)
    plan = search.plan(ways)
    sums = search.run(source, index, plan.text_sets, plan.image_sets, held, probes)
    usual = search.run(held, np.arange(len(held.values)), plan.text_sets, [], held, probes[:0])
    views = _Views(search, sums, usual, plan)
    compared = None if clip is None else Clip(clip[0], same_texts(search.concepts, clip[1]))
    relevant = same_values(manifest, known, probes)
    neighbours = None if known else label_neighbours(manifest, texts, probes)
    if neighbours is not None:
        relevant["label_neighbours"] = neighbours
    if not relevant:
        logger.warning("no feature is a factor of the images: they are shown, not judged")
    whole = source.representation(index)
    tables = [
        views.by_text(manifest, compared),
        views.by_image(manifest, probes, relevant, whole, compared),
    ]
    metrics, examples = (pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True))
    phrases = views.by_phrase(manifest, known, compared)
    return Retrieved(pd.concat([metrics, phrases], ignore_index=True), examples, choices)


@dataclass(frozen=True)
class _Plan:
    """The ways that are measured, and the sets of components that they need."""

    text: Mapping[str, Mapping[str, list[Way]]]
    image: Mapping[str, Mapping[str, list[Way]]]
    text_sets: Mapping[str, list[tuple[int, ...]]]
    image_sets: list[tuple[int, ...]]


@dataclass(frozen=True)
class _Found:
    """Sums of sets of components over some images, and their cosines with the probes."""

    sums: Sums
    visit: Visit


class _Search:
    """A model's components and texts, and what may be asked of them."""

    def __init__(
        self,
        source: ContributionSource,
        maps: Maps,
        scores: pd.DataFrame,
        texts: pd.DataFrame,
        asked: Asked,
    ) -> None:
        self.asked, self.maps, self.scores = asked, maps, scores
        self.components = source.components
        self.features = [str(name) for name in dict.fromkeys(scores["feature"])]
        of_concepts = (texts["use"] == "concept") & texts["feature"].isin(self.features)
        self.concepts = texts[of_concepts].reset_index(drop=True)
        self.vectors = stacked(self.concepts["embedding"])
        maps.check(len(source.components), source.representation(np.arange(1)).shape[1])
        directions = maps.directions(torch.from_numpy(self.vectors), len(source.components))
        columns = {
            name: np.flatnonzero((self.concepts["feature"] == name).to_numpy())
            for name in self.features
        }
        self.texts = Texts(directions.numpy(), columns)

    def known(self, manifest: pd.DataFrame) -> list[str]:
        """Features that are factors of the images, and known of some."""
        return [n for n in known_factors(manifest, self.features) if manifest[n].notna().any()]

    def kinds(self, feature: str) -> tuple[str, ...]:
        """Ways that make sense: one text alone spans no subspace to compare in."""
        return ("sum", "subspace") if len(self.texts.columns[feature]) > 1 else ("sum",)

    def truth(
        self, manifest: pd.DataFrame
    ) -> tuple[Bool[np.ndarray, "t n"], dict[str, str | None]]:
        """Which images have which text, and the column that tells, of each feature."""
        columns = {name: column_of(manifest, name, self.concepts) for name in self.features}
        return has_text(manifest, self.concepts, columns), columns

    def run(
        self,
        source: ContributionSource,
        index: Int[np.ndarray, " n"],
        text_sets: Mapping[str, list[tuple[int, ...]]],
        image_sets: list[tuple[int, ...]],
        held: Held,
        probes: Int[np.ndarray, " q"],
    ) -> _Found:
        """One pass over images: products with texts, and cosines with the probes among them."""
        asked, centre = source.coordinates(index[probes]), held.values.mean(axis=0)
        visit = Visit(image_sets, source.factors, asked, centre, len(index))
        return _Found(take_sums(source, index, self.texts, text_sets, self.maps, visit), visit)

    def choose(self, held: Held) -> tuple[dict[tuple[str, str], list[Way]], pd.DataFrame]:
        """For each kind of query and feature the best way and the best published way.

        Returns
        -------
        tuple
            The ways, and rows of table `retrieval_choices`, which are none where the number of
            components is given. Where no image to choose on has a value of the feature there is
            nothing to compare: the published way with `COMPONENTS` components is taken.
        """
        ways: dict[tuple[str, str], list[Way]] = {}
        rows: list[dict[str, object]] = []
        if self.asked.components is not None:
            for name in self.features:
                way = published_way(self.scores, name, self.asked.components)
                ways["text", name] = ways["image", name] = [way]
            return ways, pd.DataFrame(rows, columns=CHOICE_COLUMNS)
        options = {
            name: candidates(self.scores, name, self.asked.counts, self.kinds(name))
            for name in self.features
        }
        sets = {name: [way.components for way in some] for name, some in options.items()}
        known = self.known(held.manifest)
        probes = choose_probes(held.manifest, known, CHOOSE_QUERIES, self.asked.seed)
        everything = np.arange(len(held.values))
        sums = list(dict.fromkeys(w.components for n in known for w in options[n]))
        found = self.run(held, everything, sets, sums, held, probes)
        relevant = same_values(held.manifest, known, probes)
        texts_of, _ = self.truth(held.manifest)
        unjudged: list[str] = []
        for name in self.features:
            rows_of = self.texts.columns[name]
            judged = rows_of[texts_of[rows_of].any(axis=1)]
            inside = np.isin(rows_of, judged)
            truths = {"text": texts_of[judged], "image": relevant.get(name)}
            for query, truth in truths.items():
                if truth is None or not len(truth):
                    way = published_way(self.scores, name, COMPONENTS)
                    nothing = np.zeros((0, len(held.values)), dtype=bool)
                    rows += _choice_rows((query, name), [way], [np.nan], way, nothing)
                    unjudged.append(f"{name} by {query}")
                    ways[query, name] = [way]
                    continue
                values = []
                for way in options[name]:
                    similar = (
                        text_similarity(found, found, name, way)[inside]
                        if query == "text"
                        else image_similarity(found, found, name, way, probes)
                    )
                    leave = probes if query == "image" else None
                    k = min(CHOOSE_AT, similar.shape[1] - 1)
                    values.append(float(precisions(ranking(similar, k, leave), truth, k).mean()))
                ways[query, name] = _chosen(options[name], values)
                best_way = ways[query, name][0]
                rows += _choice_rows((query, name), options[name], values, best_way, truth)
        _log_unchosen(unjudged)
        return ways, pd.DataFrame(rows, columns=CHOICE_COLUMNS)

    def plan(self, ways: Mapping[tuple[str, str], list[Way]]) -> _Plan:
        """Methods by feature, with the random sets that each is compared with."""
        methods: dict[str, dict[str, dict[str, list[Way]]]] = {"text": {}, "image": {}}
        for (query, name), (best, *published) in ways.items():
            drawn = random_sets(
                self.components, len(best.components), RANDOM_DRAWS, self.asked.seed
            )
            methods[query][name] = {
                "components": [best],
                "random": [Way(best.kind, "random", tuple(one.tolist())) for one in drawn],
            }
            if published and published[0] != best:
                methods[query][name]["published"] = published[:1]
        image_sets: list[tuple[int, ...]] = []
        text_sets: dict[str, list[tuple[int, ...]]] = {name: [] for name in self.features}
        for query, by_feature in methods.items():
            for name, some in by_feature.items():
                for way in [way for group in some.values() for way in group]:
                    if query == "text" or way.kind == "subspace":
                        text_sets[name].append(way.components)
                    else:
                        image_sets.append(way.components)
        unique = list(dict.fromkeys(image_sets))
        return _Plan(methods["text"], methods["image"], text_sets, unique)


def _chosen(options: Sequence[Way], values: Sequence[float]) -> list[Way]:
    """The best way, of equal ones that with the fewest components; and the best published one."""

    def best(among: list[int]) -> Way:
        return options[min(among, key=lambda i: (-values[i], len(options[i].components)))]

    published = [i for i, way in enumerate(options) if (way.kind, way.by) == ("sum", "score")]
    return [best(list(range(len(options)))), best(published)]


def _choice_rows(
    key: tuple[str, str],
    options: Sequence[Way],
    values: Sequence[float],
    best: Way,
    truth: Bool[np.ndarray, "q n"],
) -> list[dict[str, object]]:
    return [
        {
            "query": key[0],
            "feature": key[1],
            "way": way.kind,
            "by": way.by,
            "components": len(way.components),
            "precision": value,
            "queries": len(truth),
            "n": truth.shape[1],
            "chosen": way == best,
        }
        for way, value in zip(options, values, strict=True)
    ]


def text_similarity(
    found: _Found, usual: _Found, feature: str, way: Way
) -> Float[np.ndarray, "t n"]:
    """Similarity of each text of a feature to each image; `usual` are reference images."""
    key = (feature, way.components)
    if way.kind == "sum":
        return found.sums.products[key].T
    return contrast(found.sums.products[key], usual.sums.products[key]).T


def image_similarity(
    found: _Found, usual: _Found, feature: str, way: Way, probes: Int[np.ndarray, " q"]
) -> Float[np.ndarray, "q n"]:
    """Similarity of each probe to each image in the components of a feature."""
    if way.kind == "sum":
        return found.visit.similarity(way.components)
    key = (feature, way.components)
    vectors = contrast(found.sums.products[key], usual.sums.products[key])
    return vectors[probes] @ vectors.T


@dataclass(frozen=True)
class _Views:
    """What was found of the images searched, as tables."""

    search: _Search
    found: _Found
    usual: _Found
    plan: _Plan

    def by_text(
        self, manifest: pd.DataFrame, clip: Clip | None
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Rows of tables `retrieval` and `retrieval_examples` for queries by text.

        A text is judged against the column of its feature's name; where there is none, against the
        first column in which one of the feature's texts is a value (such as the label). Texts that
        no image has are left out, which is logged.
        """
        search, metrics, examples = self.search, [], []
        relevant, columns = search.truth(manifest)
        names, ids = search.concepts["text"].to_numpy(), manifest["image_id"].to_numpy()
        shown = min(search.asked.shown, len(manifest) - 1)
        for feature, rows in search.texts.columns.items():
            judged = relevant[rows].any(axis=1)
            _log_unjudged(feature, names[rows[~judged]])
            query = ("text", feature, columns[feature] or feature)
            truth = relevant[rows[judged]]
            seen = relevant[rows] if judged.any() else None
            for method, found in self._text_methods(feature, clip).items():
                if judged.any():
                    own = found.take(judged)
                    metrics += metric_rows((*query, method), own, truth, search.asked.ks)
                if method in EXAMPLES and len(rows):
                    of = ("text", feature, method)
                    examples += example_rows(of, names[rows].tolist(), found, seen, ids, shown)
            if judged.any():
                metrics += chance_rows(query, truth, search.asked.ks)
        return pd.DataFrame(metrics), pd.DataFrame(examples)

    def _text_methods(self, feature: str, clip: Clip | None) -> dict[str, Found]:
        rows = self.search.texts.columns[feature]
        wanted = self.search.vectors[rows]
        methods = {
            method: Found(
                [text_similarity(self.found, self.usual, feature, way) for way in some],
                len(some[0].components),
            )
            for method, some in self.plan.text[feature].items()
        }
        mapped = self.found.sums.mapped
        methods["representation"] = Found([wanted @ unit_rows(mapped).T])
        if len(rows) > 1:
            methods["subspace"] = Found([self._subspace(wanted).T])
        if clip is not None:
            methods["clip"] = Found([clip.texts[rows] @ unit_rows(clip.images).T])
        return methods

    def _subspace(self, wanted: Float[np.ndarray, "t e"]) -> Float[np.ndarray, "n t"]:
        """The whole representation in a feature's subspace, as unit vectors."""
        return contrast(self.found.sums.mapped @ wanted.T, self.usual.sums.mapped @ wanted.T)

    def by_phrase(
        self, manifest: pd.DataFrame, known: Sequence[str], clip: Clip | None
    ) -> pd.DataFrame:
        """Rows of table `retrieval` for phrases that name two properties, of which one is asked.

        A phrase is the sum of two texts as unit vectors, one of the property asked for and one of
        another; pairs are drawn at random. The components are those chosen for queries by text;
        phrase and images are compared along the texts of the property asked for.
        """
        search, metrics = self.search, []
        relevant, _ = search.truth(manifest)
        rows_of = {
            name: rows[relevant[rows].any(axis=1)] for name, rows in search.texts.columns.items()
        }
        rng = np.random.default_rng(search.asked.seed)
        # Two texts differ in one direction: along it all images of one side are equally near.
        for feature in [name for name in known if len(search.texts.columns[name]) > 2]:
            others = [name for name in known if name != feature]
            pairs = [(a, b) for a in rows_of[feature] for name in others for b in rows_of[name]]
            if not pairs:
                continue
            first, second = np.array(rng.permutation(pairs)[: search.asked.queries]).T
            within = {name: np.isin(second, rows_of[name]) for name in others}
            measured = [(feature, np.ones(len(first), dtype=bool), relevant[first])]
            measured += [(n, part, relevant[second[part]]) for n, part in within.items()]
            methods = self._phrase_methods(feature, first, second, clip)
            for name, part, truth in [one for one in measured if one[1].any()]:
                key, ks = ("phrase", feature, name), search.asked.ks
                for method, found in methods.items():
                    of = found if name == feature else found.take(part)
                    metrics += metric_rows((*key, method), of, truth, ks)
                metrics += chance_rows(key, truth, ks)
        return pd.DataFrame(metrics)

    def _phrase_methods(
        self,
        feature: str,
        first: Int[np.ndarray, " q"],
        second: Int[np.ndarray, " q"],
        clip: Clip | None,
    ) -> dict[str, Found]:
        texts = unit_rows(self.search.vectors)
        phrases = unit_rows(texts[first] + texts[second])
        own = self.search.vectors[self.search.texts.columns[feature]]
        asked = contrast(phrases @ own.T, own @ own.T)
        methods = {
            method: Found(
                [asked @ self._along(feature, way).T for way in some], len(some[0].components)
            )
            for method, some in self.plan.text[feature].items()
            if method != "published"
        }
        methods["representation"] = Found([phrases @ unit_rows(self.found.sums.mapped).T])
        methods["subspace"] = Found([asked @ self._subspace(own).T])
        if clip is not None:
            theirs = unit_rows(clip.texts)
            phrases = unit_rows(theirs[first] + theirs[second])
            methods["clip"] = Found([phrases @ unit_rows(clip.images).T])
        return methods

    def _along(self, feature: str, way: Way) -> Float[np.ndarray, "n t"]:
        """What the components of a way say along the texts of a feature."""
        key = (feature, way.components)
        return contrast(self.found.sums.products[key], self.usual.sums.products[key])

    def by_image(
        self,
        manifest: pd.DataFrame,
        probes: Int[np.ndarray, " q"],
        relevant: Mapping[str, Bool[np.ndarray, "q n"]],
        whole: Float[np.ndarray, "n d"],
        clip: Clip | None,
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Rows of tables `retrieval` and `retrieval_examples` for queries by image.

        Each probe is left out of what it retrieves.
        """
        search, metrics, examples = self.search, [], []
        ids = manifest["image_id"].to_numpy()
        shown = min(search.asked.shown, len(manifest) - 1)
        shared = {"representation": Found([_cosine(whole, probes)], 0, probes)}
        if clip is not None:
            shared["clip"] = Found([_cosine(clip.images, probes)], 0, probes)
        for row, feature in enumerate(search.features):
            methods = {**self._image_methods(feature, probes), **shared}
            for name, truth in relevant.items():
                query = ("image", feature, name)
                for method, found in methods.items():
                    metrics += metric_rows((*query, method), found, truth, search.asked.ks)
                metrics += chance_rows(query, truth, search.asked.ks, without_probe=True)
            first = slice(row % len(probes), row % len(probes) + 1)
            seen = relevant[feature][first] if feature in relevant else None
            for method in [name for name in EXAMPLES if name in methods]:
                of, probe = ("image", feature, method), ids[probes[first]].tolist()
                examples += example_rows(of, probe, methods[method].take(first), seen, ids, shown)
        return pd.DataFrame(metrics), pd.DataFrame(examples)

    def _image_methods(self, feature: str, probes: Int[np.ndarray, " q"]) -> dict[str, Found]:
        methods = {
            method: Found(
                [image_similarity(self.found, self.usual, feature, way, probes) for way in some],
                len(some[0].components),
                probes,
            )
            for method, some in self.plan.image[feature].items()
        }
        rows = self.search.texts.columns[feature]
        if len(rows) > 1:
            vectors = self._subspace(self.search.vectors[rows])
            methods["subspace"] = Found([vectors[probes] @ vectors.T], 0, probes)
        return methods


def _cosine(
    rows: Float[np.ndarray, "n d"], probes: Int[np.ndarray, " q"]
) -> Float[np.ndarray, "q n"]:
    centred = unit_rows(rows - rows.mean(axis=0))
    return centred[probes] @ centred.T


def _log_unchosen(unjudged: Sequence[str]) -> None:
    if unjudged:
        logger.warning(
            "nothing to choose a way on for %s: the images have no values of these features; the "
            "published way, %d components",
            ", ".join(unjudged),
            COMPONENTS,
        )


def _log_unjudged(feature: str, texts: Sequence[str]) -> None:
    if len(texts):
        logger.warning(
            "retrieval by text: no image has %s = %s; not judged", feature, ", ".join(texts)
        )
