"""Captions: true of the image, in several wordings."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline_lib.errors import DataError
from pipeline_lib.world import FACTORS, PROMPTS, WORDINGS, caption, sample_factors
from pipeline_lib.world.captions import FULL_WORDINGS, all_words

MENTIONED = {
    "dressed": ("texture", "colour"),
    "shape-in-scene": ("shape", "scene"),
    "coloured-shape": ("shape", "colour"),
    "textured-in-scene": ("texture", "scene"),
    "shape": ("shape",),
    "colour": ("colour",),
    "texture": ("texture",),
    "scene": ("scene",),
    "layout": ("position",),
    "sized": ("size",),
}


@pytest.mark.parametrize("wording", FULL_WORDINGS)
@pytest.mark.parametrize("index", range(5))
def test_full_wordings_name_every_factor(wording, index):
    factors = sample_factors(0, index)
    text = caption(factors, np.random.default_rng(0), wording)
    for name, value in factors.items():
        if name == "count" and value == "one":
            continue  # said by the article
        assert value in text


@pytest.mark.parametrize("wording", MENTIONED)
def test_partial_wordings_name_their_factors_and_no_other_value(wording):
    for index in range(20):
        factors = sample_factors(1, index)
        words = caption(factors, np.random.default_rng(0), wording).replace(",", "").split()
        for name in MENTIONED[wording]:
            assert factors[name] in words
        for name, values in FACTORS.items():
            assert not {value for value in values if value != factors[name]} & set(words)


def test_the_generator_chooses_among_the_wordings():
    factors = sample_factors(0, 3)
    texts = {caption(factors, np.random.default_rng(i)) for i in range(200)}
    assert len(texts) > 20
    assert caption(factors, np.random.default_rng(4)) == caption(factors, np.random.default_rng(4))


def test_every_word_of_a_caption_is_in_the_word_list():
    words = set(all_words())
    for index in range(300):
        text = caption(sample_factors(2, index), np.random.default_rng(index))
        assert {word.strip(",") for word in text.split()} <= words
        assert text == text.lower()


def test_prompts_take_the_value_of_every_factor():
    assert set(PROMPTS) == set(FACTORS)
    words = set(all_words())
    for name, prompts in PROMPTS.items():
        for prompt in prompts:
            assert set(prompt.format(FACTORS[name][0]).split()) <= words


def test_an_unknown_wording_is_refused_with_the_near_ones():
    with pytest.raises(DataError, match="shape-in-scene"):
        caption(sample_factors(0, 0), np.random.default_rng(0), "shape-in-scen")
    assert "shape-in-scene" in WORDINGS
