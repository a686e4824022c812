"""Ways to score components for a feature, held against the truth about the components.

    python -m benchmarks.score_methods results/demo [--docs docs/scores.md]

Reads the dumps, maps and truths of a finished run whose images have known factors. Every way sees
the same mapped contributions `s_c` of the components in the subspace of the feature's texts, and
their sum `s`; none sees a truth. More truths stand beside those of the table `truth`. A reader that
is always right loses nothing by the ablation of a component that others agree with: so there are
losses of readers that are made to err, and of readers that expect ablation. A component of many
coordinates is easier to read than a head: so there is a decodability of as many as a head has.
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
from pipeline_lib.scores import Moments, feature_basis, moments, ordered_basis, sum_blocks
from pipeline_lib.truths import RIDGE, Factors, banzhaf, folds, kept_halves, linear_reader
from pipeline_lib.validation import DECILE, ranks

#: Factors whose first component must be right.
MAIN = ("colour", "shape", "texture", "scene")
#: Losses that confirm a component together with decodability.
LOSSES = (
    "ablation_loss", "joint_loss", "margin_loss", "few_shot_loss", "noisy_loss",
    "prepared_loss", "refitted_loss", "refitted_accuracy",
)  # fmt: skip
TRUTHS = ("decodability", "narrow_decodability", "decodability_in_words", *LOSSES, "clip")
#: Decodability and loss that confirm a component together.
PAIRS = (
    *(("decodability", loss) for loss in LOSSES),
    ("decodability within its interval", "joint_loss"),
    *(("narrow_decodability", loss) for loss in ("joint_loss", "prepared_loss", "refitted_loss")),
    *(
        ("decodability_in_words", loss)
        for loss in ("ablation_loss", "joint_loss", "prepared_loss", "refitted_loss")
    ),
)
#: Truths that name another component than the scores for colour in some models.
FIRST_BY = ("decodability", "decodability_in_words", "joint_loss", "refitted_loss")
#: Redraws of the images for intervals of decodability, and their level (one-sided).
REDRAWS, LEVEL = 1000, 0.95
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
    "whitened, centred texts": ("the same in the texts' differences", True, _whitened),
    "predicted": ("share of the variance of s that a linear fit on s_c gives", False, _predicted),
    "predicted, centred texts": ("the same in the texts' differences", True, _predicted),
    "published": ("mean correlation over QR directions", False, _published),
}  # fmt: skip


#: Truth to what it is.
MORE_TRUTHS = {
    "narrow decodability": (
        "decodability from as many leading principal coordinates of the component as the narrowest "
        "head has"
    ),
    "decodability within its interval": (
        "in the top decile of decodability, where only components count as above that are so in "
        f"{LEVEL:.0%} of {REDRAWS} redraws of the images"
    ),
    "few shot loss, noisy loss": (
        "ablation losses of readers that are fitted on few images, or read a noisy representation, "
        "so that they err about as often as not"
    ),
    "prepared loss": (
        "as joint loss, by a reader that is fitted to have the least expected squares when random "
        "halves of the components are ablated"
    ),
    "refitted loss, refitted accuracy": (
        "R² or accuracy lost on average over random halves of the others ablated, readers fitted "
        "anew to what each half leaves"
    ),
}
#: What was compared, and in which order it was tried.
INTRODUCTION = "\n\n".join(
    [
        "# Scores: which way to score components for a feature",
        "Spearman correlations, over components and averaged over features and models, of each "
        "score with each truth ([validation](validation.md) says what these are); then how often "
        "the component that a score names first is among the best by two truths.",
        "The scores:",
        "\n".join(f"- *{name}*: {what}." for name, (what, _, _) in WAYS.items()),
        "The truths beside those of the table `truth`:",
        "\n".join(f"- *{name}*: {what}." for name, what in MORE_TRUTHS.items()),
        """## In which order these were tried

All choices were made on the run `demo`, with its earlier results in view:

1. the scores but *whitened, centred texts*, decodability and ablation loss. Ablation loss is 0 for
   nearly all components: the reader is always right, and where several components carry a factor it
   is right without any one of them, on however many images;
2. joint loss, margin loss, few shot loss, and, when these were known for some models, noisy loss;
3. narrow decodability, decodability within its interval, and prepared loss. What should confirm
   (the first and the last) was written down before it was computed. It confirmed no more;
4. refitted loss and accuracy. With them some component is among the best by both truths for every
   factor, and the whitened score names all of these. That is chance: it names the last MLP for
   colour by the direction that all words of colour share, in which the representation hardly varies
   and which tells no colours apart. Without that direction (*whitened, centred texts*) it names
   what *share* names. It is not used;
5. decodability in words. The colour is read best from the last MLP of `deit`, `dino` and `dinov2`
   by a reader that may use all its directions. In those of the words of colour, which the scores
   are about, it is read best from the head that the scores name.

The models of the demo are not independent. `dino` and `dinov2` were started from the weights of
`deit`, and so were the image towers of `clip-small` and of the reference CLIP: what they have in
common with it is one finding and not several. One pair (decodability in words and joint loss) and
one score (published) were then fixed, to be held against models that are trained anew from other
seeds and see other images (`benchmarks/other_seed.yaml`); nothing is chosen on these. They are
seven models from four trainings from random weights, none of which shares weights with the
reference. The first, `deit`, was looked at when it alone was there (all four factors confirmed by
that pair). This was written before the contributions of any other were computed.

The result, on `demo-anew` (the last section): that pair and that score confirm 28 of 28 factors, in
all seven models. The default score is confirmed for 27 of 28 by decodability and joint loss (all
four factors in the CLIP and in five others), for 26 of 28 in words. By decodability and the loss of
ablating one component alone it is 20 of 28, and no score could have more than 23: that loss stays 0
where a second component carries the factor. That colour is not confirmed in three models of the
demo is a finding about the weights of the one `deit` that they share.""",
    ]
)


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


def prepared_loss(encoded: Encoded, factors: Factors) -> Float[np.ndarray, "c f"]:
    """Accuracy lost with random halves of the others ablated, by a reader fitted for that.

    As `joint_loss`, but the ridge regression has the least expected squares over random halves: the
    sums of products about the means are a quarter of those of the whole and a quarter of those of
    each component.
    """
    wanted, count = factors.one_hot(), len(encoded.bases.vectors)
    summing, rows, whole = _rows(encoded)
    kept = kept_halves(count, 0)
    right = np.zeros((len(kept), len(factors.names)))
    for fitted, seen in folds(len(encoded), 0):
        target, own = wanted[fitted] - wanted[fitted].mean(dim=0), rows[fitted]
        own, summed = own - own.mean(dim=0), whole[fitted] - whole[fitted].mean(dim=0)
        parts = [own[:, s] @ summing[s] for s in encoded.bases.slices]
        gram = (summed.T @ summed + sum(part.T @ part for part in parts)) / 4
        gram += _ridge(gram)
        reader = torch.linalg.solve(gram, summed.T @ target / 2)
        offset = wanted[fitted].mean(dim=0) - rows[fitted].mean(dim=0) @ summing @ reader
        through = summing @ reader
        beside = rows[seen] - rows[fitted].mean(dim=0)
        each = torch.stack([beside[:, s] @ through[s] for s in encoded.bases.slices])
        shown = torch.from_numpy(kept.astype(float)) @ each.flatten(1)
        ground = rows[fitted].mean(dim=0) @ through + offset
        right += factors.correct(shown.view(len(kept), *each.shape[1:]) + ground, seen)
    return banzhaf(kept, right / len(encoded))


def refitted_losses(
    encoded: Encoded, factors: Factors
) -> tuple[Float[np.ndarray, "c f"], Float[np.ndarray, "c f"]]:
    """R² and accuracy lost with random halves of the others ablated, readers fitted to the rest.

    With Shapley's weights in place of equal ones the first would be the decomposition of R² by
    Lindeman, Merenda and Gold (1980).
    """
    wanted, kept = factors.one_hot(), kept_halves(len(encoded.bases.vectors), 0)
    summing, rows, _ = _rows(encoded)
    parts = torch.stack([rows[:, s] @ summing[s] for s in encoded.bases.slices])
    right, missed = np.zeros((2, len(kept), len(factors.names)))
    for place, half in enumerate(torch.from_numpy(kept)):
        whole = parts[half].sum(dim=0)
        for fitted, seen in folds(len(encoded), 0):
            reader, offset = linear_reader(whole[fitted], wanted[fitted])
            read = whole[seen] @ reader + offset
            right[place] += factors.correct(read, seen)
            missed[place] += _by_factor((wanted[seen] - read).square(), factors).sum(axis=0)
    spread = _by_factor((wanted - wanted.mean(dim=0)).square(), factors).sum(axis=0)
    return banzhaf(kept, 1 - missed / spread), banzhaf(kept, right / len(encoded))


def squares_missed(
    encoded: Encoded, factors: Factors, width: int | None = None
) -> tuple[Float[np.ndarray, "c n f"], Float[np.ndarray, "n f"]]:
    """Squares that readers of each component alone miss in each image, and squares to be read.

    `width` limits readers to that many leading principal coordinates of the component.
    """
    wanted = factors.one_hot()
    centred = (wanted - wanted.mean(dim=0)).square()
    missed = np.zeros((len(encoded.bases.vectors), len(encoded), len(factors.names)))
    for component, columns in enumerate(encoded.bases.slices):
        own = torch.from_numpy(np.ascontiguousarray(encoded.values[:, columns])).double()
        if width is not None and own.shape[1] > width:
            own = own - own.mean(dim=0)
            own = own @ torch.linalg.svd(own, full_matrices=False).Vh[:width].T
        for fitted, seen in folds(len(own), 0):
            reader, offset = linear_reader(own[fitted], wanted[fitted])
            squares = (wanted[seen] - own[seen] @ reader - offset).square()
            missed[component, seen] = _by_factor(squares, factors)
    return missed, _by_factor(centred, factors)


def _by_factor(squares: Tensor, factors: Factors) -> Float[np.ndarray, "n f"]:
    return np.stack([squares[:, s].sum(dim=1).numpy() for s in factors.slices], axis=1)


def surely_above(
    missed: Float[np.ndarray, "c n"], spread: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " c"]:
    """Share of components whose R² is above each one's in nearly all redraws of the images."""
    count = len(spread)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), REDRAWS)
    found = 1 - (drawn @ missed.T) / (drawn @ spread)[:, None]
    above = [((found > found[:, [c]]).mean(axis=0) > LEVEL).mean() for c in range(len(missed))]
    return np.array(above)


def _rows(encoded: Encoded) -> tuple[Tensor, Tensor, Tensor]:
    """What sums coordinates, the coordinates less their mean, and the representation."""
    summing = sum_blocks(encoded.bases).double()
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


def compare(root: Path, model: str, dataset: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row per way for one model; and which component is first by each truth of colour."""
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
    heads = (dump.components["kind"] == "head").to_numpy()
    varying = (found.variances() > 1e-12 * found.total.trace()).numpy()
    width = min(r for r, wanted in zip(encoded.bases.ranks, heads & varying) if wanted)
    missed, spread = squares_missed(encoded, factors)
    narrow = squares_missed(encoded, factors, width)[0].sum(axis=1) / spread.sum(axis=0)
    beside = {
        "narrow_decodability": 1 - narrow,
        "few_shot_loss": few_shot_loss(encoded, factors),
        "noisy_loss": noisy_loss(encoded, factors),
        "prepared_loss": prepared_loss(encoded, factors),
    }
    refitted = refitted_losses(encoded, factors)
    beside |= dict(zip(("refitted_loss", "refitted_accuracy"), refitted, strict=True))
    truths = {
        feature: {
            name: known[known["feature"] == feature].sort_values("component")[name].to_numpy()
            for name in TRUTHS
            if name not in beside
        }
        for feature in features
    }
    for place, feature in enumerate(factors.names):
        truths[feature] |= {name: values[:, place] for name, values in beside.items()}
    agreed = {
        feature: _in_top_decile(
            {name: values[varying] for name, values in truths[feature].items()},
            surely_above(missed[varying, :, place], spread[:, place]),
        )
        for place, feature in enumerate(factors.names)
        if feature in MAIN
    }
    rows = []
    scored = scores_by_way(encoded, found, features)
    for way, values in scored.items():
        facts: dict[str, object] = {"model": model, "way": way, "images": len(encoded)}
        for truth in TRUTHS:
            alike = []
            for place, feature in enumerate(features):
                true = truths[feature].get(truth, np.array([np.nan]))
                if not np.isnan(true).any():
                    pair = values[varying, place], true[varying]
                    alike.append(float(np.prod([ranks(v[:, None]) for v in pair], axis=0).sum()))
            facts[truth] = float(np.mean(alike))
        tops = {name: values[varying, place].argmax() for place, name in enumerate(features)}
        for pair in PAIRS:
            both = [np.logical_and(*(agreed[f][name] for name in pair))[tops[f]] for f in agreed]
            facts[_named(pair)] = sum(both)
        rows.append(facts)
    any_of = {
        _named(pair): sum(
            np.logical_and(*(top[name] for name in pair)).any() for top in agreed.values()
        )
        for pair in PAIRS
    }
    rows.append({"model": model, "way": POSSIBLE, "images": len(encoded), **any_of})
    ids, place = dump.components["id"].to_numpy()[varying], list(features).index("colour")
    firsts = {"model": model}
    named = int(scored["share"][varying, place].argmax())
    firsts["share"] = f"`{ids[named]}`"
    for truth in FIRST_BY:
        values = truths["colour"][truth][varying]
        best, above = int(values.argmax()), int((values > values[named]).sum())
        firsts[truth] = f"`{ids[best]}` {values[best]:.3f}; {values[named]:.3f} ({1 + above})"
    return pd.DataFrame(rows), pd.DataFrame([firsts])


def _named(pair: tuple[str, str]) -> str:
    return " and ".join(name.replace("_", " ") for name in pair)


def _in_top_decile(
    truths: dict[str, Float[np.ndarray, " v"]], surely: Float[np.ndarray, " v"]
) -> dict[str, Bool[np.ndarray, " v"]]:
    """Which components are in the top decile of each truth."""
    top = {
        name: ((values > values[:, None]).mean(axis=1) < 1 - DECILE) & (values > np.median(values))
        for name, values in truths.items()
    }
    read = truths["decodability"]
    near = (surely < 1 - DECILE) & (read > np.median(read))
    return top | {"decodability within its interval": near}


def as_markdown(table: pd.DataFrame) -> str:
    """The mean over models of every way, and what each way confirms in each model."""
    counts = [_named(pair) for pair in PAIRS]
    means = table.dropna().groupby("way", sort=False)[list(TRUTHS)].mean()
    sums = table.groupby("way", sort=False)[counts].sum()
    of = 4 * table["model"].nunique()
    ways = list(means.index)
    lines = [
        "| truth | " + " | ".join(ways) + " |",
        "|---" * (1 + len(ways)) + "|",
        *(
            f"| {name.replace('_', ' ')} | " + " | ".join(f"{v:.3f}" for v in means[name]) + " |"
            for name in TRUTHS
        ),
        "",
        f"First components in the top decile of both of a pair of truths, of {of} (colour, shape, "
        "texture and scene of each model), and in brackets the number of models with all four. "
        "The last column counts the factors for which there is any such component: no score could "
        "confirm more.",
        "",
        "| confirmed by | " + " | ".join([*ways, "any component"]) + " |",
        "|---" * (2 + len(ways)) + "|",
    ]
    for name in counts:
        cells = []
        for way in [*ways, POSSIBLE]:
            whole = int((table.loc[table["way"] == way, name] == len(MAIN)).sum())
            cells.append(f"{int(sums.loc[way, name])} ({whole})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def firsts_as_markdown(firsts: pd.DataFrame) -> str:
    """Which component is first for colour by each truth."""
    head = [name.replace("_", " ") for name in firsts]
    lines = [head, ["---"] * len(head), *firsts.to_numpy().tolist()]
    return (
        "Colour: the first component by the share, and by each truth, with its value; then the "
        "value and place there of the first by the share.\n\n"
        + "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
    )


def section(run: Path, table: pd.DataFrame, firsts: pd.DataFrame, option: str) -> str:
    """The part of docs/scores.md on one run."""
    return "\n\n".join(
        [
            f"## The run `{run.name}`",
            f"Made on {date.today().isoformat()} by `python -m benchmarks.score_methods {run} "
            f"{option}` on {platform.machine()} ({torch.get_num_threads()} threads), from "
            f"{int(table['images'].max())} images of each model (test images left out).",
            as_markdown(table),
            firsts_as_markdown(firsts),
        ]
    )


def main() -> None:
    """Compare the ways on every model of a run, and write the page or add the run to it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.score_methods", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run's results")
    parser.add_argument("--dataset", default="world")
    parser.add_argument("--docs", type=Path, help="page to write")
    parser.add_argument("--add", type=Path, help="page to add the run to")
    asked = parser.parse_args()
    models = [path.stem for path in sorted((asked.run / "maps").glob("*.json"))]
    found = zip(*(compare(asked.run, model, asked.dataset) for model in models), strict=True)
    table, firsts = (pd.concat(each, ignore_index=True) for each in found)
    option = f"--docs {asked.docs}" if asked.docs else f"--add {asked.add}"
    made = section(asked.run, table, firsts, option)
    print(made)
    if asked.docs:
        asked.docs.write_text(f"{INTRODUCTION}\n\n{made}\n", "utf-8")
    if asked.add:
        asked.add.write_text(f"{asked.add.read_text('utf-8')}\n{made}\n", "utf-8")


if __name__ == "__main__":
    main()
