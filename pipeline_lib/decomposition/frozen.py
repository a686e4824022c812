"""Frozen: nonlinearities on the residual stream that are linear once a factor of them is frozen.

A self-gating activation is a product `f(x) = x * g(x)`: with the gate `g(x)` frozen, as the gates
of gated layers are, it is linear. Max pooling reads one chosen entry per place: with the choice
frozen, as the weights of attention are, it is linear too. Gates are the analytic ones, finite at
0. Both vary along tokens and channels, so the readout is dense behind them. The plan lists each.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from pipeline_lib.decomposition.operations import op_name
from pipeline_lib.decomposition.readout import Lazy, Readout, Run
from pipeline_lib.decomposition.rules import Context, boxed

Gate = Callable[[Tensor, fx.Node], Tensor]


def _argument(node: fx.Node, position: int, name: str, default: float) -> float:
    value = node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
    return float(value)  # type: ignore[arg-type]


def _gelu(x: Tensor, node: fx.Node) -> Tensor:
    """Normal distribution function, or its approximation by tanh."""
    form = node.kwargs.get("approximate", node.args[1] if len(node.args) > 1 else "none")
    if form == "tanh":
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def _leaky(x: Tensor, node: fx.Node) -> Tensor:
    slope = _argument(node, 1, "negative_slope", 0.01)
    return torch.where(x > 0, 1.0, slope).to(x)


def _relu6(x: Tensor, node: fx.Node) -> Tensor:
    return torch.where(x > 6, 6 / x.clamp_min(6), (x > 0).to(x))


#: Gates `g` of activations `x * g(x)`.
GATES: dict[str, Gate] = {
    "relu": lambda x, node: (x > 0).to(x),
    "relu6": _relu6,
    "leaky_relu": _leaky,
    "gelu": _gelu,
    "silu": lambda x, node: torch.sigmoid(x),
    "hardswish": lambda x, node: (x + 3).clamp(0, 6) / 6,
    "mish": lambda x, node: torch.tanh(F.softplus(x)),
}

#: Operations that choose one entry of the stream per place and channel.
SELECTIONS = ("max_pool2d", "max_pool1d")


def detail_of(node: fx.Node) -> str | None:
    """What of a nonlinearity can be frozen, as the plan calls it; None where nothing can."""
    name = op_name(node)
    if name == "hardtanh":
        low, high = _argument(node, 1, "min_val", -1), _argument(node, 2, "max_val", 1)
        return "frozen gate" if (low, high) == (0, 6) else None
    if name in GATES:
        return "frozen gate"
    return "frozen selection" if name in SELECTIONS else None


def pull_frozen(context: Context, node: fx.Node, readout: Readout) -> Readout:
    """Readout of the operand of a self-gating activation or of a selection."""
    if op_name(node) in SELECTIONS:
        return _through_selection(context, node, readout.densified())
    return _through_gate(context, node, readout.densified())


def _through_gate(context: Context, node: fx.Node, readout: Readout) -> Readout:
    source = context.tap(node.args[0])  # type: ignore[arg-type]
    gate = GATES.get(op_name(node), _relu6)
    value = Lazy(lambda run: gate(run.values[source], node), static=False)
    w = readout.w.spread(list(range(len(readout.full))), readout.full)
    w = w.then(lambda t, run: t * boxed(run.get(value), w.box)[None], static=False)
    return Readout(w, readout.m, readout.full)


def _through_selection(context: Context, node: fx.Node, readout: Readout) -> Readout:
    source = context.tap(node.args[0])  # type: ignore[arg-type]
    before = context.facts.shape(source)
    count = int(op_name(node)[-2])
    axes = list(range(len(before)))
    inner = before[-count:]
    pool = F.max_pool2d if count == 2 else F.max_pool1d
    settings = list(node.args[1:])

    def chosen(run: Run) -> Tensor:
        return pool(run.values[source], *settings, return_indices=True)[1].flatten(-count)

    choice = Lazy(chosen, static=False)

    def scatter(t: Tensor, run: Run) -> Tensor:
        flat = t.flatten(-count)
        back = flat.new_zeros(*flat.shape[:-1], math.prod(inner))
        places = run.get(choice).expand(flat.shape)
        return back.scatter_add(-1, places, flat).unflatten(-1, inner)

    w = readout.w.spread(axes, readout.full)
    return Readout(w.then(scatter, shape=before, static=False), readout.m, before)
