"""Run: one pass of the unmodified graph, then the contraction of every recorded tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from pipeline_lib.decomposition.contract import contract, contract_ones
from pipeline_lib.decomposition.plan import Plan
from pipeline_lib.decomposition.readout import Lazy, Run, Shape
from pipeline_lib.decomposition.rules import Constant
from pipeline_lib.errors import ModelError


def start(
    plan: Plan,
    images: Tensor,
    runner: fx.GraphModule | None = None,
    taps: list[fx.Node] | None = None,
) -> tuple[Run, Tensor]:
    """Run the graph on a batch; the run holds what was recorded, and `z` [n, d] is returned.

    Matrices that depend on the weights only are kept until a weight changes.

    Raises
    ------
    ModelError
        A weight is not finite.
    """
    state = plan.capture.live_state()
    versions = tuple((id(tensor), tensor._version) for tensor in state.values())
    if plan.weights is None or versions != plan.versions:
        _refuse_not_finite(plan, state)
        plan.weights = Run(None, state, 1)
        plan.versions = versions
    run = Run(plan.weights, state, images.shape[0])
    inputs = [
        images if node is plan.capture.images else state[node.name]
        for node in plan.capture.graph.nodes
        if node.op == "placeholder"
    ]
    outputs = (runner or plan.runner)(*inputs)
    run.values = dict(zip(plan.taps if taps is None else taps, outputs[1:], strict=True))
    return run, outputs[0]


def _refuse_not_finite(plan: Plan, state: dict[str, Tensor]) -> None:
    parameters = set(plan.capture.parameters)
    for name, tensor in state.items():
        if name in parameters and not bool(torch.isfinite(tensor).all()):
            path = str(plan.capture.state[name]).removeprefix("model.")
            raise ModelError(
                f"the weight {path!r} holds values that are not finite; load the weights again"
            )


def constant_term(run: Run, constant: Constant) -> Tensor:
    """Contribution of a constant, [n, d]."""
    value = run.get(constant.value) if constant.value is not None else None
    return contract(run, value, constant.readout, before=constant.before)


@dataclass(frozen=True, eq=False)
class ConstantGroup:
    """Constants that are read by the same weights over tokens, contracted together."""

    members: list[Constant]
    stacked: Lazy


def group_constants(constants: list[Constant]) -> tuple[list[ConstantGroup], list[Constant]]:
    """Constants whose matrices are contracted already, by their `w`; and the others."""
    by_weights: dict[tuple[int, Shape], list[Constant]] = {}
    single = []
    for constant in constants:
        m = constant.readout.m
        if constant.readout.dense:
            single.append(constant)
        elif constant.value is None and all(size == 1 for size in m.shape):
            by_weights.setdefault((id(constant.readout.w.lazy), constant.readout.full), []).append(
                constant
            )
        else:
            single.append(constant)
    return [ConstantGroup(group, _stacked(group)) for group in by_weights.values()], single


def _stacked(group: list[Constant]) -> Lazy:
    matrices = [constant.readout.m.lazy for constant in group]
    return Lazy(
        lambda run: torch.stack([run.get(m).flatten(1, -2).squeeze(1) for m in matrices]),
        static=True,
    )


def constant_terms(plan: Plan, run: Run, directions: Tensor | None = None) -> dict[int, Tensor]:
    """Contribution `[n, d]` of every constant of the bias component, by identity."""
    if plan.groups is None:
        plan.groups = group_constants([c for c in plan.constants if not c.readout.dense])
    groups, single = plan.groups
    terms = {id(constant): constant_term(run, constant) for constant in single}
    for group in groups:
        parts = contract_ones(
            run, [c.readout for c in group.members], group.stacked, group.members[0].before
        )
        terms.update({id(c): part for c, part in zip(group.members, parts, strict=True)})
    return terms if directions is None else {k: term @ directions.T for k, term in terms.items()}


def all_contributions(
    plan: Plan, run: Run, representation: Tensor, directions: Tensor | None = None
) -> Tensor:
    """Contributions [n, c, d] of every component, the bias kept as a component of its own.

    On given directions `[k, d]` the result is `[n, c, k]`. What is read by dense readouts is
    evaluated for as many columns at a time as fit into `COLUMN_BYTES`.
    """
    n = representation.shape[0]
    width = plan.width if directions is None else directions.shape[0]
    values = representation.new_zeros(n, len(plan.components), width)
    _add_factored(plan, run, values, directions)
    if plan.dense:
        columns = torch.eye(plan.width).to(representation) if directions is None else directions.T
        for part, piece in plan.column_bytes.parts(run, columns):
            _add_dense(plan, piece, values[:, :, part])
    return values


def _add_factored(plan: Plan, run: Run, values: Tensor, directions: Tensor | None) -> None:
    n, _, width = values.shape
    terms = constant_terms(plan, run, directions)
    for leaf in plan.stem:
        for readout in leaf.kept:
            if not readout.dense:
                values[:, 0] += contract(
                    run, run.values[leaf.node], readout, before=leaf.before, directions=directions
                )
    for constant in plan.stem_constants:
        if not constant.readout.dense:
            term = constant_term(run, constant)
            values[:, 0] += term if directions is None else term @ directions.T
    for leaf, (begin, stop) in zip(plan.leaves, plan.spans, strict=True):
        for readout in leaf.kept:
            if not readout.dense:
                part = contract(
                    run, run.values[leaf.node], readout, leaf.head_axes, before=leaf.before,
                    directions=directions,
                )  # fmt: skip
                values[:, begin:stop] += part.reshape(n, stop - begin, width)
        for constant in leaf.constants:
            if not constant.readout.dense:
                values[:, begin] -= terms[id(constant)]
    values[:, -1] = torch.stack(list(terms.values())).sum(0) if terms else 0


def _add_dense(plan: Plan, run: Run, values: Tensor) -> None:
    """Add what dense readouts read, for the columns of the run, to a part of the values."""
    n, _, width = values.shape
    terms = {id(c): constant_term(run, c) for c in plan.constants if c.readout.dense}
    for leaf in plan.stem:
        for readout in leaf.kept:
            if readout.dense:
                values[:, 0] += contract(run, run.values[leaf.node], readout, before=leaf.before)
    for constant in plan.stem_constants:
        if constant.readout.dense:
            values[:, 0] += constant_term(run, constant)
    for leaf, (begin, stop) in zip(plan.leaves, plan.spans, strict=True):
        for readout in leaf.kept:
            if readout.dense:
                part = contract(
                    run, run.values[leaf.node], readout, leaf.head_axes, before=leaf.before
                )
                values[:, begin:stop] += part.reshape(n, stop - begin, width)
        for constant in leaf.constants:
            if constant.readout.dense:
                values[:, begin] -= terms[id(constant)]
    for term in terms.values():
        values[:, -1] += term


def relative_error(values: Tensor, representation: Tensor) -> Tensor:
    """Relative error of the sum of contributions, per image: |sum - z| / |z|."""
    difference = values.sum(1) - representation
    norm = torch.linalg.vector_norm(representation, dim=-1)
    return torch.linalg.vector_norm(difference, dim=-1) / norm.clamp_min(
        torch.finfo(norm.dtype).tiny
    )
