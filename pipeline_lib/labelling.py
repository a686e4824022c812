"""Text labels by any method, alike for texts and random vectors, components and parts of a model.

Whatever stands beside a label (random vectors, longer lists, the parts above the components) is
made by the method of the label: a `Labeller` is a method with a pool. The methods themselves are
in `textspan` and `nonnegative`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from jaxtyping import Float
from torch import Tensor

from pipeline_lib.coordinates import Encoded
from pipeline_lib.errors import DataError
from pipeline_lib.hierarchy import Part, part_coordinates, part_moments
from pipeline_lib.nonnegative import (
    label_nonnegative,
    nonnegative_parts,
    nonnegative_shares,
    sampled,
)
from pipeline_lib.reconstruction import Kept, along
from pipeline_lib.scores import Moments
from pipeline_lib.textspan import (
    PUBLISHED_RANK,
    Labels,
    Method,
    apart,
    explained,
    label_components,
)

#: Method of labelling to its name in a sentence.
METHOD_NAMES: Mapping[str, str] = {
    "textspan": "TextSpan",
    "published": "TextSpan as published",
    "omp": "orthogonal matching pursuit",
    "nonnegative": "non-negative matching pursuit",
}


@dataclass(frozen=True)
class Sample:
    """Images as labels are made of them.

    Attributes
    ----------
    found
        Moments of the contributions.
    encoded
        Coordinates of the same images, or of some of them; None where no image is kept.
    """

    found: Moments
    encoded: Encoded | None = None

    def images(self) -> Encoded:
        """The coordinates.

        Raises
        ------
        DataError
            No image is kept.
        """
        if self.encoded is None:
            raise DataError(
                "images are to be read one by one, and of these only moments are kept; use another "
                "method than nonnegative, and `streamed` for the moments of parts"
            )
        return self.encoded

    def parts(self, parts: Sequence[Part]) -> Sample:
        """The same images with parts of the model in the place of components."""
        encoded = self.images()
        summed = part_moments(encoded, self.found, parts)
        rows = encoded.rows(sampled(len(encoded)))
        return Sample(summed, part_coordinates(rows, self.found, summed.bases, parts))


@dataclass(frozen=True)
class Labeller:
    """A method of labelling with a pool of texts, or of vectors that stand for texts.

    Attributes
    ----------
    method
        One of `textspan.METHODS`, or `nonnegative`.
    pool
        Unit vectors.
    """

    method: str
    pool: Float[Tensor, "k e"]

    def labels(self, seen: Sample, *, count: int, min_gain: float = 0.005) -> list[Labels]:
        """Labels of every component, or part.

        Parameters
        ----------
        seen
            Images to label on.
        count, min_gain
            As of `label_components`; with `min_gain` 0 a list goes on as long as there are texts.

        Raises
        ------
        DataError
            As `label_components`; or `nonnegative` is asked for and no image is kept.
        """
        if self.method != "nonnegative":
            method = cast(Method, self.method)
            return label_components(
                seen.found, self.pool, count=count, method=method, min_gain=min_gain
            )
        encoded = seen.images()
        return label_nonnegative(encoded, seen.found, self.pool, count=count, min_gain=min_gain)

    def most(self, seen: Sample) -> int:
        """Most texts a component can have: fewer than images, no more than the method and pool."""
        rank = min(PUBLISHED_RANK, self.pool.shape[1])
        limits = [len(self.pool), seen.found.n - 1, *([rank] if self.method == "published" else [])]
        return min(limits)

    def shares(self, labels: Sequence[Labels], fresh: Sample) -> list[list[float]]:
        """Cumulative share of other images' variance that the texts of every label explain.

        Parameters
        ----------
        labels
            What `labels` gave.
        fresh
            Images that they were not chosen on; of the same components or parts.
        """
        if self.method == "nonnegative":
            return nonnegative_shares(fresh.images(), fresh.found, self.pool, labels)
        return [
            explained(fresh.found, place, label.directions).tolist() if label.texts else []
            for place, label in enumerate(labels)
        ]

    def kept(self, labels: Sequence[Labels]) -> Kept:
        """What the first texts of every label keep of it, for `reconstruction_table`."""
        if self.method != "nonnegative":
            return along([label.directions for label in labels])
        pool = apart(self.pool)
        texts = [pool[list(label.texts)] for label in labels]

        def parts(
            component: int, images: Float[Tensor, "n e"], counts: Sequence[int]
        ) -> list[Float[Tensor, "n e"]]:
            return nonnegative_parts(images, texts[component], counts)

        return parts
