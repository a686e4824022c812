"""Sparse concept codes of the images of one data set by one model (rule codes)."""

import numpy as np
from _job import job, store_folder

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.codes import Dictionary, carriers, code_images, code_summary
from pipeline_lib.dumps import open_dump
from pipeline_lib.maps import load_maps
from pipeline_lib.passes import images_of_split

#: Images whose mean is taken off.
REFERENCE = 1000

with job(snakemake) as config:
    names = {"model": snakemake.wildcards.model, "dataset": snakemake.wildcards.dataset}
    asked, given, made = config.applications.codes, snakemake.input, snakemake.output
    dump = open_dump(store_folder(given.store), given.manifest)
    maps = load_maps(*given.maps)
    dictionary = Dictionary.of(read_table("text_features", given.texts))
    index = images_of_split(dump.manifest, asked.split)
    rng = np.random.default_rng(config.seed)
    reference = np.sort(rng.permutation(dump.n)[:REFERENCE])
    codes, table = code_images(dump, maps, dictionary, index, reference, texts=asked.texts)
    shown = range(min(asked.shown, len(index)))
    of = (dump, maps, dictionary, codes, index, reference[:256])
    opened = carriers(*of, shown, count=asked.carriers)
    facts = {"asked": asked.model_dump(), "seed": config.seed}
    write_table("codes", table.assign(**names), made.table, facts)
    write_table("code_summary", code_summary(codes).assign(**names), made.summary, facts)
    write_table("code_carriers", opened.assign(**names), made.carriers, facts)
