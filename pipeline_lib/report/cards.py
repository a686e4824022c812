"""What the report needs from the dumps themselves: exactness, top images, similar components.

Each is small and read once from a dump, so that making the page needs no dump. Axis letters:
`n` image, `c` component, `d` model width, `e` width of the CLIP space, `k` text.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from pipeline_lib.dumps import Dump
from pipeline_lib.errors import ArtifactError
from pipeline_lib.maps import Maps

log = logging.getLogger(__name__)

#: Images over which components of several models are compared.
COMPARED = 400
#: Images that the comparison needs at least.
_FEWEST = 8
#: Images read at once: neighbours in a store, because scattered ones are slow to read.
_RUN = 50
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
    dump: Dump, maps: Maps, labels: pd.DataFrame, texts: pd.DataFrame, count: int
) -> pd.DataFrame:
    """Images on which each component writes most along its first text.

    Parameters
    ----------
    dump, maps
        Contributions of one model, and its maps to the CLIP space of `texts`.
    labels
        Table `labels` of the model.
    texts
        Table `text_features` of the CLIP space that the maps point to.
    count
        Images for each component.

    Returns
    -------
    pandas.DataFrame
        Columns component, id, text, rank, image_id, score: the contribution along the text in
        standard deviations above its mean over the images. Only components that have a text.

    Raises
    ------
    ArtifactError
        A first text has no embedding in `texts`.
    """
    first = labels[labels["rank"] == 0].sort_values("component").reset_index(drop=True)
    if first.empty:
        return pd.DataFrame(columns=["component", "id", "text", "rank", "image_id", "score"])
    chosen = first["component"].to_numpy()
    directions = _directions(maps, first, texts, len(dump.components))
    written = np.concatenate(
        [
            np.einsum("ncd,cd->nc", dump.contributions(index, chosen), directions)
            for index in dump.batches(_batch(len(chosen), dump.width))
        ]
    )
    spread = written.std(axis=0)
    scores = (written - written.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    best = np.argsort(-scores, axis=0, kind="stable")[:count]
    ids = dump.manifest["image_id"].to_numpy()
    rows = [
        {"component": row.component, "id": row.id, "text": row.text, "rank": rank}
        | {"image_id": ids[image], "score": float(scores[image, place])}
        for place, row in enumerate(first.itertuples())
        for rank, image in enumerate(best[:, place])
    ]
    return pd.DataFrame(rows)


def _batch(components: int, width: int) -> int:
    return max(1, _BATCH_BYTES // (4 * max(1, components) * width))


def _directions(
    maps: Maps, first: pd.DataFrame, texts: pd.DataFrame, components: int
) -> Float[np.ndarray, "c d"]:
    """Direction of the model that reads each component's own first text off it."""
    pool = texts[texts["use"] == "pool"].drop_duplicates("text").set_index("text")["embedding"]
    unknown = sorted(set(first["text"]) - set(pool.index))
    if unknown:
        raise ArtifactError(
            f"{len(unknown)} texts of the labels have no embedding, for example {unknown[0]!r}; "
            "the labels were made from another pool: run snakemake again"
        )
    names = list(dict.fromkeys(first["text"]))
    vectors = torch.tensor(np.stack([pool[name] for name in names]), dtype=torch.float32)
    read = maps.directions(vectors, components).numpy()
    places = [names.index(text) for text in first["text"]]
    return read[first["component"].to_numpy(), :, places]


def neighbours(dumps: Mapping[str, Dump], count: int = 1) -> pd.DataFrame:
    """Components of the other models that vary most alike over the same images.

    Parameters
    ----------
    dumps
        Model to its contributions on one data set.
    count
        Components of each other model to name.

    Returns
    -------
    pandas.DataFrame
        Columns model, component, id, other_model, other_component, other_id, rank, similarity
        (linear CKA with the unbiased estimator: 1 for equal geometry, 0 on average for none),
        n (images compared). Components that do not vary are left out; there is no row where there
        are fewer than eight images.

    Raises
    ------
    ArtifactError
        The dumps hold different images.

    Notes
    -----
    Kornblith et al., ICML 2019, with the unbiased estimator of Song et al., JMLR 2012.
    """
    names = list(dumps)
    index = _shared_images(dumps)
    columns = ["model", "component", "id", "other_model", "other_component", "other_id"]
    columns += ["rank", "similarity", "n"]
    if len(index) < _FEWEST:
        log.warning("%d images are too few to compare components over", len(index))
        return pd.DataFrame(columns=columns)
    patterns = {name: _patterns(dump, index) for name, dump in dumps.items()}
    rows = []
    for name in names:
        for other in names:
            if other == name:
                continue
            similarity = patterns[name] @ patterns[other].T
            rows += _nearest(dumps, name, other, similarity, count, len(index))
    return pd.DataFrame(rows, columns=columns)


def _shared_images(dumps: Mapping[str, Dump]) -> np.ndarray:
    """Positions of the images to compare on: runs, evenly spread; the same in every dump."""
    ids = [dump.manifest["image_id"].tolist() for dump in dumps.values()]
    if any(one != ids[0] for one in ids[1:]):
        raise ArtifactError("the dumps hold different images; run snakemake to update them")
    count = len(ids[0])
    if count <= COMPARED:
        return np.arange(count)
    starts = np.linspace(0, count - _RUN, COMPARED // _RUN).astype(int)
    return np.unique(np.concatenate([np.arange(start, start + _RUN) for start in starts]))


def _patterns(dump: Dump, index: np.ndarray) -> Float[np.ndarray, "c p"]:
    """Similarity of the images in each component, as unit vectors; zero where nothing varies."""
    count = len(index)
    step = max(1, _BATCH_BYTES // (4 * count * dump.width))
    patterns = np.zeros((len(dump.components), count * count), dtype=np.float32)
    for start in range(0, len(dump.components), step):
        parts = range(start, min(start + step, len(dump.components)))
        runs = np.split(index, np.arange(_RUN, count, _RUN))
        values = np.concatenate([dump.contributions(run, list(parts)) for run in runs])
        values -= values.mean(axis=0)
        for place, component in enumerate(parts):
            part = values[:, place].astype(np.float64)
            gram = _unbiased(part @ part.T)
            size = np.linalg.norm(gram)
            scale = np.square(part).sum()
            if size > 1e-12 * max(scale, 1e-30) and scale > 1e-20:
                patterns[component] = (gram / size).ravel()
    return patterns


def _unbiased(gram: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """U-centred matrix, whose inner products estimate HSIC without bias."""
    count = len(gram)
    np.fill_diagonal(gram, 0.0)
    rows = gram.sum(axis=0) / (count - 2)
    gram = gram - rows[:, None] - rows[None, :] + gram.sum() / ((count - 1) * (count - 2))
    np.fill_diagonal(gram, 0.0)
    return gram


def _nearest(
    dumps: Mapping[str, Dump],
    name: str,
    other: str,
    similarity: Float[np.ndarray, "c k"],
    count: int,
    images: int,
) -> list[dict[str, object]]:
    own, theirs = _ids(dumps[name]), _ids(dumps[other])
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return [
        {"model": name, "component": component, "id": own[component], "other_model": other}
        | {"other_component": int(place), "other_id": theirs[place], "rank": rank}
        | {"similarity": float(similarity[component, place]), "n": images}
        for component in range(len(own))
        if similarity[component].any()
        for rank, place in enumerate(order[component])
    ]


def _ids(dump: Dump) -> Sequence[str]:
    return dump.components["id"].tolist()
