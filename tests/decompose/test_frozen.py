"""Nonlinearities on the stream whose gate or choice is frozen, and activated heads, by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small_models import SMALL, images_for, small_model
from test_edges import IMAGES, Attention, Mlp
from torch import Tensor, fx, nn

from benchmarks.randomise import randomise
from pipeline_lib.decomposition import columns, decompose, plan_for, readout
from pipeline_lib.decomposition.frozen import GATES
from pipeline_lib.errors import DecompositionRefused

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "relu6": F.relu6, "leaky_relu": F.leaky_relu, "gelu": F.gelu, "silu": F.silu,
    "hardswish": F.hardswish, "mish": F.mish,
}  # fmt: skip


def test_every_gate_times_its_argument_is_the_activation() -> None:
    assert set(ACTIVATIONS) == set(GATES)
    x = torch.cat([torch.linspace(-9, 9, 181), torch.tensor([0.0, -0.0, 6.0, 1e-30])]).double()
    node = fx.Graph().placeholder("x")
    for name, activation in ACTIVATIONS.items():
        g = GATES[name](x, node)
        assert torch.isfinite(g).all(), name
        assert torch.allclose(x * g, activation(x), atol=1e-14), name
    node.kwargs = {"approximate": "tanh"}
    assert torch.allclose(x * GATES["gelu"](x, node), F.gelu(x, approximate="tanh"), atol=1e-14)


class Stream(nn.Module):
    """A stem, an MLP branch, something nonlinear on the stream, a linear layer, the mean."""

    def __init__(self, on_stream: nn.Module, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 2, 2)
        self.mlp, self.on_stream, self.last = Mlp(width), on_stream, nn.Linear(width, 5)

    def branches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(images).permute(0, 2, 3, 1)
        return x, self.mlp(x)

    def forward(self, images: Tensor) -> Tensor:
        x, branch = self.branches(images)
        x = self.on_stream((x + branch).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.last(x).mean((1, 2))


def _through_pool(pool: nn.MaxPool2d, whole: Tensor, part: Tensor) -> Tensor:
    _, chosen = F.max_pool2d(
        whole, pool.kernel_size, pool.stride, pool.padding, return_indices=True
    )
    return part.flatten(2).gather(2, chosen.flatten(2)).unflatten(2, chosen.shape[2:])


class PaddedMaxPool(nn.MaxPool2d):
    """Max pooling of 3×3 places by steps of two, padded on one side with what is never chosen."""

    def __init__(self) -> None:
        super().__init__(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1), value=-torch.inf))


ON_STREAM = (
    nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1),
    PaddedMaxPool(),
)  # fmt: skip


@pytest.mark.parametrize("layer", ON_STREAM)
def test_a_branch_contributes_through_a_frozen_gate_or_choice(layer: nn.Module) -> None:
    model = randomise(Stream(layer)).double()
    parts = decompose(model, IMAGES)
    assert float(parts.error.max()) <= 1e-12
    wanted_detail = "frozen selection" if isinstance(layer, nn.MaxPool2d) else "frozen gate"
    assert list(parts.frozen["detail"]) == [wanted_detail]
    assert list(parts.frozen["module"]) == ["on_stream"]
    x, branch = model.branches(IMAGES)
    branch = branch - model.mlp.down.bias  # a constant: it belongs to the bias component
    whole, part = x + model.mlp(x), branch
    whole, part = whole.permute(0, 3, 1, 2), part.permute(0, 3, 1, 2)
    if isinstance(layer, PaddedMaxPool):
        whole = F.pad(whole, (0, 1, 0, 1), value=-torch.inf)
        part = F.pad(part, (0, 1, 0, 1))
    if isinstance(layer, nn.MaxPool2d):
        through = _through_pool(layer, whole, part)
    else:
        through = part * layer(whole) / whole
    wanted = through.mean((2, 3)) @ model.last.weight.T
    row = list(parts.components["id"]).index("mlp")
    assert torch.allclose(parts.values[:, row], wanted, rtol=0, atol=1e-13)


def test_gates_that_may_not_be_frozen_are_refused_by_name() -> None:
    model = randomise(Twice()).double()
    with pytest.raises(DecompositionRefused, match=r"relu in module 'gate' .*residual stream"):
        decompose(model, IMAGES, freeze_gates=False)
    assert float(decompose(model, IMAGES).error.max()) <= 1e-12
    assert plan_for(model, IMAGES).frozen["operation"].tolist() == ["relu"]


class Twice(nn.Module):
    """Two branches with a gate on the stream between them."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem, self.gate = nn.Conv2d(3, width, 4, 4), nn.ReLU()
        self.attention, self.mlp = Attention(width, 2), Mlp(width)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2)
        x = self.gate(x + self.attention(x))
        return (x + self.mlp(x)).mean(1)


class Activated(nn.Module):
    """Attention whose product passes an activation before its projection, as in LeViT."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.num_heads, self.stem = heads, nn.Conv2d(3, width, 4, 4)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def mixed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(images).flatten(2).transpose(1, 2)
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        product = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return x, F.hardswish(product.transpose(1, 2).reshape(n, t, d))

    def forward(self, images: Tensor) -> Tensor:
        x, mixed = self.mixed(images)
        return (x + self.proj(mixed)).mean(1)


def test_activated_heads_contribute_their_activated_output() -> None:
    model = randomise(Activated()).double()
    parts = decompose(model, IMAGES)
    assert float(parts.error.max()) <= 1e-12 and parts.frozen.empty
    heads = parts.components[parts.components["kind"] == "head"]
    assert list(heads["head"]) == [0, 1, 2]
    _, mixed = model.mixed(IMAGES)
    for row, head in zip(heads.index, range(3), strict=True):
        part = slice(4 * head, 4 * head + 4)
        wanted = mixed[..., part].mean(1) @ model.proj.weight[:, part].T
        assert torch.allclose(parts.values[:, row], wanted, rtol=0, atol=1e-13)
    tokens = decompose(model, IMAGES, per="token")
    assert torch.allclose(tokens.values.sum(2), parts.values, atol=1e-13)


def test_writing_into_a_part_of_a_tensor_is_followed() -> None:
    class Writing(Twice):
        def forward(self, images: Tensor) -> Tensor:
            x = self.stem(images).flatten(2).transpose(1, 2)
            x = x + self.attention(x)
            y = 2 * x
            y[:, 3:7] = y[:, 3:7] + self.mlp(x)[:, 3:7]
            return y.mean(1)

    model = randomise(Writing()).double()
    parts = decompose(model, IMAGES)
    assert float(parts.error.max()) <= 1e-12
    assert torch.allclose(parts.representation, model(IMAGES))
    kinds = parts.components["kind"].value_counts()
    assert (kinds["head"], kinds["mlp"]) == (2, 1)


@pytest.mark.parametrize("name", ["pvt", "swin", "xcit", "siglip"])
def test_dense_readouts_read_the_same_as_factored_ones(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    factored = decompose(small_model(name), images_for(name))
    monkeypatch.setattr(readout, "MOST_ENTRIES", 64)
    model, images = SMALL[name].build().double(), images_for(name)
    dense = decompose(model, images)
    assert plan_for(model, images).dense and not plan_for(small_model(name), images).dense
    assert list(dense.components["id"]) == list(factored.components["id"])
    assert torch.allclose(dense.values, factored.values, rtol=0, atol=1e-11)
    directions = factored.values[0, :3]
    tokens = decompose(model, images, per="token", directions=directions)
    wanted = factored.values @ directions.T
    assert float((tokens.values.sum(2) - wanted).abs().max() / wanted.abs().max()) <= 1e-11


def test_columns_may_be_evaluated_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomise(Stream(nn.GELU())).double()
    together = decompose(model, IMAGES).values
    assert plan_for(model, IMAGES).column_bytes.at_once(3) > 1
    monkeypatch.setattr(columns, "COLUMN_BYTES", 1)
    assert plan_for(model, IMAGES).column_bytes.at_once(3) == 1
    assert torch.allclose(decompose(model, IMAGES).values, together, atol=1e-14)
    tokens = decompose(model, IMAGES, per="token").values
    assert torch.allclose(tokens.sum(2), together, atol=1e-13)
