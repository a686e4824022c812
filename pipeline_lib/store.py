"""Zarr stores of a data set: laid out once, written by one job a shard, checked on read.

A store's arrays are declared in `pipeline_lib.artifacts.STORES`. Their first axis is the row of
the manifest; one Zarr shard holds the rows of one job, in smaller chunks that are read and
decompressed alone. The rule that creates a store owns its metadata; every shard *object* is a
file of its own, written whole by the one job that owns its rows, so that jobs need no lock and a
job that is run again replaces what it wrote. What was never written reads as NaN.

What the arrays of a dump mean, and which images they belong to, is in `pipeline_lib.dumps`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from jaxtyping import Float, Float32, Integer
from zarr.codecs import BloscCodec, Crc32cCodec

from pipeline_lib.artifacts import STORES, Array
from pipeline_lib.config import chunk_rows
from pipeline_lib.errors import ArtifactError

log = logging.getLogger(__name__)

#: Raised by hand when the layout of stores changes; a store of another version is refused.
LAYOUT_VERSION = 1

#: Components of one inner chunk, so that a few components can be read without the others.
CHUNK_COMPONENTS = 8


def shard_object(store: str | Path, kind: str, array: str, shard: int | str) -> str:
    """Path of the file that holds one shard of one array: the output of the job that writes it.

    >>> shard_object("x.zarr", "contributions", "representation", 3)
    'x.zarr/representation/c/3/0'
    """
    axes = _declared(kind, array).axes
    return "/".join([str(store), array, "c", str(shard), *["0"] * (len(axes) - 1)])


def create_store(
    path: str | Path,
    kind: str,
    sizes: Mapping[str, int],
    *,
    shard_size: int,
    dtype: str = "float32",
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Lay out a store, or make an existing one fit: shards that still fit are kept.

    Parameters
    ----------
    path
        Folder of the store, `….zarr`.
    kind
        A key of `STORES`.
    sizes
        Length of every axis, by its letter; `n` is the number of rows of the manifest. An
        optional array whose axis is not named is left out.
    shard_size
        Rows of one shard: those of one job.
    dtype
        Of the arrays declared with the dtype of the configuration: float32 or float16.
    attributes
        JSON-able facts on what the store holds; the same for every run that makes the same store.

    Notes
    -----
    More rows resize the arrays and touch no shard. An array whose other axes, dtype or shards
    differ from what is asked for cannot be read as asked: it is removed and laid out anew.

    Raises
    ------
    ArtifactError
        If the store cannot be written.
    """
    path = Path(path)
    try:
        group = zarr.open_group(path, mode="a", zarr_format=3)
        for array in STORES[kind]:
            _lay_out(group, path, array, sizes, shard_size, dtype)
        facts = {"kind": kind, "layout": LAYOUT_VERSION, "shard_size": shard_size}
        group.attrs.put({**dict(attributes or {}), **facts})
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {error}") from error


def write_shard(
    path: str | Path, kind: str, shard: int, arrays: Mapping[str, Float[np.ndarray, "rows ..."]]
) -> None:
    """Write one whole shard of every array; what was there before is replaced.

    Parameters
    ----------
    arrays
        For each array of the store its rows of this shard, all of them: `shard_size`, or what is
        left in the last shard. Rows of images that are not active are NaN.

    Raises
    ------
    ArtifactError
        If arrays are missing or unknown, the rows are not the whole shard, the shape does not
        fit, or the disk refuses; then no object of this shard is left.
    """
    store = Store(path, kind, writable=True)
    if set(arrays) != set(store.arrays):
        raise ArtifactError(
            f"{path}: shard {shard} must have the arrays {sorted(store.arrays)}, got "
            f"{sorted(arrays)}"
        )
    start, stop = store.rows_of(shard)
    for name, values in arrays.items():
        expected = (stop - start, *store.arrays[name].shape[1:])
        if values.shape != expected:
            raise ArtifactError(
                f"{path}: shard {shard} of {name!r} must be whole, {expected}, got {values.shape}"
            )
    objects = {name: Path(store.object_of(name, shard)) for name in store.arrays}
    try:
        for name in store.arrays:  # contributions last: where they are, all the others are
            objects[name].unlink(missing_ok=True)  # else Zarr reads it first, and may fail on it
            store.arrays[name][start:stop] = arrays[name]
    except OSError as error:
        for written in objects.values():
            _remove_around(written)
        raise ArtifactError(
            f"{path}: shard {shard} cannot be written ({error}); nothing of it was left. "
            "Free some space or choose another results folder, and run snakemake again."
        ) from error


class Store:
    """A store open for reading, its layout checked against its declaration.

    Attributes
    ----------
    arrays
        The Zarr arrays by name, in the order in which they are written.
    attributes
        What `create_store` was told of the content.
    rows, shard_size
        Rows of the store, and of one shard.

    Raises
    ------
    ArtifactError
        If there is no such store, or its layout is not what is declared.
    """

    def __init__(self, path: str | Path, kind: str, *, writable: bool = False) -> None:
        self.path, self.kind = Path(path), kind
        try:
            mode: Literal["r", "r+"] = "r+" if writable else "r"
            with zarr.config.set({"array.write_empty_chunks": True}):  # a shard is always a file
                group = zarr.open_group(self.path, mode=mode, zarr_format=3)
                found = dict(group.arrays())
        except (FileNotFoundError, ValueError) as error:
            raise ArtifactError(
                f"{self.path} is no Zarr store of {kind} ({error}); run snakemake to make it"
            ) from error
        self.attributes: dict[str, Any] = dict(group.attrs)
        self._check_kind()
        self.arrays = {a.name: found[a.name] for a in STORES[kind] if a.name in found}
        self._check_arrays()
        self.rows: int = next(iter(self.arrays.values())).shape[0]
        self.shard_size = int(self.attributes["shard_size"])

    def _check_kind(self) -> None:
        kind, layout = self.attributes.get("kind"), self.attributes.get("layout")
        if (kind, layout) != (self.kind, LAYOUT_VERSION):
            raise ArtifactError(
                f"{self.path} is a store of {kind!r} in layout {layout}; this version reads "
                f"{self.kind!r} in layout {LAYOUT_VERSION}. Delete it and run snakemake again."
            )

    def _check_arrays(self) -> None:
        problems = []
        rows = {array.shape[0] for array in self.arrays.values()}
        for declared in STORES[self.kind]:
            array = self.arrays.get(declared.name)
            if array is None:
                problems += [] if declared.optional else [f"{declared.name!r} is missing"]
            elif len(array.shape) != len(declared.axes):
                problems.append(f"{declared.name!r} has axes {array.shape}, not {declared.axes}")
            elif declared.dtype not in ("config", str(array.dtype)):
                problems.append(f"{declared.name!r} is {array.dtype}, not {declared.dtype}")
        if len(rows) > 1:
            problems.append(f"the arrays have different numbers of rows: {sorted(rows)}")
        if problems:
            listing = "\n  - ".join(problems)
            raise ArtifactError(
                f"{self.path} is not a valid store of {self.kind}:\n  - {listing}\n"
                "Delete it and run snakemake again."
            )

    def rows_of(self, shard: int) -> tuple[int, int]:
        """First row of a shard and the row after its last."""
        start = shard * self.shard_size
        if not 0 <= start < self.rows:
            raise ArtifactError(f"{self.path} has {self.rows} rows, so no shard {shard}")
        return start, min(start + self.shard_size, self.rows)

    def object_of(self, name: str, shard: int) -> str:
        """Path of the file that holds one shard of the array `name`."""
        return shard_object(self.path, self.kind, name, shard)

    def read(
        self,
        name: str,
        rows: Integer[np.ndarray, "n"],
        components: Sequence[int] | Integer[np.ndarray, "c"] | None = None,
    ) -> Float32[np.ndarray, "n ..."]:
        """Rows of an array, in the order asked for; only the chunks that hold them are read.

        Parameters
        ----------
        name
            Name of the array.
        rows
            Rows of the store; all of them must have been written.
        components
            Indices on the second axis; all where it is `None`.

        Raises
        ------
        ArtifactError
            If a row is missing, damaged or not finite: with the shard and how to repair it.
        """
        if name not in self.arrays:
            raise ArtifactError(f"{self.path} has no array {name!r}; it has {list(self.arrays)}")
        array = self.arrays[name]
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and not (0 <= rows.min() and rows.max() < self.rows):
            raise ArtifactError(
                f"{self.path} has {self.rows} rows, but row {rows.max()} is asked for; "
                "run snakemake to bring it up to date"
            )
        second = slice(None) if components is None else np.asarray(components, dtype=np.int64)
        tail = array.shape[1:] if components is None else (len(second), *array.shape[2:])
        values = np.empty((len(rows), *tail), dtype=np.float32)
        for where, start, stop in _blocks(rows, array.chunks[0], self.shard_size):
            block = self._read_block(name, start, stop, second)
            values[where] = block[rows[where] - start]
        self._check_finite(name, rows, values)
        return values

    def _read_block(self, name: str, start: int, stop: int, second: Any) -> np.ndarray:
        array = self.arrays[name]
        try:
            if isinstance(second, slice):
                return np.asarray(array[start:stop])
            return np.asarray(array.oindex[slice(start, stop), second])
        except Exception as error:  # what Zarr and its codecs raise on damage is of many kinds
            raise self._broken(name, start, f"is damaged ({error})") from error

    def _check_finite(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        sums = values.reshape(len(rows), -1).sum(axis=1) if len(rows) else np.zeros(0)
        bad = rows[~np.isfinite(sums)]
        if bad.size:
            raise self._broken(
                name, int(bad[0]), f"lacks {bad.size} of the {len(rows)} rows asked for"
            )

    def _broken(self, name: str, row: int, what: str) -> ArtifactError:
        shard = row // self.shard_size
        last = list(self.arrays)[-1]  # an output of the job, so that its absence runs the job
        objects = sorted({self.object_of(name, shard), self.object_of(last, shard)})
        return ArtifactError(
            f"{self.object_of(name, shard)} {what}: array {name!r}, row {row}, shard {shard}. "
            f"To repair it: rm -f {' '.join(objects)} && snakemake\n"
            "(only this shard is computed again)"
        )


def _declared(kind: str, name: str) -> Array:
    return next(array for array in STORES[kind] if array.name == name)


def _lay_out(
    group: zarr.Group,
    path: Path,
    array: Array,
    sizes: Mapping[str, int],
    shard_size: int,
    dtype: str,
) -> None:
    """Create an array, or resize the one that is there, or replace one that does not fit."""
    missing = [axis for axis in array.axes if axis not in sizes]
    if missing and not array.optional:
        raise ArtifactError(f"{path}: the length of axis {missing[0]!r} is not known")
    layout = None if missing else _layout(array, sizes, shard_size, dtype)
    if array.name in group:
        present = group[array.name]
        if layout is not None and _fits(present, layout):
            if present.shape != layout["shape"]:
                present.resize(layout["shape"])
            return
        log.warning("%s: %r no longer fits and is laid out anew", path, array.name)
        shutil.rmtree(path / array.name)
    if layout is not None:
        group.create_array(array.name, **layout)


def _layout(array: Array, sizes: Mapping[str, int], shard_size: int, dtype: str) -> dict[str, Any]:
    """Arguments of Zarr for one array: one shard over all axes but the first."""
    shape = tuple(sizes[axis] for axis in array.axes)
    lengths = {"n": chunk_rows(shard_size), "c": min(CHUNK_COMPONENTS, sizes.get("c", 1))}
    chunks = tuple(lengths.get(axis, sizes[axis]) for axis in array.axes)
    whole = [-(-size // chunk) * chunk for size, chunk in zip(shape, chunks, strict=True)]
    kind = np.dtype(dtype if array.dtype == "config" else array.dtype)
    blosc = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=kind.itemsize)
    return {
        "shape": shape,
        "dtype": kind,
        "chunks": chunks,
        "shards": (shard_size, *whole[1:]),
        "fill_value": np.nan,
        "compressors": (blosc, Crc32cCodec()),
        "dimension_names": array.axes,
    }


def _fits(present: Any, layout: Mapping[str, Any]) -> bool:
    return (
        isinstance(present, zarr.Array)
        and present.shape[1:] == layout["shape"][1:]
        and present.dtype == layout["dtype"]
        and present.chunks == layout["chunks"]
        and present.shards == layout["shards"]
    )


def _blocks(
    rows: np.ndarray, chunk: int, shard_size: int
) -> list[tuple[Integer[np.ndarray, "m"], int, int]]:
    """Runs of neighbouring chunks within one shard: positions in `rows`, first and last row."""
    order = np.argsort(rows, kind="stable")
    chunks = rows[order] // chunk
    new_run = np.diff(chunks, prepend=-2) > 1
    new_shard = np.diff(rows[order] // shard_size, prepend=-1) > 0
    starts = np.flatnonzero(new_run | new_shard)
    blocks = []
    for where in np.split(order, starts[1:]) if rows.size else []:
        blocks.append((where, int(rows[where[0]]), int(rows[where[-1]]) + 1))
    return blocks


def _remove_around(written: Path) -> None:
    """Remove a shard object and what Zarr may have left beside it while writing."""
    if written.parent.is_dir():
        for leftover in written.parent.glob(f"{written.name}*"):
            leftover.unlink(missing_ok=True)
