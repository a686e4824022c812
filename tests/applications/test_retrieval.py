"""Retrieval: metrics by hand, planted carriers found, ways chosen, leakage, bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from planted import (
    COLOURS,
    SCENES,
    SHAPES,
    WIDTH,
    ArrayDump,
    planted_dump,
    planted_scores,
    value_directions,
)
from sklearn.metrics import average_precision_score

import pipeline_lib.passes as passes
from pipeline_lib.errors import ArtifactError, DataError
from pipeline_lib.intervals import mean_interval
from pipeline_lib.maps import Maps, identity_maps
from pipeline_lib.retrieval import Asked, Retrieved, retrieve
from pipeline_lib.retrieval_metrics import (
    Found,
    average_precisions,
    metric_rows,
    precisions,
    ranking,
)
from pipeline_lib.retrieval_truth import choose_probes, label_neighbours, same_values
from pipeline_lib.retrieval_ways import (
    COMPONENTS,
    Texts,
    Visit,
    candidates,
    contrast,
    random_sets,
    rank_components,
    take_sums,
)

CARRIERS = {
    "shape": "blocks.2.attn/head1",
    "colour": "blocks.1.attn/head0",
    "scene": "blocks.0.attn/head1",
}
CLIP = identity_maps(WIDTH)
VALUES = {"shape": SHAPES, "colour": COLOURS, "scene": SCENES}
PUBLISHED = Asked(ks=(1, 5), queries=20, components=1)
CHOSEN = Asked(ks=(1, 5), queries=20, counts=(1, 2, 4))


def make_texts() -> pd.DataFrame:
    directions = value_directions()
    rows = [
        {"use": "concept", "feature": feature, "text": value, "embedding": directions[value]}
        for feature, values in VALUES.items()
        for value in values
    ]
    return pd.DataFrame(rows)


def split_of(dump: ArrayDump, split: str) -> np.ndarray:
    return np.flatnonzero(dump.manifest["split"] == split)


def found_in(
    dump: ArrayDump, asked: Asked, texts: pd.DataFrame | None = None, **options: object
) -> Retrieved:
    return retrieve(
        dump,
        options.pop("maps", CLIP),
        planted_scores(dump.components, options.pop("carriers", CARRIERS)),
        make_texts() if texts is None else texts,
        split_of(dump, "test"),
        split_of(dump, "val"),
        asked,
        **options,
    )


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
    assert ranking(similarity, 2).tolist() == [[0, 2], [3, 2]]
    assert precisions(ranks, relevant, 1).tolist() == [1.0, 0.0]
    assert precisions(ranks, relevant, 3) == pytest.approx([2 / 3, 1 / 3])
    assert ranking(similarity, 3, leave_out=np.array([0, 3])).tolist() == [[2, 3, 1], [2, 1, 0]]


def test_what_goes_wrong_in_a_piece_is_raised(dump: ArrayDump) -> None:
    def work(where: slice, coordinates: np.ndarray) -> None:
        raise ArtifactError("shard 3 is damaged")

    with pytest.raises(ArtifactError, match="shard 3"):
        passes.work_through(dump, np.arange(9), work)


def test_equal_similarities_stay_in_their_order() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 6, (20, 50)).astype(np.float32)
    values[0], values[1, 3] = 1.0, -np.inf
    wanted = np.argsort(-values, axis=1, kind="stable")
    assert (ranking(values, 50) == wanted).all()
    assert (ranking(values, 49) == wanted[:, :49]).all()


def test_mean_average_precision_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    similarity, relevant = rng.normal(size=(4, 60)), rng.random((4, 60)) < 0.2
    found = average_precisions(ranking(similarity, 60), relevant)
    pairs = zip(relevant, similarity, strict=True)
    assert found == pytest.approx([average_precision_score(t, s) for t, s in pairs])
    nothing = average_precisions(ranking(similarity, 60), np.zeros((4, 60), bool))
    assert np.isnan(nothing).all()


def test_rows_hold_the_mean_over_draws_its_interval_and_leave_the_probe_out() -> None:
    rng = np.random.default_rng(1)
    draws = [rng.normal(size=(8, 30)) for _ in range(2)]
    relevant, probes = rng.random((8, 30)) < 0.4, np.arange(8)
    relevant[probes, probes] = True
    row = metric_rows(("image", "a", "b", "m"), Found(draws, 3, probes), relevant, (5,))[0]
    values = [precisions(ranking(d, 5, leave_out=probes), relevant, 5) for d in draws]
    assert row["precision"] == pytest.approx(np.mean(values))
    assert (row["low"], row["high"]) == mean_interval(np.mean(values, axis=0))
    assert row["low"] < row["precision"] < row["high"]
    others = [np.delete(d[i], i) for d in draws for i in range(8)]
    truths = [np.delete(relevant[i], i) for _ in draws for i in range(8)]
    by_hand = [average_precision_score(t, s) for t, s in zip(truths, others, strict=True)]
    assert row["map"] == pytest.approx(np.mean(by_hand))


def test_sums_are_those_of_mapped_inner_products(dump: ArrayDump) -> None:
    rng = np.random.default_rng(0)
    count, width = dump.values.shape[1:]
    matrices = rng.normal(size=(count, width, 7)).astype(np.float32)
    vectors = rng.normal(size=(3, 7)).astype(np.float32)
    texts = Texts(matrices @ vectors.T, {"a": np.array([0, 2]), "b": np.array([1])})
    sets = {"a": [(1, 4), (3,)], "b": [(0, 2, 5)]}
    index = np.array([2, 4, 9])
    maps = Maps("ridge", torch.from_numpy(matrices), torch.ones(7))
    found = take_sums(dump, index, texts, sets, maps)
    for feature, some in sets.items():
        for one in some:
            mapped = sum(dump.values[index, c] @ matrices[c] for c in one)
            by_hand = mapped @ vectors[texts.columns[feature]].T
            np.testing.assert_allclose(found.products[feature, one], by_hand, rtol=1e-3, atol=1e-4)
    whole = np.einsum("ncd,cde->ne", dump.values[index], matrices) + 1
    np.testing.assert_allclose(found.mapped, whole, rtol=1e-3, atol=1e-4)


def test_cosines_by_hand_and_the_probe_finds_itself_first(dump: ArrayDump) -> None:
    index, chosen = split_of(dump, "test"), (2, 4)
    centre = dump.values.mean(axis=0)
    probes = dump.coordinates(index[:5])
    visit = Visit([(1,), chosen], dump.factors, probes, centre.ravel(), len(index))
    for start in range(0, len(index), 7):
        part = slice(start, min(start + 7, len(index)))
        visit.add(part, dump.coordinates(index[part]))
    rows = (dump.values[index] - centre)[:, chosen].sum(axis=1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = visit.similarity(chosen)
    np.testing.assert_allclose(found, rows[:5] @ rows.T, atol=1e-5)
    assert ranking(found, 1)[:, 0].tolist() == list(range(5))


def test_contrast_keeps_which_text_and_drops_how_much() -> None:
    products = np.array([[3.0, 1.0, 2.0], [6.0, 2.0, 4.0]])
    found = contrast(products + 5.0, np.zeros((4, 3)))
    np.testing.assert_allclose(found[0], np.array([1.0, -1.0, 0.0]) / np.sqrt(2))
    np.testing.assert_allclose(found[0], found[1])
    np.testing.assert_allclose(contrast(products, products[:1])[0], 0.0)


@pytest.mark.parametrize("asked", [PUBLISHED, CHOSEN], ids=["published", "chosen"])
def test_carriers_find_their_property_and_follow_no_other(dump: ArrayDump, asked: Asked) -> None:
    table = found_in(dump, asked).table
    for feature, values in VALUES.items():
        of = {"feature": feature, "measured": feature, "k": 5, "query": "text"}
        assert precision(table, method="components", **of) > 0.95
        chance = precision(table, method="chance", **of)
        assert chance == pytest.approx(1 / len(values))
        assert precision(table, method="random", **of) < chance + 0.35
        of["query"] = "image"
        assert precision(table, method="components", **of) > 0.95
        for other in set(VALUES) - {feature}:
            of["measured"] = other
            leak = precision(table, method="components", **of)
            assert leak < precision(table, method="chance", **of) + 0.15
            assert leak < precision(table, method="representation", **of)
    assert (table[table["query"] == "image"]["queries"] == 20).all()


def test_a_phrase_is_followed_in_the_property_asked_for_alone(dump: ArrayDump) -> None:
    table = found_in(dump, replace(CHOSEN, ks=(10,), queries=30)).table
    phrases = table[table["query"] == "phrase"]
    wide = {name for name, values in VALUES.items() if len(values) > 2}
    assert set(phrases["feature"]) == wide == {"shape", "colour"}
    for feature in wide:
        of = {"query": "phrase", "feature": feature, "k": 10}
        found = precision(table, measured=feature, method="components", **of)
        assert 0.95 < found > precision(table, measured=feature, method="representation", **of)
        for other in set(VALUES) - {feature}:
            leak = precision(table, measured=other, method="components", **of)
            assert leak < precision(table, measured=other, method="representation", **of)
            assert leak < precision(table, measured=other, method="chance", **of) + 0.15
    counts = phrases.groupby(["feature", "measured"])["queries"].first()
    for feature in wide:
        values = VALUES[feature]
        others = [counts[feature, name] for name in set(VALUES) - {feature}]
        pairs = len(values) * sum(len(VALUES[name]) for name in set(VALUES) - {feature})
        assert counts[feature, feature] == sum(others) == min(30, pairs)


def test_ways_are_chosen_on_other_images_and_all_are_recorded(dump: ArrayDump) -> None:
    found = found_in(dump, CHOSEN)
    choices = found.choices
    assert (choices["n"] == len(split_of(dump, "val"))).all()
    keys = ["query", "feature"]
    for key, part in choices.groupby(keys):
        best = part[part["chosen"]].iloc[0]
        assert part["chosen"].sum() == 1 and best["precision"] == part["precision"].max()
        used = found.table.set_index([*keys, "method"]).loc[(*key, "components"), "components"]
        assert set(used) == {best["components"]}
    assert set(choices["way"]) == {"sum", "subspace"}
    assert set(choices["by"]) == {"score", "margin"}
    assert found_in(dump, PUBLISHED).choices.empty


def test_where_nothing_can_be_chosen_it_is_the_published_way(
    dump: ArrayDump, caplog: pytest.LogCaptureFixture
) -> None:
    dump.manifest = dump.manifest.drop(columns=list(VALUES))
    dump.manifest["label"] = dump.manifest["image_id"]
    rng = np.random.default_rng(0)
    classes = pd.DataFrame({"use": "class", "feature": "label", "text": dump.manifest["label"]})
    classes["embedding"] = list(rng.normal(size=(len(classes), WIDTH)))
    texts = pd.concat([make_texts(), classes], ignore_index=True)
    with caplog.at_level("WARNING"):
        found = found_in(dump, CHOSEN, texts)
    assert caplog.text.count("nothing to choose a way on") == 1
    assert f"the published way, {COMPONENTS} components" in caplog.text
    choices = found.choices
    assert len(choices) == 2 * len(VALUES) and choices["chosen"].all()
    assert choices["precision"].isna().all() and (choices["queries"] == 0).all()
    assert set(zip(choices["way"], choices["by"], strict=True)) == {("sum", "score")}
    assert set(choices["components"]) == {COMPONENTS}
    assert set(found.table["measured"]) == {"label_neighbours"}
    given = found_in(dump, replace(CHOSEN, components=COMPONENTS), texts)
    pd.testing.assert_frame_equal(found.table, given.table)
    pd.testing.assert_frame_equal(found.examples, given.examples)


def test_the_subspace_tells_properties_apart_that_one_component_carries() -> None:
    carriers = {**CARRIERS, "shape": CARRIERS["colour"]}
    dump = planted_dump(240, carriers=carriers)
    found = found_in(dump, replace(CHOSEN, ks=(10,)), carriers=carriers)
    chosen = found.choices.query("query == 'image' and feature == 'shape' and chosen")
    assert chosen["way"].tolist() == ["subspace"]
    of = {"query": "image", "feature": "shape", "k": 10}
    assert precision(found.table, measured="shape", method="components", **of) > 0.95
    leak = precision(found.table, measured="colour", method="components", **of)
    assert leak < precision(found.table, measured="colour", method="chance", **of) + 0.15
    assert precision(found.table, measured="shape", method="representation", **of) < 0.9


def test_examples_are_the_first_images_without_the_probe(dump: ArrayDump) -> None:
    examples = found_in(dump, PUBLISHED).examples
    assert set(examples["method"]) == {"components", "representation"}
    first = examples[(examples["method"] == "components") & (examples["probe"] == "red")]
    assert first["rank"].tolist() == list(range(8))
    shown = dump.manifest.set_index("image_id").loc[first["image_id"], "colour"]
    assert (shown == "red").tolist() == first["correct"].tolist()
    assert not (examples["image_id"] == examples["probe"]).any()


def test_chance_is_the_share_of_other_images_with_the_value(dump: ArrayDump) -> None:
    values = dump.manifest["scene"].to_numpy()[split_of(dump, "test")]
    table = found_in(dump, Asked(ks=(1,), queries=len(values), components=1)).table
    by_hand = np.mean(
        [np.mean(np.delete(values, i) == values[i]) for i in range(len(values))], dtype=float
    )
    of = {"query": "image", "feature": "scene", "measured": "scene", "method": "chance"}
    assert precision(table, **of) == pytest.approx(by_hand)


def test_clip_is_a_baseline_of_its_own_space(dump: ArrayDump) -> None:
    texts, index = make_texts(), split_of(dump, "test")
    codes = np.eye(len(texts), dtype=np.float32)  # a CLIP that knows every property exactly
    place = {text: row for row, text in enumerate(texts["text"])}
    manifest = dump.manifest.iloc[index]
    images = sum(codes[[place[v] for v in manifest[name]]] for name in VALUES)
    clip = (images, texts.assign(embedding=list(codes)))
    table = found_in(dump, PUBLISHED, clip=clip).table
    own = table[(table["method"] == "clip") & (table["query"] == "text")]
    assert set(own["precision"]) == {1.0} and own["map"].tolist() == pytest.approx([1.0] * len(own))
    with pytest.raises(DataError, match=r"reference's texts lack 'circle'"):
        found_in(dump, PUBLISHED, clip=(images, texts.iloc[1:]))


def test_texts_without_an_image_are_not_judged(
    dump: ArrayDump, caplog: pytest.LogCaptureFixture
) -> None:
    texts = make_texts()
    texts.loc[texts["text"] == "red", "text"] = "mauve"
    with caplog.at_level("WARNING"):
        found = found_in(dump, PUBLISHED, texts)
    assert "no image has colour = mauve" in caplog.text
    part = found.table.query("query == 'text' and feature == 'colour' and method == 'components'")
    assert set(part["queries"]) == {len(COLOURS) - 1}
    assert "mauve" in set(found.examples["probe"])


def test_a_feature_without_a_column_is_shown_but_not_judged(dump: ArrayDump) -> None:
    dump.manifest = dump.manifest.drop(columns="scene")
    found = found_in(dump, CHOSEN)
    assert "scene" not in set(found.table[found.table["query"] == "text"]["feature"])
    assert found.examples[found.examples["feature"] == "scene"]["correct"].isna().all()


def test_a_feature_of_labels_is_judged_by_the_label(dump: ArrayDump) -> None:
    dump.manifest["label"] = dump.manifest["shape"]
    dump.manifest = dump.manifest.drop(columns=["shape"])
    of = {"query": "text", "feature": "shape", "measured": "label", "k": 5}
    assert precision(found_in(dump, PUBLISHED).table, method="components", **of) == 1.0


def test_a_column_of_the_manifest_itself_is_no_property(dump: ArrayDump) -> None:
    """A concept called width is searched for, and not judged by the width of the pictures."""
    dump.manifest = dump.manifest.assign(width=96).drop(columns="colour")
    texts = make_texts().replace({"feature": {"colour": "width"}})
    carriers = {name.replace("colour", "width"): carrier for name, carrier in CARRIERS.items()}
    found = found_in(dump, PUBLISHED, texts, carriers=carriers)
    assert set(found.table["measured"]) == {"shape", "scene"}
    assert "width" in set(found.examples["feature"])


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


@pytest.mark.parametrize("threads", [1, 3])
def test_pieces_of_a_pass_do_not_change_the_result(
    dump: ArrayDump, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = found_in(dump, CHOSEN)
    monkeypatch.setattr(passes.batches, "__defaults__", (1,))
    monkeypatch.setattr(passes, "get_num_threads", lambda: threads)
    pieces = found_in(dump, CHOSEN)
    pd.testing.assert_frame_equal(whole.table, pieces.table)
    pd.testing.assert_frame_equal(whole.choices, pieces.choices)


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


def test_candidates_are_prefixes_of_each_ranking(dump: ArrayDump) -> None:
    scores = planted_scores(dump.components, CARRIERS)
    found = candidates(scores, "shape", (1, 4, 99), ("sum",))
    assert [len(way.components) for way in found] == [1, 4, 10] * 2  # the bias is left out
    assert {way.by for way in found} == {"score", "margin"}
    assert all(found[2].components[: len(way.components)] == way.components for way in found[:3])


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
    with pytest.raises(DataError, match="no image to choose on; set `choose_split`"):
        retrieve(dump, CLIP, scores, make_texts(), np.arange(9), np.arange(0), CHOSEN)


def test_maps_of_another_model_are_refused(dump: ArrayDump) -> None:
    maps = Maps("ridge", torch.zeros(3, WIDTH, WIDTH), torch.zeros(WIDTH))
    with pytest.raises(ArtifactError, match=r"maps of shape \(3, .* not fit .* 11 components"):
        found_in(dump, PUBLISHED, maps=maps)
