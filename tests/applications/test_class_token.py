"""What the class token takes from itself: against attention by hand, and rows of the table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline_lib.ablation import Task
from pipeline_lib.class_token import class_token_rows, class_token_shares, reads_class_token
from pipeline_lib.classify import LinearClassifier
from pipeline_lib.decomposition import decompose
from pipeline_lib.errors import DataError
from pipeline_lib.models import load_model


def test_shares_are_the_class_token_s_own_part_of_the_heads() -> None:
    torch.manual_seed(0)
    model = load_model(
        "timm:vit_tiny_patch16_224", pretrained=False, img_size=32, depth=1, embed_dim=48
    )
    images, weight = torch.randn(3, 3, 32, 32), np.eye(48, dtype=np.float32)[:5]
    found = class_token_shares(model, images, weight)
    heads = decompose(model, images).components.query("kind == 'head'")["id"].tolist()
    parts = decompose(model, images, per="token", components=heads)
    rest = parts.values[:, :, 1:].sum(dim=(1, 2))[:, :5]
    whole = parts.values.sum(dim=(1, 2))[:, :5]
    np.testing.assert_allclose(found, (whole - rest).numpy(), atol=1e-5)
    assert reads_class_token(decompose(model, images).components)


def test_a_model_without_class_token_has_no_such_line() -> None:
    torch.manual_seed(0)
    model = load_model(
        "timm:vit_tiny_patch16_224", pretrained=False, img_size=32, depth=1, embed_dim=48,
        class_token=False, global_pool="avg",
    )  # fmt: skip
    images = torch.randn(1, 3, 32, 32)
    assert not reads_class_token(decompose(model, images).components)
    with pytest.raises(DataError, match="has no class token"):
        class_token_shares(model, images, np.eye(48, dtype=np.float32)[:2])


def test_rows_by_hand() -> None:
    first = LinearClassifier("own", ("a", "b"), np.eye(2, dtype="f4"), np.zeros(2, "f4"))
    second = LinearClassifier("own", ("c", "d"), -np.eye(2, dtype="f4"), np.zeros(2, "f4"))
    index = np.array([4, 6, 9])
    z = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], np.float32)
    none = np.arange(0)
    tasks = [
        Task("one", first, index, ["a", "b", "a"], none, []),
        Task("two", second, index[:2], ["d", "c"], none, []),
    ]
    shares = np.zeros((3, 4), np.float32)
    shares[2, 0] = 5.0  # all that spoke for the third image's class in the first task
    means = np.zeros(4, np.float32)
    rows = class_token_rows(tasks, index, z, shares, means).set_index(["target", "step"])
    assert rows.loc[("one", 0), "accuracy"] == 1.0
    assert rows.loc[("one", 1), "accuracy"] == pytest.approx(2 / 3)
    assert rows.loc[("two", 0), "accuracy"] == rows.loc[("two", 1), "accuracy"] == 1.0
    assert rows["n"].tolist() == [3, 3, 2, 2]
    moved = class_token_rows(tasks, index, z, shares + 7.0, means + 7.0)
    assert moved["accuracy"].tolist() == rows["accuracy"].tolist()
