"""Linear maps from contributions to CLIP space: what they are, how good, saved and loaded.

`f(z) = Σ_c contribution_c W_c + b` should point where the reference CLIP's embedding of the same
image points. They are fitted in `map_fits`. Axis letters: `n` image, `c` component, `d` model
width, `e` width of the CLIP space, `k` text.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline_lib.artifacts import atomic_path
from pipeline_lib.coordinates import Source
from pipeline_lib.errors import ArtifactError, DataError
from pipeline_lib.intervals import mean_interval

#: Number of the file format of saved maps.
FORMAT = 1

#: Methods that minimise the squared distance to the targets; of others the length is free.
LEAST_SQUARES = ("ridge", "anchored", "shared")

_CHUNK = 1024


@dataclass(frozen=True)
class Maps:
    """One linear map per component and a shared bias.

    Attributes
    ----------
    method
        How they were fitted.
    weights
        `[c, d, e]`; `[1, d, e]` where all components share one map; `None` for the identity.
    bias
        `[e]`; part of the representation's image only, of no component's.
    facts
        JSON-able facts on what they were fitted on, kept in the manifest.

    Notes
    -----
    The constants of a model's norms and biases may be a component of their own; it is mapped like
    any other, so that `apply(x).sum(1) + bias == apply_total(x)` whatever the components are.
    """

    method: str
    weights: Float[Tensor, "c d e"] | None
    bias: Float[Tensor, " e"]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, contributions: Float[Tensor, "n c d"]) -> Float[Tensor, "n c e"]:
        """Contribution of every component in CLIP space, without the bias.

        Raises
        ------
        ArtifactError
            The contributions have other components or another width than the maps were fitted on.
        """
        self.check(*contributions.shape[1:])
        if self.weights is None:
            return contributions
        if len(self.weights) == 1:
            return contributions @ self.weights[0]
        return torch.einsum("ncd,cde->nce", contributions, self.weights)

    def apply_total(self, contributions: Float[Tensor, "n c d"]) -> Float[Tensor, "n e"]:
        """Image of the whole representation `f(z)`, bias included, in one product."""
        self.check(*contributions.shape[1:])
        if self.weights is None:
            return contributions.sum(dim=1) + self.bias
        if len(self.weights) == 1:
            return contributions.sum(dim=1) @ self.weights[0] + self.bias
        return contributions.flatten(1) @ self.weights.flatten(0, 1) + self.bias

    def directions(self, vectors: Float[Tensor, "k e"], components: int) -> Float[Tensor, "c d k"]:
        """Directions of the model that read CLIP-space `vectors` off each component.

        `contributions[:, c] @ directions[c]` equals `apply(contributions)[:, c] @ vectors.T`, at
        `k/e` of the cost.
        """
        if self.weights is None:
            return vectors.T.expand(components, -1, -1)
        return (self.weights @ vectors.T).expand(components, -1, -1)

    def only(self, components: Sequence[int]) -> Maps:
        """The maps of some components, by number."""
        if self.weights is None or len(self.weights) == 1:
            return self
        return replace(self, weights=self.weights[list(components)])

    def check_model(self, weight_hash: str) -> None:
        """Raise unless the maps were fitted on the model whose weights have this hash.

        Raises
        ------
        ArtifactError
            They were fitted on other weights, or it is not known on which.
        """
        fitted = self.facts.get("weights")
        if fitted != weight_hash:
            raise ArtifactError(
                f"these maps were fitted on weights {str(fitted)[:12]}, the model has "
                f"{weight_hash[:12]}; give the maps of these very weights, or leave out maps.given"
            )

    def check(self, components: int, width: int) -> None:
        """Raise unless the maps fit contributions of `components` components of width `d`."""
        if self.weights is None:
            fits = len(self.bias) == width
        else:
            fits = len(self.weights) in (1, components) and self.weights.shape[1] == width
        if not fits:
            shape = "identity" if self.weights is None else tuple(self.weights.shape)
            raise ArtifactError(
                f"maps of shape {shape} (component, model width, CLIP width {len(self.bias)}) do "
                f"not fit contributions of {components} components of width {width}; fit maps on "
                "this model's own contributions, or use those of the model they were fitted on"
            )


def identity_maps(width: int) -> Maps:
    """The map of a CLIP model into its own space: every contribution is there already."""
    return Maps("identity", None, torch.zeros(width))


# Images


def split_heldout(image_ids: Sequence[str], share: float, seed: int) -> Bool[np.ndarray, " n"]:
    """True for the images kept out of the fit: about `share` of them, by hash of id and seed.

    An image stays on its side when others are added.

    Raises
    ------
    DataError
        One side has no image, or fewer than two are left to fit on.
    """
    digests = (hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in image_ids)
    heldout = np.array([int.from_bytes(d[:8], "big") < share * 2**64 for d in digests], dtype=bool)
    if heldout.sum() < 1 or (~heldout).sum() < 2:
        raise DataError(
            f"{len(heldout)} images with a held-out share of {share} leave "
            f"{int((~heldout).sum())} to fit on and {int(heldout.sum())} held out; use more images "
            "or another share (maps.heldout)"
        )
    return heldout


def split_masks(
    heldout: Bool[np.ndarray, " n"], test: Bool[np.ndarray, " n"] | None = None
) -> dict[str, Bool[np.ndarray, " n"]]:
    """Value of column `split` of table `map_metrics` to the images that it stands for."""
    masks = {"train": ~heldout, "heldout": heldout}
    if test is None or not test.any():
        return masks
    return {"train": ~heldout & ~test, "heldout": heldout & ~test, "test": test}


def without_test(splits: pd.Series) -> Int[np.ndarray, " m"]:
    """Positions of the images that may be fitted on: all but those of split `test`.

    Raises
    ------
    DataError
        All images are of split `test`.
    """
    positions = np.flatnonzero((splits != "test").to_numpy())
    if not len(positions):
        raise DataError(
            "all images are of split test, which is kept for reporting; give some images split "
            "train or val, in the column of splits or by datasets.*.split"
        )
    return positions


def with_heldout(manifest: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """The manifest with images held out of the fit of maps under a split of their own, `heldout`.

    Raises
    ------
    DataError
        As `without_test` and `split_heldout`, or fewer than two active images are on a side.
    """
    positions = without_test(manifest["split"])
    heldout = split_heldout(manifest["image_id"].iloc[positions].tolist(), share, seed)
    splits = manifest["split"].to_numpy(dtype=object, copy=True)
    splits[positions[heldout]] = "heldout"
    active = manifest["active"].to_numpy()[positions]
    left, out = int((active & ~heldout).sum()), int((active & heldout).sum())
    if min(left, out) < 2:
        raise DataError(
            f"maps.heldout: {share:g} of {left + out} images leaves {left} to fit maps on and "
            f"{out} held out; at least 2 of each are needed: use more images or another share"
        )
    return manifest.assign(split=splits)


# Metrics


def applied_metrics(
    maps: Maps,
    source: Source,
    targets: Float[Tensor, "n e"],
    heldout: Bool[np.ndarray, " n"],
    test: Bool[np.ndarray, " n"] | None = None,
) -> pd.DataFrame:
    """Metrics of maps that are applied as they are, in the form that `fit_maps` gives.

    For the identity, and for maps that were fitted on other images.

    Raises
    ------
    ArtifactError
        The maps do not fit the contributions.
    DataError
        Targets do not fit the images, or hold NaN.
    """
    check_targets(source, targets, heldout, test)
    started = time.perf_counter()
    images = unit(torch.cat([maps.apply_total(values) for _, values in source.batches()]))
    rows = []
    for split, mask in split_masks(heldout, test).items():
        chosen = torch.from_numpy(mask)
        rows.append(
            {"method": maps.method, "chosen": True, "split": split}
            | agreement(images[chosen], unit(targets)[chosen])
        )
    frame = pd.DataFrame(rows)
    return frame.assign(explained=np.nan, seconds=time.perf_counter() - started)


def unit(vectors: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
    """Rows scaled to length 1; zero rows stay zero."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


def agreement(images: Float[Tensor, "m e"], targets: Float[Tensor, "m e"]) -> dict[str, Any]:
    """Columns n, cosine and recall of table `map_metrics` with intervals, from unit vectors."""
    ranks = target_ranks(images, targets)
    measured = {
        "cosine": (images * targets).sum(1),
        "recall_at_1": ranks < 1,
        "recall_at_5": ranks < 5,
    }
    found: dict[str, Any] = {"n": len(images)}
    for name, values in measured.items():
        each = values.double().numpy()
        low, high = mean_interval(each)
        found |= {name: float(each.mean()), f"{name}_low": low, f"{name}_high": high}
    return found


def explained_share(mapped: Float[Tensor, "m e"], targets: Float[Tensor, "m e"]) -> float:
    """Share of the targets' variance over images that mapped representations explain.

    `1 - Σ‖y - f(z)‖² / Σ‖y - ȳ‖²`: at most 1, below 0 where the mean target is nearer; NaN where
    the targets are all the same.
    """
    rest = (targets.double() - mapped.double()).square().sum()
    spread = (targets.double() - targets.double().mean(0)).square().sum()
    return float(1 - rest / spread) if spread > 0 else float("nan")


def target_ranks(images: Float[Tensor, "m e"], targets: Float[Tensor, "m e"]) -> Tensor:
    """For each image the number of *other* targets nearer to it than its own `[m]`.

    Equal targets (images of one label) count once; ties count as not nearer.
    """
    gallery = torch.unique(targets, dim=0)
    ranks = []
    for own, image in zip(targets.split(_CHUNK), images.split(_CHUNK), strict=True):
        similarity = (image * own).sum(dim=1, keepdim=True)
        ranks.append((image @ gallery.T > similarity + 1e-6).sum(dim=1))
    return torch.cat(ranks)


def check_targets(
    source: Source,
    targets: Float[Tensor, "m e"],
    heldout: Bool[np.ndarray, " v"],
    test: Bool[np.ndarray, " v"] | None = None,
) -> None:
    """Raise one `DataError` unless every image has a finite target and both sides have images."""
    if len(targets) != source.n or len(heldout) != source.n:
        raise DataError(
            f"{source.n} images have {len(targets)} targets and {len(heldout)} entries that say "
            "what is held out; there must be one of each for every image"
        )
    if not torch.isfinite(targets).all():
        bad = int(torch.nonzero(~torch.isfinite(targets).all(dim=1))[0])
        raise DataError(
            f"the target of image {bad} (counted from 0) is NaN or infinite: its features are "
            "incomplete; delete the features store of this data set and run snakemake again"
        )
    fitted, seen = (int(split_masks(heldout, test)[name].sum()) for name in ("train", "heldout"))
    if seen < 1 or fitted < 2:
        raise DataError(
            f"{fitted} images to fit on and {seen} held out are too "
            "few: at least 2 and 1 are needed"
        )


# Files


def known_values(metrics: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table of metrics, each with what was measured, for the manifest of maps."""
    rows = metrics.to_dict("records")
    return [{str(key): value for key, value in row.items() if not pd.isna(value)} for row in rows]


def save_maps(maps: Maps, weights: str | Path, manifest: str | Path) -> None:
    """Write maps as a safetensors file and a JSON manifest; each appears complete or not at all.

    The manifest holds method, shape, the hash of the weights and `maps.facts`.
    """
    tensors = {"bias": maps.bias.contiguous()}
    if maps.weights is not None:
        tensors["weights"] = maps.weights.contiguous()
    with atomic_path(weights) as beside:
        save_file(tensors, beside)
        digest = hashlib.sha256(beside.read_bytes()).hexdigest()
    content = {
        "format": FORMAT,
        "method": maps.method,
        "shape": None if maps.weights is None else list(maps.weights.shape),
        "space": len(maps.bias),
        "sha256": digest,
        "facts": dict(maps.facts),
    }
    with atomic_path(manifest) as beside:
        beside.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


def load_maps(weights: str | Path, manifest: str | Path | None = None) -> Maps:
    """Maps as `save_maps` wrote them; by default the manifest is the `.json` beside the weights.

    Raises
    ------
    ArtifactError
        A file is missing or damaged, of another format, or the two do not belong together.
    """
    weights = Path(weights)
    manifest = weights.with_suffix(".json") if manifest is None else Path(manifest)
    try:
        content = json.loads(manifest.read_text("utf-8"))
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        tensors = load_file(weights)
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(
            f"maps cannot be read from {weights} and {manifest}: {error}"
        ) from error
    if content.get("format") != FORMAT:
        raise ArtifactError(f"{manifest} has format {content.get('format')}, this reads {FORMAT}")
    if content.get("sha256") != digest:
        raise ArtifactError(f"{weights} is not the file that {manifest} describes; make both anew")
    return Maps(content["method"], tensors.get("weights"), tensors["bias"], content["facts"])
