"""Claiming one of several GPUs of a machine, so that jobs beside each other use different ones.

Snakemake counts GPUs but does not say which one a job may use. The claim is a lock of the operating
system on a file: it ends with the process, however that ends.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

#: Held open for the life of the process.
_held: list[IO[str]] = []


def visible_gpus(devices: Path = Path("/dev")) -> list[str]:
    """GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, or all of the machine."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    numbers = (path.name.removeprefix("nvidia") for path in devices.glob("nvidia[0-9]*"))
    return sorted(numbers, key=int)


def claim_gpu(
    gpus: list[str] | None = None, folder: Path | None = None, *, wait: float = 1.0
) -> str | None:
    """Claim a GPU that no other job holds, waiting for one, and hide the others.

    Sets CUDA_VISIBLE_DEVICES, so it must be called before CUDA is used.

    Parameters
    ----------
    gpus
        Names of the GPUs; by default those that are visible.
    folder
        Folder of the locks, the same for all jobs of the machine.
    wait
        Seconds between two looks where all are taken.

    Returns
    -------
    str or None
        The GPU claimed; `None` where there is none to choose from.
    """
    gpus = visible_gpus() if gpus is None else gpus
    if len(gpus) < 2:
        return None
    folder = Path(tempfile.gettempdir()) / "vit-atlas-gpus" if folder is None else folder
    folder.mkdir(mode=0o777, parents=True, exist_ok=True)
    waiting = False
    while True:
        for gpu in gpus:
            lock = open(folder / f"{gpu.replace('/', '_')}.lock", "a")  # noqa: SIM115 (held)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            _held.append(lock)
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            log.info("claimed GPU %s of %s", gpu, ", ".join(gpus))
            return gpu
        if not waiting:
            log.info("all GPUs (%s) are taken; waiting for one", ", ".join(gpus))
        waiting = True
        time.sleep(wait)
