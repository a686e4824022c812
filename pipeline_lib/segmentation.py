"""Zero-shot segmentation: heat maps thresholded and compared with masks, by named protocols.

Heat maps come from `heatmaps`, or from a baseline of the same shape. Everything is counted image by
image and pooled at the end, so the result does not depend on how the images are batched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import Tensor

from pipeline_lib.classify import LinearClassifier
from pipeline_lib.errors import DataError, close_matches
from pipeline_lib.heatmaps import (
    HasPreprocessing,
    Span,
    gradient_maps,
    image_directions,
    patch_grid,
    pixel_range,
    representations,
    squash,
    token_maps,
    upsample,
)
from pipeline_lib.images import read_image

logger = logging.getLogger(__name__)

#: From a batch of images [b,3,h,w] and their positions [b] to one map per image [b,gh,gw].
Mapper = Callable[[Tensor, Int[np.ndarray, " b"]], Float[np.ndarray, "b gh gw"]]

#: Protocol name to how image and mask are brought to the model's input size, and what is counted.
PROTOCOLS: dict[str, str] = {
    "C": "Chefer et al.: image and mask squashed to the input size, both channels counted",
    "V": "Balasubramanian et al.: the model's own crop for image and mask, the object alone",
}


def object_mask(mask: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Where a mask shows any object: values above 0 (0 or 255, or class number plus one)."""
    return np.asarray(mask) > 0


def read_mask(path: str | Path, size: tuple[int, int]) -> Image.Image:
    """A mask file as one channel of values, of the same size as its picture.

    Parameters
    ----------
    path
        Picture of one channel (grey or palette, whose numbers are kept), or of several, of which
        the largest counts.
    size
        Width and height of the picture it belongs to.

    Raises
    ------
    DataError
        The file cannot be read, or has another size.
    """
    try:
        with Image.open(path) as opened:
            values = np.asarray(opened)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a mask: {error}") from error
    if values.ndim == 3:
        values = values[..., :3].max(axis=2)
    height, width = values.shape
    if (width, height) != size:
        raise DataError(
            f"{path} is {width}×{height} pixels, but its picture is {size[0]}×{size[1]}; "
            "a mask must have the size of its picture"
        )
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def squash_mask(mask: Image.Image, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """A whole mask squashed to `size` (height, width), as `heatmaps.squash` does with pictures."""
    return np.asarray(mask.resize((size[1], size[0]), Image.Resampling.NEAREST))


def min_max(heat: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """A map scaled to 0 … 1; a constant map becomes 0."""
    low, high = float(heat.min()), float(heat.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise DataError("a heat map holds NaN or infinite values")
    return (heat - low) / (high - low) if high > low else np.zeros_like(heat)


@dataclass
class Counts:
    """Pixel counts over a set of images under one protocol, and the mean average precision.

    Parameters
    ----------
    protocol
        `C` or `V` (see `PROTOCOLS`).

    Notes
    -----
    As in Chefer et al., *Transformer Interpretability Beyond Attention Visualization*, CVPR 2021:
    each map is scaled to 0 … 1 and thresholded at its own mean; pixels are pooled over the set for
    accuracy and IoU; average precision is taken per image over the pixels of both channels
    (background with the complement of the map) and averaged over images. V counts the object
    alone (P2).
    """

    protocol: str
    true_positive: int = 0
    false_positive: int = 0
    false_negative: int = 0
    true_negative: int = 0
    precisions: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise DataError(
                f"unknown segmentation protocol {self.protocol!r}; "
                f"{close_matches(self.protocol, PROTOCOLS)}"
            )

    def add(self, heat: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]) -> None:
        """Count one image.

        Parameters
        ----------
        heat
            Heat map at the size of the mask: higher where the object is.
        mask
            Where the object is.

        Raises
        ------
        DataError
            The sizes differ, or the mask is empty.
        """
        if heat.shape != mask.shape:
            raise DataError(
                f"the heat map is {heat.shape[0]}×{heat.shape[1]} pixels and its mask "
                f"{mask.shape[0]}×{mask.shape[1]}; both must have the size of the model's input"
            )
        if not mask.any():
            raise DataError("a mask without any object pixel cannot be segmented")
        scaled = min_max(heat)
        found = scaled > scaled.mean()
        self.true_positive += int((found & mask).sum())
        self.false_positive += int((found & ~mask).sum())
        self.false_negative += int((~found & mask).sum())
        self.true_negative += int((~found & ~mask).sum())
        self.precisions.append(self._average_precision(scaled, mask))

    def result(self) -> dict[str, float | int | None]:
        """Columns `pixel_accuracy` … `n` of table `segmentation`.

        Raises
        ------
        DataError
            No image was counted.
        """
        if not self.precisions:
            raise DataError("no image with a mask was segmented; name the column of masks")
        right = self.true_positive + self.true_negative
        wrong = self.false_positive + self.false_negative
        iou_object = self.true_positive / (self.true_positive + wrong)
        iou_background = self.true_negative / max(1, self.true_negative + wrong)
        both = self.protocol == "C"
        return {
            "pixel_accuracy": right / (right + wrong),
            "iou_object": iou_object,
            "iou_background": iou_background if both else None,
            "miou": (iou_object + iou_background) / 2 if both else None,
            "map": float(np.mean(self.precisions)),
            "n": len(self.precisions),
        }

    def _average_precision(
        self, scaled: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]
    ) -> float:
        score, truth = scaled.ravel(), mask.ravel()
        if self.protocol == "C":
            score, truth = np.concatenate([1 - score, score]), np.concatenate([~truth, truth])
        return float(average_precision_score(truth, score))


@dataclass(frozen=True)
class Pair:
    """A picture, its mask if it has one, and the hash that the picture's file must have."""

    picture: Path
    mask: Path | None
    sha256: str | None = None


def load_pair(
    model: HasPreprocessing, pair: Pair, protocol: str, span: Span
) -> tuple[Float[Tensor, "3 h w"], Bool[np.ndarray, "h w"]]:
    """Picture and mask at the model's input size, brought there the same way.

    The mask of a picture without one shows nothing anywhere.

    Parameters
    ----------
    model
        Whose preprocessing and input size are used.
    pair
        The files.
    protocol
        `C`: both squashed; `V`: both through the model's own resize and crop.
    span
        Black and white of the model's preprocessing, from `heatmaps.pixel_range`.
    """
    picture = read_image(pair.picture, pair.sha256)
    nothing = Image.new("L", picture.size)
    mask = nothing if pair.mask is None else read_mask(pair.mask, picture.size)
    if protocol == "C":
        height, width = model.input_size
        image = squash(picture, (height, width), span)
        return image, object_mask(squash_mask(mask, (height, width)))
    return model.preprocess(picture), object_mask(model.preprocess_mask(mask))


def segment(
    model: HasPreprocessing,
    pairs: Sequence[Pair],
    methods: Mapping[str, Mapper],
    protocols: Sequence[str],
    *,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Segmentation of a set of images by several methods, on the same pixels.

    Parameters
    ----------
    model
        Whose preprocessing and input size are used.
    pairs
        Pictures with their masks.
    methods
        Name to a function of a batch of images and their positions in `pairs`, giving one map per
        image on any grid, higher where the object should be.
    protocols
        Keys of `PROTOCOLS`.
    batch_size
        Images per call of a method; the result does not depend on it.

    Returns
    -------
    DataFrame
        Rows of table `segmentation`, without model and data set. An image whose crop holds nothing
        of the object is left out of that protocol by every method, which is logged and seen in `n`.
    """
    counts = {(name, method): Counts(name) for name in protocols for method in methods}
    span = pixel_range(model.preprocess, model.input_size)
    for protocol in protocols:
        skipped = 0
        for start in range(0, len(pairs), batch_size):
            positions = np.arange(start, min(start + batch_size, len(pairs)))
            loaded = [load_pair(model, pairs[int(i)], protocol, span) for i in positions]
            kept = [i for i, (_, mask) in enumerate(loaded) if mask.any()]
            skipped += len(loaded) - len(kept)
            if not kept:
                continue
            images = torch.stack([loaded[i][0] for i in kept])
            for method, mapper in methods.items():
                heats = upsample(mapper(images, positions[kept]), model.input_size)
                for heat, i in zip(heats, kept, strict=True):
                    counts[protocol, method].add(heat, loaded[i][1])
        if skipped:
            logger.warning("%s: %d images show nothing of their object", protocol, skipped)
    rows = [
        {"protocol": protocol, "method": method, **count.result()}
        for (protocol, method), count in counts.items()
    ]
    return pd.DataFrame(rows)


def methods(
    model: object, classifier: LinearClassifier, labels: Sequence[str] | None = None
) -> dict[str, Mapper]:
    """The decomposition's maps and the baselines, for `segment`.

    Parameters
    ----------
    model
        A `VisionModel`.
    classifier
        Linear classifier on the representation; a map is of one of its classes.
    labels
        Class of each image, in the order of the pairs; None for the class that is predicted.

    Returns
    -------
    dict
        `decomposition`: the positive part of all components' token map along the class direction
        (what speaks for the class; what speaks against it is no object); `gradient`: gradient
        times input along the same direction, absolute; `centre`: a Gaussian in the middle of the
        picture; `uniform`: nothing found anywhere.
    """
    grids: dict[tuple[int, ...], tuple[int, int]] = {}

    def directions(images: Tensor, at: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b d"]:
        wanted = None if labels is None else [labels[int(i)] for i in at]
        found = representations(model, images) if labels is None else np.empty((0, 0))
        return image_directions(classifier, found, wanted)[0]

    def decomposition(images: Tensor, at: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b g h"]:
        return np.clip(token_maps(model, images, directions(images, at)), 0.0, None)

    def gradient(images: Tensor, at: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b g h"]:
        shape = tuple(images.shape[-2:])
        if shape not in grids:
            grids[shape] = patch_grid(model, images)
        return gradient_maps(model, images, directions(images, at), grids[shape])

    def centre(images: Tensor, at: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b h w"]:
        height, width = images.shape[-2:]
        return np.repeat(centre_prior(height, width)[None], len(images), axis=0)

    def uniform(images: Tensor, at: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b h w"]:
        return np.zeros((len(images), 1, 1), dtype=np.float32)

    return {
        "decomposition": decomposition,
        "gradient": gradient,
        "centre": centre,
        "uniform": uniform,
    }


def centre_prior(height: int, width: int, spread: float = 0.25) -> Float[np.ndarray, "h w"]:
    """A Gaussian around the middle of the picture: what a photographer's habit alone gives.

    Parameters
    ----------
    height, width
        Size in pixels.
    spread
        Standard deviation as a share of each side.
    """
    rows = (np.arange(height) + 0.5) / height - 0.5
    columns = (np.arange(width) + 0.5) / width - 0.5
    squared = rows[:, None] ** 2 + columns[None, :] ** 2
    return np.exp(-squared / (2 * spread**2))
