"""The embedded demo world: pictures with known factors, drawn from a seed.

Every image shows objects of one kind in front of a scene. What is on it (`FACTORS`) is known, so
that every claim about a model can be checked against the truth. No picture comes from outside.
"""

from __future__ import annotations

from pipeline_lib.world.captions import PROMPTS, WORDINGS, caption
from pipeline_lib.world.factors import (
    CLASSES,
    FACTORS,
    PLACES,
    TASK_FACTORS,
    class_of,
    place_of,
    sample_factors,
    task_labels,
)
from pipeline_lib.world.render import RenderedImage, render
from pipeline_lib.world.tables import split_of, write_spurious, write_world

__all__ = [
    "CLASSES",
    "FACTORS",
    "PLACES",
    "PROMPTS",
    "TASK_FACTORS",
    "WORDINGS",
    "RenderedImage",
    "caption",
    "class_of",
    "place_of",
    "render",
    "sample_factors",
    "split_of",
    "task_labels",
    "write_spurious",
    "write_world",
]
