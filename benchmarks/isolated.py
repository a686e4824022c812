"""Measurements each in a process of its own, so that no one's memory counts for the next."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def measured_apart(module: str, names: Iterable[str]) -> list[dict[str, Any]]:
    """What `python -m module … --one name`, with this process's options, prints for each name."""
    rows = []
    for name in names:
        command = [sys.executable, "-m", module, *sys.argv[1:], "--one", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    return rows


def markdown_rows(head: Sequence[str], rows: Iterable[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table with the columns of `head`."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return lines + [f"| {' | '.join(str(row[name]) for name in head)} |" for row in rows]
