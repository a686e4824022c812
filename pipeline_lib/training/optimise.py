"""The optimiser, its schedule and the training loop that all recipes share."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline_lib.errors import VitAtlasError
from pipeline_lib.training.recipes import Recipe

logger = logging.getLogger(__name__)

WARM_UP = 0.08
LOG_EVERY = 50


def set_seed(seed: int) -> torch.Generator:
    """Seed torch's own generator (initial weights) and return one for augmentation."""
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def build_optimisers(module: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else.

    Muon (orthogonalised momentum) needs about half the images of AdamW here; its step is scaled
    to the size of an AdamW step, so that one learning rate serves both.
    """
    hidden, decayed, free = [], [], []
    for name, weight in module.named_parameters():
        if not weight.requires_grad:
            continue
        if weight.ndim == 2 and _is_inside_block(name):
            hidden.append(weight)
        elif weight.ndim >= 2 and not _is_table(name):
            decayed.append(weight)
        else:
            free.append(weight)
    adam = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
    )
    if not hidden:
        return [adam]
    if not hasattr(torch.optim, "Muon"):
        raise VitAtlasError(
            f"training the demo models needs torch 2.9 or newer, this is {torch.__version__}"
        )
    muon = torch.optim.Muon(
        hidden,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, adam]


def _is_inside_block(name: str) -> bool:
    return any(part in name for part in ("blocks.", "layers.", "stages.", "resblocks."))


def _is_table(name: str) -> bool:
    words = ("pos_embed", "token", "embedding", "relative_position", "rel_pos", "scale")
    return any(word in name for word in words)


def learning_rate_factor(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then cosine to zero."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@contextmanager
def mixed_precision(device: torch.device) -> Iterator[None]:
    """bfloat16 for matrix products where the device has instructions for them.

    On a CPU the plain attention is chosen: the backward pass of the fused one is slow in bfloat16.
    """
    fast = device.type == "cuda" or "avx512_bf16" in _cpu_flags()
    backends = [SDPBackend.MATH]
    if device.type == "cuda":
        backends += [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    with sdpa_kernel(backends), torch.autocast(device.type, torch.bfloat16, enabled=fast):
        yield


def _cpu_flags() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return info.read(4000)
    except OSError:
        return ""


def fit(
    module: nn.Module,
    recipe: Recipe,
    data: Iterable[object],
    loss_of: Callable[[object], Tensor],
    after_step: Callable[[int], None] = lambda step: None,
) -> float:
    """Train a module in place.

    Parameters
    ----------
    module
        Holds every weight that is trained.
    recipe
        Steps, learning rate, weight decay.
    data
        One item per step.
    loss_of
        Scalar loss of one item.
    after_step
        Called with the number of each finished step.

    Returns
    -------
    float
        Seconds of wall time.

    Raises
    ------
    VitAtlasError
        If the loss stops being finite.
    """
    optimisers = build_optimisers(module, recipe)
    start, mean = time.monotonic(), 0.0
    for step, item in enumerate(data):
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * learning_rate_factor(step, recipe.steps)
        loss = loss_of(item)
        module.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 3.0)
        for optimiser in optimisers:
            optimiser.step()
        after_step(step)
        mean += float(loss.detach()) / LOG_EVERY
        if not math.isfinite(mean):
            raise VitAtlasError(f"{recipe.name}: the loss is not finite at step {step}")
        if (step + 1) % LOG_EVERY == 0:
            passed = time.monotonic() - start
            logger.info("step %d/%d loss %.3f, %.0f s", step + 1, recipe.steps, mean, passed)
            mean = 0.0
    return time.monotonic() - start
