"""Baselines of segmentation: raw attention, attention rollout, GradCAM, patch-text cosine.

Each gives one map per image from the model's own forward pass, without its decomposition, or says
that the model has no such map. Token heat maps are in `heatmaps`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline_lib.errors import DataError
from pipeline_lib.heatmaps import representations

logger = logging.getLogger(__name__)


def tower(module: nn.Module) -> Any:
    """The image side of a model: open_clip's vision tower, or the model itself."""
    return getattr(module, "visual", module)


def leading_tokens(module: nn.Module) -> int:
    """Tokens before the patches (class, distillation, registers); 0 where there are none."""
    found = tower(module)
    if hasattr(found, "num_prefix_tokens"):
        return int(found.num_prefix_tokens)
    return int(isinstance(getattr(found, "class_embedding", None), nn.Parameter))


def grid_of(count: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of `count` patches of a picture of `size` pixels; None where none fit."""
    rows = round(math.sqrt(count * size[0] / size[1]))
    return (rows, count // rows) if rows and count % rows == 0 else None


@contextmanager
def recorded_attention(module: nn.Module) -> Iterator[list[Float[Tensor, "b h q t"]]]:
    """While open, the softmax weights of every attention block are appended to the list given.

    timm's blocks are made to compute them unfused, open_clip's to return them; both give the same
    output as before.
    """
    found: list[Tensor] = []
    undo: list[Callable[[], object]] = []

    def unfused(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].detach())

    def ask(part: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "need_weights": True, "average_attn_weights": False}

    def given(part: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        found.append(output[1].detach())

    for part in tower(module).modules():
        dropout = getattr(part, "attn_drop", None)
        if isinstance(part, nn.MultiheadAttention):
            undo.append(part.register_forward_pre_hook(ask, with_kwargs=True).remove)
            undo.append(part.register_forward_hook(given).remove)
        elif hasattr(part, "fused_attn") and isinstance(dropout, nn.Module):
            undo.append(_set(part, "fused_attn", False))
            undo.append(dropout.register_forward_pre_hook(unfused).remove)
    try:
        yield found
    finally:
        for step in undo:
            step()


def _set(part: Any, name: str, value: object) -> Callable[[], object]:
    before = getattr(part, name)
    setattr(part, name, value)
    return lambda: setattr(part, name, before)


def attention_of(
    module: nn.Module, images: Float[Tensor, "n 3 h w"]
) -> list[Float[Tensor, "b q t"]]:
    """Attention of every block from the input on, averaged over heads; `b` counts windows too."""
    with torch.no_grad(), recorded_attention(module) as found:
        _forward(module)(images)
    return [weights.mean(dim=1) for weights in found]


def raw_attention(
    module: nn.Module, images: Float[Tensor, "n 3 h w"]
) -> Float[np.ndarray, "n gh gw"] | None:
    """What the last block's class token attends to; without one, the mean over all its queries.

    None where the last block attends within windows that do not cover the picture.
    """
    blocks = attention_of(module, images)
    if not blocks:
        return None
    return _patches(module, blocks[-1], images)


def rollout(
    module: nn.Module, images: Float[Tensor, "n 3 h w"]
) -> Float[np.ndarray, "n gh gw"] | None:
    """Attention rolled out over all blocks, half of each step going along the skip connection.

    None where blocks attend within windows, or over different tokens.

    Notes
    -----
    Abnar and Zuidema, *Quantifying Attention Flow in Transformers*, ACL 2020.
    """
    blocks = attention_of(module, images)
    square = blocks and all(one.shape == blocks[0].shape for one in blocks)
    if not square or blocks[0].shape[1] != blocks[0].shape[2]:
        return None
    flow = torch.eye(blocks[0].shape[1], device=blocks[0].device)
    for weights in blocks:
        flow = ((weights + torch.eye(weights.shape[1], device=weights.device)) / 2) @ flow
    return _patches(module, flow, images)


def _patches(
    module: nn.Module, weights: Float[Tensor, "b q t"], images: Tensor
) -> Float[np.ndarray, "n gh gw"] | None:
    """Rows of attention that the readout reads, on the patch grid."""
    leading = leading_tokens(module)
    tokens = weights.shape[2] - leading
    size = (int(images.shape[2]), int(images.shape[3]))
    grid = grid_of(tokens, size) if tokens > 0 else None
    if grid is None or len(weights) != len(images):
        return None
    rows = weights[:, 0] if leading else weights.mean(dim=1)
    return rows[:, leading:].reshape(-1, *grid).cpu().numpy()


def patch_text(
    module: nn.Module,
    images: Float[Tensor, "n 3 h w"],
    texts: Float[np.ndarray, "n e"],
) -> Float[np.ndarray, "n gh gw"] | None:
    """Cosine of each patch token, projected like the class token, to one text per image.

    None where the model is no CLIP with patch tokens in the text's space.
    """
    visual = tower(module)
    if not hasattr(visual, "output_tokens") or not isinstance(visual.proj, Tensor):
        return None
    undo = _set(visual, "output_tokens", True)
    try:
        with torch.no_grad():
            _, tokens = visual(images)
    finally:
        undo()
    grid = grid_of(tokens.shape[1], (int(images.shape[2]), int(images.shape[3])))
    if grid is None:
        return None
    found = nn.functional.normalize(tokens @ visual.proj, dim=-1)
    wanted = nn.functional.normalize(torch.from_numpy(texts).to(found), dim=-1)
    cosine = torch.einsum("nte,ne->nt", found, wanted)
    return cosine.reshape(-1, *grid).detach().cpu().numpy()


class GradCam:
    """GradCAM at the last block of a model, along directions of its representation.

    Uses the package `grad-cam` (Selvaraju et al., *Grad-CAM*, ICCV 2017; the layer is the one that
    its documentation names for each family).

    Attributes
    ----------
    fits
        Whether the model has such a layer and its representation is reached by its own modules.
    """

    def __init__(self, model: object, images: Float[Tensor, "n 3 h w"]) -> None:
        module: Any = getattr(model, "module", model)
        self._module = module
        self._size = (int(images.shape[2]), int(images.shape[3]))
        self._layer = _last_layer(module)
        self._way = _matching_forward(model, images[:1])
        self.fits = self._layer is not None and self._way is not None
        if not self.fits:
            logger.warning("no GradCAM: the model has no layer for it that is known")

    def __call__(
        self, images: Float[Tensor, "n 3 h w"], directions: Float[np.ndarray, "n d"]
    ) -> Float[np.ndarray, "n h w"]:
        """Maps at the size of the images, 0 to 1."""
        from pytorch_grad_cam import GradCAM

        if self._way is None or self._layer is None:
            raise DataError("the model has no layer for GradCAM; leave this baseline out")
        wanted = torch.from_numpy(np.ascontiguousarray(directions)).to(images)
        targets = [lambda z, row=row: (z * row).sum() for row in wanted]
        with GradCAM(_Function(self._module, self._way), [self._layer], self._as_pictures) as cam:
            pixels = images.detach().clone().requires_grad_(True)
            return np.asarray(cam(input_tensor=pixels, targets=targets), dtype=np.float32)

    def _as_pictures(self, tokens: Tensor) -> Float[Tensor, "n c gh gw"]:
        """The layer's output as channels on a grid, leading tokens left out."""
        if tokens.dim() == 4:
            last = tokens.shape[1] == tokens.shape[2]  # rows, columns, channels, as in Swin
            return tokens.permute(0, 3, 1, 2) if last else tokens
        patches = tokens[:, leading_tokens(self._module) :]
        grid = grid_of(patches.shape[1], self._size)
        if grid is None:
            raise DataError(f"{patches.shape[1]} tokens are no grid over {self._size} pixels")
        return patches.transpose(1, 2).unflatten(2, grid)


class _Function(nn.Module):
    """A way through a model as a module of its own."""

    def __init__(self, model: nn.Module, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.way = model, way

    def forward(self, images: Tensor) -> Tensor:
        return self.way(images)


def _last_layer(module: nn.Module) -> nn.Module | None:
    """The layer whose output GradCAM weighs: the norm before the last attention, or a stage."""
    found = tower(module)
    if hasattr(found, "transformer") and hasattr(found.transformer, "resblocks"):
        return found.transformer.resblocks[-1].ln_1
    if hasattr(found, "blocks"):
        return found.blocks[-1].norm1
    if hasattr(found, "layers"):
        return found.layers[-1].blocks[-1].norm1
    return found.stages[-1] if hasattr(found, "stages") else None


def _forward(module: nn.Module) -> Callable[[Tensor], Tensor]:
    if hasattr(module, "encode_image"):
        return module.encode_image  # type: ignore[return-value]
    model: Any = module
    return lambda images: model.forward_head(model.forward_features(images), pre_logits=True)


def _matching_forward(
    model: object, images: Float[Tensor, "1 3 h w"]
) -> Callable[[Tensor], Tensor] | None:
    """A way through the model's own modules to the representation that is decomposed."""
    module: Any = getattr(model, "module", model)
    pooled = getattr(getattr(module, "head", None), "global_pool", None)
    ways = [_forward(module)]
    if isinstance(pooled, nn.Module):
        ways.append(lambda images: pooled(module.forward_features(images)).flatten(1))
    wanted = representations(model, images)
    for way in ways:
        with torch.no_grad():
            found = way(images).cpu().numpy()
        if found.shape == wanted.shape and np.allclose(found, wanted, rtol=1e-3, atol=1e-4):
            return way
    return None
