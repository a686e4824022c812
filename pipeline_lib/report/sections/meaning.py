"""Section on what the components mean: the map of components, depth, texts and roles."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from pipeline_lib.comparison import CARRIED
from pipeline_lib.labelling import METHOD_NAMES
from pipeline_lib.reconstruction import KINDS
from pipeline_lib.report.blocks import (
    Atlas,
    Block,
    Branch,
    Caption,
    Component,
    Field,
    Figure,
    Listing,
    Section,
    Tree,
)
from pipeline_lib.report.charts import as_percent, legend_above, line_set, stacked_rows
from pipeline_lib.report.collect import Run
from pipeline_lib.report.findings import specialists
from pipeline_lib.report.sections.comparison import comparison_blocks
from pipeline_lib.report.sections.truth import truth_blocks
from pipeline_lib.report.style import WIDEST, Panel, colour, draw_panel
from pipeline_lib.report.words import decimal, listed, percent, plural, whole
from pipeline_lib.roles import MARGIN, NO_ROLE, ONE_CATEGORY, Q_VALUE

#: Features up to which depth is drawn as lines.
MAX_LINES = 6
#: Heading of the share in the representation itself, beside those in the features.
_WHOLE = "all variance"
#: Levels of the table `hierarchy`, from coarse to fine.
_LEVELS = ("representation", "stage", "block", "component", "tokens")


def scores_section(run: Run) -> Section:
    """Which component carries which feature, and the texts that describe it."""
    reason = run.not_run.get("scores", "")
    blocks: list[Block] = []
    if not reason:
        blocks = [
            _atlas(run),
            _depth(run),
            _best(run),
            _roles(run),
            _explained(run),
            _tree(run),
            *truth_blocks(run),
            *comparison_blocks(run),
        ]
    return Section(
        key="scores",
        title="Scores",
        about="How much of each feature every component carries, and the texts that explain what "
        "it writes.",
        blocks=blocks,
        not_run=reason,
    )


def _images(run: Run) -> str:
    dataset = run.config["scores"]["dataset"]
    rows = run["manifest"]
    count = int(((rows["dataset"] == dataset) & rows["active"].astype(bool)).sum())
    return f"{plural(count, 'image')} of {dataset}"


def _atlas(run: Run) -> Atlas:
    ablated = (run["ablation"]["curve"] == "single").any() if len(run["ablation"]) else False
    return Atlas(
        "atlas",
        "Map of the components",
        Caption(
            "Every component of every model, from the input (top) to the output: heads on the "
            "left, the other parts of the block beside them.",
            "Direct effect: the component’s share of the variance of the model’s own "
            "representation, before any map. Score of a feature: share of the variance in the span "
            "of its descriptors (trace form; sums to 1 over the components; a negative share works "
            "against the rest)."
            + (
                " Accuracy lost: full accuracy less that with the component replaced by its mean."
                if ablated
                else ""
            ),
            _images(run),
            "Direct effects only: what a component does through later ones is counted there. The "
            "colours are on a square-root scale, the same for all models.",
        ),
    )


def _depth(run: Run) -> Figure:
    table = run["scores"]
    layers = table.groupby(["model", "feature", "layer"], sort=False)["score"].sum().reset_index()
    layers = layers.sort_values(["model", "feature", "layer"], kind="stable")
    deepest = layers.groupby("model")["layer"].transform("max").clip(lower=1)
    layers["depth"] = (layers["layer"].clip(lower=0) / deepest).astype(float)
    layers["cumulative"] = layers.groupby(["model", "feature"], sort=False)["score"].cumsum()
    features = list(dict.fromkeys(table["feature"]))
    few = len(features) <= MAX_LINES
    panels = [
        _depth_panel(layers[layers["model"] == model], features, model) for model in run.models
    ]
    return Figure(
        "depth",
        "Where in depth each feature lives",
        Caption(
            "Share of each feature’s score carried up to a depth."
            if few
            else "Share of each feature’s score carried by each layer (orange: negative).",
            "Scores summed over the components of a layer"
            + (", then from the input on; depth is the layer over the last layer." if few else "."),
            _images(run),
            "A line may pass 100\u202f% where later components work against earlier ones."
            if few
            else "",
        ),
        panels,
        layers,
        run.files["scores"],
    )


def _depth_panel(part: pd.DataFrame, features: list[str], model: str) -> Panel:
    """Lines that add up from the input; for many features rows of squares, one per layer."""
    if len(features) <= MAX_LINES:
        return draw_panel(_depth_lines(part, features), model, 3.0, 2.4)
    return draw_panel(_depth_rows(part, features), model, 3.4, 1.0 + 0.2 * len(features))


def _depth_lines(part: pd.DataFrame, features: list[str]) -> Callable[[Axes], None]:
    lines = line_set(part, "depth", "cumulative", ["feature"], features)

    def draw(axes: Axes) -> None:
        lines(axes)
        axes.set_xlabel("depth")
        axes.set_xlim(0, 1)
        as_percent(axes, "y")
        axes.legend(loc="upper left", handlelength=1.8, borderaxespad=0.2)

    return draw


def _depth_rows(part: pd.DataFrame, features: list[str]) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        layers = sorted(part["layer"].unique())
        most = part["score"].abs().max() or 1.0
        for row in part.itertuples():
            shade = colour("c1" if row.score >= 0 else "c2")
            corner = (layers.index(row.layer) - 0.5, features.index(row.feature) - 0.5)
            axes.add_patch(
                Rectangle(corner, 1, 1, facecolor=shade, alpha=abs(row.score) / most, linewidth=0)
            )
        axes.set_xlim(-0.5, len(layers) - 0.5)
        axes.set_ylim(len(features) - 0.5, -0.5)
        axes.set_yticks(range(len(features)), features)
        axes.set_xticks([0, len(layers) - 1], ["input", "output"])
        axes.set_xlabel(f"layers; strongest: {percent(most, 0)} of the feature")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)

    return draw


def _best(run: Run) -> Listing:
    scores = run["scores"]
    best = specialists(scores)
    roles = run["roles"].set_index(["model", "component"])
    carried = run["comparison"].set_index(["model", "feature"])
    rows = []
    for row in best.itertuples():
        concentrated = carried.loc[(row.model, row.feature)]
        key = (row.model, row.component)
        rows.append(
            {
                "model": row.model,
                "feature": row.feature,
                "component": Component(row.model, row.id),
                "score": row.score,
                "interval": f"{percent(row.low)} to {percent(row.high)}",
                "q_value": row.q_value,
                "other": row.other,
                "role": _role_words(roles.loc[key]) if key in roles.index else "–",
                "carrying": concentrated["carriers"],
                "of": concentrated["components"],
            }
        )
    data = pd.DataFrame(rows)
    fields = [
        Field("model", "model", number=False),
        Field("feature", "feature", number=False),
        Field("component", "best component", number=False),
        Field("score", "its score", percent),
        Field("interval", "95\u202f% interval"),
        Field("q_value", "q", decimal),
        Field("other", "its next feature", percent),
        Field("role", "role by its texts", number=False),
        Field("carrying", f"carry {100 * CARRIED:.0f}\u202f%", whole),
        Field("of", "of", whole),
    ]
    return Listing(
        "best-components",
        "Best component of each feature",
        Caption(
            "For each model and feature: the component with the highest score, its highest score "
            f"for any other feature, and how few components have {100 * CARRIED:.0f}\u202f% of "
            "the positive scores together.",
            "Intervals by redrawing the images; q: of components found for a feature at such a q, "
            "that share is chance at most, on average (from random subspaces). Components, "
            "the bias left out, are added from the highest score down until the share is reached.",
            _images(run),
            "The highest of many scores is partly luck: the interval is that of one component.",
        ),
        fields,
        data,
        [*run.files["scores"], *run.files["comparison"]],
    )


def _role_words(role: pd.Series) -> str:
    if role["role"] in (NO_ROLE, ONE_CATEGORY):
        return str(role["role"])
    return f"{role['role']} ({percent(role['share'], 0)})"


def _roles(run: Run) -> Figure:
    heads = run["roles"][run["roles"]["kind"].isin(["head", "attention"])]
    counts = heads.groupby(["model", "role"]).size().unstack(fill_value=0)
    counts = counts.reindex([name for name in run.models if name in counts.index])
    none = ONE_CATEGORY if ONE_CATEGORY in counts else NO_ROLE
    order = counts.sum().sort_values(ascending=False, kind="stable").index.tolist()
    shown = [name for name in order if name != none][:7]
    rest = [name for name in order if name not in shown]
    counts[none] = counts[rest].sum(axis=1)
    counts = counts[[*shown, none]]
    limit = "A head without a clear role may still carry a feature: see its scores."
    if len(rest) > 1:
        limit += f" Rarer roles are counted with “{none}”."
    if none == ONE_CATEGORY:
        limit = "The pool’s texts are of one category, so no role can be told. See the texts."
    return Figure(
        "roles",
        "What the heads are about",
        Caption(
            "Number of heads whose texts mostly speak of one category.",
            "A head has a role where one category has the largest share of what its texts explain, "
            f"leads the next by {100 * MARGIN:.0f} points or more, and shuffled categories reach "
            f"that share with q ≤ {Q_VALUE}: of such roles that share is chance at most, on "
            "average.",
            plural(len(heads), "head"),
            limit,
        ),
        [draw_panel(stacked_rows(counts, "heads", none), "", WIDEST, 1.1 + 0.3 * len(counts))],
        run["roles"],
        run.files["roles"],
        columns=1,
    )


#: Tone, dashes and their word for what the texts of a head are held against.
_BESIDE = {
    "pca": ("muted", (4, 2), "dashed"),
    "random_texts": ("c2", (5, 1.5, 1, 1.5), "dash-dotted"),
    "random": ("muted", (1, 2), "dotted"),
}


def _beside(data: pd.DataFrame) -> list[str]:
    """Keys of `_BESIDE` that there are values of: embeddings alone give no random texts."""
    there = data.filter(like="cumulative_random_texts").notna().any(axis=None)
    return [kind for kind in _BESIDE if kind != "random_texts" or there]


def _explained(run: Run) -> Figure:
    labels = run["labels"][run["labels"]["kind"].isin(["head", "attention"])]
    columns = ["cumulative", "cumulative_random_texts", "cumulative_random", "cumulative_pca"]
    spread = labels.groupby(["model", "rank"], sort=False)[columns].quantile([0.25, 0.5, 0.75])
    data = spread.unstack().reset_index()
    data.columns = ["_".join(str(p) for p in name if p != "") for name in data.columns]
    panels = [
        _explained_panel(data[data["model"] == name], name)
        for name in run.models
        if (data["model"] == name).any()
    ]
    return Figure(
        "explained",
        "How much of a head its texts explain",
        Caption(
            "Share of a head’s variance explained by its first texts: median over heads and the "
            "middle half, beside as many "
            + listed(f"{KINDS[kind]} ({_BESIDE[kind][2]})" for kind in _beside(data))
            + ".",
            f"Texts are chosen by {METHOD_NAMES[run.config['scores']['method']]}, and random ones "
            "alike. Random texts are made of random words of the pool, so they keep what its words "
            "say alone; random vectors say nothing. Principal components are the most that any "
            "directions could explain.",
            f"{plural(labels[['model', 'component']].drop_duplicates().shape[0], 'head')}, "
            f"{_images(run)}",
        ),
        panels,
        data,
        run.files["labels"],
    )


def _explained_panel(part: pd.DataFrame, model: str) -> Panel:
    def draw(axes: Axes) -> None:
        texts = part["rank"] + 1
        low, high = part["cumulative_0.25"], part["cumulative_0.75"]
        axes.fill_between(texts, low, high, color=colour("c1"), alpha=0.18, linewidth=0)
        axes.plot(texts, part["cumulative_0.5"], color=colour("c1"), label="texts")
        for kind in _beside(part):
            tone, dashes, _ = _BESIDE[kind]
            median, line = part[f"cumulative_{kind}_0.5"], (0, dashes)
            axes.plot(texts, median, color=colour(tone), ls=line, lw=1.3, label=KINDS[kind])
        axes.set_ylim(0, 1)
        axes.set_xlim(1, max(2, int(texts.max())))
        axes.set_xlabel("texts")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        as_percent(axes, "y")
        axes.grid(axis="y")
        legend_above(axes, columns=2)

    return draw_panel(draw, model, 3.0, 2.4)


def _tree(run: Run) -> Tree:
    table = run["hierarchy"]
    opened = "tokens" in set(table["level"])
    features = [_WHOLE, *dict.fromkeys(run["scores"]["feature"])]
    tabs = {name: _opened(table[table["model"] == name], run, name) for name in run.models}
    return Tree(
        "tree",
        "From the representation to the " + ("tokens" if opened else "component"),
        Caption(
            "A model opened from coarse to fine: the share of each part in the variance of the "
            "representation as mapped to CLIP space and in that of each feature, and the texts "
            "that explain most of what the part writes.",
            "Shares in the CLIP space that the texts are read in, so not the direct effects of "
            "the map above; those of the parts add up to that of the whole."
            + (
                " The strongest heads open further, by the source tokens on and off the object."
                if opened
                else ""
            ),
            _images(run),
            "Direct effects: what a part does through later parts is counted there.",
        ),
        features,
        tabs,
        run.files["hierarchy"],
    )


def _opened(table: pd.DataFrame, run: Run, model: str) -> Branch:
    """The branch of a whole model."""
    scores = run["scores"]
    shares = scores[scores["model"] == model].pivot_table(
        index="id", columns="feature", values="score", sort=False
    )
    texts = table[table["text"] != ""].sort_values("rank", kind="stable")
    said = texts.groupby(["level", "node"], sort=False)["text"].apply(lambda t: t.head(3).tolist())
    nodes = table.drop_duplicates(["level", "node"])
    levels = [level for level in _LEVELS if (nodes["level"] == level).any()]

    def branch(depth: int, part: pd.Series) -> Branch:
        level, node = levels[depth], str(part["node"])
        children = []
        if depth + 1 < len(levels):
            below = nodes[(nodes["level"] == levels[depth + 1]) & (nodes["parent"] == node)]
            children = [branch(depth + 1, row) for _, row in below.iterrows()]
        if len(children) == 1 and children[0].title == node:
            return children[0]  # the stem or the bias, which is a part of its own at every level
        features: dict[str, float] = {}
        if level == "component":
            features = dict(shares.loc[node]) if node in shares.index else {}
        elif level != "tokens":
            features = {
                str(name): sum(child.shares.get(name, 0.0) for child in children) for name in shares
            }
        title = node.removeprefix(f"{part['parent']}: ") if level == "tokens" else node
        return Branch(
            title,
            {_WHOLE: float(part["share"]), **features},
            children,
            Component(model, node) if level == "component" else None,
            said.get((level, node), []),
            _holds(children),
        )

    return branch(0, nodes[nodes["level"] == "representation"].iloc[0])


def _holds(children: list[Branch]) -> str:
    """How many parts a part has, where these are components."""
    count = len([child for child in children if child.component is not None])
    return plural(count, "component") if count and count == len(children) else ""
