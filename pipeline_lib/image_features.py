"""The reference CLIP's embeddings of a data set's images, shard by shard."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float32

from pipeline_lib.artifacts import read_table
from pipeline_lib.config import Contributions
from pipeline_lib.device import Halving, compute_device
from pipeline_lib.dumps import open_features
from pipeline_lib.errors import ArtifactError
from pipeline_lib.images import image_batches
from pipeline_lib.manifest import file_hash
from pipeline_lib.progress import Progress
from pipeline_lib.store import Shard, read_shard, shard_object, write_layout, write_shard

if TYPE_CHECKING:
    from pipeline_lib.models import VisionModel

log = logging.getLogger(__name__)

#: Facts on a shard: the model, the sizes and the hash of its object, as JSON.
Record = dict[str, object]

#: What the length of a unit vector may differ from 1 by.
UNIT_TOLERANCE = 1e-4


def embed_shard(
    model: VisionModel,
    rows: pd.DataFrame,
    root: Path,
    store: Path,
    settings: Contributions,
    *,
    workers: int = 2,
) -> Record:
    """Embed the images of one shard and write its object into a store.

    Parameters
    ----------
    model
        The reference CLIP.
    rows
        Table `shard`: all rows of one shard.
    root
        Folder that their paths are relative to.
    store
        `features/{dataset}.zarr`.
    settings
        Section `contributions` of the configuration, for the sizes of shard and batch.
    workers
        Threads that decode images ahead of the computation.

    Returns
    -------
    dict
        Facts on the shard, JSON-able; `sha256` is of its object, so that the record tells whether
        the embeddings changed.

    Raises
    ------
    DataError
        If an image cannot be read or has changed since the manifest was made.
    ModelError
        If the model has no CLIP embedding.
    ArtifactError
        If the shard cannot be written.
    """
    device = compute_device()
    model.to(device)
    log.info("device %s, float32, batch %d, %d images", device, settings.batch_size, len(rows))
    shard = Shard(rows, settings.shard_size)
    width = clip_width(model)
    shard.put(slice(0, 0), {"image_embeddings": np.empty((0, width), dtype=np.float32)})
    fitting = Halving(model.encode_image)
    progress = Progress(len(shard.active), device)
    batches = image_batches(
        [root / path for path in shard.active["path"]],
        model.preprocess,
        settings.batch_size,
        hashes=list(shard.active["sha256"]),
        workers=workers,
        pin_memory=device.type == "cuda",
    )
    for where, images in batches:
        for part, vectors in fitting(images.to(device, non_blocking=True)):
            here = slice(where.start + part.start, where.start + part.stop)
            shard.put(here, {"image_embeddings": vectors.cpu().numpy()})
        progress.log(where.stop)
    write_shard(store, "features", shard.number, shard.arrays, shard_size=settings.shard_size)
    return {
        "model": model.id,
        "weight_hash": model.weight_hash,
        "shard_size": settings.shard_size,
        "width": width,
        "sha256": file_hash(shard_object(store, "features", "image_embeddings", shard.number)),
    }


def clip_width(model: VisionModel) -> int:
    """Width e of a CLIP model's space.

    Raises
    ------
    ModelError
        If the model has no CLIP embedding.
    """
    import torch

    blank = torch.zeros(1, 3, *model.input_size, device=model.device)
    return model.encode_image(blank).shape[1]


@dataclass(frozen=True)
class ShardEmbeddings:
    """Embeddings of the active images of one shard, and facts on the reference that made them."""

    vectors: Float32[np.ndarray, "n e"]
    facts: Record

    @property
    def width(self) -> int:
        """Width e of the CLIP space."""
        return self.vectors.shape[1]


def read_embeddings(path: Path, record: Path, rows: pd.DataFrame) -> ShardEmbeddings:
    """What `embed_shard` wrote for one shard, without the metadata of the whole store.

    Parameters
    ----------
    path
        The object that holds the shard's embeddings.
    record
        The facts on the shard.
    rows
        All rows of the shard, from table `shard` or `shard_splits`.

    Raises
    ------
    ArtifactError
        If they are missing or damaged, an active image has none, or one is no unit vector.
    """
    facts = of_every_shard(json.loads(record.read_text("utf-8")))
    sizes = {"n": len(rows), "e": int(str(facts["width"]))}
    size = int(str(facts.pop("shard_size")))
    values = read_shard(path, "features", "image_embeddings", sizes, shard_size=size)
    vectors = values[rows["active"].to_numpy()]
    gaps = unit_gaps(vectors)
    if not np.isfinite(gaps).all():
        raise ArtifactError(
            f"{path} lacks embeddings of some of its {len(vectors)} images; delete it and run "
            "snakemake again"
        )
    if (gaps > UNIT_TOLERANCE).any():
        row = rows.loc[rows["active"], "row"].iloc[gaps.argmax()]
        raise ArtifactError(
            f"{path}: the embedding of the image in row {row} is no unit vector; delete it and run "
            "snakemake again"
        )
    return ShardEmbeddings(vectors, facts)


def unit_gaps(vectors: Float32[np.ndarray, "n e"]) -> Float32[np.ndarray, " n"]:
    """How far the length of each vector is from 1; not finite where a number is not."""
    return abs(np.sqrt(np.einsum("ne,ne->n", vectors, vectors)) - 1.0)


def of_every_shard(record: Record) -> Record:
    """The facts on a shard that are those of all shards: without the hash of its object."""
    return {name: fact for name, fact in record.items() if name != "sha256"}


def gather_features(
    store: Path, records: dict[Path, Record], manifest: Path, *, batch_size: int = 1024
) -> None:
    """Describe the shards of embeddings once all are written, and check every number.

    Parameters
    ----------
    store
        `features/{dataset}.zarr`, with all shard objects in it.
    records
        For the path of each shard's record the facts in it.
    manifest
        `manifest/{dataset}/images.parquet`.
    batch_size
        Images read at once.

    Raises
    ------
    ArtifactError
        If shards were made differently, or one is missing, damaged or no unit vectors.
    """
    (first, facts), *rest = records.items()
    facts = of_every_shard(facts)
    for path, other in rest:
        if of_every_shard(other) != facts:
            raise ArtifactError(
                f"{path} was made otherwise than {first} (another reference or its weights). "
                f"Run: rm -r {path.parent} && snakemake"
            )
    attributes = dict(facts)
    sizes = {"n": len(read_table("manifest", manifest)), "e": int(str(attributes.pop("width")))}
    shard_size = int(str(attributes.pop("shard_size")))
    write_layout(store, "features", sizes, shard_size=shard_size, attributes=attributes)
    features = open_features(store, manifest)
    for index in features.batches(batch_size):
        gaps = unit_gaps(features.embeddings(index))
        if gaps.max() > UNIT_TOLERANCE:
            raise ArtifactError(
                f"{store}: the embedding of {features.manifest['image_id'].iloc[gaps.argmax()]} "
                f"is no unit vector. Delete {store} and run snakemake again."
            )
    log.info("%d embeddings of width %d checked", features.n, sizes["e"])
