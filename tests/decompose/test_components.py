"""The right components: counted against the modules, named after them, ordered from the input."""

from __future__ import annotations

import re

import pytest
import torch
from small_models import PLAIN, SMALL, Small, images_for, small_model
from torch import nn

from pipeline_lib.decomposition import Plan, plan_for


@pytest.fixture(params=list(SMALL))
def case(request: pytest.FixtureRequest) -> tuple[Small, nn.Module, Plan]:
    name = request.param
    return SMALL[name], small_model(name), plan_for(small_model(name), images_for(name))


def blocks_of(plan: Plan, kind: str) -> list[str]:
    rows = plan.components[plan.components["kind"] == kind]
    return list(dict.fromkeys(rows["id"].str.split("/head").str[0]))


def test_heads_mlps_and_convolutions_are_those_of_the_architecture(
    case: tuple[Small, nn.Module, Plan],
) -> None:
    small, _, plan = case
    table = plan.components
    heads = table[table["kind"] == "head"]
    found = heads.groupby(heads["id"].str.split("/head").str[0], sort=False).size()
    assert tuple(found) == small.heads
    assert len(blocks_of(plan, "mlp")) == small.mlps
    assert len(blocks_of(plan, "conv")) == small.convs
    assert (table["kind"] == "stem").sum() == 1 and (table["kind"] == "bias").sum() == 1
    assert len(table) == sum(small.heads) + small.mlps + small.convs + 2


def test_heads_are_those_of_the_module_they_are_named_after(
    case: tuple[Small, nn.Module, Plan],
) -> None:
    _, model, plan = case
    table = plan.components
    for path, rows in table[table["kind"] == "head"].groupby("module"):
        module = model.get_submodule(str(path))
        with_heads = [
            m
            for m in module.modules()
            if hasattr(m, "num_heads")
            and not re.search("(^Conv|(?<!Conv))RelPos(?!Attention)|Bias", type(m).__name__)
        ]
        assert len(with_heads) == 1, path
        assert list(rows["head"]) == list(range(with_heads[0].num_heads))
        assert list(rows["id"]) == [f"{path}/head{i}" for i in range(len(rows))]


def test_every_attention_module_is_a_block_or_pools(case: tuple[Small, nn.Module, Plan]) -> None:
    _, model, plan = case
    tower = "visual" if hasattr(model, "encode_image") else ""
    named = [
        f"{tower}.{name}".strip(".")
        for name, module in model.get_submodule(tower).named_modules()
        if hasattr(module, "num_heads") and not re.search("RelPos|Bias", type(module).__name__)
        and not any(hasattr(m, "num_heads") for m in list(module.modules())[1:])
    ]  # fmt: skip
    pooled = set(plan.table.loc[plan.table["detail"] == "attention pooling", "module"])
    found = {*blocks_of(plan, "head"), *pooled}
    for name in named:
        assert any(f"{name}.".startswith(f"{path}.") or f"{path}.".startswith(f"{name}.")
                   for path in found), name  # fmt: skip


def test_names_are_paths_of_modules_and_are_unique(case: tuple[Small, nn.Module, Plan]) -> None:
    _, model, plan = case
    table = plan.components
    assert table["id"].is_unique
    assert list(table["component"]) == list(range(len(table)))
    for path in table["module"]:
        model.get_submodule(path)


def test_layers_and_blocks_count_from_the_input(case: tuple[Small, nn.Module, Plan]) -> None:
    _, model, plan = case
    table = plan.components[plan.components["layer"] >= 0]
    assert list(dict.fromkeys(table["layer"])) == list(range(table["layer"].max() + 1))
    once = table[~table["id"].str.contains("#")]  # a module may run again in a later block
    assert once["block"].is_monotonic_increasing
    names = {name for name, _ in model.named_modules(remove_duplicate=False)}
    assert set(table["module"]) <= names
    numbered = [re.sub(r"\d+", lambda m: m[0].zfill(3), p) for p in once["module"]]
    blocks = [re.sub(r"(.*\d)(\.|$).*", r"\1", p) for p in numbered]
    for name in {block.split(".")[0] for block in blocks}:
        mine = [block for block in blocks if block.split(".")[0] == name]
        assert mine == sorted(mine)


# ------------------------------------------------------------------ the published models

_THIN = {"num_classes": 0}

#: The six published models at their depth, made thin: P2's counts without a bias component.
PUBLISHED = {
    "deit_base_patch16_224": (25, 32, {**PLAIN, "depth": 12}),
    "vit_base_patch16_224.dino": (25, 32, {**PLAIN, "depth": 12}),
    "vit_base_patch14_dinov2.lvd142m": (25, 32, {**PLAIN, "depth": 12}),
    "swin_base_patch4_window7_224": (
        49, 64, {"img_size": 64, "embed_dim": 16, "num_heads": (1, 2, 4, 8), **_THIN},
    ),
    "maxvit_small_tf_224.in1k": (
        56, 64,
        {"img_size": 64, "embed_dim": (8, 16, 24, 32), "stem_width": 8, "transformer_dim_head": 8,
         **_THIN},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_the_published_models_have_the_published_counts(name: str) -> None:
    import timm

    count, size, kwargs = PUBLISHED[name]
    assert timm.is_model(name.split(".")[0])
    model = timm.create_model(name, pretrained=False, **kwargs).eval()
    table = plan_for(model, torch.zeros(2, 3, size, size)).components
    layers = table["id"].str.split("/head").str[0]
    assert layers[table["kind"] != "bias"].nunique() == count
    if "maxvit" in name:
        kinds = table.groupby("kind")["module"].nunique()
        assert (kinds["conv"], kinds["head"], kinds["mlp"], kinds["stem"]) == (11, 22, 22, 1)


def test_the_published_clip_has_the_published_count() -> None:
    import open_clip

    config = open_clip.get_model_config("ViT-B-16")
    vision = {**config["vision_cfg"], "width": 64, "head_width": 16, "image_size": 32}
    text = {**config["text_cfg"], "width": 32, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()
    table = plan_for(model, torch.zeros(2, 3, 32, 32)).components
    layers = table["id"].str.split("/head").str[0]
    assert layers[table["kind"] != "bias"].nunique() == 25
