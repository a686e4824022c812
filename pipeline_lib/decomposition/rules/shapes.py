"""Rules of axes: reshapes, permutations, broadcasts."""

from __future__ import annotations

import math

import torch
from torch import fx

from pipeline_lib.decomposition.operations import op_name
from pipeline_lib.decomposition.readout import (
    Readout,
    Shape,
    Weights,
    axis_groups,
    length,
)
from pipeline_lib.decomposition.rules.base import Context, Pulled, axis_of, rule, single


def reshape(readout: Readout, before: Shape, bound: int) -> Readout:
    """Readout of a tensor of shape `before` whose reshape has the given readout."""
    after = readout.full
    groups = axis_groups(before, after)
    mixed = [right for left, right in groups if len(left) > 1 or len(right) > 1]
    for right in mixed:
        weights = [a for a in right if readout.w.full(a)]
        matrix = [a for a in right if readout.m.full(a)]
        if not weights or not matrix or set(weights) == set(matrix) == set(right):
            continue
        told_apart = [readout.w.box[a][1] if readout.w.box[a] else after[a] for a in weights]  # type: ignore[index]
        by_weights = math.prod(told_apart)
        if min(told_apart) > 0 and by_weights < math.prod(after[a] for a in matrix):
            readout = readout.spread_weights(weights, bound)
        else:
            readout = readout.spread_products(matrix, bound)
    w, m = readout.w, readout.m
    for right in mixed:
        if any(w.full(a) for a in right):
            w = w.spread(right, after)
        if any(m.full(a) for a in right):
            m = m.spread(right, after)
    w_shape, m_shape = [1] * len(before), [1] * len(before)
    box: list[tuple[int, int] | None] = [None] * len(before)
    for left, right in groups:
        if any(w.full(a) for a in right):
            for axis in left:
                w_shape[axis] = before[axis]
            if len(left) == len(right) == 1:
                box[left[0]] = w.box[right[0]]
        if any(m.full(a) for a in right):
            for axis in left:
                m_shape[axis] = before[axis]
    target = Weights(w.lazy, w.r, tuple(w_shape), tuple(box))
    sized = any(dim < 0 for dim in w_shape)
    w = w.then(
        lambda t, run: t.reshape(target.sizes(run.batch)),
        shape=target.shape, box=target.box, static=not sized,
    )  # fmt: skip
    matrix_shape = tuple(m_shape)
    m = m.then(
        lambda t, run: t.reshape(t.shape[0], *matrix_shape, t.shape[-1]),
        shape=matrix_shape, reshapes=True,
    )  # fmt: skip
    return Readout(w, m, before)


@rule(
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze",
    "view_as", "reshape_as", "_reshape_alias",
)  # fmt: skip
def _reshape(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    before = context.facts.shape(node.args[0])  # type: ignore[arg-type]
    return single(node, reshape(readout, before, context.bound))


def _permuted(readout: Readout, order: list[int]) -> Readout:
    """`order[i]` is the operand's axis that became the result's axis `i`."""
    back = [order.index(axis) for axis in range(len(order))]
    w, m = readout.w, readout.m

    def pick(items: tuple) -> tuple:  # type: ignore[type-arg]
        return tuple(items[axis] for axis in back)

    w_axes = [0, *(axis + 1 for axis in back)]
    m_axes = [*w_axes, len(back) + 1]
    kept = [axis for axis in back if m.full(axis)]
    in_order = kept == sorted(kept)
    return Readout(
        w.then(lambda t, run: t.permute(w_axes), shape=pick(w.shape), box=pick(w.box)),
        m.then(lambda t, run: t.permute(m_axes), shape=pick(m.shape), reshapes=in_order),
        pick(readout.full),
    )


@rule("permute", "transpose", "t", "numpy_T", "swapaxes", "swapdims", "movedim", "mT")
def _permute(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    rank = len(readout.full)
    order = list(range(rank))
    name = op_name(node)
    if name == "permute":
        order = [axis_of(a, rank) for a in node.args[1]]  # type: ignore[union-attr]
    elif name in ("transpose", "swapaxes", "swapdims"):
        one, two = axis_of(node.args[1], rank), axis_of(node.args[2], rank)  # type: ignore[arg-type]
        order[one], order[two] = order[two], order[one]
    elif name == "movedim":
        marks = torch.empty([2 + i for i in range(rank)], device="meta")
        moved = torch.movedim(marks, node.args[1], node.args[2])  # type: ignore[arg-type]
        order = [size - 2 for size in moved.shape]
    elif name == "mT":
        order[-1], order[-2] = order[-2], order[-1]
    else:
        order.reverse()
    return single(node, _permuted(readout, order))


def unbroadcast(context: Context, readout: Readout, before: Shape) -> Readout:
    """Readout of a tensor of shape `before` that is broadcast to the readout's shape."""
    full = readout.full
    extra = len(full) - len(before)
    padded = (1,) * extra + tuple(before)
    for axis, (small, large) in enumerate(zip(padded, full, strict=True)):
        if small == large:
            continue
        readout = summed(context, readout, axis)
    return reshape(readout, before, context.bound) if extra else readout


def summed(context: Context, readout: Readout, axis: int) -> Readout:
    """The axis is summed away to the length 1 (adjoint of a broadcast along it)."""
    if readout.w.full(axis) and readout.m.full(axis):
        readout = readout.spread_products([axis], context.bound)
    w, m, full = readout.w, readout.m, readout.full
    shrunk = tuple(1 if a == axis else s for a, s in enumerate(full))
    if w.full(axis):
        shape = tuple(1 if a == axis else s for a, s in enumerate(w.shape))
        box = tuple(None if a == axis else b for a, b in enumerate(w.box))
        w = w.then(lambda t, run: t.sum(axis + 1, keepdim=True), shape=shape, box=box)
    elif m.full(axis):
        shape = tuple(1 if a == axis else s for a, s in enumerate(m.shape))
        m = m.then(lambda t, run: t.sum(axis + 1, keepdim=True), shape=shape)
    else:
        count = full[axis]
        w = w.then(lambda t, run: t * length(count, run.batch), static=count > 0)
    return Readout(w, m, shrunk)


@rule("expand", "expand_as", "broadcast_to")
def _expand(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    before = context.facts.shape(node.args[0])  # type: ignore[arg-type]
    return single(node, unbroadcast(context, readout, before))
