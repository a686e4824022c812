"""Rules of sums, means, pooling, windows, and of linear layers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from pipeline_lib.decomposition.operations import op_name
from pipeline_lib.decomposition.readout import (
    Lazy,
    Readout,
    Run,
    Shape,
    TooWide,
    length,
    refuse_large,
)
from pipeline_lib.decomposition.rules.base import (
    Constant,
    Context,
    Pulled,
    argument,
    axis_of,
    rule,
    single,
)
from pipeline_lib.decomposition.rules.shapes import reshape, unbroadcast
from pipeline_lib.decomposition.windows import summed_windows


@rule("mean", "sum")
def _mean(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    before = context.facts.shape(node.args[0])  # type: ignore[arg-type]
    axes = argument(node, 1, "dim", None)
    if not isinstance(axes, (list, tuple, int)):
        axes = list(range(len(before)))
    axes = sorted(axis_of(a, len(before)) for a in ([axes] if isinstance(axes, int) else axes))
    if any(before[axis] < 0 for axis in axes):
        raise TooWide("a mean over the batch")
    kept = tuple(1 if a in axes else s for a, s in enumerate(before))
    readout = reshape(readout, kept, context.bound)
    count = math.prod(before[axis] for axis in axes) if op_name(node) == "mean" else 1
    w = readout.w.then(lambda t, run: t / count) if count != 1 else readout.w
    return single(node, Readout(w, readout.m, before))


@rule("adaptive_avg_pool2d", "adaptive_avg_pool1d", "avg_pool2d", "avg_pool1d",
      "upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d")  # fmt: skip
def _pool(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    before = context.facts.shape(node.args[0])  # type: ignore[arg-type]
    count = 1 if op_name(node).endswith("1d") else 2
    axes = list(range(len(before) - count, len(before)))
    if all(readout.full[axis] == 1 for axis in axes) and "adaptive" in op_name(node):
        size = math.prod(before[axis] for axis in axes)
        w = readout.w.then(lambda t, run: t / size)
        return single(node, Readout(w, readout.m, before))
    if any(readout.m.full(axis) for axis in axes):
        readout = readout.spread_products(axes, context.bound)
    w = readout.w.spread(axes, readout.full)
    inner = [before[axis] for axis in axes]
    target, extra = node.target, node.args[1:]

    def adjoint(t: Tensor, run: Run) -> Tensor:
        lead = t.shape[: t.dim() - count]
        flat = t.reshape(-1, 1, *t.shape[-count:])
        zeros = flat.new_zeros(flat.shape[0], 1, *inner)
        with torch.enable_grad():
            zeros.requires_grad_(True)
            (back,) = torch.autograd.grad(target(zeros, *extra), zeros, flat)  # type: ignore[operator]
        return back.reshape(*lead, *inner)

    shape = tuple(before[a] if a in axes else s for a, s in enumerate(w.shape))
    return single(node, Readout(w.then(adjoint, shape=shape), readout.m, before))


def _adjoint(
    readout: Readout, axes: list[int], before: Shape, function: Callable[[Tensor], Tensor]
) -> Readout:
    """Readout through a linear map of some axes that leaves the others alone, on `w` only."""
    w = readout.w.spread([axis for axis in axes if axis < len(readout.full)], readout.full)
    kept = [1 if axis not in axes and not w.full(axis) else dim for axis, dim in enumerate(before)]

    def pulled(t: Tensor, run: Run) -> Tensor:
        lead = [t.shape[0]]
        zeros = t.new_zeros(*lead, *(length(dim, run.batch) for dim in kept))
        with torch.enable_grad():
            zeros.requires_grad_(True)
            (back,) = torch.autograd.grad(function(zeros), zeros, t)
        return back

    box = tuple(None if a in axes else w.box[a] for a in range(len(before)))
    w = w.then(pulled, shape=tuple(kept), box=box)
    m = readout.m.then(
        lambda t, run: t.reshape(t.shape[0], *m_shape, t.shape[-1]),
        shape=(m_shape := readout.m.shape[: len(before)]),
    )
    return Readout(w, m, before)


@rule("unfold")
def _unfold(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    """Overlapping windows along one axis; the places in the window are the last axis."""
    source, axis, size, step = node.args[:4]
    before = context.facts.shape(source)  # type: ignore[arg-type]
    axis = axis_of(axis, len(before))  # type: ignore[arg-type]
    axes = [axis, len(readout.full) - 1]
    if any(readout.m.full(a) for a in axes):
        readout = readout.spread_products(axes, context.bound)
    if any(box is not None for box in readout.w.box):
        w = readout.w.dense(range(len(readout.full)), readout.full)
        readout = Readout(w, readout.m, readout.full)
    return single(node, _adjoint(readout, axes, before, lambda t: t.unfold(axis + 1, size, step)))


@rule(summed_windows.operation)
def _summed_windows(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    """Windows added up to an image: each reads the image at its own place."""
    source, _, kernel, dilation, padding, stride = node.args
    before = context.facts.shape(source)  # type: ignore[arg-type]
    axes = [2, 3]
    if any(readout.m.full(axis) for axis in axes):
        readout = readout.spread_products(axes, context.bound)
    w = readout.w.spread(axes, readout.full)

    def cut(t: Tensor, run: Run) -> Tensor:
        flat = t.flatten(0, 2).unsqueeze(1)
        return F.unfold(flat, kernel, dilation, padding, stride).unflatten(0, t.shape[:3])  # type: ignore[arg-type]

    shape = (*w.shape[:2], *before[2:])
    return single(node, Readout(w.then(cut, shape=shape), readout.m, before))


# ------------------------------------------------------------------ linear layers and convolutions


def apply_matrix(
    context: Context, readout: Readout, axis: int, weight: Lazy, width: int
) -> Readout:
    """Readout of the operand of `out[axis=o] = sum_i weight[o, i] * in[axis=i]`."""
    if readout.w.full(axis) and readout.m.full(axis):
        readout = readout.spread_products([axis], context.bound)
        refuse_large(readout.r * math.prod(readout.m.shape) * width * readout.m.width)
    w, m, full = readout.w, readout.m, readout.full
    new_full = tuple(width if a == axis else s for a, s in enumerate(full))
    place = axis + 1
    if w.full(axis) or readout.dense:
        w = w.spread([axis], full)
        shape = tuple(width if a == axis else s for a, s in enumerate(w.shape))
        w = w.then(
            lambda t, run: (t.movedim(place, -1) @ run.get(weight)).movedim(-1, place), shape=shape
        )
    else:
        m = m.spread([axis], full)
        shape = tuple(width if a == axis else s for a, s in enumerate(m.shape))
        refuse_large(m.r * math.prod(shape) * m.width // 2)  # widest in the middle of an MLP
        m = m.then(
            lambda t, run: (t.movedim(place, -1) @ run.weights.get(weight)).movedim(-1, place),
            shape=shape,
        )
    return Readout(w, m, new_full)


def add_bias(
    context: Context, pulled: Pulled, node: fx.Node, readout: Readout, axis: int, bias: object
) -> None:
    """Hand over the bias that `node` adds along `axis`."""
    if bias is None:
        return
    value = context.facts.constant(bias)
    constant_axis(context, pulled, node, readout, axis, value)


def constant_axis(
    context: Context, pulled: Pulled, node: fx.Node, readout: Readout, axis: int, value: Lazy
) -> None:
    """Hand over a constant that varies along one axis only, contracted with `M` right away."""
    w, m, full = readout.w, readout.m, readout.full
    thin = tuple(1 if a == axis else s for a, s in enumerate(full))
    if w.full(axis) or readout.dense:
        w = w.spread([axis], full)
        if m.full(axis):
            shaped = _along(value, axis, len(full))
            pulled.constants.append(
                Constant(readout, shaped, node, True, context.facts.before_batch(node))
            )
            return
        w = w.dense([axis], full)
        shape = tuple(1 if a == axis else s for a, s in enumerate(w.shape))
        view = [1] * (len(full) + 1)
        view[axis + 1] = -1
        w = w.then(
            lambda t, run: (t * run.get(value).view(view)).sum(axis + 1, keepdim=True), shape=shape
        )
    else:
        m = m.spread([axis], full)
        shape = tuple(1 if a == axis else s for a, s in enumerate(m.shape))
        view = [1] * (len(full) + 2)
        view[axis + 1] = -1
        m = m.then(
            lambda t, run: (t * run.get(value).view(view)).sum(axis + 1, keepdim=True), shape=shape
        )
    pulled.constants.append(
        Constant(Readout(w, m, thin), None, node, True, context.facts.before_batch(node), axis)
    )


def _along(value: Lazy, axis: int, rank: int) -> Lazy:
    view = [1] * rank
    view[axis] = -1
    return Lazy(lambda run: run.get(value).view(view), static=value.static)


@rule("linear")
def _linear(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    data, weight = node.args[0], node.args[1]
    if context.facts.depends(weight):
        raise TooWide("a weight that depends on the images")
    axis = len(readout.full) - 1
    width = context.facts.shape(data)[-1]  # type: ignore[arg-type]
    lazy = context.facts.constant(weight)
    pulled = Pulled([(data, apply_matrix(context, readout, axis, lazy, width))])  # type: ignore[list-item]
    add_bias(context, pulled, node, readout, axis, argument(node, 2, "bias"))
    return pulled


@rule("addmm")
def _addmm(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    bias, data, weight = node.args[:3]
    if context.facts.depends(weight) or context.facts.depends(bias) or node.kwargs:
        raise TooWide("a matrix product of two image-dependent tensors")
    pulled = _times_constant(context, node, readout, data, weight)  # type: ignore[arg-type]
    add_bias(context, pulled, node, readout, len(readout.full) - 1, bias)
    return pulled


@rule("matmul", "mm", "bmm")
def _matmul(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    left, right = node.args[:2]
    if context.facts.depends(left) and not context.facts.depends(right):
        return _times_constant(context, node, readout, left, right)  # type: ignore[arg-type]
    if context.facts.depends(right) and not context.facts.depends(left):
        return _constant_times(context, node, readout, left, right)  # type: ignore[arg-type]
    raise TooWide("a matrix product of two image-dependent tensors")


def _transposed(lazy: Lazy) -> Lazy:
    return Lazy(lambda run: run.get(lazy).transpose(-1, -2), static=lazy.static)


def _squeezed(lazy: Lazy) -> Lazy:
    return Lazy(lambda run: run.get(lazy).flatten(0, -3), static=lazy.static)


def _plain_matrix(context: Context, operand: fx.Node) -> Lazy:
    shape = context.facts.shape(operand)
    if any(dim != 1 for dim in shape[:-2]):
        raise TooWide("a product with a stack of constant matrices")
    lazy = context.facts.constant(operand)
    if len(shape) == 2:
        return lazy
    return Lazy(lambda run: run.get(lazy).reshape(run.get(lazy).shape[-2:]), static=lazy.static)


def _times_constant(
    context: Context, node: fx.Node, readout: Readout, data: fx.Node, weight: fx.Node
) -> Pulled:
    axis = len(readout.full) - 1
    lazy = _transposed(_plain_matrix(context, weight))
    before = context.facts.shape(data)
    return Pulled([(data, apply_matrix(context, readout, axis, lazy, before[-1]))])


def _constant_times(
    context: Context, node: fx.Node, readout: Readout, weight: fx.Node, data: fx.Node
) -> Pulled:
    axis = len(readout.full) - 2
    before = context.facts.shape(data)
    lazy = _plain_matrix(context, weight)
    pulled = apply_matrix(context, readout, axis, lazy, before[-2])
    return Pulled([(data, unbroadcast(context, pulled, before))])
