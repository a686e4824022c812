"""Merging: readouts of one tensor that came on different paths, added up where they can be."""

from __future__ import annotations

import torch

from pipeline_lib.decomposition.readout import DENSE, Lazy, Readout, Weights


def times(readout: Readout, factor: float) -> Readout:
    """The readout times a number."""
    return Readout(readout.w.then(lambda t, run: t * factor), readout.m, readout.full)


def merge(readouts: list[Readout]) -> list[Readout]:
    """Readouts of one tensor with those of equal `M` added up.

    All become one dense readout where one is dense, or where several are left that hold more
    products together than `z` has columns: paths that part and meet again in every stage multiply
    their number, and a product per column is then the smaller form.
    """
    if any(readout.dense for readout in readouts):
        readouts = [readout.densified() for readout in readouts]
    merged = _by_matrix(readouts)
    if len(merged) > 1 and sum(readout.r for readout in merged) > merged[0].m.width:
        merged = _by_matrix([readout.densified() for readout in merged])
    return merged


def _by_matrix(readouts: list[Readout]) -> list[Readout]:
    by_matrix: dict[object, list[Readout]] = {}
    for readout in readouts:
        m = readout.m
        key = DENSE if readout.dense else (id(m.root or m.lazy), m.shape)
        by_matrix.setdefault(key, []).append(readout)
    return [_added(group) for group in by_matrix.values()]


def _added(group: list[Readout]) -> Readout:
    total = group[0]
    for other in group[1:]:
        a, b = total.w, other.w
        if a.box != b.box:
            boxed = [i for i in range(len(a.shape)) if a.box[i] != b.box[i]]
            a, b = _to_union(a, b, boxed, total.full)
        shape = tuple(x if x != 1 else y for x, y in zip(a.shape, b.shape, strict=True))
        one, two = a.lazy, b.lazy
        lazy = Lazy(
            _adder(one, two), static=one.static and two.static, dense=one.dense or two.dense
        )
        box = tuple(p if p is not None else q for p, q in zip(a.box, b.box, strict=True))
        total = Readout(Weights(lazy, a.r, shape, box), total.m, total.full)
    return total


def _adder(one: Lazy, two: Lazy):  # type: ignore[no-untyped-def]
    return lambda run: run.get(one) + run.get(two)


def _to_union(
    a: Weights, b: Weights, axes: list[int], full: tuple[int, ...]
) -> tuple[Weights, Weights]:
    """Both factors with a common box along the given axes."""
    for axis in axes:
        if a.box[axis] is None or b.box[axis] is None:
            a, b = a.spread([axis], full), b.spread([axis], full)
            continue
        (s, n), (t, k) = a.box[axis], b.box[axis]  # type: ignore[misc]
        start, stop = min(s, t), max(s + n, t + k)
        a, b = (_widen(w, axis, start, stop) for w in (a, b))
    return a, b


def _widen(w: Weights, axis: int, start: int, stop: int) -> Weights:
    begin, count = w.box[axis]  # type: ignore[misc]
    pads = [0, 0] * (len(w.shape) - axis)
    pads[-2], pads[-1] = begin - start, stop - begin - count
    box = tuple((start, stop - start) if i == axis else b for i, b in enumerate(w.box))
    return w.then(lambda t, run: torch.nn.functional.pad(t, pads), box=box)
