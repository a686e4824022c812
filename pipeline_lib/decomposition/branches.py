"""Branches: from where a branch joins the stream, back to the components that wrote it.

The walk in a branch follows linear operations back to what a nonlinearity last produced: that is
the component. An attention product found there is cut into its heads, whatever way heads lie in it.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from torch import fx

from pipeline_lib.decomposition.attention import is_product
from pipeline_lib.decomposition.facts import Facts
from pipeline_lib.decomposition.heads import channel_axes
from pipeline_lib.decomposition.leaves import Findings, Stream
from pipeline_lib.decomposition.merging import merge, times
from pipeline_lib.decomposition.operations import chain_path, class_at, module_classes, op_name
from pipeline_lib.decomposition.paths import JOINS, SUMS, Paths, is_attention
from pipeline_lib.decomposition.readout import Readout, TooWide, axis_groups
from pipeline_lib.decomposition.rules import (
    Constant,
    Context,
    addend_factor,
    gate,
    pull,
    unbroadcast,
)


@dataclass
class Path:
    """A way back from the end of a branch.

    Attributes
    ----------
    top, whole
        The end of the branch, and how the representation reads it.
    boundary
        What the stream was computed from before the branch left it, as bits of nodes.
    node, readouts
        Where the path has come to, and how the representation reads that.
    constants, chain
        Constants met on the way, and the operations passed.
    """

    top: fx.Node
    whole: list[Readout]
    boundary: int
    node: fx.Node
    readouts: list[Readout]
    constants: list[Constant] = field(default_factory=list)
    chain: list[fx.Node] = field(default_factory=list)


class Branches:
    """Follows the branches of one walk; attention products in `pools` go on with the stream."""

    def __init__(
        self,
        context: Context,
        paths: Paths,
        findings: Findings,
        stream: Stream,
        pools: frozenset[fx.Node],
    ) -> None:
        self.facts: Facts = context.facts
        self.context, self.paths, self.findings = context, paths, findings
        self.stream, self.pools = stream, pools

    def operands(
        self, node: fx.Node, readouts: list[Readout]
    ) -> list[tuple[fx.Node, list[Readout]]]:
        """The two operands of an addition with their readouts."""
        found = []
        for position, operand in enumerate(node.args[:2]):
            factor = addend_factor(node, position)
            mine = []
            for readout in readouts:
                if factor != 1:
                    readout = times(readout, factor)
                mine.append(unbroadcast(self.context, readout, self.facts.shape(operand)))  # type: ignore[arg-type]
            found.append((operand, mine))
        return found  # type: ignore[return-value]

    def follow(self, top: fx.Node, readouts: list[Readout], boundary: int) -> None:
        """Register the components of the branch that ends in `top` and began in `boundary`."""
        path = Path(top, readouts, boundary, top, readouts)
        while (following := self._next(path)) is not None:
            path.node = following

    def _next(self, path: Path) -> fx.Node | None:
        """One step back along a path; None where it ended or went on as branches of their own."""
        node = path.node
        if "heads" in node.meta:
            return self._activated_heads(path)
        if self.facts.within(node, path.boundary):
            return self._end(path)
        path.chain.append(node)
        name, dependent = op_name(node), self.paths.dependent(node)
        if name in SUMS and len(dependent) == 2:
            return self._at_sum(path, dependent)
        if name in JOINS and self.paths.data_operand(node) is None:
            return self._at_join(path)
        if is_product(self.facts, node):
            return self._at_product(path)
        if name in ("mul", "div") and len(dependent) == 2:
            return self._at_gate(path, dependent)
        return self._through(path)

    def _end(self, path: Path) -> None:
        """The branch is one component, with the constants met on the way taken off."""
        kind = self._kind(path)
        self.findings.leaf(path.top, path.whole, kind, path.constants, path.chain)

    def _at_sum(self, path: Path, operands: list[fx.Node]) -> None:
        ends = [self.paths.leads_to(other, path.boundary) for other in operands]
        whole = "attention" not in ends and is_named_attention(path.chain)
        if whole or all(end == "linear" for end in ends):
            return self._end(path)
        self.findings.keep(path.constants)
        for operand, mine in self.operands(path.node, path.readouts):
            self.follow(operand, mine, path.boundary)
        return None

    def _at_join(self, path: Path) -> None:
        """Follow the operands of a concatenation as branches of their own, where all can be."""
        operands = [arg for arg in path.node.args[0] if self.facts.depends(arg)]  # type: ignore[union-attr]
        if all(self.paths.leads_to(arg, path.boundary) == "linear" for arg in operands):  # type: ignore[arg-type]
            return self._end(path)
        try:
            pulled = [pull(self.context, path.node, readout) for readout in path.readouts]
        except TooWide:
            return self._end(path)
        self.findings.keep(path.constants + [c for result in pulled for c in result.constants])
        for result in pulled:
            for operand, readout in result.inputs:
                self.follow(operand, [readout], path.boundary)
        return None

    def _at_product(self, path: Path) -> None:
        if path.node not in self.pools:
            return self._heads(path, path.node)
        self.findings.keep(path.constants)
        return self.stream.push(path.node, path.readouts)

    def _at_gate(self, path: Path, operands: list[fx.Node]) -> fx.Node | None:
        """The factor that leads to attention, the other being frozen."""
        data = self._attention_operand(path.node, path.boundary)
        if data is None:
            return self._end(path)
        other = next(arg for arg in operands if arg is not data)
        divide = op_name(path.node) == "div"
        gated = [gate(self.context, readout, other, divide=divide) for readout in path.readouts]
        shape = self.facts.shape(data)
        path.readouts = [unbroadcast(self.context, readout, shape) for readout in gated]
        return data

    def _attention_operand(self, node: fx.Node, boundary: int) -> fx.Node | None:
        operands = self.paths.dependent(node)
        led = [self.paths.leads_to(operand, boundary) == "attention" for operand in operands]
        if op_name(node) == "div":
            return operands[0] if led[0] else None
        return operands[led.index(True)] if led.count(True) == 1 else None

    def _through(self, path: Path) -> fx.Node | None:
        """The operand of a linear operation."""
        following = self.paths.data_operand(path.node)
        if following is None:
            return self._end(path)
        if self._splits_heads(path.node, path.readouts, following):
            return self._heads(path, following)
        try:
            pulled = [pull(self.context, path.node, readout) for readout in path.readouts]
        except TooWide:
            return self._end(path)
        path.constants = path.constants + [c for result in pulled for c in result.constants]
        path.readouts = merge([readout for result in pulled for _, readout in result.inputs])
        return following

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
        return taken_apart and is_product(self.facts, self.paths.root(following))

    def _activated_heads(self, path: Path) -> None:
        """One component per head where an activation follows the attention product."""
        products, axes = path.node.meta["heads"]
        self.findings.keep(path.constants)
        if self.pools.intersection(products):
            return self.stream.push(path.node, path.readouts)
        leaf = self.findings.leaf(path.node, path.readouts, "head", [], [products[0]])
        leaf.head_axes, leaf.product = axes, products[0]
        return None

    def _heads(self, path: Path, below: fx.Node) -> None:
        """Register one component per head of the attention product at (or below) the node."""
        node, readouts = path.node, path.readouts
        full = self.facts.shape(node)
        used = sorted({a for r in readouts for a in range(len(full)) if r.m.full(a)})
        attended = below
        while not is_product(self.facts, attended):
            attended = self.paths.data_operand(attended)  # type: ignore[assignment]
        if below is node:
            inner = self._inner_axes(node)
            if any(readout.dense for readout in readouts):
                used = sorted(channel_axes(self.facts, node))
            heads = tuple(axis for axis in used if axis not in inner)
        else:
            heads = tuple(used[:1]) if len(used) > 1 else ()
        self.findings.keep(path.constants)
        leaf = self.findings.leaf(node, readouts, "head", [], [attended])
        leaf.head_axes, leaf.product = heads, attended

    def _inner_axes(self, node: fx.Node) -> set[int]:
        """Axes of a product's result that are no batch axes: the tokens and the head's width."""
        if op_name(node) != "einsum":
            rank = len(self.facts.shape(node))
            return {rank - 1, rank - 2}
        inputs, output = str(node.args[0]).replace(" ", "").split("->")
        one, two = inputs.split(",")
        return {i for i, letter in enumerate(output) if not (letter in one and letter in two)}

    def _region(self, top: fx.Node, boundary: int) -> list[fx.Node]:
        """What computes a branch: back to its boundary and to other streams of the walk."""
        found: dict[fx.Node, None] = {top: None}
        todo = [top]
        while todo:
            for other in todo.pop().all_input_nodes:
                outside = self.stream.reached(other) or self.facts.within(other, boundary)
                if other not in found and not outside:
                    found[other] = None
                    todo.append(other)
        return [node for node in found if self.facts.depends(node)]

    def _kind(self, path: Path) -> str:
        region = self._region(path.top, path.boundary)
        if any(is_product(self.facts, node) for node in region):
            return "attention"
        if any(is_attention(node) for node in region):
            return "head"  # a sum weighted by one softmax: attention of a single head
        if is_named_attention(path.chain):
            return "head"  # additive attention, which multiplies elementwise: a single head
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


def is_named_attention(chain: list[fx.Node]) -> bool:
    """Whether the class of the module that ran a path is named attention."""
    path = chain_path(chain) if chain else ""
    return any(re.search("attention", class_at(node, path), re.IGNORECASE) for node in chain)
