"""Provenance: what made an artifact, in the same fields everywhere.

A job says once what it is about (`set_context`); every table that it writes then carries that
beside what the table itself is given. Free of torch.
"""

from __future__ import annotations

import hashlib
import platform
import traceback
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

#: Raised by hand when these fields change their meaning.
SCHEMA_VERSION = 1

#: Keys of a manifest; a table of a stage that has no model or images goes without theirs.
FIELDS: dict[str, str] = {
    "schema_version": "version of these fields",
    "stage": "rule that made the artifact, and its wildcards",
    "model": "id of the model",
    "weight_hash": "hash of the model's weights",
    "preprocessing": "size, crop, interpolation, mean and deviation of the images",
    "readout": "what the representation is: pooling, and where it is read",
    "data": "fingerprint of the active images: hash of ids and contents, and how many",
    "parameters": "parameters of the rule",
    "dtype": "of the stored numbers",
    "code": "version of vit-atlas and hash of its sources",
    "libraries": "versions of Python and of the libraries that compute",
    "device": "where it was computed",
    "seed": "seed of everything random",
    "seconds": "wall time, summed over jobs (of tables: beside them, in benchmarks/)",
    "exactness": "largest relative errors: of the sum of contributions, and caused by storing",
}

_LIBRARIES = (
    "numpy", "pandas", "pillow", "timm", "open_clip_torch", "torch", "torchvision", "zarr",
)  # fmt: skip

_context: dict[str, Any] = {}


def set_context(facts: Mapping[str, Any]) -> None:
    """Facts that every table written from now on carries; replaces earlier ones."""
    _context.clear()
    _context.update(facts)


def context() -> dict[str, Any]:
    """What `set_context` was given."""
    return dict(_context)


def code_facts() -> dict[str, Any]:
    """Schema version, code and libraries of this process."""
    return {
        "schema_version": SCHEMA_VERSION,
        "code": {
            "version": _version_of("vit-atlas"),
            "sources": source_hash(Path(__file__).parent),
        },
        "libraries": {"python": platform.python_version(), **_library_versions()},
    }


def fault_report(error: BaseException, facts: Mapping[str, object] | None = None) -> str:
    """What to paste into a report of a fault of this project: what failed, where, with what.

    Parameters
    ----------
    error
        What was raised.
    facts
        What else is known, by name: rule, log, hash of the configuration.
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[-3:]]
    code = code_facts()
    known = {
        "error": "".join(traceback.format_exception_only(error)).strip(),
        "raised in": " < ".join(reversed(where)),
        **(facts or {}),
        "vit-atlas": f"{code['code']['version']}, sources {code['code']['sources']}",
        "libraries": ", ".join(f"{name} {number}" for name, number in code["libraries"].items()),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    lines = [f"  {name}: {value}" for name, value in known.items()]
    return "\n".join(
        ["This is a fault of vit-atlas, not of your input. Please report it with:", *lines]
    )


def data_fingerprint(manifest: pd.DataFrame) -> dict[str, Any]:
    """Number of active images of a manifest, and a hash of their rows and contents."""
    active = manifest[manifest["active"]]
    lines = (f"{row}\0{sha256}\n" for row, sha256 in zip(active["row"], active["sha256"]))
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
    return {"images": len(active), "sha256": digest}


def missing_fields(manifest: Mapping[str, Any]) -> Sequence[str]:
    """Fields of `FIELDS` that a manifest lacks."""
    return [name for name in FIELDS if name not in manifest]


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@lru_cache
def _library_versions() -> dict[str, str | None]:
    return {name: _version_of(name) for name in _LIBRARIES}


@lru_cache
def source_hash(folder: Path) -> str:
    """Hash of the Python sources in a folder and below: 16 letters, read once a process."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
