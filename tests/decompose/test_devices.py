"""A decomposition makes nothing on another device than the images'.

Tensors without numbers stand for a GPU: they have a device (`meta`) that no tensor made without
one has, and operations refuse two devices as on a GPU. What is planned and run here is what is
planned and run there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import SMALL, images_for
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from pipeline_lib.decomposition import branches, columns, decompose, heads, plan, run, tokens

ELSEWHERE = torch.device("meta")


def moved(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """The model with its weights, without their numbers, on the other device."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    fake = mode.from_tensor(tensor.detach())
                    with mode:
                        fake = fake.to(ELSEWHERE)
                    is_weight = held is module._parameters
                    held[name] = nn.Parameter(fake, requires_grad=False) if is_weight else fake  # type: ignore[assignment]
    return model


def with_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function run with ordinary tensors: what it plans with are numbers of its own."""

    @functools.wraps(function)
    def outside(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **kwargs)

    return outside


@pytest.mark.parametrize("name", SMALL)
def test_all_is_made_where_the_images_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_refuse_not_finite", lambda plan, state: None)
    monkeypatch.setattr(columns, "held_bytes", lambda piece: 1)
    for home in (branches, heads, plan, tokens):
        monkeypatch.setattr(home, "channel_axes", with_numbers(heads.channel_axes))
    for name_of in ("_place", "_channels"):
        function = with_numbers(getattr(tokens.TokenPlan, name_of))
        monkeypatch.setattr(tokens.TokenPlan, name_of, function)
    monkeypatch.setattr(tokens.Place, "on", with_numbers(tokens.Place.on))
    small, mode = SMALL[name], FakeTensorMode(allow_non_fake_inputs=True)
    model = moved(small.build().eval(), mode)
    with mode, torch.no_grad():
        images = torch.randn(3, 3, *small.size, device=ELSEWHERE)
        made = plan.make_plan(model, images)
        one, z = run.start(made, images)
        values = run.all_contributions(made, one, z)
        error = run.relative_error(values, z)
        by_token = tokens.token_plan(made)
        two, _ = run.start(made, images, by_token.runner, by_token.taps)
        directions = torch.randn(4, made.width, device=ELSEWHERE)
        rows = list(range(len(made.components)))
        maps, _ = tokens.token_contributions(made, two, rows, directions)
    assert values.shape == (3, len(rows), made.width)
    assert {tensor.device for tensor in (values, z, error, maps)} == {ELSEWHERE}


def test_a_tensor_left_elsewhere_would_be_seen() -> None:
    with FakeTensorMode(), pytest.raises(Exception, match="same device"):
        torch.randn(2, device=ELSEWHERE) + torch.randn(2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", SMALL)
def test_a_gpu_gives_what_the_processor_gives(name: str) -> None:
    model, images = SMALL[name].build().double(), images_for(name)
    by_head = decompose(model, images).values
    by_token = decompose(model, images, per="token").values
    model.cuda()
    there = decompose(model, images.cuda())
    assert there.values.is_cuda and float(there.error.max()) < 1e-10
    assert torch.allclose(there.values.cpu(), by_head, rtol=1e-8, atol=1e-10)
    tokens_there = decompose(model, images.cuda(), per="token").values.cpu()
    assert torch.allclose(tokens_there, by_token, rtol=1e-8, atol=1e-10)
