"""Numbers and lists as a reader wants to see them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from pipeline_lib.progress import duration as span

ABSENT = "–"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_NARROW = "\u202f"


def is_absent(value: object) -> bool:
    """Whether a value of a table is missing."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def percent(value: float, digits: int = 1) -> str:
    """A share as per cent.

    >>> percent(0.1234)
    '12.3\u202f%'
    """
    if is_absent(value):
        return ABSENT
    return f"{_minus(f'{100 * value:.{digits}f}')}{_NARROW}%"


def points(value: float, digits: int = 1) -> str:
    """A difference of two shares in percentage points, with its sign.

    >>> points(-0.031)
    '−3.1 points'
    """
    if is_absent(value):
        return ABSENT
    sign = "+" if round(100 * value, digits) > 0 else ""
    return f"{sign}{_minus(f'{100 * value:.{digits}f}')} points"


def decimal(value: float, digits: int = 3) -> str:
    """A number with a fixed number of digits.

    >>> decimal(-0.5)
    '−0.500'
    """
    return ABSENT if is_absent(value) else _minus(f"{value:.{digits}f}")


def whole(value: float) -> str:
    """A count with thin spaces between thousands.

    >>> whole(12345)
    '12\u202f345'
    """
    if is_absent(value):
        return ABSENT
    return _minus(f"{round(value):,}".replace(",", _NARROW))


def scientific(value: float) -> str:
    """A small number with its power of ten.

    >>> scientific(3.14e-7)
    '3.1\u202f×\u202f10⁻⁷'
    """
    if is_absent(value):
        return ABSENT
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    power = str(int(exponent)).translate(_SUPERSCRIPT)
    return f"{_minus(mantissa)}{_NARROW}×{_NARROW}10{power}"


def power_of_ten(value: float) -> str:
    """A power of ten, as a logarithmic axis is labelled.

    >>> power_of_ten(1e-6)
    '10⁻⁶'
    """
    return "10" + str(round(math.log10(value))).translate(_SUPERSCRIPT)


def duration(seconds: float) -> str:
    """A time span, as everywhere; a dash where there is none."""
    return ABSENT if is_absent(seconds) else span(seconds)


def size(count: float) -> str:
    """A number of bytes.

    >>> size(1_234_567)
    '1.2 MB'
    """
    if is_absent(count):
        return ABSENT
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def plural(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun.

    >>> plural(2, "image")
    '2 images'
    """
    return f"{whole(count)} {one if count == 1 else many or one + 's'}"


def listed(words: Iterable[object]) -> str:
    """Words as they are listed in a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    items = [str(word) for word in words] or [""]
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of finite values; NaN of none."""
    kept = [float(value) for value in values if not is_absent(float(value))]
    return sum(kept) / len(kept) if kept else math.nan


_WRAPPERS = re.compile(r"^(?:(?:visual|trunk|transformer|model)\.)+")
_METHODS = {
    "components": "top components",
    "representation": "whole representation",
    "random": "random components",
    "clip": "reference CLIP",
    "compalign": "CompAlign",
    "gradcam": "GradCAM",
    "full": "full model",
    "ablated": "cue ablated",
    "early": "early layers only",
    "group_labels": "chosen with group labels",
    "published": "as published",
    "subspace": "subspace of its texts",
    "attention": "raw attention",
    "centre": "image centre",
    "uniform": "nothing marked",
}


def method_name(name: str) -> str:
    """What a method of a table is called on the page.

    >>> method_name("raw_attention")
    'raw attention'
    """
    return _METHODS.get(name, spaced(name))


def short_name(component: str) -> str:
    """Name of a component without the wrappers that all components of its model have.

    >>> short_name("visual.transformer.resblocks.3.attn/head2")
    'resblocks.3.attn/head2'
    """
    return _WRAPPERS.sub("", component)


def images_of(split: str | None) -> str:
    """The images of a split, or all where none is named.

    >>> images_of("val")
    'val images'
    """
    return "all images" if split is None else f"{split} images"


def spaced(name: str) -> str:
    """A name of a column or a method as words.

    >>> spaced("raw_attention")
    'raw attention'
    """
    return name.replace("_", " ")


def _minus(text: str) -> str:
    number = text.replace("-", "−")
    return number.lstrip("−") if set(number) <= set("−0.") else number
