"""The problem of fitting maps in coordinates: images, targets, and the form of a solution.

Every fit works on the coordinates of `pipeline_lib.coordinates`; `r` are the coordinates of all
components side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline_lib.coordinates import Encoded
from pipeline_lib.maps import unit
from pipeline_lib.scores import sum_blocks

_CHUNK = 1024


@dataclass(frozen=True)
class Problem:
    """Coordinates and unit targets, and which images are fitted on and held out.

    The targets lie on the device on which all is computed.
    """

    encoded: Encoded
    targets: Float[Tensor, "n e"]
    fit: np.ndarray
    heldout: np.ndarray

    def rows(self, index: np.ndarray) -> Float[Tensor, "b r"]:
        return self.encoded.rows(index).to(self.targets.device)

    def chunks(self, index: np.ndarray) -> Iterator[tuple[np.ndarray, Float[Tensor, "b r"]]]:
        for start in range(0, len(index), _CHUNK):
            part = index[start : start + _CHUNK]
            yield part, self.rows(part)

    def images(
        self, index: np.ndarray, blocks: Float[Tensor, "r e"], bias: Float[Tensor, " e"]
    ) -> Float[Tensor, "m e"]:
        """Unit vectors in CLIP space of the images at `index`."""
        return unit(self.mapped(index, blocks, bias))

    def mapped(
        self, index: np.ndarray, blocks: Float[Tensor, "r e"], bias: Float[Tensor, " e"]
    ) -> Float[Tensor, "m e"]:
        """Representations of the images at `index` in CLIP space, as long as they come out."""
        return torch.cat([rows @ blocks + bias for _, rows in self.chunks(index)])

    def cosine(
        self, index: np.ndarray, blocks: Float[Tensor, "r e"], bias: Float[Tensor, " e"]
    ) -> float:
        return float((self.images(index, blocks, bias) * self.targets[index]).sum(1).mean())

    def summing(self) -> Float[Tensor, "r d"]:
        """Matrix that takes coordinates to the representation."""
        return sum_blocks(self.encoded.bases).to(self.targets.device)


@dataclass(frozen=True)
class Fitted:
    """A solution: what the maps do to coordinates, and one shared map where there is one."""

    blocks: Float[Tensor, "r e"]
    bias: Float[Tensor, " e"]
    shared: Float[Tensor, "d e"] | None = None
    is_shared: bool = False
    history: Sequence[float] = ()
    strength: float | None = None  # of the ridge

    def weights(self, problem: Problem) -> Float[Tensor, "c d e"]:
        shared = None if self.shared is None else self.shared.cpu()
        if self.is_shared and shared is not None:
            return shared[None].clone()
        bases = problem.encoded.bases
        elsewhere = None if shared is None else shared.expand(len(bases.vectors), -1, -1)
        return bases.expand(self.blocks.cpu(), elsewhere)
