"""One declared recipe for each demo model: its architecture, its data and its training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline_lib.errors import DataError, close_matches

TRAIN_SEED, EVALUATION_SEED = 101, 202
EVALUATION_IMAGES = 3000


@dataclass(frozen=True)
class Recipe:
    """What all trainings share.

    Attributes
    ----------
    name
        Folder of the model in `resources/models`.
    steps, batch
        Optimiser steps, and images in each.
    learning_rate
        Peak of a one-cycle schedule: linear warm-up, cosine decay to zero.
    weight_decay
        Of matrices; biases, norms, tokens and positions have none.
    seed
        Of initial weights, order of images and augmentation.
    images
        Size of the pool of training images (`TRAIN_SEED`).
    """

    name: str
    steps: int
    batch: int
    learning_rate: float = 5e-3
    weight_decay: float = 0.05
    seed: int = 0
    images: int = 40_000


@dataclass(frozen=True)
class SupervisedRecipe(Recipe):
    """A timm architecture trained to name the task factors.

    Attributes
    ----------
    architecture, model_args
        What `timm.create_model` takes.
    """

    architecture: str = ""
    model_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SelfDistillationRecipe(SupervisedRecipe):
    """A timm architecture whose student learns from its averaged teacher (DINO).

    Attributes
    ----------
    start
        Name of the supervised model whose weights this one starts from; empty for none.
    alike
        Images of a batch come in groups of this size that share scene and colour.
    prototypes
        Outputs of the projection head.
    local_crops
        Small crops of each image beside the two large ones.
    masked_patches
        Share of patches hidden from the student in the patch loss of DINOv2; 0 for none.
    koleo
        Weight of the loss that spreads the representations (DINOv2); 0 for none.
    """

    start: str = ""
    alike: int = 32
    prototypes: int = 256
    local_crops: int = 2
    local_side: int = 48
    masked_patches: float = 0.0
    koleo: float = 0.0
    momentum: float = 0.99
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04


@dataclass(frozen=True)
class ContrastiveRecipe(Recipe):
    """An open_clip model trained on pictures and captions.

    Attributes
    ----------
    vision, text
        `vision_cfg` and `text_cfg` of open_clip.
    embed_dim
        Width of the space that both towers share.
    start
        Name of the supervised model whose weights the image tower starts from; empty for none.
    alike
        Images of a batch come in groups of this size that share scene and colour, so that telling
        them apart takes the other factors.
    """

    batch: int = 256
    embed_dim: int = 64
    start: str = ""
    alike: int = 32
    vision: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)


def _clip_vision(width: int, layers: int, head_width: int) -> dict[str, int]:
    return {
        "image_size": 96,
        "patch_size": 12,
        "width": width,
        "layers": layers,
        "head_width": head_width,
        "no_ln_pre": True,
    }


def _clip_text(width: int, layers: int, heads: int) -> dict[str, int]:
    return {"context_length": 32, "width": width, "layers": layers, "heads": heads}


_VIT = {"img_size": 96, "patch_size": 12, "embed_dim": 96, "depth": 4, "num_heads": 4}

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        ContrastiveRecipe(
            name="clip-reference",
            embed_dim=96,
            vision=_clip_vision(width=96, layers=6, head_width=24),
            text=_clip_text(width=96, layers=2, heads=4),
            start="deit",
            steps=220,
            learning_rate=2.5e-3,
        ),
        ContrastiveRecipe(
            name="clip-small",
            embed_dim=64,
            vision=_clip_vision(width=96, layers=4, head_width=24),
            text=_clip_text(width=64, layers=2, heads=4),
            start="deit",
            steps=260,
            learning_rate=2.5e-3,
        ),
        SupervisedRecipe(
            name="deit",
            architecture="deit_tiny_distilled_patch16_224",
            model_args=_VIT,
            steps=3000,
            batch=64,
        ),
        SelfDistillationRecipe(
            name="dino",
            architecture="vit_tiny_patch16_224",
            model_args={**_VIT, "dynamic_img_size": True},
            start="deit",
            steps=320,
            batch=96,
            learning_rate=1.5e-3,
        ),
        SelfDistillationRecipe(
            name="dinov2",
            architecture="vit_small_patch14_reg4_dinov2",
            model_args={**_VIT, "dynamic_img_size": True, "init_values": 0.5},
            start="deit",
            steps=320,
            batch=96,
            learning_rate=1.5e-3,
            masked_patches=0.3,
            koleo=0.1,
        ),
        SupervisedRecipe(
            name="swin",
            architecture="swin_tiny_patch4_window7_224",
            model_args={
                "img_size": 96,
                "patch_size": 8,
                "embed_dim": 48,
                "depths": [2, 2, 2],
                "num_heads": [2, 4, 8],
                "window_size": 6,
                "drop_path_rate": 0.0,
            },
            steps=2200,
            batch=64,
        ),
        SupervisedRecipe(
            name="maxvit",
            architecture="maxvit_tiny_tf_224",
            model_args={
                "img_size": 96,
                "embed_dim": [16, 48, 96],
                "depths": [1, 1, 1],
                "stem_width": 16,
                "head_hidden_size": 96,
                "conv_expand_ratio": 2.0,
                "transformer_dim_head": 16,
                "transformer_partition_ratio": 16,
            },
            steps=1600,
            batch=64,
            learning_rate=4e-3,
        ),
    )
}


def recipe_of(name: str) -> Recipe:
    """The recipe of a demo model.

    Raises
    ------
    DataError
        If there is none of that name.
    """
    if name not in RECIPES:
        raise DataError(f"no recipe {name!r}; {close_matches(name, RECIPES)}")
    return RECIPES[name]
