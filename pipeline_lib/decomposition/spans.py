"""Spans: in which directions a component can write at all, whatever the image.

A readout is `w ⊗ M`; `w` changes with the image and `M` with the weights only. So a component's
contribution is always a combination of the rows of its `M`: for a head of a plain transformer as
many as the head is wide.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline_lib.decomposition.plan import Plan
from pipeline_lib.decomposition.readout import Readout, Run
from pipeline_lib.decomposition.rules import Constant

Rows = Float[Tensor, "m d"]


def component_spans(
    plan: Plan, *, per: str = "head", bias: str = "separate"
) -> list[Float[Tensor, "m d"] | None]:
    """Rows that span every contribution of each component, from the weights alone.

    Parameters
    ----------
    plan
        From `plan_for`; its weights are read.
    per, bias
        As for `decompose`; the list is in the order of its components.

    Returns
    -------
    list
        For each component rows `[m, d]` with `m < d`, in float64 on the CPU; `None` where its rows
        are as many as the model is wide or change with the image, so that nothing is known of them.
    """
    state = plan.capture.live_state()
    run = Run(None, state, 1)
    with torch.no_grad():
        found = _of_components(plan, run)
        if per == "layer":
            found = _joined(found, plan)
        if bias == "even":
            found = [_with(rows, found[-1], plan.width) for rows in found[:-1]]
    return found


def _of_components(plan: Plan, run: Run) -> list[Rows | None]:
    count, width = len(plan.components), plan.width
    parts: list[list[Rows | None]] = [[] for _ in range(count)]
    if plan.stem or plan.stem_constants:
        parts[0] += [_rows(run, readout, width) for leaf in plan.stem for readout in leaf.readouts]
        parts[0] += _of_constants(run, plan.stem_constants, width)
    for leaf, (begin, stop) in zip(plan.leaves, plan.spans, strict=True):
        for readout in leaf.readouts:
            for head in range(stop - begin):
                part = _rows(run, readout, width, leaf.head_axes, head)
                parts[begin + head].append(part)
        parts[begin] += _of_constants(run, leaf.constants, width)
    parts[-1] += _of_constants(run, plan.constants, width)
    return [_stacked(rows, width) for rows in parts]


def _rows(
    run: Run, readout: Readout, width: int, head_axes: tuple[int, ...] = (), head: int = 0
) -> Rows | None:
    """Rows of `M` at one head: all products and channels; `None` where they are too many."""
    if readout.dense:  # holds one product per column of z, other ones for every image
        return None
    shape = readout.m.shape
    sizes = [abs(readout.full[axis]) for axis in head_axes]
    place = np.unravel_index(head, sizes) if sizes else ()
    kept = math.prod(size for axis, size in enumerate(shape) if axis not in head_axes)
    if readout.m.r * abs(kept) >= width:
        return None
    matrix = run.get(readout.m.lazy)
    for axis, index in sorted(zip(head_axes, place, strict=True), reverse=True):
        matrix = matrix.select(1 + axis, int(index) if shape[axis] != 1 else 0)
    return matrix.reshape(-1, matrix.shape[-1]).double().cpu()


def _of_constants(run: Run, constants: list[Constant], width: int) -> list[Rows | None]:
    """Rows of constants; those that are read by one and the same `w` add up before they vary."""
    summed: dict[int, Rows] = {}
    rest: list[Rows | None] = []
    for constant in constants:
        readout = constant.readout
        rows = _rows(run, readout, width)
        if constant.value is not None or rows is None or any(s != 1 for s in readout.m.shape):
            rest.append(rows)
            continue
        key = id(readout.w.lazy)
        summed[key] = summed[key] + rows if key in summed else rows
    return [*summed.values(), *rest]


def _stacked(parts: list[Rows | None], width: int) -> Rows | None:
    """All rows together; `None` where they are as many as the width."""
    rows = [part for part in parts if part is not None]
    if len(rows) < len(parts) or sum(map(len, rows)) >= width:
        return None
    return torch.cat(rows) if rows else torch.zeros(0, width, dtype=torch.float64)


def _with(rows: Rows | None, more: Rows | None, width: int) -> Rows | None:
    return _stacked([rows, more], width)


def _joined(found: list[Rows | None], plan: Plan) -> list[Rows | None]:
    """The spans of blocks, from those of their heads."""
    blocks = plan.components["id"].str.split("/head").str[0]
    groups: dict[str, list[Rows | None]] = {}
    for block, rows in zip(blocks, found, strict=True):
        groups.setdefault(block, []).append(rows)
    return [_stacked(rows, plan.width) for rows in groups.values()]
