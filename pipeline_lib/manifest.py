"""The manifest: which images a data set has, under which row, and which files were rejected.

A manifest remembers. It is made from the files that are there and from the previous manifest: new
images are appended, images that left keep their row with `active = false`, and an image whose
file was replaced keeps its row with a new hash. So a change touches only the shards it concerns.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from pipeline_lib.artifacts import TABLES, read_table, write_table
from pipeline_lib.config import Split, SplitShares
from pipeline_lib.containers import content_exists, read_content
from pipeline_lib.errors import DataError
from pipeline_lib.images import decode_image

log = logging.getLogger(__name__)

#: Rejected files named in an error; all of them are in the log.
SHOWN = 30


@dataclass(frozen=True)
class _Scanned:
    """What looking into one file gave: a size and a hash, or the reason to reject it."""

    sha256: str = ""
    width: int = 0
    height: int = 0
    reason: str | None = None


def make_manifest(
    images: pd.DataFrame,
    root: Path,
    *,
    shard_size: int,
    shares: SplitShares,
    seed: int,
    bad_share: float = 0.0,
    previous: pd.DataFrame | None = None,
    workers: int = 2,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Manifest and table of rejected files, from the images that a data set names.

    Parameters
    ----------
    images
        From `list_images`.
    root
        Folder that their paths are relative to; a path that leaves it is rejected.
    shard_size
        Rows of one shard.
    shares, seed
        Of the splits, for images whose split is not given: by a hash of seed and image id, so
        that an image stays in its split whatever else joins or leaves.
    bad_share
        Share of rejected files above which the call fails, 0 to 1.
    previous
        The manifest made last time.
    workers
        Threads that read and decode.

    Returns
    -------
    manifest, rejected
        Tables of these names (`pipeline_lib.artifacts`).

    Raises
    ------
    DataError
        If too many files are rejected (with the list), or a split is unknown.
    """
    known = _known_files(previous)
    with ThreadPoolExecutor(max_workers=workers) as pool:
        look = partial(_look_into, root, known)
        scanned = list(pool.map(look, images["path"], images["mask"], chunksize=16))
    bad = np.array([item.reason is not None for item in scanned], dtype=bool)
    rejected = pd.DataFrame(
        {
            "path": [_printable(path) for path in images["path"][bad]],
            "reason": [item.reason for item in scanned if item.reason is not None],
        }
    ).reset_index(drop=True)
    _check_rejected(rejected, len(images), bad_share, root)
    good = images[~bad].reset_index(drop=True)
    good["split"] = _splits(good, shares, seed, root)
    facts = [item for item in scanned if item.reason is None]
    for column in ("sha256", "width", "height"):
        good[column] = [getattr(item, column) for item in facts]
    return _with_rows(good, previous, shard_size), rejected


def write_shards(manifest: pd.DataFrame, folder: Path, table: str = "shard") -> list[Path]:
    """Write one small table per shard with what its dump depends on; unchanged ones stay.

    A shard's file keeps its modification time while its images are the same, so that a change
    elsewhere, or of labels, runs nothing again. Table `shard_splits` is the same with the splits,
    for what depends on these too.

    Returns
    -------
    list of Path
        Files that were written or removed.
    """
    columns = [column.name for column in TABLES[table].columns]
    changed = []
    for shard, rows in manifest.groupby("shard"):
        path = folder / f"{shard}.parquet"
        rows = rows[columns].reset_index(drop=True)
        if not path.exists() or not _same(read_table(table, path), rows):
            write_table(table, rows, path)
            changed.append(path)
    for path in folder.glob("*.parquet"):
        if int(path.stem) not in set(manifest["shard"]):
            path.unlink()
            changed.append(path)
    log.info("%d of %d shards changed", len(changed), manifest["shard"].nunique())
    return changed


def _same(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    return first.astype(object).equals(second.astype(object))


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


# Looking into files


def _known_files(previous: pd.DataFrame | None) -> dict[str, _Scanned]:
    """Files that were decoded last time, by hash: the same bytes need no second look."""
    if previous is None:
        return {}
    columns = zip(previous["sha256"], previous["width"], previous["height"], strict=True)
    return {sha256: _Scanned(sha256, int(w), int(h)) for sha256, w, h in columns}


def _look_into(root: Path, known: Mapping[str, _Scanned], path: str, mask: str | None) -> _Scanned:
    if not _inside(root, path):
        return _Scanned(reason="leads out of the data set's folder")
    try:
        path.encode("utf-8")
        content = read_content(root / path)
    except UnicodeEncodeError:
        return _Scanned(reason="its name is no UTF-8")
    except DataError as error:
        return _Scanned(reason=str(error))
    sha256 = hashlib.sha256(content).hexdigest()
    found = known.get(sha256)
    if found is None:
        try:
            image = decode_image(content)
        except DataError as error:
            return _Scanned(reason=str(error))
        found = _Scanned(sha256, image.width, image.height)
    if isinstance(mask, str) and not (_inside(root, mask) and content_exists(root / mask)):
        return _Scanned(reason=f"its mask {mask} is not in the data set's folder")
    return found


def _printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def _inside(root: Path, path: str) -> bool:
    return (root / path).resolve().is_relative_to(root.resolve())


def _check_rejected(rejected: pd.DataFrame, count: int, bad_share: float, root: Path) -> None:
    lines = [f"{path}: {reason}" for path, reason in rejected.itertuples(index=False)]
    for line in lines:
        log.warning("rejected %s", line)
    if len(rejected) < count and len(rejected) <= bad_share * count:
        return
    listing = "\n  - ".join(lines[:SHOWN])
    more = f"\n  … and {len(lines) - SHOWN} more, all in the log" if len(lines) > SHOWN else ""
    raise DataError(
        f"{root}: {len(rejected)} of {count} files cannot be used, more than bad_share "
        f"({bad_share:g}) allows:\n  - {listing}{more}\n"
        "Mend or remove them, or raise bad_share of this data set."
    )


# Splits and rows


def _splits(images: pd.DataFrame, shares: SplitShares, seed: int, root: Path) -> list[str]:
    valid = get_args(Split)
    unknown = sorted({str(split) for split in images["split"].dropna()} - set(valid))
    if unknown:
        raise DataError(
            f"{root}: unknown splits {', '.join(unknown[:SHOWN])}; valid: {', '.join(valid)}. "
            "Give their meaning under values, for example values: {split: {'0': train, '1': test}}."
        )
    bounds = np.cumsum([getattr(shares, name) for name in valid])
    return [
        given if isinstance(given, str) else valid[_hashed_choice(seed, image_id, bounds)]
        for image_id, given in zip(images["image_id"], images["split"], strict=True)
    ]


def _hashed_choice(seed: int, image_id: Any, bounds: np.ndarray) -> int:
    digest = hashlib.blake2b(f"{seed}/{image_id}".encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2.0**64
    return min(int(np.searchsorted(bounds, share, side="right")), len(bounds) - 1)


def _with_rows(
    images: pd.DataFrame, previous: pd.DataFrame | None, shard_size: int
) -> pd.DataFrame:
    """Give every image its row: the one it had, or the next free one; keep rows that left."""
    old = {} if previous is None else dict(zip(previous["image_id"], previous["row"], strict=True))
    free = iter(range(max(old.values(), default=-1) + 1, len(old) + len(images) + 1))
    images = images.assign(
        row=[old[name] if name in old else next(free) for name in images["image_id"]], active=True
    )
    if previous is not None:
        gone = previous[~previous["image_id"].isin(images["image_id"])].assign(active=False)
        kept = [column for column in gone.columns if column in images.columns]
        images = pd.concat([images, gone[kept].astype(object)], ignore_index=True)
    images["shard"] = images["row"].astype("int64") // shard_size
    for column in ("row", "shard", "width", "height"):
        images[column] = images[column].astype("int64")
    images["active"] = images["active"].astype(bool)
    return images.sort_values("row").reset_index(drop=True)
