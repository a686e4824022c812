# The table of contents is workflow/Snakefile, which other workflows can import; this file lets
# plain `snakemake` find it.
include: "workflow/Snakefile"


workflow.default_target = "all"
