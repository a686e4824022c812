"""Leaves: the tensors at which paths end, and all that a walk notes on its way to them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import fx

from pipeline_lib.decomposition.facts import Facts
from pipeline_lib.decomposition.merging import merge
from pipeline_lib.decomposition.operations import chain_path, module_path, op_name
from pipeline_lib.decomposition.readout import Readout
from pipeline_lib.decomposition.rules import Constant, Context


@dataclass(eq=False)
class Leaf:
    """A tensor at which a path ends: one component, or one per head.

    Attributes
    ----------
    node
        The tensor whose readout gives the contribution.
    readouts
        How the representation reads it; several are summed.
    kept
        The same at the part of `node` that is recorded (`records`).
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
    end
        The operation at which the path back from it ended.
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
    end: fx.Node | None = None
    kept: list[Readout] = field(default_factory=list)


def joined(leaves: list[Leaf]) -> list[Leaf]:
    """Leaves of which those at one tensor, met on several paths, are one component.

    What one path shows to be a convolution is one, though others see an MLP behind it.
    """
    found: dict[object, Leaf] = {}
    for leaf in leaves:
        key = (leaf.node, leaf.path, leaf.head_axes, leaf.product)
        if key in found:
            first = found[key]
            merged = merge([*first.readouts, *leaf.readouts])
            constants = [*first.constants, *leaf.constants]
            kind = "conv" if leaf.kind == "conv" else first.kind
            found[key] = replace(first, readouts=merged, constants=constants, kind=kind)
        else:
            found[key] = leaf
    return list(found.values())


@dataclass(eq=False)
class Barrier:
    """A nonlinearity on the residual stream, behind which components lie."""

    node: fx.Node
    reason: str
    joined: bool


class Stream:
    """Readouts of the residual stream: those that wait at a tensor, and where the walk has been."""

    def __init__(self) -> None:
        self.pending: dict[fx.Node, list[Readout]] = {}
        self.visited: set[fx.Node] = set()

    def push(self, node: fx.Node, readouts: list[Readout]) -> None:
        """Let readouts wait at a tensor."""
        self.pending.setdefault(node, []).extend(readouts)

    def pop(self, node: fx.Node) -> list[Readout]:
        """What waits at a tensor."""
        readouts = self.pending.pop(node, [])
        if readouts:
            self.visited.add(node)
        return readouts

    def reached(self, node: fx.Node) -> bool:
        """Whether the walk has come to a tensor, or is to come to it."""
        return node in self.visited or node in self.pending


class Findings:
    """What a walk finds: leaves, constants, barriers, and a row for each operation it passes."""

    def __init__(self, facts: Facts, context: Context) -> None:
        self.facts, self.context = facts, context
        self.leaves: list[Leaf] = []
        self.constants: list[Constant] = []
        self.stem_constants: list[Constant] = []
        self.barriers: list[Barrier] = []
        self.rows: list[tuple[str, str, str, str]] = []

    def note(self, node: fx.Node, role: str, detail: str = "") -> None:
        """A row of the plan's table."""
        self.rows.append((module_path(node), op_name(node), role, detail))

    def keep(self, constants: list[Constant]) -> None:
        """Constants, sorted into those of the bias and those of the stem."""
        for constant in constants:
            (self.constants if constant.bias else self.stem_constants).append(constant)

    def leaf(
        self, node: fx.Node, readouts: list[Readout], kind: str, constants: list[Constant],
        chain: list[fx.Node],
    ) -> Leaf:  # fmt: skip
        """Register a component; its name is the module that ran the operations of `chain`."""
        path = chain_path(chain or [node])
        leaf = Leaf(node, readouts, kind, path, constants=constants)
        leaf.order = self.facts.index[node]
        leaf.before = self.facts.before_batch(node)
        leaf.end = chain[-1] if chain else node
        self.constants.extend(constants)
        self.leaves.append(leaf)
        self.note(node, "component", f"{kind} {path}")
        return leaf
