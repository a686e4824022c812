# Maps at the levels that do not keep every image's contributions: those of a CLIP model, and those
# that another run fitted, taken as they are and not measured again. Writes what `maps` writes but
# the metrics.


ruleorder: known_maps > maps


rule known_maps:
    input:
        facts=f"{BASES}.json",
        bases=ancient(f"{BASES}.safetensors"),
        given=lambda wildcards: given_maps(wildcards.model),
    output:
        weights=f"{RESULTS}/maps/{{model}}.safetensors",
        manifest=f"{RESULTS}/maps/{{model}}.json",
    params:
        version=STAGE_VERSIONS["maps"],
    log:
        f"{RESULTS}/logs/known_maps/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/known_maps/{{model}}.tsv"
    threads: 1
    script:
        "../scripts/known_maps.py"
