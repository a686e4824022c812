"""Paths: what each node of a graph is to the walk, and where the linear paths from it lead."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from pipeline_lib.decomposition.attention import SOFTMAX, is_product, product
from pipeline_lib.decomposition.facts import Facts
from pipeline_lib.decomposition.frozen import SELECTIONS
from pipeline_lib.decomposition.operations import op_name
from pipeline_lib.decomposition.rules import RULES

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


class Paths:
    """Nonlinearities, residual additions and attention of a graph, as bits of its nodes.

    Attributes
    ----------
    nonlinear
        Products of two image-dependent tensors and operations without a rule.
    residuals
        Additions of two tensors of which a nonlinearity made one, or one comes from the other.
    attention
        Softmaxes and fused attention.
    """

    def __init__(self, facts: Facts, *, freeze_gates: bool) -> None:
        self.facts = facts
        self.freeze_gates = freeze_gates
        self.nonlinear = self._bits(self._is_nonlinear)
        self.residuals = self._bits(self._is_residual)
        self.attention = self._bits(is_attention)

    # -------------------------------------------------------------- what a node is

    def _bits(self, test: Callable[[fx.Node], bool]) -> int:
        bits = 0
        for i, node in enumerate(self.facts.nodes):
            if node.op == "call_function" and self.facts.depends(node) and test(node):
                bits |= 1 << i
        return bits

    def _is_nonlinear(self, node: fx.Node) -> bool:
        name = op_name(node)
        if name in ("mul", "div"):
            return len(self.dependent(node)) > 1 and not self._is_norm_product(node)
        return is_product(self.facts, node) or (name not in RULES and name not in NEUTRAL)

    def _is_norm_product(self, node: fx.Node) -> bool:
        return any(op_name(other) in ("rsqrt", "sqrt") for other in self.dependent(node))

    def _is_residual(self, node: fx.Node) -> bool:
        if op_name(node) not in SUMS:
            return False
        operands = self.dependent(node)
        if len(operands) < 2 or operands[0] is operands[1]:
            return False
        one, two = operands
        if is_centring(one, two):
            return False
        differ = self.facts.upstream(one) ^ self.facts.upstream(two)
        return bool(differ & self.nonlinear) or (
            self.facts.is_ancestor(one, two) or self.facts.is_ancestor(two, one)
        )

    def dependent(self, node: fx.Node) -> list[fx.Node]:
        """The first two operands, as far as they depend on the images."""
        if op_name(node).endswith("_as"):  # the second operand gives its shape only
            return [arg for arg in node.args[:1] if self.facts.depends(arg)]  # type: ignore[misc]
        return [arg for arg in node.args[:2] if self.facts.depends(arg)]  # type: ignore[misc]

    def is_residual(self, node: fx.Node) -> bool:
        """Whether a node is a residual addition."""
        return self.facts.within(node, self.residuals)

    def has_residual(self, node: fx.Node) -> bool:
        """Whether a residual addition is at a node or before it."""
        return bool(self.facts.upstream(node) & self.residuals)

    # -------------------------------------------------------------- where paths lead

    def data_operand(self, node: fx.Node) -> fx.Node | None:
        """The one operand that a linear operation passes on, if it has a rule and just one."""
        name = op_name(node)
        if name not in RULES:
            return None
        if name == "getitem":
            return node.args[0].args[0]  # type: ignore[union-attr,return-value]
        if name in JOINS:
            found = [arg for arg in node.args[0] if self.facts.depends(arg)]  # type: ignore[union-attr]
        else:
            found = self.dependent(node)
        return found[0] if len(found) == 1 else None  # type: ignore[return-value]

    def leads_to(self, top: fx.Node, boundary: int) -> str:
        """Where the linear path from `top` leads: `linear` (into the boundary), `residual` (to
        another residual addition), `attention`, `nonlinear`, or `mixed`."""
        node = top
        while True:
            if self.facts.within(node, boundary) or node.op != "call_function":
                return "linear"
            name = op_name(node)
            dependent = self.dependent(node)
            if name in SUMS and len(dependent) == 2:
                one, two = dependent
                if is_centring(one, two):
                    node = one
                    continue
                if self.is_residual(node) and (
                    self.facts.is_ancestor(one, two) or self.facts.is_ancestor(two, one)
                ):
                    return "residual"
                ends = {self.leads_to(one, boundary), self.leads_to(two, boundary)}
                return ends.pop() if len(ends) == 1 else "mixed"
            if is_product(self.facts, node):
                return "attention"
            if name in ("mul", "div") and len(dependent) == 2:
                if name == "div" or self._is_norm_product(node):
                    node = dependent[0]
                    continue
                led = [self.leads_to(other, boundary) for other in dependent]
                for wanted in ("attention", "residual"):
                    if led.count(wanted) == 1:
                        return wanted
                return "nonlinear"
            following = self.data_operand(node)
            if following is None and self.freeze_gates and name in SELECTIONS:
                following = node.args[0]  # type: ignore[assignment]
            if following is None:
                return "nonlinear"
            node = following

    def root(self, node: fx.Node) -> fx.Node:
        """The tensor that a chain of reshapes, permutations and copies started from."""
        while op_name(node) in VIEWS and node.args:
            if op_name(node) == "slice" and self.facts.shape(node) != self.facts.shape(
                node.args[0]  # type: ignore[arg-type]
            ):
                break
            node = node.args[0]  # type: ignore[assignment]
        return node

    def entries(self, node: fx.Node) -> list[fx.Node]:
        """The residual sums from which linear paths lead to a node."""
        if self.is_residual(node):
            return [node]
        following = self.data_operand(node)
        if following is None and is_product(self.facts, node):
            found = product(self.facts, node)
            following = found.values if found is not None else None
        if following is not None:
            return self.entries(following)
        if op_name(node) in JOINS:
            joined = [arg for arg in node.args[0] if self.facts.depends(arg)]  # type: ignore[union-attr]
            return [entry for operand in joined for entry in self.entries(operand)]  # type: ignore[arg-type]
        return []


def is_attention(node: fx.Node) -> bool:
    """Whether a node is a softmax or fused attention."""
    return op_name(node) in (*SOFTMAX, "scaled_dot_product_attention")


def is_centring(one: fx.Node, two: fx.Node) -> bool:
    """Whether the second operand of a difference is a mean of the first."""
    return op_name(two) == "mean" and two.args[0] is one
