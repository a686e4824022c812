"""How arrays lie in a Zarr store: chunks, shards, checksums, and the dtypes on disk.

Every chunk is compressed and carries a CRC-32C, and so does the index of every shard: a file that
was cut off or in which a bit flipped is noticed when it is read. Which arrays there are is in
`pipeline_lib.artifacts`, reading and writing stores in `pipeline_lib.store`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from jaxtyping import Float, Float32, UInt16
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from pipeline_lib.artifacts import Array
from pipeline_lib.config import chunk_rows

#: Columns of one inner chunk of coordinates, so that a few components are read alone.
CHUNK_COLUMNS = 1024

#: Spacing of numbers of each dtype that a store may have, relative to their size.
PRECISION = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}

_BFLOAT16_NAN = 0x7FC0


def disk_dtype(array: Array, dtype: str) -> np.dtype:
    """Type of an array on disk; bfloat16 is kept as the upper 16 bits of float32."""
    asked = dtype if array.dtype == "config" else array.dtype
    return np.dtype("uint16" if asked == "bfloat16" else asked)


def to_disk(values: Float[np.ndarray, "..."], dtype: np.dtype) -> np.ndarray:
    """Values in the type that they have on disk.

    >>> from_disk(to_disk(np.float32([1.0, 3.14159]), np.dtype("uint16")))
    array([1.      , 3.140625], dtype=float32)
    """
    if dtype == np.uint16:
        return _to_bfloat16(np.asarray(values, dtype=np.float32))
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(dtype)


def from_disk(values: np.ndarray) -> Float32[np.ndarray, "..."]:
    """Values read from disk as float32."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def _to_bfloat16(values: Float32[np.ndarray, "..."]) -> UInt16[np.ndarray, "..."]:
    """Upper 16 bits of float32, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(_BFLOAT16_NAN), rounded).reshape(values.shape)


def layout_of(
    array: Array, sizes: Mapping[str, int], shard_size: int, dtype: str
) -> dict[str, Any]:
    """Arguments of Zarr for one array: shards over all axes but that of images."""
    shape = tuple(sizes[axis] for axis in array.axes)
    kind = disk_dtype(array, dtype)
    lengths = {"n": chunk_rows(shard_size), "r": min(CHUNK_COLUMNS, sizes.get("r", 1))}
    chunks = tuple(lengths.get(axis, sizes[axis]) for axis in array.axes)
    whole = [-(-size // chunk) * chunk for size, chunk in zip(shape, chunks, strict=True)]
    blosc = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=kind.itemsize)
    return {
        "shape": shape,
        "dtype": kind,
        "chunks": chunks,
        "shards": (shard_size if array.per_image else whole[0], *whole[1:]),
        "fill_value": _BFLOAT16_NAN if kind == np.uint16 else np.nan,
        "compressors": (blosc, Crc32cCodec()),
        "dimension_names": array.axes,
    }


def object_key(array: Array, shard: int | str) -> list[str]:
    """Parts of the key of a shard: whole in every axis but the first."""
    return ["c", str(shard), *["0"] * (len(array.axes) - 1)]


def metadata(array: Array, layout: Mapping[str, Any]) -> bytes:
    """The `zarr.json` of an array."""
    return document(_in_memory(array, layout).store, f"{array.name}/zarr.json")


def encoded(array: Array, layout: Mapping[str, Any], values: np.ndarray) -> bytes:
    """The bytes of one shard object; what a shard holds does not depend on its number."""
    empty = _in_memory(array, layout)
    empty[:] = to_disk(values, layout["dtype"])
    return document(empty.store, "/".join([array.name, *object_key(array, 0)]))


def decoded(array: Array, layout: Mapping[str, Any], content: bytes) -> Float32[np.ndarray, "..."]:
    """Values in the bytes of one shard object, as `encoded` made them.

    Raises
    ------
    Exception
        Of many kinds, by Zarr and its codecs: the bytes are damaged.
    """
    empty = _in_memory(array, layout)
    key = "/".join([array.name, *object_key(array, 0)])
    sync(empty.store.set(key, default_buffer_prototype().buffer.from_bytes(content)))
    return from_disk(np.asarray(empty[:]))


def document(store: Any, key: str) -> bytes:
    """The bytes under a key of a Zarr store."""
    content = sync(store.get(key, default_buffer_prototype()))
    return bytes(content.to_bytes())


def _in_memory(array: Array, layout: Mapping[str, Any]) -> zarr.Array:
    """An empty array of this layout; writes chunks of nothing but NaN too."""
    with zarr.config.set({"array.write_empty_chunks": True}):
        group = zarr.create_group(MemoryStore())
        return group.create_array(array.name, **layout)
