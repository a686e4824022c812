"""Maps fitted from moments, where no image is kept: ridge, as far as second moments go.

Coordinates and targets stand side by side in the moments, so these hold the normal equations of
least squares, and how much of the targets' variance a map explains on images it was not fitted on.
The cosine of an image and its rank among others are not to be had from them.
"""

from __future__ import annotations

import logging
import time

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline_lib.errors import DataError
from pipeline_lib.map_fits import MapFit
from pipeline_lib.map_ridge import STRENGTHS, damped_solution
from pipeline_lib.maps import Maps
from pipeline_lib.streamed import Stored, StreamedMoments, stored_bases

log = logging.getLogger(__name__)


def fit_from_moments(fit: StreamedMoments, heldout: StreamedMoments, stored: Stored) -> MapFit:
    """Ridge with one map per component; its strength explains most of the held-out targets.

    The maps are those of `map_ridge.ridge` for the same strength and the same coordinates.

    Parameters
    ----------
    fit, heldout
        Moments of the images fitted on and held out: of their coordinates in `stored`, and behind
        them of their unit targets.
    stored
        The bases that the coordinates are taken in.

    Returns
    -------
    MapFit
        Its maps say the strength and by what it was chosen; its metrics have no column that needs
        images one by one.

    Raises
    ------
    DataError
        There are fewer than two images on a side, or the held-out targets are all the same.
    """
    if min(fit.n, heldout.n) < 2:
        raise DataError(
            f"{fit.n} images to fit maps on and {heldout.n} held out are too few: at least 2 of "
            "each are needed; use more images or another share (maps.heldout)"
        )
    started = time.perf_counter()
    bases, order = stored_bases(stored)
    width = len(order)
    squares, mean = torch.from_numpy(fit.squares), torch.from_numpy(fit.mean)
    found = []
    for strength in reversed(STRENGTHS):
        blocks = damped_solution(squares[:width, :width], squares[:width, width:], strength)
        bias = mean[width:] - mean[:width] @ blocks
        share = explained(heldout, blocks, bias)
        log.info("ridge %g: explains %.4f of the held-out targets' variance", strength, share)
        found.append((share, strength, blocks, bias))
    best, strength, blocks, bias = max(found, key=lambda one: one[0])
    seconds = time.perf_counter() - started
    rows = [
        {"method": "ridge", "chosen": True, "split": split, "n": seen.n}
        | {"explained": share, "seconds": seconds}
        for split, seen, share in (
            ("train", fit, explained(fit, blocks, bias)),
            ("heldout", heldout, best),
        )
    ]
    facts = {"strength": strength, "criterion": "explained share of the held-out variance"}
    maps = Maps("ridge", bases.expand(blocks[order].float()), bias.float(), facts)
    return MapFit(maps, pd.DataFrame(rows))


def explained(
    seen: StreamedMoments, blocks: Float[Tensor, "r e"], bias: Float[Tensor, " e"]
) -> float:
    """`maps.explained_share` of images of which there are moments alone.

    Parameters
    ----------
    seen
        Moments of coordinates with the targets behind them `[r + e]`.
    blocks, bias
        What the maps do to coordinates, in the order of the moments' columns; float64.

    Raises
    ------
    DataError
        The targets are all the same.
    """
    width = len(blocks)
    squares, mean = torch.from_numpy(seen.squares), torch.from_numpy(seen.mean)
    spread = squares[width:, width:].trace()
    if spread <= 0:
        raise DataError(f"the targets of all {seen.n} images are the same: no map can be fitted")
    gram, cross = squares[:width, :width], squares[:width, width:]
    gap = mean[width:] - mean[:width] @ blocks - bias
    rest = spread - 2 * (blocks * cross).sum() + (blocks * (gram @ blocks)).sum()
    return float(1 - (rest + seen.n * gap.square().sum()) / spread)
