"""Sparse codes: planted texts found, weights against scipy, carriers, one pass, bad input."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from planted import COLOURS, SCENES, SHAPES, WIDTH, ArrayDump, value_directions
from scipy.optimize import nnls

from pipeline_lib.codes import (
    CARRIER_COLUMNS,
    Codes,
    Dictionary,
    carriers,
    code_images,
    code_summary,
    encode,
)
from pipeline_lib.errors import DataError
from pipeline_lib.factors import Factors
from pipeline_lib.mapped import mapped_representation
from pipeline_lib.maps import Maps, identity_maps
from pipeline_lib.passes import Held

CARRIERS = {
    "shape": "blocks.2.attn/head1",
    "colour": "blocks.1.attn/head0",
    "scene": "blocks.0.attn/head1",
}


@pytest.fixture
def dictionary() -> Dictionary:
    directions = value_directions()
    names = {"shape": SHAPES, "colour": COLOURS, "scene": SCENES}
    rng = np.random.default_rng(0)
    rows = [
        {"use": "pool", "feature": feature, "text": value, "embedding": directions[value]}
        for feature, values in names.items()
        for value in values
    ]
    rows += [
        {"use": "pool", "feature": "other", "text": f"word {i}", "embedding": vector}
        for i, vector in enumerate(rng.normal(size=(20, WIDTH)) / np.sqrt(WIDTH))
    ]
    return Dictionary.of(pd.DataFrame(rows))


def test_weights_are_those_of_non_negative_least_squares() -> None:
    rng = np.random.default_rng(1)
    words = torch.nn.functional.normalize(
        torch.from_numpy(rng.normal(size=(30, 12))), dim=1
    ).float()
    vectors = rng.normal(size=(40, 12)).astype(np.float32)
    codes = encode(vectors, words, 4)
    for vector, chosen, weights, explained in zip(
        vectors, codes.chosen, codes.weights, codes.explained, strict=True
    ):
        used = chosen[chosen >= 0]
        expected, rest = nnls(words[used].double().numpy().T, vector.astype(float))
        np.testing.assert_allclose(weights[: len(used)], expected, atol=1e-3)
        assert explained[len(used) - 1] == pytest.approx(1 - rest**2 / (vector @ vector), abs=1e-4)
        assert (np.diff(explained) >= -1e-6).all() and len(set(used.tolist())) == len(used)


def test_a_sum_of_few_texts_is_found_and_nothing_more() -> None:
    words = torch.eye(9)
    truth = np.zeros((2, 9), np.float32)
    truth[0, [3, 7]] = [2.0, 1.0]
    truth[1, 5] = 1.0
    codes = encode(truth - 0.001, words, 4)
    assert codes.chosen.tolist() == [[3, 7, -1, -1], [5, -1, -1, -1]]
    negative = encode(-np.eye(9, dtype=np.float32)[:1], words, 4)
    assert (negative.chosen == -1).all() and (negative.weights == 0).all()


def test_an_image_is_written_as_what_it_shows_and_its_carriers_are_named(
    dump: ArrayDump, dictionary: Dictionary
) -> None:
    maps, index, reference = identity_maps(WIDTH), np.arange(0, 40), np.arange(40, 240)
    codes, table = code_images(dump, maps, dictionary, index, reference, texts=3)
    first = dump.manifest["image_id"].iloc[0]
    said = set(table[table["image_id"] == first]["text"])
    assert said == {dump.manifest[name].iloc[0] for name in CARRIERS}
    assert (table["weight"] > 0).all() and table["explained"].between(0, 1).all()
    opened = carriers(dump, maps, dictionary, codes, index, reference, [0, 3], count=2)
    assert list(opened.columns) == CARRIER_COLUMNS
    assert set(opened["image_id"]) == set(dump.manifest["image_id"].iloc[[0, 3]])
    values = {str(dump.manifest[name].iloc[0]): name for name in CARRIERS}
    own = opened[(opened["image_id"] == first) & (opened["order"] == 0)]
    for row in own.itertuples():
        assert row.id == CARRIERS[values[row.text]]
        assert row.share > 0.5
    every = carriers(dump, maps, dictionary, codes, index, reference, [0], count=99)
    assert every.groupby("rank")["share"].sum().to_numpy() == pytest.approx(1.0)


def test_the_summary_is_over_all_images_also_those_whose_code_ended() -> None:
    chosen = np.array([[4, 2], [1, -1], [-1, -1], [3, 0]])
    explained = np.array([[0.5, 0.75], [0.5, 0.5], [0.0, 0.0], [0.2, 0.35]])
    table = code_summary(Codes(chosen, np.ones((4, 2)), explained))
    assert table["texts"].tolist() == [1, 2] and table["n"].tolist() == [4, 4]
    assert table["reaching"].tolist() == [0.75, 0.5]
    assert table["explained"].to_numpy() == pytest.approx([0.3, 0.4])
    inside = table["explained"].between(table["explained_low"], table["explained_high"])
    assert inside.all() and (table["explained_low"] > 0).all()


def test_coordinates_give_the_same_representation_as_contributions(dump: ArrayDump) -> None:
    rng = np.random.default_rng(0)
    count = len(dump.components)
    basis = np.linalg.qr(rng.normal(size=(WIDTH, 5)))[0].T.astype(np.float32)
    dump.values[:, 2] = dump.values[:, 2] @ basis.T @ basis
    maps = Maps(
        "ridge",
        torch.from_numpy(rng.normal(size=(count, WIDTH, 7)).astype("f4")),
        torch.ones(7),
    )
    index = np.array([3, 5, 9])
    plain = mapped_representation(dump, index, maps)
    by_hand = np.einsum("ncd,cde->ne", dump.values[index], maps.weights.numpy()) + 1
    np.testing.assert_allclose(plain, by_hand, rtol=1e-3, atol=1e-3)
    ranks = tuple(5 if c == 2 else WIDTH for c in range(count))
    coordinates = [
        dump.values[:, c] @ basis.T if c == 2 else dump.values[:, c] for c in range(count)
    ]
    held = Held(
        np.concatenate(coordinates, axis=1), dump.values.sum(axis=1),
        Factors(ranks, WIDTH, basis), dump.components, dump.manifest,
    )  # fmt: skip
    np.testing.assert_allclose(held.contributions(index), dump.values[index], atol=1e-4)
    np.testing.assert_allclose(mapped_representation(held, index, maps), plain, atol=1e-3)


def test_no_pool_and_no_image() -> None:
    empty = pd.DataFrame({"use": ["class"], "feature": ["a"], "text": ["b"], "embedding": [[1.0]]})
    with pytest.raises(DataError, match="a pool of at least two texts"):
        Dictionary.of(empty)
    with pytest.raises(DataError, match="no image to code"):
        encode(np.zeros((0, 3), np.float32), torch.eye(3), 2)
