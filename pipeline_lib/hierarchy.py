"""The representation opened from coarse to fine, each part with its share and its texts.

Levels: representation, stage (where the model has several), block, component. A part's contribution
is the sum of its components'; its share of the variance in CLIP space is its covariance with the
whole, so that the shares of the parts of a part add up to its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline_lib.coordinates import Bases, Encoded
from pipeline_lib.scores import Moments
from pipeline_lib.textspan import Labels, text_rows


@dataclass(frozen=True)
class Part:
    """A part of a model: its level, its name, the name of what it is part of, its components."""

    level: str
    node: str
    parent: str
    members: tuple[int, ...]


def parts_of(components: pd.DataFrame) -> list[Part]:
    """Parts of a model from coarse to fine; every level holds every component once.

    Parameters
    ----------
    components
        Table `components`.
    """
    whole = Part("representation", "representation", "", tuple(components["component"]))
    parts, above = [whole], pd.Series("representation", index=components.index)
    stages = components["stage"].where(components["stage"] >= 0)
    if stages.nunique() > 1:
        names = _named("stage", components["stage"], components)
        parts += _level("stage", names, above, components)
        above = names
    names = _named("block", components["block"], components)
    parts += _level("block", names, above, components)
    return parts + _level("component", components["id"], names, components)


def coarse_parts(components: pd.DataFrame) -> list[Part]:
    """Parts of a model above its components."""
    return [part for part in parts_of(components) if part.level != "component"]


def _named(level: str, numbers: pd.Series, components: pd.DataFrame) -> pd.Series:
    """`stage 0`, `stage 1`, …; what belongs to none (stem, bias) under the name of its kind."""
    named = level + " " + numbers.astype(str)
    return named.where(numbers >= 0, components["kind"])


def _level(
    level: str, names: pd.Series, parents: pd.Series, components: pd.DataFrame
) -> list[Part]:
    parts = []
    for name in dict.fromkeys(names):
        rows = components[names == name]
        parent = str(parents[rows.index[0]])
        parts.append(Part(level, str(name), parent, tuple(rows["component"])))
    return parts


def part_moments(encoded: Encoded, found: Moments, parts: Sequence[Part]) -> Moments:
    """Moments with parts in the place of components, in the coordinates of CLIP space.

    Parameters
    ----------
    encoded, found
        Coordinates and moments of the components, of the same images.
    parts
        Parts; the moments of the components themselves are not needed.
    """
    columns = part_columns(found, parts)
    maps = [found.blocks[chosen].float() for chosen in columns]
    width = found.total.shape[0]
    within = [torch.zeros(width, width, dtype=torch.float64) for _ in parts]
    for _, rows in encoded.batches():
        centred = (rows.double() - found.mean).float()
        for place, (chosen, map_) in enumerate(zip(columns, maps, strict=True)):
            part = (centred[:, chosen] @ map_).double()
            within[place] += part.T @ part
    return summed_moments(found, parts, [matrix / len(encoded) for matrix in within])


def part_coordinates(
    rows: Float[Tensor, "n r"], found: Moments, bases: Bases, parts: Sequence[Part]
) -> Encoded:
    """Coordinates of images with parts in the place of components: their place in CLIP space.

    Parameters
    ----------
    rows
        Coordinates of the images in those of the components.
    found
        Moments of the components.
    bases
        Of the parts, from `part_moments`.
    parts
        Parts above the components.
    """
    columns = part_columns(found, parts)
    mapped = [rows[:, chosen] @ found.blocks[chosen].float() for chosen in columns]
    return Encoded(torch.cat(mapped, dim=1).numpy(), bases)


def part_columns(found: Moments, parts: Sequence[Part]) -> list[Int[Tensor, " m"]]:
    """For each part the columns of the coordinates of its components."""
    slices = found.bases.slices
    return [torch.cat([_range(slices[c]) for c in part.members]) for part in parts]


def summed_moments(
    found: Moments, parts: Sequence[Part], within: Sequence[Float[Tensor, "e e"]]
) -> Moments:
    """Moments of parts from those of their components.

    Parameters
    ----------
    found
        Moments of the components.
    parts
        Parts above the components.
    within
        The covariance of each part in CLIP space: all that does not follow from `found`.
    """
    columns, width = part_columns(found, parts), found.total.shape[0]
    maps = [found.blocks[chosen] for chosen in columns]
    return Moments(
        n=found.n,
        bases=Bases([None] * len(parts), width),
        blocks=torch.eye(width, dtype=torch.float64).repeat(len(parts), 1),
        mean=torch.cat([found.mean[c] @ map_ for c, map_ in zip(columns, maps, strict=True)]),
        within=within,
        cross=torch.cat([map_.T @ found.cross[c] for c, map_ in zip(columns, maps, strict=True)]),
        total=found.total,
        strengths=torch.stack([found.strengths[list(part.members)].sum() for part in parts]),
    )


def _range(columns: slice) -> torch.Tensor:
    return torch.arange(columns.start, columns.stop)


@dataclass(frozen=True)
class Described:
    """A part with what is measured of it.

    Attributes
    ----------
    part
        The part.
    found, place
        Moments of parts or components, and which of them it is.
    label
        Its texts.
    """

    part: Part
    found: Moments
    place: int
    label: Labels


def describe(
    summed: Moments,
    found: Moments,
    components: pd.DataFrame,
    coarse: Sequence[Labels],
    labels: Sequence[Labels],
) -> list[Described]:
    """Parts of a model with their moments and texts.

    Parameters
    ----------
    summed, found
        Moments of the parts above the components (`coarse_parts`), and of the components.
    components
        Table `components`.
    coarse, labels
        Labels of these parts, and of the components.
    """
    described = [
        Described(part, summed, place, label)
        for place, (part, label) in enumerate(zip(coarse_parts(components), coarse, strict=True))
    ]
    fine = [part for part in parts_of(components) if part.level == "component"]
    return described + [
        Described(part, found, part.members[0], labels[part.members[0]]) for part in fine
    ]


def hierarchy_table(
    described: Sequence[Described],
    texts: Sequence[str],
    categories: Sequence[str],
    heldout: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> pd.DataFrame:
    """Rows of table `hierarchy`, without model and data set: one per part and text.

    Parameters
    ----------
    described
        From `describe`; a part that does not vary has one row without a text.
    texts, categories
        The pool.
    heldout
        Cumulative shares of other images' variance that the texts explain: of the `parts` above the
        components, and of the `components`.
    """
    rows = []
    for one in described:
        part, label = one.part, one.label
        columns = one.found.bases.slices[one.place]
        share = (one.found.cross[columns] * one.found.blocks[columns]).sum()
        fact = {
            "level": part.level,
            "node": part.node,
            "parent": part.parent,
            "components": len(part.members),
            "share": float(share / one.found.total.trace().clamp_min(1e-300)),
        }
        others = None
        if heldout is not None:
            others = heldout["components" if part.level == "component" else "parts"][one.place]
        said = text_rows(label, texts, categories, others)
        rows += [fact | row for row in said]
        if not label.texts:
            nothing = {"rank": 0, "text": "", "category": "", "variance": 0.0, "cumulative": 0.0}
            rows.append(fact | nothing | {"cumulative_heldout": float("nan")})
    return pd.DataFrame(rows)
