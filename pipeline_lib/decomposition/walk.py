"""Walk: go back from the representation, following what is linear, and collect the components.

At an addition where one operand is an ancestor of the other, the ancestor is the residual stream
and the other is a branch: a component. Inside a branch the walk follows linear operations back to
what a nonlinearity last produced; an attention product found there is cut into its heads. What
remains of the stream before the first branch is the stem; biases, and the additive parts of norms,
are the constants.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import fx

from pipeline_lib.decomposition.attention import is_product, product, through
from pipeline_lib.decomposition.capture import Capture
from pipeline_lib.decomposition.facts import Facts
from pipeline_lib.decomposition.frozen import SELECTIONS, detail_of, pull_frozen
from pipeline_lib.decomposition.heads import channel_axes
from pipeline_lib.decomposition.operations import module_classes, module_path, op_name
from pipeline_lib.decomposition.readout import (
    DENSE,
    Lazy,
    Readout,
    TooWide,
    Weights,
    axis_groups,
    identity_readout,
)
from pipeline_lib.decomposition.rules import (
    RULES,
    Constant,
    Context,
    addend_factor,
    gate,
    pull,
    unbroadcast,
)

#: Most products a factored readout may have before the plan refuses (see `Readout.r`).
MOST_PRODUCTS = 1024

SUMS = ("add", "sub", "rsub")
JOINS = ("cat", "concat", "concatenate", "stack")
#: Operations without a rule of their own that are no nonlinearity: parts, and norms written out.
NEUTRAL = (
    "unbind", "split", "chunk", "split_with_sizes", "tensor_split",
    "rsqrt", "sqrt", "pow", "var", "var_mean",
)  # fmt: skip
VIEWS = (
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "permute",
    "transpose", "contiguous", "clone", "dropout", "slice", "detach", "to", "_to_copy",
)  # fmt: skip


@dataclass(eq=False)
class Leaf:
    """A tensor at which a path ends: one component, or one per head.

    Attributes
    ----------
    node
        The tensor whose readout gives the contribution.
    readouts
        How the representation reads it; several are summed.
    kind
        `head`, `attention`, `mlp`, `conv` or `stem`.
    head_axes
        Axes of `node` along which heads are kept apart.
    constants
        Terms inside `node` that belong to the bias component and are taken off.
    path
        Module that made it.
    order
        Place of the tensor in the graph.
    before
        What stands before the batch in a folded axis.
    product
        The attention product, for heads.
    """

    node: fx.Node
    readouts: list[Readout]
    kind: str
    path: str
    head_axes: tuple[int, ...] = ()
    constants: list[Constant] = field(default_factory=list)
    order: int = 0
    before: int = 1
    product: fx.Node | None = None


@dataclass(eq=False)
class Barrier:
    """A nonlinearity on the residual stream, behind which components lie."""

    node: fx.Node
    reason: str
    joined: bool


class Walk:
    """One walk from an output node back to the image."""

    def __init__(
        self,
        capture: Capture,
        output: fx.Node,
        pools: frozenset[fx.Node] = frozenset(),
        *,
        pass_through: bool = True,
        freeze_gates: bool = True,
        head: str | None = None,
    ) -> None:
        self.pools = pools
        self.pass_through = pass_through
        self.freeze_gates = freeze_gates
        self.head = head
        self.dense_entries = 0
        self.joined = False
        self.visited: set[fx.Node] = set()
        self.capture = capture
        self.facts = Facts(capture)
        self.context = Context(self.facts, {}, MOST_PRODUCTS)
        self.output = output
        self.leaves: list[Leaf] = []
        self.constants: list[Constant] = []
        self.stem_constants: list[Constant] = []
        self.barriers: list[Barrier] = []
        self.rows: list[tuple[str, str, str, str]] = []
        self.pending: dict[fx.Node, list[Readout]] = {}
        self._nonlinear = self._bits(self._is_nonlinear)
        self._residuals = self._bits(self._is_residual)
        self._attention = self._bits(self._is_attention)

    # -------------------------------------------------------------- what nodes are

    def _bits(self, test: object) -> int:
        bits = 0
        for i, node in enumerate(self.facts.nodes):
            if node.op == "call_function" and self.facts.depends(node) and test(node):  # type: ignore[operator]
                bits |= 1 << i
        return bits

    def _is_nonlinear(self, node: fx.Node) -> bool:
        name = op_name(node)
        if name in ("mul", "div"):
            return len(self._dependent(node)) > 1 and not self._is_norm_product(node)
        return is_product(self.facts, node) or (name not in RULES and name not in NEUTRAL)

    def _is_norm_product(self, node: fx.Node) -> bool:
        return any(op_name(other) in ("rsqrt", "sqrt") for other in self._dependent(node))

    def _is_attention(self, node: fx.Node) -> bool:
        return op_name(node) in ("softmax", "_softmax", "scaled_dot_product_attention")

    def _dependent(self, node: fx.Node) -> list[fx.Node]:
        if op_name(node).endswith("_as"):  # the second operand gives its shape only
            return [arg for arg in node.args[:1] if self.facts.depends(arg)]  # type: ignore[misc]
        return [arg for arg in node.args[:2] if self.facts.depends(arg)]  # type: ignore[misc]

    def _is_residual(self, node: fx.Node) -> bool:
        if op_name(node) not in SUMS:
            return False
        operands = self._dependent(node)
        if len(operands) < 2 or operands[0] is operands[1]:
            return False
        one, two = operands
        if self._is_centring(one, two):
            return False
        differ = self.facts.upstream(one) ^ self.facts.upstream(two)
        return bool(differ & self._nonlinear) or (
            self.facts.is_ancestor(one, two) or self.facts.is_ancestor(two, one)
        )

    def _is_centring(self, one: fx.Node, two: fx.Node) -> bool:
        return op_name(two) == "mean" and two.args[0] is one

    def has_residual(self, node: fx.Node) -> bool:
        return bool(self.facts.upstream(node) & self._residuals)

    # -------------------------------------------------------------- the stream

    def run(self) -> None:
        """Walk the stream from the output to the stem."""
        value = self.output.meta["val"]
        readout = identity_readout(int(value.shape[-1]), value.dtype, value.device)
        self.pending[self.output] = [readout]
        for node in reversed(self.facts.nodes):
            readouts = self.pending.pop(node, None)
            if readouts:
                self.visited.add(node)
                merged = merge(readouts)
                if any(readout.dense for readout in merged):
                    self.dense_entries += math.prod(abs(dim) for dim in self.facts.shape(node))
                self._visit(node, merged)

    def _push(self, node: fx.Node, readouts: list[Readout]) -> None:
        self.pending.setdefault(node, []).extend(readouts)

    def _note(self, node: fx.Node, role: str, detail: str = "") -> None:
        self.rows.append((module_path(node), op_name(node), role, detail))

    def _visit(self, node: fx.Node, readouts: list[Readout]) -> None:
        if not self.has_residual(node):
            self._leaf(node, readouts, "stem", [], [node])
            return
        name = op_name(node)
        if name in SUMS and len(self._dependent(node)) == 2:
            self._addition(node, readouts)
            return
        detail = detail_of(node) if self.freeze_gates else None
        if detail is not None and not self._ends_the_head(node):
            self._note(node, "frozen", detail)
            pulled = [pull_frozen(self.context, node, readout) for readout in readouts]
            self._push(node.args[0], pulled)  # type: ignore[arg-type]
            return
        if name in ("mul", "div") and len(self._dependent(node)) == 2:
            data = self._gated(node)
            if data is not None:
                self._pull_gate(node, data, readouts)
                return
        if is_product(self.facts, node):
            found = product(self.facts, node)
            if found is not None and not self.pass_through:
                self._leaf(node, readouts, "head", [], [node]).product = node
                return
            if found is not None:
                self._note(node, "frozen", "attention pooling")
                self._push(found.values, [through(self.context, found, r) for r in readouts])
                return
        try:
            pulled = [pull(self.context, node, readout) for readout in readouts]
        except TooWide as reason:
            self.barriers.append(Barrier(node, str(reason), self.joined))
            self._leaf(node, readouts, "stem", [], [node])
            return
        frozen = "norm" in name
        self._note(node, "frozen" if frozen else "linear", "statistics" if frozen else "")
        for result in pulled:
            for operand, readout in result.inputs:
                self._push(operand, [readout])
            self._keep(result.constants)

    def joined_before(self, node: fx.Node) -> bool:
        """Whether a residual addition stands between a barrier and the representation."""
        return any(barrier.joined for barrier in self.barriers if barrier.node is node)

    def _ends_the_head(self, node: fx.Node) -> bool:
        """Whether a nonlinearity belongs to a head: behind the last residual addition, and not
        right behind it but behind a layer that mixes channels. Where a part of the head was left
        out already (`head`), only what lies in the same module belongs to it too."""
        outside = self.head is not None and (
            module_path(node).split(".")[0] != self.head.split(".")[0]
        )
        if self.joined or outside:
            return False
        current: fx.Node | None = node.args[0]  # type: ignore[assignment]
        while current is not None and not self.facts.within(current, self._residuals):
            if op_name(current).startswith(("linear", "conv", "addmm", "matmul", "mm")):
                return True
            current = self._data_operand(current)
        return current is None

    def _keep(self, constants: list[Constant]) -> None:
        for constant in constants:
            (self.constants if constant.bias else self.stem_constants).append(constant)

    def _operands(
        self, node: fx.Node, readouts: list[Readout]
    ) -> list[tuple[fx.Node, list[Readout]]]:
        """The two operands of an addition with their readouts."""
        found = []
        for position, operand in enumerate(node.args[:2]):
            factor = addend_factor(node, position)
            mine = []
            for readout in readouts:
                if factor != 1:
                    readout = _times(readout, factor)
                mine.append(unbroadcast(self.context, readout, self.facts.shape(operand)))  # type: ignore[arg-type]
            found.append((operand, mine))
        return found  # type: ignore[return-value]

    def _addition(self, node: fx.Node, readouts: list[Readout]) -> None:
        self.joined = self.joined or self.facts.within(node, self._residuals)
        (one, first), (two, second) = self._operands(node, readouts)
        if one is two or self._is_centring(one, two):
            self._note(node, "linear", "centring")
            self._push(one, first)
            self._push(two, second)
        elif self.facts.is_ancestor(one, two):
            self._note(node, "residual", "")
            self._push(one, first)
            self._branch(two, second, self.facts.upstream(one))
        elif self.facts.is_ancestor(two, one):
            self._note(node, "residual", "")
            self._push(two, second)
            self._branch(one, first, self.facts.upstream(two))
        else:
            self._note(node, "sum", "")
            common = self.facts.upstream(one) & self.facts.upstream(two)
            for operand, mine in ((one, first), (two, second)):
                if self._probe(operand, common) in ("linear", "residual"):
                    self._push(operand, mine)
                else:
                    self._branch(operand, mine, common)

    def _gated(self, node: fx.Node) -> fx.Node | None:
        """The operand of a product that the path follows, the other being a frozen gate."""
        operands = self._dependent(node)
        if op_name(node) == "div":
            return operands[0]
        reach = [self._probe(operand, 0) in ("residual",) for operand in operands]
        if reach[0] != reach[1]:
            return operands[reach.index(True)]
        one, two = operands
        if self.freeze_gates and self.facts.is_ancestor(one, two):  # x * g(x)
            return one
        if self.freeze_gates and self.facts.is_ancestor(two, one):
            return two
        return None

    def _pull_gate(self, node: fx.Node, data: fx.Node, readouts: list[Readout]) -> None:
        other = next(arg for arg in self._dependent(node) if arg is not data)
        own = self.facts.is_ancestor(data, other)
        self._note(node, "frozen", "frozen gate" if own else "gate")
        for readout in readouts:
            gated = gate(self.context, readout, other, divide=op_name(node) == "div")
            self._push(data, [unbroadcast(self.context, gated, self.facts.shape(data))])

    # -------------------------------------------------------------- branches

    def _probe(self, top: fx.Node, boundary: int) -> str:
        """Where the linear path from `top` leads: `linear` (into the boundary), `residual` (to
        another residual addition), `attention`, `nonlinear`, or `mixed`."""
        node = top
        while True:
            if self.facts.within(node, boundary):
                return "linear"
            if node.op != "call_function":
                return "linear"
            name = op_name(node)
            dependent = self._dependent(node)
            if name in SUMS and len(dependent) == 2:
                one, two = dependent
                if self._is_centring(one, two):
                    node = one
                    continue
                if self.facts.within(node, self._residuals) and (
                    self.facts.is_ancestor(one, two) or self.facts.is_ancestor(two, one)
                ):
                    return "residual"
                ends = {self._probe(one, boundary), self._probe(two, boundary)}
                return ends.pop() if len(ends) == 1 else "mixed"
            if is_product(self.facts, node):
                return "attention"
            if name in ("mul", "div") and len(dependent) == 2:
                if name == "div" or self._is_norm_product(node):
                    node = dependent[0]
                    continue
                ends = [self._probe(other, boundary) for other in dependent]
                for wanted in ("attention", "residual"):
                    if ends.count(wanted) == 1:
                        return wanted
                return "nonlinear"
            following = self._data_operand(node)
            if following is None and self.freeze_gates and name in SELECTIONS:
                following = node.args[0]  # type: ignore[assignment]
            if following is None:
                return "nonlinear"
            node = following

    def _data_operand(self, node: fx.Node) -> fx.Node | None:
        """The one operand that a linear operation passes on, if it has a rule and just one."""
        name = op_name(node)
        if name not in RULES:
            return None
        if name == "getitem":
            return node.args[0].args[0]  # type: ignore[union-attr,return-value]
        if name in JOINS:
            found = [arg for arg in node.args[0] if self.facts.depends(arg)]  # type: ignore[union-attr]
        else:
            found = self._dependent(node)
        return found[0] if len(found) == 1 else None  # type: ignore[return-value]

    def _branch(
        self,
        top: fx.Node,
        readouts: list[Readout],
        boundary: int,
    ) -> None:
        """Register the components of the branch that ends in `top`."""
        node, current, constants = top, readouts, []
        chain: list[fx.Node] = []
        while True:
            if "heads" in node.meta:
                self._activated_heads(node, current, constants)
                return
            if self.facts.within(node, boundary):
                self._leaf(top, readouts, self._kind(top, boundary), constants, chain)
                return
            chain.append(node)
            dependent = self._dependent(node)
            name = op_name(node)
            if name in SUMS and len(dependent) == 2:
                ends = [self._probe(other, boundary) for other in dependent]
                if all(end == "linear" for end in ends):
                    self._leaf(top, readouts, self._kind(top, boundary), constants, chain)
                    return
                self._keep(constants)
                for operand, mine in self._operands(node, current):
                    self._branch(operand, mine, boundary)
                return
            if name in JOINS and self._data_operand(node) is None:
                if not self._join(node, current, constants, boundary):
                    break
                return
            if is_product(self.facts, node):
                if node in self.pools:
                    self._keep(constants)
                    self._push(node, current)
                else:
                    self._heads(node, current, constants, node)
                return
            if name in ("mul", "div") and len(dependent) == 2:
                data = self._attention_operand(node, boundary)
                if data is None:
                    break
                other = next(arg for arg in dependent if arg is not data)
                current = [gate(self.context, r, other, divide=name == "div") for r in current]
                current = [unbroadcast(self.context, r, self.facts.shape(data)) for r in current]
                node = data
                continue
            following = self._data_operand(node)
            if following is None:
                break
            if self._splits_heads(node, current, following):
                self._heads(node, current, constants, following)
                return
            try:
                pulled = [pull(self.context, node, readout) for readout in current]
            except TooWide:
                break
            constants = constants + [c for result in pulled for c in result.constants]
            current = merge([r for result in pulled for _, r in result.inputs])
            node = following
        self._leaf(top, readouts, self._kind(top, boundary), constants, chain)

    def _attention_operand(self, node: fx.Node, boundary: int) -> fx.Node | None:
        operands = self._dependent(node)
        if op_name(node) == "div":
            return operands[0] if self._probe(operands[0], boundary) == "attention" else None
        ends = [self._probe(operand, boundary) == "attention" for operand in operands]
        return operands[ends.index(True)] if ends.count(True) == 1 else None

    def _join(
        self,
        node: fx.Node,
        readouts: list[Readout],
        constants: list[Constant],
        boundary: int,
    ) -> bool:
        """Follow the operands of a concatenation as branches of their own, where all can be."""
        ends = [self._probe(arg, boundary) for arg in node.args[0] if self.facts.depends(arg)]  # type: ignore[union-attr,arg-type]
        if all(end == "linear" for end in ends):
            return False
        try:
            pulled = [pull(self.context, node, readout) for readout in readouts]
        except TooWide:
            return False
        self._keep(constants + [c for result in pulled for c in result.constants])
        for result in pulled:
            for operand, readout in result.inputs:
                self._branch(operand, [readout], boundary)
        return True

    def hidden_pools(self) -> set[fx.Node]:
        """Attention products that alone read a residual stream this walk never came to.

        Class attention and attention pooling read tokens whose components have no other way to the
        representation; such products are to be passed through with their weights frozen, not cut
        into heads. Self-attention reads the stream that its result is added to.
        """
        found = set()
        for leaf in self.leaves:
            attended = product(self.facts, leaf.product) if leaf.product is not None else None
            if attended is not None and any(
                self.has_residual(entry) and entry not in self.visited
                for entry in self._entries(attended.values)
            ):
                found.add(attended.node)
        return found - self.pools

    def _root(self, node: fx.Node) -> fx.Node:
        """The tensor that a chain of reshapes, permutations and copies started from."""
        while op_name(node) in VIEWS and node.args:
            if op_name(node) == "slice" and self.facts.shape(node) != self.facts.shape(
                node.args[0]  # type: ignore[arg-type]
            ):
                break
            node = node.args[0]  # type: ignore[assignment]
        return node

    def _entries(self, node: fx.Node) -> list[fx.Node]:
        """The residual sums from which linear paths lead to a node."""
        if self.facts.within(node, self._residuals):
            return [node]
        following = self._data_operand(node)
        if following is None and is_product(self.facts, node):
            found = product(self.facts, node)
            following = found.values if found is not None else None
        if following is not None:
            return self._entries(following)
        if op_name(node) in JOINS:
            joined = [arg for arg in node.args[0] if self.facts.depends(arg)]  # type: ignore[union-attr]
            return [entry for operand in joined for entry in self._entries(operand)]  # type: ignore[arg-type]
        return []

    def _splits_heads(self, node: fx.Node, readouts: list[Readout], following: fx.Node) -> bool:
        """Whether a reshape takes heads apart from the batch, with an attention product below."""
        if op_name(node) not in ("view", "reshape", "_unsafe_view", "unflatten"):
            return False
        before, after = self.facts.shape(following), self.facts.shape(node)
        taken_apart = any(
            any(before[axis] < 0 for axis in left)
            and any(r.m.full(axis) for r in readouts for axis in right)
            for left, right in axis_groups(before, after)
            if len(right) > 1
        )
        return taken_apart and is_product(self.facts, self._root(following))

    def _activated_heads(
        self, node: fx.Node, readouts: list[Readout], constants: list[Constant]
    ) -> None:
        """One component per head where an activation follows the attention product."""
        attended, axes = node.meta["heads"]
        self._keep(constants)
        if attended in self.pools:
            self._push(node, readouts)
            return
        leaf = self._leaf(node, readouts, "head", [], [attended])
        leaf.head_axes = axes
        leaf.product = attended

    def _heads(
        self,
        node: fx.Node,
        readouts: list[Readout],
        constants: list[Constant],
        below: fx.Node,
    ) -> None:
        """Register one component per head of the attention product at (or below) `node`."""
        full = self.facts.shape(node)
        used = sorted({a for r in readouts for a in range(len(full)) if r.m.full(a)})
        attended = below
        while not is_product(self.facts, attended):
            attended = self._data_operand(attended)  # type: ignore[assignment]
        if below is node:
            inner = self._inner_axes(node)
            if any(readout.dense for readout in readouts):
                used = sorted(channel_axes(self.facts, node))
            heads = tuple(axis for axis in used if axis not in inner)
        else:
            heads = tuple(used[:1]) if len(used) > 1 else ()
        self._keep(constants)
        leaf = self._leaf(node, readouts, "head", [], [attended])
        leaf.head_axes = heads
        leaf.product = attended

    def _inner_axes(self, node: fx.Node) -> set[int]:
        """Axes of a product's result that are no batch axes: the tokens and the head's width."""
        if op_name(node) != "einsum":
            rank = len(self.facts.shape(node))
            return {rank - 1, rank - 2}
        inputs, output = str(node.args[0]).replace(" ", "").split("->")
        one, two = inputs.split(",")
        return {i for i, letter in enumerate(output) if not (letter in one and letter in two)}

    # -------------------------------------------------------------- leaves and their names

    def _leaf(
        self,
        node: fx.Node,
        readouts: list[Readout],
        kind: str,
        constants: list[Constant],
        chain: list[fx.Node],
    ) -> Leaf:
        self.context.tap(node)
        path = chain_path(chain or [node])
        leaf = Leaf(node, readouts, kind, path, constants=constants)
        leaf.order = self.facts.index[node]
        leaf.before = self.facts.before_batch(node)
        self.constants.extend(constants)
        self.leaves.append(leaf)
        self._note(node, "component", f"{kind} {path}")
        return leaf

    def _region(self, top: fx.Node, boundary: int) -> list[fx.Node]:
        """What computes a branch: back to its boundary and to other streams of the walk."""
        found: dict[fx.Node, None] = {top: None}
        todo = [top]
        while todo:
            for other in todo.pop().all_input_nodes:
                stream = other in self.visited or other in self.pending
                if other in found or stream or self.facts.within(other, boundary):
                    continue
                found[other] = None
                todo.append(other)
        return [node for node in found if self.facts.depends(node)]

    def _kind(self, top: fx.Node, boundary: int) -> str:
        region = self._region(top, boundary)
        if any(is_product(self.facts, node) for node in region):
            return "attention"
        if any(self._is_attention(node) for node in region):
            return "head"  # a sum weighted by one softmax: attention of a single head
        names = Counter(op_name(node) for node in region)
        wide = any(
            op_name(node).startswith("conv") and max(self.facts.shape(node.args[1])[2:]) > 1  # type: ignore[arg-type]
            for node in region
            if op_name(node).startswith("conv") and len(self.facts.shape(node.args[1])) > 2  # type: ignore[arg-type]
        )
        fed_forward = any(
            re.search(r"mlp|ffn|feed", kind.rsplit(".", 1)[-1], re.IGNORECASE)
            for node in region
            for kind in list(module_classes(node))[-2:]
        )
        if (wide or names["avg_pool2d"]) and not fed_forward:
            return "conv"
        return "mlp"


def _times(readout: Readout, factor: float) -> Readout:
    return Readout(readout.w.then(lambda t, run: t * factor), readout.m, readout.full)


def merge(readouts: list[Readout]) -> list[Readout]:
    """Readouts of one tensor with those of equal `M`, and all dense ones, added up."""
    by_matrix: dict[int, list[Readout]] = {}
    for readout in readouts:
        key = DENSE if readout.dense else id(readout.m)
        by_matrix.setdefault(key, []).append(readout)
    return [_added(group) for group in by_matrix.values()]


def _added(group: list[Readout]) -> Readout:
    total = group[0]
    for other in group[1:]:
        a, b = total.w, other.w
        if a.box != b.box:
            boxed = [i for i in range(len(a.shape)) if a.box[i] != b.box[i]]
            a, b = _to_union(a, b, boxed, total.full)
        shape = tuple(x if x != 1 else y for x, y in zip(a.shape, b.shape, strict=True))
        one, two = a.lazy, b.lazy
        lazy = Lazy(
            _adder(one, two), static=one.static and two.static, dense=one.dense or two.dense
        )
        box = tuple(p if p is not None else q for p, q in zip(a.box, b.box, strict=True))
        total = Readout(Weights(lazy, a.r, shape, box), total.m, total.full)
    return total


def _adder(one: Lazy, two: Lazy):  # type: ignore[no-untyped-def]
    return lambda run: run.get(one) + run.get(two)


def _to_union(
    a: Weights, b: Weights, axes: list[int], full: tuple[int, ...]
) -> tuple[Weights, Weights]:
    """Both factors with a common box along the given axes."""
    for axis in axes:
        if a.box[axis] is None or b.box[axis] is None:
            a, b = a.spread([axis], full), b.spread([axis], full)
            continue
        (s, n), (t, k) = a.box[axis], b.box[axis]  # type: ignore[misc]
        start, stop = min(s, t), max(s + n, t + k)
        a, b = (_widen(w, axis, start, stop) for w in (a, b))
    return a, b


def _widen(w: Weights, axis: int, start: int, stop: int) -> Weights:
    begin, count = w.box[axis]  # type: ignore[misc]
    pads = [0, 0] * (len(w.shape) - axis)
    pads[-2], pads[-1] = begin - start, stop - begin - count
    box = tuple((start, stop - start) if i == axis else b for i, b in enumerate(w.box))
    return w.then(lambda t, run: torch.nn.functional.pad(t, pads), box=box)


def chain_path(chain: list[fx.Node]) -> str:
    """Module that made a component: from where its path ends, outwards, but not the whole block."""
    path = module_path(chain[-1])
    for node in reversed(chain):
        wider = common_path([path, module_path(node)])
        if not wider or wider.rsplit(".", 1)[-1].isdigit():
            break
        path = wider
    return path


def common_path(paths: list[str]) -> str:
    """Longest common dotted prefix.

    >>> common_path(["blocks.3.mlp.act", "blocks.3.mlp.fc2"])
    'blocks.3.mlp'
    """
    parts = [path.split(".") for path in paths if path]
    if not parts:
        return ""
    shared = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared)
