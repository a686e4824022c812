"""The published way to decompose a plain vision transformer, as the baseline of the benchmark.

Every operation of the direct path is applied to every term: a stack of streams, one per component
and of the size of the whole stream, is carried through the final norm (P1, Gandelsman et al. 2024;
P2, Balasubramanian et al. 2024). Written here from the method, for timm's plain `VisionTransformer`
with a class token and no fused attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def decompose_published(model: nn.Module, images: Tensor) -> Tensor:
    """Contributions `[n, c, d]` of stem, heads and MLPs; constants split evenly."""
    x = model._pos_embed(model.patch_embed(images))  # type: ignore[operator]
    x = model.norm_pre(x)  # type: ignore[operator]
    terms, constants = [x], []
    for block in model.blocks:  # type: ignore[union-attr]
        heads, bias = head_terms(block.attn, block.norm1(x))
        heads = [block.ls1(head) for head in heads]
        bias = block.ls1(bias)
        terms += heads
        constants.append(bias)
        x = x + sum(heads) + bias
        terms.append(block.ls2(block.mlp(block.norm2(x))))
        x = x + terms[-1]
    stack = torch.stack(terms, 1)
    stack = stack + sum(constants).expand_as(x)[:, None] / stack.shape[1]
    return frozen_norm(model.norm, x, stack)[:, :, 0]  # type: ignore[arg-type]


def head_terms(attention: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """What each head writes into the stream `[n, t, d]`, and the bias of the projection."""
    n, t, d = x.shape
    heads = attention.num_heads
    q, k, v = attention.qkv(x).view(n, t, 3, heads, -1).permute(2, 0, 3, 1, 4)  # type: ignore[operator]
    q, k = attention.q_norm(q), attention.k_norm(k)  # type: ignore[operator]
    weights = (q * attention.scale @ k.transpose(-1, -2)).softmax(-1)
    mixed = weights @ v
    width = d // heads
    weight, bias = attention.proj.weight, attention.proj.bias  # type: ignore[union-attr]
    parts = [mixed[:, h] @ weight[:, h * width : (h + 1) * width].T for h in range(heads)]
    return parts, bias


def frozen_norm(norm: nn.LayerNorm, x: Tensor, terms: Tensor) -> Tensor:
    """The final norm with the statistics of the whole stream, on every term `[n, c, t, d]`."""
    deviation = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()[:, None]
    centred = terms - terms.mean(-1, keepdim=True)
    return centred / deviation * norm.weight + norm.bias / terms.shape[1]
