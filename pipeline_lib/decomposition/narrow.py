"""Narrow: compute only the rows that are read.

A representation that is one token's row needs, after the last attention product, no other row.
This pass carries such a demand back through the graph (norms, linear layers, activations, sums,
queries of attention) and cuts the operations to the rows asked for. What is computed stays the
same, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from pipeline_lib.decomposition.operations import op_name
from pipeline_lib.decomposition.readout import axis_groups


@dataclass(frozen=True)
class Rows:
    """Rows `start … start + count` along one axis of a tensor."""

    axis: int
    start: int
    count: int


_UNARY = {
    "dropout", "clone", "contiguous", "detach", "alias", "gelu", "relu", "silu", "tanh", "sigmoid",
    "hardswish", "hardsigmoid", "elu", "leaky_relu", "neg", "feature_dropout", "relu6", "mish",
}  # fmt: skip
_BINARY = {"add", "sub", "mul", "div"}
_SHAPING = {"view", "reshape", "_unsafe_view"}

Demand = Rows | None  # None: everything


def narrow(graph: fx.Graph) -> None:
    """Cut the operations of a captured graph, in place, to the rows that are read."""
    wanted: dict[fx.Node, list[Demand]] = {}
    cut: dict[fx.Node, Rows] = {}
    picks: dict[fx.Node, Rows] = {}
    needs: dict[fx.Node, dict[fx.Node, Demand]] = {}
    for node in reversed(list(graph.nodes)):
        rows = _agreed(wanted.get(node))
        inputs = _inputs(node, rows) if rows is not None else None
        if rows is not None and inputs is not None:
            cut[node], needs[node] = rows, inputs
            for operand, demand in inputs.items():
                wanted.setdefault(operand, []).append(demand)
            continue
        picked = _picked(node)
        if picked is not None:
            picks[node] = picked
        for operand in node.all_input_nodes:
            demand = picked if picked is not None and operand is node.args[0] else None
            wanted.setdefault(operand, []).append(demand)
    for node in list(graph.nodes):
        if node in cut:
            _cut(graph, node, needs[node], cut)
        elif node in picks and node.args[0] in cut:
            _reindex(node, picks[node], cut[node.args[0]])  # type: ignore[index]
    graph.eliminate_dead_code()


def _agreed(demands: list[Demand] | None) -> Demand:
    """The rows that all users read together, or everything."""
    rows = [demand for demand in demands or [] if demand is not None]
    if not rows or len(rows) < len(demands or []) or len({r.axis for r in rows}) > 1:
        return None
    start = min(r.start for r in rows)
    return Rows(rows[0].axis, start, max(r.start + r.count for r in rows) - start)


def _shape(node: object) -> list[int] | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(value, Tensor):
        return None
    return [dim if isinstance(dim, int) else -1 for dim in value.shape]


def _picked(node: fx.Node) -> Rows | None:
    """The rows that a select or slice reads of its operand, where that is a part."""
    name = op_name(node)
    if name not in ("select", "slice") or not isinstance(node.args[0], fx.Node):
        return None
    before, after = _shape(node.args[0]), _shape(node)
    if before is None or after is None:
        return None
    axis = (node.args[1] if len(node.args) > 1 else 0) % len(before)  # type: ignore[operator]
    size = before[axis]
    if size <= 1:
        return None
    if name == "select":
        index = node.args[2]
        return Rows(axis, index % size, 1) if isinstance(index, int) else None
    start = node.args[2] if len(node.args) > 2 else 0
    step = node.args[4] if len(node.args) > 4 else 1
    if step != 1 or not isinstance(start, (int, type(None))) or after[axis] == size:
        return None
    begin = start or 0
    return Rows(axis, begin if begin >= 0 else begin + size, after[axis])


def _inputs(node: fx.Node, rows: Rows) -> dict[fx.Node, Demand] | None:
    """What an operation needs of its operands for some rows of its result; None: it cannot."""
    name, shape = op_name(node), _shape(node)
    if node.op != "call_function" or shape is None:
        return None
    rank, axis = len(shape), rows.axis
    first = node.args[0] if node.args else None
    rest: dict[fx.Node, Demand] = {n: None for n in node.all_input_nodes if n is not first}
    if name in _UNARY or (name in ("layer_norm", "rms_norm") and axis < rank - len(node.args[1])):  # type: ignore[arg-type]
        return {first: rows, **rest}  # type: ignore[dict-item]
    if name == "linear" and axis != rank - 1:
        return {first: rows, **rest}  # type: ignore[dict-item]
    if name == "softmax" and node.args[1] % rank != axis:  # type: ignore[operator]
        return {first: rows, **rest}  # type: ignore[dict-item]
    if name == "slice" and _picked(node) is None and _shape(first) == shape:
        return {first: rows, **rest}  # type: ignore[dict-item]
    if name in _BINARY:
        return _binary_inputs(node, rows, rank)
    if name in ("transpose", "permute"):
        order = _order(node, rank)
        return {first: Rows(order[axis], rows.start, rows.count), **rest}  # type: ignore[dict-item]
    if name in _SHAPING:
        return _shaping_inputs(node, rows, shape)
    if name == "scaled_dot_product_attention" and axis == rank - 2:
        return _attention_inputs(node, rows)
    if name == "matmul" and axis == rank - 2 and isinstance(first, fx.Node):
        left = _shape(first)
        if left is not None and len(left) == rank and first is not node.args[1]:
            return {first: rows, **rest}
    return None


def _binary_inputs(node: fx.Node, rows: Rows, rank: int) -> dict[fx.Node, Demand] | None:
    found: dict[fx.Node, Demand] = {}
    for operand in node.args[:2]:
        if not isinstance(operand, fx.Node):
            continue
        shape = _shape(operand)
        if shape is None:
            return None
        axis = rows.axis - (rank - len(shape))
        whole = axis < 0 or shape[axis] == 1
        demand = None if whole else Rows(axis, rows.start, rows.count)
        if operand in found and found[operand] != demand:
            return None
        found[operand] = demand
    return found


def _order(node: fx.Node, rank: int) -> list[int]:
    order = list(range(rank))
    if op_name(node) == "permute":
        return [axis % rank for axis in node.args[1]]  # type: ignore[union-attr]
    one, two = node.args[1] % rank, node.args[2] % rank  # type: ignore[operator]
    order[one], order[two] = order[two], order[one]
    return order


def _shaping_inputs(node: fx.Node, rows: Rows, shape: list[int]) -> dict[fx.Node, Demand] | None:
    before = _shape(node.args[0])
    sizes = node.args[1]
    if before is None or not isinstance(sizes, (list, tuple)):
        return None
    if before.count(-1) > 1 or shape.count(-1) > 1 or isinstance(sizes[rows.axis], fx.Node):
        return None
    try:
        groups = axis_groups(tuple(before), tuple(shape))
    except IndexError:  # multiples of the batch size, which do not group here: compute all rows
        return None
    for left, right in groups:
        if right == [rows.axis] and len(left) == 1:
            found: dict[fx.Node, Demand] = dict.fromkeys(node.all_input_nodes)
            found[node.args[0]] = Rows(left[0], rows.start, rows.count)  # type: ignore[index]
            return found
    return None


def _attention_inputs(node: fx.Node, rows: Rows) -> dict[fx.Node, Demand] | None:
    found: dict[fx.Node, Demand] = dict.fromkeys(node.all_input_nodes)
    query = node.args[0]
    if query in (node.args[1], node.args[2]) or node.kwargs.get("is_causal"):
        return None
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    if mask is not None:
        shape = _shape(mask)
        if shape is None:
            return None
        axis = len(shape) - 2
        found[mask] = None if shape[axis] == 1 else Rows(axis, rows.start, rows.count)  # type: ignore[index]
    found[query] = rows  # type: ignore[index]
    return found


def _cut(
    graph: fx.Graph, node: fx.Node, inputs: dict[fx.Node, Demand], cut: dict[fx.Node, Rows]
) -> None:
    """Let a node compute only its rows, taking cut operands as they are and cutting the others."""
    rows = cut[node]
    replaced: dict[fx.Node, fx.Node] = {}
    for operand, demand in inputs.items():
        if demand is None or cut.get(operand) == demand:
            continue
        start = demand.start - (cut[operand].start if operand in cut else 0)
        with graph.inserting_before(node):
            part = graph.call_function(
                torch.ops.aten.slice.Tensor, (operand, demand.axis, start, start + demand.count)
            )
        part.meta = dict(operand.meta)
        part.meta["val"] = operand.meta["val"].narrow(demand.axis, start, demand.count)
        replaced[operand] = part
    value = node.meta["val"]
    if op_name(node) in _SHAPING:
        sizes = list(node.args[1])  # type: ignore[arg-type]
        if sizes[rows.axis] != -1:
            sizes[rows.axis] = rows.count
        node.args = (node.args[0], sizes)
    node.args = fx.map_arg(node.args, lambda other: replaced.get(other, other))
    node.kwargs = fx.map_arg(node.kwargs, lambda other: replaced.get(other, other))
    node.meta = {**node.meta, "val": value.narrow(rows.axis, rows.start, rows.count)}


def _reindex(node: fx.Node, picked: Rows, rows: Rows) -> None:
    """A select or slice of a tensor that now holds only the rows that are read."""
    start = picked.start - rows.start
    if op_name(node) == "select":
        node.args = (node.args[0], node.args[1], start)
    else:
        node.args = (node.args[0], node.args[1], start, start + picked.count)
