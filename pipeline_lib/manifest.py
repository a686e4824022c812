"""The manifest: which images a data set has, under which row, and which files were rejected.

A manifest remembers. It is made from the files that are there and from the previous manifest: new
images are appended, images that left keep their row with `active = false`, and an image whose
file was replaced keeps its row with a new hash. So a change touches only the shards it concerns.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline_lib.artifacts import TABLES, read_table, write_table
from pipeline_lib.config import (
    Columns,
    DataSet,
    FolderData,
    Split,
    SplitShares,
    TableData,
    table_columns,
)
from pipeline_lib.errors import DataError, close_matches
from pipeline_lib.images import IMAGE_SUFFIXES, decode_image

log = logging.getLogger(__name__)

#: Columns that a data set may give; the others of the table `manifest` are made here.
GIVEN = ("split", "label", "group", "mask", "caption")

#: Rejected files named in an error; all of them are in the log.
SHOWN = 30


@dataclass(frozen=True)
class _Scanned:
    """What looking into one file gave: a size and a hash, or the reason to reject it."""

    sha256: str = ""
    width: int = 0
    height: int = 0
    reason: str | None = None


def list_images(dataset: DataSet, root: Path) -> pd.DataFrame:
    """The images a data set names, not looked into yet.

    Parameters
    ----------
    dataset
        Section of the configuration.
    root
        Folder of the data set; for a rendered world the folder with its `table.parquet`.

    Returns
    -------
    DataFrame
        Columns `image_id`, `path` (relative to `root`), those of `GIVEN`, and the factors; text
        or missing throughout. In the order of the table, or sorted by path.

    Raises
    ------
    DataError
        If there are no images, or the table is wrong.
    """
    if isinstance(dataset, FolderData):
        frame = _list_folder(root, dataset.class_names)
    elif isinstance(dataset, TableData):
        frame = _list_table(Path(dataset.path), dataset.columns, dataset.factors, dataset.values)
    else:
        frame = _list_world(root / "table.parquet")
    twice = frame["image_id"][frame["image_id"].duplicated()].unique()
    if len(twice):
        shown = ", ".join(map(str, twice[:SHOWN]))
        raise DataError(
            f"{root}: {len(twice)} image ids stand twice: {shown}. Remove the repeated rows, or "
            "name a column with unique values as columns.id."
        )
    return frame


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
            "path": images["path"][bad].astype(str),
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


def write_shards(manifest: pd.DataFrame, folder: Path) -> list[Path]:
    """Write one small table per shard with what its dump depends on; unchanged ones stay.

    A shard's file keeps its modification time while its images are the same, so that a change
    elsewhere, or of labels, runs nothing again.

    Returns
    -------
    list of Path
        Files that were written or removed.
    """
    columns = [column.name for column in TABLES["shard"].columns]
    changed = []
    for shard, rows in manifest.groupby("shard"):
        path = folder / f"{shard}.parquet"
        rows = rows[columns].reset_index(drop=True)
        if not path.exists() or not _same(read_table("shard", path), rows):
            write_table("shard", rows, path)
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


def listing_fingerprint(dataset: DataSet, root: Path) -> str:
    """Hash of paths, sizes and times of a data set's files: changes when any of them does.

    Looks into no image. For a rendered world it is empty: there the table is an input like any
    other.
    """
    if isinstance(dataset, FolderData):
        files = list(_image_files(root))
    elif isinstance(dataset, TableData):
        column = dataset.columns.path
        table = _read_columns(Path(dataset.path), [column])
        files = [Path(dataset.path), *(root / str(path) for path in table[column].dropna())]
    else:
        return ""
    digest = hashlib.sha256()
    for path in files:
        try:
            facts = path.stat()
            entry = f"{path.relative_to(root)}\0{facts.st_size}\0{facts.st_mtime_ns}\n"
        except (OSError, ValueError):
            entry = f"{path}\0absent\n"
        digest.update(entry.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


# Listing


def _image_files(root: Path) -> Iterator[Path]:
    """Image files below `root` in the order of their paths; hidden ones are passed over."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(folder, name)


def _list_folder(root: Path, class_names: str | None) -> pd.DataFrame:
    if not root.is_dir():
        raise DataError(f"{root} is no folder")
    paths = sorted(path.relative_to(root).as_posix() for path in _image_files(root))
    if not paths:
        endings = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(
            f"{root} holds no image. Put one folder of images for each class there; files with "
            f"these endings are read: {endings}"
        )
    frame = _blank(paths)
    frame["label"] = [path.split("/")[0] if "/" in path else None for path in paths]
    if class_names is not None:
        names = _read_class_names(Path(class_names))
        unknown = sorted({label for label in frame["label"].dropna() if label not in names})
        if unknown:
            raise DataError(
                f"{class_names} has no name for {len(unknown)} folders of {root}: "
                + ", ".join(unknown[:SHOWN])
            )
        frame["label"] = frame["label"].map(names)
    return frame


def _read_class_names(path: Path) -> dict[str, str]:
    lines = path.read_text("utf-8").splitlines()
    return {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[-1].strip() for line in lines if line}


def _blank(paths: list[str]) -> pd.DataFrame:
    columns = {"image_id": paths, "path": paths, **dict.fromkeys(GIVEN)}
    return pd.DataFrame(columns, dtype=object)


def _list_world(table: Path) -> pd.DataFrame:
    given = set(table_columns(table))
    columns = Columns(path="path", **{name: name for name in GIVEN if name in given})
    rest = [name for name in table_columns(table) if name not in ("path", *GIVEN)]
    return _list_table(table, columns, rest, {})


def _list_table(
    path: Path, columns: Columns, factors: list[str], values: Mapping[str, Mapping[str, str]]
) -> pd.DataFrame:
    joined = columns.group if isinstance(columns.group, list) else [columns.group]
    single = [columns.path, columns.id, columns.label, columns.split, columns.mask, columns.caption]
    wanted = [name for name in [*single, *joined, *factors] if name is not None]
    table = _read_columns(path, list(dict.fromkeys(wanted)))
    if table.empty:
        raise DataError(f"{path} has no rows")
    for name, new in values.items():
        if name not in table:
            raise DataError(f"{path}: values names the column {name!r}, which is not used")
        table[name] = _renamed(table[name], new, f"{path}, column {name!r}")
    absent = int(table[columns.path].isna().sum())
    if absent:
        raise DataError(f"{path}: column {columns.path!r} is empty in {absent} rows")
    frame = _blank([_relative(path.parent, str(name)) for name in table[columns.path]])
    for name in ("label", "split", "mask", "caption"):
        source = getattr(columns, name)
        if source is not None:
            frame[name] = table[source]
    if columns.id is not None:
        frame["image_id"] = table[columns.id]
    if columns.group is not None:
        parts = table[[name for name in joined if name is not None]]
        rows = parts.itertuples(index=False)
        frame["group"] = [None if row.count(None) else "/".join(row) for row in map(tuple, rows)]
    taken = {column.name for column in TABLES["manifest"].columns}
    for name in factors:
        if name in taken - {"label", "split", "group", "mask", "caption"}:
            raise DataError(f"{path}: the factor {name!r} has a name of the manifest's own columns")
        frame[name] = table[name]
    return frame


def _read_columns(path: Path, names: list[str]) -> pd.DataFrame:
    """Columns of a table as text, missing values as `None`."""
    present = table_columns(path)
    missing = [name for name in names if name not in present]
    if missing:
        advice = "; ".join(f"{name!r}: {close_matches(name, present)}" for name in missing)
        raise DataError(f"{path} lacks columns: {advice}")
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path, columns=names)
        else:
            separator = "\t" if path.suffix == ".tsv" else ","
            table = pd.read_csv(
                path, usecols=names, dtype=str, sep=separator, encoding="utf-8-sig",
                keep_default_na=False, na_values=[""],
            )  # fmt: skip
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    text = table[names].astype(object)
    return text.where(text.isna(), text.map(str)).where(text.notna(), None)


def _renamed(column: pd.Series, new: Mapping[str, str], where: str) -> pd.Series:
    unknown = sorted({str(value) for value in column.dropna()} - set(new))
    if unknown:
        raise DataError(
            f"{where}: values without a new name: {', '.join(unknown[:SHOWN])}; "
            f"values names only {', '.join(new)}"
        )
    return column.map(lambda value: None if value is None else new[value]).astype(object)


def _relative(root: Path, name: str) -> str:
    path = Path(name)
    if path.is_absolute() and path.is_relative_to(root.absolute()):
        path = path.relative_to(root.absolute())
    return path.as_posix()


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
        content = (root / path).read_bytes()
    except OSError as error:
        return _Scanned(reason=f"cannot be read: {error.strerror or error}")
    sha256 = hashlib.sha256(content).hexdigest()
    found = known.get(sha256)
    if found is None:
        try:
            image = decode_image(content)
        except DataError as error:
            return _Scanned(reason=str(error))
        found = _Scanned(sha256, image.width, image.height)
    if isinstance(mask, str) and not (_inside(root, mask) and (root / mask).is_file()):
        return _Scanned(reason=f"its mask {mask} is not in the data set's folder")
    return found


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
