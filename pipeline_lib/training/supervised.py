"""Supervised training: one group of logits, and one cross-entropy, for each task factor."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline_lib._torchvision import ensure_torchvision
from pipeline_lib.training.data import Pool, batches, mirrored, normalise, relit, shifted
from pipeline_lib.training.optimise import fit, mixed_precision, set_seed
from pipeline_lib.training.recipes import SupervisedRecipe
from pipeline_lib.training.warm_start import warm_start_timm
from pipeline_lib.world.factors import FACTORS, TASK_FACTORS, task_labels

SMOOTHING = 0.05


def task_slices() -> dict[str, slice]:
    """Where each task factor's logits lie."""
    slices, start = {}, 0
    for name in TASK_FACTORS:
        slices[name] = slice(start, start + len(FACTORS[name]))
        start += len(FACTORS[name])
    return slices


def build_timm(recipe: SupervisedRecipe, num_classes: int) -> nn.Module:
    """Untrained timm model of the recipe."""
    ensure_torchvision()
    import timm

    return timm.create_model(recipe.architecture, num_classes=num_classes, **recipe.model_args)


def multi_attribute_loss(
    logits: Float[Tensor, "n k"], codes: Int[Tensor, "n f"]
) -> Float[Tensor, ""]:
    """Mean over the task factors of the cross-entropy within the factor's logits.

    Parameters
    ----------
    logits
        In the order of `task_labels`.
    codes
        Position of each factor's value in `FACTORS`, all factors.
    """
    columns = list(FACTORS)
    losses = [
        nn.functional.cross_entropy(
            logits[:, part].float(), codes[:, columns.index(name)].long(), label_smoothing=SMOOTHING
        )
        for name, part in task_slices().items()
    ]
    return torch.stack(losses).mean()


def train_supervised(
    recipe: SupervisedRecipe, pool: Pool, device: torch.device
) -> tuple[nn.Module, float]:
    """Trained model of a recipe, and the seconds it took."""
    rng = set_seed(recipe.seed)
    model = build_timm(recipe, len(task_labels()))
    warm_start_timm(model, pool)
    model = model.to(device)
    if hasattr(model, "set_distilled_training"):
        model.set_distilled_training(True)
    model.train()

    def loss_of(item: tuple[Tensor, Tensor]) -> Tensor:
        images, codes = item
        with mixed_precision(device):
            heads = model(images)
        heads = heads if isinstance(heads, tuple) else (heads,)
        return torch.stack([multi_attribute_loss(head, codes) for head in heads]).mean()

    seconds = fit(model, recipe, _augmented(recipe, pool, rng, device), loss_of)
    return model.eval(), seconds


def _augmented(
    recipe: SupervisedRecipe, pool: Pool, rng: torch.Generator, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    for numbers in batches(len(pool), recipe.batch, recipe.steps, recipe.seed):
        images = mirrored(shifted(torch.from_numpy(pool.images[numbers]), rng), rng)
        codes = torch.from_numpy(pool.codes[numbers])
        yield relit(normalise(images), rng).to(device), codes.to(device)
