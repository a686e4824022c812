"""Removal of a spurious cue: mean-ablate the components that carry it, and see who gains.

Components are ranked on one split by how much more they score on spurious words than on core words;
groups are reported on another. The scores come from `scores`, the classifier from `classify`.
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
from pipeline_lib.errors import DataError
from pipeline_lib.maps import Maps
from pipeline_lib.passes import (
    ContributionSource,
    batches,
    images_of_split,
    mean_contributions,
)
from pipeline_lib.retrieval_ways import random_sets
from pipeline_lib.scores import moments, score_components

logger = logging.getLogger(__name__)

#: Rows of the table that are averages over groups.
AVERAGES = ("worst", "mean", "test", "train_weighted")


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


def remove_cue(
    source: ContributionSource,
    maps: Maps,
    spurious: Float[np.ndarray, "k e"],
    core: Float[np.ndarray, "m e"],
    *,
    top_k: int,
    select_split: str = "val",
    report_split: str = "test",
    draws: int = 20,
    seed: int = 0,
    published: bool = False,
) -> pd.DataFrame:
    """Accuracy per group of a probe before and after ablating the most spurious components.

    Parameters
    ----------
    source
        Dump of the contributions; its manifest has `label`, `group` and `split`.
    maps
        Maps of the model's components to CLIP space.
    spurious, core
        Text embeddings of the words.
    top_k
        Components ablated.
    select_split, report_split
        Split on which components are scored and means are taken; split that is reported.
    draws, seed
        Control: so many random sets of `top_k` components.
    published
        Rank by the correlation form of the score. With `top_k=10` and `select_split` equal to
        `report_split` this is the published recipe, which selects on the images it reports.

    Returns
    -------
    DataFrame
        Rows of table `spurious`, without model and data set. The probe is fitted on the train
        split, in which the cue follows the label.
    """
    manifest, needs = source.manifest, ["label", "group"]
    train = images_of_split(manifest, "train", needs)
    select = images_of_split(manifest, select_split)
    report = images_of_split(manifest, report_split, needs)
    labels = manifest["label"].to_numpy(dtype=object)
    groups = manifest["group"].to_numpy(dtype=object)
    scores = score_words(source, select, maps, spurious, core, published=published)
    ranked = rank_spurious(*scores, source.components)
    sets: dict[tuple[str, int], list[int]] = {("full", 0): [], ("ablated", 0): list(ranked[:top_k])}
    for draw, chosen in enumerate(random_sets(source.components, top_k, draws, seed)):
        sets["random", draw] = list(chosen)
    return ablate_groups(
        source,
        fit_probe(source.representation(train), labels[train].tolist()),
        labels[report].tolist(),
        make_groups(groups[report].tolist(), groups[train].tolist(), report_split),
        report,
        select,
        sets,
    )


@dataclass(frozen=True)
class Groups:
    """Groups of the evaluated images, with their sizes where the classifier was trained.

    Attributes
    ----------
    names
        Groups in sorted order.
    code
        Number of the group of each evaluated image.
    train
        Number of train images of each group.
    """

    names: tuple[str, ...]
    code: Int[np.ndarray, " n"]
    train: Int[np.ndarray, " g"]


def make_groups(evaluated: Sequence[str], train: Sequence[str], split: str) -> Groups:
    """Groups of the evaluated images; every group of the train images must be among them.

    Parameters
    ----------
    evaluated, train
        Group of each image of the evaluated split and of the train split.
    split
        Name of the evaluated split, for the message.

    Raises
    ------
    DataError
        A group is empty in either split, or has the name of an average.
    """
    names = sorted({str(name) for name in [*evaluated, *train]})
    taken = sorted(set(names) & set(AVERAGES))
    if taken:
        raise DataError(f"a group may not be named {taken[0]!r}: that is a row of the results")
    counts = {
        where: pd.Series([str(name) for name in groups]).value_counts()
        for where, groups in ((split, evaluated), ("train", train))
    }
    empty = [
        f"{n!r} in {where}" for where, count in counts.items() for n in names if n not in count
    ]
    if empty:
        raise DataError(
            f"groups without an image: {', '.join(empty)}. Worst-group accuracy needs every group "
            f"in both splits; groups found: {', '.join(names)}"
        )
    number = {name: code for code, name in enumerate(names)}
    return Groups(
        names=tuple(names),
        code=np.array([number[str(name)] for name in evaluated], dtype=np.int64),
        train=np.array([int(counts["train"][name]) for name in names], dtype=np.int64),
    )


def group_accuracy(right: Int[np.ndarray, " g"], groups: Groups) -> dict[str, tuple[float, int]]:
    """Accuracy and number of images of each group and of the averages over groups.

    Parameters
    ----------
    right
        Number of correct images of each group.
    groups
        The groups.

    Returns
    -------
    dict
        Besides the groups: `worst`, the lowest of them; `mean`, the unweighted mean of groups;
        `test`, the share of correct images; `train_weighted`, the mean of groups weighted by
        their sizes in the train split.
    """
    size = np.bincount(groups.code, minlength=len(groups.names))
    accuracy = right / size
    total = int(size.sum())
    result = {
        name: (float(accuracy[code]), int(size[code])) for code, name in enumerate(groups.names)
    }
    weighted = float(np.average(accuracy, weights=groups.train))
    averages = (accuracy.min(), accuracy.mean(), right.sum() / total, weighted)
    worst = int(size[int(np.argmin(accuracy))])
    counts = (worst, total, total, total)
    for name, value, count in zip(AVERAGES, averages, counts, strict=True):
        result[name] = (float(value), count)
    return result


def ablate_groups(
    source: ContributionSource,
    classifier: LinearClassifier,
    labels: Sequence[str],
    groups: Groups,
    index: Int[np.ndarray, " n"],
    reference: Int[np.ndarray, " r"],
    sets: Mapping[tuple[str, int], Sequence[int]],
) -> pd.DataFrame:
    """Accuracy per group with each of several sets of components mean-ablated.

    Parameters
    ----------
    source
        Dump of the contributions.
    classifier
        Linear classifier on the representation.
    labels
        True class of each image of `index`.
    groups
        Groups of the images of `index`.
    index
        Images to evaluate.
    reference
        Images over which the means are taken.
    sets
        (method, draw) to the components that are ablated; an empty set is the full model.

    Returns
    -------
    DataFrame
        Rows of table `spurious`, without model and data set.

    Notes
    -----
    Mean ablation of direct effects (P1, section 3.2; P2). Every set is read from one
    projection of the contributions on the class directions.
    """
    truth = classifier.encode(labels)
    means = mean_contributions(source, reference)
    member = _membership(list(sets.values()), len(means))
    right = np.zeros((len(member), len(groups.names)), dtype=np.int64)
    start = 0
    shift = classifier.project(means)
    for batch in batches(index, *means.shape):
        centred = classifier.project(source.contributions(batch)) - shift
        taken = np.einsum("bck,sc->sbk", centred, member.astype(np.float32), optimize=True)
        logits = classifier.logits(source.representation(batch)) - taken
        part = slice(start, start + len(batch))
        hits = classifier.predict(logits) == truth[part]
        for row, hit in enumerate(hits):
            right[row] += np.bincount(groups.code[part], hit, len(groups.names)).astype(np.int64)
        start += len(batch)
    ids = source.components["id"].to_numpy()
    rows = []
    for ((method, draw), chosen), count in zip(sets.items(), right, strict=True):
        for group, (accuracy, n) in group_accuracy(count, groups).items():
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


def _membership(sets: Sequence[Sequence[int]], components: int) -> Bool[np.ndarray, "s c"]:
    member = np.zeros((len(sets), components), dtype=bool)
    for row, chosen in enumerate(sets):
        member[row, [int(c) for c in chosen]] = True
    return member
