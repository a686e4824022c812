"""How good a ranking of images is: precision, average precision, intervals over queries.

Arrays in, numbers and rows of tables out; how images are ranked is in `retrieval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from pipeline_lib.errors import DataError
from pipeline_lib.intervals import mean_interval


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
    _check_depth(count, similarity.shape[1] - (leave_out is not None))
    values = _without(similarity, leave_out)
    if count >= similarity.shape[1] - 1:
        return _descending(values)[:, :count]
    first = np.argpartition(-values, count - 1, axis=1)[:, :count]
    first.sort(axis=1)
    order = np.argsort(-np.take_along_axis(values, first, axis=1), axis=1, kind="stable")
    return np.take_along_axis(first, order, axis=1)


def _descending(values: Float[np.ndarray, "q n"]) -> Int[np.ndarray, "q n"]:
    """Positions from the largest value to the smallest, equal ones in their order."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return np.stack(list(pool.map(_descending_row, values)))


def _descending_row(row: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """A stable sort takes several times longer; so equal values are put in order afterwards."""
    places = np.argsort(-row)
    ordered = row.take(places)
    equal = np.flatnonzero(ordered[1:] == ordered[:-1])
    starts = equal[np.diff(equal, prepend=-2) > 1]
    stops = equal[np.diff(equal, append=len(row) + 1) > 1] + 2
    for start, stop in zip(starts, stops, strict=True):
        places[start:stop].sort()
    return places


def precisions(
    ranks: Int[np.ndarray, "q m"], relevant: Bool[np.ndarray, "q n"], k: int
) -> Float[np.ndarray, " q"]:
    """For each query the share of relevant images among the first `k`, 0 to 1."""
    return np.take_along_axis(relevant, ranks[:, :k], axis=1).mean(axis=1)


def average_precisions(
    ranks: Int[np.ndarray, "q m"], relevant: Bool[np.ndarray, "q n"]
) -> Float[np.ndarray, " q"]:
    """For each query the mean, over its relevant images, of the precision at their rank.

    `ranks` holds all images; NaN for a query without a relevant image.
    """
    found = np.full(len(ranks), np.nan)
    for query, order in enumerate(ranks):
        places = np.flatnonzero(relevant[query].take(order))
        if len(places):
            found[query] = (np.arange(1, len(places) + 1) / (places + 1)).mean()
    return found


@dataclass(frozen=True)
class Found:
    """What one method found for some queries, over its draws.

    Attributes
    ----------
    similarity
        For each draw the similarity of queries and images.
    components
        Components used; 0 where the method does not choose any.
    leave_out
        The probe of each query; None for texts.
    """

    similarity: Sequence[Float[np.ndarray, "q n"]]
    components: int = 0
    leave_out: Int[np.ndarray, " q"] | None = None

    def take(self, queries: Int[np.ndarray, " p"] | Bool[np.ndarray, " q"] | slice) -> Found:
        """The same for some of the queries."""
        kept = None if self.leave_out is None else self.leave_out[queries]
        part = Found([one[queries] for one in self.similarity], self.components, kept)
        if "ranks" in vars(self):
            vars(part)["ranks"] = [ranks[queries] for ranks in self.ranks]
        return part

    @cached_property
    def ranks(self) -> list[Int[np.ndarray, "q m"]]:
        """All images of each draw, the best first."""
        count = self.similarity[0].shape[1] - (self.leave_out is not None)
        return [ranking(one, count, self.leave_out) for one in self.similarity]


def metric_rows(
    key: tuple[str, str, str, str],
    found: Found,
    relevant: Bool[np.ndarray, "q n"],
    ks: Sequence[int],
) -> list[dict[str, object]]:
    """Rows of table `retrieval`, without model and data set: one for each `k`.

    Parameters
    ----------
    key
        Columns query, feature, measured and method.
    found
        What the method found; values are means over its draws.
    relevant
        Which images are right for each query.
    ks
        Images retrieved.
    """
    _check_depth(max(ks), found.ranks[0].shape[1])
    average = np.concatenate([average_precisions(ranks, relevant) for ranks in found.ranks])
    rows = []
    for k in ks:
        values = np.mean([precisions(ranks, relevant, k) for ranks in found.ranks], axis=0)
        low, high = mean_interval(values)
        rows.append(
            dict(zip(("query", "feature", "measured", "method"), key, strict=True))
            | {"components": found.components, "k": k, "precision": float(values.mean())}
            | {"low": low, "high": high, "map": _mean(average)}
            | {"queries": len(relevant), "n": relevant.shape[1]}
        )
    return rows


def chance_rows(
    key: tuple[str, str, str],
    relevant: Bool[np.ndarray, "q n"],
    ks: Sequence[int],
    *,
    without_probe: bool = False,
) -> list[dict[str, object]]:
    """What a random order of the images gives, at any `k`."""
    hits = relevant.sum(axis=1) - without_probe
    shares = hits / (relevant.shape[1] - without_probe)
    low, high = mean_interval(shares)
    return [
        dict(zip(("query", "feature", "measured", "method"), (*key, "chance"), strict=True))
        | {"components": 0, "k": k, "precision": float(shares.mean()), "low": low, "high": high}
        | {"map": float(shares.mean()), "queries": len(relevant), "n": relevant.shape[1]}
        for k in ks
    ]


def example_rows(
    key: tuple[str, str, str],
    names: Sequence[str],
    found: Found,
    relevant: Bool[np.ndarray, "q n"] | None,
    image_ids: np.ndarray,
    shown: int,
) -> list[dict[str, object]]:
    """Rows of table `retrieval_examples`, without model and data set, of the first draw."""
    query, feature, method = key
    ranks, similarity = found.ranks[0][:, :shown], found.similarity[0]
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
        for rank, image in enumerate(ranks[row])
    ]


def _check_depth(count: int, available: int) -> None:
    if count > available:
        raise DataError(
            f"{count} images are asked for, but only {available} are searched; "
            "lower `k` or use more images"
        )


def _mean(values: Float[np.ndarray, " q"]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _without(
    similarity: Float[np.ndarray, "q n"], leave_out: Int[np.ndarray, " q"] | None
) -> Float[np.ndarray, "q n"]:
    if leave_out is None:
        return similarity
    values = similarity.astype(np.float32, copy=True)
    values[np.arange(len(values)), leave_out] = -np.inf
    return values
