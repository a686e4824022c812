"""What every script of a rule does around its work: logging, threads, errors of the user."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pipeline_lib
from pipeline_lib.config import Model, Reference, RunConfig, load_config
from pipeline_lib.errors import VitAtlasError

if TYPE_CHECKING:
    from pipeline_lib.models import VisionModel

log = logging.getLogger("vit-atlas")


@contextmanager
def job(snakemake: Any) -> Iterator[RunConfig]:
    """Run the body of a script as the job of a rule; gives the run's configuration.

    Everything that is logged goes into the rule's log. A mistake of the user ends the job with
    its message, in the log and on the terminal, and without a traceback.
    """
    _log_into(str(snakemake.log[0]))
    wildcards = ", ".join(f"{name}={value}" for name, value in snakemake.wildcards.items())
    log.info("vit-atlas %s, %s %s", pipeline_lib.__version__, snakemake.rule, wildcards)
    try:
        _use_threads(snakemake.threads)
        yield load_config(snakemake.config)
    except VitAtlasError as error:
        log.error("%s", error)
        print(f"\n{snakemake.rule} {wildcards}: {error}\n", file=sys.stderr)
        sys.exit(1)
    except Exception:
        log.exception("this is a bug of vit-atlas; please report it with this log")
        raise
    log.info("done")


def load_run_model(section: Model | Reference) -> VisionModel:
    """The model of a section of the configuration; untrained weights are the same in every job."""
    import torch

    from pipeline_lib.models import load_model

    torch.manual_seed(0)
    return load_model(section.id, weights=section.weights, **section.kwargs)


def store_folder(paths: Sequence[str]) -> Path:
    """Folder of the store in `store_inputs` or `feature_inputs`: that of the first path."""
    return Path(paths[0]).parent


def _log_into(path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    logging.basicConfig(
        filename=path,
        filemode="w",
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        force=True,
    )
    logging.captureWarnings(True)


def _use_threads(count: int) -> None:
    """Keep the numerical libraries to the threads that the rule was given."""
    os.environ.update({f"{name}_NUM_THREADS": str(count) for name in ("OMP", "MKL", "OPENBLAS")})
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
