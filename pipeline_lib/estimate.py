"""Estimate: time, disk, jobs and cost of dumps, before any of them is made."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline_lib.artifacts import read_table
from pipeline_lib.config import RunConfig, moment_fits
from pipeline_lib.errors import DiskError
from pipeline_lib.factors import Factors, group_columns, load_factors

#: Bytes of a number of each dtype that a store may have.
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

#: What a stage keeps of every image: all contributions, products with directions, or moments.
LEVELS = ("full", "factored", "projected", "moments")


@dataclass(frozen=True)
class Machine:
    """How fast dumps are made.

    Attributes
    ----------
    rate
        Images a second of one worker, decomposed and written.
    start
        Seconds until a job has imported its libraries and loaded its model.
    workers
        Jobs that run at the same time.
    price
        Of one worker for one hour.
    """

    rate: float
    start: float = 15.0
    workers: int = 1
    price: float = 0.0


def dump_bytes(
    images: int,
    factors: Factors,
    dtype: str,
    level: str,
    *,
    shards: int = 1,
    classes: int = 0,
    directions: int | None = None,
    targets: int | None = None,
) -> int:
    """Bytes of a dump before compression, which saves little on such numbers.

    Parameters
    ----------
    images
        Active images.
    factors
        The bases of the components.
    level
        One of `LEVELS`; `projected` keeps `directions` numbers of every component (or, where these
        are not given, the coordinates of `factors`, which are then those of a projected dump);
        `moments` for each group of `group_columns` the mean and the covariance of its columns, `8`
        bytes for each pair of these, of every shard and of their sum.
    shards
        Jobs of the dump.
    classes
        Logits of an image.
    targets
        As for `factors.group_columns`, 0 where not known yet. The targets lie with the image
        embeddings.
    """
    components, width, columns = len(factors.ranks), factors.width, factors.columns
    if level == "moments":
        sums = sum(r * r + r + 1 for r in group_columns(factors, targets).values())
        return 8 * (shards + 1) * sums + 4 * factors.bases.size
    projected = columns if directions is None else components * directions
    numbers = {"full": components * width, "factored": columns, "projected": projected}[level]
    beside = 4 * (width + 2 + classes)  # representation, error, rounding, logits
    bases = 4 * factors.bases.size if level == "factored" else 0
    return images * (numbers * BYTES[dtype] + beside) + bases


def job_bytes(factors: Factors, shard_size: int, level: str, targets: int | None = None) -> int:
    """Memory of one dump job beside its model: its shard and the same compressed, or its sums.

    Where maps are fitted from moments it holds its shard's targets beside the sums, and before
    these, while it reads the targets, three times as much.
    """
    if level == "moments":
        held = 4 * shard_size * (targets or 0)
        sums = sum(8 * r * r for r in group_columns(factors, targets).values())
        return max(sums + held, 3 * held)
    return 2 * shard_size * factors.columns * 4


def estimate_dump(
    images: int,
    factors: Factors,
    dtype: str,
    shard_size: int,
    machine: Machine,
    *,
    levels: Sequence[str] = LEVELS,
    classes: int = 0,
    directions: int | None = 16,
    targets: int | None = None,
) -> pd.DataFrame:
    """One row for each of some levels: bytes, jobs, hours and cost of one dump.

    Returns
    -------
    DataFrame
        Columns `level`, `bytes`, `jobs`, `hours` (wall time on all workers), `cost`.
    """
    jobs = math.ceil(images / shard_size)
    work = images / machine.rate + jobs * machine.start
    rounds = math.ceil(jobs / machine.workers) / max(jobs, 1)
    facts = {"jobs": jobs, "hours": work * rounds / 3600, "cost": work / 3600 * machine.price}
    rows = [
        {
            "level": level,
            "bytes": dump_bytes(
                images,
                factors,
                dtype,
                level,
                shards=jobs,
                classes=classes,
                directions=directions,
                targets=targets,
            ),
            **facts,
        }
        for level in levels
    ]
    return pd.DataFrame(rows)


def target_width(config: RunConfig, model: str, dataset: str, width: int) -> int | None:
    """The `width` of the reference's embeddings where a model's maps are fitted from moments.

    None on other data sets than that of the fit, and where no maps are fitted so.
    """
    return width if moment_fits(config).get(model) == dataset else None


def embedded_width(folder: Path, dataset: str) -> int:
    """Width of a data set's image embeddings, by a shard that is there; 0 where none is."""
    for record in (folder / "features" / f"{dataset}.shards").glob("*.json"):
        return int(json.loads(record.read_text("utf-8"))["width"])
    return 0


def missing_bytes(config: RunConfig) -> dict[str, int]:
    """Bytes of each dump that are still to be written, by its name `model on dataset`.

    A dump is counted once its model's bases and its data set's manifest are there; its shards that
    are written already are not. Logits are left out, and so is the targets' part of moments before
    one shard of the targets is there; the name says so then.
    """
    folder, settings = config.folder, config.contributions
    records = "moments" if settings.level == "moments" else "shards"
    found = {}
    for model in config.models:
        bases = folder / "contributions" / f"{model}.bases.safetensors"
        if not bases.exists():
            continue
        factors = load_factors(bases)
        for dataset in settings.datasets:
            table = folder / "manifest" / dataset / "images.parquet"
            if not table.exists():
                continue
            made = (folder / "contributions" / model).glob(f"{dataset}.{records}/*.parquet")
            written = {path.stem for path in made}
            rows = read_table("manifest", table)
            rows = rows[~rows["shard"].astype(str).isin(written)]
            images, shards = int(rows["active"].sum()), rows["shard"].nunique()
            if images:
                targets = target_width(config, model, dataset, embedded_width(folder, dataset))
                size = dump_bytes(
                    images, factors, settings.dtype, settings.level, shards=shards, targets=targets
                )  # fmt: skip
                unknown = " (its targets left out)" if targets == 0 else ""
                found[f"{model} on {dataset}{unknown}"] = size
    return found


def check_disk(config: RunConfig) -> None:
    """Compare what is still to be dumped with the free disk.

    Raises
    ------
    DiskError
        If it does not fit; the message has each dump's size.
    """
    missing = missing_bytes(config)
    needed, free = sum(missing.values()), free_bytes(config.folder)
    if needed <= free:
        return
    listing = "\n  - ".join(f"{name}: {human(size)}" for name, size in missing.items())
    raise DiskError(
        f"the dumps that are still to be made need {human(needed)}, but {human(free)} are free in "
        f"{config.folder}:\n  - {listing}\n"
        "Make room, name a folder on a larger disk as `results`, or make the dumps smaller: "
        "contributions.dtype: float16, another contributions.level, contributions.per: layer, "
        "fewer models or images. "
        "`snakemake estimate` says what each would take."
    )


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that a folder lies on, or would lie on."""
    present = next(
        path for path in [folder.absolute(), *folder.absolute().parents] if path.exists()
    )
    return shutil.disk_usage(present).free


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def human(size: float) -> str:
    """A number of bytes for a reader.

    >>> human(2.5e9)
    '2.5 GB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} PB"
