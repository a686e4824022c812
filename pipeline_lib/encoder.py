"""Encoder: contributions of a batch as the coordinates that are stored, and what that loses."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32

from pipeline_lib.config import Contributions
from pipeline_lib.errors import DataError, ToleranceError
from pipeline_lib.factors import Factors, factorise, projected
from pipeline_lib.store_layout import PRECISION

if TYPE_CHECKING:
    import torch

    from pipeline_lib.maps import Maps
    from pipeline_lib.models import VisionModel

log = logging.getLogger(__name__)


def model_factors(
    model: VisionModel,
    settings: Contributions,
    texts: Float[torch.Tensor, "k e"] | None = None,
    maps: Maps | None = None,
) -> Factors:
    """Bases in which the contributions of a model's components are stored, from its weights.

    Computed on the CPU, so that they do not depend on where shards are dumped.

    Parameters
    ----------
    texts, maps
        For level `projected`: embeddings, and maps to their space, in whose directions products are
        kept beside those of the model's classifier. What a component cannot write along any of
        them is not stored.

    Raises
    ------
    DataError
        Level `projected` has no direction: there is neither a classifier nor a text.
    """
    import torch

    from pipeline_lib.decomposition import plan_for
    from pipeline_lib.decomposition.spans import component_spans

    model.to(torch.device("cpu"))
    plan = plan_for(model, torch.zeros(2, 3, *model.input_size))
    spans = component_spans(plan, per=settings.per, bias=settings.bias)
    if settings.level == "full":
        return Factors.whole(len(spans), plan.width)
    rows = [None if span is None else span.numpy() for span in spans]
    if settings.level == "projected":
        asked = _directions(model, plan.width, texts, maps).double().expand(len(spans), -1, -1)
        rows = [projected(span, on) for span, on in zip(rows, asked.numpy(), strict=True)]
    factors = factorise(rows, plan.width, settings.shard_size)
    whole = sum(rank == factors.width for rank in factors.ranks)
    log.info("%d components as %d coordinates instead of %d; %d of them stored whole", len(spans),
             factors.columns, len(spans) * factors.width, whole)  # fmt: skip
    return factors


def _directions(
    model: VisionModel, width: int, texts: Float[torch.Tensor, "k e"] | None, maps: Maps | None
) -> Float[torch.Tensor, "m k d"]:
    """Directions that a run asks a model for, of every component or (`m` is 1) the same of all."""
    import torch

    found = []
    if model.classifier is not None and model.classifier.in_features == width:
        found.append(model.classifier.weight.detach().cpu().float()[None])
    if texts is not None and maps is not None:
        found.append(maps.directions(texts, 1 if maps.weights is None else len(maps.weights)).mT)
    if not found:
        raise DataError(
            f"{model.id} has no classifier, and its maps are not known before its dump: there are "
            "no directions to project on; name maps in maps.given, or use "
            "contributions.level: factored"
        )
    count = max(len(rows) for rows in found)
    return torch.cat([rows.expand(count, -1, -1) for rows in found], dim=1)


class Encoder:
    """Coordinates of contributions on the device, and what is lost by storing them."""

    def __init__(self, factors: Factors, settings: Contributions, device: torch.device) -> None:
        import torch

        self.factors = factors
        self.dtype = getattr(torch, settings.dtype)
        self._projects = settings.level == "projected"
        self._groups = []  # components of equal rank in one product
        for rank in sorted(set(factors.ranks)):
            members = [c for c, found in enumerate(factors.ranks) if found == rank]
            columns = torch.as_tensor(factors.columns_of(members), device=device)
            vectors = [v for v in (factors.vectors[c] for c in members) if v is not None]
            bases = torch.as_tensor(np.stack(vectors)).to(device) if vectors else None
            self._groups.append((torch.as_tensor(members, device=device), columns, bases))

    def encode(self, values: Float[torch.Tensor, "n c d"]) -> Float[torch.Tensor, "n r"]:
        """Coordinates of all components side by side."""
        found = values.new_empty(len(values), self.factors.columns)
        for members, columns, bases in self._groups:
            part = values[:, members]
            if bases is not None:
                part = (part.transpose(0, 1) @ bases.transpose(1, 2)).transpose(0, 1)
            found[:, columns] = part.flatten(1)
        return found

    def loss(
        self, values: Float[torch.Tensor, "n c d"], coordinates: Float[torch.Tensor, "n r"]
    ) -> Float[torch.Tensor, " n"]:
        """Norm of what coordinates miss of all contributions once stored, over their norm."""
        stored = coordinates.to(self.dtype).float()
        if self._projects:  # what is not asked for is not missed
            size = coordinates.square().sum(dim=1).clamp_min(1e-30)
            return ((stored - coordinates).square().sum(dim=1) / size).sqrt()
        missed = values.new_zeros(len(values))
        for members, columns, bases in self._groups:
            part = stored[:, columns].unflatten(1, (len(members), -1))
            if bases is not None:
                part = (part.transpose(0, 1) @ bases).transpose(0, 1)
            missed += (part - values[:, members]).square().sum(dim=(1, 2))
        size = values.square().sum(dim=(1, 2)).clamp_min(1e-30)
        return (missed / size).sqrt()


def check_rounding(
    rounding: Float32[np.ndarray, "b"], names: pd.Series, settings: Contributions
) -> None:
    """Check that storing loses no more than the dtype does.

    Raises
    ------
    ToleranceError
        With the first image that loses more.
    """
    allowed = max(settings.tolerance, 2 * PRECISION[settings.dtype])
    bad = ~(rounding <= allowed)
    if bad.any():
        first = int(np.argmax(bad))
        raise ToleranceError(
            f"{names.iloc[first]}: contributions stored as {settings.dtype} lose "
            f"{rounding[first]:.3g} of their norm, more than {allowed:.3g}. "
            "Set contributions.dtype: float32, and contributions.level: full if that is not "
            "enough; please report the latter with the model's id."
        )
