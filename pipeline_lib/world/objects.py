"""Objects of the demo world: outlines, colours, textures, and where they stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLING = 3
OUTLINE = 2.0  # width in pixels of a 96-pixel image

# RGB of each colour, and of the tone that its texture is drawn in.
COLOURS: Mapping[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "red": ((222, 34, 36), (120, 6, 14)),
    "orange": ((250, 138, 22), (160, 70, 0)),
    "yellow": ((252, 224, 40), (170, 130, 0)),
    "green": ((34, 166, 62), (6, 78, 24)),
    "blue": ((36, 84, 226), (150, 190, 255)),
    "purple": ((142, 48, 186), (222, 168, 244)),
    "white": ((248, 248, 246), (150, 150, 156)),
    "black": ((22, 22, 26), (142, 142, 148)),
}
DARK_OUTLINE, LIGHT_OUTLINE = (16, 16, 20), (250, 250, 250)
LIGHT_OUTLINED = ("red", "blue", "purple", "black", "green")

RADIUS = {"small": 17.0, "medium": 21.0, "large": 26.0}  # pixels of a 96-pixel image
SHRINK = {"one": 1.0, "two": 0.82, "three": 0.72}
OFFSET = {
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "centre": (0, 0),
}


@dataclass(frozen=True)
class Placed:
    """One object of the image: centre and radius in pixels, turn in radians."""

    x: float
    y: float
    radius: float
    turn: float


def place_objects(
    factors: Mapping[str, str], rng: np.random.Generator, size: int, scale: float = 1.0
) -> list[Placed]:
    """Where the objects of one image stand; the whole group fits into the image.

    `scale` multiplies the radius that the factors give.
    """
    unit = size / 96
    radius = RADIUS[factors["size"]] * SHRINK[factors["count"]] * rng.uniform(0.94, 1.06) * unit
    radius *= scale
    layout = _layout(factors["count"], factors["position"], rng) * radius
    step = 23 * unit * np.array(OFFSET[factors["position"]])
    centre = size / 2 + step + rng.uniform(-3, 3, size=2) * unit
    reach = np.abs(layout).max(axis=0) + radius + (OUTLINE + 1) * unit
    centre = np.clip(centre, reach, np.maximum(size - reach, reach))
    turns = rng.uniform(-0.1, 0.1, size=len(layout))
    return [
        Placed(*(centre + shift), radius, turn) for shift, turn in zip(layout, turns, strict=True)
    ]


def _layout(count: str, position: str, rng: np.random.Generator) -> np.ndarray:
    """Centres of the objects of a group in units of their radius, `[objects, 2]`."""
    if count == "one":
        return np.zeros((1, 2))
    if count == "two":
        lying = {"left": 0.5, "right": 0.5, "top": 0.0, "bottom": 0.0}
        turn = np.pi * lying.get(position, rng.uniform(0, 1)) + rng.uniform(-0.25, 0.25)
        axis = np.array([np.cos(turn), np.sin(turn)])
        return 1.12 * np.stack([-axis, axis])
    turns = rng.uniform(0, 2 * np.pi) + np.arange(3) * 2 * np.pi / 3
    return 1.28 * np.stack([np.cos(turns), np.sin(turns)], axis=1)


def coverage(shape: str, objects: list[Placed], size: int) -> tuple[np.ndarray, np.ndarray]:
    """How far each pixel is covered by object bodies, and by bodies with their outline.

    Returns
    -------
    body, whole
        float32 `[size, size]` in 0..1.
    """
    side = size * SUPERSAMPLING
    body, whole = (Image.new("L", (side, side)) for _ in range(2))
    stroke = round(2 * OUTLINE * SUPERSAMPLING * size / 96)
    for placed in objects:
        contours = [_to_pixels(contour, placed) for contour in contours_of(shape)]
        for picture in (body, whole):
            draw = ImageDraw.Draw(picture)
            for number, contour in enumerate(contours):
                draw.polygon(contour, fill=0 if number else 255)
        edge = ImageDraw.Draw(whole)
        for contour in contours:
            joint = "curve" if len(contour) < 16 else None  # smooth contours need no joints
            edge.line([*contour, contour[0], contour[1]], fill=255, width=stroke, joint=joint)
    first, second = _reduced(body), _reduced(whole)
    return first, np.maximum(first, second)


def _reduced(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.reduce(SUPERSAMPLING), np.float32) / 255


def _to_pixels(contour: np.ndarray, placed: Placed) -> list[tuple[float, float]]:
    cos, sin = np.cos(placed.turn), np.sin(placed.turn)
    turned = contour @ np.array([[cos, sin], [-sin, cos]])
    fine = (turned * placed.radius + [placed.x, placed.y]) * SUPERSAMPLING
    return [tuple(point) for point in fine.tolist()]


def paint(
    factors: Mapping[str, str], objects: list[Placed], rng: np.random.Generator, size: int
) -> np.ndarray:
    """Colour that each pixel has where an object covers it, float32 `[size, size, 3]`."""
    base, tone = (np.array(part, np.float32) for part in COLOURS[factors["colour"]])
    share = np.zeros((size, size), np.float32)
    nearest = np.full((size, size), np.inf, np.float32)
    turn, unit = rng.uniform(-0.12, 0.12), size / 96
    for placed in objects:
        rows, columns = _window(placed, size)
        y, x = np.mgrid[rows, columns].astype(np.float32) + 0.5
        x, y = (x - placed.x) / unit, (y - placed.y) / unit
        across, along = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        drawn = TEXTURES[factors["texture"]](across, along, placed.radius / unit)
        distance = x**2 + y**2
        closer = distance < nearest[rows, columns]
        share[rows, columns][closer] = drawn[closer]
        nearest[rows, columns][closer] = distance[closer]
    return base + (tone - base) * share[..., None]


def outline_colour(colour: str) -> np.ndarray:
    """Outline that stands out from the object's colour, float32 `[3]`."""
    light = colour in LIGHT_OUTLINED
    return np.array(LIGHT_OUTLINE if light else DARK_OUTLINE, np.float32)


def _window(placed: Placed, size: int) -> tuple[slice, slice]:
    reach = placed.radius * 1.15
    spans = []
    for centre in (placed.y, placed.x):
        spans.append(slice(max(0, int(centre - reach)), min(size, int(centre + reach) + 1)))
    return spans[0], spans[1]


# --- textures: share of the tone in 0..1, coordinates in pixels of a 96-pixel image --------------


def _soft(value: np.ndarray, softness: float) -> np.ndarray:
    """Step at zero, softened so that edges of about one pixel stay smooth."""
    return np.clip(0.5 + value / softness, 0, 1)


def _plain(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.zeros_like(x)


def _striped(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return _soft(np.cos(2 * np.pi * x / 7.0), softness=1.4)


def _checkered(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    waves = np.sin(2 * np.pi * x / 10.0) * np.sin(2 * np.pi * y / 10.0)
    return _soft(waves, softness=0.8)


def _dotted(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    across, along = x / 8.0, y / 8.0
    across = across + 0.5 * (np.floor(along) % 2)
    return _soft(0.3 - np.hypot(across % 1 - 0.5, along % 1 - 0.5), softness=0.14)


def _netted(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    falling, rising = (x + y) / 11.0, (x - y) / 11.0
    gap = np.minimum(np.abs(falling % 1 - 0.5), np.abs(rising % 1 - 0.5))
    return _soft(0.12 - gap, softness=0.12)


def _shaded(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.clip(0.5 + 0.62 * y / radius, 0, 1)


TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "plain": _plain,
    "striped": _striped,
    "checkered": _checkered,
    "dotted": _dotted,
    "netted": _netted,
    "shaded": _shaded,
}


# --- shapes: contours within the unit circle, the first one filled, the others holes ------------


@cache
def contours_of(shape: str) -> tuple[np.ndarray, ...]:
    """Contours of a shape, each `[points, 2]`, within about the unit circle, y downwards."""
    return CONTOURS[shape]()


def _arc(radius: float, start: float = 0.0, stop: float = 2 * np.pi, points: int = 40):
    turns = np.linspace(start, stop, points, endpoint=stop - start < 2 * np.pi - 1e-6)
    return radius * np.stack([np.cos(turns), np.sin(turns)], axis=1)


def _circle():
    return (_arc(0.92),)


def _square():
    return (0.8 * np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]),)


def _triangle():
    return (np.array([[0.0, -1.0], [1.0, 0.8], [-1.0, 0.8]]),)


def _star():
    turns = -np.pi / 2 + np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2, 0.46, 1.1)
    return (np.stack([radii * np.cos(turns), radii * np.sin(turns)], axis=1),)


def _cross():
    arm, end = 0.34, 0.98
    corners = [(-arm, -end), (arm, -end), (arm, -arm), (end, -arm), (end, arm), (arm, arm)]
    corners += [(arm, end), (-arm, end), (-arm, arm), (-end, arm), (-end, -arm), (-arm, -arm)]
    return (np.array(corners),)


def _ring():
    return (_arc(1.0), _arc(0.42))


def _heart():
    turns = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(turns) ** 3
    y = -(13 * np.cos(turns) - 5 * np.cos(2 * turns) - 2 * np.cos(3 * turns) - np.cos(4 * turns))
    return (np.stack([x / 16, (y - 2.5) / 15.5], axis=1),)


def _crescent():
    """Moon: a circle without a smaller one whose centre lies to the right of it."""
    inner, shift = 0.8, 0.5
    tip = (1 + shift**2 - inner**2) / (2 * shift)
    half = np.arccos(tip)
    outer_arc = _arc(1.0, half, 2 * np.pi - half, 40)
    turn = np.arctan2(np.sqrt(1 - tip**2), tip - shift)
    inner_arc = _arc(inner, turn, 2 * np.pi - turn, 40)[::-1]
    moon = np.concatenate([outer_arc, inner_arc + [shift, 0]])
    return (moon + [0.2, 0],)


CONTOURS: dict[str, Callable[[], tuple[np.ndarray, ...]]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "crescent": _crescent,
}
