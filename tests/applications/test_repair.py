"""Repaired modules: their predictions are those of the ablated sum, before and after saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline_lib.ablation import mean_ablate
from pipeline_lib.classify import LinearClassifier
from pipeline_lib.decomposition import decompose
from pipeline_lib.errors import ArtifactError, ModelError
from pipeline_lib.models import VisionModel, load_model
from pipeline_lib.repair import Repaired, load_repair, save_repair

ABLATED = ("blocks.0.attn/head1", "blocks.1.mlp")


@pytest.fixture(scope="module")
def model() -> VisionModel:
    torch.manual_seed(0)
    return load_model(
        "timm:vit_tiny_patch16_224", pretrained=False, img_size=32, depth=2, embed_dim=48
    )


@pytest.fixture(scope="module")
def probe() -> LinearClassifier:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(3, 48)), rng.normal(size=3)
    return LinearClassifier("probe", tuple("abc"), weight.astype("f4"), bias.astype("f4"))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def ablated_sum(
    model: VisionModel, probe: LinearClassifier, images: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the ablated sum the long way, and the ablated components' shift."""
    parts = decompose(model, images)
    means = np.random.default_rng(5).normal(size=parts.values.shape[1:]).astype("f4")
    keep = ~parts.components["id"].isin(ABLATED).to_numpy()
    logits = probe.logits(mean_ablate(parts.values.numpy(), means, keep))
    return logits, probe.weight @ means[~keep].sum(axis=0)


def test_predictions_equal_the_ablated_sum(
    model: VisionModel, probe: LinearClassifier, images: torch.Tensor
) -> None:
    expected, shift = ablated_sum(model, probe, images)
    repaired = Repaired(model.module, probe, ABLATED, shift)
    np.testing.assert_allclose(repaired(images), expected, atol=1e-4)
    whole = probe.logits(decompose(model, images).representation.numpy())
    assert np.abs(expected - whole).max() > 0.1
    nothing = Repaired(model.module, probe, (), np.zeros(3, np.float32))
    np.testing.assert_allclose(nothing(images), whole, atol=1e-5)


def test_it_is_the_same_from_its_file_and_from_its_state_dict(
    model: VisionModel, probe: LinearClassifier, images: torch.Tensor, tmp_path: Path
) -> None:
    expected, shift = ablated_sum(model, probe, images)
    path = tmp_path / "head.safetensors"
    save_repair(path, probe, ABLATED, shift, {"model": model.id})
    loaded = load_repair(model.module, path)
    assert loaded.classes == ("a", "b", "c") and loaded.ablated == ABLATED
    np.testing.assert_allclose(loaded(images), expected, atol=1e-4)
    other = Repaired(model.module, LinearClassifier(
        "probe", tuple("abc"), np.zeros((3, 48), "f4"), np.zeros(3, "f4")
    ), ABLATED, np.zeros(3, "f4"))  # fmt: skip
    other.load_state_dict(loaded.state_dict())
    np.testing.assert_allclose(other(images), expected, atol=1e-4)


def test_files_and_models_that_do_not_fit(
    model: VisionModel, probe: LinearClassifier, images: torch.Tensor, tmp_path: Path
) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="cannot be read as a repair"):
        load_repair(model.module, tmp_path / "bad.safetensors")
    wrong = Repaired(model.module, probe, ("blocks.7.mlp",), np.zeros(3, np.float32))
    with pytest.raises(ModelError, match=r"unknown component 'blocks\.7\.mlp'"):
        wrong(images)
