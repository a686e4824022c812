"""Contributions with a planted meaning, of any size, for the benchmarks: on disk, read in batches.

Every component says something about some hidden properties of the image, along directions of its
own subspace, and is noisy. The targets are what the properties say together. So maps can be right
or wrong on images that they were not fitted on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline_lib.coordinates import Source

_BATCH = 256


@dataclass(frozen=True)
class Planted:
    """What is planted.

    Attributes
    ----------
    images
        Number of images.
    ranks
        Rank of each component; `width` for one that has all axes.
    width, out
        Width of the model, and of CLIP space.
    properties
        Hidden properties of an image; the first vary most.
    noise
        Length of a component's noise over that of what it says.
    """

    images: int
    ranks: tuple[int, ...]
    width: int
    out: int
    properties: int = 128
    noise: float = 1.0
    seed: int = 0

    def _normal(self, part: int, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(1000 * self.seed + part))

    def hidden(self) -> Tensor:
        """Hidden properties of the images `[n, p]`."""
        scale = torch.arange(1, self.properties + 1).float().pow(-0.5)
        return self._normal(1, self.images, self.properties) * scale

    def targets(self) -> Tensor:
        """Unit vectors `[n, e]`: the properties in CLIP space, a common direction, and noise."""
        said = self.hidden() @ self._normal(2, self.properties, self.out)
        said = said / said.norm(dim=1).mean()
        common = self._normal(3, self.out)
        extra = self._normal(4, self.images, self.out) / self.out**0.5
        return torch.nn.functional.normalize(said + common / common.norm() + 0.5 * extra, dim=1)

    def write(self, path: Path) -> Source:
        """Write the contributions `[n, c, d]` to a file, and read them from there."""
        shape = (self.images, len(self.ranks), self.width)
        with path.open("wb") as file:
            for values in self._batches():
                file.write(values.numpy().tobytes())

        def read(index: np.ndarray) -> np.ndarray:
            return np.array(np.memmap(path, dtype=np.float32, mode="r", shape=shape)[index])

        return Source(self.images, read)

    def _batches(self) -> Iterator[Tensor]:
        hidden = self.hidden()
        parts = []
        for component, rank in enumerate(self.ranks):
            axes = torch.eye(rank)
            if rank < self.width:
                axes = torch.linalg.qr(self._normal(10 + component, self.width, rank)).Q.T
            says = self._normal(400 + component, self.properties, rank) / rank**0.5
            parts.append((axes, says))
        for start in range(0, self.images, _BATCH):
            rows = hidden[start : start + _BATCH]
            values = torch.empty(len(rows), len(parts), self.width)
            for component, (axes, says) in enumerate(parts):
                size = rows.norm(dim=1).mean() / len(axes) ** 0.5
                part = 1000 + start * len(parts) + component
                noise = self.noise * size * self._normal(part, len(rows), len(axes))
                values[:, component] = (rows @ says + noise) @ axes
            yield values
