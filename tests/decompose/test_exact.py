"""Contributions sum to the representation, heads to their block, tokens to their component."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from small_models import SMALL, images_for, small_model

from pipeline_lib.decomposition import Decomposition, decompose

EXACT, SINGLE = 1e-10, 1e-5


@cache
def heads_of(name: str) -> Decomposition:
    return decompose(small_model(name), images_for(name))


@pytest.fixture(params=list(SMALL))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def eager(name: str) -> torch.Tensor:
    model, images = small_model(name), images_for(name)
    with torch.no_grad():
        if hasattr(model, "encode_image"):
            return model.encode_image(images)
        stream = model.forward_features(images)
        if name == "maxvit tf":
            return stream.mean((2, 3))
        return model.forward_head(stream, pre_logits=True)


def test_components_sum_to_the_representation(name: str) -> None:
    parts = heads_of(name)
    assert float(parts.error.max()) <= EXACT
    wanted = eager(name)
    assert torch.allclose(parts.representation, wanted, rtol=EXACT, atol=1e-12)
    summed = parts.values.sum(1)
    assert float((summed - wanted).norm(dim=1).max() / wanted.norm(dim=1).min()) <= EXACT


def test_nothing_is_zero_and_the_images_differ(name: str) -> None:
    """Random weights leave no component without effect, or the sums would prove little."""
    values = heads_of(name).values
    components = heads_of(name).components
    idle = components["module"].isin(SMALL[name].idle).to_numpy()
    assert float(values.norm(dim=2)[:, ~idle].min()) > 1e-7
    assert not values[:, idle].any() and idle.sum() == len(SMALL[name].idle)
    still = ["bias", "stem"]  # behind a class token the stem is the same for every image
    constant = components["kind"].isin(still).to_numpy() | idle
    spread = (values - values.mean(0, keepdim=True)).norm(dim=2)[:, ~constant]
    assert float(spread.min()) > 1e-9


def test_heads_sum_to_their_block(name: str) -> None:
    parts = heads_of(name)
    layers = decompose(small_model(name), images_for(name), per="layer")
    assert float(layers.error.max()) <= EXACT
    for row, block in layers.components.iterrows():
        mine = parts.components["id"].str.split("/head").str[0] == block["id"]
        summed = parts.values[:, torch.as_tensor(mine.to_numpy())].sum(1)
        assert torch.allclose(layers.values[:, row], summed, rtol=0, atol=1e-13)


def test_tokens_sum_to_their_component(name: str) -> None:
    parts = heads_of(name)
    width = parts.representation.shape[1]
    directions = torch.randn(3, width, generator=torch.Generator().manual_seed(3)).double()
    tokens = decompose(small_model(name), images_for(name), per="token", directions=directions)
    wanted = parts.values @ directions.T
    assert tokens.values.shape[:2] == wanted.shape[:2]
    assert tokens.values.shape[2] > 1
    difference = tokens.values.sum(2) - wanted
    assert float(difference.abs().max() / wanted.abs().max()) <= EXACT


def test_an_evenly_split_bias_sums_too(name: str) -> None:
    parts = heads_of(name)
    even = decompose(small_model(name), images_for(name), bias="even")
    assert "bias" not in set(even.components["kind"])
    assert float(even.error.max()) <= EXACT
    share = even.values - parts.values[:, :-1]
    assert torch.allclose(share, (parts.values[:, -1:] / share.shape[1]).expand_as(share))


@pytest.mark.parametrize("name", list(SMALL))
def test_single_precision_stays_within_its_bar(name: str) -> None:
    model = SMALL[name].build()
    parts = decompose(model, images_for(name, dtype=torch.float32))
    assert parts.values.dtype == torch.float32
    assert float(parts.error.max()) <= SINGLE
    double = heads_of(name)
    assert list(parts.components["id"]) == list(double.components["id"])
    scale = double.representation.norm(dim=1).max()
    assert float((parts.values - double.values).norm(dim=2).max() / scale) <= 10 * SINGLE
