"""Listing: which images a data set names, and what it says of them; looks into none.

Four kinds of sources give one table: a folder, a CSV or Parquet table, tar files of WebDataset's
layout, and a Hugging Face data set on disk. What is in the images is `manifest`'s business.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from pipeline_lib.artifacts import TABLES
from pipeline_lib.config import (
    Columns,
    DataSet,
    Fields,
    FolderData,
    HuggingFaceData,
    TableData,
    WebDatasetData,
    table_columns,
)
from pipeline_lib.containers import (
    container,
    holds_images,
    open_rows,
    read_content,
    row_folders,
    tar_members,
)
from pipeline_lib.errors import DataError, close_matches
from pipeline_lib.images import IMAGE_SUFFIXES

log = logging.getLogger(__name__)

#: Columns that a data set may give; the others of the table `manifest` are made there.
GIVEN = ("split", "label", "group", "mask", "caption")

#: Names given in an error.
SHOWN = 30

#: WebDataset's name for what the names of a sample's members share.
KEY = "__key__"

#: Names of splits that other libraries use.
OTHER_SPLITS = {"validation": "val", "valid": "val"}


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
    elif isinstance(dataset, WebDatasetData):
        frame = _list_tars(dataset, root)
    elif isinstance(dataset, HuggingFaceData):
        frame = _list_rows(dataset, root)
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


def listing_fingerprint(dataset: DataSet, root: Path) -> str:
    """Hash of paths, sizes and times of a data set's files: changes when any of them does.

    Looks into no image and into no container. For a rendered world it is empty: there the table is
    an input like any other.
    """
    if isinstance(dataset, FolderData):
        files = list(_image_files(root))
    elif isinstance(dataset, TableData):
        column = dataset.columns.path
        table = _read_columns(Path(dataset.path), [column])
        files = [Path(dataset.path), *(root / str(path) for path in table[column].dropna())]
    elif isinstance(dataset, WebDatasetData):
        files = _tar_files(Path(dataset.path))
    elif isinstance(dataset, HuggingFaceData):
        files = sorted(path for path in root.rglob("*") if path.is_file())
    else:
        return ""
    digest = hashlib.sha256()
    for path in files:
        try:
            facts = _outermost(path).stat()
            entry = f"{path.relative_to(root)}\0{facts.st_size}\0{facts.st_mtime_ns}\n"
        except (OSError, ValueError):
            entry = f"{path}\0absent\n"
        digest.update(entry.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _outermost(path: Path) -> Path:
    """The file itself, or the container that the path leads into."""
    return path if path.exists() else container(path) or path


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
        frame["label"] = _named(frame["label"], Path(class_names), f"folders of {root}")
    return frame


def _named(labels: pd.Series, path: Path, what: str) -> pd.Series:
    """Labels under the names that a text file gives them."""
    lines = path.read_text("utf-8").splitlines()
    pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
    names = {pair[0]: pair[-1].strip() for pair in pairs}
    unknown = sorted({label for label in labels.dropna() if label not in names})
    if unknown:
        raise DataError(
            f"{path} has no name for {len(unknown)} {what}: " + ", ".join(unknown[:SHOWN])
        )
    return labels.map(names)


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
    table = _read_columns(path, list(dict.fromkeys([columns.path, *_wanted(columns, factors)])))
    if table.empty:
        raise DataError(f"{path} has no rows")
    absent = int(table[columns.path].isna().sum())
    if absent:
        raise DataError(f"{path}: column {columns.path!r} is empty in {absent} rows")
    paths = [_relative(path.parent, str(name)) for name in table[columns.path]]
    return _arranged(paths, table, columns, factors, values, str(path))


def _wanted(fields: Fields, factors: list[str]) -> list[str]:
    """Columns of a source that are read beside that of the images."""
    joined = fields.group if isinstance(fields.group, list) else [fields.group]
    single = [fields.id, fields.label, fields.split, fields.mask, fields.caption]
    return list(dict.fromkeys(name for name in [*single, *joined, *factors] if name is not None))


def _arranged(
    paths: list[str],
    table: pd.DataFrame,
    fields: Fields,
    factors: list[str],
    values: Mapping[str, Mapping[str, str]],
    where: str,
) -> pd.DataFrame:
    """The listing from a source's columns of text, under the names that the manifest uses."""
    table = table.copy()
    for name, new in values.items():
        if name not in table:
            raise DataError(f"{where}: values names the column {name!r}, which is not used")
        table[name] = _renamed(table[name], new, f"{where}, column {name!r}")
    frame = _blank(paths)
    for name in ("label", "split", "mask", "caption"):
        source = getattr(fields, name)
        if source is not None:
            frame[name] = table[source]
    if fields.id is not None:
        frame["image_id"] = table[fields.id]
    if fields.group is not None:
        parts = table[fields.group if isinstance(fields.group, list) else [fields.group]]
        rows = parts.itertuples(index=False)
        frame["group"] = [None if row.count(None) else "/".join(row) for row in map(tuple, rows)]
    taken = {column.name for column in TABLES["manifest"].columns}
    for name in factors:
        if name in taken - {"label", "split", "group", "mask", "caption"}:
            raise DataError(
                f"{where}: the factor {name!r} has a name of the manifest's own columns"
            )
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
    return _as_text(table[names])


def _as_text(table: pd.DataFrame) -> pd.DataFrame:
    text = table.astype(object)
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


# Tar files of WebDataset's layout


def _tar_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(path.rglob("*.tar"))
    return [file for file in found if not any(part.startswith(".") for part in file.parts)]


def _list_tars(dataset: WebDatasetData, root: Path) -> pd.DataFrame:
    archives = _tar_files(Path(dataset.path))
    if not archives:
        raise DataError(f"{dataset.path} holds no .tar file; compressed archives are not read")
    names = _wanted(dataset.columns, dataset.factors)
    paths, rows = [], []
    for archive in archives:
        within = archive.relative_to(root).as_posix()
        for key, parts in _samples(archive).items():
            image = _image_ending(key, parts, dataset.columns.image, dataset.columns.mask, archive)
            if image is None:
                continue
            paths.append(f"{within}/{parts[image]}")
            rows.append({name: _field(archive, key, parts, name) for name in names})
            if dataset.columns.mask in parts:
                rows[-1][dataset.columns.mask] = f"{within}/{parts[dataset.columns.mask]}"
    if not paths:
        wanted = dataset.columns.image or ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{dataset.path} holds no member that ends in: {wanted}")
    table = pd.DataFrame(rows, columns=names, index=range(len(rows)), dtype=object)
    for name in names:
        if table[name].isna().all():
            valid = [KEY, *_samples(archives[0]).popitem()[1], "json.KEY"]
            raise DataError(f"{dataset.path}: no sample has {name!r}; {close_matches(name, valid)}")
    frame = _arranged(paths, table, dataset.columns, dataset.factors, dataset.values, dataset.path)
    if dataset.class_names is not None:
        frame["label"] = _named(frame["label"], Path(dataset.class_names), "labels")
    return frame


def _samples(archive: Path) -> dict[str, dict[str, str]]:
    """Key of each sample to its members by ending; the key is the name up to the first dot."""
    found: dict[str, dict[str, str]] = {}
    for name in tar_members(archive):
        folder, slash, base = name.rpartition("/")
        stem, _, ending = base.partition(".")
        if stem and ending:
            found.setdefault(folder + slash + stem, {})[ending.lower()] = name
    return found


def _image_ending(
    key: str, parts: Mapping[str, str], wanted: str | None, mask: str | None, archive: Path
) -> str | None:
    """Which member of a sample is its image; `None` for a sample without one."""
    if wanted is not None:
        return wanted.lower() if wanted.lower() in parts else None
    found = [e for e in parts if f".{e}".endswith(tuple(IMAGE_SUFFIXES)) and e != mask]
    if len(found) > 1:
        raise DataError(
            f"{archive}: sample {key!r} has several images ({', '.join(found)}); name the ending "
            "of the one that is meant as columns.image"
        )
    return found[0] if found else None


def _field(archive: Path, key: str, parts: Mapping[str, str], name: str) -> str | None:
    """What a sample says under a name: text of the member, or a value of its JSON member."""
    if name == KEY:
        return key
    if name in parts:
        if f".{name}".endswith(tuple(IMAGE_SUFFIXES)):
            return None  # a mask, which is given by its path
        return _text(archive, parts[name])
    first, _, rest = name.partition(".")
    if first != "json" or "json" not in parts:
        return None
    try:
        value = json.loads(_text(archive, parts["json"]))
    except json.JSONDecodeError as error:
        raise DataError(f"{archive}/{parts['json']} is no JSON: {error}") from error
    for step in rest.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return None if value is None else str(value)


def _text(archive: Path, member: str) -> str:
    try:
        return read_content(archive / member).decode("utf-8").strip()
    except (DataError, UnicodeDecodeError) as error:
        raise DataError(f"{archive}/{member} cannot be read as text: {error}") from error


# Hugging Face data sets on disk


def _list_rows(dataset: HuggingFaceData, root: Path) -> pd.DataFrame:
    parts = [_list_split(dataset, name, folder) for name, folder in row_folders(root)]
    return pd.concat(parts, ignore_index=True)


def _list_split(dataset: HuggingFaceData, split: str, folder: Path) -> pd.DataFrame:
    rows = open_rows(folder)
    fields, names = dataset.columns, _wanted(dataset.columns, dataset.factors)
    missing = [name for name in [fields.image, *names] if name not in rows.column_names]
    if missing:
        advice = "; ".join(
            f"{name!r}: {close_matches(name, rows.column_names)}" for name in missing
        )
        raise DataError(f"{folder} lacks columns: {advice}")
    for name in [fields.image] + ([fields.mask] if fields.mask else []):
        if not holds_images(rows, name):
            raise DataError(
                f"{folder}: column {name!r} holds {rows.features[name]}, no encoded images; cast "
                "it to datasets.Image() and save the data set again"
            )
    within = f"{split}/" if split else ""
    table = pd.DataFrame(index=range(len(rows)))
    for name in names:
        if name == fields.mask:
            table[name] = [f"{within}{name}/{row}" for row in range(len(rows))]
        else:
            table[name] = _column(rows, name)
    paths = [f"{within}{fields.image}/{row}" for row in range(len(rows))]
    frame = _arranged(paths, _as_text(table), fields, dataset.factors, dataset.values, str(folder))
    if split and fields.split is None:
        frame["split"] = OTHER_SPLITS.get(split, split)
    return frame


def _column(rows: Any, name: str) -> list[Any]:
    """Values of a column; classes by their names."""
    feature, values = rows.features[name], rows.select_columns([name])[:][name]
    if hasattr(feature, "int2str"):
        return [None if value is None or value < 0 else feature.int2str(value) for value in values]
    return list(values)
