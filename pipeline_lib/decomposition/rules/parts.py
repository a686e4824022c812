"""Rules of parts: slices, selections, concatenations, shifts, padding."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from pipeline_lib.decomposition.operations import op_name
from pipeline_lib.decomposition.readout import (
    Readout,
    Run,
    TooWide,
    Weights,
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


def embed(readout: Readout, axis: int, start: int, size: int) -> Readout:
    """Readout of a tensor of which the result is the part `start … start+len` along `axis`."""
    w, m = readout.w, readout.m
    count = readout.full[axis]
    full = tuple(size if a == axis else s for a, s in enumerate(readout.full))
    if count == size:
        return readout
    if size < 0:
        raise TooWide("a part along the batch axis")
    if m.full(axis):
        place = 2 * (len(full) - 1 - axis) + 2
        pads = [0, 0] * (len(full) + 1)
        pads[place], pads[place + 1] = start, size - start - count
        shape = tuple(size if a == axis else s for a, s in enumerate(m.shape))
        m = m.then(lambda t, run: F.pad(t, pads), shape=shape)
    if w.full(axis) or not m.full(axis):
        inner = w.box[axis] or (0, count)
        box = tuple((start + inner[0], inner[1]) if a == axis else b for a, b in enumerate(w.box))
        shape = tuple(size if a == axis else s for a, s in enumerate(w.shape))
        sizes = Weights(w.lazy, w.r, shape, box)
        sized = any(dim < 0 for dim in shape)
        w = w.then(
            lambda t, run: t.expand(sizes.sizes(run.batch)), shape=shape, box=box, static=not sized
        )
    return Readout(w, m, full)


def part(readout: Readout, axis: int, start: int, count: int) -> Readout | None:
    """Readout of the part `start … start+count` of the result along `axis`; None where w is 0."""
    w, m = readout.w, readout.m
    full = tuple(count if a == axis else s for a, s in enumerate(readout.full))
    if w.full(axis):
        begin, stop = start, start + count
        inner = w.box[axis]
        offset = 0
        if inner is not None:
            begin, stop = max(begin, inner[0]), min(stop, inner[0] + inner[1])
            offset = inner[0]
            if begin >= stop:
                return None
        here, size = begin - offset, stop - begin
        covered = (begin, stop) == (start, start + count)
        new_box = None if covered else (begin - start, size)
        w = w.then(
            lambda t, run: t.narrow(axis + 1, here, size),
            shape=tuple(count if a == axis else s for a, s in enumerate(w.shape)),
            box=tuple(new_box if a == axis else b for a, b in enumerate(w.box)),
        )
    if m.full(axis):
        shape = tuple(count if a == axis else s for a, s in enumerate(m.shape))
        m = m.then(lambda t, run: t.narrow(axis + 1, start, count), shape=shape)
    return Readout(w, m, full)


def _with_axis(context: Context, readout: Readout, axis: int) -> Readout:
    """Put an axis of length 1 back that the operation removed."""
    shape = list(readout.full)
    shape.insert(axis, 1)
    return reshape(readout, tuple(shape), context.bound)


@rule("select")
def _select(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    before = context.facts.shape(node.args[0])  # type: ignore[arg-type]
    axis, index = axis_of(node.args[1], len(before)), node.args[2]  # type: ignore[arg-type]
    start = index % before[axis]  # type: ignore[operator]
    return single(node, embed(_with_axis(context, readout, axis), axis, start, before[axis]))


@rule("slice", "narrow")
def _slice(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    before = context.facts.shape(node.args[0])  # type: ignore[arg-type]
    axis = axis_of(argument(node, 1, "dim", 0), len(before))  # type: ignore[arg-type]
    size = before[axis]
    start = argument(node, 2, "start", 0) or 0
    step = argument(node, 4, "step", 1) or 1
    if readout.full[axis] == size:
        return single(node, readout)
    if isinstance(start, fx.Node) or size < 0:
        raise TooWide("a slice along the batch axis")
    start = min(start if start >= 0 else start + size, size)  # type: ignore[operator]
    if step == 1:
        return single(node, embed(readout, axis, start, size))
    picked = torch.arange(size)[start::step]
    return single(node, _scatter(context, readout, axis, lambda run: picked, size))


@rule("slice_scatter", "select_scatter")
def _slice_scatter(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    """A tensor with a part replaced by another: each is read where it shows."""
    base, source = node.args[:2]
    rank, full = len(readout.full), readout.full
    if context.facts.operand_shape(source) == full:
        pulled = Pulled()
        hand_over(context, pulled, node, source, readout, bias=False)
        return pulled
    axis = axis_of(argument(node, 2, "dim", 0), rank)  # type: ignore[arg-type]
    size = full[axis]
    if op_name(node) == "select_scatter":
        start, count = node.args[3] % size, 1  # type: ignore[operator]
    else:
        start, stop = argument(node, 3, "start") or 0, argument(node, 4, "end", size)
        stop = size if stop is None else min(stop, size)  # type: ignore[type-var]
        start, stop = (p if p >= 0 else p + size for p in (start, stop))  # type: ignore[operator]
        count = stop - start
    if size < 0 or argument(node, 5, "step", 1) != 1:
        raise TooWide("a part along the batch axis or with steps is replaced")
    pulled = Pulled()
    for begin, length_ in ((0, start), (start + count, size - start - count)):
        piece = part(readout, axis, begin, length_) if length_ > 0 else None
        if piece is not None:
            piece = embed(piece, axis, begin, size)
            hand_over(context, pulled, node, base, piece, bias=False)
    piece = part(readout, axis, start, count)
    if piece is not None:
        before = context.facts.operand_shape(source)
        piece = (
            unbroadcast(context, piece, before)
            if len(before) == rank
            else reshape(piece, before, context.bound)
        )
        hand_over(context, pulled, node, source, piece, bias=False)
    return pulled


def _scatter(
    context: Context, readout: Readout, axis: int, index: Callable[[Run], Tensor], size: int
) -> Readout:
    """Readout of a tensor of which the result is a selection by `index` along `axis`."""
    w, m, full = readout.w, readout.m, readout.full
    new_full = tuple(size if a == axis else s for a, s in enumerate(full))

    def scatter(t: Tensor, run: Run) -> Tensor:
        shape = list(t.shape)
        shape[axis + 1] = size
        where_to = index(run).to(t.device)
        return t.new_zeros(shape).index_add(axis + 1, where_to, t)

    if m.full(axis) and not w.full(axis):
        shape = tuple(size if a == axis else s for a, s in enumerate(m.shape))
        return Readout(w, m.then(scatter, shape=shape), new_full)
    if m.full(axis):
        readout = readout.spread_products([axis], context.bound)
        w, m = readout.w, readout.m
    w = w.spread([axis], full)
    shape = tuple(size if a == axis else s for a, s in enumerate(w.shape))
    return Readout(w.then(scatter, shape=shape), m, new_full)


@rule("index_select")
def _index_select(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    before = context.facts.shape(node.args[0])  # type: ignore[arg-type]
    axis = axis_of(node.args[1], len(before))  # type: ignore[arg-type]
    if context.facts.depends(node.args[2]) or before[axis] < 0:
        raise TooWide("an index that depends on the images")
    index = context.facts.constant(node.args[2])
    return single(node, _scatter(context, readout, axis, lambda run: run.get(index), before[axis]))


@rule("index")
def _index(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    before = context.facts.shape(node.args[0])  # type: ignore[arg-type]
    indices = list(node.args[1])  # type: ignore[arg-type]
    used = [axis for axis, index in enumerate(indices) if index is not None]
    if len(used) != 1 or context.facts.depends(indices[used[0]]) or before[used[0]] < 0:
        raise TooWide("indexing by several or by image-dependent indices")
    axis = used[0]
    index_shape = context.facts.shape(indices[axis])
    if len(index_shape) > 1:
        flat = (
            *readout.full[:axis],
            math.prod(index_shape),
            *readout.full[axis + len(index_shape) :],
        )
        readout = reshape(readout, flat, context.bound)
    index = context.facts.constant(indices[axis])
    return single(
        node,
        _scatter(context, readout, axis, lambda run: run.get(index).flatten(), before[axis]),
    )


@rule("getitem")
def _getitem(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    source, index = node.args
    name = op_name(source)  # type: ignore[arg-type]
    whole = source.args[0]  # type: ignore[union-attr]
    if name == "unbind":
        axis = axis_of(argument(source, 1, "dim", 0), len(readout.full) + 1)  # type: ignore[arg-type]
        before = context.facts.shape(whole)  # type: ignore[arg-type]
        embedded = embed(_with_axis(context, readout, axis), axis, index, before[axis])  # type: ignore[arg-type]
        return Pulled([(whole, embedded)])  # type: ignore[list-item]
    if name in ("split", "split_with_sizes", "chunk", "tensor_split"):
        before = context.facts.shape(whole)  # type: ignore[arg-type]
        position = 1 if name == "tensor_split" else 2
        axis = axis_of(argument(source, position, "dim", 0), len(before))  # type: ignore[arg-type]
        parts = source.meta["val"]  # type: ignore[union-attr]
        start = sum(int(piece.shape[axis]) for piece in parts[:index])  # type: ignore[misc]
        return Pulled([(whole, embed(readout, axis, start, before[axis]))])  # type: ignore[list-item]
    raise TooWide(f"a result of {name}")


@rule("cat", "concat", "concatenate")
def _cat(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    operands = list(node.args[0])  # type: ignore[arg-type]
    axis = axis_of(argument(node, 1, "dim", 0), len(readout.full))  # type: ignore[arg-type]
    pulled = Pulled()
    start = 0
    for operand in operands:
        count = context.facts.shape(operand)[axis]
        if count < 0:
            raise TooWide("concatenation along the batch axis")
        piece = part(readout, axis, start, count)
        start += count
        if piece is not None:
            hand_over(context, pulled, node, operand, piece, bias=False)
    return pulled


@rule("stack")
def _stack(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    operands = list(node.args[0])  # type: ignore[arg-type]
    axis = axis_of(argument(node, 1, "dim", 0), len(readout.full))  # type: ignore[arg-type]
    pulled = Pulled()
    for position, operand in enumerate(operands):
        piece = part(readout, axis, position, 1)
        if piece is not None:
            flat = tuple(s for a, s in enumerate(piece.full) if a != axis)
            piece = reshape(piece, flat, context.bound)
            hand_over(context, pulled, node, operand, piece, bias=False)
    return pulled


def hand_over(
    context: Context,
    pulled: Pulled,
    node: fx.Node,
    operand: object,
    readout: Readout,
    *,
    bias: bool,
) -> None:
    """Send a readout to an operand: onwards where it depends on the images, else as a constant."""
    if context.facts.depends(operand):
        pulled.inputs.append((operand, readout))  # type: ignore[arg-type]
    else:
        value = context.facts.constant(operand)
        before = context.facts.before_batch(node)
        pulled.constants.append(Constant(readout, value, node, bias, before))


@rule("roll")
def _roll(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    shifts = node.args[1]
    axes = argument(node, 2, "dims", [])
    shifts = shifts if isinstance(shifts, (list, tuple)) else [shifts]
    axes = axes if isinstance(axes, (list, tuple)) else [axes]
    w, m = readout.w, readout.m
    for shift, axis in zip(shifts, axes, strict=True):  # type: ignore[arg-type]
        axis = axis_of(axis, len(readout.full))
        if readout.full[axis] < 0:
            raise TooWide("a roll along the batch axis")
        back, place = -shift, axis + 1  # type: ignore[operator]
        if w.full(axis):
            w = w.dense([axis], readout.full).then(_rolled(back, place))
        if m.full(axis):
            m = m.then(_rolled(back, place))
    return single(node, Readout(w, m, readout.full))


def _rolled(shift: int, axis: int) -> Callable[[Tensor, Run], Tensor]:
    return lambda t, run: torch.roll(t, shift, axis)


@rule("flip")
def _flip(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    w, m = readout.w, readout.m
    for axis in node.args[1]:  # type: ignore[union-attr]
        axis = axis_of(axis, len(readout.full))
        place = [axis + 1]
        if w.full(axis):
            w = w.dense([axis], readout.full).then(_flipped(place))
        if m.full(axis):
            m = m.then(_flipped(place))
    return single(node, Readout(w, m, readout.full))


def _flipped(axes: list[int]) -> Callable[[Tensor, Run], Tensor]:
    return lambda t, run: torch.flip(t, axes)


@rule("pad", "constant_pad_nd")
def _pad(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    pads = list(node.args[1])  # type: ignore[arg-type]
    mode = argument(node, 2, "mode", "constant") if op_name(node) == "pad" else "constant"
    value = argument(node, 3 if op_name(node) == "pad" else 2, "value", 0.0)
    never_chosen = value == -math.inf and all(op_name(u).startswith("max_pool") for u in node.users)
    if mode != "constant" or not (value in (None, 0, 0.0) or never_chosen):
        raise TooWide(f"padding in mode {mode!r} with value {value}")
    before = context.facts.shape(node.args[0])  # type: ignore[arg-type]
    rank = len(before)
    current: Readout | None = readout
    for position in range(len(pads) // 2):
        axis = rank - 1 - position
        front, back = pads[2 * position], pads[2 * position + 1]
        if front < 0 or back < 0:
            raise TooWide("negative padding")
        if front or back:
            current = part(current, axis, front, before[axis])  # type: ignore[arg-type]
            if current is None:
                return Pulled()
    return single(node, current)  # type: ignore[arg-type]
