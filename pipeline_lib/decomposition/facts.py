"""What is known of each node of a captured graph before any value is computed."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, fx

from pipeline_lib.decomposition.capture import Capture
from pipeline_lib.decomposition.operations import op_name, where
from pipeline_lib.decomposition.readout import Lazy, Run, Shape, axis_groups
from pipeline_lib.errors import DecompositionRefused

RESHAPES = (
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze",
    "view_as", "reshape_as",
)  # fmt: skip


class Facts:
    """Shapes, dependence on the images, ancestors and constants of a captured graph.

    Sets of nodes are kept as the bits of integers, which makes ancestor tests cheap on graphs of
    thousands of nodes.
    """

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.nodes = list(capture.graph.nodes)
        self.index = {node: i for i, node in enumerate(self.nodes)}
        self._ancestors: dict[fx.Node, int] = {}
        self._depends: dict[fx.Node, bool] = {}
        self._sized: dict[fx.Node, bool] = {}
        for node in self.nodes:
            inputs = node.all_input_nodes
            bits = 0
            for other in inputs:
                bits |= self._ancestors[other] | (1 << self.index[other])
            self._ancestors[node] = bits
            size = op_name(node).startswith("sym_size") if node.op == "call_function" else False
            self._depends[node] = node is capture.images or (
                not size and any(self._depends[other] for other in inputs)
            )
            self._sized[node] = size or any(self._sized[other] for other in inputs)
        self._constants: dict[fx.Node, Lazy] = {}
        self._before: dict[fx.Node, int] = {}

    def depends(self, node: object) -> bool:
        """Whether a node's value depends on the pixels (not only on the batch size)."""
        return isinstance(node, fx.Node) and self._depends[node]

    def is_ancestor(self, one: fx.Node, other: fx.Node) -> bool:
        return bool(self._ancestors[other] >> self.index[one] & 1)

    def upstream(self, node: fx.Node) -> int:
        """The node and its ancestors, as bits."""
        return self._ancestors[node] | (1 << self.index[node])

    def within(self, node: fx.Node, bits: int) -> bool:
        return bool(bits >> self.index[node] & 1)

    def members(self, bits: int) -> Iterator[fx.Node]:
        for i, node in enumerate(self.nodes):
            if bits >> i & 1:
                yield node

    def shape(self, node: fx.Node) -> Shape:
        """Pattern of a tensor's shape; `-k` stands for `k` times the batch size."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            raise DecompositionRefused(f"{op_name(node)} {where(node)} does not return one tensor")
        return tuple(_pattern(dim, node) for dim in value.shape)

    def before_batch(self, node: fx.Node) -> int:
        """Where an axis holds `before * batch * after` entries: what stands before the batch.

        1 where the batch comes first, as in windows cut from an image; the number of tokens where
        tokens were folded with the batch behind them, as in `nn.MultiheadAttention`.
        """
        found = self._before.get(node)
        if found is None:
            found = self._trace_before(node)
            self._before[node] = found
        return found

    def _trace_before(self, node: fx.Node) -> int:
        shape = self.shape(node)
        folded = [axis for axis, dim in enumerate(shape) if dim < -1]
        if not folded or node.op != "call_function":
            return 1
        axis = folded[0]
        if op_name(node) in RESHAPES:
            source = node.args[0]
            inner = self.shape(source)  # type: ignore[arg-type]
            for left, right in axis_groups(inner, shape):
                if axis in right:
                    batch = next(a for a in left if inner[a] < 0)
                    total = math.prod(inner[a] for a in left if a < batch)
                    total *= self.before_batch(source)  # type: ignore[arg-type]
                    return total // math.prod(shape[a] for a in right if a < axis)
        for other in node.all_input_nodes:
            is_tensor = isinstance(other.meta.get("val"), Tensor)
            if is_tensor and self._depends[other] and shape[axis] in self.shape(other):
                return self.before_batch(other)
        return 1

    def operand_shape(self, operand: object) -> Shape:
        return self.shape(operand) if isinstance(operand, fx.Node) else ()

    def constant(self, operand: object) -> Lazy:
        """Value of a node (or number) that does not depend on the pixels."""
        if not isinstance(operand, fx.Node):
            value = operand
            kind = torch.float64 if isinstance(value, float) else None
            return Lazy(lambda run: torch.as_tensor(value, dtype=kind), static=True)
        found = self._constants.get(operand)
        if found is None:
            node = operand
            found = Lazy(lambda run: _evaluate(node, run, {}), static=not self._sized[node])
            self._constants[operand] = found
        return found


def _pattern(dim: object, node: fx.Node) -> int:
    if isinstance(dim, int):
        return dim
    expression = dim.node.expr  # type: ignore[attr-defined]
    symbols = list(expression.free_symbols)
    if len(symbols) == 1:
        at_one = expression.subs(symbols[0], 1)
        at_two = expression.subs(symbols[0], 2)
        if at_one.is_integer and at_two == 2 * at_one:
            return -int(at_one)
    raise DecompositionRefused(
        f"{op_name(node)} {where(node)} has a length that is not a multiple of the batch size"
    )


def _evaluate(node: fx.Node, run: Run, seen: dict[fx.Node, object]) -> object:
    if node in seen:
        return seen[node]
    if node.op == "placeholder":
        result: object = run.state[node.name]
    elif op_name(node).startswith("sym_size"):
        value = node.args[0].meta["val"].shape[node.args[1]]  # type: ignore[union-attr,index]
        result = value if isinstance(value, int) else -_pattern(value, node) * run.batch
    elif node.op == "call_function":
        args = fx.map_arg(node.args, lambda other: _evaluate(other, run, seen))
        kwargs = fx.map_arg(node.kwargs, lambda other: _evaluate(other, run, seen))
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    else:
        raise DecompositionRefused(f"cannot evaluate {node.op} {node.target} {where(node)}")
    seen[node] = result
    return result
