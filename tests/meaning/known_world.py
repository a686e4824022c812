"""A planted world: which component carries which factor is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from pipeline_lib.coordinates import Encoded, Source, encode
from pipeline_lib.truths import Factors

N, C, E = 600, 5, 12
VALUES = ("red", "green", "blue")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def world(noise: float = 0.3) -> tuple[torch.Tensor, pd.DataFrame, dict[str, torch.Tensor]]:
    """Component 1 carries colour, 2 a little of it, 3 carries shape; 4 is constant.

    The descriptors are unit vectors of two orthogonal subspaces.
    """
    generator = np.random.default_rng(0)
    images = pd.DataFrame(
        {"colour": generator.choice(VALUES, N), "shape": generator.choice(["star", "ring"], N)}
    )
    axes = torch.linalg.qr(normal(E, 5, seed=9)).Q.T
    colour = axes[torch.from_numpy(pd.factorize(images["colour"], sort=True)[0])]
    shape = axes[3 + torch.from_numpy(pd.factorize(images["shape"], sort=True)[0])]
    contributions = noise * normal(N, C, E, seed=1)
    contributions[:, 1] += 2.0 * colour
    contributions[:, 2] += 0.5 * colour
    contributions[:, 3] += 2.0 * shape
    contributions[:, 4] = 1.0
    return contributions, images, {"colour": axes[:3], "shape": axes[3:]}


def planted(noise: float = 0.3) -> tuple[Encoded, Factors]:
    contributions, images, _ = world(noise)
    return encode(Source.of_array(contributions)), Factors.of(images, ["colour", "shape"])
