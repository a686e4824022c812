"""The pictures of the page at full size, in a .zip beside it.

`pictures.csv` in it says where on the page each picture stands; `images/{data set}/` holds the
images as they are in their data set, `sheets/` the grids of images found, the other folders what
the applications drew, `figures/` the static figures.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_lib.artifacts import atomic_path
from pipeline_lib.containers import read_content
from pipeline_lib.report.blocks import Figure, Gallery, GalleryRow, Picture, Readings
from pipeline_lib.report.pictures import PictureBook
from pipeline_lib.report.sheet import sheet
from pipeline_lib.report.style import compose

NAME = "pictures.zip"
#: The same for the same run: no entry has a time of its own.
_WHEN = (1980, 1, 1, 0, 0, 0)
_COLUMNS = ["part of the page", "model or data set", "row", "place", "words", "right", "file"]


def write_archive(
    path: str | Path, book: PictureBook, blocks: Sequence[Any], atlas: dict[str, Any] | None
) -> None:
    """Write the archive.

    Parameters
    ----------
    path
        The .zip; it appears complete or not at all.
    book
        Pictures that the page shows.
    blocks
        All blocks of the page.
    atlas
        What the cards show, from `atlas.atlas`.

    Raises
    ------
    DataError
        A picture cannot be read.
    """
    listed = pd.DataFrame([*_shown(blocks, book), *_cards(atlas, book)], columns=_COLUMNS)
    with (
        atomic_path(path) as beside,
        zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive,
    ):
        _add(archive, "pictures.csv", listed.to_csv(index=False).encode())
        for block in blocks:
            if isinstance(block, Figure):
                drawing = compose(block.panels, block.columns)
                _add(archive, f"figures/{block.name}.svg", drawing.encode())
            if isinstance(block, Gallery) and block.columns > 1:
                for tab, rows in block.tabs.items():
                    _add(archive, f"sheets/{block.name}/{tab}.webp", _sheet(rows, book))
        for name, file in sorted(book.files().items()):
            _add(archive, name, read_content(file))


def _sheet(rows: Sequence[GalleryRow], book: PictureBook) -> bytes:
    buffer = io.BytesIO()
    sheet(rows, book.read).save(buffer, "WEBP", quality=90, method=4)
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _WHEN)
    text = name.endswith((".csv", ".svg"))
    entry.compress_type = zipfile.ZIP_DEFLATED if text else zipfile.ZIP_STORED
    archive.writestr(entry, content)


def _shown(blocks: Sequence[Any], book: PictureBook) -> Iterator[tuple[Any, ...]]:
    """A row for every picture of the galleries and readings, in the order of the page."""
    for block in blocks:
        if isinstance(block, Gallery):
            for tab, rows in block.tabs.items():
                for row in rows:
                    title = " · ".join(filter(None, (row.title, row.subtitle)))
                    pictures = [*([row.lead] if row.lead else []), *row.pictures]
                    for place, picture in enumerate(pictures, start=1):
                        yield _row(block.title, tab, title, place, picture, book)
        elif isinstance(block, Readings):
            for tab, readings in block.tabs.items():
                for place, reading in enumerate(readings, start=1):
                    title = " · ".join(line.text for line in reading.lines)
                    yield _row(block.title, tab, title, place, reading.picture, book)


def _row(
    part: str, tab: str, row: str, place: int, picture: Picture, book: PictureBook
) -> tuple[Any, ...]:
    words = picture.note or book.note(picture.key)
    return part, tab, row, place, words, picture.correct, book.name(picture.key)


def _cards(atlas: dict[str, Any] | None, book: PictureBook) -> Iterator[tuple[Any, ...]]:
    """A row for every image on the card of a component."""
    for model in atlas["models"] if atlas else ():
        for part in model["components"]:
            text = part["texts"][0][0] if part["texts"] else ""
            for place, key in enumerate(part["images"], start=1):
                row = (f"{part['id']}: {text}", place, book.note(key), None, book.name(key))
                yield ("Card of a component", model["name"], *row)
