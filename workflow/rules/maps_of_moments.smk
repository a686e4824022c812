# Maps at level `moments`, of the models that are no CLIP: ridge, in closed form from the moments of the
# data set that they are fitted on. Writes what `maps` writes.


ruleorder: maps_of_moments > known_maps > maps


rule maps_of_moments:
    input:
        moments=lambda w: moment_files(w.model, MOMENT_FITS[w.model])[0],
        facts=f"{BASES}.json",
        bases=ancient(f"{BASES}.safetensors"),
    output:
        weights=f"{RESULTS}/maps/{{model}}.safetensors",
        manifest=f"{RESULTS}/maps/{{model}}.json",
        metrics=f"{RESULTS}/maps/{{model}}.metrics.parquet",
    params:
        version=STAGE_VERSIONS["maps"],
        dataset=lambda wildcards: MOMENT_FITS[wildcards.model],
        heldout=CONFIG.maps.heldout,
        seed=CONFIG.seed,
    log:
        f"{RESULTS}/logs/maps_of_moments/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/maps_of_moments/{{model}}.tsv"
    threads: MODEL_THREADS
    wildcard_constraints:
        model="|".join(MOMENT_FITS),
    script:
        "../scripts/maps_of_moments.py"
