"""Ways to score components for a feature, held against the truth about the components.

    python -m benchmarks.score_methods results/demo [--dataset world] [--docs docs/scores.md]

Reads the dumps, maps and truths of a finished run whose images have known factors. Every way sees
the same mapped contributions `s_c` of the components in the subspace of the feature's texts, and
their sum `s`; none sees a truth. Two more losses stand beside those of the table `truth`: a reader
that is always right loses nothing by the ablation of a component that others agree with, so these
are of readers that are made to err.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline_lib.artifacts import read_table
from pipeline_lib.coordinates import Encoded, Source, encode
from pipeline_lib.dumps import open_dump
from pipeline_lib.features import concept_embeddings
from pipeline_lib.maps import load_maps, without_test
from pipeline_lib.scores import Moments, feature_basis, moments, ordered_basis
from pipeline_lib.truths import RIDGE, Factors, folds, linear_reader
from pipeline_lib.validation import ranks

#: Factors whose first component must be right.
MAIN = ("colour", "shape", "texture", "scene")
#: Truths, the losses that confirm a component together with decodability, and the place it needs.
LOSSES = ("ablation_loss", "joint_loss", "margin_loss", "few_shot_loss", "noisy_loss")
TRUTHS, DECILE = ("decodability", *LOSSES, "clip"), 0.9
#: Row that counts the factors for which any component at all would be confirmed.
POSSIBLE = "(any component)"
#: Numbers of images to fit few-shot readers on, sizes of the noise, and random draws of each.
SHOTS, NOISE, DRAWS = (16, 32, 64, 128, 256, 512), (0.25, 0.5, 1.0, 2.0, 4.0), 20


def _share(own: Tensor, cross: Tensor, total: Tensor, spread: Tensor) -> Tensor:
    return _trace(cross) / _trace(total)


def _correlation(own: Tensor, cross: Tensor, total: Tensor, spread: Tensor) -> Tensor:
    return _trace(cross) / (_trace(own) * _trace(total)).sqrt().clamp_min(1e-30)


def _discounted(own: Tensor, cross: Tensor, total: Tensor, spread: Tensor) -> Tensor:
    return _trace(cross) / (spread * _trace(total)).sqrt().clamp_min(1e-30)


def _whitened(own: Tensor, cross: Tensor, total: Tensor, spread: Tensor) -> Tensor:
    return _trace(torch.linalg.solve(total + _ridge(total), cross)) / len(total)


def _predicted(own: Tensor, cross: Tensor, total: Tensor, spread: Tensor) -> Tensor:
    fit = torch.linalg.solve(own + _ridge(own), cross)
    return _trace(cross.transpose(-1, -2) @ fit) / _trace(total)


def _published(own: Tensor, cross: Tensor, total: Tensor, spread: Tensor) -> Tensor:
    scale = (_diagonal(own) * _diagonal(total)).sqrt()
    return (_diagonal(cross) / scale.clamp_min(1e-30)).mean(dim=-1)


def _trace(matrices: Tensor) -> Tensor:
    return _diagonal(matrices).sum(dim=-1)


def _diagonal(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1)


def _ridge(matrices: Tensor) -> Tensor:
    size = RIDGE * _diagonal(matrices).mean(dim=-1).clamp_min(1e-30)
    return size[..., None, None] * torch.eye(matrices.shape[-1], dtype=matrices.dtype)


#: Name to: what it is, whether the mean text is taken off first, and the score from the
#: covariances `own` (of s_c), `cross` (of s_c with s), `total` (of s) and the variance of the
#: component in all directions.
WAYS: dict[str, tuple[str, bool, Callable[..., Tensor]]] = {
    "share": ("trace of cov(s_c, s) over that of cov(s, s); the default", False, _share),
    "share, centred texts": ("the same in the texts' differences alone", True, _share),
    "correlation": ("trace of cov(s_c, s) over the root of both variances", False, _correlation),
    "correlation, centred texts": ("the same in the texts' differences", True, _correlation),
    "discounted": (
        "as correlation, with the component's variance in all directions", False, _discounted,
    ),
    "whitened": ("share in directions scaled to equal variance of s", False, _whitened),
    "predicted": ("share of the variance of s that a linear fit on s_c gives", False, _predicted),
    "predicted, centred texts": ("the same in the texts' differences", True, _predicted),
    "published": ("mean correlation over QR directions", False, _published),
}  # fmt: skip


def few_shot_loss(encoded: Encoded, factors: Factors) -> Float[np.ndarray, "c f"]:
    """Accuracy that readers fitted on few images lose when one component is mean-ablated.

    Of the numbers of `SHOTS` the one whose accuracy, with nothing ablated, is nearest to the middle
    between chance and 1, factor by factor; on the other images, mean over `DRAWS` draws.
    """
    wanted, generator = factors.one_hot(), np.random.default_rng(0)
    summing, rows, whole = _rows(encoded)
    right = np.zeros((len(SHOTS), 1 + len(encoded.bases.vectors), len(factors.names)))
    for place, number in enumerate(SHOTS):
        for _ in range(DRAWS):
            order = generator.permutation(len(encoded))
            fitted, seen = np.sort(order[:number]), np.sort(order[number:])
            reader, offset = linear_reader(whole[fitted], wanted[fitted])
            through = summing @ reader
            beside, logits = rows[seen], whole[seen] @ reader + offset
            removed = torch.stack([beside[:, s] @ through[s] for s in encoded.bases.slices])
            right[place] += _right(logits, removed, factors, seen) / (DRAWS * len(seen))
    return _most_sensitive(right, factors)


def noisy_loss(encoded: Encoded, factors: Factors) -> Float[np.ndarray, "c f"]:
    """Accuracy lost when one component is mean-ablated and the representation is noisy.

    The reader is that of `ablation_loss`. Noise has the covariance of the representation, in the
    size of `NOISE` whose accuracy with nothing ablated is nearest to the middle between chance
    and 1, factor by factor; mean over `DRAWS` draws.
    """
    wanted, generator = factors.one_hot(), np.random.default_rng(0)
    summing, rows, whole = _rows(encoded)
    centred = whole - whole.mean(dim=0)
    right = np.zeros((len(NOISE), 1 + len(encoded.bases.vectors), len(factors.names)))
    for fitted, seen in folds(len(encoded), 0):
        reader, offset = linear_reader(whole[fitted], wanted[fitted])
        through = summing @ reader
        beside = rows[seen]
        removed = torch.stack([beside[:, s] @ through[s] for s in encoded.bases.slices])
        logits, spread = whole[seen] @ reader + offset, centred @ reader
        for place, size in enumerate(NOISE):
            for _ in range(DRAWS // 4):
                mixed = torch.from_numpy(generator.normal(size=(len(seen), len(spread))))
                noise = size * mixed @ spread / len(spread) ** 0.5
                found = _right(logits + noise, removed, factors, seen)
                right[place] += found / (DRAWS // 4 * len(encoded))
    return _most_sensitive(right, factors)


def _rows(encoded: Encoded) -> tuple[Tensor, Tensor, Tensor]:
    """What sums coordinates, the coordinates less their mean, and the representation."""
    bases = encoded.bases
    summing = bases.project(torch.eye(bases.width).expand(len(bases.vectors), -1, -1)).double()
    rows = encoded.rows(np.arange(len(encoded))).double()
    return summing, rows - rows.mean(dim=0), rows @ summing


def _right(logits: Tensor, removed: Tensor, factors: Factors, seen: np.ndarray) -> np.ndarray:
    """Right predictions with nothing ablated, and with each component."""
    whole = factors.correct(logits, seen)[None]
    return np.concatenate([whole, factors.correct(logits - removed, seen)])


def _most_sensitive(
    right: Float[np.ndarray, "s c1 f"], factors: Factors
) -> Float[np.ndarray, "c f"]:
    """Losses at the setting whose full accuracy is nearest to the middle, factor by factor."""
    middle = (1 + 1 / np.array(factors.counts)) / 2
    chosen = np.abs(right[:, 0] - middle).argmin(axis=0)
    best = right[chosen, :, np.arange(len(factors.names))].T
    return best[0] - best[1:]


def scores_by_way(
    encoded: Encoded, found: Moments, features: dict[str, Float[Tensor, "k e"]]
) -> dict[str, Float[np.ndarray, "c f"]]:
    """Scores of every component for every feature, by each way."""
    rows = encoded.rows(np.arange(len(encoded))).double() - found.mean
    spread = found.variances()
    result = {name: [] for name in WAYS}  # type: ignore[var-annotated]
    for texts in features.values():
        for name, (_, centred, score) in WAYS.items():
            chosen = texts - texts.mean(dim=0) if centred else texts
            basis = ordered_basis(chosen) if name == "published" else feature_basis(chosen)
            read = found.blocks @ basis
            parts = torch.stack([rows[:, s] @ read[s] for s in found.bases.slices])
            whole = parts.sum(dim=0)
            own = parts.transpose(1, 2) @ parts / len(rows)
            cross = parts.transpose(1, 2) @ whole / len(rows)
            result[name].append(score(own, cross, whole.T @ whole / len(rows), spread).numpy())
    constant = (spread <= 1e-12 * found.total.trace()).numpy()
    return {
        name: np.where(constant[:, None], 0.0, np.stack(values, axis=1))
        for name, values in result.items()
    }


def compare(root: Path, model: str, dataset: str) -> pd.DataFrame:
    """One row per way for one model."""
    manifest = root / "manifest" / dataset / "images.parquet"
    dump = open_dump(root / "contributions" / model / f"{dataset}.zarr", manifest)
    maps = load_maps(root / "maps" / f"{model}.safetensors")
    known = read_table("truth", root / "scores" / model / f"{dataset}.truth.parquet")
    space = model if maps.weights is None else "reference"
    texts = read_table("text_features", root / "features" / "texts" / f"{space}.parquet")
    features = concept_embeddings(texts)
    positions = without_test(dump.manifest["split"])
    encoded = encode(Source(dump.n, dump.contributions, precision=dump.precision).at(positions))
    found = moments(encoded, maps)
    factors = Factors.of(
        dump.manifest.iloc[positions], [name for name in features if name in dump.manifest]
    )
    for name, loss in (("few_shot_loss", few_shot_loss), ("noisy_loss", noisy_loss)):
        wide = pd.DataFrame(loss(encoded, factors), columns=list(factors.names))
        long = wide.melt(var_name="feature", value_name=name, ignore_index=False)
        known = known.merge(
            long.reset_index(names="component"), on=["feature", "component"], how="left"
        )
    varying = (found.variances() > 1e-12 * found.total.trace()).numpy()
    rows = []
    for name, values in scores_by_way(encoded, found, features).items():
        facts: dict[str, object] = {"model": model, "way": name, "images": len(encoded)}
        for truth in TRUTHS:
            agreed = []
            for place, feature in enumerate(features):
                true = known[known["feature"] == feature].sort_values("component")[truth]
                if not true.isna().any():
                    pair = values[varying, place], true.to_numpy()[varying]
                    agreed.append(float(np.prod([ranks(v[:, None]) for v in pair], axis=0).sum()))
            facts[truth] = float(np.mean(agreed))
        for loss in LOSSES:
            facts[f"confirmed by {loss}"] = sum(
                _right_ones(known, feature, loss, varying)[values[varying, place].argmax()]
                for place, feature in enumerate(features)
                if feature in MAIN
            )
        rows.append(facts)
    any_of = {
        f"confirmed by {loss}": sum(
            _right_ones(known, name, loss, varying).any() for name in features if name in MAIN
        )
        for loss in LOSSES
    }
    rows.append({"model": model, "way": POSSIBLE, "images": len(encoded), **any_of})
    return pd.DataFrame(rows)


def _right_ones(
    known: pd.DataFrame, feature: str, loss: str, varying: np.ndarray
) -> Bool[np.ndarray, " v"]:
    """Which components are in the top decile of decodability and of a loss."""
    part = known[known["feature"] == feature].sort_values("component")[varying]
    right = np.ones(len(part), dtype=bool)
    for truth in ("decodability", loss):
        values = part[truth].to_numpy()
        places = (values[:, None] >= values).mean(axis=1)
        right &= (places > DECILE) & (values > np.median(values))
    return right


def as_markdown(table: pd.DataFrame) -> str:
    """The mean over models of every way, and what each way confirms in each model."""
    counts = [f"confirmed by {loss}" for loss in LOSSES]
    means = table.dropna().groupby("way", sort=False)[list(TRUTHS)].mean()
    sums = table.groupby("way", sort=False)[counts].sum()
    of = 4 * table["model"].nunique()
    lines = [
        "| score | " + " | ".join(name.replace("_", " ") for name in TRUTHS) + " |",
        "|---" * (1 + len(TRUTHS)) + "|",
        *(f"| {way} | " + " | ".join(f"{v:.3f}" for v in row) + " |" for way, row in
          zip(means.index, means.to_numpy(), strict=True)),
        "",
        f"First components in the top decile of decodability and of a loss, of {of} (colour, "
        "shape, texture and scene of each model); in brackets the models with all four. The last "
        "row counts those for which there is any such component: no score could confirm more.",
        "",
        "| score | " + " | ".join(loss.replace("_", " ") for loss in LOSSES) + " |",
        "|---" * (1 + len(LOSSES)) + "|",
    ]  # fmt: skip
    for way, row in sums.iterrows():
        rows = table[table["way"] == way]
        cells = []
        for name in counts:
            whole = ", ".join(rows.loc[rows[name] == len(MAIN), "model"])
            cells.append(f"{int(row[name])} ({whole or 'none'})")
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    default, possible = (sums.loc[name].astype(int) for name in ("share", POSSIBLE))
    pairs = [
        f"{a} of {b} by {c.split(' by ')[1].replace('_', ' ')}"
        for a, b, c in zip(default, possible, counts)
    ]
    lines += ["", f"Of those that are possible the default confirms {', '.join(pairs)}."]
    return "\n".join(lines)


def page(table: pd.DataFrame, command: str) -> str:
    """The page docs/scores.md."""
    return "\n".join(
        [
            "# Scores: which way to score components for a feature",
            "",
            f"Made on {date.today().isoformat()} by `{command}` on {platform.machine()} "
            f"({torch.get_num_threads()} threads), from {int(table['images'].max())} images of "
            "each model (test images left out). Spearman correlations, over components and "
            "averaged over features and models, of each score with each truth "
            "([validation](validation.md) says what these are; *few-shot loss* and *noisy loss* "
            "are ablation losses of readers that are fitted on few images, or read a noisy "
            "representation, so that they err about as often as not). No number of them was tuned "
            "after its result was known. But they were not chosen blindly: the losses beside "
            "*ablation loss* were added when it was known that it is zero for nearly all "
            "components, *noisy loss* after *few-shot loss* had been seen for some models, and "
            "the scores after the other truths of colour were known.",
            "",
            *(f"- *{name}*: {what}." for name, (what, _, _) in WAYS.items()),
            "",
            as_markdown(table),
            "",
        ]
    )


def main() -> None:
    """Compare the ways on every model of a run, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.score_methods", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run's results")
    parser.add_argument("--dataset", default="world")
    parser.add_argument("--docs", type=Path)
    asked = parser.parse_args()
    tables = []
    for path in sorted((asked.run / "maps").glob("*.json")):
        tables.append(compare(asked.run, path.stem, asked.dataset))
        print(tables[-1].round(3).to_string(), flush=True)
    table = pd.concat(tables, ignore_index=True)
    print(as_markdown(table))
    if asked.docs:
        command = f"python -m benchmarks.score_methods {asked.run} --docs {asked.docs}"
        asked.docs.write_text(page(table, command), "utf-8")


if __name__ == "__main__":
    main()
