"""Trains one demo model by its recipe, measures it, and writes its folder with its card."""

from __future__ import annotations

import datetime
import logging
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline_lib._torchvision import ensure_torchvision
from pipeline_lib.training.card import write_card
from pipeline_lib.training.contrastive import train_contrastive
from pipeline_lib.training.data import Pool, load_pool
from pipeline_lib.training.evaluate import (
    held_in,
    outputs,
    probe_accuracy,
    supervised_accuracy,
    zero_shot_accuracy,
)
from pipeline_lib.training.recipes import (
    EVALUATION_IMAGES,
    EVALUATION_SEED,
    TRAIN_SEED,
    ContrastiveRecipe,
    Recipe,
    SelfDistillationRecipe,
    SupervisedRecipe,
)
from pipeline_lib.training.save import (
    METRICS,
    publish,
    recipe_as_dict,
    save_open_clip,
    save_timm,
    write_json,
)
from pipeline_lib.training.self_distillation import train_self_distillation
from pipeline_lib.training.supervised import train_supervised
from pipeline_lib.world.factors import task_labels

logger = logging.getLogger(__name__)

PROBE_IMAGES = 4000


def train_demo_model(
    recipe: Recipe,
    folder: str | Path,
    pools: str | Path,
    device: str = "cpu",
    workers: int = 1,
    evaluation_images: int = EVALUATION_IMAGES,
    models: str | Path | None = None,
) -> dict[str, Any]:
    """Train, save, load again with the library's own code, measure, and write the card.

    Parameters
    ----------
    recipe
        What to train.
    folder
        Folder of the model; appears complete or not at all, and replaces an older one.
    pools
        Folder where rendered training images are kept.
    device
        `cpu` or `cuda`.
    workers
        Processes that render.
    evaluation_images
        Held-out images that the metrics are measured on.
    models
        Where the folders of models that this one starts from are; beside `folder` by default.

    Returns
    -------
    dict
        The content of the folder's `metrics.json`.
    """
    folder, target = Path(folder), torch.device(device)
    logger.info("%s on %s: %d steps of %d", recipe.name, device, recipe.steps, recipe.batch)
    pool = load_pool(pools, recipe.images, TRAIN_SEED, workers)
    held_out = load_pool(pools, evaluation_images, EVALUATION_SEED, workers)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        part = Path(temporary) / folder.name
        part.mkdir()
        seconds, accuracy = _train_and_measure(
            recipe, part, Path(models or folder.parent), pool, held_out, target
        )
        metrics = _metrics(recipe, accuracy, seconds, target, len(held_out))
        write_json(part / METRICS, metrics)
        write_card(part, recipe, metrics)
        publish(part, folder)
    logger.info("%s: %s", recipe.name, accuracy)
    return metrics


def _train_and_measure(
    recipe: Recipe,
    folder: Path,
    models: Path,
    pool: Pool,
    held_out: Pool,
    device: torch.device,
) -> tuple[float, dict[str, float]]:
    if isinstance(recipe, ContrastiveRecipe):
        model, config, seconds = train_contrastive(recipe, pool, folder, models, device)
        save_open_clip(folder, model, config)
        model, tokenizer = load_open_clip(folder)
        return seconds, zero_shot_accuracy(model.to(device), tokenizer, held_out, device)
    if isinstance(recipe, SelfDistillationRecipe):
        model, seconds = train_self_distillation(recipe, pool, models, device)
        save_timm(folder, model, recipe, label_names=[])
        model = load_timm(folder).to(device)
        features = outputs(pool, model, device, limit=PROBE_IMAGES)
        tested = outputs(held_out, model, device)
        return seconds, probe_accuracy(features, held_in(pool, PROBE_IMAGES), tested, held_out)
    if isinstance(recipe, SupervisedRecipe):
        model, seconds = train_supervised(recipe, pool, device)
        save_timm(folder, model, recipe, label_names=task_labels())
        return seconds, supervised_accuracy(load_timm(folder).to(device), held_out, device)
    raise TypeError(f"no training for a {type(recipe).__name__}")


def load_timm(folder: str | Path) -> nn.Module:
    """A shipped timm model, by timm's own loader, in evaluation mode."""
    ensure_torchvision()
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def load_open_clip(folder: str | Path) -> tuple[nn.Module, Callable[[list[str]], Tensor]]:
    """A shipped open_clip model and its tokenizer, by open_clip's own loaders."""
    ensure_torchvision()
    import open_clip

    from pipeline_lib.training.vocabulary import VOCABULARY

    name = f"local-dir:{folder}"
    model = open_clip.create_model(name)
    tokenizer = open_clip.get_tokenizer(name, bpe_path=str(Path(folder) / VOCABULARY))
    return model.eval(), tokenizer


def _metrics(
    recipe: Recipe,
    accuracy: Mapping[str, float],
    seconds: float,
    device: torch.device,
    evaluation_images: int,
) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "measure": measure_of(recipe),
        "accuracy": dict(accuracy),
        "evaluation_images": evaluation_images,
        "evaluation_seed": EVALUATION_SEED,
        "train_seed": TRAIN_SEED,
        "seconds": round(seconds, 1),
        "device": _describe(device),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), **_versions()},
        "recipe": {"kind": type(recipe).__name__, **recipe_as_dict(recipe)},
    }


def measure_of(recipe: Recipe) -> str:
    """What the accuracy of a recipe's model is the accuracy of."""
    if isinstance(recipe, ContrastiveRecipe):
        return "zero-shot accuracy"
    if isinstance(recipe, SelfDistillationRecipe):
        return "linear-probe accuracy"
    return "accuracy of the model's own head"


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} of {os.cpu_count()} cores"


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "timm", "open_clip_torch", "numpy")}
