"""Content of files, also of those inside a container: there a path leads on into it.

| path | content |
|---|---|
| `photos/cat/1.jpg` | the file |
| `shards/0003.tar/cat/1.jpg` | member `cat/1.jpg` of the tar file `shards/0003.tar` |
| `pets/train/image/17` | column `image`, row 17, of the Hugging Face data set `pets/train` |

So whoever opens images need not know where they are kept. Nothing is unpacked or copied.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline_lib.errors import DataError

if TYPE_CHECKING:
    import datasets

#: Bytes of a block of a tar file; a block of zeros ends it.
BLOCK = 512

#: File that makes a folder a Hugging Face data set, as `save_to_disk` writes it.
STATE = "state.json"


@dataclass(frozen=True)
class Member:
    """Where the content of a tar file's member lies, or why it is not read."""

    offset: int
    size: int
    problem: str | None = None


def read_content(path: Path) -> bytes:
    """The bytes of a file, of a member of a tar file, or of an image in a data set.

    Raises
    ------
    DataError
        With the reason, without the path.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        found = container(path)
        if found is None:
            raise DataError(f"cannot be read: {error.strerror}") from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error
    within = PurePosixPath(*path.parts[len(found.parts) :])
    if found.is_file():
        return _member_content(found, within.as_posix())
    return _row_content(found, within.parent.as_posix(), within.name)


def content_exists(path: Path) -> bool:
    """Whether `read_content` has something to read; looks into no image."""
    if path.is_file():
        return True
    found = container(path)
    if found is None:
        return False
    within = PurePosixPath(*path.parts[len(found.parts) :])
    if found.is_file():
        member = tar_members(found).get(within.as_posix())
        return member is not None and member.problem is None
    column, row = within.parent.as_posix(), within.name
    rows = open_rows(found)
    return column in rows.column_names and row.isdecimal() and int(row) < len(rows)


def container(path: Path) -> Path | None:
    """The tar file or the data set's folder that a path leads into; `None` where there is none."""
    for parent in path.parents:
        if parent.is_file():
            return parent if parent.suffix == ".tar" else None
        if parent.is_dir():
            return parent if (parent / STATE).is_file() else None
    return None


# Tar files


def tar_members(path: Path) -> Mapping[str, Member]:
    """Name to place of every member that is no folder, read once for each state of the file.

    Reads the headers alone. A member that must not or cannot be read is there with its problem.

    Raises
    ------
    DataError
        If the file is no plain tar file, or its end is missing though its last member is whole.
    """
    try:
        facts = path.stat()
        return _tar_members(path, facts.st_size, facts.st_mtime_ns)
    except (OSError, tarfile.TarError) as error:
        raise DataError(
            f"{path} cannot be read as a tar file: {error}. Members are read in place, so a "
            "compressed archive must be decompressed first"
        ) from error


@lru_cache(maxsize=256)
def _tar_members(path: Path, size: int, mtime: int) -> Mapping[str, Member]:
    found: dict[str, Member] = {}
    last = None
    with tarfile.open(path, "r:") as archive:
        try:
            for last in archive:
                if not last.isdir():
                    found[_plain(last.name)] = Member(
                        last.offset_data, last.size, _problem(last, size)
                    )
        except tarfile.ReadError:  # the last member is cut off, and says so itself
            return found
        end = archive.offset
    with path.open("rb") as content:
        content.seek(end)
        if content.read(BLOCK) != bytes(BLOCK):
            raise tarfile.ReadError(
                f"it is cut off or damaged after {last.name if last else 'its start'!r}"
            )
    return found


def _plain(name: str) -> str:
    """A member's name as it stands in a path."""
    return PurePosixPath(name).as_posix().lstrip("/")


def _problem(member: tarfile.TarInfo, size: int) -> str | None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name:
        return f"has an unsafe name in its archive ({member.name!r})"
    if not member.isreg() or member.issparse():
        return "is a link or no plain file in its archive; only plain files are read"
    if member.offset_data + member.size > size:
        return "is cut off: its archive ends before it does"
    return None


def _member_content(archive: Path, name: str) -> bytes:
    member = tar_members(archive).get(name)
    if member is None:
        raise DataError(f"{archive.name} has no such member")
    if member.problem is not None:
        raise DataError(member.problem)
    with archive.open("rb") as content:
        content.seek(member.offset)
        return content.read(member.size)


# Hugging Face data sets


def open_rows(folder: Path) -> datasets.Dataset:
    """The data set that `save_to_disk` wrote into a folder, with its images not decoded.

    Rows lie in memory-mapped files; opening reads none.

    Raises
    ------
    DataError
        If the package `datasets` is missing, or the folder is damaged.
    """
    return _open_rows(folder, (folder / STATE).stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _open_rows(folder: Path, mtime: int) -> datasets.Dataset:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{folder} is a Hugging Face data set; reading it needs the package datasets. "
            "Run: pip install datasets"
        ) from error
    try:
        rows = datasets.load_from_disk(str(folder)).with_format(None)
        for name, feature in rows.features.items():
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(name, datasets.Image(decode=False))
    except Exception as error:  # of pyarrow, of JSON, of the package's own
        raise DataError(
            f"{folder} cannot be read as a Hugging Face data set: {error}. It must be a folder "
            "that Dataset.save_to_disk wrote"
        ) from error
    return rows


def holds_images(rows: datasets.Dataset, column: str) -> bool:
    """Whether a column's type is one of encoded images."""
    import datasets

    feature = rows.features[column]
    binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    return binary or isinstance(feature, datasets.Image)


@lru_cache(maxsize=64)
def _one_column(folder: Path, mtime: int, column: str) -> datasets.Dataset:
    rows = _open_rows(folder, mtime)
    if column not in rows.column_names or not holds_images(rows, column):
        raise DataError(f"{folder.name} has no column of images {column!r}")
    return rows.select_columns([column])


def _row_content(folder: Path, column: str, row: str) -> bytes:
    rows = _one_column(folder, (folder / STATE).stat().st_mtime_ns, column)
    if not row.isdecimal() or int(row) >= len(rows):
        raise DataError(f"{folder.name} has no row {row}")
    value: Any = rows[int(row)][column]
    if isinstance(value, Mapping):  # an image that may lie beside the rows
        if value.get("bytes") is None and value.get("path"):
            return _beside(folder, value["path"])
        value = value.get("bytes")
    if value is None:
        raise DataError("is empty")
    return bytes(value)


def _beside(folder: Path, name: str) -> bytes:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise DataError(
            f"leads out of the data set's folder, to {name}; save the data set again with its "
            "images inside (Dataset.save_to_disk does so)"
        )
    return read_content(path)


def row_folders(root: Path) -> Iterator[tuple[str, Path]]:
    """Name and folder of each split of a data set; the name is empty where there is only one.

    Raises
    ------
    DataError
        If the folder is none of `save_to_disk`.
    """
    if (root / STATE).is_file():
        yield "", root
        return
    found = sorted(path.parent for path in root.glob(f"*/{STATE}"))
    if not found:
        raise DataError(
            f"{root} is no Hugging Face data set on disk: neither it nor a folder in it holds "
            f"{STATE}. Write one with Dataset.save_to_disk"
        )
    for folder in found:
        yield folder.name, folder
