"""What the report needs from the dumps themselves: exactness, and top images of components.

Each is small and read once from a dump, so that making the page needs no dump. Axis letters:
`n` image, `c` component, `d` model width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from pipeline_lib.dumps import Dump
from pipeline_lib.errors import ArtifactError
from pipeline_lib.maps import Maps
from pipeline_lib.textspan import apart

_BATCH_BYTES = 128 * 2**20


def exactness(dump: Dump, tolerance: float, size: int, seconds: float) -> pd.DataFrame:
    """Distribution of a dump's sum error: one row, without the columns model and dataset.

    Parameters
    ----------
    dump
        The contributions of one model on one data set.
    tolerance
        Relative error above which a dump job fails.
    size
        Bytes of the store on disk.
    seconds
        Time of decomposing and writing, summed over shards.
    """
    errors = np.concatenate([dump.error(index) for index in dump.batches(4096)])
    row = {
        "n": dump.n,
        "components": len(dump.components),
        "width": dump.width,
        "tolerance": tolerance,
        "median": float(np.median(errors)),
        "worst": float(errors.max()),
        "percentiles": np.percentile(errors, np.arange(101)).astype(np.float32),
        "bytes": size,
        "seconds": seconds,
    }
    return pd.DataFrame([row])


def top_images(
    dump: Dump,
    labels: pd.DataFrame,
    directions: Mapping[int, Float[np.ndarray, " d"]],
    count: int,
) -> pd.DataFrame:
    """Images on which each component writes most along its first text.

    Parameters
    ----------
    dump
        Contributions of one model.
    labels
        Table `labels` of the model.
    directions
        From `text_directions`.
    count
        Images for each component.

    Returns
    -------
    pandas.DataFrame
        Columns component, id, text, rank, image_id, score: the contribution along the text in
        standard deviations above its mean over the images. Only components that have a text.
    """
    columns = ["component", "id", "text", "rank", "image_id", "score"]
    first = _first_texts(labels)
    if first.empty:
        return pd.DataFrame(columns=columns)
    chosen = first["component"].tolist()
    along = np.stack([directions[component] for component in chosen])
    written = np.concatenate(
        [
            np.einsum("ncd,cd->nc", dump.contributions(index, chosen), along)
            for index in dump.batches(_batch(len(chosen), dump.width))
        ]
    )
    spread = written.std(axis=0)
    scores = (written - written.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    best = np.argsort(-scores, axis=0, kind="stable")[:count]
    ids = dump.manifest["image_id"].to_numpy()
    rows = [
        (row.component, row.id, row.text, rank, ids[image], float(scores[image, place]))
        for place, row in enumerate(first.itertuples())
        for rank, image in enumerate(best[:, place])
    ]
    return pd.DataFrame(rows, columns=columns)


def _first_texts(labels: pd.DataFrame) -> pd.DataFrame:
    return labels[labels["rank"] == 0].sort_values("component").reset_index(drop=True)


def _batch(components: int, width: int) -> int:
    return max(1, _BATCH_BYTES // (4 * max(1, components) * width))


def text_directions(
    maps: Maps, labels: pd.DataFrame, texts: pd.DataFrame, components: int
) -> dict[int, Float[np.ndarray, " d"]]:
    """For each component the direction that reads its first text off it, less what texts share.

    Parameters
    ----------
    maps
        Maps of the model to the CLIP space of `texts`.
    labels
        Table `labels` of the model.
    texts
        Table `text_features` of that CLIP space.
    components
        Number of components of the model.

    Raises
    ------
    ArtifactError
        A first text has no embedding in `texts`.
    """
    first = _first_texts(labels)
    pool = texts[texts["use"] == "pool"].drop_duplicates("text").reset_index(drop=True)
    places = pd.Series(pool.index, index=pool["text"]).reindex(first["text"])
    if places.isna().any():
        raise ArtifactError(
            f"{int(places.isna().sum())} texts of the labels have no embedding, for example "
            f"{first['text'][places.isna().to_numpy()].iloc[0]!r}; the labels were made from "
            "another pool: run snakemake again"
        )
    vectors = apart(torch.from_numpy(np.stack(pool["embedding"].to_list())))
    names, which = np.unique(places.to_numpy(dtype=int), return_inverse=True)
    read = maps.directions(vectors[names].float(), components).numpy()
    chosen = first["component"].tolist()
    return {component: read[component, :, k] for component, k in zip(chosen, which, strict=True)}
