"""Contrastive training of an open_clip model on pictures and captions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline_lib._torchvision import ensure_torchvision
from pipeline_lib.training.data import Pool, alike_batches, normalise, relit, shifted
from pipeline_lib.training.optimise import fit, mixed_precision, set_seed
from pipeline_lib.training.recipes import ContrastiveRecipe
from pipeline_lib.training.vocabulary import VOCABULARY, load_tokenizer, write_vocabulary
from pipeline_lib.training.warm_start import load_weights, start_from_supervised, warm_start_clip
from pipeline_lib.world.captions import caption

LARGEST_SCALE = math.log(100.0)

Tokenizer = Callable[[list[str]], Tensor]


def model_config(recipe: ContrastiveRecipe, vocabulary: int) -> dict[str, Any]:
    """`model_cfg` of open_clip for a recipe."""
    tokenizer = {"bpe_path": VOCABULARY}
    fields = asdict(recipe)
    return {
        "embed_dim": recipe.embed_dim,
        "vision_cfg": fields["vision"],
        "text_cfg": {**fields["text"], "vocab_size": vocabulary, "tokenizer_kwargs": tokenizer},
    }


def build_clip(config: dict[str, Any]) -> nn.Module:
    """Untrained open_clip model of a `model_cfg`."""
    ensure_torchvision()
    from open_clip.model import CLIP

    return CLIP(**config)


def contrastive_loss(
    images: Float[Tensor, "n e"],
    texts: Float[Tensor, "n e"],
    scale: Float[Tensor, ""],
    names: Int[Tensor, "n"],
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE in which equal captions are equally right.

    Parameters
    ----------
    images, texts
        Unit vectors.
    scale
        Inverse temperature.
    names
        Equal for two texts that are equal.
    """
    logits = scale * images.float() @ texts.float().T
    same = (names[:, None] == names[None, :]).float()
    target = same / same.sum(dim=1, keepdim=True)
    by_image = nn.functional.cross_entropy(logits, target)
    by_text = nn.functional.cross_entropy(logits.T, target)
    return (by_image + by_text) / 2


def train_contrastive(
    recipe: ContrastiveRecipe, pool: Pool, folder: Path, models: Path, device: torch.device
) -> tuple[nn.Module, dict[str, Any], float]:
    """Trained model of a recipe, its `model_cfg`, and the seconds it took.

    Parameters
    ----------
    recipe, pool, device
        What to train, on what, and where.
    folder
        The vocabulary is written into it.
    models
        Holds the folder of the model that the image tower starts from.
    """
    rng = set_seed(recipe.seed)
    config = model_config(recipe, write_vocabulary(folder / VOCABULARY))
    tokenizer = load_tokenizer(folder, recipe.text["context_length"])
    model = build_clip(config)
    if recipe.start:
        start_from_supervised(model.visual, load_weights(models / recipe.start))
    else:
        warm_start_clip(model, pool)
    model = model.to(device).train()

    def loss_of(item: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        images, texts, names = item
        with mixed_precision(device):
            image_features = model.encode_image(images, normalize=True)
            text_features = model.encode_text(texts, normalize=True)
        return contrastive_loss(image_features, text_features, model.logit_scale.exp(), names)

    def after_step(step: int) -> None:
        with torch.no_grad():
            model.logit_scale.clamp_(max=LARGEST_SCALE)

    data = _captioned(recipe, pool, tokenizer, rng, device)
    seconds = fit(model, recipe, data, loss_of, after_step)
    return model.eval(), config, seconds


def _captioned(
    recipe: ContrastiveRecipe,
    pool: Pool,
    tokenizer: Tokenizer,
    rng: torch.Generator,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    choice = np.random.default_rng([recipe.seed, 11])
    steps = alike_batches(
        pool, recipe.batch, recipe.alike, recipe.steps, recipe.seed, ("scene", "colour")
    )
    for numbers in steps:
        captions = [caption(pool.factors(number), choice) for number in numbers]
        _, names = np.unique(captions, return_inverse=True)
        images = relit(normalise(shifted(torch.from_numpy(pool.images[numbers]), rng)), rng)
        texts = tokenizer(captions)
        yield images.to(device), texts.to(device), torch.from_numpy(names).to(device)
