import shutil

import pytest
from synthetic import config, settings

from pipeline_lib.errors import ArtifactError
from pipeline_lib.report.collect import collect, expected_artifacts, read_timings, text_spaces


def test_tables_of_all_models_and_datasets_are_stacked(run):
    assert set(run["scores"]["model"]) == {"clip-small", "deit", "swin"}
    assert set(run["manifest"]["dataset"]) == {"world", "spurious"}
    assert set(run["text_features"]["space"]) == {"clip-small", "reference"}
    assert run.not_run == {}


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "synthetic")


def test_every_missing_table_is_named_at_once(copy):
    (copy / "scores/deit/world.scores.parquet").unlink()
    (copy / "maps/swin.metrics.parquet").unlink()
    with pytest.raises(ArtifactError) as caught:
        collect(config(copy.parent))
    assert "scores/deit/world.scores.parquet" in str(caught.value)
    assert "maps/swin.metrics.parquet" in str(caught.value)
    assert "Run snakemake" in str(caught.value)


def test_a_run_without_benchmarks_has_no_timings(copy):
    shutil.rmtree(copy / "benchmarks")
    assert len(collect(config(copy.parent)).timings) == 0


def test_what_is_switched_off_is_not_asked_for_and_has_a_reason(folder):
    off = config(folder.parent, scores=None, applications={})
    read = collect(off)
    assert "scores" not in {artifact.table for artifact in expected_artifacts(off)}
    assert "`scores`" in read.not_run["scores"]
    assert "`applications.retrieval`" in read.not_run["retrieval"]
    assert "maps" not in read.not_run


def test_text_spaces_follow_the_models(folder):
    models = settings(folder.parent)["models"]
    assert text_spaces(config(folder.parent)) == ["clip-small", "reference"]
    only_clip = config(folder.parent, models={"clip-small": models["clip-small"]})
    assert text_spaces(only_clip) == ["clip-small"]
    only_timm = config(folder.parent, models={"deit": models["deit"]})
    assert text_spaces(only_timm) == ["reference"]


def test_timings_of_jobs(tmp_path):
    place = tmp_path / "applications" / "ablation" / "deit"
    place.mkdir(parents=True)
    head = "s\th:m:s\tmax_rss\n"
    (place / "world.tsv").write_text(head + "2.0\t0:00:02\t100.5\n4.0\t0:00:04\t90\n")
    (place / "unmeasured.tsv").write_text(head + "1.0\t0:00:01\t-\n")
    (place / "stopped.tsv").write_text("")
    (place / "odd.tsv").write_text("a\tb\n1\t2\n")
    times = read_timings(tmp_path).set_index("job")
    assert list(times.index) == ["applications/ablation/deit/unmeasured",
                                 "applications/ablation/deit/world"]  # fmt: skip
    row = times.loc["applications/ablation/deit/world"]
    assert (row["stage"], row["seconds"], row["memory"]) == ("ablation", 3.0, 100.5)
    assert times["memory"].isna().sum() == 1
