"""The page of the validation says what the tables say, the bad with the good."""

from __future__ import annotations

import pandas as pd
import pytest

from pipeline_lib.labelling import METHOD_NAMES
from pipeline_lib.validation import CONFIRMING, VERDICTS
from pipeline_lib.validation_page import validation_page

MADE = {"command": "make it", "date": "2026-01-02", "machine": "a machine", "run": "try"}
MADE |= {"kinship": " A was started from B.", "method": "textspan"}


def confirmed() -> pd.DataFrame:
    rows = [
        ("clip", "score", 1.0, True, False),
        ("clip", "score_published", 1.0, True, True),
        ("deit", "score", 0.6, False, False),
        ("deit", "score_published", 0.6, False, True),
    ]
    columns = ["model", "by", "joint_loss_percentile", "confirmed_jointly", "confirmed_in_words"]
    table = pd.DataFrame(rows, columns=columns).assign(feature="colour", top="b1/head0", score=0.5)
    table = table.assign(decodability_value=0.75, ablation_loss_value=0.0, joint_loss_value=0.2)
    table = table.assign(
        **{f"{name}_{end}": 0.5 for name in CONFIRMING for end in ("low", "high")},
        **{f"confirmed{end}_share": 0.125 for end in VERDICTS},
    )
    return table.assign(
        decodability_percentile=1.0,
        ablation_loss_percentile=1.0,
        decodability_in_words_value=0.05,
        decodability_in_words_percentile=0.95,
        confirmed=False,
        components=20,
        candidates=0,
        candidates_jointly=[1, 1, 0, 0],
        candidates_in_words=2,
    )


def validation() -> pd.DataFrame:
    rows = [
        (model, truth, "components", feature, score, 0.25 if score == "score" else 0.0)
        for model in ("clip", "deit")
        for truth in ("decodability", "clip_shuffled")
        for feature in ("colour", "")
        for score in ("score", "score_published", "variance_explained", "random")
    ]
    columns = ["model", "truth", "across", "feature", "score", "value"]
    return pd.DataFrame(rows, columns=columns).assign(low=-0.5, high=0.5, n=123)


def tables() -> dict[str, pd.DataFrame]:
    shuffled = {"clip_shuffled": [[0.01, -0.08]] * 2, "model": ["clip", "deit"]}
    metrics = {"model": "deit", "method": "ridge", "chosen": True, "split": "heldout", "n": 9}
    label = {"model": "deit", "component": 0, "rank": 0, "strength": 1.0, "cumulative": 0.4}
    label |= {"cumulative_heldout": 0.3, "cumulative_random": 0.2, "cumulative_pca": 0.6}
    label |= {"cumulative_random_texts": 0.35}
    rebuilt = [("texts", -1, 0.9), ("texts", 1, 0.7), ("random", 1, 0.5), ("pca", 1, 0.8)]
    rebuilt += [("random_texts", 1, 0.6)]
    return {
        "confirmed": confirmed(),
        "validation": validation(),
        "truth": pd.DataFrame(shuffled),
        "map_metrics": pd.DataFrame([metrics]).assign(
            cosine=0.8,
            recall_at_1=0.5,
            recall_at_5=0.7,
            seconds=1.0,
            **dict.fromkeys(("cosine_low", "recall_at_1_low", "recall_at_5_low"), 0.25),
            **dict.fromkeys(("cosine_high", "recall_at_1_high", "recall_at_5_high"), 0.875),
        ),
        "labels": pd.DataFrame([label, label | {"component": 1, "strength": 0.0}]),
        "reconstruction": pd.DataFrame(rebuilt, columns=["directions", "texts", "accuracy"]).assign(
            model="deit", replaced="heads", feature="colour"
        ),
    }


def test_good_and_bad_results_are_on_the_page() -> None:
    page = validation_page(tables(), MADE)
    assert "Made by `make it` on 2026-01-02 (a machine) from the run `try`: 123 images" in page
    nothing, half, whole = "0 of 2 (no model)", "1 of 2 (clip)", "2 of 2 (clip, deit)"
    assert f"| score | {nothing} | {half} | {nothing} |" in page
    assert f"| score, published form | {nothing} | {half} | {whole} |" in page
    assert f"| any component | {nothing} | {half} | {whole} |" in page
    ends = "[0.500, 0.500]"
    first = f"| clip | colour | `b1/head0` | 0.50 | 0.750 {ends} (1 of 20) | 0.000 {ends} (1 of 20)"
    others = f"| 0.200 {ends} (1 of 20) | 0.050 {ends} (2 of 20)"
    no, yes = "**no** (12%)", "yes (12%)"
    assert f"{first} {others} | {no} | {yes} | {no} |" in page
    assert page.index(f"{first} {others} | {no} | {yes} | {yes} |") > (
        page.index("### First by score, published form")
    )
    assert f"| 0.200 {ends} (9 of 20) | 0.050 {ends} (2 of 20) | {no} | {no} | {yes} |" in page
    assert "not fitted anew. A was started from B." in page
    assert "| clip | decodability | score | 0.25 [-0.50, 0.50] |" in page
    assert "| clip | decodability | dealt at random | 0.00 [-0.50, 0.50] |" in page
    assert "| deit | decodability | between | 0.25 [-0.50, 0.50] | 0.00 [-0.50, 0.50] |" in page
    assert "| 0.25 [-0.50, 0.50] |  | 0.035 | 0.045 | 50.0% |" in page
    assert (
        "| deit | ridge | chosen | held out | 9 | 0.800 [0.250, 0.875] | 0.500 [0.250, 0.875] |"
        in page
    )
    assert "| held out | random texts | random vectors | principal components |" in page
    assert "| deit | 2 | 1.0 | 0.40 | 0.30 | 0.35 | 0.20 | 0.60 |" in page
    shares = {"texts": 0.7, "random texts": 0.6, "random vectors": 0.5}
    for kind, share in (shares | {"principal components": 0.8}).items():
        assert f"| deit | heads | {kind} | {share:.3f} | 0.900 |" in page


def test_what_a_reference_of_embeddings_alone_lacks_is_empty_and_no_zero() -> None:
    given = tables()
    given["labels"]["cumulative_random_texts"] = float("nan")
    given["labels"]["cumulative_heldout"] = float("nan")
    rebuilt = given["reconstruction"]
    given["reconstruction"] = rebuilt[rebuilt["directions"] != "random_texts"]
    page = validation_page(given, MADE)
    assert "| deit | 2 | 1.0 | 0.40 |  |  | 0.20 | 0.60 |" in page
    assert "| deit | heads | random vectors | 0.500 | 0.900 |" in page
    assert "| heads | random texts" not in page


@pytest.mark.parametrize(("method", "name"), METHOD_NAMES.items())
def test_the_method_that_chose_the_texts_is_named(method: str, name: str) -> None:
    page = validation_page(tables(), MADE | {"method": method})
    assert f"Texts chosen by {name}. Share" in page
    assert f"what its first texts (by {name}) keep of the rest" in page
    assert "projection" not in page


def test_without_known_factors_their_sections_are_left_out() -> None:
    given = tables() | {"confirmed": confirmed()[:0], "reconstruction": pd.DataFrame()}
    page = validation_page(given, MADE)
    assert "the right one?" not in page
    assert "replaced by their texts" not in page
    assert "## Text labels" in page
