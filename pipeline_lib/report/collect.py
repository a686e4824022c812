"""Read everything a run has made into one object, which is all that the page is made from.

Tables are read by name, so that figures and sections never see a path. What a configuration
switches off is absent with its reason; what it asks for and is not there is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_lib.artifacts import TABLES, read_provenance, read_table
from pipeline_lib.config import RunConfig, image_root, moment_fits, space_of
from pipeline_lib.errors import ArtifactError

#: Stages in the order of the pipeline, with the names used in config keys, folders and headings.
STAGES = ("manifest", "features", "contributions", "maps", "scores", "applications")
_STAGE_OF_RULE = {
    "image_features": "features",
    "image_features_store": "features",
    "text_features": "features",
    "texts": "features",
    "bases": "contributions",
    "contributions_store": "contributions",
    "moments": "contributions",
    "gather_moments": "contributions",
    "known_maps": "maps",
    "maps_of_moments": "maps",
    "scores_of_moments": "scores",
    "labels": "scores",
    "exactness": "report",
    "top_images": "report",
    "token_groups": "scores",
    "similarity": "comparison",
}
APPLICATIONS = ("ablation", "retrieval", "heatmaps", "segmentation", "spurious", "codes")
#: Further tables of an application that the report reads, with the ends of their files' names.
_BESIDE = {
    "retrieval": {"retrieval_examples": "examples", "retrieval_choices": "choices"},
    "segmentation": {"segmentation_examples": "examples"},
    "spurious": {"spurious_summary": "summary"},
    "codes": {"code_summary": "summary", "code_carriers": "carriers"},
}


@dataclass(frozen=True)
class Artifact:
    """A table that the report reads: its declared name and its place under the run's folder."""

    table: str
    path: str
    dataset: str | None = None
    space: str | None = None


@dataclass(frozen=True)
class Run:
    """A run as the report sees it.

    Attributes
    ----------
    config
        The whole configuration as plain values.
    root
        Folder of the run's results.
    folders
        Data set to the folder that the paths of its manifest are relative to.
    tables
        Declared table name to the rows of all its files; an absent optional table has no rows.
    files
        Table name to the files that were read, relative to `root`.
    not_run
        Stage or application that did not run, with the reason.
    provenance
        Facts on the making of each artifact that was read: one row per file.
    timings
        Columns stage, job, seconds, memory (MB), one row per job that left a benchmark.
    made
        Facts on this run as a whole, for example the commit and the package versions.
    """

    config: Mapping[str, Any]
    root: Path
    folders: Mapping[str, Path]
    tables: Mapping[str, pd.DataFrame]
    files: Mapping[str, list[str]]
    not_run: Mapping[str, str]
    provenance: pd.DataFrame
    timings: pd.DataFrame
    made: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> pd.DataFrame:
        return self.tables[name]

    @property
    def models(self) -> list[str]:
        """Models of the run, in the order of the configuration."""
        return list(self.config["models"])

    def models_in(self, table: pd.DataFrame) -> list[str]:
        """Models of the run that a table has rows of, in the order of the configuration."""
        found = set(table["model"])
        return [name for name in self.models if name in found]

    @property
    def datasets(self) -> list[str]:
        """Data sets of the run, in the order of the configuration."""
        return list(self.config["datasets"])


def expected_artifacts(config: RunConfig) -> list[Artifact]:
    """Tables that a run of this configuration leaves for the report."""
    return [*_data_artifacts(config), *_model_artifacts(config), *_application_artifacts(config)]


def _data_artifacts(config: RunConfig) -> Iterator[Artifact]:
    for name in config.datasets:
        yield Artifact("manifest", f"manifest/{name}/images.parquet", dataset=name)
        yield Artifact("rejected", f"manifest/{name}/rejected.parquet", dataset=name)
    for space in text_spaces(config):
        yield Artifact("text_features", f"features/texts/{space}.parquet", space=space)


def _model_artifacts(config: RunConfig) -> Iterator[Artifact]:
    whole = config.contributions.is_whole
    for model in config.models:
        for dataset in config.contributions.datasets:
            path = f"contributions/{model}/{dataset}.components.parquet"
            yield Artifact("components", path, dataset=dataset)
            if config.contributions.level != "moments":
                path = f"report/exactness/{model}/{dataset}.parquet"
                yield Artifact("exactness", path)
        if (config.maps and whole) or model in moment_fits(config):
            yield Artifact("map_metrics", f"maps/{model}.metrics.parquet")
        if config.scores:
            dataset = config.scores.dataset
            yield Artifact("scores", f"scores/{model}/{dataset}.scores.parquet")
            yield Artifact("labels", f"scores/{model}/{dataset}.labels.parquet")
            for kind in ("roles", "hierarchy", *(["reconstruction"] if whole else [])):
                yield Artifact(kind, f"scores/{model}/{dataset}.{kind}.parquet")
            if config.scores.token_heads:
                yield Artifact("hierarchy", f"scores/{model}/{dataset}.tokens.parquet")
            if whole:
                path = f"report/top_images/{model}/{dataset}"
                yield Artifact("top_images", f"{path}.parquet")
                yield Artifact("token_maps", f"{path}.maps.parquet")
    if config.scores:
        yield Artifact("comparison", f"comparison/{config.scores.dataset}.parquet")
    if config.scores and whole:
        dataset = config.scores.dataset
        yield Artifact("validation", f"validation/{dataset}.parquet")
        yield Artifact("confirmed", f"validation/{dataset}.confirmed.parquet")
        for kind in ("similarity", "counterparts"):
            yield Artifact(kind, f"comparison/{dataset}.{kind}.parquet")


def _application_artifacts(config: RunConfig) -> Iterator[Artifact]:
    for name in switched_on(config):
        dataset = getattr(config.applications, name).dataset
        for model in config.models:
            base = f"applications/{name}/{model}/{dataset}"
            yield Artifact(name, f"{base}.parquet")
            for table, end in _BESIDE.get(name, {}).items():
                yield Artifact(table, f"{base}.{end}.parquet")


def switched_on(config: RunConfig) -> list[str]:
    """Applications that the configuration asks for, in their order."""
    return [name for name in APPLICATIONS if getattr(config.applications, name)]


def text_spaces(config: RunConfig) -> list[str]:
    """CLIP spaces in which the run embeds texts: that of each CLIP model, and `reference`."""
    if not config.scores and not config.maps and not switched_on(config):
        return []
    spaces = [space_of(config, model) for model in config.models]
    return [space for space in dict.fromkeys(spaces) if space is not None]


def expected_figures(config: RunConfig) -> dict[str, str]:
    """Static figures that a report of this configuration surely has, each with its stage."""
    figures, whole = {}, config.contributions.is_whole
    if config.contributions.level != "moments":
        figures["exactness"] = "contributions"
    if config.concepts and text_spaces(config):
        figures["text-similarity"] = "features"
    if config.maps and whole:
        figures["map-quality"] = "maps"
    if config.scores:
        figures |= dict.fromkeys(("depth", "roles", "explained"), "scores")
        if len(config.models) > 1:
            figures["comparison"] = "scores"
    for name in switched_on(config):
        if name != "heatmaps":  # pictures; its figure needs masks, which not every data set has
            figures[name] = "applications"
    return figures


def collect(
    config: RunConfig, made: Mapping[str, Any] | None = None, root: str | Path | None = None
) -> Run:
    """Everything the report needs of a run.

    Parameters
    ----------
    config
        The configuration of the run.
    made
        Facts on the run as a whole, shown under provenance.
    root
        Folder of the run's results, where it is not `config.folder`.

    Raises
    ------
    ArtifactError
        Tables that the configuration asks for are missing (all are listed) or damaged.
    """
    root = config.folder if root is None else Path(root)
    artifacts = expected_artifacts(config)
    missing = [a.path for a in artifacts if not (root / a.path).is_file()]
    if missing:
        listing = "\n  - ".join(missing)
        raise ArtifactError(
            f"the report needs tables that are not in {root}:\n  - {listing}\n"
            "Run snakemake to make them, or switch the stage off in the configuration."
        )
    found = [artifact for artifact in artifacts if (root / artifact.path).is_file()]
    names = dict.fromkeys(artifact.table for artifact in found)
    return Run(
        config=config.model_dump(mode="json"),
        root=root,
        folders={name: image_root(config, name) for name in config.datasets},
        tables=_tables(root, found),
        files={name: [a.path for a in found if a.table == name] for name in names},
        not_run=_not_run(config),
        provenance=_provenance(root, found),
        timings=read_timings(root / "benchmarks"),
        made=dict(made or {}),
    )


def _tables(root: Path, found: list[Artifact]) -> dict[str, pd.DataFrame]:
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    for artifact in found:
        frame = read_table(artifact.table, root / artifact.path)
        for column in ("dataset", "space"):
            value = getattr(artifact, column)
            if value is not None and column not in frame.columns:
                frame = frame.assign(**{column: value})
        if artifact.table == "components":
            frame = frame.assign(model=artifact.path.split("/")[1])
        parts[artifact.table].append(frame)
    return {name: _stacked(name, frames) for name, frames in parts.items()}


def _stacked(name: str, frames: list[pd.DataFrame]) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)]
    if filled:
        return pd.concat(filled, ignore_index=True)
    columns = [column.name for column in TABLES[name].columns]
    return pd.DataFrame(columns=[*columns, *(c for c in ("dataset", "model") if c not in columns)])


def _not_run(config: RunConfig) -> dict[str, str]:
    reasons = {}
    for stage in ("maps", "scores"):
        if not getattr(config, stage):
            reasons[stage] = f"`{stage}` is not set in the configuration"
    if not text_spaces(config):
        reasons["features"] = "no stage of this configuration needs embeddings"
    asked = switched_on(config)
    for name in APPLICATIONS:
        if name not in asked:
            reasons[name] = f"`applications.{name}` is not set in the configuration"
    return reasons


def _provenance(root: Path, found: list[Artifact]) -> pd.DataFrame:
    rows = [
        {"artifact": artifact.path, "table": artifact.table}
        | {"facts": read_provenance(root / artifact.path)}
        for artifact in found
    ]
    return pd.DataFrame(rows, columns=["artifact", "table", "facts"])


def read_timings(folder: str | Path) -> pd.DataFrame:
    """Wall time and memory of every job, from the files that Snakemake's `benchmark` writes.

    Returns
    -------
    pandas.DataFrame
        stage, job, seconds, memory in MB (missing where it was not measured); no row where the
        folder is absent.
    """
    folder = Path(folder)
    rows = []
    for path in sorted(folder.rglob("*.tsv")):
        place = path.relative_to(folder).with_suffix("")
        try:
            measured = pd.read_csv(path, sep="\t")
        except (pd.errors.ParserError, pd.errors.EmptyDataError):
            continue  # a job that was stopped leaves an empty file; it is not a result
        if measured.empty or "s" not in measured:
            continue
        memory = pd.to_numeric(measured.get("max_rss"), errors="coerce").max()
        rows.append(
            {"stage": _stage_of(place), "job": place.as_posix()}
            | {"seconds": measured["s"].mean(), "memory": memory}
        )
    return pd.DataFrame(rows, columns=["stage", "job", "seconds", "memory"])


def _stage_of(place: Path) -> str:
    """Stage of a benchmark, which lies in the folder of its rule or of its stage."""
    rule = place.parts[1] if place.parts[0] == "applications" else place.parts[0]
    return _STAGE_OF_RULE.get(rule, rule)
