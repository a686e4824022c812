"""Progress of a long loop over images: how far, how fast, how long still, and on what.

It is logged. What shows it on a terminal listens to this module's logger (`workflow/scripts/_job`).
"""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)


class Progress:
    """Logs images done, rate, time left and device.

    The first batch is not part of the rate: it also plans, compiles and warms up.

    Parameters
    ----------
    count
        Images in all.
    device
        What computes.
    """

    def __init__(self, count: int, device: object) -> None:
        self.count = count
        self.device = device
        self.first: tuple[int, float] | None = None

    def log(self, done: int) -> None:
        """Say that `done` images are finished."""
        now = time.monotonic()
        if self.first is None:
            self.first = (done, now)
            log.info("%d of %d images on %s", done, self.count, self.device)
            return
        rate = (done - self.first[0]) / max(now - self.first[1], 1e-9)
        left = (self.count - done) / rate if rate else float("inf")
        log.info(
            "%d of %d images on %s, %.1f images/s, %s left",
            done, self.count, self.device, rate, duration(left),
        )  # fmt: skip


def duration(seconds: float) -> str:
    """A time span for a reader; below ten seconds with one decimal.

    >>> duration(0.25), duration(15.2), duration(75), duration(3 * 3600 + 120)
    ('0.2 s', '15 s', '1 min 15 s', '3 h 2 min')
    """
    if seconds == float("inf"):
        return "unknown"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
