"""Truths about components, and how scores are held against them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_lib.coordinates import Encoded, Source, encode
from pipeline_lib.errors import DataError
from pipeline_lib.maps import identity_maps, unit
from pipeline_lib.scores import moments, score_components, with_components
from pipeline_lib.validation import (
    RIDGE,
    Factors,
    _folds,
    ablation_loss,
    agreement,
    clip_agreement,
    decodability,
    spearman,
    truth_table,
    validation_table,
)

N, C, E = 600, 5, 12
VALUES = ("red", "green", "blue")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def world(noise: float = 0.3) -> tuple[torch.Tensor, pd.DataFrame, dict[str, torch.Tensor]]:
    """Component 1 carries colour, 2 a little of it, 3 carries shape; 4 is constant.

    The descriptors are unit vectors of two orthogonal subspaces.
    """
    generator = np.random.default_rng(0)
    images = pd.DataFrame(
        {"colour": generator.choice(VALUES, N), "shape": generator.choice(["star", "ring"], N)}
    )
    axes = torch.linalg.qr(normal(E, 5, seed=9)).Q.T
    colour = axes[torch.from_numpy(pd.factorize(images["colour"], sort=True)[0])]
    shape = axes[3 + torch.from_numpy(pd.factorize(images["shape"], sort=True)[0])]
    contributions = noise * normal(N, C, E, seed=1)
    contributions[:, 1] += 2.0 * colour
    contributions[:, 2] += 0.5 * colour
    contributions[:, 3] += 2.0 * shape
    contributions[:, 4] = 1.0
    return contributions, images, {"colour": axes[:3], "shape": axes[3:]}


def planted(noise: float = 0.3) -> tuple[Encoded, Factors]:
    contributions, images, _ = world(noise)
    return encode(Source.of_array(contributions)), Factors.of(images, ["colour", "shape"])


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


def test_ablating_the_carrier_costs_most() -> None:
    loss, margin, full = ablation_loss(*planted(), seed=0)
    assert full.min() > 0.97
    assert int(loss[:, 0].argmax()) == int(margin[:, 0].argmax()) == 1
    assert int(loss[:, 1].argmax()) == int(margin[:, 1].argmax()) == 3
    assert loss[1, 0] > 0.2
    assert abs(loss[3, 0]) < 0.02
    assert loss[4].tolist() == [0.0, 0.0]
    np.testing.assert_allclose(margin.sum(axis=0), margin[[1, 2, 3]].sum(axis=0), atol=0.02)


def test_loss_is_that_of_ablating_by_hand() -> None:
    """Against scikit-learn's ridge on representations from which the component was taken."""
    from sklearn.linear_model import Ridge

    encoded, factors = planted()
    contributions = world()[0].double().numpy()
    wanted, lost = factors.one_hot()[:, :3].numpy(), 0
    for train, test in _folds(N, seed=0):
        whole = contributions.sum(axis=1)
        spread = ((whole[train] - whole[train].mean(0)) ** 2).sum() / E
        reader = Ridge(alpha=RIDGE * spread).fit(whole[train], wanted[train])
        part = contributions[:, 1]
        without = whole[test] - part[test] + part[train].mean(axis=0)
        for images, sign in ((whole[test], 1), (without, -1)):
            lost += sign * (reader.predict(images).argmax(1) == factors.codes[test, 0]).sum()
    assert ablation_loss(encoded, factors, seed=0)[0][1, 0] == pytest.approx(lost / N, abs=1e-9)


def test_component_and_clip_rank_images_alike_where_they_see_the_same() -> None:
    contributions, _, features = world()
    encoded = encode(Source.of_array(contributions))
    found = moments(encoded, identity_maps(E))
    clip = unit(contributions[:, 1] + contributions[:, 3] + 0.3 * normal(N, E, seed=5))
    alike = clip_agreement(encoded, found, clip, features)
    assert alike[1, 0] > 0.6
    assert alike[3, 1] > 0.6
    assert abs(alike[0]).max() < 0.1
    assert alike[4].tolist() == [0.0, 0.0]
    order = np.random.default_rng(0).permutation(N)
    assert abs(clip_agreement(encoded, found, clip[order], features)).max() < 0.1


def test_clip_agreement_by_scipy() -> None:
    from scipy.stats import spearmanr

    contributions, _, features = world()
    encoded = encode(Source.of_array(contributions))
    clip = unit(normal(N, E, seed=5) + contributions[:, 1])
    got = clip_agreement(encoded, moments(encoded, identity_maps(E)), clip, features)
    texts = features["colour"]
    want = np.mean([spearmanr(contributions[:, 1] @ text, clip @ text).statistic for text in texts])
    assert got[1, 0] == pytest.approx(want, abs=1e-3)


def test_agreement_by_hand() -> None:
    score = np.array([0.5, 0.3, 0.2, 0.1])
    perfect = agreement(score, score**2, draws=50, seed=0)
    assert perfect["value"] == 1.0
    assert perfect["percentile"] == 1.0
    reverse = agreement(score, -score, draws=50, seed=0)
    assert reverse["value"] == -1.0
    assert reverse["percentile"] == 0.25
    assert agreement(score, np.ones(4), draws=50, seed=0)["value"] == 0.0


def test_spearman_of_a_constant_is_zero() -> None:
    assert spearman(np.ones(5), np.arange(5.0)) == 0.0


def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    contributions, images, features = world()
    encoded = encode(Source.of_array(contributions))
    components = pd.DataFrame({"component": range(C), "id": [f"c{i}" for i in range(C)]})
    components = components.assign(kind="head", layer=0, block=0, head=0)
    scores = score_components(moments(encoded, identity_maps(E)), features)
    truth = truth_table(encoded, Factors.of(images, ["colour", "shape"]), seed=0)
    return with_components(scores, components), truth


def test_validation_finds_the_carrier_and_random_scores_do_not() -> None:
    scores, truth = tables()
    truths = {
        name: truth.pivot(index="component", columns="feature", values=name)
        for name in ("decodability", "ablation_loss")
    }
    table = validation_table(scores, truths, images=N, draws=40, seed=0)
    rows = table.query("across == 'components' and score == 'score'").set_index(
        ["truth", "feature"]
    )
    assert (rows["percentile"] == 1.0).all()
    assert rows.loc[("decodability", "colour"), "top"] == "c1"
    assert rows.loc[("decodability", "shape"), "top"] == "c3"
    assert set(table["score"]) == {"score", "score_published", "variance_explained", "random"}
    assert (table["low"] <= table["value"] + 1e-9).all()
    assert len(table) == 2 * 4 * 2  # two features only: nothing across features
    again = validation_table(scores, truths, images=N, draws=40, seed=0)
    pd.testing.assert_frame_equal(table, again)


def test_across_features() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((6, 4))
    names = list("abcd")
    scores = pd.concat(
        pd.DataFrame({"feature": f, "component": range(6), "id": "x", "score": values[:, i]})
        for i, f in enumerate(names)
    ).assign(score_published=0.0, variance_explained=1.0)
    truth = pd.DataFrame(values**3, columns=names)
    table = validation_table(scores, {"clip": truth}, images=9, draws=20, seed=0)
    within = table.query("across == 'features'").set_index("score")["value"]
    assert within["score"] == 1.0
    assert within["score_published"] == 0.0
    assert abs(within["random"]) < 0.9


def test_bad_factors_are_named_together() -> None:
    images = pd.DataFrame({"a": ["x", "z", None], "b": ["y", "y", "y"], "c": ["p", "q", "p"]})
    with pytest.raises(DataError, match="'a' has missing values; 'b' has one value only"):
        Factors.of(images, ["a", "b", "c"])
    contributions, images, _ = world()
    with pytest.raises(DataError, match="too few for 5 folds"):
        decodability(
            encode(Source.of_array(contributions[:8])), Factors.of(images[:8], ["colour"]), seed=0
        )
