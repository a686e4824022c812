"""What runs again after a change, counted in jobs, and what must not (table in docs/design.md)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from incremental import CASES, DATA, DUMPS, jobs_after
from running import rules_of

#: Rules that compare models, and so read the results of all of them.
COMPARE = {"report", "comparison", "similarity", "validation"}


@pytest.mark.parametrize("name", CASES)
def test_a_change_runs_its_jobs_and_no_dump_that_it_cannot_alter(name: str, finished: Path) -> None:
    case = CASES[name]
    jobs = jobs_after(finished, case)
    counts = Counter(rule for rule, _ in jobs.elements())
    expected = {**dict.fromkeys(DUMPS | DATA, 0), **case.jobs}
    if case.only is not None:
        expected |= {rule: counts[rule] for rule in case.only & DATA}
        assert rules_of(jobs) <= case.only
    assert {rule: counts[rule] for rule in expected} == expected
    if case.model is not None:
        others = {(rule, names) for rule, names in jobs if case.model not in names.split()}
        assert rules_of(others) <= COMPARE, others
