"""The public verb: `decompose(model, images)`."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline_lib.decomposition.plan import Plan, make_plan
from pipeline_lib.decomposition.run import all_contributions, relative_error, start
from pipeline_lib.decomposition.tokens import TokenLayout, token_contributions, token_plan
from pipeline_lib.errors import ModelError, close_matches

_PLANS: weakref.WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Plan]] = (
    weakref.WeakKeyDictionary()
)


@dataclass(frozen=True)
class Decomposition:
    """A batch of representations and the contributions they are the sum of.

    Attributes
    ----------
    values
        Contributions: `[n, c, d]`, or `[n, c, k]` on given directions, or `[n, c, t, k]` per
        source token.
    components
        One row per component: component, id, kind, layer, stage, block, head, module, tokens.
    representation
        `z` `[n, d]` of the unmodified model.
    error
        Relative error of the sum, `|sum - z| / |z|`, per image `[n]`; NaN where only some
        components were asked for.
    readout
        What `z` is: the library's pre-logits feature, the projected image embedding, or the
        pooled stream before a nonlinear head (which is then named).
    layout
        Per token only: what the axis `t` holds (leading tokens, patch grid, constants).
    frozen
        Nonlinearities on the residual stream that were passed with their gate or their selection
        frozen: module, operation, detail. Empty for most models.
    """

    values: Float[Tensor, "n c *rest"]
    components: pd.DataFrame
    representation: Float[Tensor, "n d"]
    error: Float[Tensor, " n"]
    readout: str
    layout: TokenLayout | None = None
    frozen: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def normalized(self) -> Float[Tensor, "n d"]:
        """The representation scaled to unit length, as CLIP compares it."""
        return nn.functional.normalize(self.representation, dim=-1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid; only for `per="token"`."""
        return self._layout().grid

    @property
    def token_index(self) -> slice:
        """The part of the axis `t` that is the patch grid; only for `per="token"`."""
        layout = self._layout()
        return slice(layout.leading, layout.leading + layout.grid[0] * layout.grid[1])

    def maps(self) -> Float[Tensor, "n c k rows columns"]:
        """Contributions of the patches as maps; only for `per="token"`."""
        patches = self.values[:, :, self.token_index]
        return patches.movedim(2, -1).unflatten(-1, self.grid)

    def _layout(self) -> TokenLayout:
        if self.layout is None:
            raise ModelError('token maps need decompose(..., per="token")')
        return self.layout


def decompose(
    model: object,
    images: Float[Tensor, "n 3 h w"],
    *,
    per: str = "head",
    components: Sequence[int | str] | None = None,
    directions: Float[Tensor, "k d"] | None = None,
    bias: str = "separate",
    freeze_gates: bool = True,
) -> Decomposition:
    """Contributions of every component of a model to its representation of each image.

    Parameters
    ----------
    model
        A `VisionModel` (see `load_model`) or any `torch.nn.Module` in eval mode; a module that is
        no timm or open_clip model must return its representation `[n, d]`.
    images
        Preprocessed images, on the model's device and in its dtype.
    per
        `"layer"`: attention blocks whole; `"head"`: one component per head; `"token"`: heads,
        and each component's source tokens kept apart.
    components
        Names or numbers of the components wanted; all by default.
    directions
        Directions in representation space; contributions are then given as products with them.
        With `per="token"` and no directions, all `d` numbers are given (large).
    bias
        `"separate"`: biases and the additive parts of norms are a component of their own.
        `"even"`: they are split evenly over all other components (as published in P1 and P2).
    freeze_gates
        Pass a self-gating activation `x * g(x)` on the residual stream with `g(x)` frozen, and
        max pooling with its choice frozen; both are listed in `frozen`. False: refuse such models.

    Returns
    -------
    Decomposition
        With `values.sum(1) == representation` within rounding (norm statistics, attention weights
        and gates frozen at their values in this forward pass; P2, section 3).

    Raises
    ------
    ModelError
        The model is in train mode or holds values that are not finite; an unknown component or
        option; images of a wrong shape.
    DecompositionRefused
        An operation on the direct path cannot be decomposed exactly; it and its module are named.

    Examples
    --------
    >>> parts = decompose(model, images)                            # doctest: +SKIP
    >>> parts.values.shape, parts.error.max()                       # doctest: +SKIP
    (torch.Size([8, 158, 768]), tensor(3.1e-07))
    """
    module = _module(model)
    if per not in ("layer", "head", "token"):
        raise ModelError(f"per={per!r}: {close_matches(per, ('layer', 'head', 'token'))}")
    if bias not in ("separate", "even"):
        raise ModelError(f"bias={bias!r}: {close_matches(bias, ('separate', 'even'))}")
    plan = plan_for(module, images, freeze_gates=freeze_gates)
    with torch.no_grad():
        if per == "token":
            tokens = token_plan(plan)
            run, representation = start(plan, images, tokens.runner, tokens.taps)
            return _per_token(plan, run, representation, components, directions)
        run, representation = start(plan, images)
        early = directions is not None and plan.dense  # dense readouts cost by the column
        if directions is not None:
            directions = _directions(directions, representation)
        values = all_contributions(plan, run, representation, directions if early else None)
        error = relative_error(values, representation @ directions.T if early else representation)
        table = plan.components
        if per == "layer":
            values, table = _per_layer(values, table)
        if bias == "even":
            values, table = _spread_bias(values, table)
        wanted = select(table, components)
        if wanted is not None:
            values, table = values[:, wanted], table.iloc[wanted].reset_index(drop=True)
        if directions is not None and not early:
            values = values @ directions.T
        return Decomposition(
            values, table.copy(), representation, error, plan.readout, frozen=plan.frozen.copy()
        )


def plan_for(model: object, images: Tensor, *, freeze_gates: bool = True) -> Plan:
    """The plan for a model at these images' shape, dtype and device; made once and reused."""
    module = _module(model)
    if module.training:
        raise ModelError("the model is in train mode; call model.eval() first")
    if images.dim() != 4 or not images.is_floating_point():
        raise ModelError(
            f"images must be floating-point [n, 3, h, w]; got {images.dtype} {tuple(images.shape)}"
        )
    plans = _PLANS.setdefault(module, {})
    key = (tuple(images.shape[1:]), images.dtype, images.device, freeze_gates)
    if key not in plans:
        with torch.no_grad():
            plans[key] = make_plan(module, images, freeze_gates=freeze_gates)
    return plans[key]


def _module(model: object) -> nn.Module:
    module = getattr(model, "module", model) if not isinstance(model, nn.Module) else model
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"a torch.nn.Module or a VisionModel is needed, not {type(model).__name__}"
        )
    return module


def _directions(directions: Tensor, like: Tensor) -> Tensor:
    if directions.dim() != 2 or directions.shape[1] != like.shape[-1]:
        raise ModelError(
            f"directions must have the shape [k, {like.shape[-1]}]; got {tuple(directions.shape)}"
        )
    return directions.to(like)


def select(table: pd.DataFrame, components: Sequence[int | str] | None) -> list[int] | None:
    """Row numbers of the components asked for by name or number."""
    if components is None:
        return None
    names = {name: i for i, name in enumerate(table["id"])}
    found = []
    for wanted in components:
        if isinstance(wanted, str):
            if wanted not in names:
                raise ModelError(f"unknown component {wanted!r}: {close_matches(wanted, names)}")
            found.append(names[wanted])
        elif 0 <= int(wanted) < len(table):
            found.append(int(wanted))
        else:
            raise ModelError(f"component {wanted} of {len(table)}; valid: 0 to {len(table) - 1}")
    return found


def _per_layer(values: Tensor, table: pd.DataFrame) -> tuple[Tensor, pd.DataFrame]:
    """Heads of one attention block added up."""
    block = table["id"].str.split("/head").str[0]
    codes, names = pd.factorize(block)
    index = torch.as_tensor(codes, device=values.device)
    summed = values.new_zeros(values.shape[0], len(names), values.shape[2])
    summed.index_add_(1, index, values)
    first = table.groupby(codes, sort=True).first().reset_index(drop=True)
    first["id"] = list(names)
    first["component"] = range(len(first))
    first.loc[first["kind"] == "head", "kind"] = "attention"
    first["head"] = -1
    return summed, first


def _spread_bias(values: Tensor, table: pd.DataFrame) -> tuple[Tensor, pd.DataFrame]:
    """The constants split evenly over all other components."""
    rest = values[:, :-1] + values[:, -1:] / (values.shape[1] - 1)
    return rest, table.iloc[:-1].reset_index(drop=True)


def _per_token(
    plan: Plan,
    run: object,
    representation: Tensor,
    components: Sequence[int | str] | None,
    directions: Tensor | None,
) -> Decomposition:
    wanted = select(plan.components, components)
    rows = list(range(len(plan.components))) if wanted is None else wanted
    if directions is None:
        directions = torch.eye(plan.width, dtype=representation.dtype, device=representation.device)
    directions = _directions(directions, representation)
    values, layout = token_contributions(plan, run, rows, directions)  # type: ignore[arg-type]
    error = representation.new_full((representation.shape[0],), float("nan"))
    if wanted is None and directions.shape[0] == plan.width:
        error = relative_error(values.sum(2), representation @ directions.T)
    table = plan.components.iloc[rows].reset_index(drop=True)
    return Decomposition(
        values, table, representation, error, plan.readout, layout, frozen=plan.frozen.copy()
    )
