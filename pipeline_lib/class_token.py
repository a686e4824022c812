"""What the class token takes from itself: a line of mean ablation that needs the images.

A head's contribution is a sum over the tokens it attends to; its part from the class token is not
in a dump, so the images evaluated are decomposed by token. The other curves are in `ablation`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline_lib.ablation import Task
from pipeline_lib.decomposition import decompose
from pipeline_lib.errors import DataError


def reads_class_token(components: pd.DataFrame) -> bool:
    """Whether the representation is read at the class token (and at most one token beside it).

    Parameters
    ----------
    components
        Rows of table `components`.
    """
    kinds = components["kind"].to_numpy()
    others = components[kinds == "mlp"]  # a head may be written down as a sum over its queries
    return bool((kinds == "head").any() and len(others)) and int(others["tokens"].max()) <= 2


def class_token_shares(
    model: object, images: Float[Tensor, "n 3 h w"], directions: Float[np.ndarray, "k d"]
) -> Float[np.ndarray, "n k"]:
    """What all heads together take from the class token, along each direction.

    Raises
    ------
    DataError
        The model has no class token.
    """
    wanted = torch.from_numpy(np.ascontiguousarray(directions, dtype=np.float32))
    table = decompose(model, images[:1]).components
    heads = table.loc[table["kind"] == "head", "id"].tolist()
    parts = decompose(model, images, per="token", components=heads, directions=wanted)
    if parts.layout is None or parts.layout.leading == 0:
        raise DataError("the model has no class token, so nothing is taken from it")
    return parts.values[:, :, 0].sum(dim=1).cpu().numpy()


def class_token_rows(
    tasks: Sequence[Task],
    index: Int[np.ndarray, " n"],
    representation: Float[np.ndarray, "n d"],
    shares: Float[np.ndarray, "n k"],
    means: Float[np.ndarray, " k"],
) -> pd.DataFrame:
    """Accuracy with what the class token takes from itself replaced by its mean.

    Parameters
    ----------
    tasks
        What is predicted.
    index
        Images evaluated, as positions in the dump; a task takes those that it evaluates.
    representation
        `z` of these images.
    shares
        What the heads take from the class token in these images, along the classes of all tasks
        side by side.
    means
        Mean of the same over reference images.

    Returns
    -------
    DataFrame
        Rows `class_token` of table `ablation`: step 0 the full model on the same images, step 1
        without; no model and data set.

    Notes
    -----
    P1, section 3.2.
    """
    rows, first = [], 0
    for task in tasks:
        classes = slice(first, first + len(task.classifier.classes))
        first = classes.stop
        truth = dict(zip(task.index.tolist(), task.classifier.encode(task.labels), strict=True))
        kept = [place for place, image in enumerate(index.tolist()) if image in truth]
        if not kept:
            continue
        wanted = np.array([truth[int(index[place])] for place in kept])
        full = task.classifier.logits(representation[kept])
        own = shares[kept, classes] - means[classes]
        steps = ((0, full, "nothing"), (1, full - own, "what heads take from the class token"))
        for step, left, ablated in steps:
            rows.append(
                {
                    "target": task.target,
                    "classifier": task.classifier.kind,
                    "curve": "class_token",
                    "step": step,
                    "ablated": ablated,
                    "accuracy": task.classifier.accuracy(left, wanted),
                    "n": len(kept),
                }
            )
    return pd.DataFrame(rows)
