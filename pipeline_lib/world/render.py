"""One image of the demo world from its factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline_lib.errors import DataError
from pipeline_lib.world.factors import OBJECT_STREAM, SCENE_STREAM, check_factors, random_stream
from pipeline_lib.world.objects import coverage, outline_colour, paint, place_objects
from pipeline_lib.world.scenes import paint_scene

SMALLEST, LARGEST = 32, 1024


@dataclass(frozen=True)
class RenderedImage:
    """One image with what is known about it.

    Attributes
    ----------
    image
        uint8 `[h, w, 3]`.
    mask
        bool `[h, w]`; true on the objects, outline included.
    factors
        Value of each factor.
    """

    image: np.ndarray
    mask: np.ndarray
    factors: dict[str, str]


def render(
    factors: Mapping[str, str], seed: int, index: int, size: int = 96, object_scale: float = 1.0
) -> RenderedImage:
    """Picture of the given factors.

    What the factors leave open (waves, trees, turn of the object, light …) is drawn from `seed`
    and `index`, the scene and the objects from independent streams: the same seed and index with
    another colour give the same scene with the same objects in another colour.

    Parameters
    ----------
    factors
        One valid value for each factor.
    seed, index
        Seed of the world and number of the image, both ≥ 0.
    size
        Side in pixels, 32 to 1024.
    object_scale
        Factor of the objects' radii, 0.2 to 1: smaller ones are as if further away.

    Returns
    -------
    RenderedImage
        image uint8 `[size, size, 3]`, mask bool `[size, size]`.

    Raises
    ------
    DataError
        If a factor is missing or unknown, or a number is out of range.
    """
    check_factors(factors)
    if not SMALLEST <= size <= LARGEST:
        raise DataError(f"size must be {SMALLEST} to {LARGEST} pixels, got {size}")
    if not 0.2 <= object_scale <= 1:
        raise DataError(f"object_scale must be between 0.2 and 1, got {object_scale}")
    picture = paint_scene(factors["scene"], random_stream(seed, index, SCENE_STREAM), size)
    rng = random_stream(seed, index, OBJECT_STREAM)
    objects = place_objects(factors, rng, size, object_scale)
    body, whole = coverage(factors["shape"], objects, size)
    surface = paint(factors, objects, rng, size)
    picture += (outline_colour(factors["colour"]) - picture) * whole[..., None]
    picture += (surface - picture) * body[..., None]
    image = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return RenderedImage(image=image, mask=whole > 0.5, factors=dict(factors))
