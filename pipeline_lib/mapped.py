"""The representation of many images in CLIP space, from stored coordinates."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int

from pipeline_lib.maps import Maps
from pipeline_lib.passes import ContributionSource, read_pass
from pipeline_lib.products import Products


def mapped_representation(
    source: ContributionSource, index: Int[np.ndarray, " n"], maps: Maps
) -> Float[np.ndarray, "n e"]:
    """The representation in CLIP space: one pass, or none where one map serves all components."""
    each = each_mapped(source, maps)
    if each is None:
        z = torch.from_numpy(source.representation(index))
        matrix = torch.eye(z.shape[1]) if maps.weights is None else maps.weights[0]
        return (z @ matrix + maps.bias).numpy()
    found = np.empty((len(index), len(maps.bias)), dtype=np.float32)
    for where, coordinates in read_pass(source, index):
        found[where] = each.total(coordinates) + maps.bias.numpy()
    return found


def each_mapped(source: ContributionSource, maps: Maps) -> Products | None:
    """What the components' own maps do to coordinates; None where one map serves them all."""
    if maps.weights is None or len(maps.weights) == 1:
        return None
    maps.check(len(source.factors.ranks), source.factors.width)
    return Products.of(source.factors, maps.weights.numpy())
