"""What is counted of a heat map and a mask: pixel accuracy, IoU, average precision, mass.

Everything is counted image by image and pooled at the end, so the result does not depend on how the
images are batched.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from pipeline_lib.errors import DataError, close_matches
from pipeline_lib.heatmaps import mass_in_mask

#: Protocol name to how image and mask are brought to the model's input size, and what is counted.
PROTOCOLS: dict[str, str] = {
    "C": "Chefer et al.: image and mask squashed to the input size, both channels counted",
    "V": "Balasubramanian et al.: the model's own crop for image and mask, the object alone",
}


#: Resamplings of the images for an interval.
BOOTSTRAP = 1000


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
    singles: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise DataError(
                f"unknown segmentation protocol {self.protocol!r}; "
                f"{close_matches(self.protocol, PROTOCOLS)}"
            )

    def add(
        self, heat: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], name: str = ""
    ) -> None:
        """Count one image.

        Parameters
        ----------
        heat
            Heat map at the size of the mask: higher where the object is.
        mask
            Where the object is.
        name
            Of the image, for `images`.

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
        right, wrong = int((found & mask).sum()), int((found & ~mask).sum())
        missed, left = int((~found & mask).sum()), int((~found & ~mask).sum())
        self.true_positive += right
        self.false_positive += wrong
        self.false_negative += missed
        self.true_negative += left
        self.precisions.append(self._average_precision(scaled, mask))
        mass, area = mass_in_mask(heat, mask)
        self.singles.append(
            {
                "image_id": name,
                "iou_object": right / (right + wrong + missed),
                "iou_background": left / max(1, left + wrong + missed),
                "map": self.precisions[-1],
                "mass": mass,
                "area": area,
                "pixels": [right, wrong, missed, left],
            }
        )

    def images(self) -> list[dict[str, object]]:
        """Columns `image_id` … `area` of table `segmentation_images`, image by image."""
        return [{k: v for k, v in one.items() if k != "pixels"} for one in self.singles]

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
            **self._interval(),
        }

    def _interval(self) -> dict[str, float]:
        """95 % interval of the mean IoU (V: of the object's) by bootstrap over images."""
        pixels = np.array([one["pixels"] for one in self.singles], dtype=np.float64)
        draws = np.random.default_rng(0).integers(0, len(pixels), (BOOTSTRAP, len(pixels)))
        right, wrong, missed, left = pixels[draws].sum(axis=1).T
        value = right / (right + wrong + missed)
        if self.protocol == "C":
            value = (value + left / np.maximum(1, left + wrong + missed)) / 2
        low, high = np.percentile(value, [2.5, 97.5])
        return {"low": float(low), "high": float(high)}

    def _average_precision(
        self, scaled: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]
    ) -> float:
        score, truth = scaled.ravel(), mask.ravel()
        if self.protocol == "C":
            score, truth = np.concatenate([1 - score, score]), np.concatenate([~truth, truth])
        return average_precision(score, truth)


def average_precision(score: Float[np.ndarray, " p"], truth: Bool[np.ndarray, " p"]) -> float:
    """Mean precision over the true pixels, each taken at the threshold of its own score.

    As scikit-learn's `average_precision_score`, several times faster on one map of pixels.
    """
    order = np.argsort(-score)
    hits = np.cumsum(truth[order])
    last = np.flatnonzero(np.diff(score[order], append=-np.inf))  # the end of each run of ties
    gained = np.diff(hits[last], prepend=0)
    return float((gained * hits[last] / (last + 1)).sum() / max(1, hits[-1]))
