"""Pictures of the page: each asked for by key, encoded once, all within a budget of bytes."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from PIL import Image

from pipeline_lib.artifacts import TABLES
from pipeline_lib.errors import ArtifactError
from pipeline_lib.images import read_image

logger = logging.getLogger(__name__)

#: Longest side in pixels of a picture in a row of many, and of one that is looked at closely.
SMALL, LARGE = 128, 288
#: Encoded bytes of all pictures of a page; base64 adds a third.
BUDGET = 7_500_000
_DECLARED = {column.name for column in TABLES["manifest"].columns} | {"dataset"}
#: Factors tried in turn on the sizes until the pictures fit.
_SCALES = (1.0, 0.75, 0.5, 0.375, 0.25)


class PictureBook:
    """Collects the pictures that sections ask for and encodes them at the end.

    Parameters
    ----------
    root
        Folder of the run's results.
    folders
        Data set to the folder that the paths of its manifest are relative to.
    manifest
        Table `manifest` of all data sets, with column `dataset`.
    """

    def __init__(self, root: Path, folders: Mapping[str, Path], manifest: pd.DataFrame) -> None:
        self._root = root
        self._folders = folders
        self._rows = manifest.drop_duplicates(["dataset", "image_id"]).set_index(
            ["dataset", "image_id"]
        )
        self._wanted: dict[str, tuple[Path, int]] = {}
        self._notes: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def image(self, dataset: str, image_id: str, large: bool = False) -> str:
        """Key of an image of a data set.

        Raises
        ------
        ArtifactError
            The manifest does not have it.
        """
        try:
            row = self._rows.loc[(dataset, image_id)]
        except KeyError:
            raise ArtifactError(
                f"image {image_id!r} is not in the manifest of {dataset!r}; the tables come from "
                "different runs: run snakemake again"
            ) from None
        words = [row.get("caption")] if isinstance(row.get("caption"), str) else _words(row)
        note = " · ".join(words)
        key = f"{dataset}/{image_id}" + ("@large" if large else "")
        path = str(row["path"])
        self._ask(key, self._folders[dataset] / path, large, note or image_id)
        self._names[key] = f"images/{dataset}/{path}"
        return key

    def file(self, path: str, note: str) -> str:
        """Key of a picture among the run's results, shown large; `path` is relative to them."""
        self._ask(path, self._root / path, True, note)
        self._names[path] = path.removeprefix("applications/")
        return path

    def _ask(self, key: str, path: Path, large: bool, note: str) -> None:
        self._wanted[key] = (path, LARGE if large else SMALL)
        self._notes[key] = note

    def name(self, key: str) -> str:
        """Name of the picture among those at full size."""
        return self._names[key]

    def files(self) -> dict[str, Path]:
        """Name of every picture at full size to its file."""
        return {self._names[key]: path for key, (path, _) in self._wanted.items()}

    def read(self, key: str) -> Image.Image:
        """The picture of a key at full size."""
        return read_image(self._wanted[key][0])

    def note(self, key: str) -> str:
        """What the picture shows, in words."""
        return self._notes[key]

    def encode(self, budget: int = BUDGET) -> dict[str, tuple[str, str]]:
        """Key to data URI and description, at the largest size at which all fit the budget.

        Raises
        ------
        DataError
            A picture is missing or cannot be read.
        ArtifactError
            The pictures do not fit at the smallest size.
        """
        for scale in _SCALES:
            encoded = {
                key: _webp(path, round(side * scale)) for key, (path, side) in self._wanted.items()
            }
            total = sum(map(len, encoded.values()))
            if total <= budget:
                break
            logger.info("%d pictures take %d bytes at scale %g", len(encoded), total, scale)
        else:
            raise ArtifactError(
                f"{len(self._wanted)} pictures do not fit into {budget} bytes even at a quarter of "
                "their size; lower report.examples or applications.heatmaps.images"
            )
        return {
            key: ("data:image/webp;base64," + base64.b64encode(data).decode(), self._notes[key])
            for key, data in encoded.items()
        }


def _words(row: pd.Series) -> list[str]:
    """Label of an image and its factors, as far as they are texts."""
    values = [row.get("label"), *(row[name] for name in row.index if name not in _DECLARED)]
    return list(dict.fromkeys(value for value in values if isinstance(value, str)))


def _webp(path: Path, side: int) -> bytes:
    picture = read_image(path)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=82, method=4)
    return buffer.getvalue()
