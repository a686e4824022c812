"""Models: timm's and open_clip's own loading code behind one id, with what a run needs of each.

An id is `timm:NAME`, `timm:local-dir:FOLDER`, `open_clip:NAME/TAG` or `open_clip:local-dir:FOLDER`.
Weights come from the library's hub, from the folder, or from a local file (safetensors, or a
checkpoint of plain tensors read with `weights_only=True`; a pickle with code in it is refused).
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from pipeline_lib._torchvision import ensure_torchvision
from pipeline_lib.errors import ModelError, close_matches

log = logging.getLogger(__name__)


@dataclass(eq=False)
class VisionModel:
    """A loaded model in eval mode, with its preprocessing, classifier and text tower.

    Attributes
    ----------
    id
        As given to `load_model`.
    module
        The library's module; `decompose` takes it or this object.
    preprocess
        Image -> tensor `[3, h, w]`, the model's own evaluation transform.
    input_size
        Height and width in pixels.
    classifier
        The model's own linear head from `z` to logits; None where it has none.
    class_names
        Name of each logit (wnids for the 1,000 ImageNet classes), or None.
    class_descriptions
        The same in words, for display, or None.
    """

    id: str
    module: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    input_size: tuple[int, int]
    classifier: nn.Linear | None = None
    class_names: list[str] | None = None
    class_descriptions: list[str] | None = None
    tokenizer: Callable[[Sequence[str]], Tensor] | None = field(default=None, repr=False)

    @property
    def is_clip(self) -> bool:
        """Whether the model has a text tower, so that its representation is a CLIP embedding."""
        return self.tokenizer is not None

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def to(self, device: str | torch.device) -> VisionModel:
        """The same model on another device (moved in place)."""
        self.module.to(device)
        return self

    @cached_property
    def weight_hash(self) -> str:
        """SHA-256 over the names, shapes and bytes of all parameters and buffers."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def preprocess_mask(self, mask: Image.Image) -> np.ndarray:
        """A mask through the geometry of `preprocess` (nearest neighbour), uint8 `[h, w]`."""
        for step in getattr(self.preprocess, "transforms", [self.preprocess]):
            if any(word in type(step).__name__ for word in ("Resize", "Crop", "Pad")):
                step = copy.copy(step)
                if hasattr(step, "interpolation"):
                    from torchvision.transforms import InterpolationMode

                    step.interpolation = InterpolationMode.NEAREST
                mask = step(mask)
        return np.asarray(mask, dtype=np.uint8)

    def encode_text(self, texts: Sequence[str], batch: int = 256) -> Float[Tensor, "k e"]:
        """Unit text embeddings in the model's CLIP space.

        Raises
        ------
        ModelError
            The model has no text tower, or there is no text.
        """
        if self.tokenizer is None:
            raise ModelError(f"{self.id} has no text tower; only open_clip models encode text")
        if not texts:
            raise ModelError("no texts to encode")
        found = []
        with torch.no_grad():
            for start in range(0, len(texts), batch):
                tokens = self.tokenizer(list(texts[start : start + batch])).to(self.device)
                found.append(self.module.encode_text(tokens))  # type: ignore[operator]
        return nn.functional.normalize(torch.cat(found).float(), dim=-1)

    def encode_image(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n e"]:
        """Unit image embeddings in the model's CLIP space."""
        if not self.is_clip:
            raise ModelError(f"{self.id} is no CLIP model")
        with torch.no_grad():
            return nn.functional.normalize(self.module.encode_image(images).float(), dim=-1)  # type: ignore[operator]


def load_model(
    id: str, *, weights: str | Path | None = None, pretrained: bool | None = None, **kwargs: Any
) -> VisionModel:
    """A model ready to be decomposed, through its library's own loading code.

    Parameters
    ----------
    id
        `timm:NAME`, `open_clip:NAME/TAG`, or either library with `local-dir:FOLDER`.
    weights
        File of weights to load strictly: `.safetensors`, or a checkpoint of plain tensors.
    pretrained
        Whether to load the library's own weights; default: yes unless `weights` is given.
    kwargs
        Passed on to the library's `create_model` (for example `img_size`, `depth`).

    Raises
    ------
    ModelError
        Unknown library or model, weights that are missing, unsafe or do not fit.

    Examples
    --------
    >>> model = load_model("timm:swin_tiny_patch4_window7_224", pretrained=False)  # doctest: +SKIP
    """
    library, _, name = str(id).partition(":")
    loaders = {"timm": _load_timm, "open_clip": _load_open_clip}
    if library not in loaders or not name:
        raise ModelError(
            f"model id {id!r}: it must be timm:NAME or open_clip:NAME/TAG "
            f"({close_matches(library, loaders)})"
        )
    ensure_torchvision()
    wanted = (weights is None) if pretrained is None else pretrained
    model = loaders[library](id, name, wanted, kwargs)
    if weights is not None:
        load_weights(model.module, weights, id)
    model.module.eval().requires_grad_(False)
    log.info("%s: %.1f M parameters", id, sum(p.numel() for p in model.module.parameters()) / 1e6)
    return model


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file or a checkpoint of plain tensors.

    Raises
    ------
    ModelError
        The file is missing or damaged, or is a pickle that holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"weights file {path} cannot be read safely ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}). Give a .safetensors file, or a checkpoint that holds "
            "tensors only."
        ) from error
    for key in ("state_dict", "model", "teacher"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"weights file {path} does not hold tensors by name")
    return state


def load_weights(module: nn.Module, path: str | Path, name: str) -> None:
    """Load a weights file strictly; the error lists what is missing, left over or misshapen."""
    state = read_weights(path)
    own = module.state_dict()
    problems = [f"missing: {key}" for key in own if key not in state]
    problems += [f"not in the model: {key}" for key in state if key not in own]
    problems += [
        f"shape of {key}: {tuple(state[key].shape)} in the file, {tuple(own[key].shape)} wanted"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        more = f"\n  … and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ModelError(
            f"weights file {path} does not fit {name}:\n  " + "\n  ".join(problems[:8]) + more
        )
    module.load_state_dict(state)


# ------------------------------------------------------------------ timm


def _load_timm(id: str, name: str, pretrained: bool, kwargs: dict[str, Any]) -> VisionModel:
    import timm
    from timm.data import create_transform, resolve_model_data_config

    if not name.startswith("local-dir:"):
        base = name.split(".")[0]
        if not timm.is_model(base):
            raise ModelError(
                f"timm has no model {base!r}: {close_matches(base, timm.list_models())}"
            )
    module = _create(
        id, pretrained, lambda: timm.create_model(name, pretrained=pretrained, **kwargs)
    )
    data = resolve_model_data_config(module)
    size = tuple(data["input_size"][-2:])
    own = kwargs.get("img_size")
    if own is not None:
        size = (own, own) if isinstance(own, int) else tuple(own)
        data["input_size"] = (3, *size)
    classifier = module.get_classifier() if hasattr(module, "get_classifier") else None
    if not isinstance(classifier, nn.Linear):
        classifier = None
    names, words = _class_names(module, classifier)
    transform = create_transform(**data, is_training=False)
    return VisionModel(id, module, transform, size, classifier, names, words)  # type: ignore[arg-type]


def _class_names(
    module: nn.Module, classifier: nn.Linear | None
) -> tuple[list[str] | None, list[str] | None]:
    if classifier is None:
        return None, None
    config = getattr(module, "pretrained_cfg", None) or {}
    names = config.get("label_names")
    if names is not None:
        return list(names), list(config.get("label_descriptions") or names)
    if classifier.out_features == 1000:
        from timm.data import ImageNetInfo

        info = ImageNetInfo()
        return info.label_names(), [info.index_to_description(i) for i in range(1000)]
    return None, None


# ------------------------------------------------------------------ open_clip


def _load_open_clip(id: str, name: str, pretrained: bool, kwargs: dict[str, Any]) -> VisionModel:
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    if name.startswith("local-dir:"):
        architecture, tag = name, None
    else:
        architecture, _, tag = name.partition("/")
        if architecture not in open_clip.list_models():
            raise ModelError(
                f"open_clip has no model {architecture!r}: "
                f"{close_matches(architecture, open_clip.list_models())}"
            )
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if pretrained and tag not in tags:
            raise ModelError(
                f"{id}: {architecture} has no weights {tag!r}: {close_matches(tag, tags)}"
            )
    arguments: dict[str, Any] = dict(kwargs)
    if tag and pretrained:
        arguments["pretrained"] = tag
    elif not pretrained:
        arguments["load_weights"] = False
    module = _create(id, pretrained, lambda: open_clip.create_model(architecture, **arguments))
    config = open_clip.get_model_preprocess_cfg(module)
    transform = image_transform_v2(PreprocessCfg(**config), is_train=False)
    size = config["size"]
    shape = (size, size) if isinstance(size, int) else tuple(size)
    return VisionModel(id, module, transform, shape, tokenizer=_tokenizer(architecture))  # type: ignore[arg-type]


def _tokenizer(architecture: str) -> Callable[[Sequence[str]], Tensor]:
    """The model's own tokenizer; a relative merges file is found in the model's folder."""
    import open_clip

    extra: dict[str, Any] = {}
    if architecture.startswith("local-dir:"):
        folder = Path(architecture.removeprefix("local-dir:"))
        config = json.loads((folder / "open_clip_config.json").read_text())
        text = config["model_cfg"].get("text_cfg", {})
        merges = text.get("tokenizer_kwargs", {}).get("bpe_path")
        if merges is not None:
            inside = (folder / merges).resolve()
            if not inside.is_relative_to(folder.resolve()):
                raise ModelError(f"{folder}: the tokenizer's file {merges} lies outside the folder")
            extra["bpe_path"] = str(inside)
    return open_clip.get_tokenizer(architecture, **extra)


def _create(id: str, pretrained: bool, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except Exception as error:
        reason = str(error).strip().splitlines()
        hint = "Check the settings (kwargs) of the model."
        if pretrained and "local-dir:" not in id:
            hint = "Without a network, give the file as `weights:` of the model"
            if id.startswith("open_clip:"):
                hint += "; for the reference as `reference.weights`, or text embeddings as "
                hint += "`reference.texts`"
            hint += " (docs/tutorial.md)."
        raise ModelError(
            f"{id} cannot be made: {type(error).__name__}: {reason[0] if reason else ''}. {hint}"
        ) from error
