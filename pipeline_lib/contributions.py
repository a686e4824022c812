"""Dumps: the contributions of one model's components for the images of one data set.

One call dumps one shard (`dump_shard`); when all shards are there one call checks that they belong
together and describes them (`gather_dump`). How a contribution is computed is in
`pipeline_lib.decomposition`, how it is stored in `pipeline_lib.store`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32

from pipeline_lib.artifacts import STORES, read_provenance, read_table, write_table
from pipeline_lib.config import Contributions
from pipeline_lib.device import Halving, compute_device
from pipeline_lib.dumps import components_path, open_dump
from pipeline_lib.encoder import Encoder, check_rounding
from pipeline_lib.errors import ArtifactError, ToleranceError
from pipeline_lib.estimate import folder_bytes, human
from pipeline_lib.factors import Factors
from pipeline_lib.images import image_batches
from pipeline_lib.progress import Progress
from pipeline_lib.provenance import code_facts, data_fingerprint
from pipeline_lib.store import Shard, write_layout, write_shard

if TYPE_CHECKING:
    import torch

    from pipeline_lib.decomposition import Decomposition
    from pipeline_lib.models import VisionModel

log = logging.getLogger(__name__)

#: Arrays of a store for some images, by name.
Arrays = dict[str, Float32[np.ndarray, "b *_"]]

#: Images of a failed shard named in an error.
SHOWN = 5


def dump_shard(
    model: VisionModel,
    rows: pd.DataFrame,
    root: Path,
    store: Path,
    settings: Contributions,
    factors: Factors,
    *,
    workers: int = 2,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Decompose the images of one shard and write its objects into a store.

    Runs on the GPU where there is one. Nothing is written unless every image is within the
    tolerance.

    Parameters
    ----------
    model
        The model, in float32.
    rows
        Table `shard`: all rows of one shard, also those that are not active.
    root
        Folder that their paths are relative to.
    store
        `contributions/{model}/{dataset}.zarr`.
    settings
        Section `contributions` of the configuration: how to decompose and to store.
    factors
        Bases of the model's components, from `model_factors`.
    workers
        Threads that decode images ahead of the computation.

    Returns
    -------
    components, facts
        Table `components`, and JSON-able facts on how the shard was made, for the shard's record.

    Raises
    ------
    DataError
        If an image cannot be read or has changed since the manifest was made.
    ToleranceError
        If contributions do not sum to the representation, or cannot be stored.
    ArtifactError
        If the bases are of another model, or the shard cannot be written.
    """
    device, began = compute_device(), time.monotonic()
    model.to(device)
    shard = Shard(rows, settings.shard_size)
    parts = None
    encoder = Encoder(factors, settings, device)
    for where, done, arrays in decomposed(
        model, shard.active, root, settings, encoder, device, workers
    ):
        check_rounding(arrays["rounding"], shard.active["path"].iloc[where], settings)
        shard.put(where, arrays)
        parts = done
    if parts is None:  # all images of the shard have left; lay it out as the others are
        parts = blank_shard(model, settings)
        shard.put(slice(0, 0), _arrays_of(model, parts, encoder))
    write_shard(
        store, "contributions", shard.number, shard.arrays,
        shard_size=settings.shard_size, dtype=settings.dtype,
    )  # fmt: skip
    facts = {
        **shard_facts(model, parts, settings, factors),
        "dtype": settings.dtype,
        "sizes": _sizes(shard.arrays),
        "made": made_facts(len(shard.active), began),
    }
    return parts.components.assign(rank=factors.ranks), facts


def blank_shard(model: VisionModel, settings: Contributions) -> Decomposition:
    """Decomposition of a black image: how a shard without images is laid out."""
    import torch  # here, so that the job that only gathers starts without it

    from pipeline_lib.decomposition import decompose

    blank = torch.zeros(1, 3, *model.input_size, device=model.device)
    return decompose(model, blank, per=settings.per, bias=settings.bias)


def shard_facts(
    model: VisionModel, parts: Decomposition, settings: Contributions, factors: Factors
) -> dict[str, Any]:
    """Facts on how a shard was made that all shards of a data set must share."""
    facts = {
        "model": model.id,
        "weight_hash": model.weight_hash,
        "preprocessing": [str(step) for step in getattr(model.preprocess, "transforms", [])],
        "readout": parts.readout,
        "per": settings.per,
        "bias": settings.bias,
        "shard_size": settings.shard_size,
        "bases": factors.digest,
    }
    return facts if settings.is_whole else facts | {"level": settings.level}


def made_facts(images: int, began: float) -> dict[str, Any]:
    """Facts on one job: its images, the seconds since `began`, and where it ran."""
    import torch

    return {
        "images": images,
        "seconds": round(time.monotonic() - began, 3),
        "device": str(compute_device()),
        "torch": torch.__version__,
    }


def decompose_rate(model: VisionModel, settings: Contributions, batches: int = 2) -> float:
    """Images a second that this machine decomposes: noise, without decoding and writing."""
    import torch

    from pipeline_lib.decomposition import decompose

    device = compute_device()
    model.to(device)
    noise = torch.rand(settings.batch_size, 3, *model.input_size, device=device)
    seconds = 0.0
    for number in range(batches + 1):  # the first one plans, and does not count
        began = time.monotonic()
        decompose(model, noise, per=settings.per, bias=settings.bias).error.cpu()
        seconds += time.monotonic() - began if number else 0.0
    return batches * settings.batch_size / seconds


def gather_dump(
    store: Path,
    records: Sequence[Path],
    manifest: Path,
    tolerance: float,
    factors: Factors,
    *,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Describe the shards of a dump once all are written, and check every number in it.

    Writes the metadata of the store and the table of components beside it.

    Parameters
    ----------
    store
        `contributions/{model}/{dataset}.zarr`, with all shard objects in it.
    records
        The shards' tables of components, with the facts that `dump_shard` gave.
    manifest
        `manifest/{dataset}/images.parquet`.
    tolerance
        Largest relative error of the sum of contributions.
    factors
        The bases that the shards were made with.
    batch_size
        Images read at once.

    Returns
    -------
    dict
        The dump's manifest: `provenance.FIELDS` but stage and seed, its sizes and its bytes.

    Raises
    ------
    ArtifactError
        If shards were made differently, or one is missing or damaged.
    ToleranceError
        If stored contributions do not sum to the stored representation.
    """
    components, facts, made = agreed(records, factors)
    sizes = {**facts.pop("sizes"), "n": len(read_table("manifest", manifest))}
    sizes["b"] = len(factors.bases)
    layout = {key: facts.pop(key) for key in ("shard_size", "dtype")}
    write_table("components", components, components_path(store), facts)
    shared = {"bases": factors.bases} if len(factors.bases) else {}
    write_layout(store, "contributions", sizes, **layout, attributes=facts, shared=shared)
    found = _check_dump(store, manifest, tolerance, layout["dtype"], batch_size)
    facts |= {"shard_size": layout["shard_size"], "tolerance": tolerance}
    return {
        **dump_facts(facts, made, manifest),
        "dtype": layout["dtype"],
        "exactness": found,
        "sizes": sizes,
        "bytes": folder_bytes(store),
    }


def dump_facts(
    facts: Mapping[str, Any], made: Sequence[Mapping[str, Any]], manifest: Path
) -> dict[str, Any]:
    """What a dump's manifest says whatever its level (`provenance.FIELDS` but some)."""
    described = ("model", "weight_hash", "preprocessing", "readout")
    return {
        **code_facts(),
        **{name: facts[name] for name in described},
        "data": data_fingerprint(read_table("manifest", manifest)),
        "parameters": {name: value for name, value in facts.items() if name not in described},
        "device": sorted({f"{shard['device']}, torch {shard['torch']}" for shard in made}),
        "seconds": round(sum(shard["seconds"] for shard in made), 3),
    }


def decomposed(
    model: VisionModel,
    active: pd.DataFrame,
    root: Path,
    settings: Contributions,
    encoder: Encoder,
    device: torch.device,
    workers: int,
) -> Iterator[tuple[slice, Decomposition, Arrays]]:
    """The images of a shard decomposed batch by batch, each within the tolerance."""
    from pipeline_lib.decomposition import decompose

    batches = image_batches(
        [root / path for path in active["path"]],
        model.preprocess,
        settings.batch_size,
        hashes=list(active["sha256"]),
        workers=workers,
        pin_memory=device.type == "cuda",
    )
    progress = Progress(len(active), device)

    def one(images: Float[torch.Tensor, "b 3 h w"]) -> tuple[Decomposition, Arrays]:
        parts = decompose(model, images, per=settings.per, bias=settings.bias)
        return parts, _arrays_of(model, parts, encoder)

    fitting = Halving(one)
    for where, images in batches:
        for part, (parts, arrays) in fitting(images.to(device, non_blocking=True)):
            here = slice(where.start + part.start, where.start + part.stop)
            if here.start == 0:
                _log_start(model, settings, device, parts.values.shape, len(active))
            errors = parts.error.cpu().numpy()
            _check_errors(errors, active["path"].iloc[here], settings.tolerance, str(device))
            progress.log(here.stop)
            yield here, parts, arrays


def _arrays_of(model: VisionModel, parts: Decomposition, encoder: Encoder) -> Arrays:
    """The arrays of a store for one batch."""
    import torch

    values = parts.values.float()
    if values.shape[1:] != (len(encoder.factors.ranks), encoder.factors.width):
        raise ArtifactError(
            f"the bases are of {len(encoder.factors.ranks)} components of width "
            f"{encoder.factors.width}, the model has {tuple(values.shape[1:])}; run snakemake again"
        )
    coordinates = encoder.encode(values)
    tensors = {
        "coordinates": coordinates,
        "rounding": encoder.loss(values, coordinates),
        "representation": parts.representation,
        "error": parts.error,
    }
    if model.classifier is not None and parts.readout.startswith("pre-logits"):
        with torch.no_grad():
            tensors["logits"] = model.classifier(parts.representation)
    return {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}


def _check_errors(
    errors: Float32[np.ndarray, "b"], names: pd.Series, tolerance: float, where: str
) -> None:
    bad = ~(errors <= tolerance)  # NaN is bad too
    if not bad.any():
        return
    order = np.argsort(-np.where(np.isnan(errors), np.inf, errors))[:SHOWN]
    listing = "\n  - ".join(f"{names.iloc[i]}: {errors[i]:.3g}" for i in order if bad[i])
    raise ToleranceError(
        f"the contributions of {bad.sum()} of {len(errors)} images do not sum to the "
        f"representation within contributions.tolerance ({tolerance:g}, relative) in float32 on "
        f"{where}; median {np.nanmedian(errors):.3g}, worst images:\n  - {listing}\n"
        "Please report the model's id with this message; a larger tolerance hides the error."
    )


def _log_start(
    model: VisionModel, settings: Contributions, device: Any, shape: Sequence[int], count: int
) -> None:
    _, components, width = shape
    log.info("device %s, computing in float32, stored as %s", device, settings.dtype)
    log.info("model %s, %d components × %d, batch %d", model.id, components, width,
             settings.batch_size)  # fmt: skip
    log.info("%d images, at most %s to write", count, human(4 * count * components * width))


def _sizes(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Length of the axes that all shards share."""
    declared = {array.name: array.axes for array in STORES["contributions"]}
    return {
        axis: size
        for name, values in arrays.items()
        for axis, size in zip(declared[name], values.shape, strict=True)
        if axis != "n"
    }


def agreed(
    records: Sequence[Path], factors: Factors
) -> tuple[pd.DataFrame, dict[str, Any], list[dict[str, Any]]]:
    """The components and facts that all shards share, and those of each shard's job.

    Raises
    ------
    ArtifactError
        If shards were made differently, or with other bases.
    """
    first, facts = read_table("components", records[0]), _shared_facts(records[0])
    for record in records[1:]:
        if not read_table("components", record).equals(first) or _shared_facts(record) != facts:
            raise ArtifactError(
                f"{record} was made otherwise than {records[0]} (another model, weights or "
                f"settings). Run: rm -r {record.parent} && snakemake"
            )
    if facts["bases"] != factors.digest:
        raise ArtifactError(
            f"the shards of {records[0].parent} were made with other bases than those given. Run: "
            f"rm -r {records[0].parent} && snakemake"
        )
    return first, facts, [read_provenance(record)["made"] for record in records]


def _shared_facts(record: Path) -> dict[str, Any]:
    apart = ("made", "job")
    return {key: value for key, value in read_provenance(record).items() if key not in apart}


def _check_dump(
    store: Path, manifest: Path, tolerance: float, dtype: str, batch_size: int
) -> dict[str, float]:
    """Largest relative errors over all stored images; reads the whole dump once.

    What is stored in half precision, or projected, was within the tolerance before; then only the
    recorded error is held to it.
    """
    dump = open_dump(store, manifest, projected=True)
    whole = dump.is_whole
    worst, rounding = 0.0, 0.0
    for index in dump.batches(batch_size):
        z, names = dump.representation(index), dump.manifest["image_id"].iloc[index]
        gap = dump.contributions(index).sum(axis=1, dtype=np.float64) - z
        sizes = np.maximum(np.linalg.norm(z, axis=1), np.finfo(np.float32).tiny)
        recorded = dump.error(index)
        errors = (np.linalg.norm(gap, axis=1) / sizes).astype(np.float32) if whole else recorded
        _check_errors(recorded if dtype != "float32" else errors, names, tolerance, "disk")
        worst = max(worst, float(errors.max()))
        rounding = max(rounding, float(dump.rounding(index).max()))
    log.info("%d images checked, largest relative error as stored %.3g, lost by storing %.3g",
             dump.n, worst, rounding)  # fmt: skip
    return {"worst_error": worst, "worst_rounding": rounding}
