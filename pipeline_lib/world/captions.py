"""What is said about an image: one sentence in one of several wordings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from pipeline_lib.errors import DataError, close_matches
from pipeline_lib.world.factors import CLASSES, FACTORS, PLACES, check_factors, class_of, place_of

IN_SCENE: Mapping[str, str] = {
    "ocean": "on the ocean",
    "lake": "on a lake",
    "river": "on a river",
    "swamp": "in a swamp",
    "forest": "in a forest",
    "desert": "in a desert",
    "meadow": "in a meadow",
    "city": "in a city",
}
AT_POSITION: Mapping[str, str] = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "centre": "in the centre",
}
PLURALS: Mapping[str, str] = {"cross": "crosses"}
#: What else a scene shows, and the class of a shape: words beside the names of the values.
DETAILS: Mapping[str, str] = {
    "ocean": "waves",
    "lake": "hills",
    "river": "banks",
    "swamp": "reeds",
    "forest": "trees",
    "desert": "sand",
    "meadow": "flowers",
    "city": "buildings",
}
PLACE_WORDS: Mapping[str, str] = {"water": "a place with water", "land": "a place on land"}
OPENINGS = ("a photo of", "a picture of", "an image of")


def caption(
    factors: Mapping[str, str], rng: np.random.Generator, wording: str | None = None
) -> str:
    """A lower-case English sentence that is true of the image.

    Parameters
    ----------
    factors
        One valid value for each factor.
    rng
        Chooses the wording (at times one that names all factors) and its opening.
    wording
        A key of `WORDINGS` to have that one.

    Raises
    ------
    DataError
        If a factor is missing or unknown, or the wording does not exist.

    Examples
    --------
    >>> values = dict(shape="star", colour="red", texture="dotted", scene="lake", position="left",
    ...               size="small", count="two")
    >>> caption(values, np.random.default_rng(0), wording="layout")
    'two stars on the left'
    """
    check_factors(factors)
    if wording is None:
        names = FULL_WORDINGS if rng.random() < FULL_SHARE else PARTIAL_WORDINGS
        wording = names[rng.integers(len(names))]
    if wording not in WORDINGS:
        raise DataError(f"no wording {wording!r}; {close_matches(wording, WORDINGS)}")
    return WORDINGS[wording](factors, OPENINGS[rng.integers(len(OPENINGS))])


def all_words() -> list[str]:
    """Every word that a caption can contain, sorted."""
    values = {name: values[0] for name, values in FACTORS.items()}
    texts = [make(values, opening) for make in WORDINGS.values() for opening in OPENINGS]
    texts += [*IN_SCENE.values(), *AT_POSITION.values(), *_value_words()]
    return sorted({word.strip(",") for text in texts for word in text.split()})


def _value_words() -> Iterator[str]:
    for values in FACTORS.values():
        yield from values
    yield from (PLURALS.get(shape, f"{shape}s") for shape in FACTORS["shape"])
    yield from DETAILS.values()
    yield from (*PLACES, *CLASSES, "an", "objects", "object")


def _noun(f: Mapping[str, str]) -> str:
    return f["shape"] if f["count"] == "one" else PLURALS.get(f["shape"], f"{f['shape']}s")


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _things(f: Mapping[str, str]) -> str:
    return "object" if f["count"] == "one" else "objects"


def _counted(f: Mapping[str, str], *parts: str) -> str:
    """`a red star`, `an orange star` or `three red stars`, from the words after the number."""
    words = " ".join(parts)
    return f"{_article(words)} {words}" if f["count"] == "one" else f"{f['count']} {words}"


def _all_flowing(f: Mapping[str, str], opening: str) -> str:
    words = f"{f['count']} {f['size']} {f['texture']} {f['colour']} {_noun(f)}"
    return f"{opening} {words} {AT_POSITION[f['position']]} {IN_SCENE[f['scene']]}"


def _all_scene_first(f: Mapping[str, str], opening: str) -> str:
    words = f"{f['size']} {f['texture']} {f['colour']} {_noun(f)} {AT_POSITION[f['position']]}"
    return f"{opening} {_article(f['scene'])} {f['scene']} with {_counted(f, words)}"


def _all_listed(f: Mapping[str, str], opening: str) -> str:
    return (
        f"{f['scene']}, {f['colour']}, {f['shape']}, {f['texture']}, "
        f"{f['size']}, {f['count']}, {f['position']}"
    )


def _dressed(f: Mapping[str, str], opening: str) -> str:
    return f"{opening} {_counted(f, f['texture'], f['colour'], _noun(f))}"


def _shape_in_scene(f: Mapping[str, str], opening: str) -> str:
    return f"{opening} {_article(f['shape'])} {f['shape']} {IN_SCENE[f['scene']]}"


def _coloured_shape(f: Mapping[str, str], opening: str) -> str:
    return f"{opening} {_article(f['colour'])} {f['colour']} {f['shape']}"


def _textured_in_scene(f: Mapping[str, str], opening: str) -> str:
    return f"{_article(f['texture'])} {f['texture']} object {IN_SCENE[f['scene']]}"


def _shape(f: Mapping[str, str], opening: str) -> str:
    return f"{opening} {_article(f['shape'])} {f['shape']}"


def _colour(f: Mapping[str, str], opening: str) -> str:
    return f"{opening} something {f['colour']}"


def _texture(f: Mapping[str, str], opening: str) -> str:
    return f"{opening} {_article(f['texture'])} {f['texture']} object"


def _scene(f: Mapping[str, str], opening: str) -> str:
    return f"{opening} {_article(f['scene'])} {f['scene']}"


def _layout(f: Mapping[str, str], opening: str) -> str:
    return f"{_counted(f, _noun(f))} {AT_POSITION[f['position']]}"


def _sized(f: Mapping[str, str], opening: str) -> str:
    return f"{opening} {_counted(f, f['size'], _things(f))}"


def _detail(f: Mapping[str, str], opening: str) -> str:
    return f"{opening} {DETAILS[f['scene']]}"


def _place(f: Mapping[str, str], opening: str) -> str:
    return f"{opening} {PLACE_WORDS[place_of(f['scene'])]}"


def _kind(f: Mapping[str, str], opening: str) -> str:
    kind = class_of(f["shape"])
    return f"{opening} {_article(kind)} {kind} object"


FULL_SHARE = 0.3  # of captions name every factor
FULL_WORDINGS = ("all-flowing", "all-scene-first", "all-listed")
WORDINGS: Mapping[str, Callable[[Mapping[str, str], str], str]] = {
    "all-flowing": _all_flowing,
    "all-scene-first": _all_scene_first,
    "all-listed": _all_listed,
    "dressed": _dressed,
    "shape-in-scene": _shape_in_scene,
    "coloured-shape": _coloured_shape,
    "textured-in-scene": _textured_in_scene,
    "shape": _shape,
    "colour": _colour,
    "texture": _texture,
    "scene": _scene,
    "layout": _layout,
    "sized": _sized,
    "detail": _detail,
    "place": _place,
    "kind": _kind,
}
PARTIAL_WORDINGS = tuple(name for name in WORDINGS if name not in FULL_WORDINGS)

#: Sentences for zero-shot classification of one factor; `{}` takes the value's name.
PROMPTS: Mapping[str, tuple[str, ...]] = {
    "shape": ("a photo of a {}", "a picture of a {}", "an image of a {}"),
    "colour": ("a photo of something {}", "a picture of something {}", "an image of something {}"),
    "texture": ("a photo of a {} object", "a picture of a {} object", "an image of a {} object"),
    "scene": ("a photo of a {}", "a picture of a {}", "an image of a {}"),
    "position": ("a photo of an object on the {}", "something on the {}"),
    "size": ("a photo of a {} object", "a picture of a {} object"),
    "count": ("a photo of {} objects", "a picture of {} objects"),
}
