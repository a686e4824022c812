"""Token maps: laid out as the image, with windows and shifts undone."""

from __future__ import annotations

import pytest
import torch
from small_models import SMALL, images_for, small_model
from torch import Tensor, nn

from benchmarks.randomise import randomise
from pipeline_lib.decomposition import Decomposition, decompose
from pipeline_lib.errors import ModelError


@pytest.mark.parametrize("name", list(SMALL))
def test_the_grid_and_the_leading_tokens_are_those_of_the_model(name: str) -> None:
    small, model = SMALL[name], small_model(name)
    directions = torch.eye(decompose(model, images_for(name, n=1)).values.shape[2])[:2].double()
    parts = decompose(model, images_for(name, n=2), per="token", directions=directions)
    rows, columns = small.grid
    assert parts.grid == small.grid
    assert parts.token_index == slice(small.leading, small.leading + rows * columns)
    assert parts.values.shape[2] == small.leading + rows * columns + 1
    maps = parts.maps()
    assert maps.shape == (2, len(parts.components), 2, rows, columns)
    token = small.leading + (rows - 1) * columns + 1
    assert torch.equal(maps[:, :, :, rows - 1, 1], parts.values[:, :, token])


def test_maps_need_tokens() -> None:
    parts = decompose(small_model("vit"), images_for("vit"))
    with pytest.raises(ModelError, match='per="token"'):
        parts.maps()


class Uniform(nn.Module):
    """Windowed attention with uniform weights: nothing but a token's own value changes with it.

    Without norms, and with attention that does not look, a changed patch must change every map at
    its own place and nowhere else: in the stem, in a plain, a shifted and a strided window.
    """

    def __init__(self, grid: int = 8, window: int = 4, width: int = 6) -> None:
        super().__init__()
        self.grid, self.window = grid, window
        self.embed = nn.Conv2d(3, width, 2, 2)
        self.values = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.proj = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.up, self.down = nn.Linear(width, 9), nn.Linear(9, width)

    def attend(self, x: Tensor, number: int) -> Tensor:
        n, t, d = x.shape
        values = self.values[number](x).view(n, t, 2, d // 2).transpose(1, 2)
        scores = 0 * values @ values.transpose(-1, -2)
        mixed = scores.softmax(-1) @ values
        return self.proj[number](mixed.transpose(1, 2).reshape(n, t, d))

    def blocked(self, x: Tensor, number: int) -> Tensor:
        g, w, d = self.grid, self.window, x.shape[-1]
        x = x.view(-1, g // w, w, g // w, w, d).permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, d)
        x = self.attend(x, number).view(-1, g // w, g // w, w, w, d)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, g, g, d)

    def strided(self, x: Tensor, number: int) -> Tensor:
        g, w, d = self.grid, self.window, x.shape[-1]
        x = x.view(-1, w, g // w, w, g // w, d).permute(0, 2, 4, 1, 3, 5).reshape(-1, w * w, d)
        x = self.attend(x, number).view(-1, g // w, g // w, w, w, d)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, g, g, d)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).permute(0, 2, 3, 1)
        x = x + self.blocked(x, 0)
        half = self.window // 2
        shifted = torch.roll(x, (-half, -half), (1, 2))
        x = x + torch.roll(self.blocked(shifted, 1), (half, half), (1, 2))
        x = x + self.strided(x, 2)
        x = x + self.down(torch.tanh(self.up(x)))
        return x.mean((1, 2))


def change_at(
    model: nn.Module, size: tuple[int, int], patch: int, cell: tuple[int, int], strength: float
) -> tuple[Tensor, Decomposition]:
    """Size of every map's change, `[c, rows, columns]`, when one patch of the input changes."""
    generator = torch.Generator().manual_seed(11)
    images = torch.randn(1, 3, *size, generator=generator, dtype=torch.float64)
    other = images.clone()
    area = [slice(patch * place, patch * (place + 1)) for place in cell]
    noise = torch.randn(3, patch, patch, generator=generator, dtype=torch.float64)
    other[:, :, area[0], area[1]] += strength * noise
    parts = decompose(model, images, per="token")
    changed = decompose(model, other, per="token").maps() - parts.maps()
    return changed[0].norm(dim=1), parts


@pytest.mark.parametrize("cell", [(0, 0), (3, 4), (7, 7), (1, 6)])
def test_a_changed_patch_changes_the_maps_there_and_nowhere_else(cell: tuple[int, int]) -> None:
    model = randomise(Uniform()).double()
    # what later blocks read changes with earlier ones: let these write nothing
    with torch.no_grad():
        for proj in model.proj:
            proj.weight.mul_(1e-7)
    change, parts = change_at(model, (16, 16), 2, cell, 3.0)
    assert parts.grid == (8, 8)
    kinds = parts.components["kind"]
    assert kinds.value_counts().to_dict() == {"head": 6, "stem": 1, "mlp": 1, "bias": 1}
    for row, kind in enumerate(kinds):
        there = float(change[row][cell])
        elsewhere = change[row].clone()
        elsewhere[cell] = 0
        if kind == "bias":
            assert there == 0
        else:
            assert there > 0 and float(elsewhere.max()) <= 1e-5 * there, parts.components["id"][row]


def made_local(name: str) -> nn.Module:
    """A real model whose tokens hardly mix: uniform attention, branches that write little."""
    model = SMALL[name].build().double()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith(("attn.qkv.weight", "attn.qkv.bias")):
                parameter[: 2 * parameter.shape[0] // 3] = 0
            elif path.endswith(("attn.proj.weight", "mlp.fc2.weight")):
                parameter.mul_(1e-6)
    return model


@pytest.mark.parametrize(("name", "patch"), [("vit average pooled", 8), ("swin", 4)])
def test_a_changed_patch_shows_at_its_place_in_every_block(name: str, patch: int) -> None:
    model, columns = made_local(name), SMALL[name].grid[1]
    for cell in [(0, columns - 1), (columns // 2, 1)]:
        change, parts = change_at(model, SMALL[name].size, patch, cell, 4.0)
        for row, component in parts.components.iterrows():
            if component["kind"] in ("stem", "head", "mlp"):
                step = 2 if name == "swin" and component["stage"] > 0 else 1
                place = divmod(int(change[row].argmax()), columns)
                found, wanted = [(a // step, b // step) for a, b in (place, cell)]
                assert found == wanted, component["id"]
