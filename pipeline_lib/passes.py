"""Passes over a dump: which images of it are read, in what pieces, and their means.

Everything the applications need of a dump is said in `ContributionSource`. A pass gives coordinates
as they are stored: products with directions (`products`) need no more, and full contributions
would be many times larger. It reads one piece ahead in a thread, so that decompressing and
computing overlap, and never holds more than two.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits
from torch import get_num_threads

from pipeline_lib.errors import DataError, close_matches
from pipeline_lib.factors import Factors

logger = logging.getLogger(__name__)

#: Coordinates of one piece, in bytes; `read_pass` holds two pieces, `work_through` one a thread.
BATCH_BYTES = 32 * 2**20

#: Pieces hold a multiple of so many images where they can: whole chunks of a store.
CHUNK_ROWS = 64

#: Coordinates of the images to choose on, which are held in memory, in bytes.
REFERENCE_BYTES = 2**29

#: Most images to choose on.
REFERENCE_IMAGES = 2000


class ContributionSource(Protocol):
    """What the applications need of a dump: see `pipeline_lib.dumps.open_dump`."""

    @property
    def components(self) -> pd.DataFrame: ...

    @property
    def manifest(self) -> pd.DataFrame: ...

    @property
    def factors(self) -> Factors: ...

    def coordinates(self, index: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b r"]: ...

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
    index: Int[np.ndarray, " n"], columns: int, budget: int = BATCH_BYTES
) -> Iterator[Int[np.ndarray, " b"]]:
    """Consecutive pieces of `index` whose float32 coordinates [b, r] fit into `budget` bytes."""
    size = max(1, budget // (4 * max(1, columns)))
    if size > CHUNK_ROWS:
        size -= size % CHUNK_ROWS
    for start in range(0, len(index), size):
        yield index[start : start + size]


def read_pass(
    source: ContributionSource, index: Int[np.ndarray, " n"]
) -> Iterator[tuple[slice, Float[np.ndarray, "b r"]]]:
    """Coordinates of the images `index`, piece by piece in their order.

    Parameters
    ----------
    source
        Dump of the contributions.
    index
        Positions of images; ascending ones are read fastest.

    Yields
    ------
    tuple
        Places in `index`, and the coordinates in `source.factors` of the images there.
    """
    places = _places(source, index)
    if not places:
        return
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(source.coordinates, index[places[0]])
        for number, where in enumerate(places):
            values = ahead.result()
            if number + 1 < len(places):
                ahead = reader.submit(source.coordinates, index[places[number + 1]])
            yield where, values


def _places(source: ContributionSource, index: Int[np.ndarray, " n"]) -> list[slice]:
    """Places in `index` of one piece after another."""
    places, start = [], 0
    for piece in batches(index, source.factors.columns):
        places.append(slice(start, start + len(piece)))
        start += len(piece)
    return places


def work_through(
    source: ContributionSource,
    index: Int[np.ndarray, " n"],
    work: Callable[[slice, Float[np.ndarray, "b r"]], None],
) -> None:
    """Read and work on the pieces of `index` in as many threads as the process may use.

    A product of matrices has one thread then: several that wait for each other within every small
    product, while others decompress, take up to twice as long.

    Parameters
    ----------
    source, index
        As for `read_pass`.
    work
        Takes what `read_pass` yields, in any order and several at a time.
    """
    places = _places(source, index)
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(get_num_threads()) as pool:
        list(pool.map(lambda where: work(where, source.coordinates(index[where])), places))


def mean_contributions(
    source: ContributionSource, index: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "c d"]:
    """Mean of each component's contribution over the images `index`, streamed.

    Raises
    ------
    DataError
        `index` is empty.
    """
    if len(index) == 0:
        raise DataError("the mean of no image is asked for; the reference split is empty")
    total = np.zeros(source.factors.columns)
    for _, values in read_pass(source, index):
        total += values.sum(axis=0, dtype=np.float64)
    return source.factors.decode((total / len(index)).astype(np.float32)[None])[0]


@dataclass(frozen=True)
class Held:
    """Some images of a dump in memory: their coordinates and representations."""

    values: Float[np.ndarray, "n r"]
    whole: Float[np.ndarray, "n d"]
    factors: Factors
    components: pd.DataFrame
    manifest: pd.DataFrame

    def coordinates(self, index: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b r"]:
        """As of a dump."""
        return self.values[index]

    def contributions(
        self, index: Int[np.ndarray, " b"], components: Sequence[int] | None = None
    ) -> Float[np.ndarray, "b c d"]:
        """As of a dump."""
        rows = self.values[index]
        chosen = rows if components is None else rows[:, self.factors.columns_of(components)]
        return self.factors.decode(chosen, components)

    def representation(self, index: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b d"]:
        """As of a dump."""
        return self.whole[index]


def hold(source: ContributionSource, index: Int[np.ndarray, " m"], seed: int) -> Held:
    """Some of the images `index`, drawn at random, as many as fit into `REFERENCE_BYTES`.

    Raises
    ------
    DataError
        `index` is empty.
    """
    if len(index) == 0:
        raise DataError("there is no image to choose on; set `choose_split` to a split with images")
    room = max(1, REFERENCE_BYTES // (4 * source.factors.columns))
    count = min(len(index), room, REFERENCE_IMAGES)
    chosen = np.sort(np.random.default_rng(seed).choice(index, size=count, replace=False))
    return Held(
        source.coordinates(chosen),
        source.representation(chosen),
        source.factors,
        source.components,
        source.manifest.iloc[chosen].reset_index(drop=True),
    )
