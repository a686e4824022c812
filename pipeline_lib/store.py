"""Zarr stores of a data set: shards written by many jobs, described by one, checked on read.

A store's arrays are declared in `pipeline_lib.artifacts.STORES`. Their first axis is the row of
the manifest; one Zarr shard holds the rows of one job, in smaller chunks that are read and
decompressed alone. A shard *object* is a file of its own, made whole and in memory by the one job
that owns its rows (`write_shard`): it needs no metadata on disk, no lock, and a job that is run
again replaces what it wrote. When all are there, one job writes the metadata (`write_layout`),
which makes the folder a store. What was never written reads as NaN.

What the arrays of a dump mean, and which images they belong to, is in `pipeline_lib.dumps`.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from jaxtyping import Float, Float32, Integer
from zarr.storage import MemoryStore

from pipeline_lib.artifacts import STORES, Array, atomic_path
from pipeline_lib.errors import ArtifactError
from pipeline_lib.store_layout import (
    decoded,
    disk_dtype,
    document,
    encoded,
    from_disk,
    layout_of,
    metadata,
    object_key,
)

log = logging.getLogger(__name__)

#: Raised by hand when the layout of stores changes; a store of another version is refused.
LAYOUT_VERSION = 2

#: Rows that Zarr reads at once, in bytes: larger buffers are mapped anew for every read, and
#: clearing their pages takes as long as decompressing.
BLOCK_BYTES = 16 * 2**20


def shard_object(store: str | Path, kind: str, array: str, shard: int | str) -> str:
    """Path of the file that holds one shard of one array: the output of the job that writes it.

    >>> shard_object("x.zarr", "contributions", "representation", 3)
    'x.zarr/representation/c/3/0'
    """
    return "/".join([str(store), array, *object_key(_declared(kind, array), shard)])


def write_shard(
    path: str | Path,
    kind: str,
    shard: int,
    arrays: Mapping[str, Float[np.ndarray, "rows ..."]],
    *,
    shard_size: int,
    dtype: str = "float32",
) -> None:
    """Write one whole shard of every array; what was there before is replaced.

    Parameters
    ----------
    path
        Folder of the store, `….zarr`.
    kind
        A key of `STORES`.
    shard
        Number of the shard; it holds the rows from `shard * shard_size`.
    arrays
        For each array its rows of this shard: `shard_size` of them, or what is left in the last
        shard. Rows of images that are not active are NaN. Optional arrays may be left out.
    shard_size
        Rows of a shard.
    dtype
        Of the arrays declared with the dtype of the configuration: float32, float16, bfloat16.

    Raises
    ------
    ArtifactError
        If arrays are missing or unknown, the rows are no shard, the axes do not fit, or the disk
        refuses; then no object of this shard is left.
    """
    path = Path(path)
    sizes = _sizes_of(path, kind, shard, arrays, shard_size)
    declared_arrays = [array for array in STORES[kind] if array.per_image]
    objects = {a.name: Path(shard_object(path, kind, a.name, shard)) for a in declared_arrays}
    for name in objects:  # an array that the model no longer has must not stay
        if name not in arrays:
            objects[name].unlink(missing_ok=True)
    try:
        for declared in declared_arrays:
            if declared.name in arrays:
                layout = layout_of(declared, sizes, shard_size, dtype)
                with atomic_path(objects[declared.name]) as beside:
                    beside.write_bytes(encoded(declared, layout, arrays[declared.name]))
    except ArtifactError as error:
        for written in objects.values():
            written.unlink(missing_ok=True)
        raise ArtifactError(
            f"{error}; nothing of shard {shard} was left. Free some space or choose another "
            "results folder, and run snakemake again."
        ) from error


def read_shard(
    path: str | Path, kind: str, array: str, sizes: Mapping[str, int], *, shard_size: int
) -> Float32[np.ndarray, "rows ..."]:
    """Rows of one shard object of an array, for a job that must not wait for the whole store.

    Parameters
    ----------
    path
        The object, as `shard_object` names it.
    kind, array
        Of the store, and the name of its array.
    sizes
        Length of every axis, by its letter; `n` is the number of rows of this shard.
    shard_size
        Rows of a shard.

    Raises
    ------
    ArtifactError
        If it is missing or damaged.
    """
    declared = _declared(kind, array)
    try:
        content = Path(path).read_bytes()
        return decoded(declared, layout_of(declared, sizes, shard_size, "float32"), content)
    except Exception as error:  # what Zarr and its codecs raise on damage is of many kinds
        raise ArtifactError(
            f"{path} is missing or damaged ({error}); delete it and run snakemake again"
        ) from error


def write_layout(
    path: str | Path,
    kind: str,
    sizes: Mapping[str, int],
    *,
    shard_size: int,
    dtype: str = "float32",
    attributes: Mapping[str, Any] | None = None,
    shared: Mapping[str, Float[np.ndarray, "..."]] | None = None,
) -> None:
    """Write a store's metadata, and what all images share; removes shards beyond the last row.

    Parameters
    ----------
    path, kind, shard_size, dtype
        As for the shards.
    sizes
        Length of every axis, by its letter; `n` is the number of rows of the manifest. An
        optional array whose axis is not named is left out.
    attributes
        JSON-able facts on what the store holds; the same for every run that makes the same store.
    shared
        Arrays without the axis of images, written whole.

    Raises
    ------
    ArtifactError
        If the length of an axis is not given, or the store cannot be written.
    """
    path = Path(path)
    shared = shared or {}
    documents: dict[Path, bytes] = {}
    for array in STORES[kind]:
        missing = [axis for axis in array.axes if axis not in sizes]
        if missing and not array.optional:
            raise ArtifactError(f"{path}: the length of axis {missing[0]!r} is not known")
        absent = bool(missing) or not (array.per_image or array.name in shared)
        if not absent:
            layout = layout_of(array, sizes, shard_size, dtype)
            documents[path / array.name / "zarr.json"] = metadata(array, layout)
            if array.name in shared:
                place = Path(shard_object(path, kind, array.name, 0))
                documents[place] = encoded(array, layout, shared[array.name])
        count = -(-sizes["n"] // shard_size) if array.per_image else 1
        _remove_shards(path, kind, array, None if absent else count)
    facts = {"kind": kind, "layout": LAYOUT_VERSION, "shard_size": shard_size, "dtype": dtype}
    group = zarr.create_group(MemoryStore(), attributes={**dict(attributes or {}), **facts})
    documents[path / "zarr.json"] = document(group.store, "zarr.json")
    for place, content in documents.items():  # the group's last: then the store is complete
        with atomic_path(place) as beside:
            beside.write_bytes(content)


class Shard:
    """The rows of one shard and the arrays that are filled for them, NaN where nothing is put.

    Attributes
    ----------
    number
        Number of the shard.
    active
        Its active images, in the order of their rows.
    arrays
        What was put so far, for `write_shard`.

    Raises
    ------
    ArtifactError
        If the rows are not one whole shard.
    """

    def __init__(self, rows: pd.DataFrame, shard_size: int) -> None:
        numbers = rows["row"].to_numpy()
        self.number = int(numbers[0]) // shard_size
        start = self.number * shard_size
        if list(numbers) != list(range(start, start + len(rows))) or len(rows) > shard_size:
            raise ArtifactError(
                f"rows {numbers[0]} to {numbers[-1]} are not one whole shard of {shard_size} "
                "rows; delete the manifest's folder and run snakemake again"
            )
        self.active = rows[rows["active"]].reset_index(drop=True)
        self.arrays: dict[str, Float32[np.ndarray, "rows ..."]] = {}
        self._count = len(rows)
        self._positions = self.active["row"].to_numpy() - start

    def put(self, where: slice, values: Mapping[str, Float[np.ndarray, "b ..."]]) -> None:
        """Put values of the active images `where` into their rows; an empty slice lays out."""
        for name, batch in values.items():
            if name not in self.arrays:
                shape = (self._count, *batch.shape[1:])
                self.arrays[name] = np.full(shape, np.nan, dtype=np.float32)
            if where.stop > where.start:
                self.arrays[name][self._positions[where]] = batch


class Store:
    """A store open for reading, its layout checked against its declaration.

    Attributes
    ----------
    arrays
        The Zarr arrays by name, in the order of their declaration.
    attributes
        What `write_layout` was told of the content.
    rows, shard_size
        Rows of the store, and of one shard.

    Raises
    ------
    ArtifactError
        If there is no such store, or its layout is not what is declared.
    """

    def __init__(self, path: str | Path, kind: str) -> None:
        self.path, self.kind = Path(path), kind
        try:
            group = zarr.open_group(self.path, mode="r", zarr_format=3)
            found = dict(group.arrays())
        except (FileNotFoundError, ValueError) as error:
            raise ArtifactError(
                f"{self.path} is no Zarr store of {kind} ({error}); run snakemake to make it"
            ) from error
        self.attributes: dict[str, Any] = dict(group.attrs)
        self._check_kind()
        self.arrays = {a.name: found[a.name] for a in STORES[kind] if a.name in found}
        self._check_arrays()
        self.rows: int = self._lengths().pop()
        self.shard_size = int(self.attributes["shard_size"])
        self.dtype = str(self.attributes["dtype"])

    def _lengths(self) -> set[int]:
        """Numbers of rows of the arrays that have rows."""
        per_image = {array.name for array in STORES[self.kind] if array.per_image}
        return {array.shape[0] for name, array in self.arrays.items() if name in per_image}

    def _check_kind(self) -> None:
        kind, layout = self.attributes.get("kind"), self.attributes.get("layout")
        if (kind, layout) != (self.kind, LAYOUT_VERSION):
            raise ArtifactError(
                f"{self.path} is a store of {kind!r} in layout {layout}; this version reads "
                f"{self.kind!r} in layout {LAYOUT_VERSION}. Delete it and run snakemake again."
            )

    def _check_arrays(self) -> None:
        problems = []
        rows = self._lengths()
        for declared in STORES[self.kind]:
            array = self.arrays.get(declared.name)
            if array is None:
                problems += [] if declared.optional else [f"{declared.name!r} is missing"]
            elif len(array.shape) != len(declared.axes):
                problems.append(f"{declared.name!r} has axes {array.shape}, not {declared.axes}")
            elif array.dtype != disk_dtype(declared, str(self.attributes.get("dtype"))):
                problems.append(f"{declared.name!r} is {array.dtype}, not {declared.dtype}")
        if len(rows) > 1:
            problems.append(f"the arrays have different numbers of rows: {sorted(rows)}")
        if problems:
            listing = "\n  - ".join(problems)
            raise ArtifactError(
                f"{self.path} is not a valid store of {self.kind}:\n  - {listing}\n"
                "Delete it and run snakemake again."
            )

    def object_of(self, name: str, shard: int) -> str:
        """Path of the file that holds one shard of the array `name`."""
        return shard_object(self.path, self.kind, name, shard)

    def read(
        self,
        name: str,
        rows: Integer[np.ndarray, "n"],
        columns: Sequence[int] | Integer[np.ndarray, "r"] | None = None,
    ) -> Float32[np.ndarray, "n ..."]:
        """Rows of an array, in the order asked for; only the chunks that hold them are read.

        Parameters
        ----------
        name
            Name of the array.
        rows
            Rows of the store; all of them must have been written.
        columns
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
        second: Any = slice(None)
        tail = array.shape[1:]
        if columns is not None:
            second = np.asarray(columns, dtype=np.int64)
            tail = (len(second), *array.shape[2:])
        values = np.empty((len(rows), *tail), dtype=np.float32)
        row_bytes = array.dtype.itemsize * max(1, math.prod(array.shape[1:]))
        longest = max(1, BLOCK_BYTES // row_bytes)
        for where, start, stop in _blocks(rows, array.chunks[0], self.shard_size, longest):
            block = self._read_block(name, start, stop, second)
            inside = rows[where] - start
            values[where] = block if np.array_equal(inside, range(len(block))) else block[inside]
        self._check_finite(name, rows, values)
        return values

    def read_shared(self, name: str) -> Float32[np.ndarray, "..."]:
        """An array without the axis of images, whole.

        Raises
        ------
        ArtifactError
            If it is missing or damaged: with the command that repairs it.
        """
        try:
            values = from_disk(np.asarray(self.arrays[name][...]))
        except Exception as error:  # what Zarr and its codecs raise on damage is of many kinds
            raise self._broken_shared(name, f"is damaged ({error})") from error
        if not np.isfinite(values).all():
            raise self._broken_shared(name, "is missing or holds NaN")
        return values

    def _broken_shared(self, name: str, what: str) -> ArtifactError:
        return ArtifactError(
            f"{self.object_of(name, 0)} {what}: array {name!r}, shared by all images. To repair "
            f"it: rm -f {self.path / 'zarr.json'} && snakemake\n(no shard is computed again)"
        )

    def _read_block(self, name: str, start: int, stop: int, second: Any) -> np.ndarray:
        array = self.arrays[name]
        try:
            if isinstance(second, slice):
                return from_disk(np.asarray(array[start:stop]))
            return from_disk(np.asarray(array.oindex[slice(start, stop), second]))
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


def _sizes_of(
    path: Path, kind: str, shard: int, arrays: Mapping[str, np.ndarray], shard_size: int
) -> dict[str, int]:
    """Length of every axis, the same in all arrays of a shard."""
    declared = {array.name: array for array in STORES[kind] if array.per_image}
    needed = {name for name, array in declared.items() if not array.optional}
    if not needed <= set(arrays) <= set(declared):
        raise ArtifactError(
            f"{path}: shard {shard} must have the arrays {sorted(needed)}, got {sorted(arrays)}"
        )
    sizes: dict[str, int] = {}
    for name, values in arrays.items():
        axes = declared[name].axes
        if values.ndim != len(axes):
            raise ArtifactError(f"{path}: {name!r} must have the axes {axes}, got {values.shape}")
        for axis, size in zip(axes, values.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise ArtifactError(
                    f"{path}: axis {axis!r} of {name!r} has {size} entries, and {sizes[axis]} in "
                    f"another array of shard {shard}"
                )
    if not 1 <= sizes["n"] <= shard_size:
        raise ArtifactError(f"{path}: a shard has 1 to {shard_size} rows, got {sizes['n']}")
    return sizes


def _remove_shards(path: Path, kind: str, array: Array, count: int | None) -> None:
    """Remove the shards of an array from number `count`, or the whole array."""
    if count is None:
        shutil.rmtree(path / array.name, ignore_errors=True)
        return
    for folder in (path / array.name / "c").glob("*"):
        if folder.name.isdigit() and int(folder.name) >= count:
            log.warning("%s: removed shard %s of %r: no rows", path, folder.name, array.name)
            Path(shard_object(path, kind, array.name, folder.name)).unlink(missing_ok=True)


def _blocks(
    rows: np.ndarray, chunk: int, shard_size: int, longest: int
) -> list[tuple[Integer[np.ndarray, "m"], int, int]]:
    """Runs of neighbouring chunks within one shard: positions in `rows`, first and last row.

    None is longer than `longest` rows, or one chunk where a chunk is.
    """
    order = np.argsort(rows, kind="stable")
    chunks = rows[order] // chunk
    new_run = np.diff(chunks, prepend=-2) > 1
    new_shard = np.diff(rows[order] // shard_size, prepend=-1) > 0
    new_part = np.diff(chunks // max(1, longest // chunk), prepend=-1) > 0
    starts = np.flatnonzero(new_run | new_shard | new_part)
    blocks = []
    for where in np.split(order, starts[1:]) if rows.size else []:
        blocks.append((where, int(rows[where[0]]), int(rows[where[-1]]) + 1))
    return blocks
