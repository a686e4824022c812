"""A small made-up run: every table the report reads, with signals planted by hand.

Nothing is computed by a model; the numbers are drawn from fixed seeds and made to look like a run
in which some heads specialise. Tests of the report and work on its looks start from here.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pipeline_lib.ablation import with_intervals
from pipeline_lib.artifacts import write_table
from pipeline_lib.config import RunConfig, load_config
from pipeline_lib.hierarchy import parts_of
from pipeline_lib.roles import NO_ROLE
from pipeline_lib.validation import CONFIRMING, NAMING, VERDICTS
from pipeline_lib.world.factors import CLASSES, FACTORS, PLACES, sample_factors
from pipeline_lib.world.render import render

FEATURES = ("colour", "shape", "texture", "scene")
IMAGES = 40
PROVENANCE = {"created": "2026-01-02T03:04:05Z", "pipeline_lib": "0.1.0"}


@dataclass(frozen=True)
class Architecture:
    """Heads per block and stage per block of a made-up model."""

    id: str
    heads: tuple[int, ...]
    stages: tuple[int, ...]
    conv: bool = False


MODELS = {
    "clip-small": Architecture("open_clip:local-dir:models/clip-small", (4, 4, 4, 4), (-1,) * 4),
    "deit": Architecture("timm:local-dir:models/deit", (3, 3, 3, 3, 3, 3), (-1,) * 6),
    "swin": Architecture("timm:local-dir:models/swin", (2, 2, 4, 4), (0, 0, 1, 1), conv=True),
}


def config(results: Path, **changes: Any) -> RunConfig:
    """Configuration of the made-up run; `changes` replace whole sections."""
    return load_config(settings(results) | changes, check_files=False)


def settings(results: Path) -> dict[str, Any]:
    """The same as it would stand in a file."""
    return {
        "run": "synthetic",
        "results": str(results),
        "seed": 0,
        "reference": {"id": "open_clip:local-dir:models/clip-reference"},
        "datasets": {
            "world": {"source": "world", "count": IMAGES, "seed": 7},
            "spurious": {"source": "world_spurious", "train": 24, "test": 16, "seed": 11},
        },
        "models": {name: {"id": shape.id} for name, shape in MODELS.items()},
        "concepts": {name: list(FACTORS[name]) for name in FEATURES},
        "templates": "resources/prompts/world.txt",
        "text_pool": "resources/text_pools/world.txt",
        "contributions": {"datasets": ["world", "spurious"], "per": "head", "tolerance": 1e-5},
        "maps": {"dataset": "world", "target": "image", "method": "compalign"},
        "scores": {"dataset": "world", "texts_per_component": 6, "token_heads": 2},
        "applications": {
            "ablation": {"dataset": "world"},
            "retrieval": {"dataset": "world", "components": 4, "k": [1, 5, 10], "queries": 4},
            "heatmaps": {"dataset": "world", "images": 3},
            "segmentation": {"dataset": "world", "protocols": ["C", "V"]},
            "codes": {"dataset": "world"},
            "spurious": {
                "dataset": "spurious",
                "spurious_words": ["ocean", "forest"],
                "core_words": ["circle", "square"],
                "top_k": 2,
                "draws": 5,
            },
        },
        "report": {"title": "Synthetic run", "examples": 8},
    }


def write_run(root: Path) -> Path:
    """Write the made-up run under `root` and return its folder of results."""
    run = root / "synthetic"
    ids = {name: _write_dataset(run, name) for name in ("world", "spurious")}
    _write_texts(run)
    for seed, (model, architecture) in enumerate(MODELS.items()):
        rng = np.random.default_rng([1, seed])
        components = component_table(architecture)
        _write_components(run, model, components, rng)
        _write_maps(run, model, rng)
        signal = _signals(components, rng)
        _write_scores(run, model, components, signal, rng)
        _write_cards(run, model, components, ids["world"], rng)
        _write_ablation(run, model, components, signal, rng)
        _write_retrieval(run, model, ids["world"], rng)
        _write_heatmaps(run, model, ids["world"], rng)
        _write_segmentation(run, model, ids["world"], rng)
        _write_spurious(run, model, components, rng)
        _write_codes(run, model, components, ids["world"], rng)
        _write_benchmarks(run, model, rng)
    _write_known(run)
    return run


def component_table(architecture: Architecture) -> pd.DataFrame:
    """Components of a made-up model in the order from the input to the output."""
    rows: list[tuple[str, str, int, int, int, int, str, int]] = [
        ("stem", "stem", -1, min(architecture.stages[0], 0), -1, -1, "patch_embed", 17)
    ]
    layer = 0
    for block, (heads, stage) in enumerate(
        zip(architecture.heads, architecture.stages, strict=False)
    ):
        if architecture.conv:
            rows.append(("conv", f"blocks.{block}.conv", layer, stage, block, -1, "conv", 17))
            layer += 1
        for head in range(heads):
            name = f"blocks.{block}.attn/head{head}"
            rows.append(("head", name, layer, stage, block, head, f"blocks.{block}.attn", 17))
        rows.append(
            ("mlp", f"blocks.{block}.mlp", layer + 1, stage, block, -1, f"blocks.{block}.mlp", 17)
        )
        layer += 2
    rows.append(("bias", "bias", layer, -1, -1, -1, "", 1))
    names = ["kind", "id", "layer", "stage", "block", "head", "module", "tokens"]
    table = pd.DataFrame(rows, columns=names)
    table.insert(0, "component", range(len(table)))
    table["rank"] = np.where(table["kind"] == "head", 12, 48)
    return table


def _write_dataset(run: Path, name: str) -> list[str]:
    folder = run / "world" / name
    (folder / "images").mkdir(parents=True, exist_ok=True)
    seed = {"world": 7, "spurious": 11}[name]
    rows = []
    for index in range(IMAGES):
        factors = sample_factors(seed, index)
        path = f"images/{index:05d}.png"
        Image.fromarray(render(factors, seed, index, size=64).image).save(folder / path)
        place = next(place for place, scenes in PLACES.items() if factors["scene"] in scenes)
        label = next(word for word, shapes in CLASSES.items() if factors["shape"] in shapes)
        rows.append(
            {"row": index, "image_id": path, "path": path, "active": True}
            | {"sha256": f"{index:064x}", "width": 64, "height": 64, "shard": index // 20}
            | {"split": ("train", "train", "train", "val", "test")[index % 5]}
            | {"label": factors["shape"] if name == "world" else label}
            | {"group": None if name == "world" else f"{label} on {place}"}
            | {"mask": None, "caption": f"a {factors['colour']} {factors['shape']}"}
            | factors
        )
    table = pd.DataFrame(rows)
    write_table("manifest", table, run / "manifest" / name / "images.parquet", PROVENANCE)
    bad = [("images/broken.jpg", "the file is truncated"), ("notes.png", "not an image")]
    rejected = pd.DataFrame(bad if name == "world" else [], columns=["path", "reason"])
    write_table("rejected", rejected, run / "manifest" / name / "rejected.parquet", PROVENANCE)
    return list(table["image_id"])


def _write_texts(run: Path) -> None:
    for seed, space in enumerate(("reference", "clip-small")):
        rng = np.random.default_rng([2, seed])
        rows = []
        for feature in FEATURES:
            centre = rng.normal(size=16)
            for text in FACTORS[feature]:
                vector = centre + 0.8 * rng.normal(size=16)
                rows.append(("concept", feature, text, vector / np.linalg.norm(vector)))
                rows.append(("pool", feature, f"a picture of {text}", rows[-1][3]))
        table = pd.DataFrame(rows, columns=["use", "feature", "text", "embedding"])
        write_table(
            "text_features", table, run / "features" / "texts" / f"{space}.parquet", PROVENANCE
        )


def _write_components(
    run: Path, model: str, components: pd.DataFrame, rng: np.random.Generator
) -> None:
    for dataset in ("world", "spurious"):
        facts = PROVENANCE | {"model": MODELS[model].id, "weight_hash": f"{model:0>16}"[:16]}
        path = run / "contributions" / model / f"{dataset}.components.parquet"
        write_table("components", components, path, facts)
        errors = np.sort(10 ** rng.normal(-6.4, 0.1, IMAGES))
        row = {"model": model, "dataset": dataset, "n": IMAGES, "width": 48}
        row |= {
            "components": len(components),
            "tolerance": 1e-5,
            "bytes": 1_200_000,
            "seconds": 4.0,
        }
        row |= {"median": float(np.median(errors)), "worst": float(errors.max())}
        row |= {"percentiles": np.percentile(errors, np.arange(101)).astype("float32")}
        path = run / "report" / "exactness" / model / f"{dataset}.parquet"
        write_table("exactness", pd.DataFrame([row]), path, PROVENANCE)


def _write_maps(run: Path, model: str, rng: np.random.Generator) -> None:
    methods = ["identity"] if model == "clip-small" else ["compalign", "ridge"]
    rows = []
    for method in methods:
        for split, n, drop in (("train", 32, 0.0), ("heldout", 8, 0.04)):
            cosine = 0.82 - drop + 0.02 * rng.normal() - 0.05 * (method == "ridge")
            cosine = 1.0 if method == "identity" else cosine
            recall = 1.0 if method == "identity" else cosine - 0.3
            rows.append(
                (
                    model,
                    "world",
                    method,
                    method == methods[0],
                    split,
                    n,
                    cosine,
                    recall,
                    min(recall + 0.3, 1.0),
                    3.0 * rng.random(),
                )
            )
    names = ["model", "dataset", "method", "chosen", "split", "n", "cosine"]
    table = pd.DataFrame(rows, columns=[*names, "recall_at_1", "recall_at_5", "seconds"])
    table["explained"] = np.where(table["method"] == "ridge", table["cosine"] ** 2, np.nan)
    for name in ("cosine", "recall_at_1", "recall_at_5"):
        table[f"{name}_low"], table[f"{name}_high"] = table[name] - 0.02, table[name] + 0.02
    write_table("map_metrics", table, run / "maps" / f"{model}.metrics.parquet", PROVENANCE)


def _signals(components: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Share of each feature carried by each component [c, feature]; late heads specialise."""
    depth = (components["layer"].clip(lower=0) / components["layer"].max()).to_numpy()
    weight = rng.gamma(0.4, size=(len(components), len(FEATURES))) * (0.1 + depth[:, None] ** 2)
    heads = np.flatnonzero(components["kind"] == "head")
    for place, feature in enumerate(FEATURES):
        weight[heads[-1 - place], FEATURES.index(feature)] += 4.0
    weight[components["kind"] == "bias"] = 0.0
    weight -= 0.05 * rng.random(weight.shape)
    return weight / weight.sum(axis=0)


def _write_scores(
    run: Path, model: str, components: pd.DataFrame, signal: np.ndarray, rng: np.random.Generator
) -> None:
    scores = []
    for row in components.itertuples():
        for place, feature in enumerate(FEATURES):
            share = float(signal[row.component, place])
            scores.append(
                (
                    model,
                    "world",
                    feature,
                    row.component,
                    row.id,
                    row.kind,
                    row.layer,
                    row.block,
                    row.head,
                    share,
                    float(np.tanh(3 * share)),
                    0.2 * share,
                    float(np.clip(share + 0.1 * rng.random(), 0, 1)),
                    share - 0.02,
                    share + 0.02,
                    0.01,
                    0.02,
                    share - float(np.delete(signal[row.component], place).max()),
                )
            )
    names = ["model", "dataset", "feature", "component", "id", "kind", "layer", "block", "head"]
    names += ["score", "score_published", "covariance", "variance_explained"]
    names += ["low", "high", "p_value", "q_value", "margin"]
    base = run / "scores" / model
    table = pd.DataFrame(scores, columns=names)
    write_table("scores", table, base / "world.scores.parquet", PROVENANCE)
    labels = _labels(model, components, signal, rng)
    write_table("labels", labels, base / "world.labels.parquet", PROVENANCE)
    write_table("roles", _roles(labels), base / "world.roles.parquet", PROVENANCE)


def _labels(
    model: str, components: pd.DataFrame, signal: np.ndarray, rng: np.random.Generator
) -> pd.DataFrame:
    strength = signal.clip(min=0).mean(axis=1) + 0.005
    strength = strength / strength.sum()
    rows = []
    for row in components[components["kind"] != "bias"].itertuples():
        weight = signal[row.component].clip(min=0) ** 1.5 + 0.002
        total = bound = 0.0
        for rank in range(6):
            feature = rng.choice(FEATURES, p=weight / weight.sum())
            text = rng.choice(FACTORS[feature])
            gain = float(0.3 * 0.6**rank * (0.7 + 0.3 * rng.random()))
            total, bound = total + gain, min(1.0, bound + gain * 1.25)
            rows.append(
                (
                    model,
                    "world",
                    row.component,
                    row.id,
                    row.kind,
                    row.layer,
                    row.head,
                    rank,
                    f"a picture of {text}",
                    feature,
                    gain,
                    total,
                    bound,
                    float(strength[row.component]),
                )
            )
    names = ["model", "dataset", "component", "id", "kind", "layer", "head", "rank", "text"]
    names += ["category", "variance", "cumulative", "cumulative_pca", "strength"]
    table = pd.DataFrame(rows, columns=names)
    table["cumulative_random"] = 0.5 * table["cumulative"]
    table["cumulative_random_texts"] = 0.6 * table["cumulative"]
    table["strength_low"], table["strength_high"] = 0.8 * table["strength"], 1.2 * table["strength"]
    return table.assign(cumulative_heldout=0.9 * table["cumulative"])


def _roles(labels: pd.DataFrame) -> pd.DataFrame:
    """Share of the first category in the variance explained; a role where that is over half."""
    rows = []
    for _, part in labels.groupby("component", sort=False):
        shares = part.groupby("category")["variance"].sum().sort_values(ascending=False)
        shares = shares / shares.sum()
        first, second = shares.index[0], float(shares.iloc[1]) if len(shares) > 1 else 0.0
        share, count = float(shares.iloc[0]), int((part["category"] == first).sum())
        facts = ["model", "dataset", "component", "id", "kind", "layer", "head"]
        row = part.iloc[0][facts].to_dict()
        row |= {"role": first if share > 0.5 else NO_ROLE, "share": share, "margin": share - second}
        chance = 0.01 if share > 0.5 else 0.4
        row |= {"p_value": chance, "q_value": chance, "texts_in_role": count}
        rows.append(row | {"texts": len(part), "entropy": 0.5, "effective_rank": 4.0})
    return pd.DataFrame(rows)


def _write_cards(
    run: Path, model: str, components: pd.DataFrame, images: list[str], rng: np.random.Generator
) -> None:
    rows = []
    for row in components[components["kind"] == "head"].itertuples():
        for rank, place in enumerate(rng.permutation(len(images))[:6]):
            score = float(2.0 - 0.2 * rank)
            rows.append(
                (model, "world", row.component, row.id, "a text", rank, images[place], score)
            )
    names = ["model", "dataset", "component", "id", "text", "rank", "image_id", "score"]
    table = pd.DataFrame(rows, columns=names)
    folder = run / "report" / "top_images" / model
    write_table("top_images", table, folder / "world.parquet", PROVENANCE)
    maps = table[table["rank"] < 3].drop(columns="score").assign(rows=4, columns=4)
    maps["map"] = [rng.normal(size=16).astype("float32") for _ in range(len(maps))]
    maps = maps.assign(left=0.1, top=0.0, right=0.9, bottom=1.0)
    write_table("token_maps", maps, folder / "world.maps.parquet", PROVENANCE)


def _write_known(run: Path) -> None:
    """What is known of the components, and the models side by side."""
    rng = np.random.default_rng(5)
    validation, confirmed, comparison, counterparts, similarity = [], [], [], [], []
    for model, architecture in MODELS.items():
        components = component_table(architecture)
        ids, base = components["id"].tolist(), {"model": model, "dataset": "world"}
        for truth in ("decodability", "ablation_loss", "joint_loss", "clip"):
            for score, level in (("score", 0.7), ("score_published", 0.4), ("random", 0.05)):
                value = level + 0.1 * rng.normal()
                row = {"across": "components", "truth": truth, "score": score, "feature": ""}
                ends = {"value": value, "low": value - 0.1, "high": value + 0.1}
                validation.append(base | row | ends | {"percentile": None, "top": "", "n": IMAGES})
        for place, feature in enumerate(FEATURES):
            best = ids[-2 - place]
            measured = {"value": 0.8, "percentile": 1.0 - 0.1 * place, "median": 0.1, "best": best}
            measured |= {"low": 0.7, "high": 0.9}
            row = {"feature": feature, "top": best, "score": 0.3, "components": len(ids)}
            for name in CONFIRMING:
                row |= {f"{name}_{key}": value for key, value in measured.items()}
            for end in VERDICTS:
                row |= {f"confirmed{end}": place == 0 and not end, f"candidates{end}": 1}
                row[f"confirmed{end}_share"] = 0.9 if row[f"confirmed{end}"] else 0.1
            confirmed += [base | row | {"by": by} for by in NAMING]
            depth = 0.9 - 0.2 * place
            where = {"depth": depth, "depth_low": depth - 0.02, "depth_high": depth + 0.02}
            where |= {"depth_spread": 0.1, "carriers": 3, "carriers_low": 2.4, "carriers_high": 3.6}
            share = {
                "carriers_share": 3 / len(ids),
                "components": len(ids),
                "top": best,
                "top_score": 0.3,
            }
            comparison.append(
                base | {"feature": feature} | where | share | {"heads": 0.7, "mlps": 0.3}
            )
        for other in MODELS:
            others = component_table(MODELS[other])
            for component in components.itertuples():
                like = others.iloc[component.component % len(others)]
                own = {"component": component.component, "id": component.id, "other_model": other}
                its = {"other_component": int(like["component"]), "other_id": str(like["id"])}
                counterparts.append(base | own | its | {"similarity": float(rng.uniform(0.2, 1))})
        for one, other in itertools.combinations(components.query("kind != 'bias'").index, 2):
            its = {"other_component": other, "other_id": ids[other]}
            alike = {"similarity": float(rng.uniform(-0.1, 1))}
            similarity.append(base | {"component": one, "id": ids[one]} | its | alike)
        _write_opened(run, model, components, rng)
    for name, rows, path in (
        ("validation", validation, "validation/world"),
        ("confirmed", confirmed, "validation/world.confirmed"),
        ("comparison", comparison, "comparison/world"),
        ("counterparts", counterparts, "comparison/world.counterparts"),
        ("similarity", similarity, "comparison/world.similarity"),
    ):
        made = PROVENANCE | {"images": IMAGES}
        write_table(name, pd.DataFrame(rows), run / f"{path}.parquet", made)


def _write_opened(
    run: Path, model: str, components: pd.DataFrame, rng: np.random.Generator
) -> None:
    """Parts of a model with their texts, and accuracy from texts alone."""
    parts = parts_of(components)
    rows = []
    for part in parts:
        for rank in range(3):
            text = f"a photo of {FEATURES[rank]} <b>{part.node}</b>"
            node = {"level": part.level, "node": part.node, "parent": part.parent}
            share = {"components": len(part.members), "share": len(part.members) / len(components)}
            said = {"rank": rank, "text": text, "category": FEATURES[rank], "variance": 0.2}
            rows.append(
                node | share | said | {"cumulative": 0.2 * rank, "cumulative_heldout": None}
            )
    base = {"model": model, "dataset": "world"}
    table = pd.DataFrame(rows).assign(**base)
    folder = run / "scores" / model
    write_table("hierarchy", table, folder / "world.hierarchy.parquet", PROVENANCE)
    heads = table[table["node"].isin(components.query("kind == 'head'")["id"].tail(2))]
    groups = [
        heads.assign(level="tokens", parent=heads["node"], node=heads["node"] + f": {name}")
        for name in ("no patch", "object", "background")
    ]
    tokens = pd.concat(groups).assign(share=lambda t: t["share"] / 3)
    write_table("hierarchy", tokens, folder / "world.tokens.parquet", PROVENANCE)
    rows = []
    for directions, speed in (
        ("texts", 0.3), ("pca", 0.5), ("random_texts", 0.25), ("random", 0.1),
    ):  # fmt: skip
        for texts in (-1, 0, 1, 2, 5, 10):
            for feature in FEATURES:
                reached = 0.9 if texts < 0 else 0.2 + 0.7 * (1 - np.exp(-speed * texts))
                place = {"directions": directions, "texts": texts, "feature": feature}
                rows.append(place | {"accuracy": reached - 0.02 * rng.random()})
    table = pd.DataFrame(rows).assign(**base, replaced="heads", reader="linear", n=IMAGES)
    labels = table[table["feature"] == FEATURES[0]].assign(feature="label", reader="zero_shot")
    table = pd.concat([table, labels])
    write_table("reconstruction", table, folder / "world.reconstruction.parquet", PROVENANCE)


def _write_ablation(
    run: Path, model: str, components: pd.DataFrame, signal: np.ndarray, rng: np.random.Generator
) -> None:
    classifier = "zero_shot" if model == "clip-small" else "own"
    tables = []
    for target in ("shape", "colour"):
        curves = _ablation_curves(components, signal[:, FEATURES.index(target)], rng)
        tables.append(curves.assign(target=target))
    table = pd.concat(tables).assign(model=model, dataset="world", classifier=classifier, n=8)
    table = with_intervals(table)
    path = run / "applications" / "ablation" / model / "world.parquet"
    write_table("ablation", table, path, PROVENANCE)


def _ablation_curves(
    components: pd.DataFrame, share: np.ndarray, rng: np.random.Generator
) -> pd.DataFrame:
    top, floor = 0.95 - 0.02 * rng.random(), 1 / 8
    layers = sorted(set(components.query("layer >= 0 and kind != 'bias'")["layer"]))
    rows: list[tuple[str, int, str, float]] = [("none", 0, "", top)]
    for curve, order in (("from_input", layers), ("from_output", layers[::-1])):
        rows.append((curve, 0, "", top))
        for step, layer in enumerate(order, start=1):
            left = 1 - (step / len(layers)) ** (3 if curve == "from_input" else 0.6)
            rows.append((curve, step, f"layer {layer}", floor + (top - floor) * left))
    rows.append(("all_mlp", len(layers) // 2, "all MLPs", top - 0.03))
    rows.append(("all_attention", len(layers) // 2, "all attention", floor + 0.1))
    for row in components.itertuples():
        loss = 0.15 * max(float(share[row.component]), 0.0)
        rows.append(("single", 1, row.id, top - loss))
    return pd.DataFrame(rows, columns=["curve", "step", "ablated", "accuracy"])


def _write_retrieval(run: Path, model: str, images: list[str], rng: np.random.Generator) -> None:
    base = {"components": 0.85, "representation": 0.55, "random": 0.3, "clip": 0.8}
    rows, examples = [], []
    for query in ("text", "image"):
        for feature in FEATURES:
            for measured in FEATURES:
                for method, level in base.items():
                    for k in (1, 5, 10):
                        hit = level if measured == feature else 0.2 + 0.1 * (method != "components")
                        precision = float(np.clip(hit - 0.01 * k + 0.04 * rng.normal(), 0, 1))
                        rows.append(
                            (
                                model,
                                "world",
                                query,
                                feature,
                                measured,
                                method,
                                4,
                                k,
                                precision,
                                4,
                                IMAGES,
                            )
                        )
            for method in ("components", "representation"):
                probe = FACTORS[feature][0] if query == "text" else images[3]
                for rank, place in enumerate(rng.permutation(len(images))[:8]):
                    correct = bool(rng.random() < base[method])
                    examples.append(
                        (
                            model,
                            "world",
                            query,
                            feature,
                            probe,
                            method,
                            rank,
                            images[place],
                            float(1 - 0.05 * rank),
                            correct,
                        )
                    )
    names = ["model", "dataset", "query", "feature", "measured", "method", "components", "k"]
    folder = run / "applications" / "retrieval" / model
    table = pd.DataFrame(rows, columns=[*names, "precision", "queries", "n"])
    precision = table["precision"]
    table = table.assign(low=precision - 0.05, high=precision + 0.05, map=0.8 * precision)
    write_table("retrieval", table, folder / "world.parquet", PROVENANCE)
    names = ["model", "dataset", "query", "feature", "probe", "method", "rank", "image_id"]
    table = pd.DataFrame(examples, columns=[*names, "score", "correct"])
    write_table("retrieval_examples", table, folder / "world.examples.parquet", PROVENANCE)
    names = ["model", "dataset", "query", "feature", "way", "by", "components"]
    rows = [(model, "world", q, f, "sum", "score", 4) for q in ("text", "image") for f in FEATURES]
    table = pd.DataFrame(rows, columns=names).assign(precision=0.8, queries=4, n=9, chosen=True)
    write_table("retrieval_choices", table, folder / "world.choices.parquet", PROVENANCE)


def _write_heatmaps(run: Path, model: str, images: list[str], rng: np.random.Generator) -> None:
    folder = run / "applications" / "heatmaps" / model
    rows = []
    (folder / "world").mkdir(parents=True, exist_ok=True)
    for place in range(3):
        for direction in ("circle", "ocean"):
            file = f"world/{place}-{direction}.png"
            ramp = np.linspace(0, 255, 64, dtype="uint8")
            picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(90)), -1)
            Image.fromarray(np.roll(picture, 9 * place, axis=1)).save(folder / file)
            rows.append(
                (
                    model,
                    "world",
                    images[place],
                    direction,
                    float(0.3 + 0.3 * rng.random()),
                    float(0.1 + 0.1 * rng.random()),
                    file,
                )
            )
    names = ["model", "dataset", "image_id", "direction", "mass", "area", "file"]
    table = pd.DataFrame(rows, columns=names)
    write_table("heatmaps", table, folder / "world.parquet", PROVENANCE)


def _write_segmentation(run: Path, model: str, images: list[str], rng: np.random.Generator) -> None:
    rows = []
    for protocol in ("C", "V"):
        for method, level in (("decomposition", 0.6), ("raw_attention", 0.45), ("area", 0.2)):
            score = level + 0.05 * rng.random()
            background = score + 0.2 if protocol == "C" else np.nan
            miou = score + 0.1 if protocol == "C" else np.nan
            rows.append(
                (
                    model,
                    "world",
                    protocol,
                    method,
                    score + 0.25,
                    score,
                    background,
                    miou,
                    score + 0.15,
                    20,
                    score - 0.05,
                    score + 0.15,
                )
            )
    names = ["model", "dataset", "protocol", "method", "pixel_accuracy", "iou_object"]
    names += ["iou_background", "miou", "map", "n", "low", "high"]
    table = pd.DataFrame(rows, columns=names)
    write_table(
        "segmentation",
        table,
        run / "applications" / "segmentation" / model / "world.parquet",
        PROVENANCE,
    )
    _write_segmentation_examples(run, model, images)


def _write_segmentation_examples(run: Path, model: str, images: list[str]) -> None:
    folder = run / "applications" / "segmentation" / model
    (folder / "world").mkdir(parents=True, exist_ok=True)
    rows = []
    for place, (name, iou) in enumerate({"best": 0.9, "median": 0.6, "worst": 0.1}.items()):
        Image.new("RGB", (320, 280), (40 + 60 * place, 90, 120)).save(folder / f"world/{name}.png")
        rows.append((model, "world", name, images[place], iou, f"world/{name}.png"))
    columns = ["model", "dataset", "place", "image_id", "iou_object", "file"]
    table = pd.DataFrame(rows, columns=columns)
    write_table("segmentation_examples", table, folder / "world.examples.parquet", PROVENANCE)


def _write_codes(
    run: Path, model: str, components: pd.DataFrame, images: list[str], rng: np.random.Generator
) -> None:
    codes, carriers = [], []
    heads = components[components["kind"] == "head"]
    base = {"model": model, "dataset": "world"}
    for image in images[:8]:
        for rank, feature in enumerate(FEATURES):
            text = f"a picture of {rng.choice(FACTORS[feature])}"
            row = base | {"image_id": image, "rank": rank, "text": text}
            weight = {"weight": 0.5 - 0.1 * rank, "explained": 0.3 + 0.1 * rank}
            codes.append(row | {"category": feature} | weight)
            for order, part in enumerate(heads.sample(2, random_state=rank).itertuples()):
                own = {"order": order, "component": part.component, "id": part.id}
                carriers.append(row | own | {"share": 0.6 - 0.2 * order})
    folder = run / "applications" / "codes" / model
    write_table("codes", pd.DataFrame(codes), folder / "world.parquet", PROVENANCE)
    shares = [{"texts": 1 + rank, "explained": 0.3 + 0.1 * rank} for rank in range(len(FEATURES))]
    summary = pd.DataFrame(shares).assign(**base, n=8, reaching=1.0)
    summary = summary.assign(
        explained_low=summary["explained"] - 0.02, explained_high=summary["explained"] + 0.02
    )
    write_table("code_summary", summary, folder / "world.summary.parquet", PROVENANCE)
    table = pd.DataFrame(carriers)
    write_table("code_carriers", table, folder / "world.carriers.parquet", PROVENANCE)


def _write_spurious(
    run: Path, model: str, components: pd.DataFrame, rng: np.random.Generator
) -> None:
    groups = [f"{label} on {place}" for label in CLASSES for place in PLACES]
    ids = list(components.query("kind == 'head'")["id"])
    rows = []

    def add(method: str, draw: int, accuracies: dict[str, float], ablated: list[str]) -> None:
        values = accuracies | {"worst": min(accuracies.values())}
        for average in ("mean", "test", "train_weighted"):
            values[average] = float(np.mean(list(accuracies.values()))) + 0.01 * (average != "mean")
        for group, accuracy in values.items():
            rows.append(
                (model, "spurious", method, len(ablated), draw, group, accuracy, 4, ablated)
            )

    usual = {"curved on water", "angular on land"}
    full = {group: 0.96 if group in usual else 0.62 + 0.1 * rng.random() for group in groups}
    add("full", 0, full, [])
    lift = {
        group: value - 0.01 if group in usual else value + 0.15 for group, value in full.items()
    }
    add("ablated", 0, lift, ids[-2:])
    for draw in range(5):
        noise = {group: value - 0.03 * rng.random() for group, value in full.items()}
        add("random", draw, noise, list(rng.choice(ids, 2, replace=False)))
    names = ["model", "dataset", "method", "components", "draw", "group", "accuracy", "n"]
    table = pd.DataFrame(rows, columns=[*names, "ablated"])
    folder = run / "applications" / "spurious" / model
    write_table("spurious", table, folder / "spurious.parquet", PROVENANCE)
    keys = ["model", "dataset", "method", "group"]
    means = table.groupby(keys, sort=False)[["components", "accuracy"]].mean().reset_index()
    full = means[means["method"] == "full"].set_index("group")["accuracy"]
    means["gain"] = means["accuracy"] - means["group"].map(full)
    for name in ("accuracy", "gain"):
        means[f"{name}_low"], means[f"{name}_high"] = means[name] - 0.05, means[name] + 0.05
    write_table(
        "spurious_summary",
        means.astype({"components": float}).assign(seeds=20),
        folder / "spurious.summary.parquet",
        PROVENANCE,
    )


def _write_benchmarks(run: Path, model: str, rng: np.random.Generator) -> None:
    for stage, name in (
        ("contributions", f"{model}/world.0"),
        ("maps", model),
        ("scores", f"{model}/world"),
        ("applications/ablation", f"{model}/world"),
    ):
        path = run / "benchmarks" / stage / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds = float(1 + 9 * rng.random())
        path.write_text(f"s\th:m:s\tmax_rss\tcpu_time\n{seconds:.4f}\t0:00:09\t512.25\t9.0\n")
