"""Walk: go back from the representation along the residual stream, and collect the components.

At an addition where one operand is an ancestor of the other, the ancestor is the residual stream
and the other is a branch (`branches`). What remains of the stream before the first branch is the
stem; biases, and the additive parts of norms, are the constants.
"""

from __future__ import annotations

from torch import fx

from pipeline_lib.decomposition.attention import is_product, product, through
from pipeline_lib.decomposition.branches import Branches
from pipeline_lib.decomposition.capture import Capture
from pipeline_lib.decomposition.facts import Facts
from pipeline_lib.decomposition.frozen import detail_of, pull_frozen
from pipeline_lib.decomposition.leaves import Barrier, Findings, Stream
from pipeline_lib.decomposition.merging import merge
from pipeline_lib.decomposition.operations import module_path, op_name
from pipeline_lib.decomposition.paths import SUMS, Paths, is_centring
from pipeline_lib.decomposition.readout import Readout, TooWide, identity_readout
from pipeline_lib.decomposition.rules import Context, gate, pull, unbroadcast

#: Most products a factored readout may have before it becomes dense (see `Readout.r`).
MOST_PRODUCTS = 1024


class Walk:
    """One walk from an output node back to the image.

    Attributes
    ----------
    findings
        Leaves, constants and barriers found, and the rows of the plan's table.
    """

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
        self.output = output
        self.pools = pools
        self.pass_through = pass_through
        self.freeze_gates = freeze_gates
        self.head = head
        self.joined = False
        self.facts = Facts(capture)
        self.context = Context(self.facts, {}, MOST_PRODUCTS)
        self.paths = Paths(self.facts, freeze_gates=freeze_gates)
        self.findings = Findings(self.facts, self.context)
        self.stream = Stream()
        self.branches = Branches(self.context, self.paths, self.findings, self.stream, pools)

    def run(self) -> None:
        """Walk the stream from the output to the stem."""
        value = self.output.meta["val"]
        readout = identity_readout(int(value.shape[-1]), value.dtype, value.device)
        self.stream.push(self.output, [readout])
        for node in reversed(self.facts.nodes):
            readouts = self.stream.pop(node)
            if readouts:
                self._visit(node, merge(readouts))

    def _visit(self, node: fx.Node, readouts: list[Readout]) -> None:
        if not self.paths.has_residual(node):
            self.findings.leaf(node, readouts, "stem", [], [node])
            return
        name = op_name(node)
        if name in SUMS and len(self.paths.dependent(node)) == 2:
            self._addition(node, readouts)
            return
        detail = detail_of(node) if self.freeze_gates else None
        if detail is not None and not self._ends_the_head(node):
            self.findings.note(node, "frozen", detail)
            pulled = [pull_frozen(self.context, node, readout) for readout in readouts]
            self.stream.push(node.args[0], pulled)  # type: ignore[arg-type]
            return
        if name in ("mul", "div") and len(self.paths.dependent(node)) == 2:
            data = self._gated(node)
            if data is not None:
                self._pull_gate(node, data, readouts)
                return
        if is_product(self.facts, node):
            found = product(self.facts, node)
            if found is not None and not self.pass_through:
                self.findings.leaf(node, readouts, "head", [], [node]).product = node
                return
            if found is not None:
                self.findings.note(node, "frozen", "attention pooling")
                self.stream.push(found.values, [through(self.context, found, r) for r in readouts])
                return
        try:
            pulled = [pull(self.context, node, readout) for readout in readouts]
        except TooWide as reason:
            self.findings.barriers.append(Barrier(node, str(reason), self.joined))
            self.findings.leaf(node, readouts, "stem", [], [node])
            return
        frozen = "norm" in name
        self.findings.note(node, "frozen" if frozen else "linear", "statistics" if frozen else "")
        for result in pulled:
            for operand, readout in result.inputs:
                self.stream.push(operand, [readout])
            self.findings.keep(result.constants)

    def joined_before(self, node: fx.Node) -> bool:
        """Whether a residual addition stands between a barrier and the representation."""
        return any(barrier.joined for barrier in self.findings.barriers if barrier.node is node)

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
        while current is not None and not self.paths.is_residual(current):
            if op_name(current).startswith(("linear", "conv", "addmm", "matmul", "mm")):
                return True
            current = self.paths.data_operand(current)
        return current is None

    def _addition(self, node: fx.Node, readouts: list[Readout]) -> None:
        self.joined = self.joined or self.paths.is_residual(node)
        (one, first), (two, second) = self.branches.operands(node, readouts)
        if one is two or is_centring(one, two):
            self.findings.note(node, "linear", "centring")
            self.stream.push(one, first)
            self.stream.push(two, second)
        elif self.facts.is_ancestor(one, two):
            self.findings.note(node, "residual", "")
            self.stream.push(one, first)
            self.branches.follow(two, second, self.facts.upstream(one))
        elif self.facts.is_ancestor(two, one):
            self.findings.note(node, "residual", "")
            self.stream.push(two, second)
            self.branches.follow(one, first, self.facts.upstream(two))
        else:
            self.findings.note(node, "sum", "")
            common = self.facts.upstream(one) & self.facts.upstream(two)
            for operand, mine in ((one, first), (two, second)):
                if self.paths.leads_to(operand, common) in ("linear", "residual"):
                    self.stream.push(operand, mine)
                else:
                    self.branches.follow(operand, mine, common)

    def _gated(self, node: fx.Node) -> fx.Node | None:
        """The operand of a product that the path follows, the other being a frozen gate."""
        operands = self.paths.dependent(node)
        if op_name(node) == "div":
            return operands[0]
        reach = [self.paths.leads_to(operand, 0) in ("residual",) for operand in operands]
        if reach[0] != reach[1]:
            return operands[reach.index(True)]
        one, two = operands
        if self.freeze_gates and self.facts.is_ancestor(one, two):  # x * g(x)
            return one
        if self.freeze_gates and self.facts.is_ancestor(two, one):
            return two
        return None

    def _pull_gate(self, node: fx.Node, data: fx.Node, readouts: list[Readout]) -> None:
        other = next(arg for arg in self.paths.dependent(node) if arg is not data)
        own = self.facts.is_ancestor(data, other)
        self.findings.note(node, "frozen", "frozen gate" if own else "gate")
        for readout in readouts:
            gated = gate(self.context, readout, other, divide=op_name(node) == "div")
            self.stream.push(data, [unbroadcast(self.context, gated, self.facts.shape(data))])

    def hidden_pool(self, nearest_output: bool) -> fx.Node | None:
        """The first attention product that reads a residual stream this walk never came to.

        Class attention and attention pooling read tokens whose components have no other way to the
        representation; such a product is to be passed through with its weights frozen, not cut
        into heads. Self-attention reads the stream that its result is added to. Of several the one
        nearest the input (or the output) is named: with it passed, others may read a stream that
        has been reached.
        """
        found = set()
        for leaf in self.findings.leaves:
            attended = product(self.facts, leaf.product) if leaf.product is not None else None
            if attended is not None and any(
                self.paths.has_residual(entry) and entry not in self.stream.visited
                for entry in self.paths.entries(attended.values)
            ):
                found.add(attended.node)
        choose = max if nearest_output else min
        return choose(found - self.pools, key=self.facts.index.__getitem__, default=None)
