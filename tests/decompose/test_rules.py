"""Rules of linear operations, on random chains of them, against an eager frozen copy."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from frozen import FrozenModel, nothing
from torch import Tensor, nn

from benchmarks.randomise import randomise
from pipeline_lib.decomposition import decompose

Step = Callable[[Tensor], Tensor]


class Chain(nn.Module):
    """A stem, a nonlinear residual branch, a random chain of linear operations, pooling.

    The branch's last linear layer is `down`; a second branch stands somewhere in the chain where
    the stream has channels last.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        self.width, self.side = 6, 8
        self.stem = nn.Conv2d(3, 6, 2, 2)
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)
        self.layers = nn.ModuleList()
        self.steps: list[Step] = []
        self.names: list[str] = []
        self.shape = (self.side, self.side, self.width)  # rows, columns, channels
        for _ in range(self.rng.randint(2, 5)):
            name = self.rng.choice([n for n in STEPS if self._fits(n)])
            self.names.append(name)
            self.steps.append(STEPS[name](self))

    def _fits(self, name: str) -> bool:
        rows, columns, channels = self.shape
        if name in ("merge", "windows", "strided", "pool", "shuffle", "interpolate", "unfold"):
            return rows % 2 == 0 and columns % 2 == 0 and rows >= 4 and columns >= 4
        return channels % 2 == 0 or name != "chunk"

    def add(self, module: nn.Module) -> nn.Module:
        self.layers.append(module)
        return module

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).permute(0, 2, 3, 1)
        x = x + self.down(torch.tanh(self.up(x)))
        for step in self.steps:
            x = step(x)
        return x.flatten(1, 2).mean(1)


def _linear(chain: Chain) -> Step:
    layer = chain.add(nn.Linear(chain.shape[2], 5))
    chain.shape = (*chain.shape[:2], 5)
    return lambda x: layer(x)


def _norm(chain: Chain) -> Step:
    return chain.add(nn.LayerNorm(chain.shape[2]))


def _rms_norm(chain: Chain) -> Step:
    return chain.add(nn.RMSNorm(chain.shape[2], eps=1e-6))


def _group_norm(chain: Chain) -> Step:
    layer = chain.add(nn.GroupNorm(1, chain.shape[2]))
    return lambda x: layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _batch_norm(chain: Chain) -> Step:
    layer = chain.add(nn.BatchNorm2d(chain.shape[2]))
    return lambda x: layer(x.permute(0, 3, 1, 2)).movedim(1, -1)


def _conv(chain: Chain) -> Step:
    rng, channels = chain.rng, chain.shape[2]
    groups = rng.choice([1, channels])
    layer = chain.add(
        nn.Conv2d(channels, channels, 3, 1, 1, groups=groups, bias=rng.random() < 0.5)
    )
    return lambda x: layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()


def _strided(chain: Chain) -> Step:
    kernel, pad = chain.rng.choice([(2, 0), (3, 1)])
    layer = chain.add(nn.Conv2d(chain.shape[2], 6, kernel, 2, pad))
    chain.shape = (chain.shape[0] // 2, chain.shape[1] // 2, 6)
    return lambda x: layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _transposed(chain: Chain) -> Step:
    """Up to twice the size, in windows that overlap, or that do not."""
    kernel, pad = chain.rng.choice([(2, 0), (4, 1)])
    channels = chain.shape[2]
    groups = chain.rng.choice([1, channels])
    layer = chain.add(nn.ConvTranspose2d(channels, channels, kernel, 2, pad, groups=groups))
    chain.shape = (2 * chain.shape[0], 2 * chain.shape[1], channels)
    return lambda x: layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()


def _merge(chain: Chain) -> Step:
    rows, columns, channels = chain.shape
    layer = chain.add(nn.Linear(4 * channels, 6, bias=False))
    chain.shape = (rows // 2, columns // 2, 6)
    return lambda x: layer(
        x.reshape(-1, rows // 2, 2, columns // 2, 2, channels).permute(0, 1, 3, 4, 2, 5).flatten(3)
    )


def _windows(chain: Chain) -> Step:
    """Windows folded into the batch, a linear layer in them, unfolded, shifted back."""
    rows, columns, channels = chain.shape
    layer = chain.add(nn.Linear(channels, channels))
    shift = chain.rng.choice([0, 1])

    def step(x: Tensor) -> Tensor:
        x = torch.roll(x, (-shift, -shift), (1, 2))
        x = x.view(-1, rows // 2, 2, columns // 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
        x = layer(x.reshape(-1, 4, channels))
        x = x.view(-1, rows // 2, columns // 2, 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
        return torch.roll(x.reshape(-1, rows, columns, channels), (shift, shift), (1, 2))

    return step


def _roll(chain: Chain) -> Step:
    return lambda x: torch.roll(x, 3, 1)


def _flip(chain: Chain) -> Step:
    return lambda x: x.flip(2)


def _slice(chain: Chain) -> Step:
    rows, columns, channels = chain.shape
    chain.shape = (rows - 1, columns, channels)
    return lambda x: x[:, 1:] if rows > 2 else x[:, :1]


def _pad(chain: Chain) -> Step:
    rows, columns, channels = chain.shape
    chain.shape = (rows + 1, columns + 2, channels)
    return lambda x: nn.functional.pad(x, (0, 0, 1, 1, 0, 1))


def _constant(chain: Chain) -> Step:
    """Constant rows concatenated, as class tokens are."""
    rows, columns, channels = chain.shape
    chain.extra = nn.Parameter(torch.zeros(1, 1, columns, channels))
    name = f"extra{len(chain.names)}"
    chain.register_parameter(name, nn.Parameter(torch.zeros(1, 1, columns, channels)))
    chain.shape = (rows + 1, columns, channels)
    return lambda x: torch.cat([getattr(chain, name).expand(x.shape[0], -1, -1, -1), x], 1)


def _chunk(chain: Chain) -> Step:
    rows, columns, channels = chain.shape
    chain.shape = (rows, columns, channels // 2)

    def step(x: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        return left - 2 * right

    return step


def _scale(chain: Chain) -> Step:
    name = f"gamma{len(chain.names)}"
    chain.register_parameter(name, nn.Parameter(torch.ones(chain.shape[2])))
    return lambda x: x * getattr(chain, name) / 3


def _offset(chain: Chain) -> Step:
    name = f"position{len(chain.names)}"
    chain.register_parameter(name, nn.Parameter(torch.zeros(1, *chain.shape)))
    return lambda x: x + getattr(chain, name)


def _pool(chain: Chain) -> Step:
    rows, columns, channels = chain.shape
    chain.shape = (rows // 2, columns // 2, channels)
    layer = chain.add(nn.AvgPool2d(2))
    return lambda x: layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _interpolate(chain: Chain) -> Step:
    rows, columns, channels = chain.shape
    chain.shape = (rows // 2, columns // 2, channels)
    return lambda x: nn.functional.interpolate(
        x.permute(0, 3, 1, 2), scale_factor=0.5, mode="bilinear", align_corners=False
    ).permute(0, 2, 3, 1)


def _branch(chain: Chain) -> Step:
    layers = [chain.add(nn.Linear(chain.shape[2], 7)), chain.add(nn.Linear(7, chain.shape[2]))]
    return lambda x: x + layers[1](torch.relu(layers[0](x)))


STEPS: dict[str, Callable[[Chain], Step]] = {
    "linear": _linear, "norm": _norm, "rms_norm": _rms_norm, "group_norm": _group_norm,
    "batch_norm": _batch_norm, "conv": _conv, "strided": _strided, "merge": _merge,
    "windows": _windows, "roll": _roll, "flip": _flip, "slice": _slice, "pad": _pad,
    "constant": _constant, "chunk": _chunk, "scale": _scale, "offset": _offset, "pool": _pool,
    "interpolate": _interpolate, "branch": _branch, "transposed": _transposed,
}  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_a_branch_contributes_through_a_random_chain_what_autograd_says(seed: int) -> None:
    chain = randomise(Chain(seed), seed).double()
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(seed)).double()
    parts = decompose(chain, images)
    assert float(parts.error.max()) <= 1e-10, chain.names
    second = [f"layers.{i}" for i, m in enumerate(chain.layers) if _reads_relu(chain, i)]
    leaves = ["down", *second]
    frozen = FrozenModel(chain, chain, images, "|".join(f"^{leaf}" for leaf in leaves))
    branches = list(parts.components.index[parts.components["kind"].isin(["mlp", "conv"])])
    assert len(branches) == len(leaves), (chain.names, list(parts.components["id"]))
    for row, leaf in zip(branches, frozen.inputs, strict=True):
        lost = frozen.change(leaf, nothing)
        scale = parts.values.abs().max()
        assert float((parts.values[:, row] - lost).abs().max()) <= 1e-11 * float(scale), chain.names


def _reads_relu(chain: Chain, number: int) -> bool:
    layer = chain.layers[number]
    return isinstance(layer, nn.Linear) and layer.in_features == 7


def test_every_kind_of_step_is_drawn() -> None:
    drawn = {name for seed in range(40) for name in Chain(seed).names}
    assert drawn == set(STEPS)
