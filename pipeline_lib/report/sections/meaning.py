"""Section on what the components mean: the map of components, depth, texts and roles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from pipeline_lib.report.atlas import (
    NO_ROLE,
    ROLE_MARGIN,
    ROLE_SHARE,
    ROLE_TEXTS,
    from_input,
    roles,
)
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
from pipeline_lib.report.style import Panel, colour, draw_panel
from pipeline_lib.report.words import listed, percent, plural, whole

#: Share of a feature's score whose number of components is reported.
CARRIED = 0.9
#: Features up to which depth is drawn as lines.
MAX_LINES = 6
#: Heading of the share in the representation itself, beside those in the features.
_WHOLE = "direct effect"


def scores_section(run: Run) -> Section:
    """Which component carries which feature, and the texts that describe it."""
    reason = run.not_run.get("scores", "")
    blocks: list[Block] = []
    if not reason:
        found = roles(run)
        blocks = [
            _atlas(run),
            _depth(run),
            _best(run),
            _roles(run, found),
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
            "Direct effect: the component’s share of the representation’s variance. Score of a "
            "feature: share of the variance in the span of its descriptors (trace form; sums to 1 "
            "over the components; a negative share works against the rest)."
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
    return draw_panel(_depth_rows(part, features), model, 3.9, 1.0 + 0.2 * len(features))


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
        axes.set_xlabel(f"layers; darkest: {percent(most, 0)} of the feature")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)

    return draw


def _best(run: Run) -> Listing:
    scores = run["scores"]
    best = specialists(scores)
    found = roles(run).set_index(["model", "component"])
    rows = []
    for row in best.itertuples():
        part = scores[(scores["model"] == row.model) & (scores["feature"] == row.feature)]
        key = (row.model, row.component)
        role = found.loc[key] if key in found.index else None
        rows.append(
            {
                "model": row.model,
                "feature": row.feature,
                "component": Component(row.model, row.id),
                "score": row.score,
                "other": row.other,
                "role": _role_words(role),
                "carrying": components_carrying(part["score"].to_numpy()),
                "of": len(part),
            }
        )
    data = pd.DataFrame(rows)
    fields = [
        Field("model", "model", number=False),
        Field("feature", "feature", number=False),
        Field("component", "best component", number=False),
        Field("score", "its score", percent),
        Field("other", "its next feature", percent),
        Field("role", "role by its texts", number=False),
        Field("carrying", f"carry {100 * CARRIED:.0f} %", whole),
        Field("of", "of", whole),
    ]
    return Listing(
        "best-components",
        "Best component of each feature",
        Caption(
            "For each model and feature: the component with the highest score, its highest score "
            f"for any other feature, and how many components carry {100 * CARRIED:.0f} % together.",
            "Components are added from the highest score down until the share is reached.",
            _images(run),
        ),
        fields,
        data,
        run.files["scores"],
    )


def _role_words(role: pd.Series | None) -> str:
    if role is None:
        return "–"
    if role["category"] == NO_ROLE:
        return NO_ROLE
    return f"{role['category']} ({role['count']} of {role['of']} texts)"


def components_carrying(scores: np.ndarray, share: float = CARRIED) -> int:
    """How few components carry `share` of a feature, taken from the highest score down.

    >>> components_carrying(np.array([0.2, 0.75, 0.05]))
    2
    """
    running = np.cumsum(np.sort(scores)[::-1])
    reached = np.flatnonzero(running >= share * scores.sum() - 1e-12)
    return int(reached[0]) + 1 if len(reached) else len(scores)


def _roles(run: Run, found: pd.DataFrame) -> Figure:
    heads = found[found["kind"].isin(["head", "attention"])]
    counts = heads.groupby(["model", "category"]).size().unstack(fill_value=0)
    counts = counts.reindex([name for name in run.models if name in counts.index])
    order = counts.sum().sort_values(ascending=False, kind="stable").index.tolist()
    shown = [name for name in order if name != NO_ROLE][:7]
    rest = [name for name in order if name not in shown]
    counts[NO_ROLE] = counts[rest].sum(axis=1)
    counts = counts[[*shown, NO_ROLE]]
    return Figure(
        "roles",
        "What the heads are about",
        Caption(
            "Number of heads whose texts mostly belong to one category.",
            f"A head has a role where at least {100 * ROLE_SHARE:.0f} % of its first "
            f"{ROLE_TEXTS} texts share a category that leads the next by "
            f"{100 * ROLE_MARGIN:.0f} % or more.",
            plural(len(heads), "head"),
            "A category with more texts in the pool is found more often by chance; a pool of one "
            "category tells no role."
            + (f" Rarer roles are counted with “{NO_ROLE}”." if len(rest) > 1 else ""),
        ),
        [draw_panel(stacked_rows(counts, "heads", NO_ROLE), "", 5.2, 1.1 + 0.3 * len(counts))],
        found,
        run.files["labels"],
        columns=1,
    )


def _explained(run: Run) -> Figure:
    labels = run["labels"][run["labels"]["kind"].isin(["head", "attention"])]
    columns = ["cumulative", "cumulative_pca"]
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
            "middle half, beside the same number of principal components (dashed).",
            "Greedy choice of texts (TextSpan); principal components are the most that any "
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
        axes.plot(
            texts,
            part["cumulative_pca_0.5"],
            color=colour("muted"),
            linestyle=(0, (4, 2)),
            linewidth=1.3,
            label="principal components",
        )
        axes.set_ylim(0, 1)
        axes.set_xlim(1, max(2, int(texts.max())))
        axes.set_xlabel("texts")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        as_percent(axes, "y")
        axes.grid(axis="y")
        legend_above(axes, columns=2)

    return draw_panel(draw, model, 3.0, 2.4)


def _tree(run: Run) -> Tree:
    scores = run["scores"]
    features = [_WHOLE, *dict.fromkeys(scores["feature"])]
    tabs = {}
    for model in run.models:
        parts = run["components"]
        parts = parts[parts["model"] == model].drop_duplicates("component")
        shares = scores[scores["model"] == model].pivot_table(
            index="component", columns="feature", values="score", sort=False
        )
        texts = run["labels"][run["labels"]["model"] == model]
        shares[_WHOLE] = texts.drop_duplicates("component").set_index("component")["strength"]
        shares = shares.fillna(0.0)
        first = texts.sort_values("rank").groupby("component")["text"].apply(list).to_dict()
        tabs[model] = _branches(model, parts, shares, first, _part_texts(run, model))
    return Tree(
        "tree",
        "From the representation to the component",
        Caption(
            "A model opened from coarse to fine: share of its parts in the variance of the "
            "representation and in that of each feature.",
            "Direct effects and scores of the components summed over what lies below; the shares "
            "of the parts add up to that of the whole. Beside each part: the texts that explain "
            "most of what its components write together.",
            _images(run),
        ),
        features,
        tabs,
    )


def _part_texts(run: Run, model: str) -> dict[str, list[str]]:
    """First texts of the representation, of each stage and of each block of a model."""
    table = run["hierarchy"]
    table = table[(table["model"] == model) & (table["level"] != "component")]
    first = table.sort_values("rank", kind="stable").groupby("node", sort=False)["text"]
    return {str(node): texts.head(3).tolist() for node, texts in first}


def _branches(
    model: str,
    parts: pd.DataFrame,
    shares: pd.DataFrame,
    texts: dict[int, list[str]],
    part_texts: dict[str, list[str]],
) -> Branch:
    parts = from_input(parts[parts["component"].isin(shares.index)])
    staged = parts["stage"].nunique() > 1

    def leaf(part: pd.Series) -> Branch:
        component = int(part["component"])
        return Branch(
            str(part["id"]),
            shares.loc[component].to_dict(),
            component=Component(model, str(part["id"])),
            texts=texts.get(component, [])[:3],
        )

    def group(node: str, below: pd.DataFrame, children: list[Branch], holds: str = "") -> Branch:
        shown = shares.loc[below["component"]].sum().to_dict()
        return Branch(node + holds, shown, children, texts=part_texts.get(node, []))

    def blocks(below: pd.DataFrame) -> list[Branch]:
        found = []
        for block, inside in below.groupby("block", sort=False):
            leaves = [leaf(part) for _, part in inside.iterrows()]
            kinds = inside["kind"].value_counts()
            holds = listed(plural(int(n), str(kind)) for kind, n in kinds.items())
            if block < 0:
                found += leaves
            else:
                found.append(group(f"block {block}", inside, leaves, f" ({holds})"))
        return found

    children: list[Branch] = []
    if staged:
        for stage, below in parts.groupby("stage", sort=False):
            inside = blocks(below)
            children += inside if stage < 0 else [group(f"stage {stage}", below, inside)]
    else:
        children = blocks(parts)
    return group("representation", parts, children)
