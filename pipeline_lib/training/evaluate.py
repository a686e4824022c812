"""How good a demo model is, on pictures that no training has seen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline_lib.training.data import Pool, normalise
from pipeline_lib.training.supervised import task_slices
from pipeline_lib.world.captions import PROMPTS
from pipeline_lib.world.factors import FACTORS, TASK_FACTORS

BATCH = 250
PROBE_FACTORS = TASK_FACTORS


@torch.inference_mode()
def outputs(
    pool: Pool, forward: Callable[[Tensor], Tensor], device: torch.device, limit: int | None = None
) -> Float[Tensor, "n k"]:
    """What `forward` makes of the normalised images of a pool, float32 on the CPU."""
    n = len(pool) if limit is None else min(limit, len(pool))
    parts = []
    for start in range(0, n, BATCH):
        images = torch.from_numpy(pool.images[start : min(start + BATCH, n)])
        parts.append(forward(normalise(images).to(device)).float().cpu())
    return torch.cat(parts)


def codes_of(pool: Pool, factor: str) -> np.ndarray:
    """Position of each image's value of a factor, int64 `[n]`."""
    return pool.codes[:, list(FACTORS).index(factor)].astype(np.int64)


def supervised_accuracy(model: nn.Module, pool: Pool, device: torch.device) -> dict[str, float]:
    """Share of images whose factor is named rightly, for each task factor and their mean."""
    logits = outputs(pool, model, device)
    return _with_mean(
        {
            name: _accuracy(logits[:, part].argmax(1).numpy(), codes_of(pool, name))
            for name, part in task_slices().items()
        }
    )


def zero_shot_accuracy(
    model: nn.Module,
    tokenizer: Callable[[list[str]], Tensor],
    pool: Pool,
    device: torch.device,
    factors: tuple[str, ...] = tuple(FACTORS),
) -> dict[str, float]:
    """Share of images whose nearest prompt names the factor rightly, for each factor.

    The embeddings of a value's prompts (`PROMPTS`) are averaged and renormalised.
    """
    images = outputs(pool, lambda x: model.encode_image(x, normalize=True), device)
    result = {}
    for name in factors:
        texts = prompt_embeddings(model, tokenizer, name, device)
        result[name] = _accuracy((images @ texts.T).argmax(1).numpy(), codes_of(pool, name))
    return _with_mean(result)


@torch.inference_mode()
def prompt_embeddings(
    model: nn.Module,
    tokenizer: Callable[[list[str]], Tensor],
    factor: str,
    device: torch.device,
) -> Float[Tensor, "k e"]:
    """One unit vector for each value of a factor."""
    rows = []
    for value in FACTORS[factor]:
        texts = tokenizer([prompt.format(value) for prompt in PROMPTS[factor]]).to(device)
        rows.append(model.encode_text(texts, normalize=True).float().mean(0).cpu())
    return nn.functional.normalize(torch.stack(rows), dim=-1)


def probe_accuracy(
    features: Float[Tensor, "n d"],
    pool: Pool,
    held_out: Float[Tensor, "m d"],
    held_out_pool: Pool,
    factors: tuple[str, ...] = PROBE_FACTORS,
) -> dict[str, float]:
    """Accuracy of a logistic-regression probe, fitted on one pool and tested on another."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features.numpy())
    train, test = scaler.transform(features.numpy()), scaler.transform(held_out.numpy())
    result = {}
    for name in factors:
        probe = LogisticRegression(max_iter=300, C=0.1).fit(
            train, codes_of(held_in(pool, len(train)), name)
        )
        result[name] = _accuracy(probe.predict(test), codes_of(held_out_pool, name))
    return _with_mean(result)


def held_in(pool: Pool, n: int) -> Pool:
    """The first `n` images of a pool."""
    return Pool(images=pool.images[:n], codes=pool.codes[:n])


def _accuracy(predicted: np.ndarray, truth: np.ndarray) -> float:
    return round(float((predicted == truth).mean()), 4)


def _with_mean(by_factor: dict[str, float]) -> dict[str, float]:
    task = [by_factor[name] for name in TASK_FACTORS if name in by_factor]
    return by_factor | {"mean": round(sum(task) / len(task), 4)}
