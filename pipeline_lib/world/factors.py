"""The factors of the demo world, declared once: every other module reads them from here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from pipeline_lib.errors import DataError

#: Name of each factor and the values it takes. Every value name is unique over all factors.
FACTORS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "shape": ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent"),
        "colour": ("red", "orange", "yellow", "green", "blue", "purple", "white", "black"),
        "texture": ("plain", "striped", "checkered", "dotted", "netted", "shaded"),
        "scene": ("ocean", "lake", "river", "swamp", "forest", "desert", "meadow", "city"),
        "position": ("left", "right", "top", "bottom", "centre"),
        "size": ("small", "medium", "large"),
        "count": ("one", "two", "three"),
    }
)

#: Factors that the supervised models predict, in the order of their logits.
TASK_FACTORS: tuple[str, ...] = ("shape", "colour", "texture", "scene")

#: Which scenes are water and which are land: the spurious cue.
PLACES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "water": ("ocean", "lake", "river", "swamp"),
        "land": ("forest", "desert", "meadow", "city"),
    }
)

#: The two classes of the spurious-cue set, each a set of shapes.
CLASSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "curved": ("circle", "ring", "heart", "crescent"),
        "angular": ("square", "triangle", "star", "cross"),
    }
)

#: The place that each class is usually seen at in the train images of the spurious-cue set.
USUAL_PLACE: Mapping[str, str] = MappingProxyType({"curved": "water", "angular": "land"})

# Independent random streams of one image: what is in it, how it is drawn, what is said about it.
FACTOR_STREAM, SCENE_STREAM, OBJECT_STREAM, CAPTION_STREAM = range(4)


def random_stream(seed: int, index: int, stream: int) -> np.random.Generator:
    """Generator of one aspect of one image, independent of all other images and aspects.

    Parameters
    ----------
    seed, index
        Seed of the world and number of the image, both ≥ 0.
    stream
        One of `FACTOR_STREAM`, `SCENE_STREAM`, `OBJECT_STREAM`, `CAPTION_STREAM`.

    Raises
    ------
    DataError
        If `seed` or `index` is negative.
    """
    if seed < 0 or index < 0:
        raise DataError(f"seed and index must be ≥ 0, got seed={seed}, index={index}")
    return np.random.default_rng([seed, index, stream])


def sample_factors(seed: int, index: int) -> dict[str, str]:
    """One value for each factor, drawn independently and uniformly.

    Parameters
    ----------
    seed, index
        Seed of the world and number of the image, both ≥ 0.

    Returns
    -------
    dict
        Factor name to value, in the order of `FACTORS`.

    Examples
    --------
    >>> list(sample_factors(seed=0, index=0)) == list(FACTORS)
    True
    """
    rng = random_stream(seed, index, FACTOR_STREAM)
    return {name: values[rng.integers(len(values))] for name, values in FACTORS.items()}


def check_factors(factors: Mapping[str, str]) -> None:
    """Raise one `DataError` that names every missing factor, unknown factor and unknown value."""
    problems = [f"factor {name!r} is missing" for name in FACTORS if name not in factors]
    for name, value in factors.items():
        if name not in FACTORS:
            problems.append(f"unknown factor {name!r}; factors are {', '.join(FACTORS)}")
        elif value not in FACTORS[name]:
            valid = ", ".join(FACTORS[name])
            problems.append(f"{name} cannot be {value!r}; it is one of {valid}")
    if problems:
        raise DataError("factors of an image: " + "; ".join(problems))


def place_of(scene: str) -> str:
    """`water` or `land`, whichever the scene belongs to."""
    return _group_of(scene, PLACES, "scene")


def class_of(shape: str) -> str:
    """`curved` or `angular`, whichever the shape belongs to."""
    return _group_of(shape, CLASSES, "shape")


def task_labels() -> list[str]:
    """Value names of the task factors in logit order (30 names)."""
    return [value for name in TASK_FACTORS for value in FACTORS[name]]


def _group_of(value: str, groups: Mapping[str, tuple[str, ...]], factor: str) -> str:
    for group, members in groups.items():
        if value in members:
            return group
    raise DataError(f"unknown {factor} {value!r}; it is one of {', '.join(FACTORS[factor])}")
