"""Ridge regression from coordinates to targets in closed form, from streamed normal equations."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline_lib.coordinates import Encoded
from pipeline_lib.map_problem import Fitted, Problem

log = logging.getLogger(__name__)

#: Ridge strengths tried, relative to the mean variance of a coordinate.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
#: Largest side of the matrix that ridge factorises (12,000² float64 is 1.2 GB); above it the same
#: equations are solved by conjugate gradients, to this relative residual.
MAX_SIDE, RESIDUAL, MAX_STEPS = 12_000, 1e-4, 200

_CHUNK = 1024


def ridge(problem: Problem, anchor: Float[Tensor, "r e"] | None = None) -> Fitted:
    """Least squares with the strength of the ridge chosen on held-out cosine.

    The maps are drawn to zero, or to `anchor`: what the images do not tell of a component's map is
    then that of the anchor.

    The normal equations are summed over batches: over coordinates where these are fewer than the
    images, else over images (the dual form, with the same solution). Where both are too many for
    a matrix, the equations are solved by conjugate gradients.
    """
    images, width = len(problem.fit), problem.encoded.values.shape[1]
    sums = torch.stack([rows.double().sum(0) for _, rows in problem.chunks(problem.fit)]).sum(0)
    base = torch.zeros((), device=problem.targets.device) if anchor is None else anchor
    aims = problem.targets.clone()
    if anchor is not None:
        for index, rows in problem.chunks(_all(problem)):
            aims[index] -= rows @ anchor
    mean, offset = sums / images, aims[problem.fit].mean(0)
    aims -= offset
    form = _iterated if min(images, width) > MAX_SIDE else _dual if images < width else _primal
    solve = form(problem, mean, aims)
    best, cosine = None, -np.inf
    for strength in reversed(STRENGTHS):
        change = solve(strength)
        blocks, bias = base + change, offset - mean.float() @ change
        found = problem.cosine(problem.heldout, blocks, bias)
        log.debug("ridge %g: held-out cosine %.4f", strength, found)
        if found > cosine:
            best, cosine = Fitted(blocks, bias, strength=strength), found
        elif form is _iterated:
            break
    assert best is not None
    return best


def _primal(
    problem: Problem, mean: Float[Tensor, " r"], aims: Float[Tensor, "n e"]
) -> Callable[[float], Float[Tensor, "r e"]]:
    width = len(mean)
    gram = mean.new_zeros(width, width)
    cross = mean.new_zeros(width, aims.shape[1])
    for index, rows in problem.chunks(problem.fit):
        centred = rows - mean.float()
        gram += centred.T @ centred
        cross += centred.T @ aims[index]
    return lambda strength: damped_solution(gram, cross, strength).float()


def _dual(
    problem: Problem, mean: Float[Tensor, " r"], aims: Float[Tensor, "n e"]
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
    wanted = aims[problem.fit].double()
    # The ridge is relative to the mean variance of a coordinate in both forms.
    factor = images / width

    def solve(strength: float) -> Float[Tensor, "r e"]:
        alpha = damped_solution(gram, wanted, strength * factor).float()
        return torch.cat([centred(columns).T @ alpha for columns in strips])

    return solve


def _iterated(
    problem: Problem, mean: Float[Tensor, " r"], aims: Float[Tensor, "n e"]
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

    right = centre.new_zeros(len(mean), aims.shape[1])
    squares = centre.new_zeros(())
    for index, rows in problem.chunks(problem.fit):
        right += (rows - centre).T @ aims[index]
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


def damped_solution(
    gram: Float[Tensor, "m m"], right: Float[Tensor, "m e"], strength: float
) -> Float[Tensor, "m e"]:
    """Solution of `(gram + strength · mean of its diagonal · I) x = right`."""
    ridge = strength * gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    damped = gram.clone()
    damped.diagonal().add_(ridge)
    return torch.cholesky_solve(right, torch.linalg.cholesky(damped))


def shared_ridge(problem: Problem) -> Fitted:
    """One map for all components: the same regression on the representation itself."""
    summing = problem.summing()
    summed = Encoded(
        np.concatenate(
            [(rows @ summing).cpu().numpy() for _, rows in problem.chunks(_all(problem))]
        ),
        problem.encoded.bases,
    )
    fitted = ridge(replace(problem, encoded=summed))
    whole = Fitted(summing @ fitted.blocks, fitted.bias, fitted.blocks, is_shared=True)
    return replace(whole, strength=fitted.strength)


def anchored_ridge(problem: Problem, isometry: Fitted) -> Fitted:
    """One map per component, drawn to the same multiple of an isometry of all.

    The multiple is that of least squares.
    """
    images = torch.cat([rows @ isometry.blocks for _, rows in problem.chunks(problem.fit)])
    aims = problem.targets[problem.fit]
    images, aims = (values.double() - values.double().mean(0) for values in (images, aims))
    scale = (images * aims).sum() / images.square().sum().clamp_min(1e-300)
    return replace(ridge(problem, scale.float() * isometry.blocks), shared=isometry.shared)


def _all(problem: Problem) -> np.ndarray:
    return np.arange(len(problem.encoded))
