import dataclasses

import pandas as pd
import pytest

from pipeline_lib.report.findings import find_all, first_screen, specialists, spurious_change


def with_table(run, **tables):
    return dataclasses.replace(run, tables=dict(run.tables) | tables)


def scores(*rows):
    columns = ["model", "component", "id", "kind", "feature", "score"]
    return pd.DataFrame(rows, columns=columns)


def test_first_screen_has_three_findings_in_order(run):
    shown = [finding.section for finding in first_screen(find_all(run))]
    assert shown == ["scores", "spurious", "retrieval"]


def test_every_stage_of_a_full_run_has_a_finding(run):
    assert set(find_all(run)) == {
        "manifest", "features", "contributions", "maps", "scores",
        "ablation", "retrieval", "heatmaps", "segmentation", "spurious",
    }  # fmt: skip


def test_a_run_without_applications_falls_back(run):
    empty = {name: run[name].iloc[:0] for name in ("ablation", "retrieval", "heatmaps",
                                                   "segmentation", "spurious")}  # fmt: skip
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


def spurious(*rows):
    columns = ["model", "method", "draw", "group", "accuracy"]
    return pd.DataFrame(rows, columns=columns).assign(components=3, n=50)


def test_spurious_change_is_against_the_full_model_and_over_draws():
    table = spurious(
        ("a", "full", 0, "worst", 0.6), ("a", "ablated", 0, "worst", 0.7),
        ("a", "random", 0, "worst", 0.5), ("a", "random", 1, "worst", 0.6),
        ("a", "full", 0, "test", 0.9), ("a", "ablated", 0, "test", 0.2),
    )  # fmt: skip
    change = spurious_change(table, "worst")
    assert change.loc["a", "ablated"] == pytest.approx(0.1)
    assert change.loc["a", "random"] == pytest.approx(-0.05)


def test_a_loss_is_told_as_a_loss(run):
    table = spurious(
        ("a", "full", 0, "worst", 0.6), ("a", "ablated", 0, "worst", 0.5),
        ("a", "full", 0, "test", 0.9), ("a", "ablated", 0, "test", 0.85),
    )  # fmt: skip
    text = find_all(with_table(run, spurious=table))["spurious"].text
    assert "<b>−10.0 points</b>" in text
    assert "test accuracy changes by −5.0 points" in text
    assert "3 components" in text


def test_segmentation_counts_wins_against_every_baseline(run):
    rows = [
        ("a", "decomposition", 0.5), ("a", "raw_attention", 0.4), ("a", "area", 0.6),
        ("b", "decomposition", 0.7), ("b", "raw_attention", 0.4), ("b", "area", 0.6),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["model", "method", "miou"]).assign(protocol="C")
    text = find_all(with_table(run, segmentation=table))["segmentation"].text
    assert "<b>60\u202f%</b>" in text and "in 1 of 2" in text


def test_texts_of_users_are_escaped_in_sentences(run):
    table = scores(("<i>m</i>", 0, "<b>id", "head", "<script>", 0.5))
    text = str(find_all(with_table(run, scores=table))["scores"].text)
    assert "<script>" not in text and "<i>" not in text and "&lt;script&gt;" in text
