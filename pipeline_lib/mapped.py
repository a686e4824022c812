"""The representation of many images in CLIP space, from stored coordinates where there are such."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline_lib.maps import Maps
from pipeline_lib.passes import ContributionSource, read_both


def mapped_representation(
    source: ContributionSource, index: Int[np.ndarray, " n"], maps: Maps
) -> Float[np.ndarray, "n e"]:
    """The representation in CLIP space: one pass, or none where one map serves all components."""
    if maps.weights is None or len(maps.weights) == 1:
        z = torch.from_numpy(source.representation(index))
        matrix = torch.eye(z.shape[1]) if maps.weights is None else maps.weights[0]
        return (z @ matrix + maps.bias).numpy()
    blocks = maps_on_coordinates(source, maps)
    found = np.empty((len(index), len(maps.bias)), dtype=np.float32)
    for where, values, coordinates in read_both(source, index, decode=blocks is None):
        if blocks is None or coordinates is None:
            found[where] = maps.apply_total(torch.from_numpy(values)).numpy()
        else:
            found[where] = (torch.from_numpy(coordinates) @ blocks + maps.bias).numpy()
    return found


def maps_on_coordinates(source: ContributionSource, maps: Maps) -> Float[Tensor, "r e"] | None:
    """What maps do to stored coordinates; None where contributions are not stored as such."""
    factors = getattr(source, "factors", None)
    if factors is None or maps.weights is None or len(maps.weights) == 1:
        return None
    maps.check(len(factors.ranks), factors.width)
    parts = [
        matrix if basis is None else torch.from_numpy(np.ascontiguousarray(basis)) @ matrix
        for basis, matrix in zip(factors.vectors, maps.weights, strict=True)
    ]
    return torch.cat(parts)
