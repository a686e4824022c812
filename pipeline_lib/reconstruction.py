"""What a model still knows when its components are replaced by what a few texts explain of them.

A component's contribution, less its mean, is projected to the directions of its first texts; the
mean stays. A reader of the mapped representation, fitted on the whole one, is applied to the sum.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline_lib.coordinates import Encoded
from pipeline_lib.scores import Moments
from pipeline_lib.textspan import principal_directions
from pipeline_lib.truths import Factors, folds, linear_reader


def reconstruction_table(
    encoded: Encoded,
    found: Moments,
    directions: Mapping[str, Sequence[Float[Tensor, "s e"]]],
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
    directions
        Name of a kind of directions (such as `texts`) to each component's, in their order.
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
    plans: list[tuple[str, str, int, Float[Tensor, "r e"]]] = []
    for name, members in replaced.items():
        plans.append((name, "texts", -1, found.blocks))
        for kind, each in directions.items():
            for count in counts:
                plans.append((name, kind, count, _projected(found, each, members, count)))
    right = _accuracies(encoded, found, [plan[3] for plan in plans], factors, seed)
    rows = [
        (name, kind, count, feature, accuracy, len(encoded))
        for (name, kind, count, _), accuracies in zip(plans, right, strict=True)
        for feature, accuracy in zip(factors.names, accuracies.tolist(), strict=True)
    ]
    return pd.DataFrame(rows, columns=columns)


def bounds(found: Moments, count: int) -> list[Float[Tensor, "s e"]]:
    """First principal directions of every component: no directions keep more of its variance."""
    return [principal_directions(found, c)[:count] for c in range(len(found.within))]


def _projected(
    found: Moments,
    directions: Sequence[Float[Tensor, "s e"]],
    members: Collection[int],
    count: int,
) -> Float[Tensor, "r e"]:
    """Maps after which the contributions of `members` lie along their first directions."""
    blocks = found.blocks.clone()
    for component in members:
        columns, chosen = found.bases.slices[component], directions[component][:count].double()
        blocks[columns] = blocks[columns] @ chosen.T @ chosen
    return blocks


def _accuracies(
    encoded: Encoded,
    found: Moments,
    plans: Sequence[Float[Tensor, "r e"]],
    factors: Factors,
    seed: int,
) -> Float[np.ndarray, "p f"]:
    wanted = factors.one_hot()
    centred = torch.from_numpy(encoded.values) - found.mean.float()
    whole = (centred @ found.blocks.float()).double()
    right = np.zeros((len(plans), len(factors.names)))
    for train, test in folds(len(encoded), seed):
        reader, offset = linear_reader(whole[train], wanted[train])
        rows = centred[torch.from_numpy(test)]
        for place, blocks in enumerate(plans):
            images = (rows @ blocks.float()).double()
            right[place] += factors.correct(images @ reader + offset, test)
    return right / len(encoded)
