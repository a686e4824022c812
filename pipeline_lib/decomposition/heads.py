"""Heads: where a tensor's axes come to lie at the layer that reads it.

Followed forward through reshapes, permutations and elementwise operations, an axis of a tensor ends
as (a part of) the channels that the next linear layer or convolution mixes, or beside them. That
tells heads from windows without the readout. Where an activation stands between an attention
product and its projection, the heads still lie apart in the activation's channels: a pair of
reshapes put into the graph behind it shows them, and each head's component is its activated output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from pipeline_lib.decomposition.attention import is_product, product
from pipeline_lib.decomposition.capture import Capture
from pipeline_lib.decomposition.facts import RESHAPES, Facts
from pipeline_lib.decomposition.frozen import GATES
from pipeline_lib.decomposition.operations import op_name

#: Activations behind which channels still lie as before.
ACTIVATIONS = (*GATES, "tanh", "sigmoid", "hardsigmoid", "elu", "hardtanh", "softplus", "selu")
_ORDERED = ("permute", "transpose", "swapaxes", "movedim", "mT", "t")
_SAME = (
    "contiguous", "clone", "dropout", "to", "_to_copy", "detach", "alias", "add", "sub", "mul",
    "div", "batch_norm", "avg_pool2d", "slice", "pad", "roll", "mean", "neg", "type_as",
    "max_pool2d", "upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d",
    "summed_windows",
)  # fmt: skip
_CATS = ("cat", "concat", "concatenate")
_DEPTH = 40


@dataclass(frozen=True)
class Reading:
    """A path from a tensor to the layer that mixes its channels, and the axis that is mixed."""

    path: list[fx.Node]
    axis: int


def reading(facts: Facts, node: fx.Node, depth: int = 0) -> Reading | None:
    """The nearest layer that mixes channels of a node, over operations that keep them apart."""
    for user in node.users:
        axis = _mixed_axis(facts, node, user)
        if axis is not None:
            return Reading([node], axis)
    for user in node.users:
        if depth < _DEPTH and _passes(facts, user):
            found = reading(facts, user, depth + 1)
            if found is not None:
                return Reading([node, *found.path], found.axis)
    return None


def _mixed_axis(facts: Facts, node: fx.Node, user: fx.Node) -> int | None:
    """Axis of `node` that an operation mixes by weights of the model."""
    name = op_name(user)
    if user.op == "output":
        return 1
    if user.op != "call_function" or not user.args or user.args[0] is not node:
        return None
    if name in ("linear", "layer_norm", "rms_norm"):
        return len(facts.shape(node)) - 1
    if name in ("matmul", "mm") and not facts.depends(user.args[1]):
        return len(facts.shape(node)) - 1
    if name.startswith("conv") and not _depthwise(facts, user):
        return 1
    return 1 if name == "group_norm" else None


def _depthwise(facts: Facts, node: fx.Node) -> bool:
    groups = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
    return groups == facts.shape(node.args[0])[1] and groups == facts.shape(node)[1]  # type: ignore[arg-type]


def _passes(facts: Facts, node: fx.Node) -> bool:
    name = op_name(node)
    if not isinstance(node.meta.get("val"), Tensor):
        return False
    if name.startswith("conv"):
        return _depthwise(facts, node)
    return name in (*RESHAPES, *_ORDERED, *_SAME, *ACTIVATIONS)


def traced(facts: Facts, path: list[fx.Node], marks: Tensor) -> Tensor:
    """Marks on the first tensor of a path, moved along it for one image."""
    for step in path[1:]:
        shape = [abs(dim) for dim in facts.shape(step)]
        name = op_name(step)
        if name in RESHAPES:
            marks = marks.reshape(shape)
        elif name in _ORDERED:
            marks = step.target(marks, *step.args[1:])  # type: ignore[operator,misc]
        else:
            marks = _fitted(marks, shape)
    return marks


def _fitted(marks: Tensor, shape: list[int]) -> Tensor:
    """Marks cut or repeated to a shape, for operations that keep channels apart."""
    if marks.dim() > len(shape):
        marks = marks.amax(tuple(range(2, 2 + marks.dim() - len(shape))))
    marks = marks.reshape((1,) * (len(shape) - marks.dim()) + tuple(marks.shape))
    for axis, size in enumerate(shape):
        if marks.shape[axis] > size:
            marks = marks.narrow(axis, 0, size)
        elif marks.shape[axis] < size:
            repeats = [size if a == axis else -1 for a in range(len(shape))]
            marks = marks.narrow(axis, 0, 1).expand(repeats)
    return marks


def channel_axes(facts: Facts, node: fx.Node) -> set[int]:
    """Axes of a tensor that lie in the channels where these are mixed next."""
    found = reading(facts, node)
    shape = [abs(dim) for dim in facts.shape(node)]
    if found is None:
        return {len(shape) - 1}
    return {
        axis
        for axis, size in enumerate(shape)
        if size > 1 and _varies(traced(facts, found.path, _along(axis, shape)), found.axis)
    }


def _along(axis: int, shape: list[int]) -> Tensor:
    view = [1] * len(shape)
    view[axis] = -1
    return torch.arange(shape[axis]).view(view).expand(shape)


def _varies(marks: Tensor, axis: int) -> bool:
    return bool((marks.amax(axis) != marks.amin(axis)).any())


# ------------------------------------------------------------------ activated heads


@dataclass(frozen=True)
class Origin:
    """The attention products whose heads lie in a tensor, and which head each entry is of.

    Attributes
    ----------
    products
        One product with its heads on an axis, or several of one head that were put side by side.
    marks
        Number of the head at each entry of the tensor, for one image.
    passed
        Activations between the products and the tensor.
    """

    products: tuple[fx.Node, ...]
    marks: Tensor
    passed: tuple[fx.Node, ...] = ()


def separate_heads(captured: Capture) -> None:
    """Show the heads of attention whose product passes an activation before its projection.

    The tensor at which heads are then cut carries `meta["heads"]`: the products, and the axis of
    the heads (none where there is one head).
    """
    facts = Facts(captured)
    known = _origins(facts)
    if _activate_parts(captured, facts, known):
        facts = Facts(captured)
        known = _origins(facts)
    passed = {step for origin in known.values() for step in origin.passed[:-1]}
    last = dict.fromkeys(o.passed[-1] for o in known.values() if o.passed)
    cuts = []
    for activated in last:
        axes = sorted(channel_axes(facts, activated))
        if activated in passed or len(axes) != 1 or facts.shape(activated)[axes[0]] < 0:
            continue
        count = _head_count(known[activated].marks, axes[0])
        if count is not None:
            cuts.append((activated, axes[0], count))
    for activated, axis, count in cuts:
        _cut(captured, activated, known[activated].products, axis, count)


def _origins(facts: Facts) -> dict[fx.Node, Origin]:
    known: dict[fx.Node, Origin] = {}
    for node in facts.nodes:
        found = _origin(facts, node, known) if facts.depends(node) else None
        if found is not None:
            known[node] = found
    return known


def _activate_parts(captured: Capture, facts: Facts, known: dict[fx.Node, Origin]) -> bool:
    """Activate heads apart from what stands beside them (SHViT's channels without attention).

    An activation of tensors put side by side is that of each. Says whether the graph was changed.
    """
    changed = False
    for node in facts.nodes:
        joined = node.args[0] if node.args and op_name(node) in ACTIVATIONS else None
        if not isinstance(joined, fx.Node) or op_name(joined) not in _CATS:
            continue
        parts = list(joined.args[0])  # type: ignore[arg-type]
        if len({part in known for part in parts}) < 2:
            continue
        with captured.graph.inserting_before(node):
            activated = []
            for part in parts:
                new = captured.graph.call_function(
                    node.target, (part, *node.args[1:]), dict(node.kwargs)
                )
                new.meta = {**node.meta, "val": part.meta["val"]}
                activated.append(new)
            whole = captured.graph.call_function(
                joined.target, (activated, *joined.args[1:]), dict(joined.kwargs)
            )
            whole.meta = dict(node.meta)
        node.replace_all_uses_with(whole)
        captured.graph.erase_node(node)
        changed = True
    return changed


def _origin(facts: Facts, node: fx.Node, known: dict[fx.Node, Origin]) -> Origin | None:
    """Whose heads lie in a node's result; None where they are mixed, or there are none."""
    if node.op != "call_function":
        return None
    if is_product(facts, node):
        return _numbered(facts, node) if product(facts, node) is not None else None
    name = op_name(node)
    if name in _CATS:
        parts = [known.get(part) for part in node.args[0]]  # type: ignore[union-attr,arg-type]
        return _side_by_side(facts, node, [part for part in parts if part is not None], len(parts))
    if not _passes(facts, node):
        return None
    operands = [other for other in node.args[:2] if isinstance(other, fx.Node) and other in known]
    if len(operands) != 1:
        return None
    origin = known[operands[0]]
    marks = traced(facts, [operands[0], node], origin.marks)
    passed = (*origin.passed, node) if name in ACTIVATIONS else origin.passed
    return Origin(origin.products, marks, passed)


def _numbered(facts: Facts, node: fx.Node) -> Origin:
    shape = [abs(dim) for dim in facts.shape(node)]
    outer = shape[:-2]
    marks = torch.arange(math.prod(outer)).view(*outer, 1, 1).expand(shape)
    return Origin((node,), marks)


def _side_by_side(facts: Facts, node: fx.Node, parts: list[Origin], expected: int) -> Origin | None:
    if not parts or len(parts) < expected:
        return None
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    marks, heads = [], 0
    for part in parts:
        marks.append(part.marks + heads)
        heads += int(part.marks.max()) + 1
    joined = torch.cat(marks, axis)  # type: ignore[arg-type]
    return Origin(tuple(p for part in parts for p in part.products), joined)


def _cut(
    captured: Capture, activated: fx.Node, products: tuple[fx.Node, ...], axis: int, count: int
) -> None:
    if count == 1:
        activated.meta["heads"] = (products, ())
        return
    graph, value = captured.graph, activated.meta["val"]
    sizes = [count, value.shape[axis] // count]
    with graph.inserting_after(activated):
        apart = graph.call_function(torch.ops.aten.unflatten.int, (activated, axis, sizes))
    with graph.inserting_after(apart):
        back = graph.call_function(torch.ops.aten.flatten.using_ints, (apart, axis, axis + 1))
    apart.meta = {**activated.meta, "val": value.unflatten(axis, sizes)}
    back.meta = dict(activated.meta)
    activated.replace_all_uses_with(back, delete_user_cb=lambda user: user is not apart)
    apart.meta["heads"] = (products, (axis,))


def _head_count(marks: Tensor, axis: int) -> int | None:
    """Heads that lie one after the other along a channel axis; None where they do not."""
    moved = marks.movedim(axis, 0).flatten(1)
    sets = [tuple(row.unique().tolist()) for row in moved]
    kinds = list(dict.fromkeys(sets))
    width, rest = divmod(len(sets), len(kinds))
    in_order = all(kinds[i // max(width, 1)] == one for i, one in enumerate(sets))
    apart = sum(len(kind) for kind in kinds) == len({mark for kind in kinds for mark in kind})
    return len(kinds) if rest == 0 and in_order and apart else None
