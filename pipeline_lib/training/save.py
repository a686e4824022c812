"""Writes a trained model as a folder that timm or open_clip loads with its own code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline_lib.training.data import MEAN, SIDE, STD
from pipeline_lib.training.recipes import ContrastiveRecipe, SupervisedRecipe

TIMM_WEIGHTS, TIMM_CONFIG = "model.safetensors", "config.json"
CLIP_WEIGHTS, CLIP_CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
METRICS, CARD = "metrics.json", "README.md"


def save_timm(
    folder: Path, model: nn.Module, recipe: SupervisedRecipe, label_names: list[str]
) -> None:
    """`config.json` and float16 `model.safetensors` for `timm.create_model("local-dir:…")`.

    Parameters
    ----------
    folder
        Made when missing.
    model
        Trained model of the recipe's architecture.
    label_names
        One name for each output of the head, empty for a model without one.
    """
    config = {
        "architecture": recipe.architecture,
        "num_classes": len(label_names),
        "num_features": model.num_features,
        "model_args": dict(recipe.model_args),
        "pretrained_cfg": {
            "tag": "demo_world",
            "custom_load": False,
            "input_size": [3, SIDE, SIDE],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": [MEAN] * 3,
            "std": [STD] * 3,
            "num_classes": len(label_names),
            **_layer_names(model),
            "license": "same as the repository",
        },
    }
    if label_names:
        config["label_names"] = label_names
        config["pretrained_cfg"]["label_names"] = label_names
    _write(folder, TIMM_CONFIG, TIMM_WEIGHTS, config, model)


def _layer_names(model: nn.Module) -> dict[str, Any]:
    """Where timm finds the stem and the classifier of this architecture."""
    known = getattr(model, "pretrained_cfg", {}) or {}
    return {name: known[name] for name in ("first_conv", "classifier") if name in known}


def save_open_clip(folder: Path, model: nn.Module, config: Mapping[str, Any]) -> None:
    """`open_clip_config.json` and float16 weights for open_clip's `local-dir:…`.

    Parameters
    ----------
    folder
        Made when missing; the vocabulary is already in it.
    model
        Trained open_clip model.
    config
        Its `model_cfg`.
    """
    preprocess = {
        "size": [SIDE, SIDE],
        "mode": "RGB",
        "mean": [MEAN] * 3,
        "std": [STD] * 3,
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    _write(
        folder,
        CLIP_CONFIG,
        CLIP_WEIGHTS,
        {"model_cfg": dict(config), "preprocess_cfg": preprocess},
        model,
    )


def _write(
    folder: Path, config_name: str, weights_name: str, config: dict[str, Any], model: nn.Module
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{weights_name}.part"
    save_file(_half(model.state_dict()), part, metadata={"format": "pt"})
    part.chmod(0o644)
    part.replace(folder / weights_name)
    write_json(folder / config_name, config)


def _half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors in float16, everything contiguous and on the CPU."""
    return {
        name: (tensor.half() if tensor.is_floating_point() else tensor).cpu().contiguous().clone()
        for name, tensor in state.items()
        if torch.is_tensor(tensor)
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Readable JSON with a final line end."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def recipe_as_dict(recipe: SupervisedRecipe | ContrastiveRecipe) -> dict[str, Any]:
    """The fields of a recipe, as they go into `metrics.json`."""
    return asdict(recipe)


def publish(part: Path, folder: Path) -> None:
    """Put a finished folder in place of an older one."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part.replace(folder)
