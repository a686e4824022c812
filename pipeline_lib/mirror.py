"""Mirror: a run's artifacts kept in a bucket, for machines that share no file system.

Files go with a checksum of their bytes and the time of their making, and come back with both; so
after `pull` nothing runs again, and a run can go on where another machine left it. A mirror is an
S3-compatible bucket (`s3://bucket/folder`) or a folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from pipeline_lib.artifacts import atomic_path
from pipeline_lib.errors import ArtifactError

log = logging.getLogger(__name__)

#: Name of the list of files, written last: what it names is there.
LISTING = "mirror.json"

#: Snakemake's own notes on what made each file, without which it would run everything again.
NOTES = Path(".snakemake") / "metadata"


class Bucket(Protocol):
    """A place that keeps files under names."""

    def read(self, name: str) -> bytes | None:
        """Content under a name; `None` where there is none."""

    def write(self, name: str, content: bytes) -> None: ...

    def send(self, source: Path, name: str) -> None: ...

    def fetch(self, name: str, target: Path) -> None: ...


class Folder:
    """A folder as a mirror."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, name: str) -> bytes | None:
        path = self.root / name
        return path.read_bytes() if path.exists() else None

    def write(self, name: str, content: bytes) -> None:
        with atomic_path(self.root / name) as beside:
            beside.write_bytes(content)

    def send(self, source: Path, name: str) -> None:
        with atomic_path(self.root / name) as beside:
            shutil.copyfile(source, beside)

    def fetch(self, name: str, target: Path) -> None:
        shutil.copyfile(self.root / name, target)


class S3:
    """A bucket of an S3-compatible store.

    Parameters
    ----------
    bucket, prefix
        Where the files are.
    options
        Of boto3's client, for example `endpoint_url` of a server that is not Amazon's.
    """

    def __init__(self, bucket: str, prefix: str, **options: Any) -> None:
        import boto3

        self.bucket, self.prefix = bucket, prefix
        self.client = boto3.client("s3", **options)

    def read(self, name: str) -> bytes | None:
        try:
            return self.client.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read()
        except self.client.exceptions.NoSuchKey:
            return None

    def write(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=self._key(name), Body=content)

    def send(self, source: Path, name: str) -> None:
        self.client.upload_file(str(source), self.bucket, self._key(name))

    def fetch(self, name: str, target: Path) -> None:
        self.client.download_file(self.bucket, self._key(name), str(target))

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}".lstrip("/")


def open_bucket(url: str, **options: Any) -> Bucket:
    """The mirror at a URL: `s3://bucket/folder`, or the path of a folder."""
    if not url.startswith("s3://"):
        return Folder(Path(url))
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return S3(bucket, prefix.rstrip("/"), **options)


def push(folder: str | Path, bucket: Bucket, *parts: str) -> list[str]:
    """Copy what changed since the last time to a mirror.

    Parameters
    ----------
    folder
        The working folder.
    bucket
        From `open_bucket`.
    parts
        What of the folder: `results/demo`; Snakemake's notes go with it.

    Returns
    -------
    list of str
        Files that were sent.
    """
    folder = Path(folder)
    known = _listing(bucket)
    names = [name for part in (*parts, str(NOTES)) for name in _files(folder, part)]
    listing = {name: _facts(folder / name, known.get(name)) for name in names}
    sent = [
        name for name, facts in listing.items() if known.get(name, {}).get("hash") != facts["hash"]
    ]
    for name in sent:
        bucket.send(folder / name, name)
    pushed = tuple(f"{part}/" for part in (*parts, NOTES.as_posix()))
    others = {name: facts for name, facts in known.items() if not name.startswith(pushed)}
    bucket.write(LISTING, json.dumps({**others, **listing}, sort_keys=True).encode())
    log.info("%d of %d files sent", len(sent), len(listing))
    return sent


def pull(bucket: Bucket, folder: str | Path) -> list[str]:
    """Copy from a mirror what is missing here or differs; each file appears whole or not at all.

    Raises
    ------
    ArtifactError
        There is no mirror, a file in it is damaged, or a name leads out of the folder.
    """
    folder = Path(folder)
    listing = _listing(bucket)
    if not listing:
        raise ArtifactError("this place holds no mirror of a run; push one there first")
    fetched = []
    for name, facts in listing.items():
        place = _inside(folder, name)
        if not place.is_file() or _hash(place) != facts["hash"]:
            _fetch(bucket, name, place, facts["hash"])
            fetched.append(name)
        os.utime(place, ns=(facts["time"], facts["time"]))
    log.info("%d of %d files fetched", len(fetched), len(listing))
    return fetched


def _fetch(bucket: Bucket, name: str, place: Path, expected: str) -> None:
    with atomic_path(place) as beside:
        bucket.fetch(name, beside)
        if _hash(beside) != expected:
            raise ArtifactError(
                f"{name} is damaged: its checksum is not the one that it was sent with. Push it "
                "again from the machine that has it"
            )


def _listing(bucket: Bucket) -> dict[str, dict[str, Any]]:
    content = bucket.read(LISTING)
    return {} if content is None else json.loads(content)


def _files(folder: Path, part: str) -> list[str]:
    paths = (path for path in (folder / part).rglob("*") if path.is_file())
    return sorted(
        path.relative_to(folder).as_posix() for path in paths if not path.name.endswith(".part")
    )


def _facts(path: Path, before: dict[str, Any] | None) -> dict[str, Any]:
    """Checksum, size and time of a file; the checksum of last time where the others agree."""
    facts = path.stat()
    same = before is not None and (before["size"], before["time"]) == (
        facts.st_size, facts.st_mtime_ns,
    )  # fmt: skip
    digest = before["hash"] if same and before is not None else _hash(path)
    return {"hash": digest, "size": facts.st_size, "time": facts.st_mtime_ns}


def _hash(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _inside(folder: Path, name: str) -> Path:
    """Place of a named file; names that lead out of the folder are refused."""
    pure = PurePosixPath(name)
    place = (folder / name).resolve()
    if pure.is_absolute() or not place.is_relative_to(folder.resolve()):
        raise ArtifactError(f"the mirror names {name!r}, which leads out of {folder}; not fetched")
    return place
