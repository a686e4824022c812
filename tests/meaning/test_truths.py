"""Truths about components: planted factors are told from the components that carry them."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from known_world import C, E, N, normal, planted, world
from scipy.stats import rankdata

from pipeline_lib.artifacts import TABLES, write_table
from pipeline_lib.coordinates import Source, encode
from pipeline_lib.errors import DataError
from pipeline_lib.maps import Maps, identity_maps, unit
from pipeline_lib.redraws import redraw
from pipeline_lib.scores import moments, score_components
from pipeline_lib.significance import redrawn_scores
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
from pipeline_lib.validation import confirmed_table, validation_table


def test_factor_is_decoded_from_the_component_that_carries_it() -> None:
    read, accuracy = (found[0] for found in decodability(*planted(), seed=0))
    assert accuracy[1, 0] > 0.99
    assert accuracy[3, 1] > 0.99
    assert read[1, 0] > 0.9
    assert abs(accuracy[0, 0] - 1 / 3) < 0.08
    assert abs(accuracy[3, 0] - 1 / 3) < 0.08
    assert abs(accuracy[4, 1] - 0.5) < 0.1
    assert read[0].max() < 0.02  # held out: a reader of noise reads nothing
    assert read[1, 0] > read[2, 0] > read[0, 0] + 0.1


def test_r2_tells_perfect_readers_apart() -> None:
    read, accuracy = (found[0] for found in decodability(*planted(noise=0.05), seed=0))
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
    said = decodability_in_words(encoded, found, features, factors, seed=0)[0]
    assert said[:, 0].argmax() == 1 and said[1, 0] > 0.9
    assert said[:, 1].argmax() == 3 and said[3, 1] > 0.9
    assert np.abs(said[[0, 3, 4], 0]).max() < 0.02
    alone = decodability(encoded, factors, seed=0)[0][0]
    assert alone[0, 0] > alone[1, 0]  # where all its directions are read it is the best


def test_decodability_in_words_is_that_of_mapped_contributions_by_hand() -> None:
    contributions, images, features = world(noise=1.0)
    encoded, factors = encode(Source.of_array(contributions)), Factors.of(images, ["colour"])
    maps = Maps("ridge", normal(C, E, E, seed=4), normal(E, seed=5))
    got = decodability_in_words(encoded, moments(encoded, maps), features, factors, seed=0)[0]
    mapped = maps.apply(contributions) @ torch.linalg.qr(features["colour"].T).Q
    want = decodability(encode(Source.of_array(mapped)), factors, seed=0)[0][0]
    np.testing.assert_allclose(got[:4], want[:4], atol=1e-4)


def test_ablating_the_carrier_costs_most() -> None:
    found = ablation_loss(*planted(), seed=0)
    loss, margin, full = found.alone[0], found.margin[0], found.full[0]
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
    (joint,) = found.joint
    assert abs(found.alone[0, :2, 0]).max() < 0.02
    assert joint[:2, 0].min() > 0.2
    assert abs(joint[2:, 0]).max() < 0.05
    assert int(joint[:, 1].argmax()) == 3
    # Accuracy is 1 with either of the two, about 0.4 with none: each is missed in half the cases.
    without = 1 - 2 * joint[0, 0]
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
    got = ablation_loss(encoded, factors, seed=0).joint[0, :4, 0]
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
    assert ablation_loss(encoded, factors, seed=0).alone[0, 1, 0] == pytest.approx(
        lost / N, abs=1e-9
    )


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
    alike, shuffled = clip_agreement(*clip_world(), orders)[0]
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
    got = clip_agreement(encoded, found, features, rankings, np.stack([np.arange(N), order]))[0]
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
    weights = redraw(N, 7, seed=0)
    known = {"factors": factors, "rankings": rankings, "weights": weights}
    table, drawn = truth_table(encoded, found, features, **known, **asked)
    assert table["feature"].tolist() == ["colour"] * C + ["shape"] * C
    colour, shape = (table[table["feature"] == name] for name in ("colour", "shape"))
    assert colour["decodability"].isna().all()
    np.testing.assert_allclose(
        shape["decodability"], decodability(encoded, factors, seed=0)[0][0, :, 0]
    )
    alike = clip_agreement(encoded, found, features, rankings, np.arange(N)[None])[0][0]
    np.testing.assert_array_equal(colour["clip"], alike[:, 0])
    np.testing.assert_array_equal(shape["clip"], alike[:, 1])
    assert [len(draws) for draws in table["clip_shuffled"]] == [3] * (2 * C)
    for name in ("decodability", "ablation_loss", "joint_loss", "margin_loss"):
        assert drawn.loc[colour.index, name].isna().all()
        again = np.stack(drawn.loc[shape.index, name])
        assert again.shape == (C, 7) and np.abs(again.T - shape[name].to_numpy()).max() < 0.2
    np.testing.assert_allclose(np.stack(drawn["clip"]).mean(axis=1), table["clip"], atol=0.1)
    alone, nothing = truth_table(
        encoded, found, features, factors=Factors.of(images, []), rankings={}, **asked
    )
    for one in (alone, nothing):
        assert one.drop(columns=["feature", "component"]).isna().all(axis=None)


def test_a_redraw_measures_as_images_that_are_there_twice() -> None:
    """Weights of 2 and 0 give what a data set gives whose readers are the same."""
    encoded, factors = planted(noise=0.6)
    weights = np.stack([np.ones(N), 2 * (np.arange(N) % 2)]).astype(np.uint8)
    read, accuracy = decodability(encoded, factors, seed=0, weights=weights)
    loss = ablation_loss(encoded, factors, seed=0, weights=weights)
    odd, right, missed = np.arange(1, N, 2), 0, 0.0
    wanted, values = factors.one_hot()[:, :3], torch.from_numpy(encoded.values).double()
    own = values[:, encoded.bases.slices[1]]
    for train, test in folds(N, seed=0):
        test = np.intersect1d(test, odd)
        reader, offset = linear_reader(own[train], wanted[train])
        told = own[test] @ reader + offset
        right += (told.argmax(1).numpy() == factors.codes[test, 0]).sum()
        missed += (wanted[test] - told).square().sum().item()
    assert accuracy[1, 1, 0] == pytest.approx(right / len(odd))
    spread = (wanted[odd] - wanted[odd].mean(0)).square().sum().item()
    assert read[1, 1, 0] == pytest.approx(1 - missed / spread)
    assert not np.allclose(loss.alone[0], loss.alone[1])
    both = ablation_loss(encoded, factors, seed=0, weights=3 * weights[:1])
    for name in ("alone", "joint", "margin", "full"):
        np.testing.assert_allclose(getattr(both, name)[0], getattr(loss, name)[0], atol=1e-6)


def test_a_value_that_few_images_have_leaves_no_redraw_without_numbers(tmp_path) -> None:
    """Redraws without the value have nothing to read; the tables are complete all the same."""
    contributions, images, features = world()
    rare = images.assign(shape=np.where(np.arange(N) < 2, "a", "b"))
    encoded = encode(Source.of_array(contributions))
    found, weights = moments(encoded, identity_maps(E)), redraw(N, 60, seed=0)
    assert (weights[:, :2].sum(axis=1) == 0).any()
    scores = score_components(found, features)
    factors = Factors.of(rare, ["shape"])
    known = {"factors": factors, "rankings": {}, "weights": weights}
    truths, drawn = truth_table(encoded, found, features, **known, shuffles=0, seed=0)
    drawn = redrawn_scores(encoded, found, features, weights).merge(drawn)
    shape = drawn[drawn["feature"] == "shape"]
    assert np.isfinite(np.stack(shape["decodability"])).all()
    table = confirmed_table(scores.assign(id="x"), truths, drawn)
    path = tmp_path / "confirmed.parquet"
    write_table("confirmed", table.assign(model="deit", dataset="world"), path)
    assert len(table) == 2
    both = validation_table(scores.assign(id="x"), truths, drawn, images=N, deals=5, seed=0)
    assert both[["value", "low", "high"]].notna().all(axis=None)


def test_agreement_in_a_redraw_is_the_correlation_of_ranks() -> None:
    encoded, found, features, rankings = clip_world()
    weights = redraw(N, 2, seed=4)
    whole, drawn = clip_agreement(encoded, found, features, rankings, np.arange(N)[None], weights)
    np.testing.assert_allclose(drawn[0], whole[0], atol=1e-5)
    own = (world()[0][:, 1] @ features["colour"].T).numpy()
    want = []
    for one, other in zip(own.T, rankings["colour"].T, strict=True):
        pair = [np.repeat(rankdata(values), weights[2]) for values in (one, other)]
        want.append(np.corrcoef(*pair)[0, 1])
    assert drawn[2, 1, 0] == pytest.approx(np.mean(want), abs=1e-3)


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
