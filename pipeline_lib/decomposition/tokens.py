"""Tokens: each component's contribution kept apart by source token, laid out as the patch grid.

A head's contribution is a sum over the tokens it attends to; its readout is pulled one step
further, through the frozen attention weights, to the values. Other components contribute at the
token where they stand. Windows, shifts, partitions and padding are undone by running the model's
own reshapes on an array of positions. Stages of another resolution are brought to the finest grid
asked for with their sums kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from pipeline_lib.decomposition.attention import is_product, product, through
from pipeline_lib.decomposition.columns import ColumnBytes
from pipeline_lib.decomposition.contract import contract
from pipeline_lib.decomposition.heads import channel_axes
from pipeline_lib.decomposition.leaves import Leaf
from pipeline_lib.decomposition.merging import merge
from pipeline_lib.decomposition.operations import op_name, where
from pipeline_lib.decomposition.paths import JOINS
from pipeline_lib.decomposition.plan import Plan, runner_for
from pipeline_lib.decomposition.readout import Lazy, Matrix, Readout, Run, Shape, TooWide
from pipeline_lib.decomposition.rules import RULES, Constant, pull
from pipeline_lib.decomposition.run import constant_term
from pipeline_lib.errors import DecompositionRefused

#: Most tokens in front of the patch grid (class, distillation, register tokens).
MOST_LEADING = 64


@dataclass(frozen=True)
class TokenLayout:
    """What the token axis holds: leading tokens, then the patch grid row by row, then one place
    for what belongs to no token (biases, class-token parameters, padding of windows)."""

    leading: int
    grid: tuple[int, int]

    @property
    def length(self) -> int:
        return self.leading + self.grid[0] * self.grid[1] + 1


@dataclass(frozen=True, eq=False)
class Place:
    """Where the tokens of one leaf lie: layout of its own stage, and each position's token.

    `positions[i]` is the token (leading tokens first, then row by row) of the leaf's position `i`,
    or -1 for padding.
    """

    leading: int
    grid: tuple[int, int]
    positions: Tensor
    sorted: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Positions that hold a token, the tokens they hold, and positions of padding; sorted once,
        since a GPU would have to be waited for."""
        if device not in self.sorted:
            inside = (self.positions >= 0).nonzero()[:, 0]
            padding = (self.positions < 0).nonzero()[:, 0]
            found = (inside, self.positions[inside], padding)
            self.sorted[device] = tuple(part.to(device) for part in found)  # type: ignore[assignment]
        return self.sorted[device]


@dataclass(frozen=True)
class TokenLeaf:
    """A leaf ready to be contracted per token."""

    node: fx.Node
    readouts: list[Readout]
    head_axes: tuple[int, ...]
    token_axes: tuple[int, ...]
    place: Place
    before: int
    constant: Constant | None = None

    def value(self, run: Run) -> Tensor:
        """The recorded tensor, or the constant that the leaf stands for."""
        if self.constant is None:
            return run.values[self.node]
        if self.constant.value is not None:
            return run.get(self.constant.value)
        w = run.get(self.readouts[0].w.lazy)
        return w.new_ones((1,) * (w.dim() - 1))


class TokenPlan:
    """Per-token side of a plan; made on first use."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.leaves: dict[int, list[TokenLeaf]] = {}
        self.constants: dict[int, list[TokenLeaf]] = {}
        self.stem: list[TokenLeaf] = []
        for number, leaf in enumerate(plan.leaves):
            self.leaves[number] = self._token_leaves(leaf)
            self.constants[number] = [self._token_constant(c) for c in leaf.constants]
        for leaf in plan.stem:
            self.stem += self._token_leaves(leaf)
        every = [leaf for group in self.leaves.values() for leaf in group] + self.stem
        self.dense = plan.dense or any(r.dense for leaf in every for r in leaf.readouts)
        self.column_bytes: dict[tuple[int, ...], ColumnBytes] = {}  # by rows asked for
        self.taps = list(dict.fromkeys([*plan.context.taps, *(leaf.node for leaf in every)]))
        self.runner = runner_for(plan.capture, plan.output, self.taps, {})

    def _token_leaves(self, leaf: Leaf) -> list[TokenLeaf]:
        plan = self.plan
        if leaf.product is None or leaf.node is not leaf.product:
            return [self._plain(leaf.node, leaf.readouts, leaf.head_axes)]
        found = product(plan.facts, leaf.product)
        if found is None or self._mixes_channels(leaf, found.node):
            # states or channels are mixed, not tokens: the head's tokens are those it writes at
            return [self._plain(leaf.node, leaf.readouts, leaf.head_axes)]
        readouts = [few_products(readout) for readout in leaf.readouts]
        while found is not None:
            values = found.values
            inner = is_product(plan.facts, values)
            readouts = merge(
                [through(plan.context, found, r, heads_apart=not inner) for r in readouts]
            )
            found = product(plan.facts, values) if inner else None
        return [self._plain(values, readouts, leaf.head_axes)]

    def _token_constant(self, constant: Constant) -> TokenLeaf:
        """A constant inside a leaf, kept apart by the tokens it is added at."""
        readout = constant.readout
        rank = len(readout.full)
        channel = self._channels(constant.source, [readout])
        if constant.axis is not None:
            channel.add(constant.axis)
        axes = tuple(axis for axis in range(rank) if axis not in channel)
        place = self._place(constant.source, [readout], channel)
        return TokenLeaf(constant.source, [readout], (), axes, place, constant.before, constant)

    def _mixes_channels(self, leaf: Leaf, node: fx.Node) -> bool:
        """Whether the weights mix channels instead of tokens (cross-covariance attention)."""
        found = product(self.plan.facts, node)
        rank = len(self.plan.facts.shape(node))
        query = rank - 1 if found is not None and found.right else rank - 2
        return query in self._channels(node, leaf.readouts)

    def _channels(self, node: fx.Node, readouts: list[Readout]) -> set[int]:
        """Axes of a leaf that hold channels."""
        if any(readout.dense for readout in readouts):
            return channel_axes(self.plan.facts, node)
        rank = len(self.plan.facts.shape(node))
        return {axis for axis in range(rank) for r in readouts if r.m.full(axis)}

    def _plain(
        self, node: fx.Node, readouts: list[Readout], head_axes: tuple[int, ...]
    ) -> TokenLeaf:
        full = self.plan.facts.shape(node)
        channel = self._channels(node, readouts) | set(head_axes)
        readouts = [few_products(readout) for readout in readouts]
        axes = tuple(a for a in range(len(full)) if a not in channel)
        place = self._place(node, readouts, channel)
        before = self.plan.facts.before_batch(node)
        return TokenLeaf(node, readouts, head_axes, axes, place, before)

    # -------------------------------------------------------------- where positions lie

    def _place(self, node: fx.Node, readouts: list[Readout], channel: set[int]) -> Place:
        """Trace the positions of a leaf back to the layout of the stream they come from."""
        chain, source, source_channel = self._back_to_stream(node, readouts, channel)
        facts = self.plan.facts
        shape = facts.shape(source)
        spatial = [abs(d) for a, d in enumerate(shape) if a not in source_channel]
        count = math.prod(spatial)
        numbers = torch.arange(1, count + 1, dtype=torch.float64).reshape(
            [1 if a in source_channel else abs(d) for a, d in enumerate(shape)]
        )
        traced = numbers.expand([abs(d) for d in shape])
        values: dict[fx.Node, Tensor] = {source: traced}
        for step in chain:
            values[step] = _trace(self.plan, step, values)
        final = values[node]
        index = tuple(0 if a in channel else slice(None) for a in range(final.dim()))
        positions = final[index].flatten().long() - 1
        inner = [d for a, d in enumerate(shape) if a not in source_channel and d > 0 and d != 1]
        leading, grid = self._layout(source, inner, count)
        return Place(leading, grid, positions)

    def _back_to_stream(
        self, node: fx.Node, readouts: list[Readout], channel: set[int]
    ) -> tuple[list[fx.Node], fx.Node, set[int]]:
        facts, paths = self.plan.facts, self.plan.walk.paths
        chain: list[fx.Node] = []
        current, readout = node, _symbolic(readouts[0], facts.shape(node), channel)
        while not paths.is_residual(current):
            name = op_name(current)
            if name in JOINS or not _keeps_positions(facts, current):
                break
            following = paths.data_operand(current)
            if following is None or following.op != "call_function":
                break
            if facts.shape(current) == facts.shape(following) and name not in RULES:
                break
            try:
                pulled = pull(self.plan.context, current, readout)
            except TooWide:
                break
            after = merge([r for _, r in pulled.inputs])
            if len(after) != 1 or after[0].dense:
                break
            here = facts.shape(following)
            boxes = after[0].w.box
            channels = _channels(after[0])
            channels |= {a for a, box in enumerate(boxes) if box is not None and box[1] == 1}
            if name in _RESHAPES and _lengths(here, channels) > _lengths(
                facts.shape(current), _channels(readout)
            ):
                break  # a reshape that folds positions into channels: another stage's grid
            chain.append(current)
            current = following
            readout = _symbolic(after[0], here, channels)
        return chain[::-1], current, _channels(readout)

    def _layout(
        self, source: fx.Node, spatial: list[int], count: int
    ) -> tuple[int, tuple[int, int]]:
        """Leading tokens and grid of a stream with the given lengths of its position axes."""
        if len(spatial) == 2 and math.prod(spatial) == count:
            return 0, (spatial[0], spatial[1])
        best: tuple[int, tuple[int, int]] | None = None
        for node in self.plan.facts.members(self.plan.facts.upstream(source)):
            value = node.meta.get("val")
            if not isinstance(value, Tensor) or value.dim() != 4 or node.op != "call_function":
                continue
            if not self.plan.facts.depends(node):
                continue
            sizes = [d if isinstance(d, int) else 0 for d in value.shape]
            first = op_name(node).startswith(("conv", "batch_norm"))
            for rows, columns in [sizes[2:4]] if first else [sizes[1:3], sizes[2:4]]:
                leading = count - rows * columns
                fits = rows > 1 and columns > 1 and 0 <= leading <= MOST_LEADING
                if fits and (best is None or leading <= best[0] or first):
                    best = (leading, (rows, columns))
        if best is not None:
            return best
        return count, (0, 0)


#: Products from which on a readout is multiplied out for the directions asked for.
MANY_PRODUCTS = 16


def few_products(readout: Readout) -> Readout:
    """A readout of many products as a dense one: on few directions that is smaller."""
    return readout.densified() if readout.r > MANY_PRODUCTS else readout


def _channels(readout: Readout) -> set[int]:
    return {axis for axis in range(len(readout.full)) if readout.m.full(axis)}


def _lengths(shape: Shape, axes: set[int]) -> int:
    return math.prod(abs(shape[axis]) for axis in axes)


def _symbolic(readout: Readout, shape: Shape, channel: set[int]) -> Readout:
    """A stand-in that varies along the channel axes only; it is never evaluated."""
    never = Lazy(lambda run: torch.empty(0), static=True)
    w = readout.w.then(
        lambda t, run: t, shape=tuple(1 for _ in shape), box=tuple(None for _ in shape), r=1
    )
    m = Matrix(never, 1, tuple(d if a in channel else 1 for a, d in enumerate(shape)), 1)
    return Readout(w, m, shape)


_RESHAPES = ("view", "reshape", "_unsafe_view", "flatten", "unflatten")
_CHANNEL_OPS = (
    "linear", "layer_norm", "rms_norm", "batch_norm", "group_norm", "mul", "div", "add", "sub",
    "conv2d", "conv1d", "neg", "matmul", "addmm",
)  # fmt: skip


def _keeps_positions(facts: object, node: fx.Node) -> bool:
    name = op_name(node)
    if name.startswith("conv"):
        kernel = facts.shape(node.args[1])[2:]  # type: ignore[attr-defined]
        stride = node.args[3] if len(node.args) > 3 else 1
        steps = stride if isinstance(stride, (list, tuple)) else [stride]
        return all(k == 1 for k in kernel) and all(s == 1 for s in steps)
    return not name.startswith(("avg_pool", "adaptive", "mean", "sum", "upsample", "roll_no"))


def _trace(plan: Plan, node: fx.Node, values: dict[fx.Node, Tensor]) -> Tensor:
    """Run one step of a chain on positions: reshapes as they are, channels left alone."""
    facts = plan.facts
    data = plan.walk.paths.data_operand(node)
    x = values[data]  # type: ignore[index]
    name = op_name(node)
    if name in _CHANNEL_OPS:
        shape = [abs(d) for d in facts.shape(node)]
        axis = 1 if name.startswith(("conv", "batch_norm", "group_norm")) else len(shape) - 1
        if list(x.shape) == shape:
            return x
        return x.narrow(axis, 0, 1).expand(shape) if x.dim() == len(shape) else x.expand(shape)
    run = Run(None, {}, 1)

    def value(other: fx.Node) -> object:
        if other is data:
            return x
        if other in values:
            return values[other]
        if facts.depends(other):
            return _evaluate_source(facts, other, data, x)  # type: ignore[arg-type]
        return run.get(facts.constant(other)) if _is_tensor(other) else _number(facts, other, run)

    if name == "getitem":
        parts = node.args[0]
        args = fx.map_arg(parts.args, lambda other: x if other is data else value(other))  # type: ignore[union-attr]
        pieces = parts.target(*args, **parts.kwargs)  # type: ignore[union-attr,operator]
        return pieces[node.args[1]]
    args = fx.map_arg(node.args, value)
    kwargs = fx.map_arg(node.kwargs, value)
    if name in ("to", "_to_copy", "type_as"):
        return x
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _evaluate_source(facts: object, other: fx.Node, data: fx.Node, x: Tensor) -> Tensor:
    raise DecompositionRefused(f"{op_name(other)} {where(other)} hides the place of tokens")


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _number(facts: object, node: fx.Node, run: Run) -> object:
    from pipeline_lib.decomposition.facts import _evaluate

    return _evaluate(node, run, {})


# ------------------------------------------------------------------ values


def token_plan(plan: Plan) -> TokenPlan:
    """The per-token side of a plan, made once."""
    if plan.tokens is None:
        plan.tokens = TokenPlan(plan)
    return plan.tokens  # type: ignore[return-value]


def token_contributions(
    plan: Plan, run: Run, rows: list[int], directions: Tensor
) -> tuple[Tensor, TokenLayout]:
    """Contributions of source tokens on directions, `[n, len(rows), t, k]`, and what `t` holds.

    Summed over `t` they are the component's contribution times the directions. Dense readouts are
    evaluated for as many directions at a time as fit into `COLUMN_BYTES`.
    """
    tokens = token_plan(plan)
    if not tokens.dense:
        return _on_directions(plan, run.for_columns(directions.T), rows, directions)
    pieces = []
    measured = tokens.column_bytes.setdefault(tuple(rows), ColumnBytes())
    for part, piece in measured.parts(run, directions.T):
        values, layout = _on_directions(plan, piece, rows, directions[part])
        pieces.append(values)
    return torch.cat(pieces, -1) if len(pieces) > 1 else pieces[0], layout


def _on_directions(
    plan: Plan, run: Run, rows: list[int], directions: Tensor
) -> tuple[Tensor, TokenLayout]:
    tokens = token_plan(plan)
    wanted: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        wanted.setdefault(row, []).append(place)
    used = [
        (number, span)
        for number, span in enumerate(plan.spans)
        if any(row in wanted for row in range(*span))
    ]
    leaves = [leaf for number, _ in used for leaf in tokens.leaves[number]]
    has_stem = plan.components["kind"].iloc[0] == "stem"
    if has_stem and 0 in wanted:
        leaves += tokens.stem
    layout = _common([leaf.place for leaf in leaves])
    n, k = run.batch, directions.shape[0]
    out = directions.new_zeros(n, len(rows), layout.length, k)
    for number, (begin, stop) in used:
        chosen = [row for row in range(begin, stop) if row in wanted]
        for leaf in tokens.leaves[number]:
            part = _leaf_tokens(run, leaf, directions, layout)
            part = part.reshape(n, stop - begin, layout.length, k)
            for row in chosen:
                out[:, wanted[row]] += part[:, [row - begin]]
        for leaf in tokens.constants[number]:
            part = _leaf_tokens(run, leaf, directions, layout)
            out[:, wanted[begin]] -= part.reshape(n, 1, layout.length, k)
    if has_stem and 0 in wanted:
        for leaf in tokens.stem:
            part = _leaf_tokens(run, leaf, directions, layout).reshape(n, 1, layout.length, k)
            out[:, wanted[0]] += part
        for constant in plan.stem_constants:
            out[:, wanted[0], -1] += _on(run, constant, directions)[:, None]
    last = len(plan.components) - 1
    if last in wanted:
        for constant in plan.constants:
            out[:, wanted[last], -1] += _on(run, constant, directions)[:, None]
    return out, layout


def _on(run: Run, constant: Constant, directions: Tensor) -> Tensor:
    """A constant's contribution on the directions, which are the columns of the run."""
    term = constant_term(run, constant)
    return term if constant.readout.dense else term @ directions.T


def _leaf_tokens(run: Run, leaf: TokenLeaf, directions: Tensor, layout: TokenLayout) -> Tensor:
    """[n, heads, t, k] on the common layout."""
    n, k = run.batch, directions.shape[0]
    value = leaf.value(run)
    full = leaf.readouts[0].full
    heads = math.prod(abs(full[axis]) for axis in leaf.head_axes)
    total: Tensor | None = None
    for readout in leaf.readouts:
        part = contract(
            run,
            value,
            readout,
            leaf.head_axes,
            before=leaf.before,
            tokens=leaf.token_axes,
            directions=directions,
        )
        part = part.reshape(n, heads, -1, k)
        total = part if total is None else total + part
    place = leaf.place
    own = total.new_zeros(n, heads, place.leading + math.prod(place.grid), k)  # type: ignore[union-attr]
    inside, at, padding = place.on(own.device)
    own.index_add_(2, at, total.index_select(2, inside))  # type: ignore[union-attr]
    out = _onto(own, place, layout)
    out[:, :, -1] += total.index_select(2, padding).sum(2)  # type: ignore[union-attr]
    return out


def _onto(own: Tensor, place: Place, layout: TokenLayout) -> Tensor:
    """A leaf's tokens on the common layout: a coarse token is spread over its area."""
    out = own.new_zeros(*own.shape[:2], layout.length, own.shape[-1])
    out[:, :, : place.leading] = own[:, :, : place.leading]
    if math.prod(place.grid) == 0:
        return out
    patches = own[:, :, place.leading :].unflatten(2, place.grid)
    if place.grid != layout.grid:
        rows = overlap(place.grid[0], layout.grid[0]).to(own)
        columns = overlap(place.grid[1], layout.grid[1]).to(own)
        patches = torch.einsum("nhijk,iI,jJ->nhIJk", patches, rows, columns)
    out[:, :, layout.leading : -1] = patches.flatten(2, 3)
    return out


def overlap(coarse: int, fine: int) -> Tensor:
    """Share of each of `coarse` equal cells that lies in each of `fine` cells, `[coarse, fine]`.

    >>> overlap(2, 4).tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    edges = torch.arange(fine + 1, dtype=torch.float64) / fine * coarse
    left, right = edges[:-1], edges[1:]
    cell = torch.arange(coarse, dtype=torch.float64)[:, None]
    return (torch.minimum(right, cell + 1) - torch.maximum(left, cell)).clamp_min(0)


def _common(places: list[Place]) -> TokenLayout:
    leading = max((place.leading for place in places), default=0)
    grid = max((place.grid for place in places), key=math.prod, default=(0, 0))
    return TokenLayout(leading, grid)
