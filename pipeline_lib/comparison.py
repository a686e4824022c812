"""Several models side by side: where each feature lives, and which components do the same.

Works on tables of scores, and on what components say about the same images in the same texts, so
that models of different CLIP spaces can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline_lib.coordinates import Source
from pipeline_lib.maps import Maps
from pipeline_lib.significance import carriers

_MLPS = ("mlp", "conv")


def comparison_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of table `comparison` from tables `scores` of several models, one below another.

    A component's depth is its layer over the largest layer of its model; the stem is at 0. Depths
    are weighted by the positive scores.
    """
    rows = []
    for (model, dataset, feature), part in scores.groupby(
        ["model", "dataset", "feature"], sort=False
    ):
        part = part[part["kind"] != "bias"]
        weight = part["score"].clip(lower=0).to_numpy()
        weight = weight / max(weight.sum(), 1e-300)
        depth = part["layer"].clip(lower=0) / max(int(part["layer"].max()), 1)
        mean = float((weight * depth).sum())
        first = part.loc[part["score"].idxmax()]
        count = carriers(part["score"].tolist())
        rows.append(
            {
                "model": model,
                "dataset": dataset,
                "feature": feature,
                "depth": mean,
                "depth_spread": float(np.sqrt((weight * (depth - mean) ** 2).sum())),
                "carriers": count,
                "carriers_share": count / len(part),
                "top": first["id"],
                "top_score": float(first["score"]),
                "heads": float(weight[(part["kind"] == "head").to_numpy()].sum()),
                "mlps": float(weight[part["kind"].isin(_MLPS).to_numpy()].sum()),
            }
        )
    return pd.DataFrame(rows)


def readings(source: Source, maps: Maps, texts: Float[Tensor, "k e"]) -> Float[Tensor, "n c k"]:
    """What every component says about every image in terms of `texts`; mean over images zero.

    Parameters
    ----------
    source
        Contributions of the images.
    maps
        Maps of the model to its CLIP space.
    texts
        Text embeddings in that space.
    """
    parts = []
    directions: Tensor | None = None
    for _, values in source.batches():
        if directions is None:
            directions = maps.directions(texts, values.shape[1])
        parts.append(torch.einsum("ncd,cdk->nck", values, directions))
    found = torch.cat(parts)
    return found - found.mean(dim=0)


def similarities(
    first: Float[Tensor, "n a k"], second: Float[Tensor, "n b k"]
) -> Float[np.ndarray, "a b"]:
    """Correlation, over images and texts, between what two models' components say, -1 to 1.

    Zero for components that are constant.
    """

    def flat(values: Tensor) -> Tensor:
        rows = values.double().permute(1, 0, 2).flatten(1)
        length = rows.norm(dim=1, keepdim=True)
        largest = length.max().clamp_min(1e-300)
        return torch.where(length > 1e-6 * largest, rows / length.clamp_min(1e-300), 0.0)

    return (flat(first) @ flat(second).T).numpy()


def counterpart_table(
    said: Mapping[str, Float[Tensor, "n c k"]], names: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Rows of table `counterparts`, without data set, for every ordered pair of models.

    Within a model, the most alike among the *other* components. Constant components have no row.

    Parameters
    ----------
    said
        Model to its `readings` of the same images in the same texts.
    names
        Model to the ids of its components.
    """
    rows = []
    for model, own in said.items():
        for other, values in said.items():
            alike = similarities(own, values)
            varies = alike.any(axis=1)
            if other == model:
                np.fill_diagonal(alike, -np.inf)
            for component in np.flatnonzero(varies).tolist():
                best = int(alike[component].argmax())
                facts = (model, component, names[model][component], other, best)
                rows.append((*facts, names[other][best], float(alike[component, best])))
    columns = ["model", "component", "id", "other_model", "other_component", "other_id"]
    return pd.DataFrame(rows, columns=[*columns, "similarity"])
