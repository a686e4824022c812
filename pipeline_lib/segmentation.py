"""Zero-shot segmentation: heat maps thresholded and compared with masks, by named protocols.

Heat maps come from `heatmaps`. Everything is counted image by image and pooled at the end, so the
result does not depend on how the images are batched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from sklearn.metrics import average_precision_score

from pipeline_lib.errors import DataError, close_matches

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
