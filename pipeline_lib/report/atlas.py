"""The data behind the interactive map of components and their cards, as plain JSON values."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from pipeline_lib.heatmaps import common_scale
from pipeline_lib.report.collect import Run
from pipeline_lib.report.pictures import PictureBook
from pipeline_lib.report.words import is_absent
from pipeline_lib.roles import NO_ROLE, ONE_CATEGORY


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
    found = sorted(set(run["roles"]["role"]) - {NO_ROLE, ONE_CATEGORY})
    return {
        "measures": list(_measures(run, features, targets)),
        "features": features,
        "targets": targets,
        "roles": [*found, NO_ROLE],
        "models": models,
    }


def _measures(run: Run, features: list[str], targets: list[str]) -> Iterator[dict[str, str]]:
    if len(run["labels"]):
        label = "share of the variance of the model’s own representation"
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
        self._labels = _by_component(run["labels"].sort_values("rank", kind="stable"))
        self._roles = _by_component(run["roles"])
        self._images = _by_component(run["top_images"].sort_values("rank", kind="stable"))
        self._token_maps = _by_component(run["token_maps"].sort_values("rank", kind="stable"))
        self._near = _by_component(run["counterparts"])
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
        card["role"] = _role(self._roles.get(key))
        card["images"] = [] if images is None else self._pictures(images)
        card["maps"] = self._drawn_maps(self._token_maps.get(key))
        card["near"] = _neighbours(self._near.get(key))
        return card

    def _values(self, key: tuple[str, int], component: str) -> dict[str, list[float | None]]:
        """Measure to its value, or to value, low, high and q where these are known."""
        values: dict[str, list[float | None]] = {}
        labels, scores = self._labels.get(key), self._scores.get(key)
        if labels is not None and not is_absent(float(labels["strength"].iloc[0])):
            names = ("strength", "strength_low", "strength_high")
            values["strength"] = [_short(labels[name].iloc[0]) for name in names]
        for row in scores.to_dict("records") if scores is not None else ():
            known = ("score", "low", "high", "q_value")
            values[f"score:{row['feature']}"] = [_short(row[name]) for name in known]
        for target, losses in self._drops.get(key[0], {}).items():
            if component in losses:
                values[f"drop:{target}"] = [_short(losses[component])]
        return values

    def _pictures(self, images: pd.DataFrame) -> list[str]:
        count = int(self._run.config["report"]["examples"])
        return [
            self._book.image(row.dataset, row.image_id) for row in images.head(count).itertuples()
        ]

    def _drawn_maps(self, maps: pd.DataFrame | None) -> list[dict[str, Any]]:
        """Token maps of a component on one scale, as signed bytes, with the part of the image."""
        if maps is None:
            return []
        scale = common_scale(np.concatenate(maps["map"].to_list()))
        return [
            {
                "image": self._book.image(row.dataset, row.image_id),
                "rows": row.rows,
                "columns": row.columns,
                "map": signed_bytes(row.map, scale),
                "crop": [_short(v) for v in (row.left, row.top, row.right, row.bottom)],
            }
            for row in maps.itertuples()
        ]


def signed_bytes(values: np.ndarray, scale: float) -> str:
    """Values from -scale to scale as signed bytes from -127 to 127, in base64; beyond, cut off.

    >>> signed_bytes(np.array([0.0, 1.0, -2.0]), 1.0)
    'AH+B'
    """
    steps = np.rint(127 * np.clip(values / scale, -1, 1)).astype(np.int8)
    return base64.b64encode(steps.tobytes()).decode()


def _by_component(table: pd.DataFrame) -> dict[tuple[str, int], pd.DataFrame]:
    groups = table.groupby(["model", "component"], sort=False)
    return {(str(model), int(component)): part for (model, component), part in groups}


def _texts(labels: pd.DataFrame) -> list[list[Any]]:
    """Text, category, variance, cumulative, random texts and vectors, bound; the numbers short."""
    shares = ["variance", "cumulative"]
    shares += [f"cumulative_{kind}" for kind in ("random_texts", "random", "pca")]
    return [
        [row["text"], row["category"], *(_short(row[name]) for name in shares)]
        for row in labels.to_dict("records")
    ]


def _role(roles: pd.DataFrame | None) -> dict[str, Any] | None:
    """What is said of a component's role; None where it has no texts."""
    if roles is None:
        return None
    row = roles.iloc[0]
    said = {"name": row["role"], "texts": int(row["texts_in_role"]), "of": int(row["texts"])}
    return said | {name: _short(row[name]) for name in ("share", "margin", "q_value")}


def _neighbours(near: pd.DataFrame | None) -> list[list[Any]]:
    """Model, its most similar other component, and how similar that is; the most similar first."""
    if near is None:
        return []
    best = near.sort_values("similarity", ascending=False, kind="stable")
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
