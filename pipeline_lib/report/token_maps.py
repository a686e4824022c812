"""Token maps of the cards: where in its own top images a component takes its first text from.

Axis letters: `n` image, `c` component, `d` model width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pipeline_lib.decomposition import decompose
from pipeline_lib.heatmaps import HasPreprocessing

#: Images of each component.
IMAGES = 3
#: Images decomposed at once.
_BATCH = 8
_COLUMNS = ["component", "id", "text", "rank", "image_id", "rows", "columns", "map"]
_EDGES = ["left", "top", "right", "bottom"]


def component_token_maps(
    model: HasPreprocessing,
    read: Callable[[str], Image.Image],
    top: pd.DataFrame,
    directions: Mapping[int, Float[np.ndarray, " d"]],
) -> pd.DataFrame:
    """Maps of every component on its first top images, along its own direction.

    Parameters
    ----------
    model
        A `VisionModel`.
    read
        The picture of an image id.
    top
        Table `top_images` of the model.
    directions
        Component to the direction that reads its first text off it (`cards.text_directions`).

    Returns
    -------
    pandas.DataFrame
        Rows of table `token_maps`, without model and data set. A component that takes nothing from
        patches (an MLP of which the class token alone is read) has none.
    """
    wanted = top[top["rank"] < IMAGES]
    ids = list(dict.fromkeys(wanted["image_id"]))
    rows: list[dict[str, Any]] = []
    for start in range(0, len(ids), _BATCH):
        pictures = {name: read(name) for name in ids[start : start + _BATCH]}
        images = torch.stack([model.preprocess(picture) for picture in pictures.values()])
        part = wanted[wanted["image_id"].isin(pictures.keys())]
        crops = {name: crop_of(model, picture.size) for name, picture in pictures.items()}
        for row, heat in zip(
            part.itertuples(), _maps(model, images, list(pictures), part, directions), strict=True
        ):
            if heat is not None:
                fact = (row.component, row.id, row.text, row.rank, row.image_id, *heat.shape)
                values = heat.astype(np.float32).ravel().tolist()
                rows.append(
                    dict(zip(_COLUMNS, (*fact, values), strict=True))
                    | dict(zip(_EDGES, crops[row.image_id], strict=True))
                )
    return pd.DataFrame(rows, columns=[*_COLUMNS, *_EDGES])


def _maps(
    model: Any,
    images: Tensor,
    ids: list[str],
    part: pd.DataFrame,
    directions: Mapping[int, Float[np.ndarray, " d"]],
) -> list[np.ndarray | None]:
    """Map of each row of `part` on its image; None where the component has none."""
    components = sorted(set(part["component"]))
    along = torch.from_numpy(np.stack([directions[c] for c in components]).astype(np.float32))
    images = images.to(next(model.module.parameters()).device)
    found = decompose(model, images, per="token", components=components, directions=along)
    if 0 in found.grid:
        return [None] * len(part)
    maps = found.maps().cpu().numpy()
    places = [(ids.index(r.image_id), components.index(r.component)) for r in part.itertuples()]
    heats = [maps[image, place, place] for image, place in places]
    return [heat if heat.any() else None for heat in heats]


def crop_of(model: HasPreprocessing, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Part of a picture that reaches the model: left, top, right, bottom as shares of its sides.

    Parameters
    ----------
    model
        Whose resize and crop are used.
    size
        Width and height of the picture.

    Notes
    -----
    Read off two ramps that go through the model's own geometry, so that no kind of crop has to be
    known; exact to about a pixel in 255.
    """
    width, height = size
    across = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width))
    down = np.broadcast_to(((np.arange(height) + 0.5) / height)[:, None], (height, width))
    left, right = _ends(model, across, axis=1)
    top, bottom = _ends(model, down, axis=0)
    return left, top, right, bottom


def _ends(
    model: HasPreprocessing, ramp: Float[np.ndarray, "h w"], axis: int
) -> tuple[float, float]:
    """Values of a ramp from 0 to 1 at both edges of the model's input."""
    seen = model.preprocess_mask(Image.fromarray(np.rint(255 * ramp).astype(np.uint8)))
    values = np.moveaxis(seen, axis, 0)
    values = values[:, values.shape[1] // 2].astype(np.float64) / 255
    slope, start = np.polyfit(np.arange(len(values)) + 0.5, values, 1)
    return float(start), float(start + slope * len(values))
