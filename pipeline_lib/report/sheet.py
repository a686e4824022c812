"""A gallery as one picture at full size: rows of pictures, right and wrong ones marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageFont

from pipeline_lib.report.blocks import GalleryRow, Picture
from pipeline_lib.report.style import colour

#: Longest side of a picture in pixels; a smaller one is enlarged by a whole number at most.
SIDE = 256
_GAP, _LINE, _FRAME = 12, 34, 5


def sheet(rows: Sequence[GalleryRow], read: Callable[[str], Image.Image]) -> Image.Image:
    """Rows of a gallery one below the other, each under its title.

    Parameters
    ----------
    rows
        Titles and pictures.
    read
        The picture of a key.

    Returns
    -------
    PIL.Image.Image
        On the light surface; a picture of known verdict has a frame and a tick or a cross.
    """
    most = max(len(_pictures(row)) for row in rows)
    step = SIDE + 2 * _FRAME + _GAP
    canvas = Image.new(
        "RGB", (_GAP + most * step, _GAP + len(rows) * (step + _LINE)), colour("surface")
    )
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(20)
    for number, row in enumerate(rows):
        top = _GAP + number * (step + _LINE)
        title = " · ".join(filter(None, (row.title, row.subtitle)))
        draw.text((_GAP, top), title, fill=colour("ink"), font=font)
        for place, shown in enumerate(_pictures(row)):
            corner = (_GAP + place * step, top + _LINE)
            _paste(canvas, draw, corner, shown, read(shown.key))
    return canvas


def _pictures(row: GalleryRow) -> list[Picture]:
    return [*([row.lead] if row.lead else []), *row.pictures]


def _paste(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    shown: Picture,
    picture: Image.Image,
) -> None:
    """A picture in its frame, with a tick or a cross in the corner where its verdict is known."""
    scale = SIDE / max(picture.size)
    if scale > 1:
        scale = max(1, int(scale))  # sharp where small pictures are enlarged
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    left, top = corner[0] + _FRAME, corner[1] + _FRAME
    if shown.correct is not None:
        tone = colour("c3" if shown.correct else "c4")
        box = (corner[0], corner[1], left + size[0] + _FRAME - 1, top + size[1] + _FRAME - 1)
        draw.rectangle(box, fill=tone)
    canvas.paste(picture.resize(size, method), (left, top))
    if shown.correct is not None:
        x, y = left + size[0] - 26, top + 4
        draw.ellipse((x, y, x + 22, y + 22), fill=tone)
        white = colour("surface")
        if shown.correct:
            draw.line([(x + 5, y + 11), (x + 10, y + 16), (x + 17, y + 6)], fill=white, width=3)
        else:
            draw.line([(x + 6, y + 6), (x + 16, y + 16)], fill=white, width=3)
            draw.line([(x + 16, y + 6), (x + 6, y + 16)], fill=white, width=3)
