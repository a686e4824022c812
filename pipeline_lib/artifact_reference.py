"""The page of all artifacts, made from their declarations.

`python -m pipeline_lib.artifact_reference` writes it; a test keeps it current.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline_lib.artifacts import MOMENTS, STAGE_VERSIONS, STORES, TABLES, Array, Column, Table
from pipeline_lib.provenance import FIELDS

PAGE = Path(__file__).parents[1] / "docs" / "artifacts.md"

_HEAD = """# Artifacts

Made by `python -m pipeline_lib.artifact_reference` from `pipeline_lib/artifacts.py`, the module
that also writes the artifacts and checks them when they are read. Where they lie stands in
`design.md`.

Axis letters: `n` image (row of the manifest), `c` component, `d` width of the model, `r`
coordinates of all components side by side, `b` vectors of all bases, `e` width of the CLIP space,
`k` class.
"""

_STORES = """## Stores

Zarr v3 folders. One shard (one file) of an array holds the images of one job; it is cut into
chunks that are read alone. Every chunk and the index of every shard carry a CRC-32C, so a file that
was cut off or in which a bit flipped is found when it is read; the message names the shard and the
command that repairs it. What was never written reads as missing (NaN). `bfloat16` is kept as the
upper 16 bits of float32.
"""

_MOMENTS = """## Moments

Safetensors files, at level `moments` alone: of each shard and of all of them. Every array is there
for the images of split `test` (`test.n`, …) and for all others (`fit.n`, …). Where maps are fitted
from them, images held out of the fit are apart (`heldout.n`, …), and of `fit` and `heldout` the `e`
targets of an image are counted in behind its `r` coordinates: the axes are then `r + e` long.
"""

_MANIFESTS = """## What made an artifact

Every table carries these facts in the metadata of its Parquet file
(`pipeline_lib.artifacts.read_provenance`, under `job`), every dump in `{dataset}.json` beside it.
"""


def artifact_page() -> str:
    """The page as Markdown."""
    parts = [_HEAD, "\n".join(_manifest_lines()), _STORES]
    parts += ["\n".join(_store_lines(kind, arrays)) for kind, arrays in STORES.items()]
    parts += [_MOMENTS, "\n".join(_array_lines(MOMENTS))]
    parts += ["## Tables\n\nParquet files.\n"]
    parts += ["\n".join(_table_lines(table)) for table in TABLES.values()]
    parts += ["\n".join(_version_lines())]
    return "\n".join(parts).rstrip() + "\n"


def _manifest_lines() -> Iterator[str]:
    yield _MANIFESTS
    yield "| key | meaning |\n|---|---|"
    for name, meaning in FIELDS.items():
        yield f"| `{name}` | {meaning} |"
    yield ""


def _store_lines(kind: str, arrays: tuple[Array, ...]) -> Iterator[str]:
    yield f"### {kind}\n"
    yield from _array_lines(arrays)


def _array_lines(arrays: tuple[Array, ...]) -> Iterator[str]:
    yield "| array | axes | dtype | meaning |\n|---|---|---|---|"
    for array in arrays:
        dtype = "as configured" if array.dtype == "config" else array.dtype
        meaning = array.meaning + ("; not in every store" if array.optional else "")
        yield f"| `{array.name}` | {', '.join(array.axes)} | {dtype} | {meaning} |"
    yield ""


def _table_lines(table: Table) -> Iterator[str]:
    more = " Further columns may follow." if table.extra else ""
    yield f"### {table.name}\n\n{table.meaning}{more}\n"
    yield "| column | type | meaning |\n|---|---|---|"
    for column in table.columns:
        yield f"| `{column.name}` | {_type_of(column)} | {column.meaning} |"
    yield ""


def _type_of(column: Column) -> str:
    return f"{column.type} or missing" if column.nullable else column.type


def _version_lines() -> Iterator[str]:
    yield "## Versions of stages\n"
    yield "Raised where a stage's results change; then its jobs and what follows run again.\n"
    yield "| stage | version |\n|---|---|"
    for stage, version in STAGE_VERSIONS.items():
        yield f"| {stage} | {version} |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(artifact_page(), "utf-8")
