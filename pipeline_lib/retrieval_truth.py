"""What is right in retrieval: which images have which property, and which probes are asked.

Tables of the manifest and of texts in, arrays of truth values out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from pipeline_lib.artifacts import extra_columns
from pipeline_lib.errors import DataError, close_matches
from pipeline_lib.retrieval_metrics import ranking
from pipeline_lib.retrieval_ways import unit_rows

#: Labels that count as near to a probe's where every image has a label of its own.
NEIGHBOURS = 10

#: Columns of the manifest that say nothing of what a picture shows.
_MANIFEST_ONLY = frozenset({"row", "image_id", "path", "active", "sha256", "mask", "split"})


def same_values(
    manifest: pd.DataFrame, properties: Sequence[str], probes: Int[np.ndarray, " q"]
) -> dict[str, Bool[np.ndarray, "q n"]]:
    """For each property, which images have the same value of it as each probe.

    Raises
    ------
    DataError
        A property is not a column of the manifest.
    """
    _check_properties(manifest, properties)
    result = {}
    for name in properties:
        values = manifest[name].to_numpy(dtype=object)
        result[name] = (values[probes][:, None] == values) & manifest[name].notna().to_numpy()
    return result


def label_neighbours(
    manifest: pd.DataFrame, texts: pd.DataFrame, probes: Int[np.ndarray, " q"]
) -> Bool[np.ndarray, "q n"] | None:
    """Images whose label is among the nearest to each probe's, by the text embeddings of labels.

    The truth where every image has a label of its own and no other property is known: the
    `NEIGHBOURS` labels nearest to the probe's, out of those that occur. None where labels repeat,
    or have no embedding.
    """
    classes = texts[texts["use"] == "class"].drop_duplicates("text").set_index("text")["embedding"]
    labels = manifest["label"] if "label" in manifest.columns else pd.Series(dtype=object)
    alone = labels.notna().all() and labels.is_unique and labels.isin(classes.index).all()
    if not alone or len(labels) <= NEIGHBOURS + 1:
        return None
    vectors = unit_rows(stacked(classes.loc[labels]))
    near = ranking(vectors[probes] @ vectors.T, NEIGHBOURS, leave_out=probes)
    result = np.zeros((len(probes), len(labels)), dtype=bool)
    np.put_along_axis(result, near, True, axis=1)
    result[np.arange(len(probes)), probes] = True
    return result


def choose_probes(
    manifest: pd.DataFrame, properties: Sequence[str], count: int, seed: int
) -> Int[np.ndarray, " q"]:
    """Positions of `count` random images of a manifest that have all the properties."""
    _check_properties(manifest, properties)
    usable = np.flatnonzero(manifest[list(properties)].notna().all(axis=1).to_numpy())
    if len(usable) == 0:
        raise DataError(f"no image has a value for every property of {list(properties)}")
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(usable, size=min(count, len(usable)), replace=False))


def _check_properties(manifest: pd.DataFrame, properties: Sequence[str]) -> None:
    unknown = [name for name in properties if name not in manifest.columns]
    if unknown:
        raise DataError(
            f"unknown property {unknown[0]!r}: the manifest has no such column; "
            f"{close_matches(unknown[0], map(str, manifest.columns))}"
        )


def stacked(embeddings: pd.Series) -> Float[np.ndarray, "t e"]:
    return np.stack([np.asarray(row, dtype=np.float32) for row in embeddings])


def same_texts(texts: pd.DataFrame, others: pd.DataFrame) -> Float[np.ndarray, "t e"]:
    """Embeddings in another table of the same concepts, in the same order."""
    other = others[others["use"] == "concept"].set_index(["feature", "text"])["embedding"]
    wanted = list(zip(texts["feature"], texts["text"], strict=True))
    missing = [key for key in wanted if key not in other.index]
    if missing:
        raise DataError(
            f"the reference's texts lack {missing[0][1]!r} of {missing[0][0]!r}; run snakemake to "
            "make them anew"
        )
    return stacked(other.loc[wanted])


def column_of(manifest: pd.DataFrame, feature: str, texts: pd.DataFrame) -> str | None:
    """Column whose values tell whether an image has a text of a feature."""
    if feature in extra_columns("manifest", manifest):
        return feature
    wanted = texts.loc[texts["feature"] == feature, "text"]
    own = [name for name in manifest.columns if name not in _MANIFEST_ONLY]
    return next((name for name in own if manifest[name].isin(wanted).any()), None)


def has_text(
    manifest: pd.DataFrame, texts: pd.DataFrame, columns: Mapping[str, str | None]
) -> Bool[np.ndarray, "t n"]:
    """Which images have which text as their value in the column of the text's feature."""
    result = np.zeros((len(texts), len(manifest)), dtype=bool)
    for row, (feature, text) in enumerate(zip(texts["feature"], texts["text"], strict=True)):
        column = columns[str(feature)]
        if column is not None:
            result[row] = (manifest[column] == text).to_numpy(dtype=bool, na_value=False)
    return result
