"""Streamed moments: what scores and labels need of contributions, without keeping them.

Means and covariances of the stored coordinates are summed batch by batch; their size is that of one
matrix `[r, r]`, however many images there are. Moments of shards merge, so many jobs can make them
beside each other. Scores from these moments equal scores from the full dump.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from pipeline_lib.artifacts import atomic_path
from pipeline_lib.coordinates import Bases, Encoded
from pipeline_lib.errors import ArtifactError, DataError
from pipeline_lib.maps import Maps
from pipeline_lib.scores import Moments, map_blocks


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
            rows = np.asarray(batch, dtype=np.float64)
            if not np.isfinite(rows).all():
                raise DataError("coordinates hold NaN or infinity; run snakemake to repair them")
            mean = rows.mean(axis=0)
            centred = rows - mean
            part = cls(len(rows), mean, centred.T @ centred)
            found = part if found is None else found.merged(part)
        if found is None:
            raise DataError("there are no images to take moments of")
        return found

    def merged(self, other: StreamedMoments) -> StreamedMoments:
        """Moments of the images of both (Chan, Golub and LeVeque 1979)."""
        n = self.n + other.n
        gap = other.mean - self.mean
        squares = self.squares + other.squares
        squares += np.outer(gap, gap) * (self.n * other.n / n)
        return StreamedMoments(n, self.mean + gap * (other.n / n), squares)

    def save(self, path: str | Path) -> None:
        """Write as safetensors."""
        tensors = {"n": np.array([self.n]), "mean": self.mean, "squares": self.squares}
        with atomic_path(path) as beside:
            save_file(tensors, beside)

    @classmethod
    def load(cls, path: str | Path) -> StreamedMoments:
        """Read what `save` wrote.

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
        return cls(int(tensors["n"][0]), tensors["mean"], tensors["squares"])

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
        bases, order = stored_bases(stored)
        covariance = torch.from_numpy(self.squares[np.ix_(order, order)] / self.n)
        blocks = map_blocks(maps, bases).double()
        summing = bases.project(torch.eye(bases.width).expand(len(bases.vectors), -1, -1)).double()
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
    stored: Stored, batches: Iterable[Float32[np.ndarray, "b r"]], out: Float32[np.ndarray, "n r"]
) -> Encoded:
    """Coordinates of a dump as `coordinates.encode` would give them, without decoding them first.

    Parameters
    ----------
    stored
        The bases of the dump.
    batches
        Its coordinates in the order of images.
    out
        Where to put them: in memory, or mapped from a file.
    """
    bases, order = stored_bases(stored)
    start = 0
    for batch in batches:
        out[start : start + len(batch)] = batch[:, order]
        start += len(batch)
    if start != len(out):
        raise DataError(f"there is room for {len(out)} images, but {start} were read")
    return Encoded(out, bases)
