"""Truths about components: planted factors are told from the components that carry them."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from known_world import C, E, N, normal, planted, world

from pipeline_lib.artifacts import TABLES
from pipeline_lib.coordinates import Source, encode
from pipeline_lib.errors import DataError
from pipeline_lib.maps import Maps, identity_maps, unit
from pipeline_lib.scores import moments
from pipeline_lib.truths import (
    RIDGE,
    Factors,
    ablation_loss,
    clip_agreement,
    decodability,
    decodability_in_words,
    folds,
    known_factors,
    linear_reader,
    truth_table,
)


def test_factor_is_decoded_from_the_component_that_carries_it() -> None:
    read, accuracy = decodability(*planted(), seed=0)
    assert accuracy[1, 0] > 0.99
    assert accuracy[3, 1] > 0.99
    assert read[1, 0] > 0.9
    assert abs(accuracy[0, 0] - 1 / 3) < 0.08
    assert abs(accuracy[3, 0] - 1 / 3) < 0.08
    assert abs(accuracy[4, 1] - 0.5) < 0.1
    assert read[0].max() < 0.02  # held out: a reader of noise reads nothing
    assert read[1, 0] > read[2, 0] > read[0, 0] + 0.1


def test_r2_tells_perfect_readers_apart() -> None:
    read, accuracy = decodability(*planted(noise=0.05), seed=0)
    assert accuracy[1, 0] == accuracy[2, 0] == 1.0
    assert read[1, 0] > read[2, 0]


def test_what_is_said_in_words_is_read_from_the_carrier_alone() -> None:
    """Component 0 is told from colours, too, but not in the directions of their words."""
    contributions, images, features = world()
    beside = torch.linalg.svd(torch.cat(list(features.values()))).Vh[5:8]
    values = torch.from_numpy(pd.factorize(images["colour"], sort=True)[0])
    contributions[:, 0] += 5.0 * beside[values]
    encoded = encode(Source.of_array(contributions))
    factors = Factors.of(images, ["colour", "shape"])
    found = moments(encoded, identity_maps(E))
    said = decodability_in_words(encoded, found, features, factors, seed=0)
    assert said[:, 0].argmax() == 1 and said[1, 0] > 0.9
    assert said[:, 1].argmax() == 3 and said[3, 1] > 0.9
    assert np.abs(said[[0, 3, 4], 0]).max() < 0.02
    alone = decodability(encoded, factors, seed=0)[0]
    assert alone[0, 0] > alone[1, 0]  # where all its directions are read it is the best


def test_decodability_in_words_is_that_of_mapped_contributions_by_hand() -> None:
    contributions, images, features = world(noise=1.0)
    encoded, factors = encode(Source.of_array(contributions)), Factors.of(images, ["colour"])
    maps = Maps("ridge", normal(C, E, E, seed=4), normal(E, seed=5))
    got = decodability_in_words(encoded, moments(encoded, maps), features, factors, seed=0)
    mapped = maps.apply(contributions) @ torch.linalg.qr(features["colour"].T).Q
    want = decodability(encode(Source.of_array(mapped)), factors, seed=0)[0]
    np.testing.assert_allclose(got[:4], want[:4], atol=1e-4)


def test_ablating_the_carrier_costs_most() -> None:
    found = ablation_loss(*planted(), seed=0)
    loss, margin, full = found.alone, found.margin, found.full
    assert full.min() > 0.97
    assert int(loss[:, 0].argmax()) == int(margin[:, 0].argmax()) == 1
    assert int(loss[:, 1].argmax()) == int(margin[:, 1].argmax()) == 3
    assert loss[1, 0] > 0.2
    assert abs(loss[3, 0]) < 0.02
    assert loss[4].tolist() == [0.0, 0.0]
    np.testing.assert_allclose(margin.sum(axis=0), margin[[1, 2, 3]].sum(axis=0), atol=0.02)


def test_loss_of_components_that_stand_in_for_each_other() -> None:
    """Two components say the same: neither is missed alone, both count where halves are ablated."""
    contributions, images, _ = world(noise=0.05)
    contributions[:, 0] = contributions[:, 1] + 0.05 * normal(N, E, seed=7)
    contributions[:, 2] = 0.05 * normal(N, E, seed=8)
    encoded = encode(Source.of_array(contributions))
    found = ablation_loss(encoded, Factors.of(images, ["colour", "shape"]), seed=0)
    assert found.full.min() == 1.0
    assert abs(found.alone[:2, 0]).max() < 0.02
    assert found.joint[:2, 0].min() > 0.2
    assert abs(found.joint[2:, 0]).max() < 0.05
    assert int(found.joint[:, 1].argmax()) == 3
    # Accuracy is 1 with either of the two, about 0.4 with none: each is missed in half the cases.
    without = 1 - 2 * found.joint[0, 0]
    assert 0.2 < without < 0.55


def test_joint_loss_is_the_mean_over_all_sets() -> None:
    """Against all 16 sets of the four components that vary."""
    contributions, images, _ = world(noise=0.6)
    encoded, factors = encode(Source.of_array(contributions)), Factors.of(images, ["colour"])
    values = contributions.double()
    wanted, accuracy = factors.one_hot(), {}
    for kept in itertools.product((0.0, 1.0), repeat=4):
        right = 0.0
        for train, test in folds(N, seed=0):
            reader, offset = linear_reader(values.sum(1)[train], wanted[train])
            mean = values[train].mean(0)
            shown = torch.tensor([*kept, 1.0]).double()[:, None]
            images_ = (mean + shown * (values[test] - mean)).sum(1)
            right += factors.correct(images_ @ reader + offset, test)[0]
        accuracy[kept] = right / N
    want = [
        np.mean([(1 if kept[c] else -1) * accuracy[kept] for kept in accuracy]) * 2
        for c in range(4)
    ]
    got = ablation_loss(encoded, factors, seed=0).joint[:4, 0]
    np.testing.assert_allclose(got, want, atol=0.02)


def test_loss_is_that_of_ablating_by_hand() -> None:
    """Against scikit-learn's ridge on representations from which the component was taken."""
    from sklearn.linear_model import Ridge

    encoded, factors = planted()
    contributions = world()[0].double().numpy()
    wanted, lost = factors.one_hot()[:, :3].numpy(), 0
    for train, test in folds(N, seed=0):
        whole = contributions.sum(axis=1)
        spread = ((whole[train] - whole[train].mean(0)) ** 2).sum() / E
        reader = Ridge(alpha=RIDGE * spread).fit(whole[train], wanted[train])
        part = contributions[:, 1]
        without = whole[test] - part[test] + part[train].mean(axis=0)
        for images, sign in ((whole[test], 1), (without, -1)):
            lost += sign * (reader.predict(images).argmax(1) == factors.codes[test, 0]).sum()
    assert ablation_loss(encoded, factors, seed=0).alone[1, 0] == pytest.approx(lost / N, abs=1e-9)


def clip_world(seed: int = 5):
    """Encoded contributions, moments, descriptors, and a CLIP that sees what two components say."""
    contributions, _, features = world()
    encoded = encode(Source.of_array(contributions))
    found = moments(encoded, identity_maps(E))
    clip = unit(contributions[:, 1] + contributions[:, 3] + 0.3 * normal(N, E, seed=seed))
    rankings = {name: (clip @ texts.T).numpy() for name, texts in features.items()}
    return encoded, found, features, rankings


def test_component_and_clip_rank_images_alike_where_they_see_the_same() -> None:
    orders = np.stack([np.arange(N), np.random.default_rng(0).permutation(N)])
    alike, shuffled = clip_agreement(*clip_world(), orders)
    assert alike[1, 0] > 0.6
    assert alike[3, 1] > 0.6
    assert abs(alike[0]).max() < 0.1
    assert alike[4].tolist() == [0.0, 0.0]
    assert abs(shuffled).max() < 0.1


def test_clip_agreement_by_scipy() -> None:
    from scipy.stats import spearmanr

    contributions, _, features = world()
    encoded, found, _, rankings = clip_world()
    order = np.random.default_rng(1).permutation(N)
    got = clip_agreement(encoded, found, features, rankings, np.stack([np.arange(N), order]))
    own = [(contributions[:, 1] @ text).numpy() for text in features["colour"]]
    for shuffle, index in enumerate((np.arange(N), order)):
        pairs = zip(own, rankings["colour"][index].T, strict=True)
        want = np.mean([spearmanr(*pair).statistic for pair in pairs])
        assert got[shuffle, 1, 0] == pytest.approx(want, abs=1e-3)


def test_table_of_truths_has_what_is_known() -> None:
    encoded, found, features, rankings = clip_world()
    images = world()[1]
    factors = Factors.of(images, ["shape"])
    asked = {"shuffles": 3, "seed": 0}
    table = truth_table(encoded, found, features, factors=factors, rankings=rankings, **asked)
    assert table["feature"].tolist() == ["colour"] * C + ["shape"] * C
    colour, shape = (table[table["feature"] == name] for name in ("colour", "shape"))
    assert colour["decodability"].isna().all()
    np.testing.assert_array_equal(
        shape["decodability"], decodability(encoded, factors, seed=0)[0][:, 0]
    )
    alike = clip_agreement(encoded, found, features, rankings, np.arange(N)[None])[0]
    np.testing.assert_array_equal(colour["clip"], alike[:, 0])
    np.testing.assert_array_equal(shape["clip"], alike[:, 1])
    assert [len(draws) for draws in table["clip_shuffled"]] == [3] * (2 * C)
    alone = truth_table(
        encoded, found, features, factors=Factors.of(images, []), rankings={}, **asked
    )
    assert alone.drop(columns=["feature", "component"]).isna().all(axis=None)


def test_only_what_a_data_set_adds_to_the_manifest_is_a_factor(
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = [column.name for column in TABLES["manifest"].columns]
    images = pd.DataFrame(columns=[*own, "colour", "place"])
    assert known_factors(images, ["texture", *own, "colour"]) == ["colour"]
    named = [record.args for record in caplog.records]
    assert named == [(name,) for name in own]
    assert "the concept 'width' has the name" in caplog.text


def test_bad_factors_are_named_together() -> None:
    images = pd.DataFrame({"a": ["x", "z", None], "b": ["y", "y", "y"], "c": ["p", "q", "p"]})
    with pytest.raises(DataError, match="'a' has missing values; 'b' has one value only"):
        Factors.of(images, ["a", "b", "c"])
    contributions, images, _ = world()
    with pytest.raises(DataError, match="too few for 5 folds"):
        decodability(
            encode(Source.of_array(contributions[:8])), Factors.of(images[:8], ["colour"]), seed=0
        )
