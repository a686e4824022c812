"""What is refused, and in which words; what must work although it is unusual."""

from __future__ import annotations

import pytest
import torch
from small_models import SMALL, images_for, small_model
from torch import Tensor, nn

from benchmarks.randomise import randomise
from pipeline_lib.decomposition import decompose, plan_for
from pipeline_lib.errors import DecompositionRefused, ModelError


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.nn.functional.gelu(self.up(x)))


class Attention(nn.Module):
    """Self-attention written out, with a choice of how scores become weights."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / 3).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, t, d))


class Own(nn.Module):
    """A user's own transformer: class token, two blocks, a representation as output."""

    def __init__(self, last: nn.Module | None = None, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.attention = nn.ModuleList(Attention(width, 3) for _ in range(2))
        self.feed = nn.ModuleList(Mlp(width) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.last = last or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        for i in range(2):
            x = x + self.attention[i](self.norms[2 * i](x))
            x = x + self.feed[i](self.norms[2 * i + 1](x))
        return self.last(self.norms[4](x)[:, 0])


def own(last: nn.Module | None = None) -> nn.Module:
    return randomise(Own(last)).double()


IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(5)).double()


def test_a_users_own_module_is_decomposed() -> None:
    model = own()
    parts = decompose(model, IMAGES)
    assert float(parts.error.max()) <= 1e-12
    assert torch.allclose(parts.representation, model(IMAGES))
    assert parts.readout == "output of the module"
    kinds = parts.components["kind"].value_counts()
    assert (kinds["head"], kinds["mlp"], kinds["stem"], kinds["bias"]) == (6, 2, 1, 1)
    assert {"attention.0", "attention.1", "feed.0", "feed.1"} <= set(parts.components["module"])


def test_a_linear_head_is_part_of_the_path() -> None:
    parts = decompose(own(nn.Linear(12, 5)), IMAGES)
    assert parts.values.shape[-1] == 5 and float(parts.error.max()) <= 1e-12


def test_an_encoder_without_a_head_is_read_at_what_it_returns() -> None:
    class Encoder(Own):
        def forward_features(self, images: Tensor) -> Tensor:
            return self.embed(images)

        def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
            raise NotImplementedError("an encoder does not classify")

    model = randomise(Encoder()).double()
    parts = decompose(model, IMAGES)
    assert parts.readout == "output of the module" and float(parts.error.max()) <= 1e-12
    assert torch.allclose(parts.representation, model(IMAGES))


def test_train_mode_is_refused() -> None:
    model = own().train()
    with pytest.raises(ModelError, match=r"train mode.*eval\(\)"):
        decompose(model, IMAGES)
    model.eval()
    model.feed[0].train()
    assert float(decompose(model, IMAGES).error.max()) <= 1e-12


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    model = own()
    with torch.no_grad():
        model.feed[1].down.weight[2, 3] = value
    with pytest.raises(ModelError, match=r"feed\.1\.down\.weight.*not finite"):
        decompose(model, IMAGES)


def test_weights_that_break_after_the_plan_was_made_are_refused() -> None:
    model = own()
    decompose(model, IMAGES)
    with torch.no_grad():
        model.norms[4].weight[0] = float("nan")
    with pytest.raises(ModelError, match=r"norms\.4\.weight"):
        decompose(model, IMAGES)


def test_unknown_components_are_refused_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"feeed\.1.*did you mean.*feed\.1"):
        decompose(own(), IMAGES, components=["feeed.1"])
    with pytest.raises(ModelError, match=r"component 99 of 10; valid: 0 to 9"):
        decompose(own(), IMAGES, components=[99])


@pytest.mark.parametrize("shape", [(4, 11), (12,), (1, 1, 12)])
def test_directions_of_another_width_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"directions must have the shape \[k, 12\]"):
        decompose(own(), IMAGES, directions=torch.zeros(shape))


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ModelError, match="per='heads'.*did you mean.*head"):
        decompose(own(), IMAGES, per="heads")
    with pytest.raises(ModelError, match="bias='seperate'.*separate"):
        decompose(own(), IMAGES, bias="seperate")
    with pytest.raises(ModelError, match="not dict"):
        decompose({}, IMAGES)


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.zeros(3, 16, 16)]
)
def test_images_of_a_wrong_kind_are_refused(images: Tensor) -> None:
    with pytest.raises(ModelError, match=r"images must be floating-point \[n, 3, h, w\]"):
        decompose(own(), images)


def test_a_representation_of_a_wrong_shape_is_refused() -> None:
    class Stream(Own):
        def forward(self, images: Tensor) -> Tensor:
            return self.embed(images)

    with pytest.raises(DecompositionRefused, match=r"must have the shape \[n, d\]"):
        decompose(randomise(Stream()).double(), IMAGES)


class Tanh(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.squash = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.squash(x)


def test_a_nonlinear_end_is_read_before_it_and_named() -> None:
    model = own(Tanh())
    parts = decompose(model, IMAGES)
    assert "tanh" in parts.readout and "last.squash" in parts.readout
    assert float(parts.error.max()) <= 1e-12
    assert torch.allclose(parts.representation.tanh(), model(IMAGES))


class Squashed(Own):
    """The stream itself passes an activation between its blocks, as in ResNets."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        for i in range(2):
            x = torch.relu(x + self.attention[i](self.norms[2 * i](x)))
            x = torch.relu(x + self.feed[i](self.norms[2 * i + 1](x)))
        return self.norms[4](x).mean(1)


def test_a_nonlinearity_on_the_stream_is_refused_by_name() -> None:
    model = randomise(Squashed()).double()
    with pytest.raises(DecompositionRefused, match=r"relu .*nonlinearity"):
        decompose(model, IMAGES, freeze_gates=False)
    parts = decompose(model, IMAGES)
    assert float(parts.error.max()) <= 1e-12
    assert list(parts.frozen["detail"]) == ["frozen gate"]
    assert (parts.components["kind"] == "head").sum() == 6


def test_no_residual_branch_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(DecompositionRefused, match="no residual branch"):
        decompose(randomise(model).double(), IMAGES)


def test_data_dependent_control_flow_is_refused() -> None:
    class Branching(Own):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images if images.sum() > 0 else -images)

    with pytest.raises(DecompositionRefused, match=r"cannot be captured"):
        decompose(randomise(Branching()).double(), IMAGES)


def test_selected_components_and_directions_are_parts_of_the_whole() -> None:
    model, generator = own(), torch.Generator().manual_seed(8)
    parts = decompose(model, IMAGES)
    directions = torch.randn(4, 12, generator=generator).double()
    chosen = ["feed.1", "attention.0/head2"]
    some = decompose(model, IMAGES, components=chosen, directions=directions)
    rows = [list(parts.components["id"]).index(name) for name in chosen]
    assert list(some.components["id"]) == chosen
    assert torch.allclose(some.values, parts.values[:, rows] @ directions.T)
    tokens = decompose(model, IMAGES, per="token", components=rows, directions=directions)
    assert torch.allclose(tokens.values.sum(2), some.values)


def test_stochastic_depth_and_patch_dropout_do_nothing_in_eval_mode() -> None:
    import timm

    kwargs = {**SMALL["vit"].kwargs, "drop_path_rate": 0.5, "patch_drop_rate": 0.5}
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **kwargs)
    parts = decompose(randomise(model).double(), images_for("vit"))
    assert float(parts.error.max()) <= 1e-12
    assert torch.allclose(parts.values, decompose(small_model("vit"), images_for("vit")).values)


def test_the_plan_names_what_it_did_with_every_operation() -> None:
    plan = plan_for(own(), IMAGES)
    table = plan.table
    assert list(table.columns) == ["module", "operation", "role", "detail"]
    assert set(table["role"]) <= {"linear", "frozen", "residual", "component", "sum"}
    assert table["role"].isin(["residual", "sum"]).sum() == 4
    components = table[table["role"] == "component"]
    assert len(components) == 5
    norm = table[table["operation"] == "layer_norm"]
    assert list(norm["role"]) == ["frozen"] and list(norm["module"]) == ["norms.4"]


def test_a_normalized_representation_is_a_unit_vector() -> None:
    parts = decompose(small_model("open_clip"), images_for("open_clip"))
    assert torch.allclose(parts.normalized.norm(dim=1), torch.ones(3).double())
    cosine = torch.cosine_similarity(parts.normalized, parts.representation)
    assert torch.allclose(cosine, torch.ones(3).double())


class NormsAndGates(nn.Module):
    """BatchNorm behind a residual addition, squeeze-excite on the stream, RMSNorm at the end."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem, self.mlp = nn.Conv2d(3, width, 4, 4), Mlp(width)
        self.batch, self.squeeze = nn.BatchNorm1d(width), nn.Linear(width, width)
        self.attention, self.norm = Attention(width, 3), nn.RMSNorm(width, eps=1e-6)

    def stream(self, images: Tensor) -> dict[str, Tensor]:
        stem = self.stem(images).flatten(2).transpose(1, 2)
        mlp = self.mlp(stem)
        x = self.batch((stem + mlp).transpose(1, 2)).transpose(1, 2)
        gate = torch.sigmoid(self.squeeze(x.mean(1, keepdim=True)))
        x = x * gate
        return {"mlp": mlp, "gate": gate, "last": x + self.attention(x)}

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.stream(images)["last"]).mean(1)


def test_batch_norm_after_a_residual_squeeze_excite_and_rms_norm_are_on_the_path() -> None:
    model = randomise(NormsAndGates()).double()
    parts = decompose(model, IMAGES)
    assert float(parts.error.max()) <= 1e-12
    assert list(parts.frozen["operation"]) == ["mul"]
    values = model.stream(IMAGES)
    gain = model.batch.weight / (model.batch.running_var + model.batch.eps).sqrt()
    deviation = (values["last"].square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    written = (values["mlp"] - model.mlp.down.bias) * gain * values["gate"]
    wanted = (written * deviation * model.norm.weight).mean(1)
    (row,) = parts.components.index[parts.components["kind"] == "mlp"]
    assert torch.allclose(parts.values[:, row], wanted, rtol=0, atol=1e-13)


def test_fused_and_written_out_attention_are_decomposed_alike() -> None:
    fused, written = (SMALL["vit"].build().double() for _ in range(2))
    for block in written.blocks:
        assert block.attn.fused_attn
        block.attn.fused_attn = False
    one, two = (decompose(model, images_for("vit"), per="token") for model in (fused, written))
    assert torch.allclose(one.values, two.values, rtol=0, atol=1e-12)
    operations = [set(plan_for(m, images_for("vit")).facts.nodes) for m in (fused, written)]
    names = [{str(node.target) for node in nodes} for nodes in operations]
    assert any("scaled_dot_product" in name for name in names[0])
    assert not any("scaled_dot_product" in name for name in names[1])
