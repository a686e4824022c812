"""Branches: from where a branch joins the stream, back to the components that wrote it.

The walk in a branch follows linear operations back to what a nonlinearity last produced: that is
the component. An attention product found there is cut into its heads, whatever way heads lie in it.
"""

from __future__ import annotations

import re
from collections import Counter

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

    def follow(
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
                self.findings.leaf(
                    top, readouts, self._kind(top, boundary, chain), constants, chain
                )
                return
            chain.append(node)
            dependent = self.paths.dependent(node)
            name = op_name(node)
            if name in SUMS and len(dependent) == 2:
                ends = [self.paths.leads_to(other, boundary) for other in dependent]
                if all(end == "linear" for end in ends):
                    self.findings.leaf(
                        top, readouts, self._kind(top, boundary, chain), constants, chain
                    )
                    return
                self.findings.keep(constants)
                for operand, mine in self.operands(node, current):
                    self.follow(operand, mine, boundary)
                return
            if name in JOINS and self.paths.data_operand(node) is None:
                if not self._join(node, current, constants, boundary):
                    break
                return
            if is_product(self.facts, node):
                if node in self.pools:
                    self.findings.keep(constants)
                    self.stream.push(node, current)
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
            following = self.paths.data_operand(node)
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
        self.findings.leaf(top, readouts, self._kind(top, boundary, chain), constants, chain)

    def _attention_operand(self, node: fx.Node, boundary: int) -> fx.Node | None:
        operands = self.paths.dependent(node)
        if op_name(node) == "div":
            led = self.paths.leads_to(operands[0], boundary)
            return operands[0] if led == "attention" else None
        ends = [self.paths.leads_to(operand, boundary) == "attention" for operand in operands]
        return operands[ends.index(True)] if ends.count(True) == 1 else None

    def _join(
        self,
        node: fx.Node,
        readouts: list[Readout],
        constants: list[Constant],
        boundary: int,
    ) -> bool:
        """Follow the operands of a concatenation as branches of their own, where all can be."""
        operands = [arg for arg in node.args[0] if self.facts.depends(arg)]  # type: ignore[union-attr]
        if all(self.paths.leads_to(arg, boundary) == "linear" for arg in operands):  # type: ignore[arg-type]
            return False
        try:
            pulled = [pull(self.context, node, readout) for readout in readouts]
        except TooWide:
            return False
        self.findings.keep(constants + [c for result in pulled for c in result.constants])
        for result in pulled:
            for operand, readout in result.inputs:
                self.follow(operand, [readout], boundary)
        return True

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

    def _activated_heads(
        self, node: fx.Node, readouts: list[Readout], constants: list[Constant]
    ) -> None:
        """One component per head where an activation follows the attention product."""
        products, axes = node.meta["heads"]
        self.findings.keep(constants)
        if self.pools.intersection(products):
            self.stream.push(node, readouts)
            return
        leaf = self.findings.leaf(node, readouts, "head", [], [products[0]])
        leaf.head_axes = axes
        leaf.product = products[0]

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
            attended = self.paths.data_operand(attended)  # type: ignore[assignment]
        if below is node:
            inner = self._inner_axes(node)
            if any(readout.dense for readout in readouts):
                used = sorted(channel_axes(self.facts, node))
            heads = tuple(axis for axis in used if axis not in inner)
        else:
            heads = tuple(used[:1]) if len(used) > 1 else ()
        self.findings.keep(constants)
        leaf = self.findings.leaf(node, readouts, "head", [], [attended])
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

    def _kind(self, top: fx.Node, boundary: int, chain: list[fx.Node]) -> str:
        region = self._region(top, boundary)
        if any(is_product(self.facts, node) for node in region):
            return "attention"
        if any(is_attention(node) for node in region):
            return "head"  # a sum weighted by one softmax: attention of a single head
        if is_named_attention(chain):
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
