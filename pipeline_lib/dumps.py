"""Reading the stored contributions and features of a data set's images.

A dump is addressed by position among the *active* images of its manifest, never by row: removed
images are not seen here. Contributions are stored as coordinates (`pipeline_lib.factors`) and given
in full: every reader goes through `Dump.contributions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float32, Integer

from pipeline_lib.artifacts import read_table
from pipeline_lib.errors import ArtifactError
from pipeline_lib.factors import Factors
from pipeline_lib.store import Store
from pipeline_lib.store_layout import PRECISION

Index = Integer[np.ndarray, "b"]


class _Reader:
    """A store and the active images of its manifest.

    Attributes
    ----------
    manifest
        Active images, index 0 … n-1 in the order of their rows.
    """

    def __init__(self, store: Store, manifest: pd.DataFrame) -> None:
        self._store = store
        if len(manifest) > store.rows:
            raise ArtifactError(
                f"{store.path} has {store.rows} rows, but its manifest has {len(manifest)}; "
                "run snakemake to bring it up to date"
            )
        self.manifest = manifest[manifest["active"]].reset_index(drop=True)
        self._rows = self.manifest["row"].to_numpy()

    @property
    def n(self) -> int:
        """Number of active images."""
        return len(self.manifest)

    def batches(self, size: int) -> Iterator[Index]:
        """Positions 0 … n-1 in order, at most `size` at a time."""
        for start in range(0, self.n, size):
            yield np.arange(start, min(start + size, self.n))

    def _read(
        self, name: str, index: Sequence[int] | Index, columns: Index | None = None
    ) -> Float32[np.ndarray, "b ..."]:
        index = np.asarray(index, dtype=np.int64)
        if index.size and not (0 <= index.min() and index.max() < self.n):
            raise IndexError(f"positions must be from 0 to {self.n - 1}, got {index.max()}")
        return self._store.read(name, self._rows[index], columns)


class Dump(_Reader):
    """Contributions of one model on one data set.

    Attributes
    ----------
    components
        Table `components`, in the order of the axis `c`.
    manifest
        Active images, index 0 … n-1 in the order of their rows.
    attributes
        Facts on the model and its decomposition.
    """

    def __init__(self, store: Store, manifest: pd.DataFrame, components: pd.DataFrame) -> None:
        super().__init__(store, manifest)
        stored, listed = store.arrays["coordinates"].shape[1], int(components["rank"].sum())
        if listed != stored:
            raise ArtifactError(
                f"{store.path} has {stored} coordinates an image, but its table of components "
                f"lists {listed}; run snakemake to bring them up to date"
            )
        self.components = components
        self.attributes = store.attributes

    @property
    def path(self) -> Path:
        """Folder of the store."""
        return self._store.path

    @property
    def width(self) -> int:
        """Width d of the representation."""
        return int(self._store.arrays["representation"].shape[1])

    @property
    def is_whole(self) -> bool:
        """Whether contributions are given in full; else only along the directions asked for."""
        return self.attributes.get("level") != "projected"

    @property
    def has_logits(self) -> bool:
        """Whether the model has a classifier of its own."""
        return "logits" in self._store.arrays

    @property
    def precision(self) -> float:
        """Spacing of the stored numbers relative to their size."""
        return PRECISION[self._store.dtype]

    @cached_property
    def factors(self) -> Factors:
        """Bases of the components, read once.

        Raises
        ------
        ArtifactError
            If they are damaged.
        """
        ranks = tuple(map(int, self.components["rank"]))
        if "bases" not in self._store.arrays:
            return Factors.whole(len(ranks), self.width)
        return Factors(ranks, self.width, self._store.read_shared("bases"))

    def coordinates(self, index: Sequence[int] | Index) -> Float32[np.ndarray, "b r"]:
        """Contributions of all components as coordinates in `factors`, side by side."""
        return self._read("coordinates", index)

    def contributions(
        self, index: Sequence[int] | Index, components: Sequence[int] | Index | None = None
    ) -> Float32[np.ndarray, "b c d"]:
        """Direct contributions of the images at `index`, of all or some components.

        Parameters
        ----------
        index
            Positions among the active images, in any order.
        components
            Indices on the axis `c`, in any order; all where it is `None`.

        Raises
        ------
        ArtifactError
            If they are not stored, or damaged.
        """
        columns = None if components is None else self.factors.columns_of(components)
        return self.factors.decode(self._read("coordinates", index, columns), components)

    def representation(self, index: Sequence[int] | Index) -> Float32[np.ndarray, "b d"]:
        """Representation z of the images at `index`: what the contributions sum to."""
        return self._read("representation", index)

    def error(self, index: Sequence[int] | Index) -> Float32[np.ndarray, "b"]:
        """Norm of z minus the sum of contributions, over the norm of z."""
        return self._read("error", index)

    def rounding(self, index: Sequence[int] | Index) -> Float32[np.ndarray, "b"]:
        """Norm of what storing changed of an image's contributions, over their norm."""
        return self._read("rounding", index)

    def logits(self, index: Sequence[int] | Index) -> Float32[np.ndarray, "b k"]:
        """Logits of the model's own classifier.

        Raises
        ------
        ArtifactError
            If the model has none (`has_logits`).
        """
        return self._read("logits", index)


class Features(_Reader):
    """Image embeddings of the reference CLIP for one data set."""

    def embeddings(self, index: Sequence[int] | Index) -> Float32[np.ndarray, "b e"]:
        """Unit vectors in CLIP space of the images at `index`."""
        return self._read("image_embeddings", index)


def components_path(store: str | Path) -> Path:
    """Path of the table of components that belongs to a store of contributions.

    >>> components_path("contributions/deit/world.zarr").name
    'world.components.parquet'
    """
    return Path(store).with_suffix(".components.parquet")


def open_dump(store: str | Path, manifest: str | Path, *, projected: bool = False) -> Dump:
    """The dump in a store of contributions, for the images of a manifest.

    Parameters
    ----------
    store
        `contributions/{model}/{dataset}.zarr`; the table of components lies beside it.
    manifest
        `manifest/{dataset}/images.parquet`.
    projected
        Whether a dump of level `projected` will do, which gives contributions along the directions
        it was made for only.

    Raises
    ------
    ArtifactError
        If something is missing, the three do not belong together, or the dump is projected.
    """
    components = read_table("components", components_path(store))
    dump = Dump(Store(store, "contributions"), read_table("manifest", manifest), components)
    if not (dump.is_whole or projected):
        raise ArtifactError(
            f"{store} holds contributions along some directions only (contributions.level: "
            "projected), and more is asked for; use level factored"
        )
    return dump


def open_features(store: str | Path, manifest: str | Path) -> Features:
    """The image embeddings in `features/{dataset}.zarr`, for the images of a manifest.

    Raises
    ------
    ArtifactError
        If something is missing, or the two do not belong together.
    """
    return Features(Store(store, "features"), read_table("manifest", manifest))
