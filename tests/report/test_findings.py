import dataclasses

import pandas as pd
import pytest

from pipeline_lib.report.findings import find_all, first_screen, specialists, with_published
from pipeline_lib.significance import add_margins


def with_table(run, **tables):
    return dataclasses.replace(run, tables=dict(run.tables) | tables)


def scores(*rows):
    """Rows of table `scores` with their margins, and intervals of two points."""
    columns = ["model", "component", "id", "kind", "feature", "score"]
    table = pd.DataFrame(rows, columns=columns)
    table = table.assign(low=table["score"] - 0.01, high=table["score"] + 0.01)
    parts = [add_margins(part) for _, part in table.groupby("model")]
    return pd.concat(parts, ignore_index=True)


def test_first_screen_has_three_findings_in_order(run):
    shown = [finding.section for finding in first_screen(find_all(run))]
    assert shown == ["scores", "spurious", "retrieval"]


def test_every_stage_of_a_full_run_has_a_finding(run):
    assert set(find_all(run)) == {
        "manifest", "features", "contributions", "maps", "scores",
        "ablation", "retrieval", "heatmaps", "segmentation", "spurious", "codes",
    }  # fmt: skip


def test_a_run_without_applications_falls_back(run):
    empty = {name: run[name].iloc[:0] for name in ("ablation", "retrieval", "heatmaps",
                                                   "segmentation", "spurious_summary")}  # fmt: skip
    shown = [finding.section for finding in first_screen(find_all(with_table(run, **empty)))]
    assert shown == ["scores", "maps"]


def test_the_specialist_is_the_one_with_the_largest_margin(run):
    table = scores(
        ("a", 0, "h0", "head", "colour", 0.9), ("a", 0, "h0", "head", "shape", 0.8),
        ("a", 1, "h1", "head", "colour", 0.1), ("a", 1, "h1", "head", "shape", 0.2),
        ("b", 0, "g0", "head", "colour", 0.5), ("b", 0, "g0", "head", "shape", 0.05),
        ("b", 1, "g1", "head", "colour", 0.4), ("b", 1, "g1", "head", "shape", 0.95),
    )  # fmt: skip
    best = specialists(table).set_index(["model", "feature"])
    assert best.loc[("b", "shape"), "margin"] == pytest.approx(0.55)
    assert best.loc[("a", "colour"), "other"] == 0.8
    text = find_all(with_table(run, scores=table))["scores"].text
    assert "g1" in text and "<b>95\u202f%</b>" in text and "<b>shape</b>" in text


def summary(*rows):
    columns = ["model", "method", "group", "gain", "gain_low", "gain_high"]
    return pd.DataFrame(rows, columns=columns).assign(components=3.0)


def test_a_loss_is_told_as_a_loss_beside_its_controls(run):
    table = summary(
        ("a", "full", "worst", 0.0, 0.0, 0.0),
        ("a", "ablated", "worst", -0.1, -0.2, -0.05), ("a", "ablated", "test", -0.05, -0.1, 0.1),
        ("a", "random", "worst", -0.02, -0.1, 0.1),
    )  # fmt: skip
    text = find_all(with_table(run, spurious_summary=table))["spurious"].text
    assert "<b>−10.0 points</b>" in text and "excludes zero in 1 of 1 model;" in text
    assert "test accuracy changes by −5.0 points" in text
    assert "random components change the worst group by −2.0 points" in text
    assert "3 components" in text


def test_a_gain_within_its_interval_is_not_counted(run):
    table = summary(
        ("a", "ablated", "worst", 0.1, -0.02, 0.2), ("b", "ablated", "worst", 0.3, 0.1, 0.4),
    )  # fmt: skip
    text = find_all(with_table(run, spurious_summary=table))["spurious"].text
    assert "<b>+20.0 points</b>" in text and "from +10.0 points (a) to +30.0 points (b)" in text
    assert "excludes zero in 1 of 2 models" in text


def test_the_best_other_way_to_search_is_named(run):
    ways = {"components": 0.6, "representation": 0.4, "random": 0.2, "subspace": 0.9, "chance": 1.0}
    base = {"model": "a", "query": "text", "feature": "x", "measured": "x", "k": 10}
    base["queries"] = 12
    table = pd.DataFrame([base | {"method": m, "precision": p} for m, p in ways.items()])
    text = find_all(with_table(run, retrieval=table))["retrieval"].text
    assert (
        "<b>60\u202f%</b>" in text
        and "90\u202f% for the next best way, subspace of its texts" in text
    )


def test_the_published_way_counts_where_it_was_chosen_too(run):
    """There it has no rows of its own; a mean over the other features would be another number."""
    rows = [
        ("x", "components", 0.9), ("x", "published", 0.5), ("x", "random", 0.1),
        ("y", "components", 0.7), ("y", "random", 0.3),
    ]  # fmt: skip
    base = {"model": "a", "query": "image", "k": 10, "queries": 12}
    table = pd.DataFrame(rows, columns=["feature", "method", "precision"]).assign(**base)
    table["measured"] = table["feature"]
    text = find_all(with_table(run, retrieval=table))["retrieval"].text
    assert "60\u202f% for the next best way, as published" in text
    assert "20\u202f% for as many random components" in text
    phrases = table[table["method"] != "published"].assign(query="phrase")
    filled = with_published(pd.concat([table, phrases]))
    assert set(filled.loc[filled["method"] == "published", "query"]) == {"image"}


def searched(*rows):
    """Rows of table `retrieval` of one model's components."""
    columns = ["query", "feature", "measured", "queries", "precision"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(model="a", k=10, method="components")


def test_what_is_no_property_or_rests_on_few_queries_is_no_finding(run):
    near = [("image", name, "label_neighbours", 50, 0.2) for name in ("x", "y")]
    few, enough = ("text", "x", "label", 9, 0.4), ("text", "x", "label", 10, 0.4)
    for rows in (near, [few], [*near, few]):
        assert "retrieval" not in find_all(with_table(run, retrieval=searched(*rows)))
    text = find_all(with_table(run, retrieval=searched(*near, enough)))["retrieval"].text
    assert text.startswith("Asked by text") and "<b>40\u202f%</b>" in text


def test_each_sentence_of_a_search_counts_its_own_features(run):
    pictures = [("image", name, name, 50, 0.5) for name in ("x", "y", "z")]
    texts = [("text", name, name, 6, 0.25) for name in ("x", "y")]
    text = find_all(with_table(run, retrieval=searched(*pictures, *texts)))["retrieval"].text
    first, second = text.split(" Asked by text: ")
    assert "on average over 3 features." in first
    assert second == "25\u202f%, over 2 features."


def test_segmentation_counts_wins_against_every_baseline(run):
    rows = [
        ("a", "decomposition", 0.5), ("a", "raw_attention", 0.4), ("a", "area", 0.6),
        ("b", "decomposition", 0.7), ("b", "raw_attention", 0.4), ("b", "area", 0.6),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["model", "method", "miou"]).assign(protocol="C")
    text = find_all(with_table(run, segmentation=table))["segmentation"].text
    assert "<b>60\u202f%</b>" in text and "in 1 of 2 models" in text


def test_texts_of_users_are_escaped_in_sentences(run):
    table = scores(("<i>m</i>", 0, "<b>id", "head", "<script>", 0.5))
    text = str(find_all(with_table(run, scores=table))["scores"].text)
    assert "<script>" not in text and "<i>" not in text and "&lt;script&gt;" in text
