"""An independent meaning of "direct contribution": a forward pass with everything else frozen.

The eager model is run twice in a function mode that knows nothing of the engine. The first pass
records the deviations of norms, the weights of attention and the input of every *leaf*: the first
linear module behind a branch's last nonlinearity. The second replays these, so that all branches
are constants and the direct path is linear; what an edit of one leaf's input (or of one attention
product's weights) does to `z` is then that part's direct contribution.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Edit = Callable[[Tensor], Tensor]


def _layer_norm(mode, x, shape, weight=None, bias=None, eps=1e-5):  # type: ignore[no-untyped-def]
    axes = list(range(-len(shape), 0))
    inverse = mode.statistic(lambda: (x.var(axes, unbiased=False, keepdim=True) + eps).rsqrt())
    y = (x - x.mean(axes, keepdim=True)) * inverse
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _rms_norm(mode, x, shape, weight=None, eps=None):  # type: ignore[no-untyped-def]
    axes = list(range(-len(shape), 0))
    small = torch.finfo(x.dtype).eps if eps is None else eps
    y = x * mode.statistic(lambda: (x.square().mean(axes, keepdim=True) + small).rsqrt())
    return y if weight is None else y * weight


def _group_norm(mode, x, groups, weight=None, bias=None, eps=1e-5):  # type: ignore[no-untyped-def]
    parts = x.unflatten(1, (groups, -1)).flatten(2)
    inverse = mode.statistic(lambda: (parts.var(-1, unbiased=False, keepdim=True) + eps).rsqrt())
    y = ((parts - parts.mean(-1, keepdim=True)) * inverse).view_as(x)
    along = (1, -1) + (1,) * (x.dim() - 2)
    y = y if weight is None else y * weight.view(along)
    return y if bias is None else y + bias.view(along)


def _softmax(mode, x, dim=None, **_: object):  # type: ignore[no-untyped-def]
    return mode.weights(lambda: _normalised(x, dim))[1]


def _normalised(x: Tensor, dim: int) -> Tensor:
    powers = (x - x.amax(dim, keepdim=True)).exp()
    return powers / powers.sum(dim, keepdim=True)


def _attention_weights(q, k, mask, scale):  # type: ignore[no-untyped-def]
    logits = q @ k.transpose(-2, -1) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    assert mask is None or mask.dtype != torch.bool
    return _normalised(logits if mask is None else logits + mask, -1)


def _attention(  # type: ignore[no-untyped-def]
    mode, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None
):
    assert not is_causal
    return mode.weights(lambda: _attention_weights(q, k, attn_mask, scale))[1] @ v


def _multi_head(  # type: ignore[no-untyped-def]
    mode, query, key, value, width, heads, in_weight, in_bias, bias_k, bias_v, add_zero, dropout,
    out_weight, out_bias, **options,
):  # fmt: skip
    """`nn.MultiheadAttention` with tokens before the batch; its product is a leaf of its own."""
    assert query is key is value and options.get("attn_mask") is None
    q, k, v = F.linear(query, in_weight, in_bias).chunk(3, -1)
    q, k, v = (t.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3) for t in (q, k, v))
    recorded, edited = mode.weights(lambda: _attention_weights(q, k, None, None))
    mixed = mode.statistic(lambda: recorded @ v) + (edited - recorded) @ v
    return F.linear(mixed.permute(2, 0, 1, 3).flatten(2), out_weight, out_bias), None


_RULES: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.softmax: _softmax,
    torch.softmax: _softmax,
    Tensor.softmax: _softmax,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head,
}


class _Mode(TorchFunctionMode):
    """Records the statistics of norms and attention, or replays them in the same order."""

    def __init__(self, tape: list[Tensor] | None, edits: dict[int, Edit]) -> None:
        super().__init__()
        self.tape: list[Tensor] = [] if tape is None else tape
        self.replays = tape is not None
        self.edits = edits
        self.place = 0
        self.attention: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        own = _RULES.get(func)
        if own is None:
            return func(*args, **(kwargs or {}))
        return own(self, *args, **(kwargs or {}))

    def statistic(self, compute: Callable[[], Tensor]) -> Tensor:
        """The recorded value of a statistic."""
        if not self.replays:
            self.tape.append(compute().detach())
        self.place += 1
        return self.tape[self.place - 1]

    def weights(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Recorded attention weights, and these as edited."""
        value = self.statistic(compute)
        self.attention.append(value)
        edit = self.edits.get(len(self.attention) - 1)
        return value, value if edit is None else edit(value)


class FrozenModel:
    """A model and a batch, with everything but named leaves frozen at its value.

    Parameters
    ----------
    represent
        Function of the images that gives `z` through the eager model.
    leaves
        Pattern of the names of the modules whose inputs are the components.

    Attributes
    ----------
    inputs
        Input of every leaf, by name, in the order in which they ran.
    attention
        Weights of every attention product, in the order in which they ran.
    """

    def __init__(
        self, model: nn.Module, represent: Callable[[Tensor], Tensor], images: Tensor, leaves: str
    ) -> None:
        self.model, self.represent, self.images = model, represent, images
        self.pattern = re.compile(rf"(?:{leaves})$")
        self.inputs: dict[str, Tensor] = {}
        mode = _Mode(None, {})
        self.representation = self._run(mode, self._record)
        self.tape, self.attention = mode.tape, mode.attention

    def change(
        self, leaf: str | None = None, edit: Edit | None = None, *,
        attention: int | None = None, weights: Edit | None = None, live: str | None = None,
    ) -> Tensor:  # fmt: skip
        """What is lost from `z` `[n, d]` when a leaf's input, or attention weights, are edited.

        `live` names the leaf that reads those attention weights' product; it is not held constant.
        """

        def replay(name: str, value: Tensor) -> Tensor:
            if name == live:
                return value
            recorded = self.inputs[name]
            return edit(recorded.clone()) if name == leaf and edit is not None else recorded

        edits = {} if attention is None or weights is None else {attention: weights}
        return self.representation - self._run(_Mode(self.tape, edits), replay)

    def _record(self, name: str, value: Tensor) -> Tensor:
        self.inputs[name] = value.detach()
        return value

    def _run(self, mode: _Mode, visit: Callable[[str, Tensor], Tensor]) -> Tensor:
        handles = [
            module.register_forward_pre_hook(
                lambda m, args, name=name: (visit(name, args[0]), *args[1:])
            )
            for name, module in self.model.named_modules()
            if self.pattern.search(name)
        ]
        try:
            with torch.no_grad(), mode:
                return self.represent(self.images)
        finally:
            for handle in handles:
                handle.remove()


def without(axis: int, index: int | slice) -> Edit:
    """The edit that sets a part along one axis to zero."""

    def edit(value: Tensor) -> Tensor:
        value = value.clone()
        value.movedim(axis, 0)[index] = 0
        return value

    return edit


def nothing(value: Tensor) -> Tensor:
    """The edit that sets everything to zero."""
    return torch.zeros_like(value)
