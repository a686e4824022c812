"""Scores and texts held against what is known of the images: parts of the section on scores."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pipeline_lib.labelling import METHOD_NAMES
from pipeline_lib.reconstruction import KINDS
from pipeline_lib.report.blocks import Block, Caption, Component, Field, Figure, Listing
from pipeline_lib.report.charts import as_percent, legend_above
from pipeline_lib.report.collect import Run
from pipeline_lib.report.style import MARKERS, Panel, colour, draw_panel, series_colour
from pipeline_lib.report.words import listed, percent, plural

_TRUTHS = {
    "decodability": "read alone",
    "decodability_in_words": "read in words",
    "ablation_loss": "accuracy lost",
    "joint_loss": "lost with others",
    "margin_loss": "margin lost",
    "clip": "as CLIP",
}
#: Tone, line and its word for what heads are replaced by.
_LINES = {
    "texts": ("c1", "-", "blue"),
    "pca": ("muted", "--", "dashed"),
    "random_texts": ("c2", "-.", "dash-dotted"),
    "random": ("faint", "-", "grey"),
}
_SCORES = {
    "score": "score",
    "score_published": "published score",
    "variance_explained": "variance explained",
    "random": "random",
}


def truth_blocks(run: Run) -> list[Block]:
    """Agreement with the truths, the confirmed tops, and accuracy from texts alone."""
    blocks: list[Block] = []
    if len(run["validation"]):
        blocks.append(_validation(run))
    if len(run["confirmed"]):
        blocks.append(_confirmed(run))
    if len(run["reconstruction"]):
        blocks.append(_reconstruction(run))
    return blocks


def _validation(run: Run) -> Figure:
    table = run["validation"]
    shown = table[(table["across"] == "components") & (table["feature"] == "")]
    panels = [
        _validation_panel(shown[shown["model"] == model], model) for model in run.models_in(shown)
    ]
    return Figure(
        "validation",
        "Do the scores agree with the truth?",
        Caption(
            "Rank correlation, over the components of a model, between a score and what is known "
            "of them, with its 95\u202f% interval by redrawing the images; mean over features.",
            "Read alone: R² of a linear reader of the known factor from the component, on "
            "images not used in its fit; in words: from what it says in the directions of the "
            "feature’s words. Accuracy or margin lost: by replacing the component by "
            "its mean in front of a reader of the whole representation; with others: on average "
            "over random halves of the others replaced with it. As CLIP: Spearman "
            "correlation with the reference CLIP’s own ranking of the images.",
            plural(int(shown["n"].max()), "image") if len(shown) else "no image",
            "Direct effects only, on both sides. Random: the scores, dealt to the components at "
            "random; mean over the deals and the middle 95\u202f% of them.",
        ),
        panels,
        table,
        run.files["validation"],
    )


def _validation_panel(part: pd.DataFrame, model: str) -> Panel:
    truths = [name for name in _TRUTHS if (part["truth"] == name).any()]
    scores = [name for name in _SCORES if (part["score"] == name).any()]

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=colour("line"), linewidth=1)
        for order, score in enumerate(scores):
            rows = part[part["score"] == score].set_index("truth").reindex(truths)
            places = np.arange(len(truths)) + 0.16 * (order - (len(scores) - 1) / 2)
            tone = colour("faint") if score in ("random", "shuffled") else series_colour(order)
            axes.hlines(places, rows["low"], rows["high"], color=tone, linewidth=1.4)
            marker = MARKERS[order % len(MARKERS)]
            name = _SCORES[score]
            axes.plot(rows["value"], places, marker, color=tone, markersize=6, label=name)
        axes.set_yticks(range(len(truths)), [_TRUTHS[name] for name in truths])
        axes.invert_yaxis()
        axes.set_xlim(-0.6, 1.02)
        axes.set_xlabel("rank correlation")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        legend_above(axes, columns=2)

    return draw_panel(draw, model, 3.2, 1.4 + 0.5 * len(truths))


def _confirmed(run: Run) -> Listing:
    table = run["confirmed"]
    data = pd.DataFrame(
        {
            "model": table["model"],
            "feature": table["feature"],
            "by": [_SCORES[by] for by in table["by"]],
            "top": [Component(row.model, row.top) for row in table.itertuples()],
            "score": table["score"],
            "decodability": table["decodability_value"],
            "decodability_place": table["decodability_percentile"],
            "ablation": table["ablation_loss_value"],
            "ablation_place": table["ablation_loss_percentile"],
            "joint": table["joint_loss_value"],
            "joint_place": table["joint_loss_percentile"],
            "words": table["decodability_in_words_value"],
            "words_place": table["decodability_in_words_percentile"],
            "confirmed": ["yes" if value else "no" for value in table["confirmed"]],
            "jointly": ["yes" if value else "no" for value in table["confirmed_jointly"]],
            "in_words": ["yes" if value else "no" for value in table["confirmed_in_words"]],
        }
    )
    fields = [
        Field("model", "model", number=False),
        Field("feature", "feature", number=False),
        Field("by", "by", number=False),
        Field("top", "component", number=False),
        Field("score", "score", percent),
        Field("decodability", "read alone", percent),
        Field("decodability_place", "place", percent),
        Field("ablation", "accuracy lost", percent),
        Field("ablation_place", "place", percent),
        Field("joint", "lost with others", percent),
        Field("joint_place", "place", percent),
        Field("words", "read in words", percent),
        Field("words_place", "place", percent),
        Field("confirmed", "confirmed", number=False),
        Field("jointly", "with others", number=False),
        Field("in_words", "in words", number=False),
    ]
    verdicts = ["confirmed", "confirmed_jointly", "confirmed_in_words"]
    counts = table.groupby("by", sort=False)[verdicts].sum()
    words = ["confirmed", "with others", "in words"]
    counted = "; ".join(
        f"by the {_SCORES[by]} "
        + listed(f"{row[name]} {word}" for name, word in zip(verdicts, words, strict=True))
        for by, row in counts.iterrows()
    )
    return Listing(
        "confirmed",
        "Is the component that a score names first the right one?",
        Caption(
            "For each factor that is known of every image: the component with the highest score, "
            f"and its place by the truths. Of {len(table) // len(counts)}, {counted}.",
            "Confirmed: in the top tenth by what is read alone and by the accuracy lost; with "
            "others: by the loss with others in its place; in words: by that and what is read in "
            "words. Read alone: R² of a linear reader of the factor from the component. Accuracy "
            "lost: by replacing it by its mean, which costs nothing where others carry the factor "
            "too; with others: on average over random halves of the others replaced with it. Read "
            "in words: R² of a reader of what it says in the directions of the factor’s words. "
            "Place: share of the components that are not above it; the best is at 100\u202f%.",
            plural(int(table["components"].max()), "component") + " at most",
        ),
        fields,
        data,
        run.files["confirmed"],
    )


def _reconstruction(run: Run) -> Figure:
    table = run["reconstruction"]
    means = (
        table.groupby(["reader", "model", "replaced", "directions", "texts"], sort=False)[
            "accuracy"
        ]
        .mean()
        .reset_index()
    )
    beside = [kind for kind in _LINES if kind in set(table["directions"]) - {"texts"}]
    heads = means[means["replaced"] == "heads"]
    shown = heads if len(heads) else means
    panels = [
        _reconstruction_panel(part[part["model"] == name], f"{name}{note}")
        for reader, note in {"linear": "", "zero_shot": ": label, zero-shot"}.items()
        if len(part := shown[shown["reader"] == reader])
        for name in run.models_in(part)
    ]
    return Figure(
        "reconstruction",
        "What is left when heads are replaced by their texts",
        Caption(
            "Accuracy, mean over the known factors or of the label, when each head’s contribution "
            "is replaced by what the first texts of its label (blue) keep of it, or as many "
            + listed(f"{KINDS[kind]} ({_LINES[kind][2]})" for kind in beside)
            + "; dotted: the heads themselves.",
            f"Texts are chosen by {METHOD_NAMES[run.config['scores']['method']]}, and random ones "
            "alike; random texts are made of random words of the pool. The mean of a head stays. "
            "A factor is read from the sum by a linear reader fitted on "
            "the whole representation; a label by the nearest text of a class (zero-shot).",
            plural(int(table["n"].max()), "image"),
            "A head that few texts explain may still be replaced without loss, if others carry the "
            "same.",
        ),
        panels,
        table,
        run.files["reconstruction"],
    )


def _reconstruction_panel(part: pd.DataFrame, model: str) -> Panel:
    def draw(axes: Axes) -> None:
        whole = part.loc[part["texts"] < 0, "accuracy"]
        if len(whole):
            axes.axhline(whole.mean(), color=colour("ink"), linestyle=(0, (1, 1.6)), linewidth=1.2)
        for kind, (tone, line, _) in _LINES.items():
            rows = part[(part["directions"] == kind) & (part["texts"] >= 0)].sort_values("texts")
            if len(rows):
                (drawn,) = axes.plot(rows["texts"], rows["accuracy"], line, label=KINDS[kind])
                drawn.set(color=colour(tone), linewidth=2.0 if kind == "texts" else 1.3)
                drawn.set_zorder(1.5 if kind == "random" else 2)  # hides no other
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("texts per head")
        as_percent(axes, "y")
        axes.grid(axis="y")
        legend_above(axes, columns=2)

    return draw_panel(draw, model, 3.0, 2.4)
