"""Factors: contributions as coordinates in bases that depend on the model's weights only.

A head writes into as many directions as it is wide, whatever the image. Its contributions are
stored as coordinates in an orthonormal basis of these directions; the bases stand once in a store.
A component whose directions are too many for that to save space is stored whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Integer
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pipeline_lib.artifacts import atomic_path
from pipeline_lib.errors import ArtifactError

Components = Sequence[int] | Integer[np.ndarray, " m"]

#: Directions below this share of the largest one are rounding of the weights, in float64.
RANK_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Factors:
    """Bases of the components, and where their coordinates stand among the columns.

    Attributes
    ----------
    ranks
        Coordinates of each component; `width` where it is stored whole.
    width
        `d`, the width of the model.
    bases
        Orthonormal rows of the components that are not whole, one below the other `[b, d]`.
    """

    ranks: tuple[int, ...]
    width: int
    bases: Float32[np.ndarray, "b d"]

    @classmethod
    def whole(cls, components: int, width: int) -> Factors:
        """Every component stored with all its `d` numbers."""
        return cls((width,) * components, width, np.zeros((0, width), dtype=np.float32))

    @property
    def columns(self) -> int:
        """Coordinates of one image."""
        return sum(self.ranks)

    @cached_property
    def slices(self) -> list[slice]:
        """For each component the columns of its coordinates."""
        stops = np.cumsum(self.ranks)
        return [slice(int(stop) - rank, int(stop)) for rank, stop in zip(self.ranks, stops)]

    @cached_property
    def vectors(self) -> list[Float32[np.ndarray, "r d"] | None]:
        """For each component its basis; `None` where it is stored whole."""
        found: list[np.ndarray | None] = []
        start = 0
        for rank in self.ranks:
            factored = rank < self.width
            found.append(self.bases[start : start + rank] if factored else None)
            start += rank if factored else 0
        return found

    @cached_property
    def digest(self) -> str:
        """Hash of ranks and bases: equal for the shards that belong together."""
        content = json.dumps([self.width, *self.ranks]).encode() + self.bases.tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def columns_of(self, components: Components) -> Integer[np.ndarray, " r"]:
        """Columns of some components, in their order."""
        parts = [np.arange(self.slices[c].start, self.slices[c].stop) for c in components]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def decode(
        self, coordinates: Float32[np.ndarray, "n r"], components: Components | None = None
    ) -> Float32[np.ndarray, "n c d"]:
        """Contributions from the coordinates of all components, or of some in their order."""
        wanted = range(len(self.ranks)) if components is None else components
        values = np.empty((len(coordinates), len(wanted), self.width), dtype=np.float32)
        start = 0
        for place, component in enumerate(wanted):
            part = coordinates[:, start : start + self.ranks[component]]
            basis = self.vectors[component]
            values[:, place] = part if basis is None else part @ basis
            start += self.ranks[component]
        return values


def factorise(
    spans: Sequence[Float64[np.ndarray, "m d"] | None], width: int, shard_size: int
) -> Factors:
    """Bases of the spans of components, where coordinates take less space than whole vectors.

    Whether they do is asked of one shard (`r d + n r < n d` for its `n` images), so that the answer
    does not change when images join.

    Parameters
    ----------
    spans
        For each component rows that span its contributions; `None` where they are unknown.
    width
        `d`, the width of the model.
    shard_size
        Images of a shard.
    """
    ranks, rows = [], []
    for span in spans:
        basis = None if span is None else _basis(span)
        if basis is None or len(basis) * (width + shard_size) >= shard_size * width:
            ranks.append(width)
            continue
        ranks.append(len(basis))
        rows.append(basis)
    bases = np.concatenate(rows) if rows else np.zeros((0, width))
    return Factors(tuple(ranks), width, bases.astype(np.float32))


def projected(
    span: Float64[np.ndarray, "m d"] | None, directions: Float64[np.ndarray, "k d"]
) -> Float64[np.ndarray, "k d"]:
    """Rows that span what a component can write along `directions`; products with these are kept.

    Parameters
    ----------
    span
        Rows that span the component's contributions; `None` where they are unknown.
    """
    if span is None:
        return directions
    own = _basis(span)
    return (directions @ own.T) @ own


def _basis(span: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "r d"]:
    """Orthonormal rows with the same span; one row at least."""
    if not span.any():
        return np.eye(1, span.shape[1])
    _, singular, right = np.linalg.svd(span, full_matrices=False)
    return right[singular > RANK_TOLERANCE * singular[0]]


def save_factors(factors: Factors, path: str | Path, facts: dict[str, Any]) -> None:
    """Write bases and ranks as safetensors, with JSON-able facts on what they belong to."""
    tensors = {"bases": factors.bases, "ranks": np.array(factors.ranks, dtype=np.int64)}
    with atomic_path(path) as beside:
        save_file(tensors, beside, {"facts": json.dumps(facts, sort_keys=True)})


def load_factors(path: str | Path) -> Factors:
    """Bases and ranks from a file of `save_factors`.

    Raises
    ------
    ArtifactError
        If there is no such file, or it is damaged.
    """
    try:
        with safe_open(path, "numpy") as content:
            bases, ranks = content.get_tensor("bases"), content.get_tensor("ranks")
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error}); delete it and run snakemake again"
        ) from error
    return Factors(tuple(map(int, ranks)), bases.shape[1], bases)


def group_columns(factors: Factors, targets: int | None) -> dict[str, int]:
    """Groups of images whose moments are apart, each with the columns that these are of.

    Parameters
    ----------
    factors
        The bases that the coordinates are taken in.
    targets
        Width of the targets that maps are fitted to; None where none are fitted.

    Returns
    -------
    dict
        `fit`: images that may be fitted on; `test`: those kept to test; where maps are fitted
        `heldout`: those held out of the fit, and the targets among the columns of both sides of it.
    """
    columns = factors.columns
    if targets is None:
        return {"fit": columns, "test": columns}
    return {"fit": columns + targets, "heldout": columns + targets, "test": columns}
