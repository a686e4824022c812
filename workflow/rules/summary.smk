# Before the first job: whether the dumps fit on the disk, as far as is known by then. After the
# last one: a table of stages, times and sizes, summary.parquet in the run's folder.
from pipeline_lib.artifacts import write_table
from pipeline_lib.estimate import check_disk
from pipeline_lib.summary import run_summary, summary_lines


onstart:
    try:
        check_disk(CONFIG)
    except VitAtlasError as error:
        raise WorkflowError(str(error)) from None


onsuccess:
    table = run_summary(CONFIG.folder)
    write_table("summary", table, CONFIG.folder / "summary.parquet")
    print("\n".join(summary_lines(table)))
