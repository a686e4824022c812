"""Warm start of a patch embedding: the principal components of the training patches.

A random patch embedding spends most of a short training on becoming a smooth one. Starting from
the whitened principal components of patches gives every channel unit variance from the first step.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

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
