"""House style of all figures: one palette for light and dark, one set of matplotlib settings.

Figures are drawn in the light palette. On the page each colour of the palette becomes a CSS
variable, so that the same drawing follows the reader's theme; a saved SVG keeps the light colours.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

#: Role of a colour to its value on a light and on a dark page. All series colours can be told apart
#: with any one kind of cones absent (a test holds the distances); figures also tell series apart by
#: marker or line style.
PALETTE: dict[str, tuple[str, str]] = {
    "ink": ("#1d2328", "#e6e9ec"),
    "muted": ("#5f6a73", "#9aa6b0"),
    "faint": ("#98a1a9", "#66717b"),
    "line": ("#dfe3e6", "#333b42"),
    "surface": ("#fffffe", "#171b1f"),
    "accent": ("#0b6aa2", "#5cb3e8"),
    "c1": ("#0971ab", "#478db6"),
    "c2": ("#c17c41", "#ecc568"),
    "c3": ("#3b9e7f", "#0abea6"),
    "c4": ("#ba4d00", "#b5754e"),
    "c5": ("#834172", "#885f80"),
    "c6": ("#2daae8", "#a7d1ec"),
    "c7": ("#777156", "#c6a239"),
}

SERIES = ("c1", "c2", "c3", "c4", "c5", "c6", "c7")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.5, 1.5)))

#: Inches to CSS pixels of the drawings.
PIXELS_PER_INCH = 96
#: Inches of the widest panel: on a phone it is shown 360 pixels wide, and its text must be legible.
WIDEST = 4.2
FONT = "DejaVu Sans"


def colour(role: str) -> str:
    """Light value of a role of the palette."""
    return PALETTE[role][0]


def series_colour(place: int) -> str:
    """Colour of the series number `place`; repeats after the last."""
    return colour(SERIES[place % len(SERIES)])


_SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": colour("faint"),
    "axes.labelcolor": colour("muted"),
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": colour("ink"),
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.dpi": PIXELS_PER_INCH,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.family": FONT,
    "font.size": 9,
    "grid.color": colour("line"),
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": colour("muted"),
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "lines.markeredgewidth": 0,
    "svg.fonttype": "none",
    "svg.hashsalt": "vit-atlas",
    "text.color": colour("ink"),
    "text.parse_math": False,  # a user's text may hold dollar signs
    "xtick.color": colour("faint"),
    "xtick.labelcolor": colour("muted"),
    "xtick.labelsize": 8.5,
    "xtick.major.size": 3,
    "ytick.color": colour("faint"),
    "ytick.labelcolor": colour("muted"),
    "ytick.labelsize": 8.5,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Panel:
    """One drawing of a figure: what it shows in a word or two, and its SVG in the light palette."""

    title: str
    svg: str
    width: int
    height: int

    def themed(self, prefix: str) -> str:
        """The drawing with CSS variables in place of the palette, to stand inside a page.

        Parameters
        ----------
        prefix
            Put before every id, so that the drawings of a page do not share any.
        """
        svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}-", self.svg)
        svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(self.title)}" ', 1)
        for role, (light, _) in PALETTE.items():
            svg = svg.replace(light, f"var(--{role})")
        return svg


def draw_panel(
    draw: Callable[[Axes], None], title: str = "", width: float = 3.3, height: float = 2.5
) -> Panel:
    """Panel drawn by a function of an empty axes.

    Parameters
    ----------
    draw
        Draws on the axes it is given, with colours of the palette.
    title
        Heading of the panel; also its accessible name.
    width, height
        Size in inches of 96 pixels.
    """
    with mpl.rc_context(_SETTINGS):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        axes = canvas.add_subplot()
        draw(axes)
        if title:
            canvas.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        raw = io.StringIO()
        FigureCanvasSVG(canvas).print_svg(raw, metadata={"Date": None, "Creator": None})
    pixels = round(width * PIXELS_PER_INCH), round(height * PIXELS_PER_INCH)
    return Panel(title, _clean(raw.getvalue(), *pixels), *pixels)


def _clean(svg: str, width: int, height: int) -> str:
    """The `svg` element alone: no metadata, style sheet, unused id or superfluous digit."""
    view = re.search(r'viewBox="([^"]+)"', svg)
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: m.group(0) if m.group(1) in used else "", body)
    body = re.sub(r"font: (?:(bold|\d+) )?([\d.]+px) [^;\"]+", _font, body)
    body = re.sub(r"font-family: [^;\"]+", "font-family: sans-serif", body)
    body = re.sub(r' transform="rotate\(-0 [^"]+"', "", body)
    body = re.sub(r"(\d+\.\d{2})\d+", r"\1", body)
    body = re.sub(r"\s*\n\s*", " ", body).replace("> <", "><").replace("<g/>", "")
    box = view.group(1) if view else f"0 0 {width} {height}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{width}" height="{height}" '
        f'style="stroke-linejoin: round; max-width: {round(1.12 * width)}px">{body.strip()}</svg>'
    )


def _font(match: re.Match[str]) -> str:
    weight, size = match.groups()
    return (f"font-weight: {weight}; " if weight else "") + (
        f"font-size: {size}; font-family: sans-serif"
    )


def compose(panels: list[Panel], columns: int, gap: int = 16) -> str:
    """One standalone SVG with the panels in rows of `columns`, on the light surface."""
    columns = max(1, min(columns, len(panels)))
    width = max(panel.width for panel in panels)
    parts, top = [], gap
    for start in range(0, len(panels), columns):
        row = panels[start : start + columns]
        for place, panel in enumerate(row):
            left = gap + place * (width + gap)
            parts.append(panel.svg.replace("<svg ", f'<svg x="{left}" y="{top}" ', 1))
        top += max(panel.height for panel in row) + gap
    total = gap + columns * (width + gap)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {total} {top}" width="{total}" height="{top}">'
        f'<rect width="100%" height="100%" fill="{colour("surface")}"/>{"".join(parts)}</svg>\n'
    )


def css_variables() -> str:
    """The palette as CSS: light by default, dark where the reader or the system asks for it."""
    light = "".join(f"--{role}:{values[0]};" for role, values in PALETTE.items())
    dark = "".join(f"--{role}:{values[1]};" for role, values in PALETTE.items())
    return (
        f":root{{color-scheme:light;{light}}}"
        f':root[data-theme="dark"]{{color-scheme:dark;{dark}}}'
        "@media (prefers-color-scheme:dark){"
        f':root:not([data-theme="light"]){{color-scheme:dark;{dark}}}}}'
    )
