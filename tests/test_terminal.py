"""Progress of a job, as someone at a terminal sees it: through a pseudo-terminal."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from running import own_run, snakemake

#: What the job of the first shard says when its four images are done.
SHOWN = re.compile(r"contributions vit photos 0: 4 of 4 images on (cpu|cuda)")


@contextmanager
def terminal() -> Iterator[tuple[int, list[bytes]]]:
    """A pseudo-terminal to write to, and what was written, complete at the end."""
    ours, theirs = os.openpty()
    written: list[bytes] = []

    def read() -> None:
        try:
            while part := os.read(ours, 65536):
                written.append(part)
        except OSError:  # so the end of a terminal is told
            pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield theirs, written
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)


def test_a_terminal_shows_the_progress_of_jobs_and_a_pipe_does_not(tmp_path: Path) -> None:
    own = own_run(tmp_path, count=4)
    with terminal() as (there, written):
        done = snakemake(own, "dumps", stdout=there, stderr=there)
    text = b"".join(written).decode()
    assert done.returncode == 0, text
    assert SHOWN.search(text), text
    log = next((own / "results/own/logs/contributions").rglob("*.log"))
    assert "4 of 4 images on" in log.read_text("utf-8")

    piped = snakemake(own, "dumps", "--forcerun", "contributions")
    assert piped.returncode == 0, piped.stderr
    assert "rule contributions" in piped.stderr
    assert not SHOWN.search(piped.stdout + piped.stderr)
