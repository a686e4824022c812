"""Retrieval: metrics by hand, planted carriers found, probes find themselves, bad input."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from planted import COLOURS, SCENES, SHAPES, WIDTH, ArrayDump, planted_scores, value_directions

import pipeline_lib.passes as passes
from pipeline_lib.errors import ArtifactError, DataError
from pipeline_lib.maps import Maps, identity_maps
from pipeline_lib.retrieval import (
    SearchSetting,
    by_image,
    by_text,
    choose_probes,
    image_similarity,
    label_neighbours,
    precision_at,
    random_sets,
    rank_components,
    ranking,
    retrieve,
    same_values,
    text_similarity,
)

CARRIERS = {
    "shape": "blocks.2.attn/head1",
    "colour": "blocks.1.attn/head0",
    "scene": "blocks.0.attn/head1",
}
CLIP = identity_maps(WIDTH)
VALUES = {"shape": SHAPES, "colour": COLOURS, "scene": SCENES}


def make_setting(dump: ArrayDump, count: int = 1) -> SearchSetting:
    scores = planted_scores(dump.components, CARRIERS)
    return SearchSetting(
        index=np.flatnonzero(dump.manifest["split"] == "test"),
        sets={name: rank_components(scores, name)[:count] for name in CARRIERS},
        random=random_sets(dump.components, count, draws=3, seed=0),
        ks=(1, 5),
    )


def make_texts() -> pd.DataFrame:
    directions = value_directions()
    rows = [
        {"feature": feature, "text": value, "embedding": directions[value]}
        for feature, values in VALUES.items()
        for value in values
    ]
    return pd.DataFrame(rows)


def precision(table: pd.DataFrame, **where: object) -> float:
    chosen = table
    for name, value in where.items():
        chosen = chosen[chosen[name] == value]
    assert len(chosen) == 1
    return float(chosen["precision"].iloc[0])


def test_precision_by_hand() -> None:
    similarity = np.array([[0.9, 0.1, 0.8, 0.7], [0.1, 0.2, 0.3, 0.4]])
    relevant = np.array([[True, False, False, True], [True, True, False, False]])
    ranks = ranking(similarity, 3)
    assert ranks.tolist() == [[0, 2, 3], [3, 2, 1]]
    assert precision_at(ranks, relevant, 1) == 0.5
    assert precision_at(ranks, relevant, 3) == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert ranking(similarity, 3, leave_out=np.array([0, 3])).tolist() == [[2, 3, 1], [2, 1, 0]]


def test_text_similarity_is_the_sum_of_mapped_inner_products(dump: ArrayDump) -> None:
    rng = np.random.default_rng(0)
    count, width = dump.values.shape[1:]
    matrices = rng.normal(size=(count, width, 7)).astype(np.float32)
    texts = rng.normal(size=(2, 7)).astype(np.float32)
    member = rng.random((3, count, 2)) < 0.5
    index = np.array([4, 9, 2])
    found = text_similarity(dump, index, matrices @ texts.T, member)
    for s in range(3):
        for t in range(2):
            for position, image in enumerate(index):
                chosen = np.flatnonzero(member[s, :, t])
                mapped = sum(dump.values[image, c] @ matrices[c] for c in chosen)
                assert found[s, t, position] == pytest.approx(float(mapped @ texts[t]), rel=1e-4)


def test_image_similarity_by_hand_and_the_probe_finds_itself_first(dump: ArrayDump) -> None:
    index = np.flatnonzero(dump.manifest["split"] == "test")
    chosen = np.array([2, 4])
    found = image_similarity(dump, index, np.arange(len(index)), [chosen])[0]
    part = dump.values[index][:, chosen].sum(axis=1)
    part = part - part.mean(axis=0)
    part /= np.linalg.norm(part, axis=1, keepdims=True)
    np.testing.assert_allclose(found, part @ part.T, atol=1e-5)
    assert ranking(found, 1)[:, 0].tolist() == list(range(len(index)))


def test_carriers_find_their_property_by_text(dump: ArrayDump) -> None:
    table, examples = by_text(dump, make_setting(dump), make_texts(), CLIP)
    for feature, values in VALUES.items():
        of = {"feature": feature, "k": 5, "query": "text"}
        assert precision(table, method="components", **of) == 1.0
        chance = precision(table, method="chance", **of)
        assert chance == pytest.approx(1 / len(values))
        assert precision(table, method="random", **of) < chance + 0.35
    assert set(table["measured"]) == set(VALUES)
    first = examples[(examples["method"] == "components") & (examples["probe"] == "red")]
    assert first["rank"].tolist() == list(range(8))
    shown = dump.manifest.set_index("image_id").loc[first["image_id"], "colour"]
    assert (shown == "red").tolist() == first["correct"].tolist()


def test_carriers_follow_the_asked_property_and_no_other(dump: ArrayDump) -> None:
    setting = make_setting(dump)
    manifest = dump.manifest.iloc[setting.index]
    probes = choose_probes(manifest, list(VALUES), 20, seed=0)
    relevant = same_values(manifest, list(VALUES), probes)
    table, examples = by_image(dump, setting, probes, relevant)
    for feature in VALUES:
        of = {"feature": feature, "k": 5, "query": "image"}
        assert precision(table, measured=feature, method="components", **of) > 0.95
        for other in set(VALUES) - {feature}:
            leak = precision(table, measured=other, method="components", **of)
            assert leak < precision(table, measured=other, method="chance", **of) + 0.15
            assert leak < precision(table, measured=other, method="representation", **of)
    assert (table["queries"] == 20).all()
    own = examples[examples["image_id"] == examples["probe"]]
    assert own.empty  # the probe is not among what it retrieves


def test_chance_is_the_share_of_other_images_with_the_value(dump: ArrayDump) -> None:
    setting = make_setting(dump)
    values = dump.manifest["scene"].to_numpy()[setting.index]
    table, _ = by_image(
        dump,
        setting,
        np.arange(len(values)),
        same_values(dump.manifest.iloc[setting.index], ["scene"], np.arange(len(values))),
    )
    by_hand = np.mean(
        [np.mean(np.delete(values, i) == values[i]) for i in range(len(values))], dtype=float
    )
    assert precision(
        table, feature="scene", measured="scene", method="chance", k=1
    ) == pytest.approx(by_hand)


def test_clip_is_a_baseline_of_its_own_space(dump: ArrayDump) -> None:
    setting = make_setting(dump)
    manifest = dump.manifest.iloc[setting.index]
    texts = make_texts()
    codes = np.eye(len(texts), dtype=np.float32)  # a CLIP that knows every property exactly
    images = sum(
        codes[[int(np.flatnonzero(texts["text"] == v)[0]) for v in manifest[name]]]
        for name in VALUES
    )
    table, _ = by_text(dump, setting, texts, CLIP, clip=(images, codes))
    assert set(table[table["method"] == "clip"]["precision"]) == {1.0}


def test_texts_without_an_image_are_not_judged(
    dump: ArrayDump, caplog: pytest.LogCaptureFixture
) -> None:
    texts = make_texts()
    texts.loc[texts["text"] == "red", "text"] = "mauve"
    with caplog.at_level("WARNING"):
        table, examples = by_text(dump, make_setting(dump), texts, CLIP)
    assert "no image has colour = mauve" in caplog.text
    colour = table[(table["feature"] == "colour") & (table["method"] == "components")]
    assert set(colour["queries"]) == {len(COLOURS) - 1}
    assert "mauve" in set(examples["probe"])


def test_a_feature_without_a_column_is_shown_but_not_judged(dump: ArrayDump) -> None:
    dump.manifest = dump.manifest.drop(columns="scene")
    table, examples = by_text(dump, make_setting(dump), make_texts(), CLIP)
    assert "scene" not in set(table["feature"])
    assert examples[examples["feature"] == "scene"]["correct"].isna().all()


def test_a_feature_of_labels_is_judged_by_the_label(dump: ArrayDump) -> None:
    dump.manifest["label"] = dump.manifest["shape"]
    dump.manifest = dump.manifest.drop(columns=["shape"])
    table, _ = by_text(dump, make_setting(dump), make_texts(), CLIP)
    of = {"feature": "shape", "measured": "label", "k": 5}
    assert precision(table, method="components", **of) == 1.0


def test_neighbours_of_labels_by_their_texts() -> None:
    angles = np.linspace(0, 3, 30)
    labels = [f"n{i}" for i in range(30)]
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    texts = pd.DataFrame({"use": "class", "text": labels, "embedding": list(vectors)})
    manifest = pd.DataFrame({"label": labels})
    found = label_neighbours(manifest, texts, np.array([0, 15]))
    assert found is not None
    assert np.flatnonzero(found[0]).tolist() == list(range(11))
    assert np.flatnonzero(found[1]).tolist() == list(range(10, 21))
    assert label_neighbours(pd.DataFrame({"label": ["n1", "n1"]}), texts, np.array([0])) is None
    assert label_neighbours(pd.DataFrame({"label": ["x"]}), texts, np.array([0])) is None


def test_everything_in_two_tables(dump: ArrayDump) -> None:
    texts = make_texts().assign(use="concept")
    scores = planted_scores(dump.components, CARRIERS)
    index = np.flatnonzero(dump.manifest["split"] == "test")
    options = {"components": 1, "ks": [1, 5], "queries": 10, "seed": 0}
    metrics, examples = retrieve(dump, CLIP, scores, texts, index, **options)
    assert set(metrics["query"]) == {"text", "image"}
    assert set(metrics["method"]) == {"components", "representation", "random", "chance"}
    assert set(examples["method"]) == {"components", "representation"}
    again = retrieve(dump, CLIP, scores, texts, index, **options)
    pd.testing.assert_frame_equal(metrics, again[0])
    with pytest.raises(DataError, match=r"reference's texts lack 'circle'"):
        retrieve(
            dump, CLIP, scores, texts, index, **options, clip=(np.eye(len(index)), texts.iloc[1:])
        )


def test_batches_do_not_change_the_result(dump: ArrayDump, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = make_setting(dump)
    probes = np.arange(5)
    relevant = same_values(dump.manifest.iloc[setting.index], list(VALUES), probes)
    whole = (
        by_image(dump, setting, probes, relevant)[0],
        by_text(dump, setting, make_texts(), CLIP)[0],
    )
    monkeypatch.setattr(passes.batches, "__defaults__", (1,))
    pieces = (
        by_image(dump, setting, probes, relevant)[0],
        by_text(dump, setting, make_texts(), CLIP)[0],
    )
    for one, other in zip(whole, pieces, strict=True):
        pd.testing.assert_frame_equal(one, other)


def test_margin_prefers_what_is_specific() -> None:
    components = planted_scores(
        pd.DataFrame(
            {
                "component": [0, 1, 2],
                "id": ["a", "b", "c"],
                "kind": ["head", "head", "bias"],
                "layer": 0,
                "block": 0,
                "head": 0,
            }
        ),
        {"shape": "a", "colour": "b"},
    )
    components["score"] = [0.8, 0.5, 9.0, 0.9, 0.1, 9.0]  # shape: a, b, bias; colour: a, b, bias
    assert rank_components(components, "shape").tolist() == [0, 1]
    assert rank_components(components, "shape", by="margin").tolist() == [1, 0]


def test_random_sets_leave_the_bias_out_and_follow_the_seed(dump: ArrayDump) -> None:
    sets = random_sets(dump.components, 10, draws=4, seed=1)
    assert (sets != 10).all()  # the bias
    assert (sets == random_sets(dump.components, 10, draws=4, seed=1)).all()
    with pytest.raises(DataError, match="11 components are asked for"):
        random_sets(dump.components, 11, draws=1, seed=1)


def test_unknown_properties_and_too_few_images(dump: ArrayDump) -> None:
    scores = planted_scores(dump.components, CARRIERS)
    with pytest.raises(DataError, match=r"no scores for property 'colr'; did you mean colour"):
        rank_components(scores, "colr")
    with pytest.raises(DataError, match=r"unknown property 'size'"):
        choose_probes(dump.manifest, ["size"], 3, seed=0)
    with pytest.raises(DataError, match=r"unknown property 'size'"):
        same_values(dump.manifest, ["size"], np.array([0]))
    with pytest.raises(DataError, match="9 images are asked for, but only 3"):
        ranking(np.zeros((1, 4)), 9, leave_out=np.array([0]))


def test_maps_of_another_model_are_refused(dump: ArrayDump) -> None:
    maps = Maps("ridge", torch.zeros(3, WIDTH, WIDTH), torch.zeros(WIDTH))
    with pytest.raises(ArtifactError, match=r"maps of shape \(3, .* not fit .* 11 components"):
        by_text(dump, make_setting(dump), make_texts(), maps)
