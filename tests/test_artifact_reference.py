"""The page of artifacts is current, and tables carry what made them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from pipeline_lib.artifact_reference import PAGE, artifact_page
from pipeline_lib.artifacts import STORES, TABLES, read_provenance, write_table
from pipeline_lib.provenance import FIELDS, code_facts, set_context


def test_the_page_is_current() -> None:
    command = "run python -m pipeline_lib.artifact_reference"
    assert PAGE.read_text("utf-8") == artifact_page(), command


def test_the_page_names_every_table_column_array_and_field() -> None:
    page = artifact_page()
    names = [column.name for table in TABLES.values() for column in table.columns]
    names += [array.name for arrays in STORES.values() for array in arrays]
    assert all(f"| `{name}` |" in page for name in [*names, *FIELDS])
    assert all(f"### {name}\n" in page for name in [*TABLES, *STORES])


@pytest.fixture
def job() -> Iterator[dict]:
    facts = {**code_facts(), "stage": {"rule": "manifest"}, "seed": 3}
    set_context(facts)
    yield facts
    set_context({})


def test_a_table_carries_what_its_job_said(job: dict, tmp_path: Path) -> None:
    frame = pd.DataFrame({"path": ["a"], "reason": ["is empty"]})
    write_table("rejected", frame, tmp_path / "a.parquet", {"own": 1})
    facts = read_provenance(tmp_path / "a.parquet")
    assert facts == {"own": 1, "job": job}
    assert set(facts["job"]) <= set(FIELDS)
    set_context({})
    write_table("rejected", frame, tmp_path / "b.parquet")
    assert read_provenance(tmp_path / "b.parquet") == {}
