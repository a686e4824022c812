"""What is known of each node of a captured graph before any value is computed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from pipeline_lib.decompose.capture import Capture
from pipeline_lib.decompose.operations import op_name, where
from pipeline_lib.decompose.readout import Lazy, Run, Shape
from pipeline_lib.errors import DecompositionRefused


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

    def operand_shape(self, operand: object) -> Shape:
        return self.shape(operand) if isinstance(operand, fx.Node) else ()

    def constant(self, operand: object) -> Lazy:
        """Value of a node (or number) that does not depend on the pixels."""
        if not isinstance(operand, fx.Node):
            value = operand
            return Lazy(lambda run: torch.as_tensor(value), static=True)
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
