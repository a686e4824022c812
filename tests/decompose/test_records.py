"""What a batch records: of tensors of which only some rows are read, these rows and no more."""

from __future__ import annotations

import pytest
import torch
from small_models import images_for, small_model

from pipeline_lib.decomposition import decompose, plan_for
from pipeline_lib.decomposition.run import start


def recorded(name: str) -> tuple[list[torch.Size], list[torch.Size]]:
    """Shapes of what a batch of 3 records for its leaves, and those of the whole tensors."""
    model, images = small_model(name), images_for(name)
    plan = plan_for(model, images)
    with torch.no_grad():
        run, _ = start(plan, images)
    parts = [run.values[leaf.node].shape for leaf in plan.leaves]
    shapes = [plan.facts.shape(leaf.node) for leaf in plan.leaves]
    return parts, [torch.Size([dim if dim > 0 else -3 * dim for dim in s]) for s in shapes]


@pytest.mark.parametrize(
    ("name", "rows"), [("vit", 1), ("deit distilled", 2), ("dinov2 registers", 1), ("open_clip", 1)]
)
def test_a_class_token_model_records_the_rows_that_are_read(name: str, rows: int) -> None:
    pairs = list(zip(*recorded(name), strict=True))
    cut = [(part, whole) for part, whole in pairs if part != whole]
    assert len(cut) >= len(pairs) - 2  # the last block is narrowed: what it has is read in whole
    for part, whole in cut:
        axes = [axis for axis in range(len(whole)) if part[axis] != whole[axis]]
        assert len(axes) == 1
        assert part[axes[0]] == rows


@pytest.mark.parametrize("name", ["vit", "open_clip"])
def test_what_is_recorded_keeps_no_more_alive(name: str) -> None:
    model, images = small_model(name), images_for(name)
    plan = plan_for(model, images)
    with torch.no_grad():
        run, _ = start(plan, images)
    kept = [run.values[leaf.node] for leaf in plan.leaves]
    cut = [part for part, whole in zip(kept, recorded(name)[1], strict=True) if part.shape != whole]
    assert cut
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in cut)


@pytest.mark.parametrize("name", ["swin", "siglip"])
def test_where_all_tokens_are_read_all_are_recorded(name: str) -> None:
    parts, wholes = recorded(name)
    assert parts == wholes


@pytest.mark.parametrize("name", ["vit", "vit average pooled", "deit distilled"])
def test_rows_that_are_kept_give_what_whole_tensors_give(name: str) -> None:
    model, images = small_model(name), images_for(name)
    plan = plan_for(model, images)
    by_rows = decompose(model, images).values
    from_tokens = decompose(
        model, images, per="token", directions=torch.eye(plan.width).to(images)
    ).values  # its tensors are recorded whole
    assert torch.allclose(from_tokens.sum(2), by_rows, rtol=1e-10, atol=1e-12)
