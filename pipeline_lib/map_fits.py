"""Fitting linear maps from contributions to CLIP space: the published objective and baselines.

Axis letters: `n` image, `c` component, `d` model width, `e` width of the CLIP space, `r`
coordinates of all components side by side.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline_lib.coordinates import MEMORY_BYTES, Source, encode
from pipeline_lib.errors import DataError, close_matches
from pipeline_lib.map_problem import Fitted, Problem
from pipeline_lib.map_ridge import anchored_ridge, ridge, shared_ridge
from pipeline_lib.maps import (
    LEAST_SQUARES,
    Maps,
    agreement,
    check_targets,
    explained_share,
    split_masks,
    unit,
)

log = logging.getLogger(__name__)

Method = Literal["compalign", "cosine", "ridge", "anchored", "shared", "procrustes"]


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
        Where the descent starts: `procrustes` (an isometry already), `ridge`, or `random`
        isometries.
    seed
        Of the order of images and of random isometries.
    """

    orthogonality: float = 1.0
    learning_rate: float = 3e-4
    weight_decay: float = 1e-6
    batch_size: int = 256
    max_epochs: int = 50
    patience: int = 5
    initial: Literal["procrustes", "ridge", "random"] = "procrustes"
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
        recall_at_5, explained, seconds.
    history
        Held-out cosine after each epoch of the chosen method; empty for closed forms.
    """

    maps: Maps
    metrics: pd.DataFrame
    history: Sequence[float] = ()


def fit_maps(
    source: Source,
    targets: Float[Tensor, "n e"],
    heldout: Bool[np.ndarray, " n"],
    *,
    test: Bool[np.ndarray, " n"] | None = None,
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
    test
        Images that are measured in the end and neither fitted nor chosen on; none by default.
    method, baselines
        `compalign`: cosine and orthogonality (P2); `cosine`: the same with λ = 0; `ridge`: least
        squares in closed form with one map per component; `anchored`: the same, drawn to one
        isometry of all instead of to zero; `shared`: ridge with one map for all;
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
    check_targets(source, targets, heldout, test)
    started = time.perf_counter()
    encoded = encode(source, memory_bytes=memory_bytes)
    aims = unit(targets).to(device)
    split = {name: np.flatnonzero(mask) for name, mask in split_masks(heldout, test).items()}
    problem = Problem(encoded, aims, split["train"], split["heldout"])
    reading = time.perf_counter() - started
    rows, chosen = [], None
    for name in dict.fromkeys([method, *baselines]):
        started = time.perf_counter()
        fitted = _fitter(name)(problem, settings)
        seconds = reading + time.perf_counter() - started
        rows += _metrics(problem, split, fitted, name, name == method, seconds)
        chosen = fitted if name == method else chosen
        log.info("%s: held-out cosine %.4f in %.1f s", name, rows[-1]["cosine"], seconds)
    assert chosen is not None
    facts = {} if chosen.strength is None else {"strength": chosen.strength}
    maps = Maps(method, chosen.weights(problem), chosen.bias.cpu(), facts)
    return MapFit(maps, pd.DataFrame(rows), chosen.history)


# Ways to fit


def _fitter(name: str) -> Callable[[Problem, Settings], Fitted]:
    fitters: dict[str, Callable[[Problem, Settings], Fitted]] = {
        "compalign": _compalign,
        "cosine": _cosine,
        "ridge": lambda problem, settings: ridge(problem),
        "anchored": lambda problem, settings: anchored_ridge(
            problem, _procrustes(problem, settings)
        ),
        "shared": lambda problem, settings: shared_ridge(problem),
        "procrustes": _procrustes,
    }
    if name not in fitters:
        raise DataError(f"{name!r} is no method of fitting maps; {close_matches(name, fitters)}")
    return fitters[name]


def _procrustes(problem: Problem, settings: Settings) -> Fitted:
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
    return Fitted(summing @ shared, bias.float(), shared, is_shared=True)


def _cosine(problem: Problem, settings: Settings) -> Fitted:
    return _compalign(problem, replace(settings, orthogonality=0.0))


def _compalign(problem: Problem, settings: Settings) -> Fitted:
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
        start = ridge(problem)
    elif settings.initial == "random":
        start = _isometries(problem, settings.seed)
    blocks, bias = start.blocks.clone(), start.bias.clone()
    optimiser = torch.optim.Adam(
        [blocks, bias], lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    generator = np.random.default_rng(settings.seed)
    best = Fitted(blocks.clone(), bias.clone(), shared)
    history = [problem.cosine(problem.heldout, blocks, bias)]
    for epoch in range(settings.max_epochs):
        loss = _epoch(problem, settings, optimiser, generator, blocks, bias)
        history.append(problem.cosine(problem.heldout, blocks, bias))
        log.debug("epoch %d: loss %.4f, held-out cosine %.4f", epoch, loss, history[-1])
        if history[-1] > max(history[:-1]):
            best = Fitted(blocks.clone(), bias.clone(), shared)
        if len(history) - 1 - int(np.argmax(history)) >= settings.patience:
            break
    return replace(best, history=tuple(history))


def _isometries(problem: Problem, seed: int) -> Fitted:
    """A random isometry for each component, and no bias."""
    generator, out = torch.Generator().manual_seed(seed), problem.targets.shape[1]
    blocks = torch.empty(problem.encoded.values.shape[1], out)
    for start, count, rank in problem.encoded.bases.groups:
        normal = torch.randn(count, max(rank, out), min(rank, out), generator=generator)
        maps = torch.linalg.qr(normal).Q
        maps = maps if rank >= out else maps.mT
        blocks[start : start + count * rank] = maps.reshape(-1, out)
    device = problem.targets.device
    return Fitted(blocks.to(device), torch.zeros(out, device=device))


def _epoch(
    problem: Problem,
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


def _metrics(
    problem: Problem,
    split: Mapping[str, np.ndarray],
    fitted: Fitted,
    method: str,
    chosen: bool,
    seconds: float,
) -> list[dict[str, Any]]:
    rows = []
    for name, index in split.items():
        mapped, targets = problem.mapped(index, fitted.blocks, fitted.bias), problem.targets[index]
        explained = explained_share(mapped, targets) if method in LEAST_SQUARES else np.nan
        rows.append(
            {"method": method, "chosen": chosen, "split": name}
            | agreement(unit(mapped), targets)
            | {"explained": explained, "seconds": seconds}
        )
    return rows
