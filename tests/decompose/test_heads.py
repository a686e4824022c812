"""Heads in unusual places: in a cascade, beside other channels, in windows, in no product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from frozen import FrozenModel, without
from small_models import SMALL, images_for, small_model
from test_edges import IMAGES, Attention, Mlp
from test_meaning import FAMILIES, pre_logits
from torch import Tensor, nn

from benchmarks.randomise import randomise
from pipeline_lib.decomposition import Decomposition, decompose, plan_for
from pipeline_lib.errors import DecompositionRefused


def attended(x: Tensor) -> Tensor:
    """Self-attention of `[n, t, e]` without weights."""
    return (x @ x.transpose(-1, -2)).softmax(-1) @ x


class Cascade(nn.Module):
    """Each head reads its own channels and what the head before it wrote (EfficientViT)."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.stem = heads, nn.Conv2d(3, width, 4, 4)
        self.qkv = nn.ModuleList(nn.Linear(width // heads, width // heads) for _ in range(heads))
        self.proj = nn.Sequential(nn.ReLU(), nn.Linear(width, width))

    def mixed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(images).flatten(2).transpose(1, 2)
        written: list[Tensor] = []
        for part, qkv in zip(x.chunk(self.heads, -1), self.qkv, strict=True):
            part = part + written[-1] if written else part
            written.append(attended(qkv(part)))
        return x, torch.cat(written, -1)

    def forward(self, images: Tensor) -> Tensor:
        x, mixed = self.mixed(images)
        return (x + self.proj(mixed)).mean(1)


class Beside(Cascade):
    """One head on some channels; the others pass the same activation without it (SHViT)."""

    def mixed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(images).flatten(2).transpose(1, 2)
        part, rest = x.split([4, 8], -1)
        return x, torch.cat([attended(self.qkv[0](part)), rest], -1)


def written(model: Cascade, part: slice) -> Tensor:
    """What some channels behind the activation write to `z`."""
    _, mixed = model.mixed(IMAGES)
    linear = model.proj[1]
    return F.relu(mixed)[..., part].mean(1) @ linear.weight[:, part].T  # type: ignore[operator,index]


def rows_of(parts: Decomposition, kind: str) -> list[int]:
    return list(parts.components.index[parts.components["kind"] == kind])


def sums_over_tokens(model: nn.Module, parts: Decomposition, images: Tensor = IMAGES) -> bool:
    tokens = decompose(model, images, per="token")
    return torch.allclose(tokens.values.sum(2), parts.values, rtol=0, atol=1e-12)


def test_heads_in_a_cascade_are_those_of_one_block() -> None:
    model = randomise(Cascade()).double()
    parts = decompose(model, IMAGES)
    rows = rows_of(parts, "head")
    assert list(parts.components["head"][rows]) == [0, 1, 2]
    assert parts.components["layer"][rows].nunique() == 1
    assert float(parts.error.max()) <= 1e-12 and parts.frozen.empty
    for row, head in zip(rows, range(3), strict=True):
        wanted = written(model, slice(4 * head, 4 * head + 4))
        assert torch.allclose(parts.values[:, row], wanted, rtol=0, atol=1e-13)
    assert sums_over_tokens(model, parts)


def test_a_head_is_told_from_the_channels_beside_it() -> None:
    model = randomise(Beside()).double()
    parts = decompose(model, IMAGES)
    (head,), (rest,) = rows_of(parts, "head"), rows_of(parts, "mlp")
    assert float(parts.error.max()) <= 1e-12 and parts.frozen.empty
    for row, part in ((head, slice(0, 4)), (rest, slice(4, 12))):
        assert torch.allclose(parts.values[:, row], written(model, part), rtol=0, atol=1e-13)
    assert sums_over_tokens(model, parts)


class AdditiveAttention(nn.Module):
    """One pooled query weighs every key elementwise: attention without a product (SwiftFormer)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key = F.normalize(self.query(x), dim=-1), F.normalize(self.key(x), dim=-1)
        weights = F.normalize(query.sum(-1, keepdim=True), dim=1)
        return self.proj((weights * query).sum(1, keepdim=True) * key)


class StateAttention(nn.Module):
    """Tokens are mixed into a few states and these back into tokens (EfficientViM)."""

    def __init__(self, width: int, states: int = 4) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(width, states), nn.Linear(width, states)
        self.gate = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        states = self.into(x).softmax(1).transpose(1, 2) @ x
        states = states * F.silu(self.gate(states)) + 0.5 * states
        return self.out(x) @ states


class Block(nn.Module):
    def __init__(self, attention: nn.Module, width: int = 6) -> None:
        super().__init__()
        self.stem, self.attention = nn.Conv2d(3, width, 4, 4), attention
        self.mlp = Mlp(width)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2)
        x = x + self.attention(x)
        return (x + self.mlp(x)).mean(1)


@pytest.mark.parametrize("attention", [AdditiveAttention(6), StateAttention(6)])
def test_attention_of_one_head_is_one_head(attention: nn.Module) -> None:
    model = randomise(Block(attention)).double()
    parts = decompose(model, IMAGES)
    (row,) = rows_of(parts, "head")
    assert parts.components["module"][row] == "attention"
    assert float(parts.error.max()) <= 1e-12
    x = model.stem(IMAGES).flatten(2).transpose(1, 2)
    bias = getattr(attention, "proj", None)
    wanted = model.attention(x).mean(1) - (bias.bias if bias is not None else 0)
    assert torch.allclose(parts.values[:, row], wanted, rtol=0, atol=1e-13)
    assert sums_over_tokens(model, parts)


# ------------------------------------------------------------------ overlapping windows

OUTLOOK = "volo"


def test_a_place_of_an_overlapping_window_contributes_where_it_lies_in_the_image() -> None:
    """VOLO: every window of 3×3 places is centred on every second token; the border is padding."""
    model, images = small_model(OUTLOOK), images_for(OUTLOOK, n=2)
    frozen = FrozenModel(model, pre_logits(model), images, FAMILIES[OUTLOOK].pattern)
    parts = decompose(model, images, per="token")
    (rows, columns), across = SMALL[OUTLOOK].grid, SMALL[OUTLOOK].grid[1] // 2
    places = parts.components
    for head, (i, j) in [(0, (0, 0)), (1, (3, 4)), (2, (rows - 1, columns - 2))]:
        (row,) = places.index[places["id"] == f"network.0.0.attn/head{head}"]

        def removed(weights: Tensor, head: int = head, i: int = i, j: int = j) -> Tensor:
            weights = weights.clone()
            for window in range(weights.shape[2]):
                u, v = i - (2 * (window // across) - 1), j - (2 * (window % across) - 1)
                if 0 <= u < 3 and 0 <= v < 3:
                    weights[:, head, window, :, 3 * u + v] = 0
            return weights

        lost = frozen.change(attention=0, weights=removed, live="network.0.0.attn.proj")
        found = parts.maps()[:, row, :, i, j]
        assert float(lost.abs().max()) > 1e-9
        assert float((found - lost).abs().max()) <= 1e-11 * float(parts.representation.abs().max())


def test_a_head_of_overlapping_windows_contributes_what_its_removal_takes_away() -> None:
    model, images = small_model(OUTLOOK), images_for(OUTLOOK)
    leaf = "network.0.0.attn.proj"
    frozen = FrozenModel(model, pre_logits(model), images, FAMILIES[OUTLOOK].pattern)
    parts = decompose(model, images)
    rows = parts.components.index[parts.components["module"] == "network.0.0.attn"]
    assert len(rows) == 3
    for head, row in enumerate(rows):
        lost = frozen.change(leaf, without(-1, slice(8 * head, 8 * head + 8)))
        assert float(lost.abs().max()) > 1e-6
        assert float((parts.values[:, row] - lost).abs().max()) <= 1e-11


def test_windows_are_cut_and_added_up_as_torch_does_it() -> None:
    class Folding(nn.Module):
        """Rectangular windows with padding and stride, weighed and added up again."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mlp = nn.Conv2d(3, 5, 1), Mlp(5)
            self.places = nn.Parameter(torch.zeros(1, 1, 6, 1))

        def forward(self, images: Tensor) -> Tensor:
            x = self.stem(images)
            x = x + self.mlp(x.movedim(1, -1)).movedim(-1, 1)
            window = {"kernel_size": (2, 3), "padding": (0, 1), "stride": (2, 1)}
            cut = F.unfold(x, **window).unflatten(1, (5, 6)) * self.places  # type: ignore[arg-type]
            return F.fold(cut.flatten(1, 2), (16, 16), **window).mean((2, 3))  # type: ignore[arg-type]

    model = randomise(Folding()).double()
    parts = decompose(model, IMAGES)
    assert torch.allclose(parts.representation, model(IMAGES), rtol=1e-12)
    assert float(parts.error.max()) <= 1e-12
    assert list(plan_for(model, IMAGES).components["kind"]) == ["stem", "mlp", "bias"]
    assert sums_over_tokens(model, parts)


def test_attention_in_front_of_its_branchs_mlp_is_refused_by_name() -> None:
    class Within(Block):
        """The attention writes to a stream of the branch, which its MLP reads (EdgeNeXt)."""

        def forward(self, images: Tensor) -> Tensor:
            x = self.stem(images).flatten(2).transpose(1, 2)
            return (x + self.mlp(x + self.attention(x))).mean(1)

    model = randomise(Within(Attention(6, 2))).double()
    with pytest.raises(DecompositionRefused, match=r"'mlp' cannot be split.*gelu in module 'mlp'"):
        decompose(model, IMAGES)


def test_padded_places_of_windows_belong_to_no_token() -> None:
    """Swin pads 8×8 tokens to windows of 5×5: what the padding's biases write is kept apart."""
    import timm

    settings = {
        "img_size": 32, "patch_size": 4, "window_size": 5, "embed_dim": 16, "depths": (2,),
        "num_heads": (2,), "num_classes": 0, "always_partition": True,
    }  # fmt: skip
    model = randomise(timm.models.SwinTransformer(**settings)).double()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4)).double()
    parts, tokens = decompose(model, images), decompose(model, images, per="token")
    assert tokens.grid == (8, 8) and tokens.values.shape[2] == 65
    assert torch.allclose(tokens.values.sum(2), parts.values, rtol=0, atol=1e-12)
    heads = rows_of(parts, "head")
    assert float(tokens.values[:, heads, -1].abs().max()) > 1e-6


def test_heads_that_share_their_values_keep_their_tokens_apart() -> None:
    class MultiQuery(nn.Module):
        """Three heads of queries read one set of keys and values (MobileNetV5)."""

        def __init__(self) -> None:
            super().__init__()
            self.q, self.kv, self.proj = nn.Linear(6, 12), nn.Linear(6, 8), nn.Linear(12, 6)

        def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
            q = self.q(x).unflatten(-1, (3, 4)).transpose(1, 2)
            k, v = self.kv(x).unsqueeze(1).chunk(2, -1)
            return (q @ k.transpose(-1, -2)).softmax(-1), v

        def forward(self, x: Tensor) -> Tensor:
            weights, v = self.parts(x)
            return self.proj((weights @ v).transpose(1, 2).flatten(2))

    model = randomise(Block(MultiQuery())).double()
    tokens = decompose(model, IMAGES, per="token")
    assert sums_over_tokens(model, decompose(model, IMAGES))
    weights, v = model.attention.parts(model.stem(IMAGES).flatten(2).transpose(1, 2))
    for head, row in enumerate(rows_of(tokens, "head")):
        part = model.attention.proj.weight[:, 4 * head : 4 * head + 4]
        wanted = (weights[:, head].mean(1)[..., None] * v[:, 0]) @ part.T
        found = tokens.values[:, row, : wanted.shape[1]]
        assert torch.allclose(found, wanted, rtol=0, atol=1e-13)
