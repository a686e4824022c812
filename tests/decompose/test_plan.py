"""A plan is made once per architecture and shape; batches and weights change under it."""

from __future__ import annotations

import gc

import pytest
import torch
from small_models import SMALL, images_for, small_model
from torch._subclasses.fake_tensor import FakeTensor

from benchmarks.randomise import randomise
from pipeline_lib.decomposition import decompose, plan_for


def test_one_plan_serves_every_batch() -> None:
    model = small_model("vit")
    plan = plan_for(model, images_for("vit", n=3))
    for n in (1, 2, 5):
        images = images_for("vit", n=n, seed=n)
        parts = decompose(model, images)
        assert plan_for(model, images) is plan
        assert parts.values.shape[0] == n and float(parts.error.max()) <= 1e-12


def live_bytes() -> int:
    """Bytes of all tensors that anything still refers to, shared memory counted once."""
    gc.collect()
    tensors = [kept for kept in gc.get_objects() if issubclass(type(kept), torch.Tensor)]
    storages = [t.untyped_storage() for t in tensors if type(t) is not FakeTensor]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("per", ["head", "token"])
@pytest.mark.parametrize("name", ["vit", "swin", "poolformer"])
def test_nothing_is_kept_of_the_batches_before(name: str, per: str) -> None:
    model, held = small_model(name), []
    for seed in range(6):
        images = images_for(name, n=8, seed=seed)
        directions = torch.ones(2, plan_for(model, images).width).double()
        assert decompose(model, images, per=per, directions=directions).values.shape[0] == 8
        held.append(live_bytes())
    assert held[2] == held[3] == held[4] == held[5]


@pytest.mark.parametrize("name", ["vit", "swin", "open_clip", "siglip", "pvt"])
def test_images_of_a_batch_do_not_touch_each_other(name: str) -> None:
    model, images = small_model(name), images_for(name, n=4)
    together = decompose(model, images).values
    apart = torch.cat([decompose(model, images[i : i + 1]).values for i in range(4)])
    assert torch.allclose(together, apart, rtol=1e-10, atol=1e-12)
    tokens = decompose(model, images, per="token").values
    alone = decompose(model, images[2:3], per="token").values
    assert torch.allclose(tokens[2:3], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["vit", "swin", "maxvit tf"])
def test_results_follow_weights_that_change_in_place(name: str) -> None:
    model, images = SMALL[name].build().double(), images_for(name)
    before = decompose(model, images)
    plan = plan_for(model, images)
    randomise(model, seed=99)
    after = decompose(model, images)
    assert plan_for(model, images) is plan
    assert float(after.error.max()) <= 1e-12
    assert not torch.allclose(before.values, after.values)
    fresh = SMALL[name].build(seed=99).double()
    fresh.load_state_dict(model.state_dict())
    assert torch.allclose(after.values, decompose(fresh, images).values)


def test_results_follow_loaded_and_replaced_weights() -> None:
    model, images = SMALL["vit"].build(seed=1).double(), images_for("vit")
    decompose(model, images)
    other = SMALL["vit"].build(seed=2).double()
    model.load_state_dict(other.state_dict())
    assert torch.allclose(decompose(model, images).values, decompose(other, images).values)
    model.norm.weight = torch.nn.Parameter(torch.ones_like(model.norm.weight))
    parts = decompose(model, images)
    wanted = model.forward_head(model.forward_features(images), pre_logits=True)
    assert torch.allclose(parts.values.sum(1), wanted)


def test_another_input_shape_makes_another_plan() -> None:
    import timm

    kwargs = {**SMALL["vit"].kwargs, "dynamic_img_size": True}
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **kwargs)
    randomise(model).double()
    small, wide = torch.randn(2, 3, 32, 32).double(), torch.randn(2, 3, 24, 56).double()
    for images, grid in ((small, (4, 4)), (wide, (3, 7)), (small, (4, 4))):
        parts = decompose(model, images, per="token")
        assert float(parts.error.max()) <= 1e-12 and parts.grid == grid
    assert plan_for(model, small) is not plan_for(model, wide)
    assert plan_for(model, small) is plan_for(model, small)


def test_another_dtype_makes_another_plan() -> None:
    model = SMALL["vit"].build()
    single = decompose(model, images_for("vit", dtype=torch.float32))
    double = decompose(model.double(), images_for("vit"))
    assert (single.values.dtype, double.values.dtype) == (torch.float32, torch.float64)
    assert torch.allclose(single.values.double(), double.values, atol=1e-4)
