# Texts: embeddings of concepts, class names, further words, the pool and random texts, one table for each CLIP
# space. Reads the word lists; writes features/texts/{space}.parquet (space: `reference`, or a CLIP
# model of the run).


def texts_of(space):
    """Table of the text embeddings in a CLIP space."""
    return f"{RESULTS}/features/texts/{space}.parquet"


def text_section(space):
    """Part of the configuration that says who encodes the texts of a space."""
    return CONFIG.reference if space == "reference" else CONFIG.models[space]


def text_encoder(space):
    """What decides the embeddings, as plain values."""
    section = text_section(space)
    given = getattr(section, "texts", None)
    if given is None:
        return model_facts(section)
    return {"column": given.column, **{k: hash_of(getattr(given, k)) for k in TEXT_FILES}}


def further_words():
    """Words that the applications speak in beside concepts and classes."""
    spurious, heatmaps = CONFIG.applications.spurious, CONFIG.applications.heatmaps
    words = {}
    if spurious is not None:
        words |= {"spurious": spurious.spurious_words, "core": spurious.core_words}
    if heatmaps is not None and not isinstance(heatmaps.directions, str):
        words["heatmaps"] = heatmaps.directions
    return words


TEXT_FILES = ["embeddings", "names"]
POOLS = [CONFIG.text_pool] if isinstance(CONFIG.text_pool, str) else CONFIG.text_pool or []
WORD_LISTS = [path for path in (CONFIG.templates, *POOLS) if path is not None]


def captions():
    """Manifest of the images whose captions maps are fitted to, where they are."""
    fitted = CONFIG.maps is not None and CONFIG.maps.target == "caption_text"
    return manifest_of(CONFIG.maps.dataset) if fitted else ""


rule texts:
    input:
        lists=[path for path in WORD_LISTS if Path(path).is_file()],
        manifests=[manifest_of(dataset) for dataset in CONFIG.datasets],
    output:
        texts=f"{RESULTS}/features/texts/{{space}}.parquet",
    params:
        version=STAGE_VERSIONS["features"],
        encoder=lambda wildcards: text_encoder(wildcards.space),
        concepts=CONFIG.concepts,
        words=further_words(),
        lists=WORD_LISTS,
        captions=captions(),
        seed=CONFIG.seed,
    log:
        f"{RESULTS}/logs/texts/{{space}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/texts/{{space}}.tsv"
    threads: MODEL_THREADS
    resources:
        gpu=GPU,
    wildcard_constraints:
        space="|".join(["reference", *CONFIG.models]),
    script:
        "../scripts/texts.py"
