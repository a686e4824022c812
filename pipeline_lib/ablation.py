"""Mean ablation: accuracy while components are replaced by their mean over reference images.

For a linear classifier an ablated sum is read from the components' shares in the logits. The shares
for all classes that are told apart are taken in one pass over the dump; every curve is a cumulative
sum of them. Classifiers come from `classify`; the removal of spurious components is in `spurious`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from pipeline_lib.ablation_plan import Plan, group_by_layer, make_plan
from pipeline_lib.classify import Head, LinearClassifier, Reference, label_texts, make_classifier
from pipeline_lib.errors import DataError
from pipeline_lib.passes import ContributionSource, images_of_split, read_pass
from pipeline_lib.products import Products

logger = logging.getLogger(__name__)

#: Shares of the evaluated images kept between the one pass and the curves, in bytes; a task whose
#: shares need more is evaluated in a second pass.
KEPT_BYTES = 2**30

#: Images whose curves are taken at once.
_CHUNK = 1024


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
class Task:
    """What is predicted, with which classifier, on which images.

    Attributes
    ----------
    target
        Column of the manifest that is predicted.
    classifier
        Linear classifier on the representation.
    index, labels
        Images to evaluate, and the true class of each.
    reference, known
        Images over which the means are taken, and the true class of each, which ranks components
        by their effect. Other images than `index` for an honest curve.
    """

    target: str
    classifier: LinearClassifier
    index: Int[np.ndarray, " n"]
    labels: Sequence[str]
    reference: Int[np.ndarray, " r"]
    known: Sequence[str]

    def kept_bytes(self, components: int) -> int:
        """Size of the shares of the evaluated images."""
        return 4 * len(self.index) * components * len(self.classifier.classes)


def ablation_curves(
    source: ContributionSource,
    tasks: Sequence[Task],
    *,
    random_orders: int = 5,
    seed: int = 0,
    kept_bytes: int = KEPT_BYTES,
) -> pd.DataFrame:
    """Accuracy under mean ablation: by layer from either end, by kind, by effect, one by one.

    Parameters
    ----------
    source
        Dump of the contributions.
    tasks
        What is predicted; all tasks share one pass over the dump.
    random_orders, seed
        The control curve `random` ablates the layers in random orders and is their mean.
    kept_bytes
        Tasks whose shares do not fit into so many bytes are evaluated in a second pass.

    Returns
    -------
    DataFrame
        Columns `target`, `classifier`, `curve`, `step`, `ablated`, `accuracy`, `n` of table
        `ablation`. Step 0 of a curve is the full model; its last step, everything ablated, predicts
        one class for every image. `by_effect` ablates single components, first the one whose
        direct effect on the true class's logit is largest on the reference images.

    Raises
    ------
    DataError
        A task has no reference image, or a label that is no class of its classifier.

    Notes
    -----
    Mean ablation of direct effects (P1, section 3.2). Layers count from the input, 0 first.
    """
    size = len(source.components)
    groups = group_by_layer(source.components)
    references = [_Reference(task, size) for task in tasks]
    shares = _one_pass(source, tasks, references, kept_bytes)
    tables = []
    for task, reference, kept in zip(tasks, references, shares, strict=True):
        plan = make_plan(source.components, groups, random_orders, seed, reference.ranked)
        counts = _Counts(task, plan, reference)
        if kept is None:
            logger.info("%s: evaluated in a second pass", task.target)
            classes = Products.of(source.factors, task.classifier.weight.T)
            for where, coordinates in read_pass(source, task.index):
                counts.add(source, where, classes.parts(coordinates))
        else:
            for start in range(0, len(task.index), _CHUNK):
                where = slice(start, min(start + _CHUNK, len(task.index)))
                counts.add(source, where, kept[:, where])
        tables.append(counts.table())
    return pd.concat(tables, ignore_index=True)


def _one_pass(
    source: ContributionSource,
    tasks: Sequence[Task],
    references: Sequence[_Reference],
    kept_bytes: int,
) -> list[Float[np.ndarray, "c n k"] | None]:
    """Read the dump once: sums over the reference images, and the shares that may be kept."""
    size, left = len(source.components), kept_bytes
    kept: list[Float[np.ndarray, "c n k"] | None] = []
    for task in tasks:
        fits = task.kept_bytes(size) <= left
        left -= task.kept_bytes(size) * fits
        k = len(task.classifier.classes)
        kept.append(np.empty((size, len(task.index), k), np.float32) if fits else None)
    wanted = [task.reference for task in tasks]
    wanted += [task.index for task, room in zip(tasks, kept, strict=True) if room is not None]
    index = np.unique(np.concatenate(wanted))
    places = [_places(task.index, len(source.manifest)) for task in tasks]
    weights = np.concatenate([task.classifier.weight for task in tasks])
    all_classes = Products.of(source.factors, weights.T)
    for where, coordinates in read_pass(source, index):
        together = all_classes.parts(coordinates)
        first = 0
        for task, reference, room, place in zip(tasks, references, kept, places, strict=True):
            k = len(task.classifier.classes)
            part = together[..., first : first + k]
            first += k
            reference.add(index[where], part)
            if room is not None:
                at = place[index[where]]
                room[:, at[at >= 0]] = part[:, at >= 0]
    return kept


def _places(index: Int[np.ndarray, " n"], size: int) -> Int[np.ndarray, " m"]:
    """For each image of the dump its place in `index`; -1 where it is not in it."""
    places = np.full(size, -1, dtype=np.int64)
    places[index] = np.arange(len(index))
    return places


class _Reference:
    """Sums over the reference images of one task: means, and effects on the true class."""

    def __init__(self, task: Task, components: int) -> None:
        if len(task.reference) == 0:
            raise DataError(
                f"{task.target}: the mean of no image is asked for; the reference split is empty"
            )
        k = len(task.classifier.classes)
        self._total = np.zeros((components, k))
        self._true = np.zeros(components)
        self._classes = np.zeros(k)
        self._codes = np.full(int(task.reference.max()) + 1, -1, dtype=np.int64)
        self._codes[task.reference] = task.classifier.encode(task.known)
        self._count = len(task.reference)

    def add(self, index: Int[np.ndarray, " b"], shares: Float[np.ndarray, "c b k"]) -> None:
        """Count those of the images `index` that are reference images."""
        codes = np.full(len(index), -1, dtype=np.int64)
        inside = index < len(self._codes)
        codes[inside] = self._codes[index[inside]]
        chosen = np.flatnonzero(codes >= 0)
        part = shares[:, chosen]
        self._total += part.sum(axis=1, dtype=np.float64)
        own = np.take_along_axis(part, codes[None, chosen, None], axis=2)
        self._true += own.sum(axis=(1, 2), dtype=np.float64)
        self._classes += np.bincount(codes[chosen], minlength=len(self._classes))

    @property
    def means(self) -> Float[np.ndarray, "c k"]:
        """Mean share of each component in each class logit."""
        return (self._total / self._count).astype(np.float32)

    @property
    def ranked(self) -> Int[np.ndarray, " c"]:
        """Components by their mean share in the true class's logit beyond what their mean gives."""
        effect = self._true - self._total @ self._classes / self._count
        return np.argsort(-effect, kind="stable")


class _Counts:
    """Correct images of one task at each step of its curves."""

    def __init__(self, task: Task, plan: Plan, reference: _Reference) -> None:
        self._task, self._plan, self._means = task, plan, reference.means
        self._truth = task.classifier.encode(task.labels)
        self._base = self._means.sum(axis=0) + task.classifier.bias
        self._right = np.zeros(len(plan.steps), dtype=np.int64)

    def add(
        self, source: ContributionSource, where: slice, shares: Float[np.ndarray, "c b k"]
    ) -> None:
        """Count the images at the places `where` of the evaluated ones."""
        classifier, true = self._task.classifier, self._truth[where]
        full = classifier.logits(source.representation(self._task.index[where]))
        centred = shares - self._means[:, None]
        for step, logits in enumerate(self._plan.logits(full, self._base, centred)):
            self._right[step] += int((classifier.predict(logits) == true).sum())

    def table(self) -> pd.DataFrame:
        """Rows of table `ablation`, without model and data set."""
        table = pd.DataFrame(self._plan.steps, columns=["curve", "step", "ablated"])
        table["accuracy"] = self._right / max(1, len(self._task.index))
        table["n"] = len(self._task.index)
        table.insert(0, "classifier", self._task.classifier.kind)
        table.insert(0, "target", self._task.target)
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
    options = (asked, split, reference_split, head, texts)
    return ablation_curves(source, [make_task(source, t, *options) for t in targets], seed=seed)


def with_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the ends of a 95 % interval of each accuracy over images, `low` and `high`.

    Notes
    -----
    Wilson 1927: the score interval of a share of `n` images.
    """
    share, n, z = table["accuracy"], table["n"], 1.959964
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return table.assign(low=(middle - half).clip(lower=0), high=(middle + half).clip(upper=1))


def make_task(
    source: ContributionSource,
    target: str,
    asked: str,
    split: str | None,
    reference_split: str | None,
    head: Head | None,
    texts: pd.DataFrame | None,
) -> Task:
    """Task of one target, with the classifier that `ablation_table` describes."""
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
    return Task(target, classifier, index, labels, reference, known)


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


def _average_random(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over the orders of the curve `random`, step by step; other rows as they are."""
    random = table["curve"] == "random"
    if not random.any():
        return table
    keys = [name for name in table.columns if name not in ("accuracy", "n")]
    mean = table[random].groupby(keys, as_index=False, sort=True)
    return pd.concat(
        [table[~random], mean.agg({"accuracy": "mean", "n": "first"})], ignore_index=True
    )[list(table.columns)]
