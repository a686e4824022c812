"""Labels, roles and hierarchy of components, written alike from a dump and from moments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from pipeline_lib.artifacts import write_table
from pipeline_lib.features import embeddings_of
from pipeline_lib.hierarchy import Part, coarse_parts, describe, hierarchy_table
from pipeline_lib.labelling import Labeller, Sample
from pipeline_lib.reconstruction import Kept, along, bounds
from pipeline_lib.roles import role_table
from pipeline_lib.textspan import Labels, label_table, random_pool


@dataclass(frozen=True)
class Pool:
    """The texts that components are labelled with, and what these are held against.

    Attributes
    ----------
    words, categories, embeddings
        The texts, their categories and unit vectors.
    random
        Kind of random pool to its unit vectors: `random` are as many vectors, `random_texts`
        (where the reference encodes texts) as many texts of random words.
    """

    words: list[str]
    categories: list[str]
    embeddings: Float[Tensor, "k e"]
    random: dict[str, Float[Tensor, "k e"]]

    @classmethod
    def of(cls, texts: pd.DataFrame, seed: int) -> Pool:
        """Rows of table `text_features` that are of the pool, and random ones."""
        rows = texts[texts["use"] == "pool"]
        embeddings = embeddings_of(texts, "pool")
        random = {"random": random_pool(*embeddings.shape, seed=seed)}
        if (texts["use"] == "random").any():
            random["random_texts"] = embeddings_of(texts, "random")
        return cls(rows["text"].tolist(), rows["feature"].tolist(), embeddings, random)

    def labeller(self, method: str) -> Labeller:
        """A method of labelling with these texts."""
        return Labeller(method, self.embeddings)

    def labelled_at_random(self, method: str, seen: Sample, count: int) -> dict[str, list[Labels]]:
        """For each random pool the labels that the method chooses from it, `count` each."""
        return {
            kind: Labeller(method, vectors).labels(seen, count=count, min_gain=0.0)
            for kind, vectors in self.random.items()
        }

    def kept(
        self, method: str, seen: Sample, random: dict[str, list[Labels]], count: int
    ) -> dict[str, Kept]:
        """What texts, random ones and principal components, up to `count`, keep of components."""
        labeller = self.labeller(method)
        longer = labeller.labels(seen, count=count, min_gain=0.0)
        found = {"texts": labeller.kept(longer), "pca": along(bounds(seen.found, count))}
        return found | {
            kind: Labeller(method, self.random[kind]).kept(each) for kind, each in random.items()
        }


def write_described(
    snakemake: Any,
    components: pd.DataFrame,
    pool: Pool,
    seen: Sample,
    fresh: Sample | None,
    of_parts: Callable[[list[Part]], tuple[Sample, Sample | None]],
    facts: dict[str, Any],
    **beside: Any,
) -> None:
    """Write the tables `labels`, `roles` and `hierarchy` of a rule.

    Parameters
    ----------
    components
        Table of the model's components.
    pool
        The texts.
    seen, fresh
        The images, and held-out ones where there are such.
    of_parts
        Gives both with parts in the place of components.
    facts
        Metadata of the tables.
    beside
        Further arguments of `label_table`.
    """
    names = {"model": snakemake.wildcards.model, "dataset": snakemake.wildcards.dataset}
    made, asked = snakemake.output, snakemake.params
    known, found = (pool.words, pool.categories), seen.found
    labeller, count = pool.labeller(asked.method), asked.texts_per_component
    chosen = labeller.labels(seen, count=count)
    heldout = None if fresh is None else labeller.shares(chosen, fresh)
    labels = label_table(found, chosen, *known, components, heldout=heldout, **beside)
    labels = labels.assign(**names)
    write_table("labels", labels, made.labels, facts)
    roles = role_table(labels, found, pool.categories, draws=asked.draws, seed=asked.seed)
    write_table("roles", roles.assign(**names), made.roles, facts)

    summed, held = of_parts(coarse_parts(components))
    coarse = labeller.labels(summed, count=count)
    parts = describe(summed.found, found, components, coarse, chosen)
    others = None
    if heldout is not None and held is not None:
        others = {"components": heldout, "parts": labeller.shares(coarse, held)}
    hierarchy = hierarchy_table(parts, *known, others).assign(**names)
    write_table("hierarchy", hierarchy, made.hierarchy, facts)
