"""The data behind the interactive map of components and their cards, as plain JSON values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from pipeline_lib.report.collect import Run
from pipeline_lib.report.pictures import PictureBook
from pipeline_lib.report.words import is_absent

#: A component has a role where one category has at least this share of its first texts …
ROLE_SHARE = 0.5
#: … and leads the next category by at least this share.
ROLE_MARGIN = 0.2
#: Texts that decide a component's role.
ROLE_TEXTS = 10
NO_ROLE = "no clear role"


def role_of(categories: Sequence[str]) -> dict[str, Any]:
    """Category that most of a component's first texts belong to.

    Parameters
    ----------
    categories
        Category of each text, the first text first.

    Returns
    -------
    dict
        category (`no clear role` where none leads), count, of, margin (lead over the next as a
        share).

    Examples
    --------
    >>> role_of(["colour", "colour", "shape"])["category"]
    'colour'
    """
    first = [name for name in categories if name][:ROLE_TEXTS]
    counts = pd.Series(first, dtype=object).value_counts(sort=False)
    counts = counts.sort_values(ascending=False, kind="stable")
    if counts.empty:
        return {"category": NO_ROLE, "count": 0, "of": 0, "margin": 0.0}
    lead = int(counts.iloc[0])
    margin = (lead - (int(counts.iloc[1]) if len(counts) > 1 else 0)) / len(first)
    clear = lead / len(first) >= ROLE_SHARE and margin >= ROLE_MARGIN
    category = str(counts.index[0]) if clear else NO_ROLE
    return {"category": category, "count": lead, "of": len(first), "margin": round(margin, 3)}


def role_labels(run: Run) -> pd.DataFrame:
    """Table `labels` in the order of ranks; no category where the pool has only one."""
    labels = run["labels"].sort_values("rank", kind="stable")
    one = labels["category"].nunique() < 2
    return labels.assign(category="") if one else labels


def roles(run: Run) -> pd.DataFrame:
    """Role of every component that has texts: model, component, id, kind, category, count, of."""
    labels = role_labels(run)
    rows = [
        {"model": model, "component": component, "id": part["id"].iloc[0]}
        | {"kind": part["kind"].iloc[0]}
        | role_of(part["category"].tolist())
        for (model, component), part in labels.groupby(["model", "component"], sort=False)
    ]
    columns = ["model", "component", "id", "kind", "category", "count", "of", "margin"]
    return pd.DataFrame(rows, columns=columns)


def from_input(components: pd.DataFrame) -> pd.DataFrame:
    """Components from the input to the output: the stem first, the bias last."""
    end = components["kind"].map({"stem": -1, "bias": 1}).fillna(0)
    return components.assign(end=end).sort_values(["end", "layer", "head"], kind="stable")


def rows_of(components: pd.DataFrame) -> list[tuple[int, str]]:
    """Row of the map, and slot in the row, of each component.

    A block is one row, or one row for each of its attentions where it has several; heads stand
    in the slots `0`, `1`, …, other components in the slot of their kind. The stem and the bias have
    a row of their own at the input and the output end.

    Parameters
    ----------
    components
        Table `components` of one model.
    """
    ordered = from_input(components)
    places: dict[int, tuple[int, str]] = {}
    row, block, attention, filled = -1, None, None, set[str]()
    for part in ordered.itertuples():
        head = part.kind in ("head", "attention")
        slot = str(part.head) if part.head >= 0 else part.kind
        new_attention = head and attention not in (None, part.layer)
        alone = part.kind in ("stem", "bias")
        if alone or part.block != block or new_attention or slot in filled:
            row, attention, filled = row + 1, None, set()
        block = None if alone else part.block
        attention = part.layer if head else attention
        filled.add(slot)
        places[part.Index] = (row, slot)
    return [places[index] for index in components.index]


def atlas(run: Run, book: PictureBook) -> dict[str, Any]:
    """Everything the map, the search and the cards show.

    Returns
    -------
    dict
        `measures`: what the map can show (key, name, label); `features`; `roles`; `models`, each
        with its components.
    """
    features = list(dict.fromkeys(run["scores"]["feature"])) if len(run["scores"]) else []
    targets = [
        str(name) for name in dict.fromkeys(run["ablation"].query("curve == 'single'")["target"])
    ]
    parts = _Lookup(run, book)
    models = [parts.model(name) for name in run.models]
    found = sorted({c["role"]["category"] for m in models for c in m["components"] if c["role"]})
    return {
        "measures": list(_measures(run, features, targets)),
        "features": features,
        "targets": targets,
        "roles": [name for name in found if name != NO_ROLE] + [NO_ROLE],
        "models": models,
    }


def _measures(run: Run, features: list[str], targets: list[str]) -> Iterator[dict[str, str]]:
    if len(run["labels"]):
        label = "share of the representation’s variance"
        yield {"key": "strength", "name": "direct effect", "label": label}
    for name in features:
        label = f"share of the variance of {name}; sums to 100\u202f% over a model"
        yield {"key": f"score:{name}", "name": f"score for {name}", "label": label}
    for name in targets:
        label = f"accuracy on {name} lost when the component is replaced by its mean"
        yield {"key": f"drop:{name}", "name": f"loss on {name}", "label": label}


class _Lookup:
    """The tables of a run, grouped once by model and component."""

    def __init__(self, run: Run, book: PictureBook) -> None:
        self._run, self._book = run, book
        self._scores = _by_component(run["scores"])
        self._labels = _by_component(role_labels(run))
        self._images = _by_component(run["top_images"].sort_values("rank", kind="stable"))
        near = run["neighbours"].sort_values("similarity", ascending=False, kind="stable")
        self._near = _by_component(near)
        self._drops = _drops(run["ablation"])

    def model(self, name: str) -> dict[str, Any]:
        table = self._run["components"]
        table = table[table["model"] == name].drop_duplicates("component").reset_index(drop=True)
        places = rows_of(table)
        return {
            "name": name,
            "id": self._run.config["models"][name]["id"],
            "components": [
                self._component(name, part, place)
                for part, place in zip(table.to_dict("records"), places, strict=True)
            ],
        }

    def _component(
        self, model: str, part: dict[str, Any], place: tuple[int, str]
    ) -> dict[str, Any]:
        key = (model, part["component"])
        labels, images = self._labels.get(key), self._images.get(key)
        card = {name: part[name] for name in ("id", "kind", "layer", "stage", "block", "head")}
        card |= {"row": place[0], "slot": place[1], "values": self._values(key, part["id"])}
        card["texts"] = [] if labels is None else _texts(labels)
        card["role"] = None if labels is None else role_of(labels["category"].tolist())
        card["images"] = [] if images is None else self._pictures(images)
        card["near"] = _neighbours(self._near.get(key))
        return card

    def _values(self, key: tuple[str, int], component: str) -> dict[str, list[float | None]]:
        """Measure to its value, or to value, low and high where there is an interval."""
        values: dict[str, list[float | None]] = {}
        labels, scores = self._labels.get(key), self._scores.get(key)
        if labels is not None and not is_absent(float(labels["strength"].iloc[0])):
            values["strength"] = [_short(labels["strength"].iloc[0])]
        for row in scores.to_dict("records") if scores is not None else ():
            ends = [row[c] for c in ("low", "high") if c in row]
            values[f"score:{row['feature']}"] = [_short(v) for v in (row["score"], *ends)]
        for target, losses in self._drops.get(key[0], {}).items():
            if component in losses:
                values[f"drop:{target}"] = [_short(losses[component])]
        return values

    def _pictures(self, images: pd.DataFrame) -> list[str]:
        count = int(self._run.config["report"]["examples"])
        return [
            self._book.image(row.dataset, row.image_id) for row in images.head(count).itertuples()
        ]


def _by_component(table: pd.DataFrame) -> dict[tuple[str, int], pd.DataFrame]:
    groups = table.groupby(["model", "component"], sort=False)
    return {(str(model), int(component)): part for (model, component), part in groups}


def _texts(labels: pd.DataFrame) -> list[list[Any]]:
    """Text, category, variance, cumulative, bound; the numbers short."""
    return [
        [row.text, row.category]
        + [_short(v) for v in (row.variance, row.cumulative, row.cumulative_pca)]
        for row in labels.itertuples()
    ]


def _neighbours(near: pd.DataFrame | None) -> list[list[Any]]:
    if near is None:
        return []
    best = near.groupby("other_model", sort=False).head(1)
    return [[row.other_model, row.other_id, _short(row.similarity)] for row in best.itertuples()]


def _drops(ablation: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Model to target to component to the accuracy lost when it alone is ablated."""
    lost: dict[str, dict[str, dict[str, float]]] = {}
    for (model, target), part in ablation.groupby(["model", "target"], sort=False):
        full = part.loc[part["curve"] == "none", "accuracy"]
        single = part[part["curve"] == "single"]
        if len(full) and len(single):
            losses = float(full.mean()) - single.groupby("ablated")["accuracy"].mean()
            lost.setdefault(str(model), {})[str(target)] = losses.to_dict()
    return lost


def _short(value: float) -> float | None:
    return None if is_absent(float(value)) else float(f"{float(value):.4g}")
