"""Windows: overlapping windows cut from an image and added up again, with axes of their own.

`F.unfold` and `F.fold` keep the channels and the places of a window on one axis. Weights of
attention go with the places and matrices with the channels, so both are laid out apart, as
`[n, channels, places, windows]`, before anything is read from the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from pipeline_lib.decomposition.operations import op_name

_RESHAPES = ("view", "reshape", "_unsafe_view", "unflatten", "flatten")


def summed_windows(
    windows: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    """Windows `[n, channels, places, windows]` added up to an image `[n, channels, h, w]`."""
    return F.fold(windows.flatten(1, 2), size, kernel, dilation, padding, stride)  # type: ignore[arg-type]


summed_windows.operation = "summed_windows"  # type: ignore[attr-defined]


def lay_out_windows(graph: fx.Graph) -> None:
    """Rewrite, in place, the cutting and the adding up of windows with apart axes."""
    for node in list(graph.nodes):
        if node.op == "call_function" and op_name(node) == "im2col":
            _lay_out_cutting(graph, node)
        elif node.op == "call_function" and op_name(node) == "col2im":
            _lay_out_adding(graph, node)


def _lay_out_cutting(graph: fx.Graph, node: fx.Node) -> None:
    source, kernel, dilation, (top, left), (down, right) = node.args  # type: ignore[misc]
    if any(step != 1 for step in dilation):  # type: ignore[union-attr]
        return
    n, channels, height, width = source.meta["val"].shape  # type: ignore[union-attr]
    rows, columns = kernel  # type: ignore[misc]
    padded = [n, channels, height + 2 * top, width + 2 * left]
    across = (padded[3] - columns) // right + 1
    count = node.meta["val"].shape[2]
    places = [n, channels, rows, columns, count // across, across]
    aten = torch.ops.aten
    steps: list[tuple[Callable[..., Tensor], tuple[object, ...], list[int]]] = [
        (aten.constant_pad_nd.default, ([left, left, top, top],), padded),
        (aten.unfold.default, (2, rows, down), [*padded[:2], places[4], padded[3], rows]),
        (aten.unfold.default, (3, columns, right), [*padded[:2], *places[4:], *places[2:4]]),
        (aten.permute.default, ([0, 1, 4, 5, 2, 3],), places),
        (aten.flatten.using_ints, (4, 5), [*places[:4], count]),
        (aten.flatten.using_ints, (2, 3), [n, channels, rows * columns, count]),
    ]
    apart: fx.Node = source  # type: ignore[assignment]
    with graph.inserting_before(node):
        for function, args, shape in steps:
            new = graph.call_function(function, (apart, *args))
            new.meta = {**node.meta, "val": node.meta["val"].new_empty(shape)}
            apart = new
        flat = graph.call_function(aten.flatten.using_ints, (apart, 1, 2))
        flat.meta = dict(node.meta)
    node.replace_all_uses_with(flat)
    graph.erase_node(node)
    for user in list(flat.users):
        if op_name(user) in ("view", "reshape", "_unsafe_view"):
            user.args = (apart, *user.args[1:])


def _lay_out_adding(graph: fx.Graph, node: fx.Node) -> None:
    source, size, kernel, dilation, padding, stride = node.args
    origin: fx.Node = source  # type: ignore[assignment]
    n, channels, count = origin.meta["val"].shape
    places = math.prod(kernel)  # type: ignore[arg-type]
    shape = [n, channels // places, places, count]
    while op_name(origin) in _RESHAPES:
        origin = origin.args[0]  # type: ignore[assignment]
    with graph.inserting_before(node):
        apart = graph.call_function(torch.ops.aten.reshape.default, (origin, [-1, *shape[1:]]))
        apart.meta = {**node.meta, "val": node.meta["val"].new_empty(shape)}
        summed = graph.call_function(
            summed_windows, (apart, size, kernel, dilation, padding, stride)
        )
        summed.meta = dict(node.meta)
    node.replace_all_uses_with(summed)
    graph.erase_node(node)
