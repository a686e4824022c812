"""What a model still knows when its components are replaced by what a few texts explain of them.

Of a component's contribution, less its mean, what its first texts keep stays; the mean stays whole.
A reader of the mapped representation, fitted on the whole one, is applied to the sum. What texts
keep depends on the method of labelling: `along` is for those that project to directions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline_lib.coordinates import Encoded
from pipeline_lib.scores import Moments
from pipeline_lib.textspan import principal_directions
from pipeline_lib.truths import Factors, folds, linear_reader

#: What the first texts of a component keep of centred contributions `[n, e]` to it, for each of
#: some numbers of texts.
Kept = Callable[[int, Float[Tensor, "n e"], Sequence[int]], Sequence[Float[Tensor, "n e"]]]

_CHUNK = 1024


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
    factors: Factors,
    *,
    replaced: Mapping[str, Collection[int]],
    counts: Sequence[int],
    seed: int,
) -> pd.DataFrame:
    """Rows of table `reconstruction`, without model and data set.

    Parameters
    ----------
    encoded, found
        Coordinates and moments of the components.
    kinds
        Name of a kind of directions (such as `texts`) to what it keeps of each component.
    factors
        Known factors of the images, which are told from the representation; no rows without.
    replaced
        Name to the components that are replaced.
    counts
        Numbers of directions per component.
    seed
        Of the folds of the cross-validation.
    """
    columns = ["replaced", "directions", "texts", "feature", "accuracy", "n"]
    if not factors.names:
        return pd.DataFrame(columns=columns)
    plans = [(name, "texts", -1) for name in replaced]
    plans += [(name, kind, count) for name in replaced for kind in kinds for count in counts]
    wanted, right = factors.one_hot(), np.zeros((len(plans), len(factors.names)))
    whole = _whole(encoded, found)
    readers = [
        (test, *linear_reader(whole[train], wanted[train]))
        for train, test in folds(len(encoded), seed)
    ]
    for positions, sums in _sums(encoded, found, kinds, plans, replaced, counts):
        for test, reader, offset in readers:
            places = np.isin(positions, test)
            images = sums[:, torch.from_numpy(places)].double()
            right += factors.correct(images @ reader + offset, positions[places])
    rows = [
        (*plan, feature, accuracy, len(encoded))
        for plan, accuracies in zip(plans, right / len(encoded), strict=True)
        for feature, accuracy in zip(factors.names, accuracies.tolist(), strict=True)
    ]
    return pd.DataFrame(rows, columns=columns)


def _whole(encoded: Encoded, found: Moments) -> Float[Tensor, "n e"]:
    """Mapped representations less their mean."""
    blocks, mean = found.blocks.float(), found.mean.float()
    parts = [((rows - mean) @ blocks).double() for _, rows in _chunks(encoded)]
    return torch.cat(parts)


def _chunks(encoded: Encoded) -> Iterator[tuple[np.ndarray, Float[Tensor, "b r"]]]:
    for start in range(0, len(encoded), _CHUNK):
        positions = np.arange(start, min(start + _CHUNK, len(encoded)))
        yield positions, encoded.rows(positions)


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
    for positions, coordinates in _chunks(encoded):
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
