"""Streamed moments: what scores and labels need of contributions, without keeping them.

Means and covariances of the stored coordinates are summed batch by batch; their size is that of one
matrix `[r, r]`, however many images there are. Moments of shards merge, so many jobs can make them
beside each other. Scores from these moments equal scores from the full dump.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from pipeline_lib.artifacts import MOMENTS, atomic_path
from pipeline_lib.coordinates import MEMORY_BYTES, Bases, Encoded, not_finite, room
from pipeline_lib.errors import ArtifactError, DataError
from pipeline_lib.hierarchy import Part, part_columns, summed_moments
from pipeline_lib.maps import Maps
from pipeline_lib.scores import Moments, map_blocks, sum_blocks


class Stored(Protocol):
    """What a dump stores of its bases: see `pipeline_lib.factors.Factors`."""

    @property
    def slices(self) -> list[slice]: ...

    @property
    def vectors(self) -> list[Float32[np.ndarray, "r d"] | None]: ...

    @property
    def width(self) -> int: ...


@dataclass
class StreamedMoments:
    """Count, mean and summed squares of coordinates, in float64.

    Attributes
    ----------
    n
        Images seen.
    mean
        Mean coordinates `[r]`, in the order of the store's columns.
    squares
        Sum over images of products of centred coordinates `[r, r]`.
    """

    n: int
    mean: Float64[np.ndarray, " r"]
    squares: Float64[np.ndarray, "r r"]

    @classmethod
    def of(cls, batches: Iterable[Float32[np.ndarray, "b r"]]) -> StreamedMoments:
        """Moments of coordinates that come in batches.

        Raises
        ------
        DataError
            There are no batches, or a value is not finite.
        """
        found: StreamedMoments | None = None
        for batch in batches:
            found = cls.none(np.shape(batch)[1]) if found is None else found
            found.add(batch)
        if found is None:
            raise DataError("there are no images to take moments of")
        return found

    @classmethod
    def none(cls, columns: int) -> StreamedMoments:
        """Moments of no image, to add to."""
        return cls(0, np.zeros(columns), np.zeros((columns, columns)))

    def add(self, batch: Float32[np.ndarray, "b r"]) -> None:
        """Count a batch of images in; no second matrix is made beside the sums.

        Raises
        ------
        DataError
            A value is not finite.
        """
        if not len(batch):
            return
        rows = np.asarray(batch, dtype=np.float64)
        if not np.isfinite(rows).all():
            raise DataError("coordinates hold NaN or infinity; run snakemake to repair them")
        mean = rows.mean(axis=0)
        centred = torch.from_numpy(rows - mean)
        torch.from_numpy(self.squares).addmm_(centred.T, centred)
        self._join(len(rows), mean)

    def merge(self, other: StreamedMoments) -> None:
        """Count the images of another in (Chan, Golub and LeVeque 1979); the order is free."""
        if other.n:
            self.squares += other.squares
            self._join(other.n, other.mean)

    def _join(self, count: int, mean: Float64[np.ndarray, " r"]) -> None:
        """What the distance of two means adds, and the mean of both."""
        n, gap = self.n + count, mean - self.mean
        added = torch.from_numpy(gap)
        torch.from_numpy(self.squares).addr_(added, added, alpha=self.n * count / n)
        self.mean += gap * (count / n)
        self.n = n

    def mapped(self, stored: Stored, maps: Maps) -> Moments:
        """Moments of mapped contributions: all that scores, labels and roles are made of.

        Parameters
        ----------
        stored
            The bases that the coordinates are taken in.
        maps
            Maps to CLIP space.
        """
        if self.n < 2:
            raise DataError(f"scores need at least 2 images, there are {self.n}")
        bases, order, covariance = self._covariance(stored)
        blocks = map_blocks(maps, bases).double()
        summing = sum_blocks(bases).double()
        cross = covariance @ blocks
        shares = ((covariance @ summing) * summing).sum(dim=1)
        strengths = torch.stack([shares[columns].sum() for columns in bases.slices])
        return Moments(
            n=self.n,
            bases=bases,
            blocks=blocks,
            mean=torch.from_numpy(self.mean[order]),
            within=[covariance[columns, columns] for columns in bases.slices],
            cross=cross,
            total=blocks.T @ cross,
            strengths=strengths / shares.sum().clamp_min(torch.finfo(torch.float64).tiny),
        )

    def _covariance(self, stored: Stored) -> tuple[Bases, np.ndarray, Float[Tensor, "r r"]]:
        """What `stored_bases` gives, and the covariance of the coordinates in that order."""
        bases, order = stored_bases(stored)
        return bases, order, torch.from_numpy(self.squares[np.ix_(order, order)] / self.n)

    def parts(self, stored: Stored, found: Moments, parts: Sequence[Part]) -> Moments:
        """As `hierarchy.part_moments`, from these moments alone.

        Parameters
        ----------
        stored
            The bases that the coordinates are taken in.
        found
            What `mapped` gave.
        parts
            Parts of the model above the components.
        """
        covariance, within = self._covariance(stored)[2], []
        for columns in part_columns(found, parts):
            blocks = found.blocks[columns]
            within.append(blocks.T @ covariance[columns][:, columns] @ blocks)
        return summed_moments(found, parts, within)


def save_moments(groups: Mapping[str, StreamedMoments], path: str | Path) -> None:
    """Write the moments of several groups of images as one safetensors file."""
    tensors = {
        f"{name}.{array.name}": np.atleast_1d(np.asarray(getattr(group, array.name)))
        for name, group in groups.items()
        for array in MOMENTS
    }
    with atomic_path(path) as beside:
        save_file(tensors, beside)


def load_moments(path: str | Path) -> dict[str, StreamedMoments]:
    """Read what `save_moments` wrote.

    Raises
    ------
    ArtifactError
        There is no such file, or it is damaged.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error}); delete it and run snakemake again"
        ) from error
    names = [key.removesuffix(".n") for key in tensors if key.endswith(".n")]
    return {
        name: StreamedMoments(
            int(tensors[f"{name}.n"][0]), tensors[f"{name}.mean"], tensors[f"{name}.squares"]
        )
        for name in names
    }


def stored_bases(stored: Stored) -> tuple[Bases, np.ndarray]:
    """The bases of a store in the order of `Bases`, and the store's columns in that order."""
    vectors: list[Float[Tensor, "r d"] | None] = [
        None if basis is None else torch.from_numpy(np.ascontiguousarray(basis))
        for basis in stored.vectors
    ]
    bases = Bases(vectors, stored.width)
    columns = [np.arange(where.start, where.stop) for where in stored.slices]
    return bases, np.concatenate([columns[component] for component in bases.order])


def stored_coordinates(
    stored: Stored,
    read: Callable[[Int[np.ndarray, " b"]], Float32[np.ndarray, "b r"]],
    positions: Int[np.ndarray, " n"],
    *,
    batch_size: int = 256,
    memory_bytes: int = MEMORY_BYTES,
    name: str = "contributions",
) -> Encoded:
    """Coordinates of a dump as `coordinates.encode` would give them, without decoding them first.

    Parameters
    ----------
    stored
        The bases of the dump.
    read
        Gives its coordinates at some positions (`Dump.coordinates`).
    positions
        The images asked for.
    batch_size
        Images read at once.
    memory_bytes
        Coordinates that need more than this go to a temporary file.
    name
        Where they are read from, for messages.

    Raises
    ------
    DataError
        There is no image.
    ArtifactError
        A value is not finite; as of `coordinates.Source.take`.
    """
    if not len(positions):
        raise DataError("no images are left to read contributions of; check the splits asked for")
    bases, order = stored_bases(stored)
    values = room(len(positions), len(order), memory_bytes)
    for start in range(0, len(positions), batch_size):
        batch = read(positions[start : start + batch_size])
        if not np.isfinite(batch).all():
            image, column = np.argwhere(~np.isfinite(batch))[0].tolist()
            component = next(c for c, where in enumerate(stored.slices) if column < where.stop)
            raise not_finite(name, component, start + image, len(positions))
        values[start : start + len(batch)] = batch[:, order]
    return Encoded(values, bases)
