"""Rules: how the readout of an operation's result becomes the readout of its operand.

One function per kind of linear operation; an operation without a rule ends the direct path. Norms
are linear with their statistics frozen, products with a gate are linear with the gate frozen.
Constants met on the way (biases, additive parts of norms, class tokens) are handed over as terms
of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

from pipeline_lib.decomposition.facts import Facts
from pipeline_lib.decomposition.operations import op_name, where
from pipeline_lib.decomposition.readout import (
    Box,
    Lazy,
    Readout,
    Run,
    Shape,
    TooWide,
    Weights,
    axis_groups,
    length,
    refuse_large,
)


@dataclass(frozen=True, eq=False)
class Constant:
    """A term that does not depend on the pixels: the readout applied to `value` (None: to ones).

    `axis` is the channel axis of `source` that was contracted already, where `value` is None.
    """

    readout: Readout
    value: Lazy | None
    source: fx.Node
    bias: bool
    before: int = 1
    axis: int | None = None


@dataclass
class Pulled:
    """Result of a rule: readouts of the operands, and the constant terms split off."""

    inputs: list[tuple[fx.Node, Readout]] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)


@dataclass
class Context:
    """What rules share: facts of the graph, tensors to record, the bound on products."""

    facts: Facts
    taps: dict[fx.Node, None]
    bound: int

    def tap(self, node: fx.Node) -> fx.Node:
        self.taps[node] = None
        return node


Rule = Callable[[Context, fx.Node, Readout], Pulled]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def _arg(node: fx.Node, position: int, name: str, default: object = None) -> object:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def _axis(axis: int, rank: int) -> int:
    return axis % rank


def _single(node: fx.Node, readout: Readout) -> Pulled:
    return Pulled([(node.args[0], readout)])  # type: ignore[list-item]


# ------------------------------------------------------------------ values pass unchanged


@rule(
    "dropout", "feature_dropout", "clone", "contiguous", "detach", "alias", "lift_fresh",
    "_to_copy", "to", "type_as", "identity", "lift_fresh_copy", "positive",
)  # fmt: skip
def _pass(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    return _single(node, readout)


# ------------------------------------------------------------------ axes


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
    m = m.then(lambda t, run: t.reshape(t.shape[0], *matrix_shape, t.shape[-1]), shape=matrix_shape)
    return Readout(w, m, before)


@rule(
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze",
    "view_as", "reshape_as", "_reshape_alias",
)  # fmt: skip
def _reshape(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    before = context.facts.shape(node.args[0])  # type: ignore[arg-type]
    return _single(node, reshape(readout, before, context.bound))


def _permuted(readout: Readout, order: list[int]) -> Readout:
    """`order[i]` is the operand's axis that became the result's axis `i`."""
    back = [order.index(axis) for axis in range(len(order))]
    w, m = readout.w, readout.m

    def pick(items: tuple) -> tuple:  # type: ignore[type-arg]
        return tuple(items[axis] for axis in back)

    w_axes = [0, *(axis + 1 for axis in back)]
    m_axes = [*w_axes, len(back) + 1]
    return Readout(
        w.then(lambda t, run: t.permute(w_axes), shape=pick(w.shape), box=pick(w.box)),
        m.then(lambda t, run: t.permute(m_axes), shape=pick(m.shape)),
        pick(readout.full),
    )


@rule("permute", "transpose", "t", "numpy_T", "swapaxes", "swapdims", "movedim", "mT")
def _permute(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    rank = len(readout.full)
    order = list(range(rank))
    name = op_name(node)
    if name == "permute":
        order = [_axis(a, rank) for a in node.args[1]]  # type: ignore[union-attr]
    elif name in ("transpose", "swapaxes", "swapdims"):
        one, two = _axis(node.args[1], rank), _axis(node.args[2], rank)  # type: ignore[arg-type]
        order[one], order[two] = order[two], order[one]
    elif name == "movedim":
        marks = torch.empty([2 + i for i in range(rank)], device="meta")
        moved = torch.movedim(marks, node.args[1], node.args[2])  # type: ignore[arg-type]
        order = [size - 2 for size in moved.shape]
    elif name == "mT":
        order[-1], order[-2] = order[-2], order[-1]
    else:
        order.reverse()
    return _single(node, _permuted(readout, order))


def unbroadcast(context: Context, readout: Readout, before: Shape) -> Readout:
    """Readout of a tensor of shape `before` that is broadcast to the readout's shape."""
    full = readout.full
    extra = len(full) - len(before)
    padded = (1,) * extra + tuple(before)
    for axis, (small, large) in enumerate(zip(padded, full, strict=True)):
        if small == large:
            continue
        readout = _summed(context, readout, axis)
    return reshape(readout, before, context.bound) if extra else readout


def _summed(context: Context, readout: Readout, axis: int) -> Readout:
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
    return _single(node, unbroadcast(context, readout, before))


# ------------------------------------------------------------------ parts


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
    axis, index = _axis(node.args[1], len(before)), node.args[2]  # type: ignore[arg-type]
    start = index % before[axis]  # type: ignore[operator]
    return _single(node, embed(_with_axis(context, readout, axis), axis, start, before[axis]))


@rule("slice", "narrow")
def _slice(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    before = context.facts.shape(node.args[0])  # type: ignore[arg-type]
    axis = _axis(_arg(node, 1, "dim", 0), len(before))  # type: ignore[arg-type]
    size = before[axis]
    start = _arg(node, 2, "start", 0) or 0
    step = _arg(node, 4, "step", 1) or 1
    if readout.full[axis] == size:
        return _single(node, readout)
    if isinstance(start, fx.Node) or size < 0:
        raise TooWide("a slice along the batch axis")
    start = min(start if start >= 0 else start + size, size)  # type: ignore[operator]
    if step == 1:
        return _single(node, embed(readout, axis, start, size))
    picked = torch.arange(size)[start::step]
    return _single(node, _scatter(context, readout, axis, lambda run: picked, size))


@rule("slice_scatter", "select_scatter")
def _slice_scatter(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    """A tensor with a part replaced by another: each is read where it shows."""
    base, source = node.args[:2]
    rank, full = len(readout.full), readout.full
    if context.facts.operand_shape(source) == full:
        pulled = Pulled()
        _hand_over(context, pulled, node, source, readout, bias=False)
        return pulled
    axis = _axis(_arg(node, 2, "dim", 0), rank)  # type: ignore[arg-type]
    size = full[axis]
    if op_name(node) == "select_scatter":
        start, count = node.args[3] % size, 1  # type: ignore[operator]
    else:
        start, stop = _arg(node, 3, "start") or 0, _arg(node, 4, "end", size)
        stop = size if stop is None else min(stop, size)  # type: ignore[type-var]
        start, stop = (p if p >= 0 else p + size for p in (start, stop))  # type: ignore[operator]
        count = stop - start
    if size < 0 or _arg(node, 5, "step", 1) != 1:
        raise TooWide("a part along the batch axis or with steps is replaced")
    pulled = Pulled()
    for begin, length_ in ((0, start), (start + count, size - start - count)):
        piece = part(readout, axis, begin, length_) if length_ > 0 else None
        if piece is not None:
            piece = embed(piece, axis, begin, size)
            _hand_over(context, pulled, node, base, piece, bias=False)
    piece = part(readout, axis, start, count)
    if piece is not None:
        before = context.facts.operand_shape(source)
        piece = (
            unbroadcast(context, piece, before)
            if len(before) == rank
            else reshape(piece, before, context.bound)
        )
        _hand_over(context, pulled, node, source, piece, bias=False)
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
    axis = _axis(node.args[1], len(before))  # type: ignore[arg-type]
    if context.facts.depends(node.args[2]) or before[axis] < 0:
        raise TooWide("an index that depends on the images")
    index = context.facts.constant(node.args[2])
    return _single(node, _scatter(context, readout, axis, lambda run: run.get(index), before[axis]))


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
    return _single(
        node,
        _scatter(context, readout, axis, lambda run: run.get(index).flatten(), before[axis]),
    )


@rule("getitem")
def _getitem(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    source, index = node.args
    name = op_name(source)  # type: ignore[arg-type]
    whole = source.args[0]  # type: ignore[union-attr]
    if name == "unbind":
        axis = _axis(_arg(source, 1, "dim", 0), len(readout.full) + 1)  # type: ignore[arg-type]
        before = context.facts.shape(whole)  # type: ignore[arg-type]
        embedded = embed(_with_axis(context, readout, axis), axis, index, before[axis])  # type: ignore[arg-type]
        return Pulled([(whole, embedded)])  # type: ignore[list-item]
    if name in ("split", "split_with_sizes", "chunk", "tensor_split"):
        before = context.facts.shape(whole)  # type: ignore[arg-type]
        position = 1 if name == "tensor_split" else 2
        axis = _axis(_arg(source, position, "dim", 0), len(before))  # type: ignore[arg-type]
        parts = source.meta["val"]  # type: ignore[union-attr]
        start = sum(int(piece.shape[axis]) for piece in parts[:index])  # type: ignore[misc]
        return Pulled([(whole, embed(readout, axis, start, before[axis]))])  # type: ignore[list-item]
    raise TooWide(f"a result of {name}")


@rule("cat", "concat", "concatenate")
def _cat(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    operands = list(node.args[0])  # type: ignore[arg-type]
    axis = _axis(_arg(node, 1, "dim", 0), len(readout.full))  # type: ignore[arg-type]
    pulled = Pulled()
    start = 0
    for operand in operands:
        count = context.facts.shape(operand)[axis]
        if count < 0:
            raise TooWide("concatenation along the batch axis")
        piece = part(readout, axis, start, count)
        start += count
        if piece is not None:
            _hand_over(context, pulled, node, operand, piece, bias=False)
    return pulled


@rule("stack")
def _stack(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    operands = list(node.args[0])  # type: ignore[arg-type]
    axis = _axis(_arg(node, 1, "dim", 0), len(readout.full))  # type: ignore[arg-type]
    pulled = Pulled()
    for position, operand in enumerate(operands):
        piece = part(readout, axis, position, 1)
        if piece is not None:
            flat = tuple(s for a, s in enumerate(piece.full) if a != axis)
            piece = reshape(piece, flat, context.bound)
            _hand_over(context, pulled, node, operand, piece, bias=False)
    return pulled


def _hand_over(
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
    axes = _arg(node, 2, "dims", [])
    shifts = shifts if isinstance(shifts, (list, tuple)) else [shifts]
    axes = axes if isinstance(axes, (list, tuple)) else [axes]
    w, m = readout.w, readout.m
    for shift, axis in zip(shifts, axes, strict=True):  # type: ignore[arg-type]
        axis = _axis(axis, len(readout.full))
        if readout.full[axis] < 0:
            raise TooWide("a roll along the batch axis")
        back, place = -shift, axis + 1  # type: ignore[operator]
        if w.full(axis):
            w = w.dense([axis], readout.full).then(_rolled(back, place))
        if m.full(axis):
            m = m.then(_rolled(back, place))
    return _single(node, Readout(w, m, readout.full))


def _rolled(shift: int, axis: int) -> Callable[[Tensor, Run], Tensor]:
    return lambda t, run: torch.roll(t, shift, axis)


@rule("flip")
def _flip(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    w, m = readout.w, readout.m
    for axis in node.args[1]:  # type: ignore[union-attr]
        axis = _axis(axis, len(readout.full))
        place = [axis + 1]
        if w.full(axis):
            w = w.dense([axis], readout.full).then(_flipped(place))
        if m.full(axis):
            m = m.then(_flipped(place))
    return _single(node, Readout(w, m, readout.full))


def _flipped(axes: list[int]) -> Callable[[Tensor, Run], Tensor]:
    return lambda t, run: torch.flip(t, axes)


@rule("pad", "constant_pad_nd")
def _pad(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    pads = list(node.args[1])  # type: ignore[arg-type]
    mode = _arg(node, 2, "mode", "constant") if op_name(node) == "pad" else "constant"
    value = _arg(node, 3 if op_name(node) == "pad" else 2, "value", 0.0)
    if mode != "constant" or value not in (None, 0, 0.0):
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
    return _single(node, current)  # type: ignore[arg-type]


# ------------------------------------------------------------------ sums, means, pooling


@rule("mean", "sum")
def _mean(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    before = context.facts.shape(node.args[0])  # type: ignore[arg-type]
    axes = _arg(node, 1, "dim", None)
    if not isinstance(axes, (list, tuple, int)):
        axes = list(range(len(before)))
    axes = sorted(_axis(a, len(before)) for a in ([axes] if isinstance(axes, int) else axes))
    if any(before[axis] < 0 for axis in axes):
        raise TooWide("a mean over the batch")
    kept = tuple(1 if a in axes else s for a, s in enumerate(before))
    readout = reshape(readout, kept, context.bound)
    count = math.prod(before[axis] for axis in axes) if op_name(node) == "mean" else 1
    w = readout.w.then(lambda t, run: t / count) if count != 1 else readout.w
    return _single(node, Readout(w, readout.m, before))


@rule("adaptive_avg_pool2d", "adaptive_avg_pool1d", "avg_pool2d", "avg_pool1d",
      "upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d")  # fmt: skip
def _pool(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    before = context.facts.shape(node.args[0])  # type: ignore[arg-type]
    count = 1 if op_name(node).endswith("1d") else 2
    axes = list(range(len(before) - count, len(before)))
    if all(readout.full[axis] == 1 for axis in axes) and "adaptive" in op_name(node):
        size = math.prod(before[axis] for axis in axes)
        w = readout.w.then(lambda t, run: t / size)
        return _single(node, Readout(w, readout.m, before))
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
    return _single(node, Readout(w.then(adjoint, shape=shape), readout.m, before))


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
    axis = _axis(axis, len(before))  # type: ignore[arg-type]
    axes = [axis, len(readout.full) - 1]
    if any(readout.m.full(a) for a in axes):
        readout = readout.spread_products(axes, context.bound)
    if any(box is not None for box in readout.w.box):
        w = readout.w.dense(range(len(readout.full)), readout.full)
        readout = Readout(w, readout.m, readout.full)
    return _single(node, _adjoint(readout, axes, before, lambda t: t.unfold(axis + 1, size, step)))


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
    add_bias(context, pulled, node, readout, axis, _arg(node, 2, "bias"))
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
        bias = _arg(node, 2, "bias")
        stride, padding = _arg(node, 3, "stride", 1), _arg(node, 4, "padding", 0)
        dilation, groups = _arg(node, 5, "dilation", 1), _arg(node, 6, "groups", 1)
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
    offsets = torch.cartesian_prod(*(torch.arange(k) for k in kernel)).view(-1, count).tolist()
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


# ------------------------------------------------------------------ factors and norms


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
    return _single(node, scale(context, readout, -1.0, divide=False))


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
        _hand_over(context, pulled, node, operand, current, bias=False)
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
    training, eps = _arg(node, 5, "training"), _arg(node, 7, "eps", 1e-5)
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
    gamma = _arg(node, 2, "weight")
    beta = _arg(node, 3, "bias") if centred else None
    eps = _arg(node, 4 if centred else 3, "eps", None if not centred else 1e-5)
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
    gamma, beta = _arg(node, 2, "weight"), _arg(node, 3, "bias")
    eps = _arg(node, 4, "eps", 1e-5)
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
        pooled = _summed(context, pooled, axis)
    centre_w = pooled.w.then(lambda t, run: -t / count)
    centre_m = pooled.m.then(lambda t, run: t.sum(2, keepdim=True), shape=(1,) * rank)
    pulled.inputs.append((data, Readout(w, m, full)))  # type: ignore[arg-type]
    pulled.inputs.append((data, Readout(centre_w, centre_m, full)))  # type: ignore[arg-type]
    return pulled


def _through_groups(context: Context, node: fx.Node, readout: Readout, eps: float) -> Readout:
    """Dense readout through a group norm with its statistics frozen."""
    source = context.tap(node.args[0])  # type: ignore[arg-type]
    groups, gamma = int(node.args[1]), _arg(node, 2, "weight")  # type: ignore[call-overload]
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


def pull(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    """Readouts of the operands of a linear operation.

    Raises
    ------
    TooWide
        The operation has no rule, or its readout does not factor within the bound.
    """
    name = op_name(node)
    if name not in RULES:
        raise TooWide(f"{name} {where(node)} is not linear")
    try:
        return RULES[name](context, node, readout)
    except TooWide:
        if readout.dense:
            raise
        return RULES[name](context, node, readout.densified())
