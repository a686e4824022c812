"""Attention: which products are attention, what their frozen weights are, how to read through them.

A product of two image-dependent tensors is linear in its *values* once the other factor, the
weights, is frozen. The factor that some nonlinearity (a softmax, mostly) produced is the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from pipeline_lib.decomposition.facts import Facts
from pipeline_lib.decomposition.operations import op_name
from pipeline_lib.decomposition.readout import Lazy, Readout, Run, Shape, TooWide
from pipeline_lib.decomposition.rules import RULES, Context, unbroadcast

#: Most products into which attention over channels is taken apart before it is read densely.
MIXED_CHANNELS = 64

PRODUCTS = ("matmul", "bmm", "baddbmm")
FUSED = "scaled_dot_product_attention"


@dataclass(frozen=True)
class Product:
    """An attention product: `values` [.., t, e] mixed over `t` by frozen weights [.., q, t].

    `right` says whether the weights stand right of the values, as in `v @ a` with v [.., e, t].
    """

    node: fx.Node
    values: fx.Node
    weights: fx.Node | None
    right: bool

    @property
    def token_axis(self) -> int:
        """Axis of the source tokens in `values`, counted from the end."""
        return -1 if self.right else -2


def is_product(facts: Facts, node: fx.Node) -> bool:
    """Whether a node multiplies two image-dependent matrices."""
    name = op_name(node)
    if name == FUSED:
        return facts.depends(node)
    if name == "einsum":
        return sum(facts.depends(operand) for operand in node.args[1]) == 2  # type: ignore[union-attr]
    return name in PRODUCTS and facts.depends(node.args[0]) and facts.depends(node.args[1])


def product(facts: Facts, node: fx.Node) -> Product | None:
    """The parts of an attention product; None where values and weights cannot be told apart."""
    if op_name(node) == FUSED:
        return Product(node, node.args[2], None, False)  # type: ignore[arg-type]
    if op_name(node) not in PRODUCTS[:2]:
        return None
    left, right = node.args[:2]
    found = [_is_weights(facts, left), _is_weights(facts, right)]  # type: ignore[arg-type]
    if all(found):  # what a softmax made are the weights, whatever the values passed before
        found = [_is_weights(facts, one, SOFTMAX) for one in (left, right)]  # type: ignore[arg-type]
    if found[0] == found[1]:
        # q @ (k @ v): what a product has mixed already are the values
        mixed = [_is_mixed(facts, left), _is_mixed(facts, right)]  # type: ignore[arg-type]
        if mixed[0] == mixed[1]:
            return None
        found = [not one for one in mixed]
    if found[0]:
        return Product(node, right, left, False)  # type: ignore[arg-type]
    return Product(node, left, right, True)  # type: ignore[arg-type]


def _is_mixed(facts: Facts, node: fx.Node) -> bool:
    """Whether a factor is itself the result of an attention product."""
    while node.op == "call_function" and node.args:
        if is_product(facts, node):
            return product(facts, node) is not None
        dependent = [other for other in node.args[:2] if facts.depends(other)]
        if op_name(node) not in (*_PLAIN, *RULES) or len(dependent) != 1:
            return False
        node = dependent[0]  # type: ignore[assignment]
    return False


_PLAIN = ("add", "sub", "mul", "div", "where", "masked_fill")


SOFTMAX = ("softmax", "_softmax")


def _is_weights(facts: Facts, node: fx.Node, makers: tuple[str, ...] = ()) -> bool:
    """Whether a softmax or another nonlinearity (or one of `makers`) produced the factor."""
    while True:
        name = op_name(node)
        if makers:
            if name in makers:
                return True
        elif name in (*SOFTMAX, "sigmoid", "relu", "elu", "log_softmax"):
            return True
        if is_product(facts, node) or "norm" in name:
            return False
        if name == "getitem":
            node = node.args[0].args[0]  # type: ignore[union-attr,assignment]
        elif name in _PLAIN:
            dependent = [other for other in node.args[:2] if facts.depends(other)]
            if len(dependent) != 1:
                return name in ("mul", "div") and any(
                    _is_weights(facts, other, makers)
                    for other in dependent  # type: ignore[arg-type]
                )
            node = dependent[0]  # type: ignore[assignment]
        elif name in RULES and node.args and facts.depends(node.args[0]):
            node = node.args[0]  # type: ignore[assignment]
        elif name == "linalg_vector_norm" or not node.args:
            return False
        else:
            return not makers and name not in RULES and node.op == "call_function"


def attention_weights(context: Context, found: Product) -> Lazy:
    """Frozen weights [.., q, t] of a product; softmax is recomputed where attention is fused."""
    if found.weights is not None:
        weights = context.tap(found.weights)
        if found.right:
            return Lazy(lambda run: run.values[weights].transpose(-1, -2), static=False)
        return Lazy(lambda run: run.values[weights], static=False)
    node = found.node
    query, key = node.args[0], node.args[1]
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    causal = node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False)
    factor = node.args[6] if len(node.args) > 6 else node.kwargs.get("scale")
    if causal:
        raise TooWide("causal attention")
    context.tap(query)  # type: ignore[arg-type]
    context.tap(key)  # type: ignore[arg-type]
    if context.facts.depends(mask):
        context.tap(mask)  # type: ignore[arg-type]

    def value(operand: object, run: Run) -> Tensor:
        if context.facts.depends(operand):
            return run.values[operand]  # type: ignore[index]
        return run.get(context.facts.constant(operand))

    def weights_of(run: Run) -> Tensor:
        q, k = value(query, run), value(key, run)
        scale = 1 / math.sqrt(q.shape[-1]) if factor is None else factor
        logits = (q * scale) @ k.transpose(-1, -2)
        if mask is not None:
            extra = value(mask, run)
            if extra.dtype == torch.bool:
                logits = logits.masked_fill(~extra, float("-inf"))
            else:
                logits = logits + extra
        return logits.softmax(-1)

    # a query that does not depend on the images (a learned probe) is a constant
    for operand in (query, key):
        if not context.facts.depends(operand):
            context.taps.pop(operand, None)  # type: ignore[call-overload]
    return Lazy(weights_of, static=False)


def through(
    context: Context, found: Product, readout: Readout, *, heads_apart: bool = False
) -> Readout:
    """Readout of the values of an attention product whose weights are frozen (P2, section 3).

    With `heads_apart` heads that share their values (multi-query attention) are not added up.
    """
    facts = context.facts
    rank = len(readout.full)
    query_axis = rank - 1 if found.right else rank - 2
    if readout.m.full(query_axis):
        try:
            readout = readout.spread_products([query_axis], MIXED_CHANNELS)
        except TooWide:
            readout = readout.densified()
    before = facts.shape(found.values)
    weights = attention_weights(context, found)
    tokens = before[found.token_axis]
    lead = [a for a in range(rank) if a not in (rank - 1, rank - 2)]
    w = readout.w.spread([a for a in lead if not readout.w.full(a)], readout.full)
    single = not w.full(query_axis)
    box = w.box[query_axis]
    boxes = w.box

    def mix(t: Tensor, run: Run) -> Tensor:
        a = run.get(weights).to(t.dtype)
        a = a.reshape((1,) * (rank - a.dim()) + tuple(a.shape))
        for axis in lead:
            if boxes[axis] is not None:
                a = a.narrow(axis, *boxes[axis])  # type: ignore[misc]
        if found.right:
            t = t.transpose(-1, -2)
        if box is not None:
            a = a.narrow(-2, *box)
        if single and box is None:
            read = t * a.sum(-2, keepdim=True).transpose(-1, -2)
        else:
            read = a.transpose(-1, -2) @ t
        return read.transpose(-1, -2) if found.right else read

    shape: Shape = tuple(tokens if a == query_axis else s for a, s in enumerate(w.shape))
    new_box = tuple(None if a == query_axis else b for a, b in enumerate(w.box))
    full = tuple(tokens if a == query_axis else s for a, s in enumerate(readout.full))
    mixed = Readout(w.then(mix, shape=shape, box=new_box, static=False), readout.m, full)
    apart = heads_apart and len(full) == len(before)
    return mixed if apart else unbroadcast(context, mixed, before)
