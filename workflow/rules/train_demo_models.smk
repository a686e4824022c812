# Trains the demo models that the repository ships in resources/models, one job per model.
#
# Not part of the pipeline's default target: the trained weights are committed. Run it with
#     snakemake train_demo_models --forcerun train_demo_model
# Needs nothing but this repository: the pictures are rendered from a seed. The rendered training
# pictures (1.2 GB) are kept in results/demo-pools and can be deleted afterwards.

DEMO_MODELS = ["clip-reference", "clip-small", "deit", "dino", "dinov2", "swin", "maxvit"]
STARTED_FROM_DEIT = ["clip-reference", "clip-small", "dino", "dinov2"]
DEMO_MODEL_FOLDER = "resources/models"


rule train_demo_models:
    input:
        expand(f"{DEMO_MODEL_FOLDER}/{{name}}/metrics.json", name=DEMO_MODELS),


rule render_demo_pools:
    output:
        touch("results/demo-pools/rendered"),
    log:
        "results/demo-pools/logs/render_demo_pools.log",
    threads: 2
    shell:
        "python workflow/scripts/render_demo_pools.py --pools results/demo-pools"
        " --threads {threads} 2> {log}"


rule train_demo_model:
    input:
        pools=ancient("results/demo-pools/rendered"),
        start=lambda wildcards: (
            ancient(f"{DEMO_MODEL_FOLDER}/deit/metrics.json")
            if wildcards.name in STARTED_FROM_DEIT
            else []
        ),
    output:
        metrics=f"{DEMO_MODEL_FOLDER}/{{name}}/metrics.json",
        card=f"{DEMO_MODEL_FOLDER}/{{name}}/README.md",
    params:
        folder=lambda wildcards, output: f"{DEMO_MODEL_FOLDER}/{wildcards.name}",
        device=config.get("device", "cpu"),
    log:
        "results/demo-pools/logs/{name}.log",
    benchmark:
        "results/demo-pools/benchmarks/{name}.tsv"
    threads: 1
    resources:
        mem_mb=4000,
    wildcard_constraints:
        name="|".join(DEMO_MODELS),
    shell:
        "python workflow/scripts/train_demo_model.py --name {wildcards.name}"
        " --folder {params.folder} --pools results/demo-pools --device {params.device}"
        " --threads {threads} 2> {log}"
