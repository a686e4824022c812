"""Models side by side: planted depths and planted counterparts come out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.comparison import (
    COMPARED,
    compared_images,
    comparison_table,
    counterpart_table,
    patterns,
    similarity_table,
)


def scores(values: dict[str, list[float]], model: str = "deit") -> pd.DataFrame:
    """A model of a stem, two blocks of one head and one MLP each, and a bias."""
    facts = pd.DataFrame(
        {
            "component": range(6),
            "id": ["stem", "b0/head0", "b0/mlp", "b1/head0", "b1/mlp", "bias"],
            "kind": ["stem", "head", "mlp", "head", "mlp", "bias"],
            "layer": [-1, 0, 1, 2, 3, -1],
        }
    )
    parts = [facts.assign(feature=name, score=each) for name, each in values.items()]
    return pd.concat(parts, ignore_index=True).assign(model=model, dataset="world")


def test_comparison_by_hand() -> None:
    table = comparison_table(
        scores({"early": [1.0, 0.0, 0.0, 0, 0, 0], "late": [0, 0, 0, 0.75, 0.25, 0.0]})
    ).set_index("feature")
    early, late = table.loc["early"], table.loc["late"]
    assert (early["depth"], early["depth_spread"], early["carriers"]) == (0.0, 0.0, 1)
    depths = np.array([2 / 3, 1.0])
    mean = 0.75 * depths[0] + 0.25 * depths[1]
    assert late["depth"] == pytest.approx(mean)
    assert late["depth_spread"] == pytest.approx(
        np.sqrt(0.75 * (depths[0] - mean) ** 2 + 0.25 * (depths[1] - mean) ** 2)
    )
    assert (late["carriers"], late["carriers_share"], late["components"]) == (2, 2 / 5, 5)
    assert (late["top"], late["top_score"]) == ("b1/head0", 0.75)
    assert (late["heads"], late["mlps"]) == (0.75, 0.25)


def test_negative_scores_and_the_bias_weigh_nothing() -> None:
    table = comparison_table(scores({"odd": [-0.5, 0.0, 0.0, 0.0, 0.5, 9.0]}))
    assert (table["depth"].item(), table["mlps"].item()) == (1.0, 1.0)
    assert (table["carriers"].item(), table["components"].item()) == (1, 5)


def test_every_model_has_its_own_row() -> None:
    even = [0.2] * 5 + [0.0]
    both = pd.concat([scores({"a": even}), scores({"a": even}, model="clip")])
    assert comparison_table(both)["model"].tolist() == ["deit", "clip"]


def test_intervals_are_standard_errors_of_the_redraws() -> None:
    """By hand: two redraws in which the late head and the MLP behind it change places."""
    given = scores({"late": [0, 0, 0, 0.75, 0.25, 9.0]})
    drawn = pd.DataFrame(
        {
            "model": "deit",
            "dataset": "world",
            "feature": "late",
            "component": range(6)[::-1],
            "score": [[9.0, 1.0], [0.25, 0.95], [0.75, 0.05], [0, 0], [-1, 0], [0, 0]],
        }
    )
    table = comparison_table(given, drawn).iloc[0]
    mean = 0.75 * 2 / 3 + 0.25
    error = 1.96 * np.std([mean, 0.05 * 2 / 3 + 0.95], ddof=1)
    assert table["depth"] == pytest.approx(mean)
    assert table["depth_low"] == pytest.approx(mean - error)
    assert table["depth_high"] == 1.0 < mean + error
    assert table["carriers"] == 2
    assert table["carriers_high"] - 2 == pytest.approx(1.96 * np.std([2, 1], ddof=1))
    assert table["carriers_low"] == 1.0
    without = comparison_table(given).iloc[0]
    assert without[["depth_low", "depth_high", "carriers_low", "carriers_high"]].isna().all()
    assert without["depth"] == table["depth"]


def test_depths_of_a_world_lie_within_the_intervals_of_its_samples() -> None:
    """Scores of redraws scatter as those of new samples do, so most intervals hold the truth."""
    rng, truth = np.random.default_rng(0), np.array([0.1, 0.3, 0.1, 0.3, 0.2])
    inside = []
    for _ in range(60):
        sample = truth + 0.05 * rng.normal(size=5)
        redrawn = sample + 0.05 * rng.normal(size=(100, 5))
        lists = [*redrawn.T.tolist(), [0.0] * 100]
        drawn = scores({"a": [0.0] * 6}).assign(score=lists)
        row = comparison_table(scores({"a": [*sample, 0.0]}), drawn).iloc[0]
        depth = truth @ np.array([0, 0, 1 / 3, 2 / 3, 1])
        inside.append(row["depth_low"] <= depth <= row["depth_high"])
    assert 0.85 <= np.mean(inside) < 1.0


def seen(values: np.ndarray) -> np.ndarray:
    """Patterns of contributions in memory."""
    return patterns(lambda components: values[:, list(components)], *values.shape[1:])


def test_a_turned_copy_is_the_counterpart_in_a_wider_model() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(60, 3, 6)), rng.normal(size=(60, 3, 9))
    turn = np.linalg.qr(rng.normal(size=(9, 9)))[0][:6]
    other[:, 2] = 5 * one[:, 0] @ turn + 3  # turned, scaled and shifted: the same geometry
    names = {"a": ["a0", "a1", "a2"], "b": ["b0", "b1", "b2"]}
    table = counterpart_table({"a": seen(one), "b": seen(other)}, names)
    across = table.query("model == 'a' and other_model == 'b'")
    assert across["other_id"].iloc[0] == "b2"
    assert across["similarity"].iloc[0] == pytest.approx(1.0, abs=1e-5)
    assert (across["similarity"].iloc[1:].abs() < 0.3).all()
    own = table.query("model == other_model")
    assert (own["id"] != own["other_id"]).all() and len(table) == 12


def test_similarity_is_centred_kernel_alignment() -> None:
    """Against HSIC written out over quadruples as Song et al. define it, on few images."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(8, 2, 4))
    values[:, 1] += values[:, 0]

    def hsic(one: np.ndarray, other: np.ndarray) -> float:
        k, m = one @ one.T, other @ other.T
        np.fill_diagonal(k, 0.0)
        np.fill_diagonal(m, 0.0)
        n = len(k)
        middle = k.sum() * m.sum() / ((n - 1) * (n - 2))
        return ((k @ m).trace() + middle - 2 * (k @ m).sum() / (n - 2)) / (n * (n - 3))

    centred = values - values.mean(axis=0)
    a, b = centred[:, 0], centred[:, 1]
    want = hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b))
    found = seen(values)
    assert found[0] @ found[1] == pytest.approx(want, rel=1e-5)


def test_every_pair_of_a_model_stands_once_with_its_similarity() -> None:
    """A head that is a turned copy of another is like it alone, in a model of its own."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(60, 4, 6)), rng.normal(size=(60, 2, 6))
    one[:, 3] = -2 * one[:, 1] @ np.linalg.qr(rng.normal(size=(6, 6)))[0] + 1
    one[:, 2] = 5.0  # constant: alike to nothing
    names = {"a": ["a0", "a1", "a2", "a3"], "b": ["b0", "b1"]}
    table = similarity_table({"a": seen(one), "b": seen(other)}, names)
    pairs = list(zip(table["model"], table["id"], table["other_id"], strict=True))
    assert pairs == [("a", "a0", "a1"), ("a", "a0", "a3"), ("a", "a1", "a3"), ("b", "b0", "b1")]
    assert table["similarity"].iloc[2] == pytest.approx(1.0, abs=1e-5)
    assert (table["similarity"].drop(index=table.index[2]).abs() < 0.3).all()
    own = seen(one) @ seen(one).T
    np.testing.assert_allclose(table["similarity"][:3], own[[0, 0, 1], [1, 3, 3]], rtol=1e-5)


def test_a_run_of_one_model_has_its_own_pairs_and_counterparts() -> None:
    values = {"a": seen(np.random.default_rng(1).normal(size=(20, 3, 4)))}
    alike = similarity_table(values, {"a": ["x", "y", "z"]})
    near = counterpart_table(values, {"a": ["x", "y", "z"]})
    assert len(alike) == 3 and near["id"].tolist() == ["x", "y", "z"]
    assert near["similarity"].max() == pytest.approx(alike["similarity"].max())


def test_without_images_enough_there_is_no_pair() -> None:
    write = pd.DataFrame(similarity_table({}, {})).assign(dataset="world")
    assert write.empty and {"model", "other_id", "similarity"} <= set(write)


def test_constant_components_have_no_counterpart() -> None:
    values = np.random.default_rng(1).normal(size=(20, 2, 4))
    values[:, 1] = 7.0
    table = counterpart_table({"a": seen(values), "b": seen(values)}, dict.fromkeys("ab", "xy"))
    assert set(table["component"]) == {0}
    assert set(table.query("model != other_model")["other_component"]) == {0}


def test_images_are_compared_in_even_runs() -> None:
    assert compared_images(30).tolist() == list(range(30))
    chosen = compared_images(100_000)
    assert len(chosen) == COMPARED and (chosen[0], chosen[-1]) == (0, 99_999)
    assert (np.diff(chosen) == 1).sum() == COMPARED - 8


def test_what_a_map_drops_has_no_say() -> None:
    rng = np.random.default_rng(5)
    shared = rng.normal(size=(60, 2, 3))  # what two components say, the same in both models
    noise = 9 * rng.normal(size=(2, 60, 2, 3))  # and what each adds that its map does not read
    one, other = (np.concatenate([shared, own], axis=-1) for own in noise)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    names = {"a": ["x", "y"], "b": ["x", "y"]}

    def similarity(maps: tuple[np.ndarray, np.ndarray]) -> pd.Series:
        found = {"a": seen(one @ maps[0]), "b": seen(other[:, ::-1] @ maps[1])}
        table = counterpart_table(found, names).query("model == 'a' and other_model == 'b'")
        return table["similarity"].where(table["id"] != table["other_id"], 0.0)  # order is turned

    read = np.eye(6)[:, :3]
    assert (similarity((read, read @ turn[:3])) > 0.999).all()
    assert not (similarity((np.eye(6), turn)) > 0.5).any()
