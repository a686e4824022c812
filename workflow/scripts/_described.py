"""Labels, roles and hierarchy of components, written alike from a dump and from moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from pipeline_lib.artifacts import write_table
from pipeline_lib.features import embeddings_of
from pipeline_lib.hierarchy import Part, coarse_parts, describe, hierarchy_table
from pipeline_lib.roles import role_table
from pipeline_lib.scores import Moments
from pipeline_lib.textspan import Labels, label_table


@dataclass(frozen=True)
class Pool:
    """The texts that components are labelled with, their categories and unit vectors."""

    words: list[str]
    categories: list[str]
    embeddings: Float[Tensor, "k e"]

    @classmethod
    def of(cls, texts: pd.DataFrame) -> Pool:
        """Rows of table `text_features` that are of the pool."""
        rows = texts[texts["use"] == "pool"]
        return cls(rows["text"].tolist(), rows["feature"].tolist(), embeddings_of(texts, "pool"))


def write_described(
    snakemake: Any,
    components: pd.DataFrame,
    pool: Pool,
    found: Moments,
    chosen: Sequence[Labels],
    of_parts: Callable[[list[Part]], tuple[Moments, Moments | None]],
    facts: dict[str, Any],
    **beside: Any,
) -> None:
    """Write the tables `labels`, `roles` and `hierarchy` of a rule.

    Parameters
    ----------
    components
        Table of the model's components.
    found, chosen
        Their moments, and the texts chosen for each.
    of_parts
        Gives the moments of parts above the components; those of held-out images too, where there
        are such images.
    facts
        Metadata of the tables.
    beside
        Further arguments of `label_table`; `heldout` are moments of held-out images or None.
    """
    names = {"model": snakemake.wildcards.model, "dataset": snakemake.wildcards.dataset}
    made, asked = snakemake.output, snakemake.params
    known = (pool.words, pool.categories)
    labels = label_table(found, chosen, *known, components, **beside).assign(**names)
    write_table("labels", labels, made.labels, facts)
    roles = role_table(labels, found, pool.categories, draws=asked.draws, seed=asked.seed)
    write_table("roles", roles.assign(**names), made.roles, facts)

    summed, held = of_parts(coarse_parts(components))
    count = asked.texts_per_component
    parts = describe(summed, found, components, pool.embeddings, chosen, count=count)
    others = None if held is None else {"components": beside["heldout"], "parts": held}
    hierarchy = hierarchy_table(parts, *known, others).assign(**names)
    write_table("hierarchy", hierarchy, made.hierarchy, facts)
