"""Embeddings of a run's texts in one CLIP space (rule texts)."""

from _job import job

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.errors import ConfigError
from pipeline_lib.features import class_phrases, read_reference_texts, read_templates, text_table
from pipeline_lib.models import load_model
from pipeline_lib.text_pool import random_texts, read_pools

with job(snakemake) as config:
    space, asked = snakemake.wildcards.space, snakemake.params
    section = config.reference if space == "reference" else config.models[space]
    templates = read_templates(config.templates)
    manifests = [read_table("manifest", path) for path in snakemake.input.manifests]
    labels = sorted({label for m in manifests for label in m.loc[m["active"], "label"].dropna()})
    captioned = read_table("manifest", asked.captions)["caption"] if asked.captions else []
    captions = sorted(set(captioned.dropna())) if asked.captions else []
    if getattr(section, "texts", None) is not None:
        given = section.texts
        encoder = read_reference_texts(given.embeddings, given.names, given.column)
        if not templates.plain:
            raise ConfigError("templates: cannot be applied to reference.texts; set it to null")
        classes = {label: label for label in labels}
        pool = read_pools(config.text_pool) if config.text_pool else encoder.pool()
        random: tuple[str, ...] = ()  # only the texts that are given have embeddings
    else:
        if config.text_pool is None:
            raise ConfigError("text_pool: is missing; name a file, category<TAB>text on each line")
        encoder = load_model(section.id, weights=section.weights, **section.kwargs)
        classes = class_phrases(labels)
        pool = read_pools(config.text_pool)
        random = random_texts(pool, config.seed)
    table = text_table(
        encoder.encode_text,
        concepts=config.concepts,
        pool=pool,
        classes=classes,
        words=asked.words,
        captions=captions,
        random=random,
        templates=templates,
    )
    facts = {"space": space, "encoder": asked.encoder, "pool_sha256": pool.sha256}
    write_table("text_features", table, snakemake.output.texts, facts)
