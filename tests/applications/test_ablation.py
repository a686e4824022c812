"""Ablation curves: their ends, hand computations, planted carriers, bad splits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from planted import SHAPES, ArrayDump, planted_dump, value_directions
from scipy.stats import binomtest

import pipeline_lib.passes as passes
from pipeline_lib.ablation import (
    Task,
    ablation_curves,
    ablation_table,
    make_task,
    mean_ablate,
    targets_of,
    with_intervals,
)
from pipeline_lib.ablation_plan import group_by_layer
from pipeline_lib.classify import Head, LinearClassifier, fit_probe
from pipeline_lib.errors import DataError
from pipeline_lib.passes import images_of_split, mean_contributions


@pytest.fixture
def probe(dump: ArrayDump) -> LinearClassifier:
    train = images_of_split(dump.manifest, "train", ["shape"])
    return fit_probe(dump.representation(train), dump.manifest["shape"].to_numpy()[train])


def curves(dump: ArrayDump, probe: LinearClassifier):
    test = images_of_split(dump.manifest, "test", ["shape"])
    train = images_of_split(dump.manifest, "train")
    shapes = dump.manifest["shape"].to_numpy()
    task = Task("shape", probe, test, shapes[test], train, shapes[train])
    return ablation_curves(dump, [task]), test, train, shapes[test]


def test_ends_are_the_full_model_and_a_constant(dump: ArrayDump, probe: LinearClassifier) -> None:
    table, test, train, labels = curves(dump, probe)
    truth = probe.encode(labels)
    full = probe.accuracy(probe.logits(dump.representation(test)), truth)
    constant = probe.predict(probe.logits(mean_contributions(dump, train).sum(axis=0)))
    steps = {"from_input": 7, "from_output": 7, "random": 7, "by_effect": len(dump.components)}
    for curve, last in steps.items():  # seven: stem and bias, six layers
        rows = table[table["curve"] == curve].sort_values("step")
        assert rows["accuracy"].iloc[0] == full == 1.0
        assert rows["accuracy"].iloc[-1] == np.mean(truth == constant)
        assert rows["step"].tolist() == list(range(last + 1))
    assert (table["n"] == len(test)).all()


def test_every_step_equals_mean_ablation_done_the_long_way(
    dump: ArrayDump, probe: LinearClassifier
) -> None:
    table, test, train, labels = curves(dump, probe)
    truth, means = probe.encode(labels), mean_contributions(dump, train)
    groups = group_by_layer(dump.components)

    def slow(ablated: np.ndarray) -> float:
        return probe.accuracy(probe.logits(mean_ablate(dump.values[test], means, ~ablated)), truth)

    for curve, order in (("from_input", groups.member), ("from_output", groups.member[::-1])):
        rows = table[table["curve"] == curve].set_index("step")["accuracy"]
        for step in range(1, len(order) + 1):
            assert rows[step] == slow(order[:step].any(axis=0))
    for curve, kind in (("all_mlp", "mlp"), ("all_attention", "head")):
        row = table[table["curve"] == curve].iloc[0]
        assert row["accuracy"] == slow((dump.components["kind"] == kind).to_numpy())
        assert row["step"] == (dump.components["kind"] == kind).sum()
    single = table[table["curve"] == "single"].set_index("ablated")["accuracy"]
    for row in dump.components.itertuples():
        assert single[row.id] == slow((dump.components["component"] == row.component).to_numpy())


def test_only_the_carrier_costs_accuracy(dump: ArrayDump, probe: LinearClassifier) -> None:
    table, *_ = curves(dump, probe)
    single = table[table["curve"] == "single"].set_index("ablated")["accuracy"]
    assert single.idxmin() == "blocks.2.attn/head1"
    assert single.min() < 0.6
    assert single.drop("blocks.2.attn/head1").min() == 1.0


def test_the_carrier_has_the_largest_effect_on_the_reference_images(
    dump: ArrayDump, probe: LinearClassifier
) -> None:
    table, test, train, labels = curves(dump, probe)
    ranked = table[table["curve"] == "by_effect"].set_index("step")
    assert ranked["ablated"][1] == "blocks.2.attn/head1"
    means, truth = mean_contributions(dump, train), probe.encode(labels)
    known = probe.encode(dump.manifest["shape"].to_numpy()[train])
    shares = (dump.values[train] - means) @ probe.weight.T
    effect = np.take_along_axis(shares, known[:, None, None], axis=2).mean(axis=(0, 2))
    ids = dump.components["id"].to_numpy()[np.argsort(-effect)]
    assert ranked["ablated"].tolist()[1:] == ids.tolist()
    keep = ~dump.components["id"].isin(ids[:2]).to_numpy()
    two = probe.logits(mean_ablate(dump.values[test], means, keep))
    assert ranked["accuracy"][2] == probe.accuracy(two, truth)


def test_tasks_share_one_pass_and_one_too_large_takes_a_second(dump: ArrayDump) -> None:
    reads: list[int] = []
    read = dump.coordinates
    dump.coordinates = lambda index: (  # type: ignore[method-assign]
        reads.extend(index.tolist()) or read(index)
    )
    names = ["shape", "scene", "colour"]
    once = ablation_table(dump, names)
    wanted = dump.manifest.index[dump.manifest["split"] != "val"]
    assert reads == wanted.tolist()
    apart = pd.concat([ablation_table(dump, [name]) for name in names], ignore_index=True)
    pd.testing.assert_frame_equal(once, apart)
    tasks = [make_task(dump, name, "probe", "test", "train", None, None) for name in names]
    reads.clear()
    twice = ablation_curves(dump, tasks, kept_bytes=tasks[0].kept_bytes(len(dump.components)))
    pd.testing.assert_frame_equal(once, twice)
    assert len(reads) == len(wanted) + 2 * len(tasks[0].index)


def test_layers_are_named_from_the_input_with_the_bias_first(dump: ArrayDump) -> None:
    groups = group_by_layer(dump.components)
    assert groups.names[0] == "stem and bias"
    assert groups.names[1] == "layer 0 (blocks.0.attn)"
    assert groups.names[-1] == "layer 5 (blocks.2.mlp)"
    assert (groups.member.sum(axis=0) == 1).all()


def test_small_batches_give_the_same_and_bound_the_memory(
    dump: ArrayDump, probe: LinearClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, *_ = curves(dump, probe)
    dump.largest_batch = 0
    monkeypatch.setattr(passes.batches, "__defaults__", (7 * 4 * dump.values[0].size,))
    pieces, *_ = curves(dump, probe)
    assert dump.largest_batch == 7
    assert whole.equals(pieces)


def test_the_same_seed_gives_the_same_table(dump: ArrayDump, probe: LinearClassifier) -> None:
    assert curves(dump, probe)[0].equals(curves(dump, probe)[0])


def test_targets_are_the_label_and_the_features_with_columns_of_their_own(
    dump: ArrayDump, caplog: pytest.LogCaptureFixture
) -> None:
    concepts = {"shape": list(SHAPES), "scene": ["water"], "mood": ["calm"]}
    assert targets_of(dump.manifest, concepts) == ["label", "shape"]
    assert "scene has values that are no descriptors" in caplog.text
    dump.manifest["label"] = dump.manifest["shape"]  # asked once, not twice
    assert targets_of(dump.manifest, concepts) == ["label"]
    with pytest.raises(DataError, match="no labels"):
        targets_of(dump.manifest.drop(columns=["label"]), {"mood": ["calm"]})


def test_each_target_gets_a_classifier_of_its_own(dump: ArrayDump) -> None:
    directions = value_directions()
    names = (*SHAPES, "round", "edged")
    weight = np.stack([directions.get(name, directions["red"]) for name in names])
    head = Head(weight, -weight @ dump.values.sum(axis=1).mean(axis=0), names)
    table = ablation_table(dump, ["shape", "scene"], head=head)
    assert set(zip(table["target"], table["classifier"], strict=True)) == {
        ("shape", "own"),
        ("scene", "probe"),
    }
    full = table[table["curve"] == "none"].set_index("target")["accuracy"]
    assert full.tolist() == [1.0, 1.0]
    everything = ablation_table(dump, ["scene"], split=None, reference_split=None)
    assert set(everything["n"]) == {dump.n}


def test_splits_that_are_not_there(dump: ArrayDump) -> None:
    with pytest.raises(DataError, match=r"no image in split 'dev'; its splits are"):
        images_of_split(dump.manifest, "dev")
    with pytest.raises(DataError, match=r"no column 'colr'; did you mean colour"):
        images_of_split(dump.manifest, "test", ["colr"])
    dump.manifest["shape"] = None
    with pytest.raises(DataError, match="no image of split 'test' has a value"):
        images_of_split(dump.manifest, "test", ["shape"])


def test_images_without_a_label_are_left_out() -> None:
    dump = planted_dump(40)
    dump.manifest.loc[0, "shape"] = None
    within = images_of_split(dump.manifest, "test")
    assert images_of_split(dump.manifest, "test", ["shape"]).tolist() == within[1:].tolist()


def test_intervals_are_those_of_scipy() -> None:
    rows = [(0.0, 20), (0.3, 20), (1.0, 20), (97 / 194, 194)]
    table = with_intervals(pd.DataFrame(rows, columns=["accuracy", "n"]))
    for row in table.itertuples():
        known = binomtest(round(row.accuracy * row.n), row.n).proportion_ci(method="wilson")
        assert (row.low, row.high) == pytest.approx((known.low, known.high), abs=1e-6)


def test_the_mean_of_no_image_is_refused(dump: ArrayDump) -> None:
    with pytest.raises(DataError, match="reference split is empty"):
        mean_contributions(dump, np.array([], dtype=int))
