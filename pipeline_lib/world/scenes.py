"""Backgrounds of the demo world: eight scenes, painted afresh for every image.

Each painter receives a `Canvas` (coordinates in 0..1, y downwards) and a generator, and paints the
whole canvas. What stands in front of the scene belongs to `objects.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLING = 2

Colour = tuple[int, int, int]
Point = tuple[float, float]


class Canvas:
    """A square picture twice as fine as the image, addressed by fractions of its side."""

    def __init__(self, size: int) -> None:
        self.side = size * SUPERSAMPLING
        self.image = Image.new("RGB", (self.side, self.side))
        self.draw = ImageDraw.Draw(self.image)

    def gradient(self, top: Colour, bottom: Colour, start: float = 0.0, stop: float = 1.0) -> None:
        """Fill the rows from `start` to `stop` with a vertical gradient."""
        first, last = round(start * self.side), round(stop * self.side)
        rows = np.linspace(top, bottom, max(last - first, 1)).astype(np.uint8)
        strip = Image.fromarray(rows[:, None, :])
        self.image.paste(strip.resize((self.side, len(rows)), Image.Resampling.NEAREST), (0, first))

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self.draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=colour)

    def line(self, points: Sequence[Point], colour: Colour, width: float = 0.01) -> None:
        scaled = [(x * self.side, y * self.side) for x, y in points]
        self.draw.line(scaled, fill=colour, width=max(1, round(width * self.side)))

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        box = (np.array([x - rx, y - ry, x + rx, y + ry]) * self.side).tolist()
        self.draw.ellipse(box, fill=colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        self.draw.rectangle((np.array([x0, y0, x1, y1]) * self.side).tolist(), fill=colour)

    def reduced(self) -> np.ndarray:
        """The picture at image size, float32 `[h, w, 3]` in 0..255."""
        return np.asarray(self.image.reduce(SUPERSAMPLING), dtype=np.float32)


def paint_scene(scene: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """Background of one image.

    Parameters
    ----------
    scene
        A value of the factor `scene`.
    rng
        Generator of the image's scene stream.
    size
        Side of the image in pixels.

    Returns
    -------
    numpy.ndarray
        float32 `[size, size, 3]` in 0..255.
    """
    canvas = Canvas(size)
    PAINTERS[scene](canvas, rng)
    picture = canvas.reduced()
    light = rng.uniform(0.92, 1.08) + _cloudy_noise(rng, size, cells=5, strength=0.03)
    grain = rng.normal(0.0, 2.5, size=(size, size)).astype(np.float32)
    return np.clip(picture * light[..., None] + grain[..., None], 0, 255)


def _ocean(canvas: Canvas, rng: np.random.Generator) -> None:
    horizon = rng.uniform(0.16, 0.32)
    canvas.gradient((126, 178, 226), (214, 232, 244), 0, horizon)
    canvas.gradient((26, 92, 152), (8, 48, 104), horizon, 1)
    depth = horizon
    while depth < 1.02:
        near = (depth - horizon) / (1 - horizon)
        _wave_crests(canvas, rng, depth, near)
        depth += 0.025 + 0.085 * near


def _wave_crests(canvas: Canvas, rng: np.random.Generator, y: float, near: float) -> None:
    length = 0.07 + 0.2 * near
    x = -rng.uniform(0, 2 * length)
    while x < 1:
        reach = length * rng.uniform(0.7, 1.4)
        xs = np.linspace(x, x + reach, 7)
        arch = np.sin(np.linspace(0, np.pi, 7)) * (0.01 + 0.035 * near)
        crest = list(zip(xs, y - arch, strict=True))
        canvas.line(crest, (226, 240, 248), 0.006 + 0.014 * near)
        x += reach * rng.uniform(1.2, 1.9)


def _lake(canvas: Canvas, rng: np.random.Generator) -> None:
    shore = rng.uniform(0.36, 0.5)
    canvas.gradient((170, 208, 238), (236, 238, 232), 0, shore)
    canvas.gradient((150, 196, 214), (70, 140, 172), shore, 1)
    for tone, height, cells in (((136, 150, 178), 0.26, 5), ((78, 108, 104), 0.13, 8)):
        ridge = _ridge(rng, shore, height, cells)
        canvas.polygon([*ridge, (1, shore), (0, shore)], tone)
        water = tuple(int(0.62 * part + 0.38 * 190) for part in tone)
        mirrored = [(x, 2 * shore - 0.8 * (y - shore) - shore) for x, y in ridge]
        canvas.polygon([*mirrored, (1, shore), (0, shore)], water)
    canvas.box(0, shore - 0.006, 1, shore + 0.008, (206, 214, 190))
    for _ in range(9):
        y = rng.uniform(shore + 0.05, 1)
        x, reach = rng.uniform(-0.1, 0.9), rng.uniform(0.08, 0.25)
        canvas.line([(x, y), (x + reach, y)], (196, 224, 232), 0.008)


def _river(canvas: Canvas, rng: np.random.Generator) -> None:
    horizon = rng.uniform(0.14, 0.24)
    canvas.gradient((160, 206, 240), (220, 236, 240), 0, horizon)
    canvas.gradient((128, 162, 96), (96, 138, 66), horizon, 1)
    rows = np.linspace(horizon, 1.02, 24)
    near = (rows - horizon) / (1.02 - horizon)
    phase, bend = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.22)
    middle = 0.5 + rng.uniform(-0.1, 0.1) + bend * near**0.7 * np.sin(phase + 5.5 * near**0.6)
    width = 0.03 + 0.3 * near
    for extra, tone in ((0.035, (206, 190, 146)), (0.0, (44, 122, 190))):
        half = width + extra * (0.3 + near)
        left, right = zip(middle - half, rows), zip(middle + half, rows)
        canvas.polygon([*left, *reversed(list(right))], tone)
    for share in rng.uniform(-0.7, 0.7, size=7):
        first = rng.integers(4, 19)
        part = slice(first, first + 5)
        flow = zip(middle[part] + share * width[part], rows[part])
        canvas.line(list(flow), (150, 204, 236), 0.012)
    for _ in range(14):
        row = rng.integers(2, 24)
        side = rng.choice([-1, 1])
        x = middle[row] + side * (width[row] + rng.uniform(0.06, 0.4))
        bush = 0.012 + 0.035 * near[row]
        canvas.ellipse(x, rows[row], bush * 1.3, bush, (58, 104, 50))


def _swamp(canvas: Canvas, rng: np.random.Generator) -> None:
    bank = rng.uniform(0.16, 0.3)
    canvas.gradient((168, 176, 146), (140, 150, 118), 0, bank)
    canvas.gradient((92, 100, 58), (52, 62, 38), bank, 1)
    for _ in range(5):
        x, width = rng.uniform(0, 1), rng.uniform(0.015, 0.03)
        foot = bank + rng.uniform(0.02, 0.1)
        canvas.polygon(
            [(x - width, -0.01), (x + width, -0.01), (x + 2 * width, foot), (x - 2 * width, foot)],
            (70, 64, 48),
        )
    for _ in range(13):
        y = rng.uniform(bank + 0.08, 1)
        rx = (0.03 + 0.07 * (y - bank)) * rng.uniform(0.8, 1.3)
        x = rng.uniform(0, 1)
        canvas.ellipse(x, y, rx, 0.45 * rx, (128, 150, 62))
        notch = [(x, y), (x + 1.2 * rx, y - 0.2 * rx), (x + 1.2 * rx, y + 0.15 * rx)]
        canvas.polygon(notch, (66, 76, 44))
    for _ in range(16):
        x, foot = rng.uniform(0, 1), rng.uniform(bank + 0.15, 1.15)
        height, lean = rng.uniform(0.15, 0.32), rng.uniform(-0.04, 0.04)
        canvas.line([(x, foot), (x + lean, foot - height)], (172, 172, 92), 0.009)
        canvas.ellipse(x + lean, foot - height, 0.011, 0.035, (88, 58, 34))


def _forest(canvas: Canvas, rng: np.random.Generator) -> None:
    ground = rng.uniform(0.72, 0.85)
    canvas.gradient((150, 182, 150), (64, 98, 66), 0, ground)
    canvas.gradient((58, 66, 36), (44, 44, 26), ground, 1)
    layers = (
        ((70, 116, 78), 9, 0.5, -0.1),
        ((38, 86, 52), 7, 0.72, 0.02),
        ((18, 58, 36), 5, 0.9, 0.16),
    )
    for tone, number, height, drop in layers:
        for place in range(number):
            x = (place + rng.uniform(0.1, 0.9)) / number
            _conifer(canvas, x, ground + drop * 0.8, height * rng.uniform(0.8, 1.05), tone)


def _conifer(canvas: Canvas, x: float, foot: float, height: float, tone: Colour) -> None:
    canvas.box(x - 0.014, foot - 0.1 * height, x + 0.014, foot + 0.03, (66, 46, 30))
    for low, high, half in ((0.08, 0.5, 0.17), (0.32, 0.75, 0.13), (0.58, 1.0, 0.09)):
        canvas.polygon(
            [
                (x - half * height, foot - low * height),
                (x + half * height, foot - low * height),
                (x, foot - high * height),
            ],
            tone,
        )


def _desert(canvas: Canvas, rng: np.random.Generator) -> None:
    horizon = rng.uniform(0.24, 0.4)
    canvas.gradient((246, 206, 150), (252, 232, 190), 0, horizon + 0.1)
    canvas.ellipse(rng.uniform(0.1, 0.9), rng.uniform(0.06, 0.16), 0.06, 0.06, (255, 246, 214))
    tones = ((226, 178, 112), (214, 160, 92), (200, 142, 76), (184, 124, 62))
    for number, tone in enumerate(tones):
        base = horizon + number * (1 - horizon) / len(tones)
        xs = np.linspace(0, 1, 25)
        phase, waves = rng.uniform(0, 2 * np.pi), rng.uniform(3.5, 7)
        dune = base - (0.03 + 0.015 * number) * np.sin(phase + waves * xs)
        canvas.polygon([*zip(xs, dune), (1, 1.01), (0, 1.01)], tone)
        light = tuple(min(255, part + 26) for part in tone)
        canvas.line(list(zip(xs, dune)), light, 0.012)
        for ripple in (0.05, 0.1):
            dark = tuple(part - 14 for part in tone)
            canvas.line(list(zip(xs, dune + ripple)), dark, 0.007)


def _meadow(canvas: Canvas, rng: np.random.Generator) -> None:
    horizon = rng.uniform(0.26, 0.4)
    canvas.gradient((112, 186, 246), (196, 226, 250), 0, horizon + 0.05)
    for _ in range(2):
        x, y = rng.uniform(0, 1), rng.uniform(0.03, 0.16)
        for shift in (-0.07, 0.0, 0.07):
            canvas.ellipse(x + shift, y, 0.07, 0.035, (248, 250, 252))
    hill = _ridge(rng, horizon + 0.06, 0.12, 3, smooth=True)
    canvas.gradient((150, 208, 86), (92, 168, 52), horizon + 0.04, 1)
    canvas.polygon([*hill, (1, horizon + 0.07), (0, horizon + 0.07)], (126, 190, 88))
    for _ in range(45):
        x, y = rng.uniform(0, 1), rng.uniform(horizon + 0.1, 1.02)
        canvas.line([(x, y), (x + rng.uniform(-0.01, 0.01), y - 0.035)], (66, 140, 44), 0.008)
    petals = ((252, 250, 240), (250, 214, 70), (238, 110, 150))
    for _ in range(26):
        x, y = rng.uniform(0, 1), rng.uniform(horizon + 0.1, 1)
        radius = 0.008 + 0.012 * (y - horizon)
        canvas.ellipse(x, y, radius, radius, petals[rng.integers(3)])


def _city(canvas: Canvas, rng: np.random.Generator) -> None:
    street = rng.uniform(0.76, 0.86)
    canvas.gradient((176, 186, 204), (226, 216, 206), 0, street)
    rows = (((150, 156, 172), 0.35, 0.72, 0.12), ((88, 92, 108), 0.2, 0.55, 0.17))
    for tone, low, high, width in rows:
        x = -rng.uniform(0, width)
        while x < 1:
            reach = width * rng.uniform(0.7, 1.3)
            shade = rng.integers(-14, 15)
            body = tuple(int(part + shade) for part in tone)
            _building(canvas, rng, (x, street - rng.uniform(low, high), x + reach, street), body)
            x += reach + 0.012
    canvas.gradient((74, 76, 82), (54, 56, 62), street, 1)
    x = -rng.uniform(0, 0.15)
    middle = (street + 1) / 2
    while x < 1:
        canvas.box(x, middle - 0.01, x + 0.1, middle + 0.01, (232, 214, 120))
        x += 0.2


def _building(
    canvas: Canvas, rng: np.random.Generator, box: tuple[float, float, float, float], body: Colour
) -> None:
    x0, y0, x1, y1 = box
    canvas.box(x0, y0, x1, y1, body)
    dark = tuple(part - 34 for part in body)
    for y in np.arange(y0 + 0.03, y1 - 0.03, 0.062):
        for x in np.arange(x0 + 0.022, x1 - 0.03, 0.044):
            window = (250, 226, 140) if rng.random() < 0.4 else dark
            canvas.box(x, y, x + 0.022, y + 0.03, window)


def _ridge(
    rng: np.random.Generator, base: float, height: float, cells: int, smooth: bool = False
) -> list[Point]:
    """Outline of hills from left to right, `height` above `base` at most."""
    knots = rng.uniform(0.25, 1.0, size=cells + 1)
    xs = np.linspace(0, 1, 33)
    tops = np.interp(xs, np.linspace(0, 1, cells + 1), knots)
    if smooth:
        tops = np.convolve(np.pad(tops, 4, mode="edge"), np.full(9, 1 / 9), mode="valid")
    return list(zip(xs.tolist(), (base - height * tops).tolist(), strict=True))


def _cloudy_noise(rng: np.random.Generator, size: int, cells: int, strength: float) -> np.ndarray:
    """Smooth noise of standard deviation about `strength`, float32 `[size, size]`."""
    coarse = Image.fromarray(rng.normal(0.0, strength, size=(cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


PAINTERS: dict[str, Callable[[Canvas, np.random.Generator], None]] = {
    "ocean": _ocean,
    "lake": _lake,
    "river": _river,
    "swamp": _swamp,
    "forest": _forest,
    "desert": _desert,
    "meadow": _meadow,
    "city": _city,
}
