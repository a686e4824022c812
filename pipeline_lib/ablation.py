"""Mean ablation: accuracy while components are replaced by their mean over reference images.

For a linear classifier an ablated sum is read from the components' shares in the logits: they are
projected once per batch, and each curve is a cumulative sum over layers. Classifiers come from
`classify`; the removal of spurious components is in `spurious`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from pipeline_lib.classify import Head, LinearClassifier, Reference, label_texts, make_classifier
from pipeline_lib.errors import DataError, close_matches

logger = logging.getLogger(__name__)

#: Contributions held in memory at once, in bytes: bounds every streamed pass.
BATCH_BYTES = 128 * 2**20

#: Kinds of component that the curves `all_mlp` and `all_attention` ablate.
MLP_KINDS = ("mlp",)
ATTENTION_KINDS = ("head", "attention")


class ContributionSource(Protocol):
    """What the applications need of a dump: see `pipeline_lib.dumps.open_dump`."""

    @property
    def components(self) -> pd.DataFrame: ...

    @property
    def manifest(self) -> pd.DataFrame: ...

    def contributions(
        self, index: Int[np.ndarray, " b"], components: Sequence[int] | None = None
    ) -> Float[np.ndarray, "b c d"]: ...

    def representation(self, index: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b d"]: ...


def images_of_split(
    manifest: pd.DataFrame, split: str | None, needs: Sequence[str] = ()
) -> Int[np.ndarray, " n"]:
    """Positions of the images of a split that have a value in each of the columns `needs`.

    Parameters
    ----------
    manifest
        Active images.
    split
        `train`, `val` or `test`; None for all images.
    needs
        Columns.

    Raises
    ------
    DataError
        A column is missing, the split does not exist, or no image of it has the values.
    """
    unknown = [name for name in (*needs, "split") if name not in manifest.columns]
    if unknown:
        raise DataError(
            f"the manifest has no column {unknown[0]!r}; "
            f"{close_matches(unknown[0], map(str, manifest.columns))}"
        )
    within = np.ones(len(manifest), dtype=bool)
    if split is not None:
        within = (manifest["split"] == split).to_numpy()
    if not within.any():
        found = sorted(manifest["split"].dropna().unique())
        raise DataError(f"the data set has no image in split {split!r}; its splits are {found}")
    usable = within & manifest[list(needs)].notna().all(axis=1).to_numpy()
    if not usable.any():
        raise DataError(
            f"no image of {_named(split)} has a value in every column of {list(needs)}; "
            "name the columns in the config, or switch this application off"
        )
    if usable.sum() < within.sum():
        left = int((within & ~usable).sum())
        logger.warning("%d images of %s have no %s", left, _named(split), ", ".join(needs))
    return np.flatnonzero(usable)


def _named(split: str | None) -> str:
    return "the data set" if split is None else f"split {split!r}"


def batches(
    index: Int[np.ndarray, " n"], components: int, width: int, budget: int = BATCH_BYTES
) -> Iterator[Int[np.ndarray, " b"]]:
    """Consecutive pieces of `index` whose float32 contributions [b,c,d] fit into `budget` bytes."""
    size = max(1, budget // (4 * max(1, components * width)))
    for start in range(0, len(index), size):
        yield index[start : start + size]


def mean_contributions(
    source: ContributionSource,
    index: Int[np.ndarray, " n"],
    components: Sequence[int] | None = None,
) -> Float[np.ndarray, "c d"]:
    """Mean of each component's contribution over the images `index`, streamed.

    Raises
    ------
    DataError
        `index` is empty.
    """
    if len(index) == 0:
        raise DataError("the mean of no image is asked for; the reference split is empty")
    count = len(source.components) if components is None else len(components)
    width = source.representation(index[:1]).shape[1]
    total = np.zeros((count, width), dtype=np.float64)
    for batch in batches(index, count, width):
        total += source.contributions(batch, components).sum(axis=0, dtype=np.float64)
    return (total / len(index)).astype(np.float32)


def mean_ablate(
    contributions: Float[np.ndarray, "n c d"],
    means: Float[np.ndarray, "c d"],
    keep: Bool[np.ndarray, " c"],
) -> Float[np.ndarray, "n d"]:
    """Representation with every component outside `keep` replaced by its mean.

    Parameters
    ----------
    contributions
        Direct contribution of each component; they sum over `c` to the representation.
    means
        Mean of each component over reference images.
    keep
        Components that keep their per-image value.

    Notes
    -----
    Mean ablation of direct effects (P1, section 3.2).
    """
    kept = contributions[:, keep].sum(axis=1)
    return kept + means[~keep].sum(axis=0)


@dataclass(frozen=True)
class LayerGroups:
    """Components in the order in which a curve from the input ablates them, one layer at a time.

    Attributes
    ----------
    names
        What each group is, for example `layer 3 (blocks.1.mlp)`.
    member
        Which components belong to each group; every component is in exactly one.
    """

    names: tuple[str, ...]
    member: Bool[np.ndarray, "g c"]


def group_by_layer(components: pd.DataFrame) -> LayerGroups:
    """Groups of components from the input to the output; the bias stands first, with the stem.

    Parameters
    ----------
    components
        Rows of table `components`.
    """
    layer = components["layer"].to_numpy().copy()
    layer[components["kind"].to_numpy() == "bias"] = -1
    names, member = [], []
    for number in sorted(set(layer.tolist())):
        rows = layer == number
        ids = components["id"].to_numpy()[rows]
        what = str(ids[0]).split("/")[0] if number >= 0 else " and ".join(map(str, ids))
        names.append(f"layer {number} ({what})" if number >= 0 else what)
        member.append(rows)
    return LayerGroups(tuple(names), np.array(member))


def ablation_curves(
    source: ContributionSource,
    classifier: LinearClassifier,
    labels: Sequence[str],
    index: Int[np.ndarray, " n"],
    reference: Int[np.ndarray, " r"],
    *,
    random_orders: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy under mean ablation: by layer from either end, by kind, and of single components.

    Parameters
    ----------
    source
        Dump of the contributions.
    classifier
        Linear classifier on the representation.
    labels
        True class of each image of `index`.
    index
        Images to evaluate.
    reference
        Images over which the means are taken; other images than `index` for an honest curve.
    random_orders, seed
        The control curve `random` ablates the layers in random orders and is their mean.

    Returns
    -------
    DataFrame
        Columns `curve`, `step`, `ablated`, `accuracy`, `n` of table `ablation`. Step 0 of a curve
        is the full model; its last step, everything ablated, predicts one class for every image.

    Notes
    -----
    Mean ablation of direct effects (P1, section 3.2). Layers count from the input, 0 first.
    """
    truth = classifier.encode(labels)
    means = mean_contributions(source, index=reference)
    groups = group_by_layer(source.components)
    plan = _plan(source.components, groups, random_orders, seed)
    right = np.zeros(len(plan.steps), dtype=np.int64)
    start = 0
    shift = classifier.project(means)
    for batch in batches(index, *means.shape):
        full = classifier.logits(source.representation(batch))
        centred = classifier.project(source.contributions(batch)) - shift
        base = means.sum(axis=0) @ classifier.weight.T + classifier.bias
        true = truth[start : start + len(batch)]
        for step, logits in enumerate(plan.logits(full, base, centred)):
            right[step] += int((classifier.predict(logits) == true).sum())
        start += len(batch)
    table = pd.DataFrame(plan.steps, columns=["curve", "step", "ablated"])
    table["accuracy"] = right / max(1, len(index))
    table["n"] = len(index)
    return _average_random(table)


def ablation_table(
    source: ContributionSource,
    targets: Sequence[str],
    *,
    asked: str = "auto",
    split: str | None = "test",
    reference_split: str | None = "train",
    head: Head | None = None,
    texts: pd.DataFrame | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Ablation curves for each of several columns of the manifest.

    Parameters
    ----------
    source
        Dump of the contributions.
    targets
        Columns that are predicted, each with a classifier of its own.
    asked
        Kind of classifier (see `classify.choose_kind`).
    split, reference_split
        Split that is evaluated; split of the means and, where there is one, of the probe. None for
        all images.
    head
        The model's own classifier, if it has one.
    texts
        Rows of table `text_features` of a CLIP model's own space.
    seed
        Of the random orders.

    Returns
    -------
    DataFrame
        Rows of table `ablation`, without model and data set.
    """
    tables = []
    for target in targets:
        index = images_of_split(source.manifest, split, [target])
        reference = images_of_split(source.manifest, reference_split, [target])
        values = source.manifest[target].to_numpy(dtype=object)
        labels = [str(value) for value in values[index]]
        known = [str(value) for value in values[reference]]
        use_texts = texts is not None and asked in ("auto", "zero_shot")
        classifier = make_classifier(
            asked,
            [*labels, *known],
            head=head,
            texts=label_texts(texts, target, [*labels, *known]) if use_texts else None,
            reference=Reference(source.representation(reference), known),
        )
        curves = ablation_curves(source, classifier, labels, index, reference, seed=seed)
        tables.append(curves.assign(target=target, classifier=classifier.kind))
    return pd.concat(tables, ignore_index=True)


def targets_of(manifest: pd.DataFrame, concepts: Mapping[str, Sequence[str]]) -> list[str]:
    """Columns that can be predicted: the label, and each feature that is a column of its own.

    Parameters
    ----------
    manifest
        Active images.
    concepts
        Feature to its descriptors; a feature whose column has other values too is left out.

    Raises
    ------
    DataError
        There is none.
    """
    found = ["label"] if "label" in manifest.columns and manifest["label"].notna().any() else []
    for name, descriptors in concepts.items():
        values = set(manifest[name].dropna()) if name in manifest.columns else set()
        if values and not (found and manifest[name].equals(manifest[found[0]])):
            if values <= set(descriptors):
                found.append(name)
            else:
                logger.warning("%s has values that are no descriptors of it; left out", name)
    if not found:
        raise DataError(
            "the data set has no labels, and none of its columns is a feature of `concepts`; "
            "name the column of labels, or set `applications.ablation: null`"
        )
    return found


@dataclass(frozen=True)
class _Plan:
    """The steps of all curves, and how to get their logits from one projection."""

    steps: list[tuple[str, int, str]]
    orders: list[list[int]]
    member: Bool[np.ndarray, "g c"]
    kinds: list[Bool[np.ndarray, " c"]]

    def logits(
        self,
        full: Float[np.ndarray, "b k"],
        base: Float[np.ndarray, " k"],
        centred: Float[np.ndarray, "b c k"],
    ) -> Iterator[Float[np.ndarray, "b k"]]:
        """Logits of each step, in the order of `steps`.

        `base` is what all means give; `full - base` is the sum of `centred` over components.
        """
        yield full
        by_group = np.einsum("gc,bck->gbk", self.member.astype(np.float32), centred)
        for order in self.orders:
            yield full
            left = by_group[order[::-1]].cumsum(axis=0)[::-1]
            for step in range(1, len(order)):
                yield base + left[step]
            yield np.broadcast_to(base, full.shape)
        for rows in self.kinds:
            yield full - centred[:, rows].sum(axis=1)
        for component in range(centred.shape[1]):
            yield full - centred[:, component]


def _plan(components: pd.DataFrame, groups: LayerGroups, draws: int, seed: int) -> _Plan:
    count = len(groups.names)
    rng = np.random.default_rng(seed)
    named = [("from_input", list(range(count))), ("from_output", list(range(count))[::-1])]
    named += [("random", rng.permutation(count).tolist()) for _ in range(draws)]
    steps: list[tuple[str, int, str]] = [("none", 0, "nothing")]
    for curve, order in named:
        steps.append((curve, 0, "nothing"))
        for step, group in enumerate(order, start=1):
            ablated = f"{step} random layers" if curve == "random" else groups.names[group]
            steps.append((curve, step, ablated))
    kinds = []
    for curve, wanted in (("all_mlp", MLP_KINDS), ("all_attention", ATTENTION_KINDS)):
        rows = components["kind"].isin(wanted).to_numpy()
        if rows.any():
            kinds.append(rows)
            steps.append((curve, int(rows.sum()), f"all {int(rows.sum())} of kind {curve[4:]}"))
    steps += [("single", 1, str(name)) for name in components["id"]]
    return _Plan(steps, [order for _, order in named], groups.member, kinds)


def _average_random(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over the orders of the curve `random`, step by step; other rows as they are."""
    random = table["curve"] == "random"
    if not random.any():
        return table
    mean = table[random].groupby(["curve", "step", "ablated"], as_index=False, sort=True)
    return pd.concat(
        [table[~random], mean.agg({"accuracy": "mean", "n": "first"})], ignore_index=True
    )[list(table.columns)]
