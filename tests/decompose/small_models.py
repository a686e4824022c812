"""Small variants of many families, in the libraries' own code, with random values everywhere."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.randomise import randomise
from pipeline_lib._torchvision import ensure_torchvision


@dataclass(frozen=True)
class Small:
    """How a small variant is made, and what its architecture says it consists of.

    Attributes
    ----------
    name
        timm name, or `open_clip`, or a class of timm as `module.Class`.
    size
        Height and width of the images.
    heads
        Heads of each attention block that is a component, in the order from the input.
    mlps, convs
        Number of other branches.
    grid
        Patch grid of the finest token layout.
    leading
        Class, distillation and register tokens.
    idle
        Modules that the architecture keeps from every token that is read.
    """

    name: str
    size: tuple[int, int]
    heads: tuple[int, ...]
    mlps: int
    grid: tuple[int, int]
    convs: int = 0
    leading: int = 0
    kwargs: dict[str, Any] = field(default_factory=dict)
    idle: tuple[str, ...] = ()

    def build(self, seed: int = 0) -> nn.Module:
        ensure_torchvision()
        if self.name == "open_clip":
            return randomise(_open_clip(**self.kwargs), seed)
        import timm

        if "." in self.name:  # its registered variants take no smaller widths
            module, kind = self.name.split(".")
            return randomise(getattr(getattr(timm.models, module), kind)(**self.kwargs), seed)

        return randomise(timm.create_model(self.name, pretrained=False, **self.kwargs), seed)


#: Settings that make a plain vision transformer small.
PLAIN = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 5,
}


def _plain(name: str, *, leading: int = 1, mlps: int = 2, heads: tuple[int, ...] = (3, 3),
           size: tuple[int, int] = (32, 32), grid: tuple[int, int] = (4, 4),
           **changes: Any) -> Small:  # fmt: skip
    return Small(name, size, heads, mlps, grid, leading=leading, kwargs={**PLAIN, **changes})


def _staged(name: str, size: int, heads: tuple[int, ...], mlps: int, grid: int, *, convs: int = 0,
            leading: int = 0, idle: tuple[str, ...] = (), **kwargs: Any) -> Small:  # fmt: skip
    return Small(
        name, (size, size), heads, mlps, (grid, grid), convs, leading,
        {"num_classes": 5, **kwargs}, idle,
    )  # fmt: skip


MAXVIT = {
    "img_size": 64, "embed_dim": (16, 32), "depths": (1, 1), "block_type": ("M", "M"),
    "stem_width": 8, "transformer_dim_head": 8, "transformer_window_size": (4, 4),
}  # fmt: skip

SMALL: dict[str, Small] = {
    "vit": _plain("vit_tiny_patch16_224"),
    "vit non-square": _plain(
        "vit_tiny_patch16_224", img_size=(16, 48), size=(16, 48), grid=(2, 6)
    ),
    "vit average pooled": _plain("vit_tiny_patch16_224", global_pool="avg", fc_norm=True),
    "vit norm before pooling": _plain(
        "vit_base_patch16_gap_224", leading=0, global_pool="avg", fc_norm=False
    ),
    "vit q/k norm": _plain("vit_tiny_patch16_224", qk_norm=True),
    "vit pre-norm": _plain("vit_base_patch16_clip_quickgelu_224"),
    "vit post-norm": _plain("vit_base_patch16_rpn_224", leading=0),
    "vit parallel": _plain("vit_base_patch16_xp_224"),
    "vit parallel pairs": _plain("vit_small_patch16_18x2_224", heads=(3,) * 4, mlps=4),
    "deit distilled": _plain("deit_tiny_distilled_patch16_224", leading=2),
    "deit3": _plain("deit3_small_patch16_224"),
    "dinov2 registers": _plain("vit_giant_patch14_reg4_dinov2", leading=5),
    "siglip": _plain("vit_base_patch16_siglip_224", leading=1, mlps=3),
    "beit": _plain("beit_base_patch16_224"),
    "eva02": _plain("eva02_tiny_patch14_224", embed_dim=24),
    "relpos": _plain("vit_relpos_small_patch16_224", leading=0),
    # the second class attention reads a stream that has come to z by then: a block of its own
    "cait": _plain("cait_xxs24_224", mlps=4, heads=(3, 3, 3)),
    "xcit": Small(
        "xcit_nano_12_p16_224", (32, 32), (3, 3, 3), 4, (4, 4), convs=2, leading=1, kwargs=PLAIN
    ),
    "swin": _staged(
        "swin_tiny_patch4_window7_224", 64, (2, 2, 4, 4), 4, 16,
        img_size=64, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4),
    ),
    "swin v2": _staged(
        "swinv2_tiny_window8_256", 64, (2, 2, 4, 4), 4, 16,
        img_size=64, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4),
    ),
    "pvt": _staged(
        "pvt_v2_b0", 64, (1, 2, 4, 8), 4, 16, depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32),
        num_heads=(1, 2, 4, 8),
    ),
    # paths part at every norm over a whole image and meet again: read by a product per column
    "poolformer": _staged(
        "metaformer.MetaFormer", 64, (), 3, 16, convs=3, depths=(1, 1, 1), dims=(6, 10, 14),
        use_mlp_head=False,
    ),
    # class tokens at every scale; the attention of the last parallel block pools them
    "coat": _staged(
        "coat.CoaT", 64, (2,) * 7, 10, 16, convs=20, leading=1, img_size=64, patch_size=4,
        embed_dims=(8, 12, 12, 12), serial_depths=(1, 1, 1, 1), parallel_depth=2, num_heads=2,
        mlp_ratios=(2, 2, 2, 2), crpe_window={3: 1, 5: 1},
        idle=tuple(f"parallel_blocks.1.factoratt_crpe{scale}.crpe" for scale in (2, 3, 4)),
    ),
    "maxvit tf": _staged("maxvit_tiny_tf_224", 64, (2, 2, 4, 4), 4, 16, convs=2, **MAXVIT),
    "maxvit": _staged("maxvit_pico_rw_256", 64, (2, 2, 4, 4), 4, 16, convs=2, **MAXVIT),
    "coatnet": _staged(
        "coatnet_nano_rw_224", 32, (2,), 1, 8, convs=1,
        **{**MAXVIT, "img_size": 32, "block_type": ("C", "T"), "transformer_window_size": None},
    ),
    "volo": Small(
        "volo.VOLO", (64, 64), (3, 2, 2), 4, (8, 8), leading=1,
        kwargs={"img_size": 64, "embed_dims": (24, 32, 32, 32), "num_heads": (3, 2, 2, 2),
                "layers": (1, 1, 0, 0), "num_classes": 5},
    ),
    "hybrid": _plain("vit_tiny_r_s16_p8_224", img_size=256, size=(256, 256), grid=(8, 8)),
    "open_clip": Small(
        "open_clip", (32, 32), (2, 2), 2, (4, 4), leading=1,
        kwargs={"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16},
    ),
    "open_clip average": Small(
        "open_clip", (32, 32), (2, 2), 2, (4, 4), leading=1,
        kwargs={"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16,
                "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
    ),
}  # fmt: skip


def _open_clip(**vision: Any) -> nn.Module:
    from open_clip import CLIP

    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    return CLIP(embed_dim=20, vision_cfg=vision, text_cfg=text)


@cache
def small_model(name: str) -> nn.Module:
    """The small variant in float64, made once."""
    return SMALL[name].build().double()


def images_for(name: str, n: int = 3, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, *SMALL[name].size, generator=generator, dtype=torch.float64).to(dtype)
