"""Ways to find the component of another model that is most like a given one, beside the truth.

    python -m benchmarks.counterparts results/demo [--dataset world]

Reads the dumps, maps and truths of a run whose images have known factors. Every way compares the
same images; none sees a truth. `mapped` is what the table `counterparts` holds: linear CKA of the
contributions as mapped to CLIP; `contributions` the same without the maps; `texts` the correlation
of what the mapped contributions say in the texts of the features; `random` any component.
"""

from __future__ import annotations

import argparse
import platform
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from pipeline_lib.artifacts import read_table
from pipeline_lib.comparison import (
    Read,
    compared_contributions,
    counterpart_table,
    patterns,
)
from pipeline_lib.dumps import open_dump
from pipeline_lib.features import concept_embeddings
from pipeline_lib.maps import load_maps
from pipeline_lib.roles import NO_ROLE

#: Components below this share of their representation's variance are not asked for.
LEAST = 0.01
MEASURES = {
    "profile": "correlation of what can be read of the factors, with the component's own",
    "best": "what can be read of the component's first factor, over the model's best",
    "factor": "first factor the same",
    "role": "role the same (components that have one)",
}


def in_texts(read: Read, components: int, texts: Float[torch.Tensor, "k e"]) -> np.ndarray:
    """What each component says in texts, over images, as unit vectors: [c, images times texts]."""
    found = []
    for component in range(components):
        said = read([component])[:, 0] @ texts.numpy().T
        said = (said - said.mean(axis=0)).ravel()
        found.append(said / max(float(np.linalg.norm(said)), 1e-30))
    return np.stack(found)


def ways(root: Path, dataset: str) -> dict[str, pd.DataFrame]:
    """Table `counterparts`, without data set, by the name of the way it was found."""
    seen: dict[str, dict[str, np.ndarray]] = {"mapped": {}, "contributions": {}, "texts": {}}
    names = {}
    for path in sorted((root / "contributions").glob(f"*/{dataset}.zarr")):
        model = path.parent.name
        dump = open_dump(path, root / "manifest" / dataset / "images.parquet")
        base = root / "maps" / model
        maps = load_maps(base.with_suffix(".safetensors"), base.with_suffix(".json"))
        names[model] = dump.components["id"].tolist()
        count, width = len(names[model]), max(dump.width, len(maps.bias))
        own = root / f"features/texts/{model}.parquet"
        shared = root / "features/texts/reference.parquet"
        table = read_table("text_features", own if own.exists() else shared)
        texts = torch.cat(list(concept_embeddings(table).values()))
        mapped = compared_contributions(dump, maps)
        seen["contributions"][model] = patterns(compared_contributions(dump, None), count, width)
        seen["mapped"][model] = patterns(mapped, count, width)
        seen["texts"][model] = in_texts(mapped, count, texts)
    found = {way: counterpart_table(patterns_of, names) for way, patterns_of in seen.items()}
    rng, any_of = np.random.default_rng(0), found["mapped"].copy()
    counts = any_of["other_model"].map({model: len(ids) for model, ids in names.items()})
    any_of["other_component"] = rng.integers(0, counts.to_numpy())
    return found | {"random": any_of}


def judged(table: pd.DataFrame, truth: pd.DataFrame, facts: pd.DataFrame) -> dict[str, float]:
    """Means of the measures over pairs of a component and the one found in another model.

    `truth` holds what can be read of each factor by model and component, `facts` the share of
    variance and the role.
    """
    rows = []
    for pair in table[table["model"] != table["other_model"]].itertuples():
        one, two = (pair.model, pair.component), (pair.other_model, pair.other_component)
        if one not in truth.index or two not in truth.index or facts["strength"][one] < LEAST:
            continue
        mine, its = truth.loc[one], truth.loc[two]
        first = mine.idxmax()
        role = facts["role"][one]
        rows.append(
            {
                "profile": np.corrcoef(mine, its)[0, 1],
                "best": its[first] / truth.loc[pair.other_model][first].max(),
                "factor": its.idxmax() == first,
                "role": np.nan if role == NO_ROLE else facts["role"][two] == role,
            }
        )
    return {**pd.DataFrame(rows).astype(float).mean().to_dict(), "pairs": len(rows)}


def tables(root: Path, kind: str, dataset: str) -> pd.DataFrame:
    """One table of scores of all models, by model and component."""
    files = sorted(root.glob(f"scores/*/{dataset}.{kind}.parquet"))
    return pd.concat([read_table(kind, file) for file in files])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("run", type=Path, help="folder of the run's results")
    parser.add_argument("--dataset", default="world")
    asked = parser.parse_args()
    key = ["model", "component"]
    known = tables(asked.run, "truth", asked.dataset).dropna(subset=["decodability"])
    truth = known.pivot_table(index=key, columns="feature", values="decodability")
    strength = tables(asked.run, "labels", asked.dataset).drop_duplicates(key).set_index(key)
    roles = tables(asked.run, "roles", asked.dataset).set_index(key)
    facts = pd.DataFrame({"strength": strength["strength"], "role": roles["role"]})
    facts = facts.reindex(truth.index).fillna({"strength": 0.0, "role": NO_ROLE})
    found = {
        way: judged(table, truth, facts) for way, table in ways(asked.run, asked.dataset).items()
    }
    pairs = found["mapped"]["pairs"]
    print(f"{date.today()}, {platform.machine()}, n = {pairs:.0f} pairs\n")
    print(
        "| of the component found | " + " | ".join(found) + " |\n" + "|---" * (len(found) + 1) + "|"
    )
    for measure, words in MEASURES.items():
        values = " | ".join(f"{each[measure]:.3f}" for each in found.values())
        print(f"| {words} | {values} |")


if __name__ == "__main__":
    main()
