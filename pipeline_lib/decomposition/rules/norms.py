"""Rules of factors, gates, additions of constants, and of norms with frozen statistics."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from pipeline_lib.decomposition.operations import op_name
from pipeline_lib.decomposition.readout import (
    Box,
    Lazy,
    Readout,
    Run,
    TooWide,
    Weights,
)
from pipeline_lib.decomposition.rules.base import Constant, Context, Pulled, argument, rule, single
from pipeline_lib.decomposition.rules.layers import add_bias, constant_axis
from pipeline_lib.decomposition.rules.parts import hand_over
from pipeline_lib.decomposition.rules.shapes import summed, unbroadcast


def scale(context: Context, readout: Readout, operand: object, *, divide: bool) -> Readout:
    """Readout of `x` where the result is `x * operand` (or `x / operand`), operand constant."""
    facts = context.facts
    value = facts.constant(operand)
    rank = len(readout.full)
    shape = (1,) * (rank - len(facts.operand_shape(operand))) + facts.operand_shape(operand)
    varying = [axis for axis, size in enumerate(shape) if size != 1]
    w, m = readout.w, readout.m

    def factor(t: Tensor, run: Run) -> Tensor:
        f = run.get(value).to(t.dtype).to(t.device)
        f = f.reshape((1,) * (rank - f.dim()) + tuple(f.shape))
        return 1 / f if divide else f

    if value.static and not readout.dense and all(not w.full(axis) for axis in varying):
        m = m.spread(varying, readout.full)
        return Readout(w, m.then(lambda t, run: t * factor(t, run)[None, ..., None]), readout.full)
    w = w.spread([axis for axis in varying if not w.full(axis)], readout.full)
    boxes = w.box
    return Readout(
        w.then(lambda t, run: t * boxed(factor(t, run), boxes)[None], static=value.static),
        m,
        readout.full,
    )


def boxed(value: Tensor, boxes: Box) -> Tensor:
    """The part of a tensor that lies in the box of a factor."""
    for axis, box in enumerate(boxes):
        if box is not None and value.shape[axis] != 1:
            value = value.narrow(axis, *box)
    return value


def gate(context: Context, readout: Readout, node: fx.Node, *, divide: bool) -> Readout:
    """Readout of `x` where the result is `x * node` (or `x / node`) with the gate frozen."""
    full = readout.full
    rank = len(full)
    context.tap(node)
    shape = context.facts.shape(node)
    shape = (1,) * (rank - len(shape)) + shape
    varying = [axis for axis, size in enumerate(shape) if size != 1]
    thin = [axis for axis in varying if not readout.w.full(axis)]
    w = readout.w.spread(thin, full)
    boxes = w.box

    def gated(t: Tensor, run: Run) -> Tensor:
        g = run.values[node]
        g = boxed(g.reshape((1,) * (rank - g.dim()) + tuple(g.shape)), boxes)
        return t / g[None] if divide else t * g[None]

    return Readout(w.then(gated, static=False), readout.m, full)


@rule("mul", "div")
def _mul(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    left, right = node.args[:2]
    divide = op_name(node) == "div"
    facts = context.facts
    if divide and node.kwargs.get("rounding_mode") is not None:
        raise TooWide("a rounding division")
    if facts.depends(left) and not facts.depends(right):
        data, other = left, right
    elif facts.depends(right) and not facts.depends(left) and not divide:
        data, other = right, left
    else:
        raise TooWide("a product of two image-dependent tensors")
    scaled = scale(context, readout, other, divide=divide)
    return Pulled([(data, unbroadcast(context, scaled, facts.shape(data)))])  # type: ignore[arg-type,list-item]


@rule("neg")
def _neg(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    return single(node, scale(context, readout, -1.0, divide=False))


@rule("add", "sub", "rsub")
def _add(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    pulled = Pulled()
    for position, operand in enumerate(node.args[:2]):
        current = readout
        if isinstance(operand, (int, float)) and operand == 0:
            continue
        factor = addend_factor(node, position)
        if factor != 1:
            current = scale(context, current, factor, divide=False)
        if context.facts.depends(operand):
            current = unbroadcast(context, current, context.facts.shape(operand))  # type: ignore[arg-type]
        hand_over(context, pulled, node, operand, current, bias=False)
    return pulled


def addend_factor(node: fx.Node, position: int) -> float:
    """Factor with which an addition takes its operand (`alpha`, and the sign of a difference)."""
    name = op_name(node)
    alpha = float(node.kwargs.get("alpha", 1))  # type: ignore[arg-type]
    if name == "add":
        return alpha if position == 1 else 1.0
    if name == "sub":
        return -alpha if position == 1 else 1.0
    return -alpha if position == 0 else 1.0


@rule("batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
def _batch_norm(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    facts = context.facts
    data, gamma, beta, mean, var = node.args[:5]
    training, eps = argument(node, 5, "training"), argument(node, 7, "eps", 1e-5)
    if training:
        raise TooWide("batch statistics of a norm in train mode")

    def factor(run: Run) -> Tensor:
        inverse = (run.get(facts.constant(var)) + eps).rsqrt()
        return inverse if gamma is None else inverse * run.get(facts.constant(gamma))

    scales = Lazy(factor, static=True)

    def offset(run: Run) -> Tensor:
        moved = -run.get(facts.constant(mean)) * run.get(scales)
        return moved if beta is None else moved + run.get(facts.constant(beta))

    pulled = Pulled()
    constant_axis(context, pulled, node, readout, 1, Lazy(offset, static=True))
    rank = len(readout.full)
    view = [1] * rank
    view[1] = -1
    w, m = readout.w, readout.m
    if w.full(1) or readout.dense:
        w = w.spread([1], readout.full)
        w = w.then(lambda t, run: t * run.get(scales).view(view)[None])
    else:
        m = m.spread([1], readout.full)
        m = m.then(lambda t, run: t * run.get(scales).view(view)[None, ..., None])
    pulled.inputs.append((data, Readout(w, m, readout.full)))  # type: ignore[arg-type]
    return pulled


@rule("layer_norm", "rms_norm", "native_layer_norm")
def _layer_norm(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    facts = context.facts
    centred = op_name(node) != "rms_norm"
    data, normalised = node.args[0], node.args[1]
    gamma = argument(node, 2, "weight")
    beta = argument(node, 3, "bias") if centred else None
    eps = argument(node, 4 if centred else 3, "eps", None if not centred else 1e-5)
    rank = len(readout.full)
    axes = list(range(rank - len(normalised), rank))  # type: ignore[arg-type]
    pulled = Pulled()
    if any(readout.w.full(axis) for axis in axes) and not readout.dense:
        readout = readout.spread_weights(axes, context.bound)
    if beta is not None:
        if len(axes) == 1:
            add_bias(context, pulled, node, readout, axes[0], beta)
        else:
            pulled.constants.append(
                Constant(readout, facts.constant(beta), node, True, facts.before_batch(node))
            )
    places = [axis + 1 for axis in axes]
    gain = facts.constant(gamma) if gamma is not None else None

    def weigh(t: Tensor, run: Run) -> Tensor:
        if gain is not None:
            factor = run.get(gain).to(t.dtype)
            t = t * (factor if dense else factor[..., None])
        return t - t.mean(places, keepdim=True) if centred else t

    dense = readout.dense
    if dense:
        readout = Readout(readout.w.spread(axes, readout.full).then(weigh), readout.m, readout.full)
        m = readout.m
    else:
        m = readout.m.spread(axes, readout.full).then(weigh)
    source = context.tap(data)  # type: ignore[arg-type]
    boxes = readout.w.box

    def inverse_deviation(run: Run) -> Tensor:
        x = boxed(run.values[source], boxes)
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        small = torch.finfo(x.dtype).eps if eps is None else eps
        if centred:
            spread = x.var(axes, unbiased=False, keepdim=True)
        else:
            spread = x.square().mean(axes, keepdim=True)
        return (spread + small).rsqrt()

    statistics = Lazy(inverse_deviation, static=False)
    w = _times_statistics(readout, statistics, axes)
    pulled.inputs.append((data, Readout(w, m, readout.full)))  # type: ignore[arg-type]
    return pulled


def _times_statistics(readout: Readout, statistics: Lazy, axes: list[int]) -> Weights:
    """`w` times frozen statistics that vary along every axis but `axes`."""
    w, full = readout.w, readout.full
    shape = tuple(s if a in axes else full[a] for a, s in enumerate(w.shape))
    return w.then(lambda t, run: t * run.get(statistics)[None], shape=shape, static=False)


@rule("group_norm", "native_group_norm")
def _group_norm(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    facts = context.facts
    data, groups = node.args[0], node.args[1]
    gamma, beta = argument(node, 2, "weight"), argument(node, 3, "bias")
    eps = argument(node, 4, "eps", 1e-5)
    if groups != 1 and not readout.dense:
        raise TooWide("a group norm with several groups")
    if readout.w.full(1) and not readout.dense:
        raise TooWide("a factor that varies along the channels of a norm")
    pulled = Pulled()
    add_bias(context, pulled, node, readout, 1, beta)
    if readout.dense:
        pulled.inputs.append((data, _through_groups(context, node, readout, eps)))  # type: ignore[arg-type]
        return pulled
    full = readout.full
    rank = len(full)
    axes = list(range(1, rank))
    m = readout.m.spread([1], full)
    if gamma is not None:
        gain = facts.constant(gamma)
        view = [1] * (rank + 2)
        view[2] = -1
        m = m.then(lambda t, run: t * run.get(gain).view(view))
    source = context.tap(data)  # type: ignore[arg-type]

    def inverse_deviation(run: Run) -> Tensor:
        x = run.values[source]
        return (x.var(axes, unbiased=False, keepdim=True) + eps).rsqrt()

    statistics = Lazy(inverse_deviation, static=False)
    w = readout.w.spread([0], full)
    w = w.then(lambda t, run: t * run.get(statistics)[None], static=False)
    count = math.prod(full[1:])
    spatial = axes[1:]
    pooled = Readout(w, m, full)
    for axis in spatial:
        pooled = summed(context, pooled, axis)
    centre_w = pooled.w.then(lambda t, run: -t / count)
    centre_m = pooled.m.then(lambda t, run: t.sum(2, keepdim=True), shape=(1,) * rank)
    pulled.inputs.append((data, Readout(w, m, full)))  # type: ignore[arg-type]
    pulled.inputs.append((data, Readout(centre_w, centre_m, full)))  # type: ignore[arg-type]
    return pulled


def _through_groups(context: Context, node: fx.Node, readout: Readout, eps: float) -> Readout:
    """Dense readout through a group norm with its statistics frozen."""
    source = context.tap(node.args[0])  # type: ignore[arg-type]
    groups, gamma = int(node.args[1]), argument(node, 2, "weight")  # type: ignore[call-overload]
    gain = context.facts.constant(gamma) if gamma is not None else None
    full = readout.full
    axes = list(range(len(full)))
    view = [1, -1] + [1] * (len(full) - 2)

    def pulled(t: Tensor, run: Run) -> Tensor:
        x = run.values[source].unflatten(1, (groups, -1)).flatten(2)
        inverse = (x.var(-1, unbiased=False, keepdim=True) + eps).rsqrt()
        weighed = t if gain is None else t * run.get(gain).view(view)
        parts = weighed.unflatten(2, (groups, -1)).flatten(3)
        return ((parts - parts.mean(-1, keepdim=True)) * inverse).reshape(t.shape)

    return Readout(readout.w.spread(axes, full).then(pulled, static=False), readout.m, full)
