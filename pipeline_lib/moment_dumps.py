"""Moments of a model's contributions in place of a dump: for sets too large to keep.

One call sums the moments of one shard (`sum_shard`); when all shards are there one call adds them
up (`gather_moments`). Images of split `test` are summed apart from all others, because labels are
tested on them. Where maps are to be fitted, so are the images held out of the fit, and the targets
of both sides are counted in as further columns. What can be made from moments is in
`pipeline_lib.streamed` and `pipeline_lib.map_moments`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline_lib.artifacts import write_table
from pipeline_lib.config import Contributions
from pipeline_lib.contributions import (
    agreed,
    blank_shard,
    decomposed,
    dump_facts,
    made_facts,
    shard_facts,
)
from pipeline_lib.device import compute_device
from pipeline_lib.encoder import Encoder
from pipeline_lib.errors import ArtifactError
from pipeline_lib.factors import Factors, group_columns
from pipeline_lib.image_features import ShardEmbeddings
from pipeline_lib.streamed import StreamedMoments, load_moments, save_moments

if TYPE_CHECKING:
    from pipeline_lib.models import VisionModel


def sum_shard(
    model: VisionModel,
    rows: pd.DataFrame,
    root: Path,
    settings: Contributions,
    factors: Factors,
    *,
    targets: ShardEmbeddings | None = None,
    workers: int = 2,
) -> tuple[dict[str, StreamedMoments], pd.DataFrame, dict[str, Any]]:
    """Decompose the images of one shard and sum the moments of their coordinates.

    Parameters
    ----------
    model, root, settings, factors, workers
        As for `contributions.dump_shard`.
    rows
        Table `shard_splits`: all rows of one shard with their splits.
    targets
        Where maps are fitted, what to: then images of split `heldout` are held out of the fit.

    Returns
    -------
    moments, components, facts
        Moments of each group of `group_columns`, and what `contributions.dump_shard` gives.

    Raises
    ------
    DataError
        If an image cannot be read or has changed since the manifest was made.
    ToleranceError
        If contributions do not sum to the representation.
    """
    device, began = compute_device(), time.monotonic()
    model.to(device)
    encoder = Encoder(factors, settings, device)
    columns = group_columns(factors, None if targets is None else targets.width)
    groups = {name: StreamedMoments.none(count) for name, count in columns.items()}
    active = rows[rows["active"]].reset_index(drop=True)
    group_of = active["split"].where(active["split"].isin(groups), "fit").to_numpy()
    parts, worst = None, 0.0
    for where, done, arrays in decomposed(model, active, root, settings, encoder, device, workers):
        coordinates, parts = arrays["coordinates"], done
        worst = max(worst, float(arrays["error"].max()))
        for name, group in groups.items():
            chosen = group_of[where] == name
            values = coordinates[chosen]
            if targets is not None and name != "test":
                values = np.hstack([values, targets.vectors[where][chosen]])
            group.add(values)
    parts = blank_shard(model, settings) if parts is None else parts
    facts = {
        **shard_facts(model, parts, settings, factors),
        **({} if targets is None else {"targets": targets.facts}),
        "made": {**made_facts(len(active), began), "worst_error": worst},
    }
    return groups, parts.components.assign(rank=factors.ranks), facts


def gather_moments(
    shards: Sequence[Path],
    records: Sequence[Path],
    manifest: Path,
    tolerance: float,
    factors: Factors,
    out: Path,
    components: Path,
) -> dict[str, Any]:
    """Add up the moments of all shards, in any order, and describe them.

    Parameters
    ----------
    shards, records
        For each shard its moments, and its table of components with the facts of `sum_shard`.
    manifest
        `manifest/{dataset}/images.parquet`.
    tolerance
        Largest relative error of the sum of contributions, which every shard was held to.
    factors
        The bases that the shards were made with.
    out, components
        Where the moments and the table of components are written.

    Returns
    -------
    dict
        As of `contributions.gather_dump`.

    Raises
    ------
    ArtifactError
        If shards were made differently, or one is missing or damaged.
    """
    table, facts, made = agreed(records, factors)
    targets = facts["targets"]["width"] if "targets" in facts else None
    columns = group_columns(factors, targets)
    total = {name: StreamedMoments.none(count) for name, count in columns.items()}
    for path in shards:
        for name, group in _checked(load_moments(path), columns, path).items():
            total[name].merge(group)
    save_moments(total, out)
    write_table("components", table, components, facts)
    return {
        **dump_facts({**facts, "tolerance": tolerance}, made, manifest),
        "dtype": "float64",
        "exactness": {"worst_error": max(shard["worst_error"] for shard in made)},
        "sizes": {
            "n": sum(group.n for group in total.values()),
            "r": factors.columns,
            **({} if targets is None else {"e": targets}),
        },
        "bytes": out.stat().st_size,
    }


def _checked(
    found: Mapping[str, StreamedMoments], columns: Mapping[str, int], path: Path
) -> Mapping[str, StreamedMoments]:
    sound = set(found) == set(columns) and all(
        group.squares.shape == (columns[name], columns[name])
        and bool(np.isfinite(group.squares).all())
        for name, group in found.items()
    )
    if not sound:
        raise ArtifactError(
            f"{path} does not hold the moments of {columns['test']} coordinates; delete it and "
            "run snakemake again"
        )
    return found
