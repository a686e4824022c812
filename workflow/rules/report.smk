# Report: the page. Two small rules make what a reader wants to see of the dumps, into
# report/{exactness,top_images}/; the rule `report` reads the tables of all stages and writes
# report/index.html, which needs no other file, and beside it its figures as SVG and a .zip with its
# pictures at full size.
from pipeline_lib.report.collect import expected_artifacts, expected_figures


rule exactness:
    input:
        dump=lambda w: store_inputs(w.model, w.dataset),
        records=lambda w: expand(
            f"{DUMP}.shards/{{shard}}.parquet", **w, shard=shards_of(w.dataset)
        ),
        manifest=f"{RESULTS}/manifest/{{dataset}}/images.parquet",
    output:
        table=f"{RESULTS}/report/exactness/{{model}}/{{dataset}}.parquet",
    params:
        version=STAGE_VERSIONS["report"],
        tolerance=CONFIG.contributions.tolerance,
    log:
        f"{RESULTS}/logs/exactness/{{model}}/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/exactness/{{model}}/{{dataset}}.tsv"
    threads: 1
    script:
        "../scripts/exactness.py"


rule top_images:
    input:
        dump=lambda w: store_inputs(w.model, w.dataset),
        manifest=f"{RESULTS}/manifest/{{dataset}}/images.parquet",
        maps=lambda w: maps_of(w.model),
        labels=f"{RESULTS}/scores/{{model}}/{{dataset}}.labels.parquet",
        texts=lambda w: texts_of(space_of(w.model)),
    output:
        table=f"{RESULTS}/report/top_images/{{model}}/{{dataset}}.parquet",
        maps=f"{RESULTS}/report/top_images/{{model}}/{{dataset}}.maps.parquet",
    params:
        version=STAGE_VERSIONS["report"],
        model=lambda w: model_facts(CONFIG.models[w.model]),
        examples=CONFIG.report.examples,
    log:
        f"{RESULTS}/logs/top_images/{{model}}/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/top_images/{{model}}/{{dataset}}.tsv"
    threads: MODEL_THREADS
    resources:
        gpu=GPU,
    script:
        "../scripts/top_images.py"


rule report:
    input:
        tables=[f"{RESULTS}/{artifact.path}" for artifact in expected_artifacts(CONFIG)],
    output:
        page=report(
            f"{RESULTS}/report/index.html",
            caption="../report/page.rst",
            category="Report",
            labels={"figure": "the whole page"},
        ),
        pictures=f"{RESULTS}/report/pictures.zip",
        figures=[
            report(
                f"{RESULTS}/report/figures/{name}.svg",
                caption=f"../report/{name}.rst",
                category=stage.capitalize(),
                labels={"figure": name.replace("-", " ")},
            )
            for name, stage in expected_figures(CONFIG).items()
        ],
    params:
        version=STAGE_VERSIONS["report"],
        config=section(CONFIG),
    log:
        f"{RESULTS}/logs/report.log",
    benchmark:
        f"{RESULTS}/benchmarks/report.tsv"
    threads: 1
    script:
        "../scripts/report.py"
