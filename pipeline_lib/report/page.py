"""The page: sections, first screen and data in one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline_lib.artifacts import atomic_path
from pipeline_lib.errors import ArtifactError
from pipeline_lib.report.archive import NAME as ARCHIVE
from pipeline_lib.report.archive import write_archive
from pipeline_lib.report.atlas import atlas
from pipeline_lib.report.blocks import Component, Figure, Listing, Section
from pipeline_lib.report.collect import Run
from pipeline_lib.report.exhibits import exhibit_of
from pipeline_lib.report.findings import find_all, first_screen
from pipeline_lib.report.pictures import PictureBook
from pipeline_lib.report.sections.applications import applications_section
from pipeline_lib.report.sections.data import features_section, manifest_section
from pipeline_lib.report.sections.meaning import scores_section
from pipeline_lib.report.sections.model import contributions_section, maps_section
from pipeline_lib.report.sections.provenance import config_text, provenance_section
from pipeline_lib.report.style import compose, css_variables
from pipeline_lib.report.words import listed, percent, plural, scientific, whole

logger = logging.getLogger(__name__)

#: Bytes that a page may have.
MAX_BYTES = 15_000_000
_HERE = Path(__file__).parent


def sections_of(run: Run, book: PictureBook) -> list[Section]:
    """The sections in the order of the stages, provenance last."""
    return [
        manifest_section(run, book),
        features_section(run),
        contributions_section(run),
        maps_section(run),
        scores_section(run),
        applications_section(run, book),
        provenance_section(run),
    ]


@dataclass(frozen=True)
class Page:
    """A page, with what lies beside it.

    Attributes
    ----------
    html
        The same for the same run: nothing depends on the time or the place of rendering.
    blocks
        Figures, tables and galleries, in their order.
    book
        The pictures shown.
    atlas
        What the map of components and the cards show; None where there are no scores.
    """

    html: str
    blocks: list[Any]
    book: PictureBook
    atlas: dict[str, Any] | None

    @property
    def figures(self) -> list[Figure]:
        """The static figures."""
        return [block for block in self.blocks if isinstance(block, Figure)]


def render_page(run: Run) -> Page:
    """The whole page.

    Parameters
    ----------
    run
        What `collect` has read.

    Raises
    ------
    ArtifactError
        A picture is missing, or the page is larger than `MAX_BYTES`.
    """
    book = PictureBook(run.root, run.folders, run["manifest"])
    sections = sections_of(run, book)
    findings = find_all(run)
    blocks = list(_blocks(sections))
    first = first_screen(findings)
    exhibits = {finding.section: exhibit_of(finding.section, run, book) for finding in first}
    cards = atlas(run, book) if not run.not_run.get("scores") else None
    data = {
        "atlas": cards,
        "tables": {block.name: _columns(block) for block in blocks if _has_rows(block)},
    }
    data["images"] = book.encode()
    script = (_HERE / "static" / "report.js").read_text("utf-8")
    html = (
        _environment()
        .get_template("page.html.j2")
        .render(
            run=run,
            title=run.config["report"]["title"],
            sections=sections,
            findings=findings,
            first=first,
            exhibits=exhibits,
            archive=ARCHIVE,
            facts=_headline(run),
            config=config_text(run),
            style=Markup(css_variables() + (_HERE / "static" / "report.css").read_text("utf-8")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            data={name: Markup(script_json(value)) for name, value in data.items()},
        )
    )
    size = len(html.encode())
    if size > MAX_BYTES:
        raise ArtifactError(
            f"the report would take {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f} MB; lower "
            "report.examples, applications.heatmaps.images or scores.texts_per_component"
        )
    return Page(html, blocks, book, cards)


def write_report(run: Run, folder: str | Path) -> Path:
    """Write `index.html` into `folder`, and what lies beside it.

    That is every static figure as SVG under `figures/`, and the pictures at full size in
    `pictures.zip`.

    Returns
    -------
    pathlib.Path
        The page.
    """
    folder = Path(folder)
    made = render_page(run)
    for figure in made.figures:
        with atomic_path(folder / "figures" / f"{figure.name}.svg") as beside:
            beside.write_text(compose(figure.panels, figure.columns), "utf-8")
    write_archive(folder / ARCHIVE, made.book, made.blocks, made.atlas)
    page = folder / "index.html"
    with atomic_path(page) as beside:
        beside.write_text(made.html, "utf-8")
    logger.info("%s: %d figures, %.1f MB", page, len(made.figures), len(made.html) / 1e6)
    return page


def script_json(value: Any) -> str:
    """JSON that may stand in a script element whatever texts it holds.

    >>> script_json("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline_lib.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = lambda text: escape(text).replace("/", Markup("/<wbr>"))
    environment.filters["percent"] = percent
    environment.filters["listed"] = listed
    environment.filters["svg"] = lambda panel, prefix: Markup(panel.themed(prefix))
    return environment


def _blocks(sections: list[Section]) -> Iterator[Any]:
    for section in sections:
        yield from section.blocks
        yield from _blocks(list(section.children))


def _has_rows(block: Any) -> bool:
    return isinstance(block, Figure | Listing) and len(block.data) > 0


def _columns(block: Figure | Listing) -> dict[str, list[Any]]:
    """Rows behind a figure or a table, column by column."""
    shown = block.data
    if isinstance(block, Listing):
        shown = shown[[field.name for field in block.fields]]
    return {str(name): [_plain(value) for value in column] for name, column in shown.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Component):
        return value.id
    if isinstance(value, list | tuple):
        return " ".join(str(_plain(part)) for part in value)
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value if isinstance(value, bool | int | str) else str(value)


def _headline(run: Run) -> list[tuple[str, str]]:
    """Facts of the first screen: value and what it counts."""
    images = run["manifest"]
    active = images[images["active"].astype(bool)]
    parts = run["components"].drop_duplicates(["model", "component"])
    facts = [
        (whole(len(active)), f"images in {plural(len(run.datasets), 'data set')}"),
        (whole(len(run.models)), "model" if len(run.models) == 1 else "models"),
        (whole(len(parts)), "components"),
    ]
    if len(run["exactness"]):
        facts.append((scientific(run["exactness"]["worst"].max()), "largest relative sum error"))
    return facts
