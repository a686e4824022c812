"""Text labels by any method, alike for texts and random vectors, components and parts of a model.

Whatever stands beside a label (random vectors, longer lists, the parts above the components) is
made by the method of the label: a `Labeller` is a method with a pool. The methods themselves are
in `textspan` and `nonnegative`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from jaxtyping import Float
from torch import Tensor

from pipeline_lib.coordinates import Encoded
from pipeline_lib.errors import DataError
from pipeline_lib.hierarchy import Part, part_coordinates, part_moments
from pipeline_lib.nonnegative import label_nonnegative, sampled
from pipeline_lib.scores import Moments
from pipeline_lib.textspan import Labels, Method, label_components


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

    def parts(self, parts: Sequence[Part]) -> Sample:
        """The same images with parts of the model in the place of components.

        Raises
        ------
        DataError
            No image is kept: then `streamed` has the moments of parts.
        """
        if self.encoded is None:
            raise DataError("parts are summed over images, and none is kept")
        summed = part_moments(self.encoded, self.found, parts)
        rows = self.encoded.rows(sampled(len(self.encoded)))
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
        if seen.encoded is None:
            raise DataError("'nonnegative' reads every image, and none is kept; use another method")
        return label_nonnegative(
            seen.encoded, seen.found, self.pool, count=count, min_gain=min_gain
        )
