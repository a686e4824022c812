"""Plan: what a walk found, put in order and given names; made once per architecture and shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from torch import fx, nn

from pipeline_lib.decomposition.capture import Capture, Representation, capture
from pipeline_lib.decomposition.columns import ColumnBytes
from pipeline_lib.decomposition.facts import Facts
from pipeline_lib.decomposition.heads import channel_axes, separate_heads
from pipeline_lib.decomposition.leaves import Leaf, joined
from pipeline_lib.decomposition.operations import module_path, op_name, where
from pipeline_lib.decomposition.readout import Box, Run
from pipeline_lib.decomposition.records import part_of, record_parts
from pipeline_lib.decomposition.rules import Constant, Context
from pipeline_lib.decomposition.walk import Walk
from pipeline_lib.errors import DecompositionRefused


@dataclass(eq=False)
class Plan:
    """How to decompose one architecture at one input shape; holds no images.

    Attributes
    ----------
    components
        One row per component (columns of the table `components`), the bias last.
    dense
        Whether some readouts are evaluated column by column of `z`.
    table
        What was decided for every operation on the direct path: module, operation, role
        (linear, frozen, residual, component), detail.
    readout
        What `z` is, in words.
    width
        Length `d` of `z`.
    """

    capture: Capture
    facts: Facts
    walk: Walk
    context: Context
    stem: list[Leaf]
    leaves: list[Leaf]
    constants: list[Constant]
    stem_constants: list[Constant]
    taps: list[fx.Node]
    output: fx.Node
    width: int
    readout: str
    table: pd.DataFrame
    components: pd.DataFrame
    spans: list[tuple[int, int]]
    runner: fx.GraphModule
    weights: Run | None = None
    versions: tuple[tuple[int, int], ...] = field(default_factory=tuple)
    tokens: object | None = None
    groups: Any = None
    dense: bool = False
    column_bytes: ColumnBytes = field(default_factory=ColumnBytes)

    @cached_property
    def frozen(self) -> pd.DataFrame:
        """Nonlinearities on the residual stream that are frozen at their value: module, operation,
        detail (`frozen gate` or `frozen selection`)."""
        rows = self.table[self.table["detail"].isin(["frozen gate", "frozen selection"])]
        return rows.drop(columns="role").drop_duplicates().reset_index(drop=True)


def make_plan(model: nn.Module, images: torch.Tensor, *, freeze_gates: bool = True) -> Plan:
    """Plan for a model at the height, width, dtype and device of the images.

    With `freeze_gates=False` a nonlinearity on the residual stream is refused even where it is a
    product of its argument with a gate, or a selection (see `pipeline_lib.decomposition.frozen`).

    Raises
    ------
    DecompositionRefused
        An operation on the direct path cannot be decomposed; it and its module are named.
    """
    representation = Representation(model).eval()
    captured = capture(representation, images)
    separate_heads(captured)
    walk = _walked(captured, captured.output, freeze_gates)
    names = {
        "pre_logits": "pre-logits feature of the library",
        "image_embedding": "projected image embedding, unnormalised",
        "output": "output of the module",
    }
    readout = names[representation.kind]
    blocked = _blocking(walk)
    while blocked is not None:
        if walk.joined_before(blocked):
            raise DecompositionRefused(
                f"{op_name(blocked)} {where(blocked)} is a nonlinearity on the residual stream: "
                "what lies before it has no direct contribution. Give the model a module that "
                "returns a representation before that operation."
            )
        output, phrase = _pooled_stream(captured, walk, blocked)
        walk = _walked(captured, output, freeze_gates, module_path(blocked))
        readout = f"{phrase} before {op_name(blocked)} {where(blocked)}"
        blocked = _blocking(walk)
    return _assemble(captured, walk, readout)


def _walked(
    captured: Capture, output: fx.Node, freeze_gates: bool, head: str | None = None
) -> Walk:
    """The walk that passes no more attention products than it needs, as class attention does.

    Where blocks of several scales add class tokens of their own, passing the products nearest the
    image first would pass them all; passing those nearest the output reaches the streams sooner.
    """
    walk = _passing(captured, output, freeze_gates, head)
    assert walk is not None
    fewer = len(walk.pools) - 1
    if fewer < 1:
        return walk
    return _passing(captured, output, freeze_gates, head, nearest_output=True, most=fewer) or walk


def _passing(
    captured: Capture, output: fx.Node, freeze_gates: bool, head: str | None, *,
    nearest_output: bool = False, most: int | None = None,
) -> Walk | None:  # fmt: skip
    """Walk again and again, until every product that reads a hidden stream is passed through.

    The first walk passes no attention, so that every product that reads a hidden stream shows.
    None, where more than `most` products would have to be passed.
    """
    pools: frozenset[fx.Node] = frozenset()
    walk = Walk(captured, output, pass_through=False, freeze_gates=freeze_gates, head=head)
    walk.run()
    while (pool := walk.hidden_pool(nearest_output)) is not None or not walk.pass_through:
        if pool is not None and len(pools) == most:
            return None
        pools |= {pool} if pool is not None else set()
        walk = Walk(captured, output, pools, freeze_gates=freeze_gates, head=head)
        walk.run()
    return walk


def _blocking(walk: Walk) -> fx.Node | None:
    """The nonlinearity that hides attention blocks (or most residual blocks) from the readout."""
    if not walk.findings.barriers:
        return None
    covered = [leaf for leaf in walk.findings.leaves if leaf.kind != "stem"]
    for barrier in walk.findings.barriers:
        hidden = walk.facts.upstream(barrier.node)
        attention = bin(hidden & walk.paths.attention).count("1")
        residuals = bin(hidden & walk.paths.residuals).count("1")
        if attention or residuals > len(covered):
            return barrier.node
    return None


def _pooled_stream(captured: Capture, walk: Walk, barrier: fx.Node) -> tuple[fx.Node, str]:
    """The pooled residual stream in front of a nonlinear head, appended to the graph if needed."""
    facts = walk.facts
    node = next(arg for arg in barrier.all_input_nodes if facts.depends(arg))
    pooled: fx.Node | None = None
    while not walk.paths.is_residual(node):
        shape = facts.shape(node)
        if len([dim for dim in shape if dim != 1]) == 2:
            pooled = node
        following = walk.paths.data_operand(node)
        if following is None:
            break
        node = following
    if pooled is not None:
        return _flat(captured, pooled, facts), "pooled stream"
    return _mean(captured, node, facts), "mean of the stream over tokens"


def _flat(captured: Capture, node: fx.Node, facts: Facts) -> fx.Node:
    if len(facts.shape(node)) == 2:
        return node
    with captured.graph.inserting_after(node):
        flat = captured.graph.call_function(torch.ops.aten.flatten.using_ints, (node, 1))
    flat.meta = dict(node.meta)
    flat.meta["val"] = node.meta["val"].flatten(1)
    return flat


def _mean(captured: Capture, node: fx.Node, facts: Facts) -> fx.Node:
    shape = facts.shape(node)
    channels = channel_axes(facts, node)
    axes = [axis for axis in range(1, len(shape)) if axis not in channels]
    if len(channels) != 1 or len(shape) < 3:
        raise DecompositionRefused(
            f"the stream before the head has shape {shape} {where(node)}; it cannot be pooled"
        )
    with captured.graph.inserting_after(node):
        mean = captured.graph.call_function(torch.ops.aten.mean.dim, (node, axes))
    mean.meta = dict(node.meta)
    mean.meta["val"] = node.meta["val"].mean(axes)
    return mean


# ------------------------------------------------------------------ order and names


def _assemble(captured: Capture, walk: Walk, readout: str) -> Plan:
    stem = [leaf for leaf in walk.findings.leaves if leaf.kind == "stem"]
    branches = joined([leaf for leaf in walk.findings.leaves if leaf.kind != "stem"])
    leaves = sorted(branches, key=lambda leaf: leaf.order)
    _refuse_hidden_attention(walk, leaves)
    rows: list[dict[str, object]] = []
    spans: list[tuple[int, int]] = []
    if stem or walk.findings.stem_constants:
        path = stem[0].path if len(stem) == 1 else ""
        rows.append(_row("stem", "stem", -1, -1, -1, -1, path, _tokens(stem[0]) if stem else 1))
    blocks, stages = _numbering(leaves)
    used: dict[str, int] = {}
    for layer, leaf in enumerate(leaves):
        heads = 1
        for axis in leaf.head_axes:
            heads *= walk.facts.shape(leaf.node)[axis]
        name = leaf.path or f"layer{layer}.{leaf.kind}"
        used[name] = used.get(name, 0) + 1
        if used[name] > 1:
            name = f"{name}#{used[name]}"
        spans.append((len(rows), len(rows) + heads))
        for head in range(heads):
            is_head = leaf.kind == "head"
            rows.append(
                _row(
                    f"{name}/head{head}" if is_head else name,
                    leaf.kind,
                    layer,
                    stages[layer],
                    blocks[layer],
                    head if is_head else -1,
                    leaf.path,
                    _tokens(leaf),
                )
            )
    rows.append(_row("bias", "bias", -1, -1, -1, -1, "", 1))
    components = pd.DataFrame(rows)
    components.insert(0, "component", range(len(components)))
    table = pd.DataFrame(walk.findings.rows, columns=["module", "operation", "role", "detail"])
    parts = record_parts(walk.facts, [*stem, *leaves], walk.context.taps)
    taps = list(dict.fromkeys([*walk.context.taps, *parts]))
    runner = runner_for(captured, walk.output, taps, parts)
    width = int(walk.output.meta["val"].shape[-1])
    return Plan(
        captured, walk.facts, walk, walk.context, stem, leaves, walk.findings.constants,
        walk.findings.stem_constants, taps, walk.output, width, readout, table, components,
        spans, runner, dense=_any_dense(walk, [*stem, *leaves]),
    )  # fmt: skip


def _any_dense(walk: Walk, leaves: list[Leaf]) -> bool:
    """Whether readouts of leaves, as they are contracted, or of constants are dense."""
    found = walk.findings
    readouts = [c.readout for c in (*found.constants, *found.stem_constants)]
    readouts += [readout for leaf in leaves for readout in leaf.readouts]
    return any(readout.dense for readout in readouts)


def _refuse_hidden_attention(walk: Walk, leaves: list[Leaf]) -> None:
    """Every softmax that feeds the readout must be cut into heads, or pool the stream."""
    whole = [leaf for leaf in leaves if leaf.kind == "attention"]
    if whole:
        leaf, end = whole[0], whole[0].end or whole[0].node
        raise DecompositionRefused(
            f"the attention block {leaf.path!r} cannot be split into heads: {op_name(end)} "
            f"{where(end)}, a nonlinearity, stands between its attention product and the stream"
        )
    hidden = 0
    for leaf in walk.findings.leaves:
        if leaf.kind == "stem":
            hidden |= walk.facts.upstream(leaf.node)
    for node in walk.facts.members(hidden & walk.paths.attention):
        raise DecompositionRefused(
            f"attention {where(node)} lies before a nonlinearity on the residual stream"
        )
    if not leaves:
        raise DecompositionRefused(
            "no residual branch was found between the images and the representation"
        )


def _row(
    name: str, kind: str, layer: int, stage: int, block: int, head: int, path: str, tokens: int
) -> dict[str, object]:
    return {
        "id": name, "kind": kind, "layer": layer, "stage": stage, "block": block, "head": head,
        "module": path, "tokens": tokens,
    }  # fmt: skip


def _tokens(leaf: Leaf) -> int:
    """Tokens over which the readout pools a leaf."""
    readout = leaf.readouts[0]
    count = 1
    for axis, dim in enumerate(readout.full):
        if readout.m.full(axis) or axis in leaf.head_axes:
            continue
        box = readout.w.box[axis]
        count *= box[1] if box is not None else abs(dim)
    return count


def _numbering(leaves: list[Leaf]) -> tuple[list[int], list[int]]:
    """Block and stage of each leaf, in the order from the input, from the module paths."""
    block_names: dict[str, int] = {}
    stage_names: dict[str, int] = {}
    blocks, stages = [], []
    for leaf in leaves:
        numbered = list(re.finditer(r"(?:^|\.)\d+(?=\.|$)", leaf.path))
        block = leaf.path[: numbered[-1].end()] if numbered else leaf.path
        stage = leaf.path[: numbered[0].end()] if len(numbered) > 1 else ""
        blocks.append(block_names.setdefault(block, len(block_names)))
        stages.append(stage_names.setdefault(stage, len(stage_names)) if stage else -1)
    return blocks, stages


def runner_for(
    captured: Capture, output: fx.Node, taps: list[fx.Node], parts: Mapping[fx.Node, Box]
) -> fx.GraphModule:
    """The captured graph returning the representation and the recorded tensors, or their parts."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    recorded: dict[fx.Node, fx.Node] = {}
    for node in captured.graph.nodes:
        if node.op != "output":
            copies[node] = graph.node_copy(node, lambda other: copies[other])
        if node in parts:
            recorded[node] = part_of(graph, copies[node], parts[node])
    graph.output((copies[output], *(recorded.get(node, copies[node]) for node in taps)))
    graph.eliminate_dead_code()
    return fx.GraphModule(captured.module, graph)
