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

#: Keeps quotients of what is constant finite.
TINY = 1e-20

#: Most directions along which evidence is taken.
MAX_DIRECTIONS = 32


@dataclass(frozen=True)
class Form:
    """How an energy is taken of signed maps; the power None is the positive part of a class's map.

    Attributes
    ----------
    power
        Of the length over directions, before the sum over components.
    peaked
        Whether components count by how much their energy is gathered in few places.
    white
        Whether directions in which a component varies everywhere count less.
    """

    power: float | None
    peaked: bool = False
    white: bool = False


#: What is chosen from. All but the first use no label of the image.
RECIPES: dict[str, Form] = {
    "class": Form(None),
    "energy_1": Form(1.0),
    "energy_1.25": Form(1.25),
    "energy_1.5": Form(1.5),
    "energy_2": Form(2.0),
    "peaked_1.25": Form(1.25, peaked=True),
    "peaked_1.5": Form(1.5, peaked=True),
    "white_1.25": Form(1.25, white=True),
    "white_1.5": Form(1.5, white=True),
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


@dataclass(frozen=True)
class Usual:
    """What the evidence maps of reference images are like.

    Attributes
    ----------
    means
        Mean maps: what every picture has at a place.
    peaks
        For each component the mean square of its energy over the square of its mean, the largest 1.
    mixing
        For each component the inverse fourth root of the covariance of directions over places.
    """

    means: Float[np.ndarray, "c r gh gw"]
    peaks: Float[np.ndarray, " c"]
    mixing: Float[np.ndarray, "c r r"]

    @classmethod
    def of(cls, maps: Float[np.ndarray, "n c r gh gw"]) -> Usual:
        """From the evidence maps of reference images."""
        means = maps.mean(axis=0)
        beside = _beside(maps, means)
        power = np.square(beside).sum(axis=2)
        peaks = np.square(power).mean(axis=(0, 2, 3)) / (power.mean(axis=(0, 2, 3)) ** 2 + TINY)
        mixing = np.stack([_half_white(beside[:, c]) for c in range(maps.shape[1])])
        return cls(means, peaks / peaks.max(), mixing)


def _half_white(maps: Float[np.ndarray, "n r gh gw"]) -> Float[np.ndarray, "r r"]:
    rows = np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1]).astype(np.float64)
    values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    values = np.maximum(values, 0.01 * values[-1] + TINY)
    return (vectors / values**0.25).astype(np.float32)


def _beside(
    maps: Float[np.ndarray, "n c r gh gw"], means: Float[np.ndarray, "c r gh gw"]
) -> Float[np.ndarray, "n c r gh gw"]:
    """Maps less what every picture has there, and less what the picture's median place has."""
    beside = maps - means
    return beside - np.median(beside, axis=(3, 4), keepdims=True)


def energy(
    maps: Float[np.ndarray, "n c r gh gw"], usual: Usual, form: Form
) -> Float[np.ndarray, "n gh gw"]:
    """How strongly the components speak at each place for or against any class.

    Parameters
    ----------
    maps
        Signed token maps along the evidence directions.
    usual
        What the maps of reference images are like.
    form
        How it is taken.

    Raises
    ------
    DataError
        The form is that of a class's own map.
    """
    if form.power is None:
        raise DataError("the map of a class is no energy")
    beside = _beside(maps, usual.means)
    if form.white:
        beside = np.einsum("ncrgh,crs->ncsgh", beside, usual.mixing, optimize=True)
    strength = np.square(beside).sum(axis=2) ** (form.power / 2)
    weights = usual.peaks if form.peaked else np.ones(len(usual.peaks), np.float32)
    summed = np.einsum("ncgh,c->ngh", strength, weights, optimize=True)
    widths = [SMOOTHING * side for side in summed.shape[1:]]
    return gaussian_filter(summed, (0.0, *widths), mode="nearest")


@dataclass(frozen=True)
class Recipe:
    """A chosen recipe and what it needs.

    Attributes
    ----------
    name
        Key of `RECIPES`.
    directions
        From `evidence_directions`.
    usual
        What the evidence maps of reference images are like.
    """

    name: str
    directions: Float[np.ndarray, "r d"]
    usual: Usual

    def __post_init__(self) -> None:
        if self.name not in RECIPES:
            raise DataError(f"unknown recipe {self.name!r}; {close_matches(self.name, RECIPES)}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the maps."""
        return int(self.usual.means.shape[2]), int(self.usual.means.shape[3])

    def maps(
        self,
        model: object,
        images: Float[Tensor, "n 3 h w"],
        own: Callable[[], Float[np.ndarray, "n d"]],
    ) -> Float[np.ndarray, "n gh gw"]:
        """One map per image, nowhere negative; `own` gives each image's class direction."""
        form = RECIPES[self.name]
        if form.power is None:
            return np.clip(token_maps(model, images, own()), 0.0, None)
        return energy(evidence_maps(model, images, self.directions), self.usual, form)
