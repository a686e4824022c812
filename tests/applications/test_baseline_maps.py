"""Baselines of segmentation on small models, against their own formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline_lib._torchvision import ensure_torchvision
from pipeline_lib.baseline_maps import (
    GradCam,
    attention_of,
    grid_of,
    patch_text,
    raw_attention,
    rollout,
)
from pipeline_lib.models import VisionModel, load_model

SIZE = (32, 48)


@pytest.fixture(scope="module")
def vit() -> VisionModel:
    torch.manual_seed(0)
    return load_model(
        "timm:vit_tiny_patch16_224", pretrained=False, img_size=SIZE, depth=2, embed_dim=48
    )


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def test_recorded_attention_is_a_distribution_and_leaves_the_model_as_it_was(
    vit: VisionModel, images: torch.Tensor
) -> None:
    before = vit.module(images)
    blocks = attention_of(vit.module, images)
    assert [tuple(one.shape) for one in blocks] == [(3, 7, 7)] * 2
    for one in blocks:
        np.testing.assert_allclose(one.sum(dim=2), 1.0, atol=1e-5)
    assert all(part.fused_attn for part in vit.module.modules() if hasattr(part, "fused_attn"))
    torch.testing.assert_close(vit.module(images), before)


def test_raw_attention_is_the_class_token_s_row(vit: VisionModel, images: torch.Tensor) -> None:
    module, kept = vit.module, {}
    block = module.blocks[-1].attn
    hook = block.register_forward_hook(lambda part, inputs, output: kept.update(x=inputs[0]))
    module.forward_features(images)
    hook.remove()
    queries, keys, _ = block.qkv(kept["x"]).reshape(3, 7, 3, block.num_heads, -1).unbind(2)
    scores = torch.einsum("nqhd,nthd->nhqt", queries, keys) * block.scale
    expected = scores.softmax(-1).mean(1)[:, 0, 1:].reshape(3, 2, 3)
    np.testing.assert_allclose(raw_attention(module, images), expected.detach(), atol=1e-5)


def test_rollout_is_the_product_of_half_attention_half_identity(
    vit: VisionModel, images: torch.Tensor
) -> None:
    first, second = attention_of(vit.module, images)
    eye = torch.eye(7)
    flow = ((second + eye) / 2) @ ((first + eye) / 2)
    found = rollout(vit.module, images)
    np.testing.assert_allclose(found, flow[:, 0, 1:].reshape(3, 2, 3), atol=1e-6)


def test_windows_have_no_rollout_and_raw_attention_only_where_one_covers_all() -> None:
    torch.manual_seed(0)
    swin = load_model(
        "timm:swin_tiny_patch4_window7_224", pretrained=False, img_size=64, patch_size=8,
        embed_dim=24, depths=(1, 1), num_heads=(2, 2), window_size=4,
    )  # fmt: skip
    pictures = torch.randn(2, 3, 64, 64)
    assert rollout(swin.module, pictures) is None
    found = raw_attention(swin.module, pictures)
    assert found is not None and found.shape == (2, 4, 4)  # the last stage is one window
    np.testing.assert_allclose(found.sum(axis=(1, 2)), 1.0, atol=1e-5)


def test_gradcam_by_its_formula(vit: VisionModel, images: torch.Tensor) -> None:
    camera = GradCam(vit, images)
    assert camera.fits
    direction = np.random.default_rng(0).normal(size=(3, 48)).astype(np.float32)
    found = camera(images, direction)
    assert found.shape == (3, *SIZE) and found.min() >= 0 and found.max() <= 1 + 1e-6
    kept: dict[str, torch.Tensor] = {}
    layer = vit.module.blocks[-1].norm1
    hook = layer.register_forward_hook(lambda part, inputs, output: kept.update(a=output))
    pixels = images.clone().requires_grad_(True)
    z = vit.module.forward_head(vit.module.forward_features(pixels), pre_logits=True)
    hook.remove()
    (slope,) = torch.autograd.grad((z * torch.from_numpy(direction)).sum(), kept["a"])
    weights = slope[:, 1:].mean(dim=1, keepdim=True)
    by_hand = (weights * kept["a"][:, 1:]).sum(-1).clamp(min=0).reshape(3, 2, 3)
    larger = nn.functional.interpolate(by_hand[:, None], SIZE, mode="bilinear")[:, 0]
    for one, other in zip(found, larger.detach().numpy(), strict=True):
        if other.max() > 0:
            assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99


def test_patch_text_is_the_cosine_of_projected_patches() -> None:
    ensure_torchvision()
    import open_clip

    torch.manual_seed(0)
    module = open_clip.CLIP(
        embed_dim=8,
        vision_cfg={"image_size": 32, "patch_size": 16, "layers": 1, "width": 64, "head_width": 32},
        text_cfg={"context_length": 4, "vocab_size": 9, "width": 32, "heads": 2, "layers": 1},
    ).eval()
    pictures = torch.randn(2, 3, 32, 32)
    texts = np.eye(8, dtype=np.float32)[:2]
    found = patch_text(module, pictures, texts)
    assert found is not None and found.shape == (2, 2, 2)
    assert np.abs(found).max() <= 1.0
    assert not module.visual.output_tokens
    kept: dict[str, torch.Tensor] = {}
    hook = module.visual.ln_post.register_forward_hook(
        lambda part, inputs, output: kept.update(x=output)
    )
    module.encode_image(pictures)
    hook.remove()
    tokens = kept["x"][:, 1:] @ module.visual.proj
    expected = nn.functional.normalize(tokens, dim=-1)[torch.arange(2), :, torch.arange(2)]
    np.testing.assert_allclose(found, expected.reshape(2, 2, 2).detach(), atol=1e-5)


def test_a_model_without_patches_has_no_such_maps(vit: VisionModel, images: torch.Tensor) -> None:
    assert patch_text(vit.module, images, np.zeros((3, 48), np.float32)) is None
    assert grid_of(6, SIZE) == (2, 3)
    assert grid_of(7, SIZE) is None
