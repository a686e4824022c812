"""Order of mean ablation: what each curve ablates step by step, and the logits that are left.

Arrays of shares in, logits out; the dump is read in `ablation`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

#: Kinds of component that the curves `all_mlp` and `all_attention` ablate.
MLP_KINDS = ("mlp",)
ATTENTION_KINDS = ("head", "attention")


@dataclass(frozen=True)
class LayerGroups:
    """Components in the order in which a curve from the input ablates them, one layer at a time.

    Attributes
    ----------
    names
        What each group is, for example `layer 3 (blocks.1.mlp)`.
    member
        Which components belong to each group; every component is in exactly one.
    """

    names: tuple[str, ...]
    member: Bool[np.ndarray, "g c"]


def group_by_layer(components: pd.DataFrame) -> LayerGroups:
    """Groups of components from the input to the output; the bias stands first, with the stem.

    Parameters
    ----------
    components
        Rows of table `components`.
    """
    layer = components["layer"].to_numpy().copy()
    layer[components["kind"].to_numpy() == "bias"] = -1
    names, member = [], []
    for number in sorted(set(layer.tolist())):
        rows = layer == number
        ids = components["id"].to_numpy()[rows]
        what = str(ids[0]).split("/")[0] if number >= 0 else " and ".join(map(str, ids))
        names.append(f"layer {number} ({what})" if number >= 0 else what)
        member.append(rows)
    return LayerGroups(tuple(names), np.array(member))


@dataclass(frozen=True)
class Plan:
    """The steps of all curves, and how to get their logits from the shares."""

    steps: list[tuple[str, int, str]]
    orders: list[list[int]]
    member: Bool[np.ndarray, "g c"]
    kinds: list[Bool[np.ndarray, " c"]]
    ranked: Int[np.ndarray, " c"]

    def logits(
        self,
        full: Float[np.ndarray, "b k"],
        base: Float[np.ndarray, " k"],
        centred: Float[np.ndarray, "c b k"],
    ) -> Iterator[Float[np.ndarray, "b k"]]:
        """Logits of each step, in the order of `steps`.

        `base` is what all means give; `full - base` is the sum of `centred` over components.
        """
        yield full
        flat = self.member.astype(np.float32) @ centred.reshape(len(centred), -1)
        by_group = flat.reshape(len(flat), *full.shape)
        for order in self.orders:
            yield from _cumulative(full, base, by_group[order])
        yield from _cumulative(full, base, centred[self.ranked])
        for rows in self.kinds:
            yield full - centred[rows].sum(axis=0)
        for one in centred:
            yield full - one


def _cumulative(
    full: Float[np.ndarray, "b k"],
    base: Float[np.ndarray, " k"],
    parts: Float[np.ndarray, "g b k"],
) -> Iterator[Float[np.ndarray, "b k"]]:
    """Logits while the parts are ablated one after the other: the full model to a constant."""
    yield full
    left = parts[::-1].cumsum(axis=0)[::-1]
    for step in range(1, len(parts)):
        yield base + left[step]
    yield np.broadcast_to(base, full.shape)


def make_plan(
    components: pd.DataFrame,
    groups: LayerGroups,
    draws: int,
    seed: int,
    ranked: Int[np.ndarray, " c"],
) -> Plan:
    """Steps of all curves of a model.

    Parameters
    ----------
    components
        Rows of table `components`.
    groups
        Layers, from `group_by_layer`.
    draws, seed
        Random orders of the layers.
    ranked
        Components in the order in which the curve `by_effect` ablates them.
    """
    count = len(groups.names)
    rng = np.random.default_rng(seed)
    named = [("from_input", list(range(count))), ("from_output", list(range(count))[::-1])]
    named += [("random", rng.permutation(count).tolist()) for _ in range(draws)]
    steps: list[tuple[str, int, str]] = [("none", 0, "nothing")]
    for curve, order in named:
        steps.append((curve, 0, "nothing"))
        for step, group in enumerate(order, start=1):
            ablated = f"{step} random layers" if curve == "random" else groups.names[group]
            steps.append((curve, step, ablated))
    ids = components["id"].to_numpy()
    steps.append(("by_effect", 0, "nothing"))
    steps += [("by_effect", step, str(ids[c])) for step, c in enumerate(ranked, start=1)]
    kinds = []
    for curve, wanted in (("all_mlp", MLP_KINDS), ("all_attention", ATTENTION_KINDS)):
        rows = components["kind"].isin(wanted).to_numpy()
        if rows.any():
            kinds.append(rows)
            steps.append((curve, int(rows.sum()), f"all {int(rows.sum())} of kind {curve[4:]}"))
    steps += [("single", 1, str(name)) for name in ids]
    return Plan(steps, [order for _, order in named], groups.member, kinds, ranked)
