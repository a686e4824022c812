"""Section on what was run: settings, versions, weights, times."""

from __future__ import annotations

from typing import Any

import pandas as pd
import yaml

from pipeline_lib.report.blocks import Caption, Field, Listing, Section
from pipeline_lib.report.collect import APPLICATIONS, STAGES, Run
from pipeline_lib.report.sections.model import model_facts
from pipeline_lib.report.words import duration, is_absent, plural, spaced, whole

_ORDER = ("world", *STAGES, "validation", "comparison", *APPLICATIONS, "report")


def provenance_section(run: Run) -> Section:
    """Everything needed to say which run this was, and to run it again."""
    blocks = [_facts(run), _weights(run)]
    if len(run.timings):
        blocks.append(_times(run))
    blocks.append(_artifacts(run))
    return Section(
        key="provenance",
        title="Provenance",
        about="What was run, with which versions, and how long it took.",
        blocks=blocks,
    )


def config_text(run: Run) -> str:
    """The configuration as YAML."""
    return yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True, width=96)


def _facts(run: Run) -> Listing:
    flat = list(_flattened(run.made))
    flat += [("device of the decomposition", _devices(run)), ("seed", str(run.config["seed"]))]
    fields = [Field("fact", "", number=False), Field("value", "", number=False)]
    return Listing("facts", "This run", None, fields, pd.DataFrame(flat, columns=["fact", "value"]))


def _devices(run: Run) -> str:
    """Where the dumps were computed."""
    made = [row.facts for row in run.provenance.itertuples() if row.table == "exactness"]
    return ", ".join(sorted({str(facts["device"]) for facts in made if "device" in facts})) or "–"


def _flattened(facts: Any, place: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        label = f"{place} · {name}" if place else str(name)
        if isinstance(value, dict):
            rows += _flattened(value, label)
        else:
            words = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append((label.replace("_", " "), words))
    return rows


def _weights(run: Run) -> Listing:
    rows = []
    for model in run.models:
        settings = run.config["models"][model]
        known = model_facts(run, model)
        rows.append(
            {
                "model": model,
                "id": settings["id"],
                "file": settings.get("weights") or "–",
                "hash": known.get("weight_hash", "–"),
                "readout": known.get("readout", "–"),
                "preprocessing": _steps(known.get("preprocessing", [])),
            }
        )
    fields = [
        Field("model", "model", number=False),
        Field("id", "id", number=False, code=True),
        Field("file", "weights file", number=False),
        Field("hash", "hash of the weights", number=False, code=True),
        Field("readout", "readout", number=False),
        Field("preprocessing", "preprocessing", number=False),
    ]
    data = pd.DataFrame(rows)
    kept = [f for f in fields if f.name in ("model", "id") or (data[f.name] != "–").any()]
    return Listing("weights", "Models and weights", None, kept, data[[f.name for f in kept]])


def _steps(preprocessing: Any) -> str:
    """Steps from the file to the tensor, in their order."""
    steps = [preprocessing] if isinstance(preprocessing, str) else preprocessing
    return " → ".join(map(str, steps)) or "–"


def _times(run: Run) -> Listing:
    table = run.timings
    stages = table.groupby("stage", sort=False).agg(
        jobs=("job", "size"),
        seconds=("seconds", "sum"),
        longest=("seconds", "max"),
        memory=("memory", "max"),
    )
    order = [stage for stage in _ORDER if stage in stages.index]
    stages = stages.loc[[*order, *(stage for stage in stages.index if stage not in order)]]
    total = pd.DataFrame(
        {
            "stage": ["all"],
            "jobs": [len(table)],
            "seconds": [table["seconds"].sum()],
            "longest": [table["seconds"].max()],
            "memory": [table["memory"].max()],
        }
    )
    fields = [
        Field("stage", "stage", number=False),
        Field("jobs", "jobs", whole),
        Field("seconds", "time, summed", duration),
        Field("longest", "longest job", duration),
        Field(
            "memory",
            "peak memory",
            lambda v: "–" if is_absent(float(v)) else f"{whole(v)}\u202fMB",
        ),
    ]
    return Listing(
        "times",
        "Time and memory",
        Caption(
            "Wall time of the jobs of each stage, and the most memory one of them held.",
            "From the benchmark file of every job.",
            plural(len(table), "job"),
            "Jobs run side by side; the run took less than the sum.",
        ),
        fields,
        pd.concat([stages.reset_index(), total], ignore_index=True),
    )


def _artifacts(run: Run) -> Listing:
    rows = [
        {"artifact": row.artifact, "table": spaced(row.table), **_made(row.facts.get("job", {}))}
        for row in run.provenance.itertuples()
    ]
    fields = [
        Field("artifact", "file under the run’s folder", number=False),
        Field("table", "table", number=False),
        Field("code", "code", number=False, code=True),
        Field("data", "images", number=False, code=True),
        Field("seed", "seed"),
    ]
    return Listing(
        "artifacts",
        "Tables this page was made from",
        Caption(
            "Every table with what made it.",
            "Code: version of vit-atlas and hash of its sources. Images: how many, and the "
            "fingerprint of their ids and contents. Parameters and package versions stand in the "
            "metadata of each file.",
            plural(len(rows), "table"),
        ),
        fields,
        pd.DataFrame(rows, columns=[field.name for field in fields]),
    )


def _made(job: dict[str, Any]) -> dict[str, str]:
    """What a table's metadata say of the code, the images and the seed of its making."""
    code, data = job.get("code", {}), job.get("data", {})
    return {
        "code": f"{code['version']} {code['sources']}" if code else "–",
        "data": f"{data['images']} {data['sha256']}" if data else "–",
        "seed": str(job.get("seed", "–")),
    }
