"""What is still known when components are replaced by what a few texts explain of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from known_world import C, E, N, world

from pipeline_lib.coordinates import Source, encode
from pipeline_lib.maps import identity_maps, unit
from pipeline_lib.reconstruction import (
    along,
    bounds,
    linear_reading,
    reconstruction_table,
    zero_shot_reading,
)
from pipeline_lib.scores import moments
from pipeline_lib.textspan import label_components, random_pool
from pipeline_lib.truths import Factors, folds, linear_reader

COUNTS = (0, 1, 3, 6, E)


@pytest.fixture(scope="module")
def planted():
    contributions, images, features = world()
    encoded = encode(Source.of_array(contributions))
    found = moments(encoded, identity_maps(E))
    return contributions, encoded, found, Factors.of(images, ["colour", "shape"]), features


def reconstructed(planted, replaced: list[int], counts=COUNTS) -> pd.DataFrame:
    _, encoded, found, factors, features = planted
    # The planted directions among others; all texts together span the space.
    pool = torch.cat([*features.values(), random_pool(60, E, seed=1).float()])
    asked = {"count": E, "min_gain": 0.0, "min_residual": 0.0}
    texts = label_components(found, pool, **asked)
    random = label_components(found, random_pool(len(pool), E, seed=2), **asked)
    return reconstruction_table(
        encoded,
        found,
        {
            "texts": along([one.directions for one in texts]),
            "pca": along(bounds(found, max(counts))),
            "random": along([one.directions for one in random]),
        },
        [linear_reading(encoded, found, factors, seed=0)],
        replaced={"chosen": replaced},
        counts=counts,
    )


def accuracies(table: pd.DataFrame, directions: str, feature: str) -> dict[int, float]:
    part = table.query("directions == @directions and feature == @feature")
    return part.set_index("texts")["accuracy"].to_dict()


def test_more_directions_keep_more_and_all_of_them_keep_everything(planted) -> None:
    table = reconstructed(planted, list(range(C)))
    for feature in ("colour", "shape"):
        whole = accuracies(table, "texts", feature)[-1]
        assert whole > 0.97
        for kind in ("texts", "pca", "random"):
            found = accuracies(table, kind, feature)
            assert found[E] == pytest.approx(whole, abs=1e-9)
            assert found[0] < 0.65
            assert found[6] >= found[1] - 0.02
    # Two directions hold three colours' differences; the planted texts are these.
    assert accuracies(table, "texts", "colour")[3] > accuracies(table, "random", "colour")[1]
    assert accuracies(table, "pca", "colour")[3] > 0.95


def test_components_that_carry_nothing_can_be_replaced_by_their_mean(planted) -> None:
    table = reconstructed(planted, [0, 4], counts=(0,))
    found = accuracies(table, "texts", "shape")
    assert found[0] >= found[-1] - 0.02


def test_accuracy_is_that_of_replacing_by_hand(planted) -> None:
    """Component 1 projected to one direction, with a reader fitted on the whole."""
    contributions, encoded, found, factors, _ = planted
    direction = torch.linalg.qr(torch.randn(E, 1, generator=torch.Generator().manual_seed(3))).Q
    table = reconstruction_table(
        encoded,
        found,
        {"texts": along([direction.T] * C)},
        [linear_reading(encoded, found, factors, seed=0)],
        replaced={"one": [1]},
        counts=[1],
    )
    values = contributions.double()
    part = values[:, 1] - values[:, 1].mean(0)
    projector = (direction @ direction.T).double()
    changed = values.sum(1) - part + part @ projector
    wanted, right = factors.one_hot(), np.zeros(2)
    for train, test in folds(N, seed=0):
        reader, offset = linear_reader(values.sum(1)[train], wanted[train])
        right += factors.correct(changed[test] @ reader + offset, test)
    got = [accuracies(table, "texts", name)[1] for name in ("colour", "shape")]
    np.testing.assert_allclose(got, right / N, atol=2 / N)
    assert set(table["n"]) == {N}


def test_labels_are_told_by_the_nearest_text_and_nothing_is_fitted(planted) -> None:
    """Heads on their first texts, classified by hand; some images have no label."""
    contributions, encoded, found, _, features = planted
    generator = torch.Generator().manual_seed(5)
    bias = torch.randn(E, generator=generator)
    texts = unit(features["colour"] + 0.2 * torch.randn(3, E, generator=generator))
    texts = dict(zip(("blue", "green", "red"), texts.numpy(), strict=True))
    labels = pd.Series(np.random.default_rng(1).choice([*texts, None], N))
    directions = bounds(found, 2)
    table = reconstruction_table(
        encoded,
        found,
        {"texts": along(directions)},
        [zero_shot_reading(found, bias, labels, texts)],
        replaced={"some": [1, 2]},
        counts=[0, 2],
    )
    assert set(table["reader"]) == {"zero_shot"} and set(table["feature"]) == {"label"}
    known = labels.notna().to_numpy()
    assert set(table["n"]) == {known.sum()} != {N}
    for count in (-1, 0, 2):
        values = contributions.double().clone()
        for component in [1, 2] if count >= 0 else []:
            mean = values[:, component].mean(0)
            rows = directions[component][:count]
            values[:, component] = mean + (values[:, component] - mean) @ rows.T @ rows
        images = values.sum(1) + bias
        cosine = unit(images).double() @ torch.from_numpy(np.stack(list(texts.values()))).double().T
        told = np.array(list(texts))[cosine.argmax(1)]
        want = (told == labels)[known].mean()
        got = table.set_index("texts").loc[count, "accuracy"]
        assert got == pytest.approx(want, abs=1.5 / N)


def test_replaced_components_are_added_up_over_chunks_of_images(planted, monkeypatch) -> None:
    whole = reconstructed(planted, [1, 2], counts=(1, 3))
    monkeypatch.setattr("pipeline_lib.coordinates.AT_ONCE", 97)
    pd.testing.assert_frame_equal(reconstructed(planted, [1, 2], counts=(1, 3)), whole)


def test_more_directions_than_a_component_has_change_nothing(planted) -> None:
    table = reconstructed(planted, [1, 2, 3], counts=(E, 5 * E))
    for feature in ("colour", "shape"):
        found = accuracies(table, "pca", feature)
        assert found[E] == found[5 * E] == accuracies(table, "texts", feature)[-1]
