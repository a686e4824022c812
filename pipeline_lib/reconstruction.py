"""What a model still knows when its components are replaced by what a few texts explain of them.

Of a component's contribution, less its mean, what its first texts keep stays; the mean stays whole.
A reader of the mapped representation is applied to the sum: a linear one of known factors, fitted
on the whole representation, and the zero-shot classifier of the images' labels. What texts keep
depends on the method of labelling: `along` is for those that project to directions.

Axis letters beside those of `textspan`: `v` value that is told, `m` some of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline_lib.coordinates import Encoded
from pipeline_lib.scores import Moments
from pipeline_lib.textspan import principal_directions
from pipeline_lib.truths import Factors, folds, linear_reader

#: What the first texts of a component keep of centred contributions `[n, e]` to it, for each of
#: some numbers of texts.
Kept = Callable[[int, Float[Tensor, "n e"], Sequence[int]], Sequence[Float[Tensor, "n e"]]]

#: Kind of directions to its name: the texts of a label, and what they are held against.
KINDS: Mapping[str, str] = {
    "texts": "texts",
    "random_texts": "random texts",
    "random": "random vectors",
    "pca": "principal components",
}


@dataclass(frozen=True)
class Reading:
    """How something is told of images from their mapped representations, less the mean.

    Attributes
    ----------
    name
        `linear` or `zero_shot`.
    factors
        What is told, of every image.
    readers
        Positions of images, and the weights and offset that give the logits of these.
    """

    name: str
    factors: Factors
    readers: Sequence[tuple[Int[np.ndarray, " m"], Float[Tensor, "e v"], Float[Tensor, " v"]]]

    @property
    def n(self) -> int:
        """Number of images that are read."""
        return sum(len(positions) for positions, _, _ in self.readers)


def linear_reading(encoded: Encoded, found: Moments, factors: Factors, *, seed: int) -> Reading:
    """Known factors by linear readers of the whole representation, each on images it did not see.

    Parameters
    ----------
    encoded, found
        Coordinates and moments of the components.
    factors
        Known factors of the images.
    seed
        Of the folds of the cross-validation.
    """
    wanted, whole = factors.one_hot(), _whole(encoded, found)
    readers = [
        (test, *linear_reader(whole[train], wanted[train]))
        for train, test in folds(len(encoded), seed)
    ]
    return Reading("linear", factors, readers)


def zero_shot_reading(
    found: Moments,
    bias: Float[Tensor, " e"],
    labels: pd.Series,
    texts: Mapping[str, Float[np.ndarray, " e"]],
) -> Reading:
    """The images' labels by the nearest text of a class (P1 section 3); nothing is fitted.

    Parameters
    ----------
    found, bias
        Moments of the components, and what the maps add to their sum.
    labels
        Label of every image; images without one are not read.
    texts
        Label to its unit text embedding.
    """
    known = np.flatnonzero(labels.notna())
    names, codes = np.unique(labels.iloc[known].astype(str), return_inverse=True)
    every = np.full((len(labels), 1), -1)
    every[known, 0] = codes
    weights = torch.from_numpy(np.stack([texts[name] for name in names])).double().T
    offset = (found.mean @ found.blocks + bias.double()) @ weights
    return Reading(
        "zero_shot", Factors(("label",), every, (len(names),)), [(known, weights, offset)]
    )


def along(directions: Sequence[Float[Tensor, "s e"]]) -> Kept:
    """What lies along the first of every component's orthonormal directions."""

    def kept(
        component: int, images: Float[Tensor, "n e"], counts: Sequence[int]
    ) -> list[Float[Tensor, "n e"]]:
        chosen = directions[component].to(images)
        amounts = images @ chosen.T
        return [amounts[:, :count] @ chosen[:count] for count in counts]

    return kept


def bounds(found: Moments, count: int) -> list[Float[Tensor, "s e"]]:
    """First principal directions of every component: no directions keep more of its variance."""
    return [principal_directions(found, c)[:count] for c in range(len(found.within))]


def reconstruction_table(
    encoded: Encoded,
    found: Moments,
    kinds: Mapping[str, Kept],
    readings: Sequence[Reading],
    *,
    replaced: Mapping[str, Collection[int]],
    counts: Sequence[int],
) -> pd.DataFrame:
    """Rows of table `reconstruction`, without model and data set.

    Parameters
    ----------
    encoded, found
        Coordinates and moments of the components.
    kinds
        Name of a kind of directions (such as `texts`) to what it keeps of each component.
    readings
        What is told of the images, and how; no rows without.
    replaced
        Name to the components that are replaced.
    counts
        Numbers of directions per component.
    """
    columns = ["replaced", "directions", "texts", "reader", "feature", "accuracy", "n"]
    if not readings:
        return pd.DataFrame(columns=columns)
    plans = [(name, "texts", -1) for name in replaced]
    plans += [(name, kind, count) for name in replaced for kind in kinds for count in counts]
    right = [np.zeros((len(plans), len(reading.factors.names))) for reading in readings]
    for positions, sums in _sums(encoded, found, kinds, plans, replaced, counts):
        for counted, reading in zip(right, readings, strict=True):
            for some, weights, offset in reading.readers:
                places = np.isin(positions, some)
                for plan, images in enumerate(sums[:, torch.from_numpy(places)]):
                    logits = images.double() @ weights + offset
                    counted[plan] += reading.factors.correct(logits, positions[places])
    rows = [
        (*plan, reading.name, feature, accuracy, reading.n)
        for counted, reading in zip(right, readings, strict=True)
        for plan, accuracies in zip(plans, counted / reading.n, strict=True)
        for feature, accuracy in zip(reading.factors.names, accuracies.tolist(), strict=True)
    ]
    return pd.DataFrame(rows, columns=columns)


def _whole(encoded: Encoded, found: Moments) -> Float[Tensor, "n e"]:
    """Mapped representations less their mean."""
    blocks, mean = found.blocks.float(), found.mean.float()
    parts = [((rows - mean) @ blocks).double() for _, rows in encoded.batches()]
    return torch.cat(parts)


def _sums(
    encoded: Encoded,
    found: Moments,
    kinds: Mapping[str, Kept],
    plans: Sequence[tuple[str, str, int]],
    replaced: Mapping[str, Collection[int]],
    counts: Sequence[int],
) -> Iterator[tuple[np.ndarray, Float[Tensor, "p b e"]]]:
    """Positions of some images, and their mapped representations after every plan, less the mean.

    A plan is which components are replaced, by what, and how much of it is kept.
    """
    blocks, mean = found.blocks.float(), found.mean.float()
    members = {name: set(some) for name, some in replaced.items()}
    for positions, coordinates in encoded.batches():
        rows = coordinates - mean
        sums = (rows @ blocks).repeat(len(plans), 1, 1)
        for component in sorted(set().union(*members.values())):
            columns = found.bases.slices[component]
            images = rows[:, columns] @ blocks[columns]
            kept = {
                (kind, count): part
                for kind, keep in kinds.items()
                for count, part in zip(counts, keep(component, images, counts), strict=True)
            }
            for place, (name, kind, count) in enumerate(plans):
                if component in members[name] and count >= 0:
                    sums[place] += kept[kind, count] - images
        yield positions, sums
