"""Records: of a tensor of which only some rows are read, these are recorded and not the whole.

A representation that is one token's row reads one row of what each block writes. The other rows
are needed to go on, but not afterwards: kept until the end they are most of the memory of a batch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import fx

from pipeline_lib.decomposition.facts import Facts
from pipeline_lib.decomposition.leaves import Leaf
from pipeline_lib.decomposition.readout import Box, Readout, Weights


def record_parts(
    facts: Facts, leaves: Sequence[Leaf], whole: Collection[fx.Node]
) -> dict[fx.Node, Box]:
    """Node of each leaf to the part that is recorded; sets the leaves' `kept` readouts.

    Nodes of `whole` are read by others too (frozen gates, norms) and are recorded as they are.
    """
    sharing: dict[fx.Node, list[Leaf]] = {}
    for leaf in leaves:
        sharing.setdefault(leaf.node, []).append(leaf)
    parts: dict[fx.Node, Box] = {}
    for node, group in sharing.items():
        box = (None,) * len(facts.shape(node)) if node in whole else _common_box(facts, node, group)
        for leaf in group:
            leaf.kept = [_within(readout, box) for readout in leaf.readouts]
        parts[node] = box
    return parts


def _common_box(facts: Facts, node: fx.Node, leaves: Sequence[Leaf]) -> Box:
    """The rows that every readout of a tensor reads, by axes along which all read the same."""
    shape = facts.shape(node)
    readouts = [readout for leaf in leaves for readout in leaf.readouts]
    apart = {axis for leaf in leaves for axis in leaf.head_axes}
    box: list[tuple[int, int] | None] = []
    for axis, size in enumerate(shape):
        asked = {readout.w.box[axis] for readout in readouts}
        mixed = any(r.m.full(axis) or r.full[axis] != size for r in readouts)
        rows = asked.pop() if len(asked) == 1 and size > 0 and not mixed else None
        box.append(None if rows == (0, size) else rows)
    return tuple(None if axis in apart else rows for axis, rows in enumerate(box))


def _within(readout: Readout, box: Box) -> Readout:
    """The readout at the part of its tensor that lies in a box of its own."""
    if all(rows is None for rows in box):
        return readout

    def sizes(shape: tuple[int, ...]) -> tuple[int, ...]:
        pairs = zip(shape, box, strict=True)
        return tuple(size if rows is None or size == 1 else rows[1] for size, rows in pairs)

    w = readout.w
    rest = tuple(b if rows is None else None for b, rows in zip(w.box, box, strict=True))
    return Readout(Weights(w.lazy, w.r, sizes(w.shape), rest), readout.m, sizes(readout.full))


def part_of(graph: fx.Graph, node: fx.Node, box: Box) -> fx.Node:
    """A copy of the part of a tensor, appended to the graph right behind it."""
    for axis, rows in enumerate(box):
        if rows is not None:
            stop = rows[0] + rows[1]
            node = graph.call_function(torch.ops.aten.slice.Tensor, (node, axis, rows[0], stop))
    cut = any(rows is not None for rows in box)
    return graph.call_function(torch.ops.aten.clone.default, (node,)) if cut else node
