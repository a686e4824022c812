"""A dump as a labelled array (xarray) that reads what is asked for, when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_lib.dumps import Dump, open_dump

if TYPE_CHECKING:
    import xarray as xr

#: Columns of the manifest and of the table of components that become coordinates.
IMAGE_LABELS = ("split", "label", "group")
COMPONENT_LABELS = ("kind", "layer", "block", "head")


def open_contributions(store: str | Path, manifest: str | Path | None = None) -> xr.Dataset:
    """A dump as an `xarray.Dataset`; numbers are read from disk when they are used.

    Parameters
    ----------
    store
        `results/{run}/contributions/{model}/{dataset}.zarr`.
    manifest
        Its manifest; by default `results/{run}/manifest/{dataset}/images.parquet`.

    Returns
    -------
    xarray.Dataset
        `contributions` (image, component, direction), `representation` (image, direction), `error`
        and `rounding` (image), `logits` (image, class) where the model has a classifier; active
        images only, with their labels and the components' names as coordinates.

    Raises
    ------
    ArtifactError
        If something is missing or damaged.

    Examples
    --------
    >>> dump = open_contributions("results/demo/contributions/deit/world.zarr")  # doctest: +SKIP
    >>> heads = dump.contributions.sel(component=dump.kind == "head")            # doctest: +SKIP
    >>> heads.groupby("label").mean("image").norm                               # doctest: +SKIP
    """
    import xarray as xr
    from xarray.core import indexing

    store = Path(store)
    if manifest is None:
        manifest = store.parents[2] / "manifest" / store.stem / "images.parquet"
    dump = open_dump(store, manifest)
    variables: dict[str, Any] = {}
    for name, (axes, shape) in _variables(dump).items():
        lazy = indexing.LazilyIndexedArray(_lazy_array(dump, name, shape))
        variables[name] = xr.Variable(axes, lazy)
    coordinates: dict[str, Any] = {"image": dump.manifest["image_id"].to_numpy(dtype=object)}
    coordinates["component"] = dump.components["id"].to_numpy(dtype=object)
    for name in IMAGE_LABELS:
        if dump.manifest[name].notna().any():
            coordinates[name] = ("image", dump.manifest[name].to_numpy(dtype=object))
    for name in COMPONENT_LABELS:
        coordinates[name] = ("component", dump.components[name].to_numpy())
    return xr.Dataset(variables, coordinates, dump.attributes)


def _variables(dump: Dump) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Axes and lengths of the variables."""
    n, c, d = dump.n, len(dump.components), dump.width
    found: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
        "contributions": (("image", "component", "direction"), (n, c, d)),
        "representation": (("image", "direction"), (n, d)),
        "error": (("image",), (n,)),
        "rounding": (("image",), (n,)),
    }
    if dump.has_logits:
        found["logits"] = (("image", "class"), (n, dump.logits([0]).shape[1]))
    return found


def _lazy_array(dump: Dump, name: str, shape: tuple[int, ...]) -> Any:
    """An array of xarray's backends that asks the dump for the images and components it needs."""
    from xarray.backends import BackendArray
    from xarray.core import indexing

    class Lazy(BackendArray):
        dtype = np.dtype(np.float32)

        def __init__(self) -> None:
            self.shape = shape

        def __getitem__(self, key: Any) -> Any:
            return indexing.explicit_indexing_adapter(
                key, self.shape, indexing.IndexingSupport.OUTER, self._read
            )

        def _read(self, key: tuple[Any, ...]) -> np.ndarray:
            index = np.arange(self.shape[0])[key[0]]
            images = np.atleast_1d(index)
            rest = key[1:]
            if name == "contributions":
                components = np.arange(self.shape[1])[key[1]]
                chosen = np.atleast_1d(components)
                values = dump.contributions(images, [int(c) for c in chosen])[:, :, key[2]]
                values = values if np.ndim(components) else values[:, 0]
            else:
                values = getattr(dump, name)(images)[(slice(None), *rest)]
            return values if np.ndim(index) else values[0]

    return Lazy()
