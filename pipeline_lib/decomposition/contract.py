"""Contract: pool each recorded tensor by the readout's weights, then project it.

Pooling over tokens comes first and the matrix over channels after, so that nothing of the size
components x tokens x d is ever made.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline_lib.decomposition.readout import Lazy, Readout, Run, Shape, length

_LETTERS = string.ascii_lowercase.replace("b", "").replace("r", "") + string.ascii_uppercase[:3]


def _split_batch(tensor: Tensor, shape: Shape, lead: int, batch: int, before: int) -> Tensor:
    """Move a folded batch apart: an axis of length before*b*after -> b, before*after."""
    for axis, dim in enumerate(shape):
        if dim < 0:
            place = axis + lead
            if tensor.shape[place] == 1:
                return tensor.unsqueeze(place + 1)
            if before == 1:
                return tensor.unflatten(place, (batch, -dim))
            apart = tensor.unflatten(place, (before, batch, -dim // before))
            return apart.movedim(place + 1, place).flatten(place + 1, place + 2)
    return tensor


def _letters(shape: Shape) -> list[str]:
    """One letter per axis; the batch axis gets two letters, `b` and one for its windows."""
    pool = iter(_LETTERS)
    return ["b" + next(pool) if dim < 0 else next(pool) for dim in shape]


def _present(tensor: Tensor, names: str) -> tuple[Tensor, str]:
    """The tensor and its letters without the axes of length 1 (but the first, products)."""
    keep = [i for i in range(tensor.dim()) if i == 0 or tensor.shape[i] != 1]
    shape = [tensor.shape[i] for i in keep]
    return tensor.reshape(shape), "".join(names[i] for i in keep)


def contract(
    run: Run,
    value: Tensor | None,
    readout: Readout,
    keep: Sequence[int] = (),
    *,
    before: int = 1,
    tokens: Sequence[int] | None = None,
    directions: Tensor | None = None,
) -> Tensor:
    """Contribution of a tensor to the representation.

    Parameters
    ----------
    value
        The tensor, of the pattern `readout.full` (None: all ones).
    keep
        Axes kept apart (heads), in the order of the result.
    before
        What stands before the batch in a folded axis (`Facts.before_batch`).
    tokens
        Axes of the positions, where these are kept apart too; for the batch axis its windows.
    directions
        `[k, d]`: the result is given as products with these.

    Returns
    -------
    Tensor
        `[n, *keep, *tokens, d]`, or `k` in place of `d`: the directions, or for a dense readout
        the columns of the run.
    """
    full, batch = readout.full, run.batch
    names = _letters(full)
    if readout.dense:
        return _contract_dense(run, value, readout, keep, before, tokens)
    if tokens is not None:
        readout = Readout(readout.w.dense(range(len(full)), full), readout.m, full)
    w = run.get(readout.w.lazy)
    kept = "".join(names[axis][-1] for axis in [*keep, *(tokens or ())])
    m_flat, m_names = _matrix(run, readout, names, kept)
    inner = m_names[:-1].replace("r", "")
    if directions is not None:
        m_flat = m_flat @ directions.T
    w = _split_batch(w, full, 1, batch, before)
    w_names = "r" + "".join(names)
    w, w_names = _present(w, w_names)
    if value is not None and tokens is not None and not set(inner) & set(w_names) - set(kept):
        return _per_token(w, w_names, value, readout, names, m_flat, m_names, kept, batch, before)
    if value is None:
        pooled, pooled_names = _pool_ones(w, w_names, full, names, inner + kept, batch, readout)
    else:
        pooled, pooled_names = _pool(w, w_names, value, readout, names, inner, kept, batch, before)
    batched = "b" in pooled_names
    out = ("b" if batched else "") + kept + "D"
    known = set(pooled_names) | set(m_names)
    missing = [letter for letter in kept if letter not in known]
    if missing:
        raise AssertionError(f"axes {missing} are in no factor")
    result = _projected(pooled, pooled_names, m_flat, m_names, out)
    return result if batched else result.expand(batch, *result.shape)


def _matrix(run: Run, readout: Readout, names: list[str], kept: str) -> tuple[Tensor, str]:
    """The matrix without its axes of length 1, axes that are kept apart ahead, and its letters."""
    axes = [axis for axis in range(len(readout.full)) if readout.m.full(axis)]
    ahead = tuple(axis for axis in axes if names[axis] in kept)
    rest = [axis for axis in axes if axis not in ahead]
    m = run.get(readout.m.ahead(ahead))
    sizes = [readout.r if a is None else readout.full[a] for a in (*ahead, None, *rest)]
    letters = "".join("r" if a is None else names[a] for a in (*ahead, None, *rest))
    return m.reshape(*sizes, m.shape[-1]), letters + "D"


def _contract_dense(
    run: Run, value: Tensor | None, readout: Readout, keep: Sequence[int], before: int,
    tokens: Sequence[int] | None,
) -> Tensor:  # fmt: skip
    """The contraction with a readout that holds one product per column."""
    full, batch, names = readout.full, run.batch, _letters(readout.full)
    if tokens is not None:
        readout = Readout(readout.w.dense(range(len(full)), full), readout.m, full)
    kept = "".join(names[axis][-1] for axis in [*keep, *(tokens or ())])
    w = _split_batch(run.get(readout.w.lazy), full, 1, batch, before)
    w, w_names = _present(w, "r" + "".join(names))
    if value is None:
        pooled, found = _pool_ones(w, w_names, full, names, kept, batch, readout)
    else:
        pooled, found = _pool(w, w_names, value, readout, names, "", kept, batch, before)
    out = ("b" if "b" in found else "") + kept
    for letter in out:
        if letter not in found:
            raise AssertionError(f"axis {letter} is in no factor")
    pooled = torch.einsum(f"{found}->{out}r", pooled)
    return pooled if "b" in found else pooled.expand(batch, *pooled.shape)


def _projected(pooled: Tensor, names: str, m: Tensor, m_names: str, out: str) -> Tensor:
    """Pooled values times the matrix, whose letters are: kept apart, `r`, to be summed, `D`.

    The matrix is large and stays as it lies; an einsum would copy it into an order of its own.
    """
    ahead, behind = m_names[:-1].split("r")
    summed = "r" + behind
    if not set(ahead + summed) <= set(names):
        return torch.einsum(f"{names},{m_names}->{out}", pooled, m)
    rows = "".join(letter for letter in names if letter not in ahead + summed)
    sizes = dict(zip(names, pooled.shape, strict=True))
    ordered = torch.einsum(f"{names}->{ahead}{rows}{summed}", pooled)
    parts = math.prod(sizes[letter] for letter in ahead)
    count = math.prod(sizes[letter] for letter in summed)
    product = torch.bmm(ordered.reshape(parts, -1, count), m.reshape(parts, count, -1))
    apart = product.reshape(*(sizes[letter] for letter in ahead + rows), m.shape[-1])
    return torch.einsum(f"{ahead}{rows}D->{out}", apart)


def _expanded(
    value: Tensor, readout: Readout, names: list[str], batch: int, wanted: str, before: int
) -> tuple[Tensor, str]:
    """The recorded tensor inside the readout's box, without the axes of length 1 not wanted."""
    value = value.reshape((1,) * (len(readout.full) - value.dim()) + tuple(value.shape))
    for axis, box in enumerate(readout.w.box):
        if box is not None and value.shape[axis] != 1:
            value = value.narrow(axis, *box)
    sizes = []
    for axis, dim in enumerate(readout.full):
        box = readout.w.box[axis]
        sizes.append(box[1] if box is not None else length(dim, batch))
    x = _split_batch(value.expand(sizes), readout.full, 0, batch, before)
    x_names = "".join(names)
    keep = [i for i in range(x.dim()) if x.shape[i] != 1 or x_names[i] in wanted + "b"]
    return x.reshape([x.shape[i] for i in keep]), "".join(x_names[i] for i in keep)


def _pool(
    w: Tensor, w_names: str, value: Tensor, readout: Readout, names: list[str], inner: str,
    kept: str, batch: int, before: int,
) -> tuple[Tensor, str]:  # fmt: skip
    x, x_names = _expanded(value, readout, names, batch, inner + kept, before)
    out = "rb" + "".join(dict.fromkeys(c for c in inner + kept if c in x_names + w_names))
    if "b" not in x_names + w_names:
        out = out.replace("b", "")
    return torch.einsum(f"{x_names},{w_names}->{out}", x.to(w.dtype), w), out


def _per_token(
    w: Tensor, w_names: str, value: Tensor, readout: Readout, names: list[str], m: Tensor,
    m_names: str, kept: str, batch: int, before: int,
) -> Tensor:  # fmt: skip
    """Every token kept: project first (few directions), weigh each token after."""
    x, x_names = _expanded(value, readout, names, batch, kept, before)
    between = "b" + kept + "rD"
    projected = torch.einsum(f"{x_names},{m_names}->{between}", x.to(m.dtype), m)
    return torch.einsum(f"{between},{w_names}->b{kept}D", projected, w)


def contract_ones(run: Run, readouts: Sequence[Readout], stacked: Lazy, before: int = 1) -> Tensor:
    """Contributions of several constants read by one and the same `w`, `[i, n, d]`.

    `stacked` holds their matrices `[i, r, d]`; every axis of these is contracted already.
    """
    readout = readouts[0]
    names = _letters(readout.full)
    w = _split_batch(run.get(readout.w.lazy), readout.full, 1, run.batch, before)
    w, w_names = _present(w, "r" + "".join(names))
    pooled, found = _pool_ones(w, w_names, readout.full, names, "", run.batch, readout)
    if "b" not in found:
        pooled = pooled[:, None].expand(-1, run.batch)
    return torch.einsum("rb,irD->ibD", pooled, run.get(stacked))


def _pool_ones(
    w: Tensor, w_names: str, full: Shape, names: list[str], wanted: str, batch: int,
    readout: Readout,
) -> tuple[Tensor, str]:  # fmt: skip
    count = 1
    for axis, dim in enumerate(full):
        if not readout.w.full(axis) and not readout.m.full(axis) and names[axis] not in wanted:
            count *= abs(dim)
    out = "".join(c for c in w_names if c in "rb" or c in wanted)
    return torch.einsum(f"{w_names}->{out}", w) * count, out
