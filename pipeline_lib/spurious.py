"""Removal of a spurious cue: mean-ablate the components that carry it, and see who gains.

Components are ranked on one split by how much more they score on spurious words than on core words,
and how many are ablated is chosen there; groups are reported on another. The scores come from
`scores`, the classifier from `classify`; accuracies of groups are in `groups`, the ablation written
back as a module in `repair`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from pipeline_lib.classify import LinearClassifier, fit_probe
from pipeline_lib.coordinates import Source, encode
from pipeline_lib.groups import Groups, group_accuracy, make_groups
from pipeline_lib.maps import Maps
from pipeline_lib.passes import ContributionSource, images_of_split, read_pass
from pipeline_lib.products import Products
from pipeline_lib.retrieval_ways import random_sets
from pipeline_lib.scores import moments, score_components

logger = logging.getLogger(__name__)

#: Components that the published recipe ablates.
PUBLISHED_K = 10


def score_words(
    source: ContributionSource,
    index: Int[np.ndarray, " n"],
    maps: Maps,
    spurious: Float[np.ndarray, "k e"],
    core: Float[np.ndarray, "m e"],
    *,
    published: bool = False,
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Score of each component on the spurious words and on the core words.

    Parameters
    ----------
    source
        Dump of the contributions.
    index
        Images over which the scores are taken: the split on which components are selected.
    maps
        Maps of the model's components to CLIP space.
    spurious, core
        Text embeddings of the words.
    published
        Take the correlation form instead of the share of variance (both P2; see `scores`).
    """
    part = Source(len(index), lambda rows: source.contributions(index[rows]))
    features = {"spurious": torch.from_numpy(spurious), "core": torch.from_numpy(core)}
    table = score_components(moments(encode(part), maps), features)
    column = "score_published" if published else "score"
    found = table.pivot(index="component", columns="feature", values=column)
    return found["spurious"].to_numpy(), found["core"].to_numpy()


def rank_spurious(
    spurious: Float[np.ndarray, " c"], core: Float[np.ndarray, " c"], components: pd.DataFrame
) -> Int[np.ndarray, " c"]:
    """Components from the most spurious to the most core; the bias, which is constant, left out.

    Parameters
    ----------
    spurious, core
        Score of each component on the spurious words and on the core words.
    components
        Rows of table `components`.

    Notes
    -----
    Difference of the two scores (P2).
    """
    candidates = np.flatnonzero((components["kind"] != "bias").to_numpy())
    difference = (np.asarray(spurious) - np.asarray(core))[candidates]
    return candidates[np.argsort(-difference, kind="stable")]


@dataclass(frozen=True)
class Asked:
    """What is asked of the removal.

    Attributes
    ----------
    top_k
        Components ablated; None to choose their number on the split of selection.
    max_k
        Most components, where their number is chosen.
    select_split, report_split
        Split on which components are scored, their number is chosen and means are taken; split
        that is reported.
    draws
        Random sets of as many components, a control.
    seeds
        Redraws of the images to fit the probe on, to choose on and to report, for the intervals.
    seed
        Of all draws.
    """

    top_k: int | None = None
    max_k: int = 10
    select_split: str = "val"
    report_split: str = "test"
    draws: int = 20
    seeds: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Removal:
    """What was found.

    Attributes
    ----------
    table
        Rows of table `spurious`, without model and data set.
    summary
        Rows of table `spurious_summary`: means and intervals over seeds.
    choices
        Rows of table `spurious_choices`: each number of components on the split of selection.
    classifier, ablated, shift
        The probe, the components ablated, and the sum of their mean shares in its logits.
    """

    table: pd.DataFrame
    summary: pd.DataFrame
    choices: pd.DataFrame
    classifier: LinearClassifier
    ablated: tuple[str, ...]
    shift: Float[np.ndarray, " k"]


def remove_cue(
    source: ContributionSource,
    maps: Maps,
    spurious: Float[np.ndarray, "k e"],
    core: Float[np.ndarray, "m e"],
    asked: Asked,
) -> Removal:
    """Accuracy per group of a probe before and after ablating the most spurious components.

    Parameters
    ----------
    source
        Dump of the contributions; its manifest has `label`, `group` and `split`.
    maps
        Maps of the model's components to CLIP space.
    spurious, core
        Text embeddings of the words.
    asked
        What is asked.

    Notes
    -----
    The probe is fitted on the train split, in which the cue follows the label. Methods: `full`;
    `ablated`, chosen without group labels, by the accuracy averaged over classes; `random`, as many
    random components; `early`, as many of the highest among the first half of the blocks;
    `group_labels`, components and their number chosen by the worst group's accuracy on the split
    of selection; `published`, the ten highest by the correlation form of the score, taken on the
    images that are reported (P2).
    """
    splits = _Splits.of(source.manifest, asked)
    scores = score_words(source, splits.select, maps, spurious, core)
    on_report = score_words(source, splits.report, maps, spurious, core, published=True)
    ranked = rank_spurious(*scores, source.components)
    published = rank_spurious(*on_report, source.components)[:PUBLISHED_K]
    trials = _trials(source, splits, asked)
    found, choices = [], None
    for number, trial in enumerate(trials):
        sets, tried = _sets(trial, ranked, published, source.components, asked)
        choices = tried if choices is None else choices
        found.append(trial.table(sets, source.components).assign(seed=number))
    assert choices is not None
    table = found[0].drop(columns="seed")
    chosen = table[table["method"] == "ablated"]["ablated"].iloc[0]
    rows = source.components.index[source.components["id"].isin(chosen)]
    return Removal(
        table,
        summarise(pd.concat(found, ignore_index=True)),
        choices,
        trials[0].classifier,
        tuple(chosen),
        trials[0].means[rows].sum(axis=0),
    )


@dataclass(frozen=True)
class _Splits:
    """Images of the three splits, with their labels and groups."""

    train: Int[np.ndarray, " t"]
    select: Int[np.ndarray, " s"]
    report: Int[np.ndarray, " r"]
    labels: np.ndarray
    groups: np.ndarray
    report_name: str
    select_name: str

    @classmethod
    def of(cls, manifest: pd.DataFrame, asked: Asked) -> _Splits:
        needs = ["label", "group"]
        return cls(
            images_of_split(manifest, "train", needs),
            images_of_split(manifest, asked.select_split, needs),
            images_of_split(manifest, asked.report_split, needs),
            manifest["label"].to_numpy(dtype=object),
            manifest["group"].to_numpy(dtype=object),
            asked.report_split,
            asked.select_split,
        )


@dataclass(frozen=True)
class _Images:
    """Some images of one split as one probe sees them."""

    logits: Float[np.ndarray, "n k"]
    centred: Float[np.ndarray, "c n k"]
    truth: Int[np.ndarray, " n"]
    groups: Groups

    def right(
        self, classifier: LinearClassifier, sets: Sequence[Sequence[int]]
    ) -> Bool[np.ndarray, "s n"]:
        """Which images are right with each set of components mean-ablated."""
        member = np.zeros((len(sets), len(self.centred)), dtype=np.float32)
        for row, chosen in enumerate(sets):
            member[row, [int(c) for c in chosen]] = 1.0
        taken = member @ self.centred.reshape(len(self.centred), -1)
        left = self.logits - taken.reshape(len(sets), *self.logits.shape)
        return classifier.predict(left) == self.truth


@dataclass(frozen=True)
class _Trial:
    """One draw of the images: its probe, and what it sees on the two splits."""

    classifier: LinearClassifier
    means: Float[np.ndarray, "c k"]
    select: _Images
    report: _Images

    def table(
        self, sets: Mapping[tuple[str, int], Sequence[int]], components: pd.DataFrame
    ) -> pd.DataFrame:
        """Rows of table `spurious`, without model and data set."""
        ids, groups = components["id"].to_numpy(), self.report.groups
        hits = self.report.right(self.classifier, list(sets.values()))
        rows = []
        for ((method, draw), chosen), hit in zip(sets.items(), hits, strict=True):
            right = np.bincount(groups.code, hit, len(groups.names)).astype(np.int64)
            for group, (accuracy, n) in group_accuracy(right, groups).items():
                rows.append(
                    {
                        "method": method,
                        "components": len(chosen),
                        "draw": draw,
                        "group": group,
                        "accuracy": accuracy,
                        "n": n,
                        "ablated": [str(ids[int(c)]) for c in chosen],
                    }
                )
        return pd.DataFrame(rows)


def _trials(source: ContributionSource, splits: _Splits, asked: Asked) -> list[_Trial]:
    """One trial on the images as they are, and `seeds` trials on bootstrap draws of them.

    The contributions are projected on the classes of all probes in one pass.
    """
    z, labels = source.representation(splits.train), splits.labels[splits.train]
    rng = np.random.default_rng(asked.seed)
    draws = [np.arange(len(labels))] + [
        within_groups(splits.groups[splits.train], rng) for _ in range(asked.seeds)
    ]
    probes = [fit_probe(z[draw], labels[draw].tolist()) for draw in draws]
    weight = np.concatenate([probe.weight for probe in probes])
    together = Products.of(source.factors, weight.T)
    index = np.union1d(splits.select, splits.report)
    shares = np.empty((len(source.components), len(index), len(weight)), dtype=np.float32)
    for where, coordinates in read_pass(source, index):
        shares[:, where] = together.parts(coordinates)
    whole = source.representation(index)
    trials, first = [], 0
    train = splits.groups[splits.train].tolist()
    for number, probe in enumerate(probes):
        part = shares[:, :, first : first + len(probe.classes)]
        first += len(probe.classes)
        means = part[:, np.searchsorted(index, splits.select)].mean(axis=1)
        seen = []
        for name, images in (
            (splits.select_name, splits.select),
            (splits.report_name, splits.report),
        ):
            chosen = images
            if number:
                chosen = images[within_groups(splits.groups[images], rng)]
            at = np.searchsorted(index, chosen)
            groups = make_groups(splits.groups[chosen].tolist(), train, name)
            truth = probe.encode(splits.labels[chosen].tolist())
            centred = part[:, at] - means[:, None]
            seen.append(_Images(probe.logits(whole[at]), centred, truth, groups))
        trials.append(_Trial(probe, means, *seen))
    return trials


def within_groups(groups: np.ndarray, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """A bootstrap draw that keeps the size of every group."""
    parts = [np.flatnonzero(groups == name) for name in sorted(set(groups.tolist()))]
    return np.concatenate([rng.choice(part, size=len(part)) for part in parts])


def _sets(
    trial: _Trial,
    ranked: Int[np.ndarray, " c"],
    published: Int[np.ndarray, " k"],
    components: pd.DataFrame,
    asked: Asked,
) -> tuple[dict[tuple[str, int], list[int]], pd.DataFrame]:
    """Components that each method ablates, and how each number of them did where it was chosen."""
    options = range(min(asked.max_k, len(ranked)) + 1) if asked.top_k is None else [asked.top_k]
    choices = _compare(trial, [ranked[:k].tolist() for k in options])
    k = int(choices.loc[choices["class_accuracy"].idxmax(), "components"])
    choices["chosen"] = choices["components"] == k
    blocks = components["block"].to_numpy()
    early = [c for c in ranked if blocks[c] <= blocks.max() // 2]
    alone = _compare(trial, [[int(c)] for c in ranked])["worst"].to_numpy()
    helpful = ranked[np.argsort(-alone, kind="stable")]
    by_groups = _compare(trial, [helpful[:n].tolist() for n in range(asked.max_k + 1)])
    best = int(by_groups["worst"].to_numpy().argmax())
    sets: dict[tuple[str, int], list[int]] = {
        ("full", 0): [],
        ("ablated", 0): ranked[:k].tolist(),
        ("early", 0): [int(c) for c in early[:k]],
        ("group_labels", 0): helpful[:best].tolist(),
        ("published", 0): published.tolist(),
    }
    for draw, chosen in enumerate(random_sets(components, k, asked.draws, asked.seed)):
        sets["random", draw] = chosen.tolist()
    return sets, choices


def _compare(trial: _Trial, sets: Sequence[list[int]]) -> pd.DataFrame:
    """Accuracy on the split of selection with each set ablated: over classes, and worst group."""
    images = trial.select
    hits = images.right(trial.classifier, sets)
    classes = [hits[:, images.truth == code].mean(axis=1) for code in np.unique(images.truth)]
    groups = [
        hits[:, images.groups.code == g].mean(axis=1) for g in range(len(images.groups.names))
    ]
    return pd.DataFrame(
        {
            "components": [len(one) for one in sets],
            "class_accuracy": np.mean(classes, axis=0),
            "worst": np.min(groups, axis=0),
            "n": hits.shape[1],
        }
    )


def summarise(trials: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and gain of each method and group over seeds: values as drawn, and intervals.

    Parameters
    ----------
    trials
        Rows of table `spurious` of all trials, with a column `seed`; 0 is the images as they are.

    Returns
    -------
    DataFrame
        Rows of table `spurious_summary`, without model and data set. Random draws are averaged.
    """
    keys = ["method", "group"]
    mean = (
        trials.groupby([*keys, "seed"], sort=False)[["accuracy", "components"]].mean().reset_index()
    )
    full = mean[mean["method"] == "full"].set_index(["group", "seed"])["accuracy"]
    mean["gain"] = mean["accuracy"] - full.loc[list(zip(mean["group"], mean["seed"]))].to_numpy()
    rows = []
    for (method, group), part in mean.groupby(keys, sort=False):
        first, redrawn = part[part["seed"] == 0].iloc[0], part[part["seed"] > 0]
        spread = redrawn if len(redrawn) else part
        ends = {
            f"{name}_{side}": float(np.percentile(spread[name], q))
            for name in ("accuracy", "gain")
            for side, q in (("low", 2.5), ("high", 97.5))
        }
        rows.append(
            {
                "method": method,
                "group": group,
                "components": float(first["components"]),
                "accuracy": float(first["accuracy"]),
                "gain": float(first["gain"]),
                "seeds": len(redrawn),
                **ends,
            }
        )
    return pd.DataFrame(rows)
