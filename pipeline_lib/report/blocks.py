"""What a section of the page is made of; the template knows how each kind looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from markupsafe import Markup

from pipeline_lib.report.style import Panel
from pipeline_lib.report.words import is_absent, short_name


@dataclass(frozen=True)
class Caption:
    """What is shown, how it was computed, over how many, and what it does not say."""

    what: str
    how: str
    n: str
    caveat: str = ""


@dataclass(frozen=True)
class Figure:
    """Drawings with their caption and the rows they were drawn from."""

    name: str
    title: str
    caption: Caption
    panels: list[Panel]
    data: pd.DataFrame
    files: Sequence[str] = ()
    columns: int = 3
    kind: str = "figure"


@dataclass(frozen=True)
class Field:
    """A column of a table on the page: heading, and the text of a value."""

    name: str
    title: str
    text: Callable[[Any], str] = str
    number: bool = True
    code: bool = False


@dataclass(frozen=True)
class Component:
    """A component in a cell or a sentence: opens its card."""

    model: str
    id: str

    @property
    def name(self) -> str:
        """What it is called on the page."""
        return short_name(self.id)


@dataclass(frozen=True)
class Listing:
    """A table on the page, with the rows it shows."""

    name: str
    title: str
    caption: Caption | None
    fields: Sequence[Field]
    data: pd.DataFrame
    files: Sequence[str] = ()
    empty: str = "Nothing to list."
    kind: str = "listing"

    def rows(self) -> list[list[Cell]]:
        """The cells of every row."""
        records = self.data.to_dict("records")
        return [[_cell(record[field.name], field) for field in self.fields] for record in records]


@dataclass(frozen=True)
class Cell:
    """What a cell of a table says, the value it is sorted by, and the components it names."""

    text: str
    sort: Any
    components: Sequence[Component] = ()
    number: bool = False
    code: bool = False


def _cell(value: Any, field: Field) -> Cell:
    if isinstance(value, Component):
        return Cell(value.id, value.id, [value])
    if isinstance(value, list) and all(isinstance(part, Component) for part in value):
        return Cell(", ".join(part.id for part in value), len(value), value)
    sort = "" if is_absent(value) else value
    return Cell(field.text(value), sort, number=field.number, code=field.code)


@dataclass(frozen=True)
class Picture:
    """A picture in a gallery: its key in the picture book, and how it is marked."""

    key: str
    note: str = ""
    correct: bool | None = None


@dataclass(frozen=True)
class GalleryRow:
    """A row of pictures with what it shows; `lead` stands apart, before the others."""

    title: str
    pictures: Sequence[Picture]
    subtitle: str = ""
    lead: Picture | None = None


@dataclass(frozen=True)
class Gallery:
    """Rows of pictures, one tab for each model or data set."""

    name: str
    title: str
    caption: Caption
    tabs: Mapping[str, Sequence[GalleryRow]]
    files: Sequence[str] = ()
    large: bool = False
    columns: int = 1
    kind: str = "gallery"


@dataclass(frozen=True)
class Line:
    """A text of an image with its weight, relative to the largest, and the parts that carry it."""

    text: str
    category: str
    weight: float
    parts: Sequence[tuple[Component, float]]


@dataclass(frozen=True)
class Reading:
    """An image as a short list of texts; `explained` is the share of it that they explain."""

    picture: Picture
    lines: Sequence[Line]
    explained: float


@dataclass(frozen=True)
class Readings:
    """Images with what is read in them, one tab for each model."""

    name: str
    title: str
    caption: Caption
    tabs: Mapping[str, Sequence[Reading]]
    files: Sequence[str] = ()
    kind: str = "readings"


@dataclass(frozen=True)
class Branch:
    """A part of a model in the tree from the representation to the component or its tokens."""

    title: str
    shares: Mapping[str, float]
    children: Sequence[Branch] = ()
    component: Component | None = None
    texts: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class Tree:
    """Models opened from the representation to the component."""

    name: str
    title: str
    caption: Caption
    features: Sequence[str]
    tabs: Mapping[str, Branch]
    files: Sequence[str] = ()
    kind: str = "tree"


@dataclass(frozen=True)
class Atlas:
    """The interactive map of components; its data travel apart, as JSON."""

    name: str
    title: str
    caption: Caption
    kind: str = "atlas"


#: Anything that stands in a section.
Block = Figure | Listing | Gallery | Readings | Tree | Atlas


@dataclass(frozen=True)
class Section:
    """A section of the page: a stage, or an application under its stage."""

    key: str
    title: str
    about: str
    findings: Sequence[Markup] = ()
    blocks: Sequence[Block] = ()
    not_run: str = ""
    children: Sequence[Section] = field(default_factory=tuple)
