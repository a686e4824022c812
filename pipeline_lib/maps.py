"""Linear maps from contributions to CLIP space: fitting, applying, saving.

`f(z) = Σ_c contribution_c W_c + b` should point where the reference CLIP's embedding of the same
image points. Every fit works on the coordinates of `pipeline_lib.coordinates`, read from a source
in batches; nothing here knows of dumps or configs. Axis letters: `n` image, `c` component, `d`
model width, `e` width of the CLIP space, `k` text, `r` coordinates of all components side by side.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline_lib.artifacts import atomic_path
from pipeline_lib.coordinates import MEMORY_BYTES, Encoded, Source, encode
from pipeline_lib.errors import ArtifactError, DataError, close_matches

log = logging.getLogger(__name__)

Method = Literal["compalign", "cosine", "shared", "ridge", "procrustes", "identity"]

#: Ridge strengths tried, relative to the mean variance of a coordinate.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
#: Largest side of the matrix that ridge factorises (12,000² float64 is 1.2 GB); above it the same
#: equations are solved by conjugate gradients, to this relative residual.
MAX_SIDE, RESIDUAL, MAX_STEPS = 12_000, 1e-4, 200
#: Number of the file format of saved maps.
FORMAT = 1

_CHUNK = 1024


@dataclass(frozen=True)
class Maps:
    """One linear map per component and a shared bias.

    Attributes
    ----------
    method
        How they were fitted.
    weights
        `[c, d, e]`; `[1, d, e]` where all components share one map; `None` for the identity.
    bias
        `[e]`; part of the representation's image only, of no component's.
    facts
        JSON-able facts on what they were fitted on, kept in the manifest.

    Notes
    -----
    The constants of a model's norms and biases may be a component of their own; it is mapped like
    any other, so that `apply(x).sum(1) + bias == apply_total(x)` whatever the components are.
    """

    method: str
    weights: Float[Tensor, "c d e"] | None
    bias: Float[Tensor, " e"]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, contributions: Float[Tensor, "n c d"]) -> Float[Tensor, "n c e"]:
        """Contribution of every component in CLIP space, without the bias.

        Raises
        ------
        ArtifactError
            The contributions have other components or another width than the maps were fitted on.
        """
        self.check(*contributions.shape[1:])
        if self.weights is None:
            return contributions
        if len(self.weights) == 1:
            return contributions @ self.weights[0]
        return torch.einsum("ncd,cde->nce", contributions, self.weights)

    def apply_total(self, contributions: Float[Tensor, "n c d"]) -> Float[Tensor, "n e"]:
        """Image of the whole representation `f(z)`, bias included, in one product."""
        self.check(*contributions.shape[1:])
        if self.weights is None:
            return contributions.sum(dim=1) + self.bias
        if len(self.weights) == 1:
            return contributions.sum(dim=1) @ self.weights[0] + self.bias
        return contributions.flatten(1) @ self.weights.flatten(0, 1) + self.bias

    def directions(self, vectors: Float[Tensor, "k e"], components: int) -> Float[Tensor, "c d k"]:
        """Directions of the model that read CLIP-space `vectors` off each component.

        `contributions[:, c] @ directions[c]` equals `apply(contributions)[:, c] @ vectors.T`, at
        `k/e` of the cost.
        """
        if self.weights is None:
            return vectors.T.expand(components, -1, -1)
        return (self.weights @ vectors.T).expand(components, -1, -1)

    def check(self, components: int, width: int) -> None:
        """Raise unless the maps fit contributions of `components` components of width `d`."""
        if self.weights is None:
            fits = len(self.bias) == width
        else:
            fits = len(self.weights) in (1, components) and self.weights.shape[1] == width
        if not fits:
            shape = "identity" if self.weights is None else tuple(self.weights.shape)
            raise ArtifactError(
                f"maps of shape {shape} (component, model width, CLIP width {len(self.bias)}) do "
                f"not fit contributions of {components} components of width {width}; fit maps on "
                "this model's own contributions, or use those of the model they were fitted on"
            )


@dataclass(frozen=True)
class Settings:
    """How maps are fitted; the defaults follow P2 except for the batch size.

    Attributes
    ----------
    orthogonality
        λ, weight of the mean squared deviation of the maps from isometry.
    learning_rate, weight_decay, batch_size, max_epochs
        Of Adam, over minibatches of images.
    patience
        Epochs without a better held-out cosine after which the fit stops.
    initial
        Where the descent starts: `procrustes` (an isometry already) or `ridge`.
    seed
        Of the order of images.
    """

    orthogonality: float = 1.0
    learning_rate: float = 3e-4
    weight_decay: float = 1e-6
    batch_size: int = 256
    max_epochs: int = 50
    patience: int = 5
    initial: Literal["procrustes", "ridge"] = "procrustes"
    seed: int = 0


@dataclass(frozen=True)
class MapFit:
    """Result of `fit_maps`.

    Attributes
    ----------
    maps
        The maps of the chosen method.
    metrics
        One row per method and split: columns method, chosen, split, n, cosine, recall_at_1,
        recall_at_5, seconds.
    history
        Held-out cosine after each epoch of the chosen method; empty for closed forms.
    """

    maps: Maps
    metrics: pd.DataFrame
    history: Sequence[float] = ()


def identity_maps(width: int) -> Maps:
    """The map of a CLIP model into its own space: every contribution is there already."""
    return Maps("identity", None, torch.zeros(width))


def split_heldout(image_ids: Sequence[str], share: float, seed: int) -> Bool[np.ndarray, " n"]:
    """True for the images kept out of the fit: about `share` of them, by hash of id and seed.

    An image stays on its side when others are added.

    Raises
    ------
    DataError
        One side has no image, or fewer than two are left to fit on.
    """
    digests = (hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in image_ids)
    heldout = np.array([int.from_bytes(d[:8], "big") < share * 2**64 for d in digests], dtype=bool)
    if heldout.sum() < 1 or (~heldout).sum() < 2:
        raise DataError(
            f"{len(heldout)} images with a held-out share of {share} leave "
            f"{int((~heldout).sum())} to fit on and {int(heldout.sum())} held out; use more images "
            "or another share"
        )
    return heldout


def without_test(splits: pd.Series) -> Int[np.ndarray, " m"]:
    """Positions of the images that may be fitted on: all but those of split `test`.

    Raises
    ------
    DataError
        All images are of split `test`.
    """
    positions = np.flatnonzero((splits != "test").to_numpy())
    if not len(positions):
        raise DataError(
            "all images are of split test, which is kept for reporting; give some images split "
            "train or val, in the column of splits or by datasets.*.split"
        )
    return positions


def fit_maps(
    source: Source,
    targets: Float[Tensor, "n e"],
    heldout: Bool[np.ndarray, " n"],
    *,
    method: Method = "compalign",
    baselines: Sequence[Method] = (),
    settings: Settings | None = None,
    memory_bytes: int = MEMORY_BYTES,
    device: str = "cpu",
) -> MapFit:
    """Maps of the chosen method, and how it and the baselines do on the same held-out images.

    Parameters
    ----------
    source
        Contributions of `n` images.
    targets
        Where each image should point: its CLIP embedding, or the embedding of its label.
    heldout
        Images that are only looked at to choose (when to stop, strength of the ridge) and measure.
    method, baselines
        `compalign`: cosine and orthogonality (P2); `cosine`: the same with λ = 0; `ridge`: least
        squares in closed form with one map per component; `shared`: ridge with one map for all;
        `procrustes`: one isometry for all.
    settings
        Of the descent.
    memory_bytes
        Memory for coordinates; larger ones go to a temporary file.
    device
        Where the arithmetic is done; the maps come back on the CPU.

    Raises
    ------
    DataError
        Targets do not fit the images, hold NaN, or too few images are left.
    ArtifactError
        Contributions hold NaN.

    Notes
    -----
    P2 section 4 (CompAlign). See `compalign` for the objective.
    """
    settings = settings or Settings()
    _check_targets(source, targets, heldout)
    started = time.perf_counter()
    encoded = encode(source, memory_bytes=memory_bytes)
    aims = unit(targets).to(device)
    problem = _Problem(encoded, aims, np.flatnonzero(~heldout), np.flatnonzero(heldout))
    reading = time.perf_counter() - started
    rows, chosen = [], None
    for name in dict.fromkeys([method, *baselines]):
        started = time.perf_counter()
        fitted = _fitter(name)(problem, settings)
        seconds = reading + time.perf_counter() - started
        rows += _metrics(problem, fitted, name, name == method, seconds)
        chosen = fitted if name == method else chosen
        log.info("%s: held-out cosine %.4f in %.1f s", name, rows[-1]["cosine"], seconds)
    assert chosen is not None
    maps = Maps(method, chosen.weights(problem), chosen.bias.cpu())
    return MapFit(maps, pd.DataFrame(rows), chosen.history)


def identity_metrics(
    source: Source, targets: Float[Tensor, "n e"], heldout: Bool[np.ndarray, " n"]
) -> pd.DataFrame:
    """Metrics of the identity, as `fit_maps` gives them: sums of contributions against targets."""
    _check_targets(source, targets, heldout)
    started = time.perf_counter()
    images = unit(torch.cat([values.sum(dim=1) for _, values in source.batches()]))
    rows = []
    for split, mask in (("train", ~heldout), ("heldout", heldout)):
        chosen = torch.from_numpy(mask)
        rows.append(
            {"method": "identity", "chosen": True, "split": split}
            | _agreement(images[chosen], unit(targets)[chosen])
        )
    frame = pd.DataFrame(rows)
    frame["seconds"] = time.perf_counter() - started
    return frame


def unit(vectors: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
    """Rows scaled to length 1; zero rows stay zero."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


# The problem and its solutions, in coordinates


@dataclass(frozen=True)
class _Problem:
    """Coordinates and unit targets, and which images are fitted on and held out.

    The targets lie on the device on which all is computed.
    """

    encoded: Encoded
    targets: Float[Tensor, "n e"]
    fit: np.ndarray
    heldout: np.ndarray

    def rows(self, index: np.ndarray) -> Float[Tensor, "b r"]:
        return self.encoded.rows(index).to(self.targets.device)

    def chunks(self, index: np.ndarray) -> Iterator[tuple[np.ndarray, Float[Tensor, "b r"]]]:
        for start in range(0, len(index), _CHUNK):
            part = index[start : start + _CHUNK]
            yield part, self.rows(part)

    def images(
        self, index: np.ndarray, blocks: Float[Tensor, "r e"], bias: Float[Tensor, " e"]
    ) -> Float[Tensor, "m e"]:
        """Unit vectors in CLIP space of the images at `index`."""
        return unit(torch.cat([rows @ blocks + bias for _, rows in self.chunks(index)]))

    def cosine(
        self, index: np.ndarray, blocks: Float[Tensor, "r e"], bias: Float[Tensor, " e"]
    ) -> float:
        return float((self.images(index, blocks, bias) * self.targets[index]).sum(1).mean())

    def summing(self) -> Float[Tensor, "r d"]:
        """Matrix that takes coordinates to the representation."""
        bases = self.encoded.bases
        summing = bases.project(torch.eye(bases.width).expand(len(bases.vectors), -1, -1))
        return summing.to(self.targets.device)


@dataclass(frozen=True)
class _Fitted:
    """A solution: what the maps do to coordinates, and one shared map where there is one."""

    blocks: Float[Tensor, "r e"]
    bias: Float[Tensor, " e"]
    shared: Float[Tensor, "d e"] | None = None
    is_shared: bool = False
    history: Sequence[float] = ()

    def weights(self, problem: _Problem) -> Float[Tensor, "c d e"]:
        shared = None if self.shared is None else self.shared.cpu()
        if self.is_shared and shared is not None:
            return shared[None].clone()
        bases = problem.encoded.bases
        elsewhere = None if shared is None else shared.expand(len(bases.vectors), -1, -1)
        return bases.expand(self.blocks.cpu(), elsewhere)


def _fitter(name: str) -> Callable[[_Problem, Settings], _Fitted]:
    fitters: dict[str, Callable[[_Problem, Settings], _Fitted]] = {
        "compalign": _compalign,
        "cosine": _cosine,
        "ridge": _ridge,
        "shared": _shared,
        "procrustes": _procrustes,
    }
    if name not in fitters:
        raise DataError(f"{name!r} is no method of fitting maps; {close_matches(name, fitters)}")
    return fitters[name]


def _procrustes(problem: _Problem, settings: Settings) -> _Fitted:
    """The isometry between centred representations and centred targets (Schönemann 1966)."""
    summing = problem.summing()
    z = torch.cat([rows @ summing for _, rows in problem.chunks(problem.fit)]).double()
    y = problem.targets[problem.fit].double()
    centred, offset = z - z.mean(0), y.mean(0)
    left, singular, right = torch.linalg.svd(centred.T @ (y - offset), full_matrices=False)
    rotation = left @ right
    # The scale that fits best divides the bias instead of multiplying the isometry.
    variance = centred.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    scale = (singular.sum() / variance).clamp_min(torch.finfo(torch.float64).eps)
    bias = offset / scale - z.mean(0) @ rotation
    shared = rotation.float()
    return _Fitted(summing @ shared, bias.float(), shared, is_shared=True)


def _shared(problem: _Problem, settings: Settings) -> _Fitted:
    summing = problem.summing()
    summed = Encoded(
        np.concatenate(
            [(rows @ summing).cpu().numpy() for _, rows in problem.chunks(_all(problem))]
        ),
        problem.encoded.bases,
    )
    fitted = _ridge(replace(problem, encoded=summed), settings)
    return _Fitted(summing @ fitted.blocks, fitted.bias, fitted.blocks, is_shared=True)


def _all(problem: _Problem) -> np.ndarray:
    return np.arange(len(problem.encoded))


def _ridge(problem: _Problem, settings: Settings) -> _Fitted:
    """Least squares with the strength of the ridge chosen on held-out cosine.

    The normal equations are summed over batches: over coordinates where these are fewer than the
    images, else over images (the dual form, with the same solution). Where both are too many for
    a matrix, the equations are solved by conjugate gradients.
    """
    images, width = len(problem.fit), problem.encoded.values.shape[1]
    sums = torch.stack([rows.double().sum(0) for _, rows in problem.chunks(problem.fit)]).sum(0)
    mean, offset = sums / images, problem.targets[problem.fit].mean(0)
    form = _iterated if min(images, width) > MAX_SIDE else _dual if images < width else _primal
    solve = form(problem, mean, offset)
    best, cosine = None, -np.inf
    for strength in reversed(STRENGTHS):
        blocks = solve(strength)
        bias = offset - mean.float() @ blocks
        found = problem.cosine(problem.heldout, blocks, bias)
        log.debug("ridge %g: held-out cosine %.4f", strength, found)
        if found > cosine:
            best, cosine = _Fitted(blocks, bias), found
        elif form is _iterated:
            break
    assert best is not None
    return best


def _primal(
    problem: _Problem, mean: Float[Tensor, " r"], offset: Float[Tensor, " e"]
) -> Callable[[float], Float[Tensor, "r e"]]:
    width = len(mean)
    gram = mean.new_zeros(width, width)
    cross = mean.new_zeros(width, len(offset))
    for index, rows in problem.chunks(problem.fit):
        centred = rows - mean.float()
        gram += centred.T @ centred
        cross += centred.T @ (problem.targets[index] - offset)
    return lambda strength: _solve(gram, cross, strength).float()


def _dual(
    problem: _Problem, mean: Float[Tensor, " r"], offset: Float[Tensor, " e"]
) -> Callable[[float], Float[Tensor, "r e"]]:
    images, width = len(problem.fit), len(mean)
    gram = mean.new_zeros(images, images)
    strips = [slice(start, start + 4 * _CHUNK) for start in range(0, width, 4 * _CHUNK)]

    def centred(columns: slice) -> Float[Tensor, "m s"]:
        values = torch.from_numpy(problem.encoded.values[problem.fit, columns])
        return values.to(mean.device) - mean[columns].float()

    for columns in strips:
        part = centred(columns)
        gram += part @ part.T
    wanted = (problem.targets[problem.fit] - offset).double()
    # The ridge is relative to the mean variance of a coordinate in both forms.
    factor = images / width

    def solve(strength: float) -> Float[Tensor, "r e"]:
        alpha = _solve(gram, wanted, strength * factor).float()
        return torch.cat([centred(columns).T @ alpha for columns in strips])

    return solve


def _iterated(
    problem: _Problem, mean: Float[Tensor, " r"], offset: Float[Tensor, " e"]
) -> Callable[[float], Float[Tensor, "r e"]]:
    """Conjugate gradients on the normal equations, started from the solution before."""
    centre = mean.float()

    def normal(vectors: Float[Tensor, "r e"]) -> Float[Tensor, "r e"]:
        """`Zᵀ Z vectors` over the centred coordinates Z of the fit."""
        total = torch.zeros_like(vectors)
        for _, rows in problem.chunks(problem.fit):
            centred = rows - centre
            total += centred.T @ (centred @ vectors)
        return total

    right = centre.new_zeros(len(mean), len(offset))
    squares = centre.new_zeros(())
    for index, rows in problem.chunks(problem.fit):
        right += (rows - centre).T @ (problem.targets[index] - offset)
        squares += (rows - centre).square().sum()
    before = torch.zeros_like(right)

    def solve(strength: float) -> Float[Tensor, "r e"]:
        nonlocal before
        ridge = strength * squares / len(mean)
        found = before.clone()
        rest = right - normal(found) - ridge * found
        step, size = rest.clone(), rest.square().sum(0)
        for _ in range(MAX_STEPS):
            if (size <= RESIDUAL**2 * right.square().sum(0)).all():
                break
            moved = normal(step) + ridge * step
            length = size / (step * moved).sum(0).clamp_min(1e-30)
            found += length * step
            rest -= length * moved
            size, previous = rest.square().sum(0), size
            step = rest + size / previous.clamp_min(1e-30) * step
        else:
            log.warning("ridge %g: not converged after %d steps", strength, MAX_STEPS)
        before = found
        return found

    return solve


def _solve(
    gram: Float[Tensor, "m m"], right: Float[Tensor, "m e"], strength: float
) -> Float[Tensor, "m e"]:
    """Solution of `(gram + strength · mean of its diagonal · I) x = right`."""
    ridge = strength * gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    damped = gram.clone()
    damped.diagonal().add_(ridge)
    return torch.cholesky_solve(right, torch.linalg.cholesky(damped))


def _cosine(problem: _Problem, settings: Settings) -> _Fitted:
    return _compalign(problem, replace(settings, orthogonality=0.0))


def _compalign(problem: _Problem, settings: Settings) -> _Fitted:
    """Descent on the published objective from a closed-form start; the best epoch is kept.

    Objective (P2): `mean_n (1 - cos(f(z_n), y_n)) + λ/(C·e) Σ_c ‖W_cᵀW_c - I‖²`. Here `W_c` is the
    map within the component's subspace, and the smaller of its two Gram matrices is compared with
    the identity: where `W_c` has more columns than rows, `W_cᵀW_c` cannot reach the identity, and
    `‖W_cᵀW_c - I‖²` exceeds `‖W_cW_cᵀ - I‖²` by a constant only. Outside the subspace, where no
    image of the fit says anything, the map stays that of the start.
    """
    start = _procrustes(problem, settings)
    shared = start.shared
    if settings.initial == "ridge":
        start = _ridge(problem, settings)
    blocks, bias = start.blocks.clone(), start.bias.clone()
    optimiser = torch.optim.Adam(
        [blocks, bias], lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    generator = np.random.default_rng(settings.seed)
    best = _Fitted(blocks.clone(), bias.clone(), shared)
    history = [problem.cosine(problem.heldout, blocks, bias)]
    for epoch in range(settings.max_epochs):
        loss = _epoch(problem, settings, optimiser, generator, blocks, bias)
        history.append(problem.cosine(problem.heldout, blocks, bias))
        log.debug("epoch %d: loss %.4f, held-out cosine %.4f", epoch, loss, history[-1])
        if history[-1] > max(history[:-1]):
            best = _Fitted(blocks.clone(), bias.clone(), shared)
        if len(history) - 1 - int(np.argmax(history)) >= settings.patience:
            break
    return replace(best, history=tuple(history))


def _epoch(
    problem: _Problem,
    settings: Settings,
    optimiser: torch.optim.Optimizer,
    generator: np.random.Generator,
    blocks: Float[Tensor, "r e"],
    bias: Float[Tensor, " e"],
) -> float:
    """One pass over the images of the fit in random order; mean loss."""
    order = generator.permutation(problem.fit)
    losses = []
    for begin in range(0, len(order), settings.batch_size):
        index = np.sort(order[begin : begin + settings.batch_size])
        rows = problem.rows(index)
        loss, pull = cosine_loss(rows @ blocks + bias, problem.targets[index])
        blocks.grad, bias.grad = rows.T @ pull, pull.sum(0)
        if settings.orthogonality:
            weight = settings.orthogonality / (len(problem.encoded.bases.vectors) * len(bias))
            penalty = add_orthogonality_gradient(
                blocks, problem.encoded.bases.groups, weight, blocks.grad
            )
            loss += weight * penalty
        optimiser.step()
        losses.append(loss)
    return float(np.mean(losses))


def cosine_loss(
    images: Float[Tensor, "b e"], targets: Float[Tensor, "b e"]
) -> tuple[float, Float[Tensor, "b e"]]:
    """Mean of `1 - cos` to unit `targets`, and its gradient by `images`."""
    length = images.norm(dim=1, keepdim=True).clamp_min(1e-12)
    pointing = images / length
    cosine = (pointing * targets).sum(dim=1, keepdim=True)
    gradient = (cosine * pointing - targets) / (length * len(images))
    return float(1 - cosine.mean()), gradient


def add_orthogonality_gradient(
    blocks: Float[Tensor, "r e"],
    groups: Sequence[tuple[int, int, int]],
    weight: float,
    gradient: Float[Tensor, "r e"],
) -> float:
    """Sum over components of the squared deviation of their maps from isometry.

    Adds `weight` times its gradient by `blocks` to `gradient`. `groups` are runs of components of
    equal rank, as `Bases.groups` gives them.
    """
    total, out = 0.0, blocks.shape[1]
    for start, count, rank in groups:
        rows = slice(start, start + count * rank)
        maps = blocks[rows].view(count, rank, out)
        wide = rank <= out
        gram = maps @ maps.mT if wide else maps.mT @ maps
        gram.diagonal(dim1=1, dim2=2).sub_(1.0)
        total += float(gram.square().sum())
        change = gram @ maps if wide else maps @ gram
        gradient[rows].add_(change.reshape(count * rank, out), alpha=4.0 * weight)
    return total


# Metrics


def _metrics(
    problem: _Problem, fitted: _Fitted, method: str, chosen: bool, seconds: float
) -> list[dict[str, Any]]:
    rows = []
    for split, index in (("train", problem.fit), ("heldout", problem.heldout)):
        images = problem.images(index, fitted.blocks, fitted.bias)
        rows.append(
            {"method": method, "chosen": chosen, "split": split}
            | _agreement(images, problem.targets[index])
            | {"seconds": seconds}
        )
    return rows


def _agreement(images: Float[Tensor, "m e"], targets: Float[Tensor, "m e"]) -> dict[str, Any]:
    ranks = target_ranks(images, targets)
    return {
        "n": len(images),
        "cosine": float((images * targets).sum(1).mean()),
        "recall_at_1": float((ranks < 1).double().mean()),
        "recall_at_5": float((ranks < 5).double().mean()),
    }


def target_ranks(images: Float[Tensor, "m e"], targets: Float[Tensor, "m e"]) -> Tensor:
    """For each image the number of *other* targets nearer to it than its own `[m]`.

    Equal targets (images of one label) count once; ties count as not nearer.
    """
    gallery = torch.unique(targets, dim=0)
    ranks = []
    for own, image in zip(targets.split(_CHUNK), images.split(_CHUNK), strict=True):
        similarity = (image * own).sum(dim=1, keepdim=True)
        ranks.append((image @ gallery.T > similarity + 1e-6).sum(dim=1))
    return torch.cat(ranks)


def _check_targets(source: Source, targets: Tensor, heldout: np.ndarray) -> None:
    if len(targets) != source.n or len(heldout) != source.n:
        raise DataError(
            f"{source.n} images have {len(targets)} targets and {len(heldout)} entries that say "
            "what is held out; there must be one of each for every image"
        )
    if not torch.isfinite(targets).all():
        bad = int(torch.nonzero(~torch.isfinite(targets).all(dim=1))[0])
        raise DataError(
            f"the target of image {bad} (counted from 0) is NaN or infinite: its features are "
            "incomplete; delete the features store of this data set and run snakemake again"
        )
    if heldout.sum() < 1 or (~heldout).sum() < 2:
        raise DataError(
            f"{int((~heldout).sum())} images to fit on and {int(heldout.sum())} held out are too "
            "few: at least 2 and 1 are needed"
        )


# Files


def save_maps(maps: Maps, weights: str | Path, manifest: str | Path) -> None:
    """Write maps as a safetensors file and a JSON manifest; each appears complete or not at all.

    The manifest holds method, shape, the hash of the weights and `maps.facts`.
    """
    tensors = {"bias": maps.bias.contiguous()}
    if maps.weights is not None:
        tensors["weights"] = maps.weights.contiguous()
    with atomic_path(weights) as beside:
        save_file(tensors, beside)
        digest = hashlib.sha256(beside.read_bytes()).hexdigest()
    content = {
        "format": FORMAT,
        "method": maps.method,
        "shape": None if maps.weights is None else list(maps.weights.shape),
        "space": len(maps.bias),
        "sha256": digest,
        "facts": dict(maps.facts),
    }
    with atomic_path(manifest) as beside:
        beside.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


def load_maps(weights: str | Path, manifest: str | Path | None = None) -> Maps:
    """Maps as `save_maps` wrote them; by default the manifest is the `.json` beside the weights.

    Raises
    ------
    ArtifactError
        A file is missing or damaged, of another format, or the two do not belong together.
    """
    weights = Path(weights)
    manifest = weights.with_suffix(".json") if manifest is None else Path(manifest)
    try:
        content = json.loads(manifest.read_text("utf-8"))
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        tensors = load_file(weights)
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(
            f"maps cannot be read from {weights} and {manifest}: {error}"
        ) from error
    if content.get("format") != FORMAT:
        raise ArtifactError(f"{manifest} has format {content.get('format')}, this reads {FORMAT}")
    if content.get("sha256") != digest:
        raise ArtifactError(f"{weights} is not the file that {manifest} describes; make both anew")
    return Maps(content["method"], tensors.get("weights"), tensors["bias"], content["facts"])
