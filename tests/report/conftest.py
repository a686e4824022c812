"""A made-up run, collected and rendered once for all tests of the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import synthetic

from pipeline_lib.config import RunConfig
from pipeline_lib.report.collect import Run, collect
from pipeline_lib.report.page import write_report

MADE = {"created": "2026-01-02 03:04 UTC", "commit": "0123abc", "packages": {"torch": "2.13.0"}}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the made-up run; read only."""
    return synthetic.write_run(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="session")
def run(folder: Path) -> Run:
    return collect(synthetic.config(folder.parent), MADE)


@pytest.fixture(scope="session")
def page(folder: Path, run: Run) -> Path:
    """The page of the made-up run."""
    return write_report(run, folder / "report")


@pytest.fixture
def one_model(folder: Path) -> Callable[..., RunConfig]:
    """Makes a configuration of one model and the applications that are named, to be quick."""

    def make(*applications: str, **changes: Any) -> RunConfig:
        every = synthetic.settings(folder.parent)
        models = {"clip-small": every["models"]["clip-small"]}
        kept = {name: every["applications"][name] for name in applications}
        return synthetic.config(folder.parent, models=models, applications=kept, **changes)

    return make
