"""Readout: how the representation reads a tensor inside the model, kept in factored form.

At a tensor `X` of the graph the representation is

    z[b, D]  =  sum_r sum_index  w[r, index] * X[index] * M[r, index, D]

(plus terms that do not pass `X`).

`w` (weights over tokens, and frozen per-image factors) changes with every batch; `M` (a matrix over
channels) depends on the model's weights only and is remembered. Both have the rank of `X`; an axis
on which a factor does not depend has the length 1. `r` counts the products that are summed: 1 for
plain transformers, 4 per patch merging, and so on.

Everything here is lazy: a plan builds expressions once and evaluates them per batch (`Run`). The
shapes known when planning are *patterns*: a positive number is a fixed length, a negative one
`-k` stands for `k` times the batch size.

Behind a gate that varies along tokens and channels the two factors do not come apart any more: the
readout is then *dense*, `w` holds one product per column of `z` (`r` is `DENSE`), and `M` nothing.
Dense readouts are evaluated for some columns of `z` at a time (`Run.for_columns`).
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, fx

#: Number of products of a dense readout: one per column asked for, known when it is evaluated.
DENSE = -1

Shape = tuple[int, ...]
Box = tuple[tuple[int, int] | None, ...]


class Run:
    """Values of one evaluation: the recorded tensors of a batch, and the remembered weights."""

    def __init__(self, weights: Run | None, state: dict[str, Tensor], batch: int) -> None:
        self.memo: dict[Lazy, Tensor] = {}
        self.weights = weights or self
        self.state = state
        self.values: dict[fx.Node, Tensor] = {}
        self.batch = batch
        self.columns: Tensor | None = None
        self.whole = self

    def for_columns(self, columns: Tensor) -> Run:
        """The same batch, for dense readouts of `z @ columns` with `columns` [d, k]."""
        part = Run(self.weights, self.state, self.batch)
        part.values, part.whole, part.columns = self.values, self.whole, columns
        return part

    def get(self, lazy: Lazy) -> Tensor:
        home = self.weights if lazy.static else self if lazy.dense else self.whole
        found = home.memo.get(lazy)
        if found is None:
            found = lazy.compute(home)
            if self is not home or not lazy.passing:
                home.memo[lazy] = found
        return found


class Lazy:
    """A tensor computed on demand: once per batch, once per set of weights (static), or once per
    set of columns (dense). One that only leads to the next step (`passing`) is not kept."""

    __slots__ = ("compute", "dense", "passing", "static", "users")

    def __init__(
        self, compute: Callable[[Run], Tensor], *, static: bool, dense: bool = False
    ) -> None:
        self.compute = compute
        self.static = static
        self.dense = dense
        self.passing = False
        self.users = 0


class TooWide(Exception):
    """The factored readout would need more products than the bound, or does not factor at all."""


#: Most numbers that a factor of one readout may hold (`w`: for one image).
MOST_ENTRIES = 2**26


def refuse_large(entries: int) -> None:
    """Factors that would hold too many numbers are not made."""
    if entries > MOST_ENTRIES:
        raise TooWide(f"a factor of {entries} numbers, more than {MOST_ENTRIES}")


def length(dim: int, batch: int) -> int:
    """Length of an axis pattern for a batch size."""
    return dim if dim > 0 else -dim * batch


@dataclass(frozen=True, eq=False)
class Weights:
    """The factor `w` [r, *shape]: axes of length 1 or full; `box` limits an axis to where w ≠ 0."""

    lazy: Lazy
    r: int
    shape: Shape
    box: Box

    def full(self, axis: int) -> bool:
        return self.shape[axis] != 1

    def size(self, axis: int, batch: int) -> int:
        box = self.box[axis]
        return box[1] if box is not None else length(self.shape[axis], batch)

    def sizes(self, batch: int) -> list[int]:
        return [self.r, *(self.size(axis, batch) for axis in range(len(self.shape)))]

    def then(
        self,
        change: Callable[[Tensor, Run], Tensor],
        *,
        shape: Shape | None = None,
        box: Box | None = None,
        r: int | None = None,
        static: bool = True,
    ) -> Weights:
        lazy = self.lazy
        return Weights(
            Lazy(
                lambda run: change(run.get(lazy), run),
                static=lazy.static and static,
                dense=lazy.dense,
            ),
            self.r if r is None else r,
            self.shape if shape is None else shape,
            self.box if box is None else box,
        )

    def dense(self, axes: Sequence[int], full: Shape) -> Weights:
        """The same factor with zeros written out along boxed axes."""
        boxed = [axis for axis in axes if self.box[axis] is not None]
        if not boxed:
            return self
        pads = [0, 0] * (len(self.shape) + 1)
        for axis in boxed:
            start, count = self.box[axis]  # type: ignore[misc]
            place = 2 * (len(self.shape) - 1 - axis)
            pads[place], pads[place + 1] = start, full[axis] - start - count
        shape = tuple(full[a] if a in boxed else s for a, s in enumerate(self.shape))
        box = tuple(None if a in boxed else b for a, b in enumerate(self.box))
        return self.then(lambda w, run: F.pad(w, pads), shape=shape, box=box)

    def spread(self, axes: Sequence[int], full: Shape) -> Weights:
        """The same factor with the given axes written out in full."""
        w = self.dense(axes, full)
        thin = [axis for axis in axes if not w.full(axis) and full[axis] != 1]
        if not thin:
            return w
        shape = tuple(full[a] if a in thin else s for a, s in enumerate(w.shape))
        needs_batch = any(full[a] < 0 for a in thin)
        grown = Weights(w.lazy, w.r, shape, w.box)
        return w.then(
            lambda t, run: t.expand(grown.sizes(run.batch)), shape=shape, static=not needs_batch
        )


@dataclass(frozen=True, eq=False)
class Matrix:
    """The factor `M` [r, *shape, width]: axes of length 1 or full; depends on the weights only.

    `root` is the matrix that this one is a reshape of: two of one root and shape are equal.
    """

    lazy: Lazy
    r: int
    shape: Shape
    width: int
    root: Lazy | None = None
    orders: dict[Shape, Lazy] = field(default_factory=dict, repr=False)

    def full(self, axis: int) -> bool:
        return self.shape[axis] != 1

    def ahead(self, axes: Shape) -> Lazy:
        """The matrix with the given axes before the products `r`, as it is used where they are kept
        apart; laid out once per set of weights, not in every batch."""
        if axes not in self.orders:
            places = [axis + 1 for axis in axes]
            self.orders[axes] = self.then(
                lambda m, run: m.movedim(places, list(range(len(places)))).contiguous()
            ).lazy
        return self.orders[axes]

    def then(
        self,
        change: Callable[[Tensor, Run], Tensor],
        *,
        shape: Shape | None = None,
        r: int | None = None,
        reshapes: bool = False,
    ) -> Matrix:
        lazy = self.lazy
        lazy.users += 1
        lazy.passing = lazy.users == 1
        return Matrix(
            Lazy(lambda run: change(run.get(lazy), run), static=True),
            self.r if r is None else r,
            self.shape if shape is None else shape,
            self.width,
            (self.root or lazy) if reshapes else None,
        )

    def spread(self, axes: Sequence[int], full: Shape) -> Matrix:
        """The same factor with the given axes written out in full."""
        thin = [axis for axis in axes if not self.full(axis) and full[axis] != 1]
        if not thin:
            return self
        if any(full[axis] < 0 for axis in thin):
            raise TooWide("a matrix would depend on the batch")
        shape = tuple(full[a] if a in thin else s for a, s in enumerate(self.shape))
        return self.then(lambda m, run: m.expand(m.shape[0], *shape, m.shape[-1]), shape=shape)


@dataclass(frozen=True, eq=False)
class Readout:
    """One sum of products (w, M) at a tensor whose pattern is `full`."""

    w: Weights
    m: Matrix
    full: Shape

    @property
    def r(self) -> int:
        return self.w.r

    @property
    def dense(self) -> bool:
        """Whether `w` holds one product per column of `z`, and `M` nothing."""
        return self.w.r == DENSE

    def densified(self) -> Readout:
        """The same readout with `M` multiplied into `w`, column by column of `z`."""
        if self.dense:
            return self
        rank = len(self.full)
        axes = [axis for axis in range(rank) if self.m.full(axis)]
        old_w, old_m = self.w.dense(axes, self.full), self.m
        shape = tuple(s if s != 1 else t for s, t in zip(old_w.shape, old_m.shape, strict=True))

        def multiply(run: Run) -> Tensor:
            if run.columns is None:
                raise AssertionError("a dense readout is evaluated for given columns")
            w, m = run.get(old_w.lazy), run.get(old_m.lazy) @ run.columns
            axes = string.ascii_letters[:rank]
            return torch.einsum(f"Y{axes},Y{axes}Z->Z{axes}", w, m.to(w.dtype))

        lazy = Lazy(multiply, static=False, dense=True)
        weights = Weights(lazy, DENSE, shape, old_w.box)
        nothing = Lazy(_no_matrix, static=True)
        return Readout(weights, Matrix(nothing, DENSE, (1,) * rank, self.m.width), self.full)

    def spread_products(self, axes: Sequence[int], bound: int) -> Readout:
        """Turn the dependence of `M` on `axes` into more products: `w` then picks each index."""
        axes = [axis for axis in axes if self.m.full(axis)]
        if not axes:
            return self
        if self.dense:
            raise TooWide("a dense readout has no matrix")
        sizes = [self.full[axis] for axis in axes]
        count = math.prod(sizes)
        if self.r * count > bound:
            raise TooWide(f"{self.r * count} products, more than {bound}")
        rank = len(self.full)
        w = self.w.spread(axes, self.full)
        refuse_large(self.r * count * math.prod(abs(dim) for dim in w.shape))

        def pick(t: Tensor, run: Run) -> Tensor:
            delta = torch.eye(count, dtype=t.dtype, device=t.device)
            where = [1] * rank
            for axis, size in zip(axes, sizes, strict=True):
                where[axis] = size
            picked = t[:, None] * delta.view(count, *where)[None]
            return picked.flatten(0, 1)

        def rows(t: Tensor, run: Run) -> Tensor:
            moved = t.movedim([1 + axis for axis in axes], list(range(1, 1 + len(axes))))
            flat = moved.flatten(0, len(axes))
            for axis in sorted(axes):
                flat = flat.unsqueeze(1 + axis)
            return flat

        thin = tuple(1 if a in axes else s for a, s in enumerate(self.m.shape))
        return Readout(
            w.then(pick, r=self.r * count),
            self.m.then(rows, shape=thin, r=self.r * count),
            self.full,
        )

    def spread_weights(self, axes: Sequence[int], bound: int) -> Readout:
        """Turn the dependence of `w` on `axes` into more products: `M` then picks each index.

        Only the indices inside the factor's box are told apart.
        """
        axes = sorted(axis for axis in axes if self.w.full(axis))
        if not axes:
            return self
        if self.dense:
            raise TooWide("a dense readout has no matrix")
        parts = [self.w.box[axis] or (0, self.full[axis]) for axis in axes]
        count = math.prod(size for _, size in parts)
        if min(size for _, size in parts) < 0 or self.r * count > bound:
            raise TooWide(f"{self.r * count} products, more than {bound}")
        rank = len(self.full)
        m = self.m.spread(axes, self.full)
        refuse_large(self.r * count * math.prod(m.shape) * m.width)

        def rows(t: Tensor, run: Run) -> Tensor:
            moved = t.movedim([1 + axis for axis in axes], list(range(1, 1 + len(axes))))
            flat = moved.flatten(0, len(axes))
            for axis in axes:
                flat = flat.unsqueeze(1 + axis)
            return flat

        def pick(t: Tensor, run: Run) -> Tensor:
            delta = torch.ones(1, dtype=t.dtype, device=t.device)
            where = [1] * (rank + 1)
            for axis, (start, size) in zip(axes, parts, strict=True):
                one = torch.zeros(size, self.full[axis], dtype=t.dtype, device=t.device)
                one[torch.arange(size), torch.arange(start, start + size)] = 1
                delta = torch.kron(delta, one) if delta.dim() == 2 else one
                where[axis] = self.full[axis]
            return (t[:, None] * delta.view(count, *where)[None]).flatten(0, 1)

        thin = tuple(1 if a in axes else s for a, s in enumerate(self.w.shape))
        box = tuple(None if a in axes else b for a, b in enumerate(self.w.box))
        w = self.w.then(rows, shape=thin, box=box, r=self.r * count)
        return Readout(w, m.then(pick, r=self.r * count), self.full)


def _no_matrix(run: Run) -> Tensor:
    raise AssertionError("a dense readout has no matrix")


def identity_readout(width: int, dtype: torch.dtype, device: torch.device) -> Readout:
    """Readout of the representation itself, `z` [n, d]: w = 1 and M = the identity."""
    full = (-1, width)
    ones = Lazy(lambda run: torch.ones(1, 1, 1, dtype=dtype, device=device), static=True)
    eye = Lazy(
        lambda run: torch.eye(width, dtype=dtype, device=device).view(1, 1, width, width),
        static=True,
    )
    return Readout(Weights(ones, 1, (1, 1), (None, None)), Matrix(eye, 1, (1, width), width), full)


def axis_groups(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """Groups of axes of equal total length in a reshape `before` -> `after`; axes of length 1 are
    left out. The batch counts as a length of its own.

    >>> axis_groups((-1, 4, 6), (-1, 4, 2, 3))
    [([0], [0]), ([1], [1]), ([2], [2, 3])]
    """
    left = [axis for axis, dim in enumerate(before) if dim != 1]
    right = [axis for axis, dim in enumerate(after) if dim != 1]
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(left) or j < len(right):
        mine, yours = [left[i]], [right[j]]
        i, j = i + 1, j + 1
        a, b = _measure(before[mine[0]]), _measure(after[yours[0]])
        while a != b:
            if a < b:
                a *= _measure(before[left[i]])
                mine.append(left[i])
                i += 1
            else:
                b *= _measure(after[right[j]])
                yours.append(right[j])
                j += 1
        groups.append((mine, yours))
    return groups


_BATCH = 1_000_003  # a prime that stands for the batch size where lengths are compared


def _measure(dim: int) -> int:
    return dim if dim > 0 else -dim * _BATCH


def all_indices(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(size) for size in sizes)))
