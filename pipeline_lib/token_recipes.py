"""Recipes: how the signed token maps of all components and classes become one map of the object.

A map of one class is signed and says what speaks for it; segmentation wants to know where anything
speaks at all. Which recipe serves best is chosen on images that are not reported, in
`segmentation.choose_recipe`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from pipeline_lib.classify import LinearClassifier
from pipeline_lib.decomposition import decompose
from pipeline_lib.errors import DataError, close_matches
from pipeline_lib.heatmaps import class_directions, token_maps

#: Width of the smoothing of an energy, as a share of the map's side.
SMOOTHING = 0.02

#: Most directions along which evidence is taken.
MAX_DIRECTIONS = 32

#: Recipe to the power of an energy; None for the positive part of the class's own map. An energy
#: uses no label.
RECIPES: dict[str, float | None] = {
    "class": None,
    "energy_1": 1.0,
    "energy_1.25": 1.25,
    "energy_1.5": 1.5,
    "energy_2": 2.0,
}


def evidence_directions(classifier: LinearClassifier) -> Float[np.ndarray, "r d"]:
    """Few directions whose squared products sum to those of all classes less their mean.

    The leading `MAX_DIRECTIONS` of them, where there are more classes than that.
    """
    classes = class_directions(classifier, classifier.classes).astype(np.float64)
    _, singular, right = np.linalg.svd(classes, full_matrices=False)
    kept = singular[:MAX_DIRECTIONS] > 1e-6 * singular[0]
    count = int(kept.sum())
    return (singular[:count, None] * right[:count]).astype(np.float32)


def evidence_maps(
    model: object, images: Float[Tensor, "n 3 h w"], directions: Float[np.ndarray, "r d"]
) -> Float[np.ndarray, "n c r gh gw"]:
    """Token maps of every component along every direction.

    Raises
    ------
    DataError
        The model's components take nothing from patches.
    """
    module: Any = getattr(model, "module", model)
    device = next(module.parameters()).device
    wanted = torch.from_numpy(directions)
    parts = decompose(model, images.to(device), per="token", directions=wanted)
    if 0 in parts.grid:
        raise DataError("no token map: the model's components take nothing from patches")
    return parts.maps().cpu().numpy()


def energy(
    maps: Float[np.ndarray, "n c r gh gw"],
    means: Float[np.ndarray, "c r gh gw"],
    power: float,
) -> Float[np.ndarray, "n gh gw"]:
    """How strongly the components speak at each place for or against any class.

    Parameters
    ----------
    maps
        Signed token maps along the evidence directions.
    means
        Their mean over reference images: what every picture has at this place. What the median
        place of a picture has is taken off too: it is what its background does.
    power
        Power of the length over directions, before the sum over components.
    """
    beside = maps - means
    beside -= np.median(beside, axis=(3, 4), keepdims=True)
    strength = (np.square(beside).sum(axis=2) ** (power / 2)).sum(axis=1)
    widths = [SMOOTHING * side for side in strength.shape[1:]]
    return gaussian_filter(strength, (0.0, *widths), mode="nearest")


@dataclass(frozen=True)
class Recipe:
    """A chosen recipe and what it needs.

    Attributes
    ----------
    name
        Key of `RECIPES`.
    directions
        From `evidence_directions`.
    means
        Mean evidence maps over reference images.
    """

    name: str
    directions: Float[np.ndarray, "r d"]
    means: Float[np.ndarray, "c r gh gw"]

    def __post_init__(self) -> None:
        if self.name not in RECIPES:
            raise DataError(f"unknown recipe {self.name!r}; {close_matches(self.name, RECIPES)}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the maps."""
        return int(self.means.shape[2]), int(self.means.shape[3])

    def maps(
        self,
        model: object,
        images: Float[Tensor, "n 3 h w"],
        own: Callable[[], Float[np.ndarray, "n d"]],
    ) -> Float[np.ndarray, "n gh gw"]:
        """One map per image, nowhere negative; `own` gives each image's class direction."""
        power = RECIPES[self.name]
        if power is None:
            return np.clip(token_maps(model, images, own()), 0.0, None)
        return energy(evidence_maps(model, images, self.directions), self.means, power)
