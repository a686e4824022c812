"""What a contribution means, held against frozen copies of eager models that know no engine."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from frozen import FrozenModel, nothing, without
from small_models import images_for, small_model
from torch import Tensor, nn

from pipeline_lib.decomposition import Decomposition, decompose


def pre_logits(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: model.forward_head(model.forward_features(x), pre_logits=True)


def pooled_stream(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: model.forward_features(x).mean((2, 3))


def image_embedding(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: model.visual(x)


@dataclass(frozen=True)
class Leaves:
    """Where the components of a family stand: written from the library's sources by hand.

    `heads`, `mlps` and `convs` are patterns of modules; channel axes are those of their inputs.
    """

    heads: str = r"blocks\.\d+\.attn\.proj"
    mlps: str = r"blocks\.\d+\.mlp\.fc2"
    convs: str | None = None
    represent: Callable[[nn.Module], Callable[[Tensor], Tensor]] = pre_logits

    @property
    def pattern(self) -> str:
        return "|".join(f"(?:{p})" for p in (self.heads, self.mlps, self.convs) if p)


FAMILIES: dict[str, Leaves] = {
    "vit": Leaves(),
    "vit average pooled": Leaves(),
    "vit q/k norm": Leaves(),
    "vit post-norm": Leaves(),
    "vit parallel pairs": Leaves(
        r"blocks\.\d+\.attns\.\d\.attn\.proj", r"blocks\.\d+\.ffns\.\d\.mlp\.fc2"
    ),
    "deit distilled": Leaves(),
    "deit3": Leaves(),
    "dinov2 registers": Leaves(),
    "siglip": Leaves(mlps=r"blocks\.\d+\.mlp\.fc2|attn_pool\.mlp\.fc2"),
    "beit": Leaves(),
    "eva02": Leaves(),
    "relpos": Leaves(),
    "cait": Leaves(
        r"^blocks\.\d+\.attn\.proj|blocks_token_only\.1\.attn\.proj",
        r"blocks\.\d+\.mlp\.fc2|blocks_token_only\.\d+\.mlp\.fc2",
    ),
    "swin": Leaves(),
    "swin v2": Leaves(),
    "pvt": Leaves(),
    "maxvit tf": Leaves(
        r"attn_\w+\.attn\.proj", r"attn_\w+\.mlp\.fc2", r"conv\.conv3_1x1", pooled_stream
    ),
    "maxvit": Leaves(r"attn_\w+\.attn\.proj", r"attn_\w+\.mlp\.fc2", r"conv\.conv3_1x1"),
    "coatnet": Leaves(r"blocks\.\d+\.attn\.proj", r"mlp\.fc2", r"blocks\.\d+\.conv3_1x1"),
    "volo": Leaves(r"network\.\d\.\d\.attn\.proj|post_network\.1\.attn\.proj", r"mlp\.fc2"),
    "hybrid": Leaves(),
    "open_clip": Leaves(heads=r"(?!)", mlps=r"mlp\.c_proj", represent=image_embedding),
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def pair(request: pytest.FixtureRequest) -> tuple[str, Leaves, FrozenModel, Decomposition]:
    name = request.param
    leaves, model, images = FAMILIES[name], small_model(name), images_for(name)
    frozen = FrozenModel(model, leaves.represent(model), images, leaves.pattern)
    return name, leaves, frozen, decompose(model, images)


def rows_at(parts: Decomposition, leaf: str, kinds: tuple[str, ...]) -> list[int]:
    """Rows of the components whose module is the nearest to a leaf's."""
    table = parts.components[parts.components["kind"].isin(kinds)]
    shared = [shared_names(path, leaf) for path in table["module"]]
    return [row for row, length in zip(table.index, shared) if length == max(shared)]


def shared_names(path: str, other: str) -> int:
    pairs = zip(path.split("."), other.split("."))
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def matches(pattern: str, leaf: str) -> bool:
    return re.search(rf"(?:{pattern})$", leaf) is not None


def close(found: Tensor, wanted: Tensor, scale: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 1e-11 * scale.abs().max())


def test_the_frozen_copy_is_the_model(pair: tuple) -> None:
    _, _, frozen, parts = pair
    assert close(frozen.representation, parts.representation, parts.representation)
    assert close(frozen.change(), torch.zeros_like(frozen.representation), frozen.representation)


def test_a_head_contributes_what_its_removal_takes_away(pair: tuple) -> None:
    name, leaves, frozen, parts = pair
    found = [leaf for leaf in frozen.inputs if matches(leaves.heads, leaf)]
    assert found or name == "open_clip"
    seen: list[int] = []
    for leaf in found:
        rows = rows_at(parts, leaf, ("head",))
        value = frozen.inputs[leaf]
        axis = 1 if isinstance(frozen.model.get_submodule(leaf), nn.Conv2d) else value.dim() - 1
        width = value.shape[axis] // len(rows)
        for head, row in enumerate(rows):
            lost = frozen.change(leaf, without(axis, slice(head * width, (head + 1) * width)))
            assert float(lost.abs().max()) > 1e-6
            assert close(parts.values[:, row], lost, parts.representation), (leaf, head)
        seen += rows
    heads = parts.components.index[parts.components["kind"] == "head"]
    assert name == "open_clip" or sorted(seen) == list(heads)


def test_other_branches_contribute_what_their_removal_takes_away(pair: tuple) -> None:
    _, leaves, frozen, parts = pair
    pattern = leaves.mlps if leaves.convs is None else f"{leaves.mlps}|{leaves.convs}"
    seen: list[int] = []
    for leaf in frozen.inputs:
        if matches(pattern, leaf):
            rows = rows_at(parts, leaf, ("mlp", "conv"))
            assert len(rows) == 1, (leaf, rows)
            lost = frozen.change(leaf, nothing)
            assert float(lost.abs().max()) > 1e-6
            assert close(parts.values[:, rows[0]], lost, parts.representation), leaf
            seen += rows
    others = parts.components.index[parts.components["kind"].isin(["mlp", "conv"])]
    assert sorted(seen) == list(others)


def test_heads_of_torch_attention_contribute_what_their_removal_takes_away() -> None:
    model, images = small_model("open_clip"), images_for("open_clip")
    frozen = FrozenModel(model, image_embedding(model), images, FAMILIES["open_clip"].mlps)
    parts = decompose(model, images)
    heads = parts.components[parts.components["kind"] == "head"]
    assert len(frozen.attention) == 2
    for row, (block, head) in zip(heads.index, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
        lost = frozen.change(attention=block, weights=without(1, head))
        assert float(lost.abs().max()) > 1e-6
        assert close(parts.values[:, row], lost, parts.representation)


# ------------------------------------------------------------------ source tokens


@dataclass(frozen=True)
class Windows:
    """Window partition of a grid after a cyclic shift, as Swin and MaxViT define it."""

    grid: int
    window: int
    shift: int = 0
    strided: bool = False

    def cell(self, window: int, token: int) -> tuple[int, int]:
        """Row and column of the grid of one token of one window, before the shift."""
        across = self.grid // self.window
        (i, j), (u, v) = divmod(window, across), divmod(token, self.window)
        if self.strided:
            return u * across + i, v * across + j
        row, column = i * self.window + u, j * self.window + v
        return (row + self.shift) % self.grid, (column + self.shift) % self.grid


#: Blocks of small windowed models whose weights are [n * windows, heads, q, t], by attention
#: product in the order in which these run.
WINDOWED: dict[str, dict[int, tuple[str, Windows]]] = {
    "swin": {
        0: ("layers.0.blocks.0.attn", Windows(16, 4)),
        1: ("layers.0.blocks.1.attn", Windows(16, 4, shift=2)),
        3: ("layers.1.blocks.1.attn", Windows(8, 4, shift=2)),
    },
    "swin v2": {
        0: ("layers.0.blocks.0.attn", Windows(16, 4)),
        1: ("layers.0.blocks.1.attn", Windows(16, 4, shift=2)),
    },
    "maxvit tf": {
        0: ("stages.0.blocks.0.attn_block.attn", Windows(16, 4)),
        1: ("stages.0.blocks.0.attn_grid.attn", Windows(16, 4, strided=True)),
        3: ("stages.1.blocks.0.attn_grid.attn", Windows(8, 4, strided=True)),
    },
}


@pytest.mark.parametrize("name", list(WINDOWED))
def test_a_token_of_a_window_contributes_at_its_place_in_the_image(name: str) -> None:
    leaves, model, images = FAMILIES[name], small_model(name), images_for(name, n=2)
    frozen = FrozenModel(model, leaves.represent(model), images, leaves.pattern)
    parts = decompose(model, images, per="token")
    fine = parts.grid[0]
    for product, (path, windows) in WINDOWED[name].items():
        rows = rows_at(parts, f"{path}.proj", ("head",))
        count = (windows.grid // windows.window) ** 2
        maps = parts.maps()
        for window, token, head in [(0, 0, 0), (1, 3, 1), (count - 1, 9, 1), (2, 14, 0)]:
            lost = frozen.change(
                attention=product, live=f"{path}.proj",
                weights=lambda a, w=window, t=token, h=head, c=count: _without_token(a, w, t, h, c),
            )  # fmt: skip
            row, column = windows.cell(window, token)
            step = fine // windows.grid
            area = maps[:, rows[head], :, row * step : (row + 1) * step]
            found = area[..., column * step : (column + 1) * step].sum((-1, -2))
            assert float(lost.abs().max()) > 1e-9
            assert close(found, lost, parts.representation), (path, window, token, head)


def _without_token(weights: Tensor, window: int, token: int, head: int, count: int) -> Tensor:
    weights = weights.clone().unflatten(0, (-1, count))
    weights[:, window, head, :, token] = 0
    return weights.flatten(0, 1)


#: Models of one grid, and the leaf that reads each attention product.
GLOBAL = (
    "vit",
    "vit average pooled",
    "deit distilled",
    "dinov2 registers",
    "beit",
    "eva02",
    "relpos",
)


@pytest.mark.parametrize("name", [*GLOBAL, "open_clip"])
def test_a_source_token_contributes_what_its_removal_takes_away(name: str) -> None:
    leaves, model, images = FAMILIES[name], small_model(name), images_for(name, n=2)
    frozen = FrozenModel(model, leaves.represent(model), images, leaves.pattern)
    directions = torch.eye(frozen.representation.shape[1], dtype=torch.float64)
    parts = decompose(model, images, per="token", directions=directions)
    heads = [leaf for leaf in frozen.inputs if matches(leaves.heads, leaf)] or ["", ""]
    resblocks = ["visual.transformer.resblocks.0.attn", "visual.transformer.resblocks.1.attn"]
    for product, leaf in enumerate(heads):
        rows = rows_at(parts, leaf or resblocks[product], ("head",))
        for head, token in [(0, 0), (1, 1), (1, frozen.attention[product].shape[-1] - 1)]:
            lost = frozen.change(
                attention=product, live=leaf,
                weights=lambda a, h=head, t=token: without(-1, t)(a) * _only(a, h)
                + a * (1 - _only(a, h)),
            )  # fmt: skip
            assert close(parts.values[:, rows[head], token], lost, parts.representation)


def _only(weights: Tensor, head: int) -> Tensor:
    return torch.eye(weights.shape[1], dtype=weights.dtype)[head].view(1, -1, 1, 1)


@pytest.mark.parametrize("name", ["vit average pooled", "dinov2 registers", "siglip", "swin"])
def test_an_mlp_contributes_at_the_token_where_it_stands(name: str) -> None:
    leaves, model, images = FAMILIES[name], small_model(name), images_for(name, n=2)
    frozen = FrozenModel(model, leaves.represent(model), images, leaves.pattern)
    parts = decompose(model, images, per="token")
    leaf = next(leaf for leaf in frozen.inputs if matches(leaves.mlps, leaf))
    (row,) = rows_at(parts, leaf, ("mlp",))
    value = frozen.inputs[leaf]
    count = value[0, ..., 0].numel()
    leading = parts.values.shape[2] - 1 - parts.grid[0] * parts.grid[1]
    offset = 0 if count > parts.grid[0] * parts.grid[1] else leading
    for token in (0, count // 2, count - 1):
        lost = frozen.change(leaf, lambda v, t=token: _without_position(v, t))
        assert close(parts.values[:, row, token + offset], lost, parts.representation)


def _without_position(value: Tensor, position: int) -> Tensor:
    flat = value.flatten(1, -2).clone()
    flat[:, position] = 0
    return flat.view_as(value)
