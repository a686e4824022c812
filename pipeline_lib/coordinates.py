"""Contributions read in batches, and the few coordinates in which each component really varies.

A head's contributions lie in a subspace of at most `head_dim` of the `d` dimensions of the model.
What is computed for many components (maps, text labels) is computed in an orthonormal basis of
that subspace: the same numbers, several times cheaper. Nothing here knows of files.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline_lib.errors import ArtifactError, DataError

log = logging.getLogger(__name__)

#: Singular values below this share of the largest one are rounding, not signal; or below half the
#: precision of the stored numbers, where that is coarser.
RANK_TOLERANCE = 1e-5
#: Images from which the subspace of every component is found; it is verified on all images.
SAMPLE = 384
#: A found basis may lose this share of a component's sum of squares, or the square of the stored
#: numbers' precision; else all `d` axes are kept.
LOST_ENERGY = 1e-10
#: Coordinates larger than this are kept in a temporary file instead of memory.
MEMORY_BYTES = 1 << 30
#: Images whose coordinates are read at once.
AT_ONCE = 1024


def not_finite(name: str, component: int, image: int, n: int) -> ArtifactError:
    """What is raised where contributions of `n` images, read from `name`, hold NaN or infinity."""
    return ArtifactError(
        f"{name}: NaN or infinity, first for component {component} of image {image} (counted from "
        f"0 among the {n} images read): the dump is incomplete or damaged; delete that "
        "contributions store and run snakemake again"
    )


@dataclass(frozen=True)
class Source:
    """Contributions of `n` images, read by position in batches and never held whole.

    Attributes
    ----------
    n
        Number of images.
    read
        Called with increasing integer positions `[b]` (0 … n-1); gives contributions `[b, c, d]`.
    batch_size
        Images read at once where everything is read in order.
    precision
        Spacing of the stored numbers relative to their size: `numpy.finfo(dtype).eps`.
    name
        Where they are read from, for messages: the path of the store.
    """

    n: int
    read: Callable[[np.ndarray], np.ndarray | Tensor]
    batch_size: int = 256
    precision: float = float(np.finfo(np.float32).eps)
    name: str = "contributions"

    @classmethod
    def of_array(cls, contributions: np.ndarray | Tensor, batch_size: int = 256) -> Source:
        """Source that reads from an array `[n, c, d]` in memory."""
        return cls(len(contributions), lambda index: contributions[index], batch_size)

    def at(self, positions: np.ndarray) -> Source:
        """The images at `positions` [m] alone, as a source of its own."""
        positions = np.asarray(positions)
        return replace(self, n=len(positions), read=lambda index: self.read(positions[index]))

    def take(self, index: np.ndarray) -> Float[Tensor, "b c d"]:
        """Contributions at positions `index`, as float32.

        Raises
        ------
        ArtifactError
            A value is not finite; the message names the store, the first such image and component.
        """
        values = torch.as_tensor(self.read(index)).float()
        if not torch.isfinite(values).all():
            image, component, _ = torch.nonzero(~torch.isfinite(values))[0].tolist()
            raise not_finite(self.name, component, int(index[image]), self.n)
        return values

    def batches(self) -> Iterator[tuple[np.ndarray, Float[Tensor, "b c d"]]]:
        """All images in order: positions and contributions of one batch after another."""
        for start in range(0, self.n, self.batch_size):
            index = np.arange(start, min(start + self.batch_size, self.n))
            yield index, self.take(index)


@dataclass(frozen=True)
class Bases:
    """Orthonormal bases of the components' subspaces, and where their coordinates stand.

    Components of equal rank stand side by side, so that they can be treated in one product.

    Attributes
    ----------
    vectors
        For each component its basis `[r, d]`, or `None` where all `d` axes are kept.
    width
        `d`, the width of the model.
    """

    vectors: Sequence[Float[Tensor, "r d"] | None]
    width: int

    @property
    def ranks(self) -> list[int]:
        """Number of coordinates of each component."""
        return [self.width if basis is None else len(basis) for basis in self.vectors]

    @property
    def order(self) -> list[int]:
        """Components in the order in which their coordinates stand."""
        ranks = self.ranks
        return sorted(range(len(ranks)), key=lambda component: ranks[component])

    @property
    def slices(self) -> list[slice]:
        """For each component the columns that hold its coordinates."""
        ranks, start = self.ranks, 0
        found = [slice(0)] * len(ranks)
        for component in self.order:
            found[component] = slice(start, start + ranks[component])
            start += ranks[component]
        return found

    @property
    def groups(self) -> list[tuple[int, int, int]]:
        """Runs of components of equal rank: first column, number of components, rank."""
        ranks, found, start = self.ranks, [], 0
        for rank in sorted(set(ranks)):
            count = ranks.count(rank)
            found.append((start, count, rank))
            start += count * rank
        return found

    def encode(self, contributions: Float[Tensor, "n c d"]) -> Float[Tensor, "n r"]:
        """Coordinates of contributions; the coordinates of all components side by side."""
        parts = []
        for component in self.order:
            basis, values = self.vectors[component], contributions[:, component]
            parts.append(values if basis is None else values @ basis.T)
        return torch.cat(parts, dim=1)

    def project(self, weights: Float[Tensor, "c d e"]) -> Float[Tensor, "r e"]:
        """Maps restricted to the subspaces: what `weights` do to coordinates."""
        parts = []
        for component in self.order:
            basis, matrix = self.vectors[component], weights[component]
            parts.append(matrix if basis is None else basis @ matrix)
        return torch.cat(parts, dim=0)

    def expand(
        self, blocks: Float[Tensor, "r e"], elsewhere: Float[Tensor, "c d e"] | None = None
    ) -> Float[Tensor, "c d e"]:
        """Maps `[c, d, e]` that act as `blocks` on coordinates.

        On directions outside a component's subspace they act as `elsewhere`, or as zero.
        """
        count, out = len(self.vectors), blocks.shape[1]
        weights = blocks.new_zeros(count, self.width, out)
        for component, (basis, columns) in enumerate(zip(self.vectors, self.slices, strict=True)):
            block = blocks[columns]
            if basis is None:
                weights[component] = block
                continue
            if elsewhere is not None:
                base = elsewhere[component]
                weights[component] = base - basis.T @ (basis @ base)
            weights[component] += basis.T @ block
        return weights


@dataclass(frozen=True)
class Encoded:
    """Coordinates `[n, r]` of all images, in memory or in a temporary file, with their bases."""

    values: np.ndarray
    bases: Bases

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: np.ndarray) -> Float[Tensor, "b r"]:
        """Coordinates of the images at positions `index`."""
        return torch.from_numpy(np.ascontiguousarray(self.values[index]))

    def batches(
        self, index: np.ndarray | None = None, *, size: int | None = None
    ) -> Iterator[tuple[np.ndarray, Float[Tensor, "b r"]]]:
        """All images in order, or those at positions `index`: positions and coordinates.

        `size` is how many are read at once, `AT_ONCE` by default.
        """
        index, size = np.arange(len(self)) if index is None else index, size or AT_ONCE
        for start in range(0, len(index), size):
            part = index[start : start + size]
            yield part, self.rows(part)

    def mean(self, index: np.ndarray | None = None) -> Float[Tensor, " r"]:
        """Mean of the coordinates of all images, or of those at `index`, summed in float64."""
        sums = torch.zeros(self.values.shape[1], dtype=torch.float64)
        for _, rows in self.batches(index):
            sums += rows.double().sum(dim=0)
        return sums / (len(self) if index is None else len(index))


def find_bases(source: Source, *, sample: int = SAMPLE, tolerance: float = RANK_TOLERANCE) -> Bases:
    """Bases of the components' subspaces, from evenly spaced images of `source`.

    A component whose rank in the sample comes near the sample's size, or near `d`, keeps all axes:
    its subspace is not known from so few images, or nothing would be won.

    Parameters
    ----------
    source
        Contributions.
    sample
        Number of images looked at.
    """
    tolerance = max(RANK_TOLERANCE, source.precision / 2)
    index = np.unique(np.linspace(0, source.n - 1, min(sample, source.n)).astype(int))
    seen = torch.cat([source.take(part) for part in np.array_split(index, -(-len(index) // 128))])
    vectors = [_basis(seen[:, component], tolerance) for component in range(seen.shape[1])]
    return Bases(vectors, seen.shape[2])


def _basis(values: Float[Tensor, "m d"], tolerance: float) -> Float[Tensor, "r d"] | None:
    """Orthonormal rows spanning `values`, or `None` where their span cannot be told."""
    count, width = values.shape
    gram = values.double() @ values.double().T
    eigenvalues, vectors = torch.linalg.eigh(gram)
    keep = eigenvalues > tolerance**2 * eigenvalues[-1].clamp_min(torch.finfo(torch.float64).tiny)
    rank = int(keep.sum())
    if rank == 0:
        return torch.eye(1, width)
    if rank > count // 2 or rank > 0.75 * width:
        return None
    rows = vectors[:, keep].T @ values.double()
    return torch.linalg.qr(rows.T).Q.T.contiguous().float()


def encode(
    source: Source,
    *,
    bases: Bases | None = None,
    memory_bytes: int = MEMORY_BYTES,
    folder: str | Path | None = None,
) -> Encoded:
    """Coordinates of all images, exact up to rounding, read in one pass.

    A component that turns out to leave its basis by more than `LOST_ENERGY` of its sum of squares
    gets all `d` axes, and everything is read once more.

    Parameters
    ----------
    source
        Contributions.
    bases
        Bases to use; by default those that `find_bases` finds.
    memory_bytes
        Coordinates that need more than this go to a temporary file in `folder`, which vanishes
        with the process.
    folder
        Folder of that file; by default the system's.
    """
    if source.n < 1:
        raise DataError("no images are left to read contributions of; check the splits asked for")
    found = find_bases(source) if bases is None else bases
    values = room(source.n, sum(found.ranks), memory_bytes, folder)
    leaving = _fill(values, source, found)
    if any(leaving):
        log.info("%d components leave the basis found in the sample", sum(leaving))
        pairs = zip(found.vectors, leaving, strict=True)
        kept = Bases([None if leaves else basis for basis, leaves in pairs], found.width)
        return encode(source, bases=kept, memory_bytes=memory_bytes, folder=folder)
    log.info("%d components need %d coordinates", len(found.ranks), sum(found.ranks))
    return Encoded(values, found)


def _fill(values: np.ndarray, source: Source, bases: Bases) -> list[bool]:
    """Write all coordinates into `values`; true for components that leave their basis."""
    slices = bases.slices
    total = [0.0] * len(slices)
    lost = [0.0] * len(slices)
    for index, contributions in source.batches():
        coordinates = bases.encode(contributions)
        values[index] = coordinates.numpy()
        for component, basis in enumerate(bases.vectors):
            if basis is not None:
                rows = contributions[:, component]
                total[component] += float(rows.square().sum())
                rest = rows - coordinates[:, slices[component]] @ basis
                lost[component] += float(rest.square().sum())
    allowed = max(LOST_ENERGY, source.precision**2)
    return [out > allowed * of for out, of in zip(lost, total, strict=True)]


def room(n: int, width: int, memory_bytes: int, folder: str | Path | None = None) -> np.ndarray:
    """Float32 array [n, width], in an unnamed temporary file where it is large."""
    if n * width * 4 <= memory_bytes:
        return np.empty((n, width), dtype=np.float32)
    try:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as the array)
        return np.memmap(file, dtype=np.float32, mode="w+", shape=(n, width))
    except OSError as error:
        where = folder or tempfile.gettempdir()
        raise ArtifactError(
            f"{n * width * 4 / 1e9:.1f} GB of coordinates cannot be kept in {where}: {error}; "
            "free space there or set TMPDIR to a folder with room"
        ) from error
