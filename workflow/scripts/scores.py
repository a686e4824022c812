"""Scores, labels, roles and truths of one model's components on one data set (rule scores)."""

import numpy as np
from _described import Pool, write_described
from _job import job, store_folder

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.classify import label_texts
from pipeline_lib.dumps import open_dump, open_features
from pipeline_lib.features import concept_embeddings
from pipeline_lib.hierarchy import Part
from pipeline_lib.labelling import Sample
from pipeline_lib.maps import load_maps, without_test
from pipeline_lib.reconstruction import linear_reading, reconstruction_table, zero_shot_reading
from pipeline_lib.redraws import redraw
from pipeline_lib.scores import moments, score_components, with_components
from pipeline_lib.significance import add_statistics, bootstrap_strengths, redrawn_scores
from pipeline_lib.streamed import stored_coordinates
from pipeline_lib.truths import Factors, known_factors, truth_table

with job(snakemake) as config:
    names = {"model": snakemake.wildcards.model, "dataset": snakemake.wildcards.dataset}
    count, draws = snakemake.params.texts_per_component, snakemake.params.draws
    steps, seed = snakemake.params.steps, snakemake.params.seed
    dump = open_dump(store_folder(snakemake.input.store), snakemake.input.manifest)
    positions = without_test(dump.manifest["split"])
    held = np.setdiff1d(np.arange(dump.n), positions)
    maps = load_maps(*snakemake.input.maps)
    texts = read_table("text_features", snakemake.input.texts)
    read = (dump.factors, dump.coordinates)
    encoded = stored_coordinates(*read, positions, name=str(dump.path))
    found = moments(encoded, maps)
    seen = Sample(found, encoded)
    other = stored_coordinates(*read, held, name=str(dump.path)) if len(held) > 1 else None
    fresh = None if other is None else Sample(moments(other, maps), other)
    facts = {"images": found.n, "texts_per_component": count, "draws": draws, "seed": seed}
    weights = redraw(found.n, snakemake.params.redraws, seed)

    features = concept_embeddings(texts)
    redrawn = redrawn_scores(encoded, found, features, weights)
    scores = score_components(found, features)
    scores = add_statistics(scores, redrawn, found, features, draws=draws, seed=seed)
    scores = with_components(scores, dump.components).assign(**names)
    write_table("scores", scores, snakemake.output.scores, facts)

    pool = Pool.of(texts, seed)
    method = snakemake.params.method
    most = max(count, min(steps[-1], pool.labeller(method).most(seen)))
    steps = [step for step in steps if step <= most]
    random = pool.labelled_at_random(method, seen, most)

    def of_parts(parts: list[Part]) -> tuple[Sample, Sample | None]:
        return seen.parts(parts), None if fresh is None else fresh.parts(parts)

    beside = {"interval": bootstrap_strengths(encoded, found, weights), **random}
    write_described(snakemake, dump.components, pool, seen, fresh, of_parts, facts, **beside)

    images = dump.manifest.iloc[positions]
    factors = Factors.of(images, known_factors(images, features))
    rankings = {}
    if snakemake.input.images:
        clip = open_features(store_folder(snakemake.input.images), snakemake.input.manifest)
        shown = clip.embeddings(positions)
        described = concept_embeddings(read_table("text_features", snakemake.input.reference))
        rankings = {name: shown @ rows.numpy().T for name, rows in described.items()}
    asked = {"shuffles": snakemake.params.shuffles, "seed": seed}
    known = {"factors": factors, "rankings": rankings, "weights": weights}
    truth, drawn = truth_table(encoded, found, features, **known, **asked)
    truth = with_components(truth, dump.components).assign(**names)
    write_table("truth", truth, snakemake.output.truth, facts | asked)
    drawn = redrawn.merge(drawn, on=["feature", "component"], validate="one_to_one")
    counted = {"redraws": snakemake.params.redraws, "seed": seed}
    write_table("redraws", drawn.assign(**names), snakemake.output.redraws, facts | counted)

    kinds = dump.components["kind"]
    replaced = {"heads": kinds.index[kinds == "head"], "all": kinds.index[kinds != "bias"]}
    readings = []
    if factors.names:
        readings.append(linear_reading(encoded, found, factors, seed=seed))
    if images["label"].nunique() > 1:
        classes = label_texts(texts, "label", images["label"].dropna())
        readings.append(zero_shot_reading(found, maps.bias, images["label"], classes))
    kept = pool.kept(method, seen, random, most)
    asked = {"replaced": replaced, "counts": steps}
    rebuilt = reconstruction_table(encoded, found, kept, readings, **asked).assign(**names)
    write_table("reconstruction", rebuilt, snakemake.output.reconstruction, facts)
