"""Rules of convolutions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

from pipeline_lib.decomposition.operations import op_name
from pipeline_lib.decomposition.readout import (
    Lazy,
    Readout,
    Run,
    Shape,
    TooWide,
    all_indices,
    refuse_large,
)
from pipeline_lib.decomposition.rules.base import Context, Pulled, argument, rule
from pipeline_lib.decomposition.rules.layers import add_bias, apply_matrix


@rule("conv2d", "conv1d", "conv3d", "convolution")
def _convolution(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    facts = context.facts
    data, weight = node.args[0], node.args[1]
    before = facts.shape(data)  # type: ignore[arg-type]
    kernel = facts.shape(weight)[2:]  # type: ignore[arg-type]
    count = len(kernel)
    if op_name(node) == "convolution":
        bias, stride, padding, dilation, transposed, _, groups = node.args[2:9]
        if transposed:
            raise TooWide("a transposed convolution")
    else:
        bias = argument(node, 2, "bias")
        stride, padding = argument(node, 3, "stride", 1), argument(node, 4, "padding", 0)
        dilation, groups = argument(node, 5, "dilation", 1), argument(node, 6, "groups", 1)
    stride, dilation = _each(stride, count), _each(dilation, count)
    padding = _paddings(padding, kernel, dilation, count)
    pulled = Pulled()
    add_bias(context, pulled, node, readout, 1, bias)
    lazy = facts.constant(weight)
    simple = all(k == 1 for k in kernel) and all(s == 1 for s in stride) and groups == 1
    if simple and not any(padding):
        flat = Lazy(lambda run: run.get(lazy).flatten(1), static=True)
        pulled.inputs.append((data, apply_matrix(context, readout, 1, flat, before[1])))  # type: ignore[arg-type]
        return pulled
    pulled.inputs.append(
        (
            data,
            _pull_kernel(context, readout, lazy, before, kernel, stride, padding, dilation, groups),
        )  # type: ignore[arg-type]
    )
    return pulled


def _each(value: object, count: int) -> list[int]:
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    return [int(v) for v in (items * count if len(items) == 1 else items)]  # type: ignore[call-overload]


def _paddings(padding: object, kernel: Shape, dilation: list[int], count: int) -> list[int]:
    if padding == "valid":
        return [0] * count
    if padding == "same":
        return [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
    return _each(padding, count)


def _pull_kernel(
    context: Context, readout: Readout, weight: Lazy, before: Shape, kernel: Shape,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Readout:  # fmt: skip
    """Every position of the kernel is one product: `w` shifted by it, `M` through its slice."""
    rank, count = len(before), len(kernel)
    axes = list(range(2, 2 + count))
    taps = math.prod(kernel)
    if readout.dense:
        return _pull_dense_kernel(readout, weight, before, stride, padding, dilation, groups)
    if readout.w.full(1):
        readout = readout.spread_weights([1], context.bound)
    if any(readout.m.full(axis) for axis in axes):
        readout = readout.spread_products(axes, context.bound)
    if readout.r * taps > context.bound:
        raise TooWide(f"{readout.r * taps} products, more than {context.bound}")
    refuse_large(readout.r * taps * before[1] * readout.m.width)
    w = readout.w.spread(axes, readout.full)
    m = readout.m.spread([1], readout.full)
    offsets = all_indices(kernel)
    inner = [before[axis] for axis in axes]

    def shift(t: Tensor, run: Run) -> Tensor:
        out = []
        padded = [n + 2 * p for n, p in zip(inner, padding, strict=True)]
        for offset in offsets:
            big = t.new_zeros(*t.shape[: rank + 1 - count], *padded)
            index: list[object] = [...]
            for i, o in enumerate(offset):
                begin = o * dilation[i]
                index.append(
                    slice(begin, begin + stride[i] * (t.shape[-count + i] - 1) + 1, stride[i])
                )
            big[tuple(index)] = t
            crop: list[object] = [...]
            crop += [slice(p, p + n) for n, p in zip(inner, padding, strict=True)]
            out.append(big[tuple(crop)])
        return torch.stack(out, 1).flatten(0, 1)

    def mix(t: Tensor, run: Run) -> Tensor:
        r, width = t.shape[0], t.shape[-1]
        kernels = run.weights.get(weight).flatten(2)  # [o, i/groups, taps]
        rows = t.reshape(r, groups, -1, width)
        kernels = kernels.view(groups, -1, kernels.shape[1], taps)
        mixed = torch.einsum("rgod,goik->rkgid", rows, kernels)
        return mixed.reshape(r * taps, 1, before[1], *([1] * count), width)

    w_shape = tuple(before[a] if a in axes else s for a, s in enumerate(w.shape))
    m_shape = (1, before[1], *([1] * count))
    return Readout(
        w.then(shift, shape=w_shape, r=w.r * taps),
        m.then(mix, shape=m_shape, r=m.r * taps),
        before,
    )


def _pull_dense_kernel(
    readout: Readout, weight: Lazy, before: Shape, stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Readout:  # fmt: skip
    """The adjoint of the convolution, on every column."""
    axes = list(range(1, len(before)))
    inner = [before[axis] for axis in axes]
    adjoint = {1: conv1d_input, 2: conv2d_input, 3: conv3d_input}[len(stride)]

    def pulled(t: Tensor, run: Run) -> Tensor:
        flat = t.flatten(0, 1)
        back = adjoint(
            [flat.shape[0], *inner], run.get(weight), flat, stride, padding, dilation, groups
        )
        return back.unflatten(0, t.shape[:2])

    w = readout.w.spread(axes, readout.full)
    shape = tuple(before[a] if a in axes else s for a, s in enumerate(w.shape))
    return Readout(w.then(pulled, shape=shape), readout.m, before)


@rule("conv_transpose2d")
def _transposed(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    """A transposed convolution writes each input to a window of the result, which reads it back."""
    facts, (data, weight) = context.facts, node.args[:2]
    if facts.depends(weight):
        raise TooWide("a weight that depends on the images")
    before, kernel = facts.shape(data), facts.shape(weight)[2:]  # type: ignore[arg-type]
    settings = [
        _each(argument(node, place, name, default), 2)
        for place, name, default in ((7, "dilation", 1), (4, "padding", 0), (3, "stride", 1))
    ]
    groups = int(argument(node, 6, "groups", 1))  # type: ignore[call-overload]
    pulled, taps, lazy = Pulled(), math.prod(kernel), facts.constant(weight)
    add_bias(context, pulled, node, readout, 1, argument(node, 2, "bias"))
    if readout.dense:
        dilation, padding, stride = settings
        settled = (before, stride, padding, dilation, groups)
        pulled.inputs.append((data, _dense_transposed(readout, lazy, *settled)))  # type: ignore[arg-type]
        return pulled
    if readout.w.full(1):
        readout = readout.spread_weights([1], context.bound)
    if any(readout.m.full(axis) for axis in (2, 3)):
        readout = readout.spread_products([2, 3], context.bound)
    if readout.r * taps > context.bound:
        raise TooWide(f"{readout.r * taps} products, more than {context.bound}")
    refuse_large(readout.r * taps * before[1] * readout.m.width)
    w, m = readout.w.spread([2, 3], readout.full), readout.m.spread([1], readout.full)

    def cut(t: Tensor, run: Run) -> Tensor:
        flat = F.unfold(t.flatten(0, 2).unsqueeze(1), kernel, *settings)
        apart = flat.unflatten(0, t.shape[:3]).movedim(3, 1).flatten(0, 1)
        return apart.unflatten(-1, before[2:])

    def mix(t: Tensor, run: Run) -> Tensor:
        rows = t.reshape(t.shape[0], groups, -1, t.shape[-1])
        kernels = run.weights.get(lazy).flatten(2).unflatten(0, (groups, -1))
        mixed = torch.einsum("rgod,giok->rkgid", rows, kernels)
        return mixed.reshape(t.shape[0] * taps, 1, before[1], 1, 1, t.shape[-1])

    w = w.then(cut, shape=(*w.shape[:2], *before[2:]), r=w.r * taps)
    m = m.then(mix, shape=(1, before[1], 1, 1), r=m.r * taps)
    pulled.inputs.append((data, Readout(w, m, before)))  # type: ignore[arg-type]
    return pulled


def _dense_transposed(
    readout: Readout, weight: Lazy, before: Shape, stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Readout:  # fmt: skip
    """The convolution itself, on every column."""

    def pulled(t: Tensor, run: Run) -> Tensor:
        kernels = run.get(weight)
        back = F.conv2d(t.flatten(0, 1), kernels, None, stride, padding, dilation, groups)
        return back.unflatten(0, t.shape[:2])

    w = readout.w.spread([1, 2, 3], readout.full)
    return Readout(w.then(pulled, shape=(w.shape[0], *before[1:])), readout.m, before)
