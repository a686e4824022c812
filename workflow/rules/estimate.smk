# Estimate: time, disk, jobs and cost of all dumps, printed by `snakemake estimate`. Makes the
# manifests and the bases of the models, which take seconds, and no dump. From the environment:
#
#     VIT_ATLAS_IMAGES    images of every data set (else those of the manifests, which are made)
#     VIT_ATLAS_RATE      images a second of one worker (else decomposing noise here)
#     VIT_ATLAS_WORKERS   jobs at the same time
#     VIT_ATLAS_PRICE     of one worker for one hour


def planned(name, otherwise):
    """A number of the plan from the environment."""
    return float(os.environ.get(f"VIT_ATLAS_{name}", otherwise))


rule estimate:
    input:
        bases=expand(f"{BASES}.safetensors", model=CONFIG.models),
        manifests=lambda wildcards: (
            []
            if planned("IMAGES", 0)
            else [manifest_of(dataset) for dataset in CONFIG.contributions.datasets]
        ),
    params:
        images=int(planned("IMAGES", 0)),
        rate=planned("RATE", 0),
        start=5,
        workers=int(planned("WORKERS", 1)),
        price=planned("PRICE", 0),
    log:
        f"{RESULTS}/logs/estimate.log",
    threads: MODEL_THREADS
    resources:
        gpu=GPU,
    script:
        "../scripts/estimate.py"
