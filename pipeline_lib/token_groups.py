"""The finest level of the hierarchy: what the source tokens of a head add to it, group by group.

Tokens are grouped by where they lie: on the object (where there is a mask) or off it, or in the
middle or at the border; what belongs to no patch (class and register tokens, constants) is a group
of its own. The contributions of the groups sum to the head's. Axis letters: `n` image, `c`
component, `t` token, `g` group, `d` model width, `e` width of the CLIP space, `k` text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline_lib.coordinates import Source, encode
from pipeline_lib.errors import DataError
from pipeline_lib.hierarchy import Described, Part, hierarchy_table
from pipeline_lib.labelling import Labeller, Sample
from pipeline_lib.maps import identity_maps
from pipeline_lib.scores import moments

#: Groups in the order of their numbers: with masks, and without.
WITH_MASKS = ("no patch", "object", "background")
WITHOUT_MASKS = ("no patch", "centre", "border")


def token_groups(
    masks: Bool[np.ndarray, "n h w"] | None, images: int, leading: int, grid: tuple[int, int]
) -> Int[np.ndarray, "n t"]:
    """Number of the group of every token of every image.

    Parameters
    ----------
    masks
        Where the object is, as the model sees the image; `None` where there are none: then the
        middle half of the rows and columns is the centre.
    images
        Number of images.
    leading, grid
        Tokens before the patches, rows and columns of patches; one place for constants follows.

    Raises
    ------
    DataError
        The masks have fewer pixels than the grid has patches.
    """
    rows, columns = grid
    if masks is None:
        row = np.abs(np.arange(rows) + 0.5 - rows / 2) < rows / 4
        column = np.abs(np.arange(columns) + 0.5 - columns / 2) < columns / 4
        inside = np.broadcast_to(row[:, None] & column, (images, rows, columns))
    else:
        if masks.shape[1] < rows or masks.shape[2] < columns:
            raise DataError(
                f"masks of {masks.shape[1]}×{masks.shape[2]} pixels are coarser than the grid of "
                f"{rows}×{columns} patches"
            )
        shares = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(masks).float(), grid)
        inside = shares.numpy() >= 0.5
    groups = np.zeros((images, leading + rows * columns + 1), dtype=np.int64)
    groups[:, leading:-1] = np.where(inside, 1, 2).reshape(images, -1)
    return groups


def group_sums(
    values: Float[Tensor, "n c t d"], groups: Int[np.ndarray, "n t"], count: int
) -> Float[Tensor, "n c g d"]:
    """Contribution of every group of tokens; they sum over groups to the component's."""
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(groups), count)
    return torch.einsum("nctd,ntg->ncgd", values, one_hot.to(values))


def token_group_table(
    sums: Float[Tensor, "n c g e"],
    heads: pd.DataFrame,
    names: Sequence[str],
    labeller: Labeller,
    texts: Sequence[str],
    categories: Sequence[str],
    *,
    count: int,
) -> pd.DataFrame:
    """Rows of table `hierarchy` of level `tokens`, without model and data set.

    Parameters
    ----------
    sums
        Mapped contributions of the groups, from `group_sums` and the head's map.
    heads
        The components: columns id and share (of the representation's variance).
    names
        Groups.
    labeller, texts, categories
        The method, with its pool, and what the pool's texts are.
    count
        Texts per group at most.

    Notes
    -----
    A group's share is its share of the head's variance over these images, times the head's share;
    so the shares of the groups add up to the head's.
    """
    tables = []
    for place, head in enumerate(heads.itertuples()):
        encoded = encode(Source.of_array(sums[:, place]))
        found = moments(encoded, identity_maps(sums.shape[-1]))
        labels = labeller.labels(Sample(found, encoded), count=count)
        described = [
            Described(
                Part("tokens", f"{head.id}: {name}", str(head.id), (group,)), found, group, label
            )
            for group, (name, label) in enumerate(zip(names, labels, strict=True))
        ]
        table = hierarchy_table(described, texts, categories)
        tables.append(table.assign(share=table["share"] * head.share, components=1))
    return pd.concat(tables, ignore_index=True)
