"""Warm start of a patch embedding: the principal components of the training patches.

A random patch embedding spends most of a short training on becoming a smooth one. Starting from
the whitened principal components of patches gives every channel unit variance from the first step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline_lib.errors import DataError
from pipeline_lib.training.data import Pool, normalise

IMAGES = 2000
FLOOR = 1e-2  # added to the variances, so that components that are noise stay small


def principal_patches(pool: Pool, patch: int, components: int) -> Float[Tensor, "k 3 p p"]:
    """Whitened principal components of the patches of a pool's first images."""
    images = normalise(torch.from_numpy(pool.images[:IMAGES].copy()))
    patches = nn.functional.unfold(images, patch, stride=patch).transpose(1, 2).flatten(0, 1)
    centred = patches - patches.mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    values, vectors = values.flip(0)[:components], vectors.flip(1)[:, :components]
    basis = vectors / (values + FLOOR).sqrt()
    return basis.T.reshape(-1, 3, patch, patch)


@torch.no_grad()
def start_from_patches(convolution: nn.Conv2d, pool: Pool, scale: float = 0.5) -> None:
    """Set the weight of a patch embedding to the principal patches, in random directions.

    Parameters
    ----------
    convolution
        Kernel and stride are the patch.
    pool
        Training images.
    scale
        Standard deviation of the channels afterwards.
    """
    channels, _, patch, _ = convolution.weight.shape
    basis = principal_patches(pool, patch, min(channels, 3 * patch**2))
    turned = torch.linalg.qr(torch.randn(channels, len(basis)))[0]
    mixed = scale * torch.einsum("ck,kxyz->cxyz", turned, basis)
    convolution.weight.copy_(mixed)
    if convolution.bias is not None:
        convolution.bias.zero_()


def frequencies_of_grid(side: int, width: int) -> Float[Tensor, "f"]:
    """Angular frequencies along one axis: periods of two sides down to half a side."""
    return torch.pi / side * 2 ** torch.linspace(0, 2, width // 4)


def waves_of_grid(side: int, width: int) -> Float[Tensor, "t d"]:
    """Sines and cosines of the row and the column of each patch of a square grid."""
    frequencies = frequencies_of_grid(side, width)
    places = torch.arange(side) + 0.5
    angles = places[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None, :].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).reshape(side**2, -1)


@torch.no_grad()
def start_from_waves(positions: Tensor, scale: float = 1.0) -> None:
    """Set learned position embeddings of a patch grid to sines and cosines.

    Parameters
    ----------
    positions
        `[…, tokens, width]`; tokens before the largest square grid (class token …) are left alone.
    scale
        Amplitude.
    """
    tokens, width = positions.shape[-2:]
    side = math.isqrt(tokens)
    waves = scale * waves_of_grid(side, width)
    positions[..., tokens - side**2 :, :] = waves


OFFSETS = ((0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (1, 1), (-1, 1), (1, -1))


@torch.no_grad()
def start_looking_around(
    queries_and_keys: list[tuple[Tensor, Tensor]], side: int, heads: int, strength: float = 1.5
) -> None:
    """Let each head of the early blocks start by looking at the patch next to the query.

    With positions as waves, the scalar product of a wave and a shifted wave is largest at the
    shift; queries are set to shifted waves and keys to waves, so that a convolution-like attention
    stands at the start of the training instead of a uniform one.

    Parameters
    ----------
    queries_and_keys
        Weights `[d, d]` of each block, changed in place.
    side
        Patches along one side of the image.
    heads
        Heads of a block; head h of block l takes the direction `l · heads + h`.
    strength
        Factor of the logits.
    """
    for layer, (query, key) in enumerate(queries_and_keys):
        width = query.shape[1]
        size = width // heads
        for head in range(heads):
            offset = OFFSETS[(layer * heads + head) % len(OFFSETS)]
            rows = slice(head * size, (head + 1) * size)
            query[rows], key[rows] = _shifted_waves(width, size, side, offset)
            query[rows] *= strength


def _shifted_waves(
    width: int, size: int, side: int, offset: tuple[int, int]
) -> tuple[Float[Tensor, "s d"], Float[Tensor, "s d"]]:
    """Rows that read waves shifted by `offset`, and rows that read the waves as they are."""
    query, key = torch.zeros(size, width), torch.zeros(size, width)
    count = width // 4
    frequencies = frequencies_of_grid(side, width)
    chosen = torch.linspace(0, count - 1, size // 4).round().long()
    row = 0
    for axis, shift in enumerate(offset):
        for number in chosen.tolist():
            sine, cosine = (axis * 2 * count + part * count + number for part in (0, 1))
            angle = frequencies[number] * shift
            key[row, sine] = key[row + 1, cosine] = 1.0
            query[row, sine] = query[row + 1, cosine] = angle.cos()
            query[row, cosine], query[row + 1, sine] = angle.sin(), -angle.sin()
            row += 2
    return query, key


@torch.no_grad()
def start_wide(model: nn.Module) -> None:
    """Give the linear layers of the blocks weights of the size that their width asks for.

    The usual standard deviation of 0.02 suits widths of several hundred. At the widths used here
    it leaves attention uniform and activations linear for a large part of a short training.
    """
    layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    depth = sum(name.endswith("fc1") for name in layers)
    for name, layer in layers.items():
        if any(part in name for part in ("blocks.", "layers.", "stages.")):
            writes = name.endswith(("proj", "fc2"))
            scale = (2 * depth) ** -0.5 if writes else 1.0
            nn.init.normal_(layer.weight, std=scale * layer.in_features**-0.5)


def warm_start_timm(model: nn.Module, pool: Pool) -> None:
    """Warm start of a timm model: its blocks, and where it has them its patches and positions."""
    start_wide(model)
    if not hasattr(model, "patch_embed"):
        return
    start_from_patches(model.patch_embed.proj, pool)
    if getattr(model, "pos_embed", None) is not None:
        start_from_waves(model.pos_embed)
        blocks = model.blocks[: len(model.blocks) // 2]
        weights = [block.attn.qkv.weight.chunk(3)[:2] for block in blocks]
        side, heads = model.patch_embed.grid_size[0], model.blocks[0].attn.num_heads
        start_looking_around(weights, side, heads)


def warm_start_clip(model: nn.Module, pool: Pool) -> None:
    """Warm start of the image tower of an open_clip model."""
    start_from_patches(model.visual.conv1, pool)
    start_from_waves(model.visual.positional_embedding)
    blocks = model.visual.transformer.resblocks
    blocks = blocks[: len(blocks) // 2]
    weights = [block.attn.in_proj_weight.chunk(3)[:2] for block in blocks]
    start_looking_around(weights, model.visual.grid_size[0], blocks[0].attn.num_heads)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Weights of a shipped timm model, float32.

    Raises
    ------
    DataError
        If the model is not there yet.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        raise DataError(f"no weights in {folder}: train the model {folder.name!r} first")
    return {name: tensor.float() for name, tensor in load_file(path).items()}


@torch.no_grad()
def start_from_supervised(tower: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Start the image tower of an open_clip model from a supervised vision transformer.

    A tower with more blocks keeps random weights in the last ones, with small outputs, so that
    these start near the identity.

    Parameters
    ----------
    tower
        `visual` of the model, without a norm before the blocks; same width and patch size.
    weights
        Of a timm vision transformer with a class token.
    """
    tower.conv1.weight.copy_(weights["patch_embed.proj.weight"])
    tower.class_embedding.copy_(weights["cls_token"][0, 0])
    positions = weights["pos_embed"][0]
    patches = tower.positional_embedding.shape[0] - 1
    tower.positional_embedding[0] = positions[0]
    tower.positional_embedding[1:] = positions[-patches:] + weights["patch_embed.proj.bias"]
    tower.ln_post.load_state_dict(_layer(weights, "norm"))
    for number, block in enumerate(tower.transformer.resblocks):
        if f"blocks.{number}.norm1.weight" in weights:
            _start_block(block, weights, f"blocks.{number}")
        else:
            block.attn.out_proj.weight.mul_(0.1)
            block.mlp.c_proj.weight.mul_(0.1)


@torch.no_grad()
def start_from_relative(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Start a plain timm vision transformer from a supervised one of the same width and depth.

    Register tokens keep their random start, and LayerScale starts at 1. Position embeddings are
    taken with or without one for the class token, as the model has them.

    Parameters
    ----------
    model
        Of timm, with a class token.
    weights
        Of a timm vision transformer with a class token that has a position of its own.
    """
    own = model.state_dict()
    taken = {name: weights[name] for name in own if name in weights and name != "pos_embed"}
    positions = weights["pos_embed"]
    patches = model.patch_embed.num_patches
    if own["pos_embed"].shape[1] == patches:
        taken["pos_embed"] = positions[:, -patches:]
        taken["cls_token"] = weights["cls_token"] + positions[:, :1]
    else:
        taken["pos_embed"] = torch.cat([positions[:, :1], positions[:, -patches:]], dim=1)
    scales = {name: torch.ones_like(own[name]) for name in own if name.endswith(".gamma")}
    model.load_state_dict({**own, **scales, **taken})


def _start_block(block: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    block.attn.in_proj_weight.copy_(weights[f"{name}.attn.qkv.weight"])
    block.attn.in_proj_bias.copy_(weights[f"{name}.attn.qkv.bias"])
    block.attn.out_proj.load_state_dict(_layer(weights, f"{name}.attn.proj"))
    block.ln_1.load_state_dict(_layer(weights, f"{name}.norm1"))
    block.ln_2.load_state_dict(_layer(weights, f"{name}.norm2"))
    block.mlp.c_fc.load_state_dict(_layer(weights, f"{name}.mlp.fc1"))
    block.mlp.c_proj.load_state_dict(_layer(weights, f"{name}.mlp.fc2"))


def _layer(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {part: weights[f"{name}.{part}"] for part in ("weight", "bias")}
