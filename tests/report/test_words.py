import doctest

import pytest

from pipeline_lib.report import words


def test_examples_in_docstrings():
    assert doctest.testmod(words).failed == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (words.percent(0.0), "0.0\u202f%"),
        (words.percent(-0.0001), "0.0\u202f%"),
        (words.percent(float("nan")), "–"),
        (words.points(0.0), "0.0 points"),
        (words.points(0.0512), "+5.1 points"),
        (words.whole(0), "0"),
        (words.whole(1_234_567), "1\u202f234\u202f567"),
        (words.scientific(0.0), "0"),
        (words.scientific(9.99e-7), "1.0\u202f×\u202f10⁻⁶"),
        (words.duration(5.94), "5.9 s"),
        (words.duration(59.4), "59 s"),
        (words.duration(3_725), "1 h 2 min"),
        (words.size(999), "999 B"),
        (words.plural(1, "query", "queries"), "1 query"),
        (words.plural(0, "query", "queries"), "0 queries"),
        (words.listed(["a"]), "a"),
        (words.listed([]), ""),
    ],
)
def test_numbers_as_words(text, expected):
    assert text == expected
