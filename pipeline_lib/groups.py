"""Groups of images, and the accuracy of a classifier on each of them and on average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Int

from pipeline_lib.errors import DataError

#: Rows of the table that are averages over groups.
AVERAGES = ("worst", "mean", "test", "train_weighted")


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
