"""Rules: how the readout of an operation's result becomes the readout of its operand.

One function per kind of linear operation; an operation without a rule ends the direct path. Norms
are linear with their statistics frozen, products with a gate are linear with the gate frozen.
Constants met on the way (biases, additive parts of norms, class tokens) are handed over as terms
of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import fx

from pipeline_lib.decomposition.facts import Facts
from pipeline_lib.decomposition.operations import op_name, where
from pipeline_lib.decomposition.readout import (
    Lazy,
    Readout,
    TooWide,
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


def argument(node: fx.Node, position: int, name: str, default: object = None) -> object:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def axis_of(axis: int, rank: int) -> int:
    return axis % rank


def single(node: fx.Node, readout: Readout) -> Pulled:
    return Pulled([(node.args[0], readout)])  # type: ignore[list-item]


# ------------------------------------------------------------------ values pass unchanged


@rule(
    "dropout", "feature_dropout", "clone", "contiguous", "detach", "alias", "lift_fresh",
    "_to_copy", "to", "type_as", "identity", "lift_fresh_copy", "positive",
)  # fmt: skip
def _pass(context: Context, node: fx.Node, readout: Readout) -> Pulled:
    return single(node, readout)


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
