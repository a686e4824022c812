"""What every script of a rule does around its work: logging, threads, errors of the user."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pipeline_lib
from pipeline_lib.artifacts import read_table
from pipeline_lib.config import Model, Reference, RunConfig, load_config
from pipeline_lib.device import gpu_present
from pipeline_lib.errors import VitAtlasError
from pipeline_lib.gpu_claim import claim_gpu
from pipeline_lib.provenance import code_facts, data_fingerprint, fault_report, set_context
from pipeline_lib.report.provenance import config_hash

if TYPE_CHECKING:
    from pipeline_lib.models import VisionModel

log = logging.getLogger("vit-atlas")


@contextmanager
def job(snakemake: Any) -> Iterator[RunConfig]:
    """Run the body of a script as the job of a rule; gives the run's configuration.

    Everything that is logged goes into the rule's log. A mistake of the user ends the job with
    its message, in the log and on the terminal, and without a traceback.
    """
    wildcards = ", ".join(f"{name}={value}" for name, value in snakemake.wildcards.items())
    _log_into(str(snakemake.log[0]), " ".join([snakemake.rule, *snakemake.wildcards]))
    log.info("vit-atlas %s, %s %s", pipeline_lib.__version__, snakemake.rule, wildcards)
    try:
        _use_threads(snakemake.threads)
        end_if_hanging(snakemake.resources.get("runtime"), str(snakemake.log[0]))
        if snakemake.resources.get("gpu"):
            claim_gpu()
        config = load_config(snakemake.config)
        set_context(_facts(snakemake, config))
        yield config
    except VitAtlasError as error:
        log.error("%s", error)
        print(f"\n{snakemake.rule} {wildcards}: {error}\n", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        facts = {"rule": f"{snakemake.rule} {wildcards}", "log": snakemake.log[0]}
        facts["configuration"] = _config_hash(snakemake.config)
        log.exception("%s", fault_report(error, facts))
        print(f"\n{fault_report(error, facts)}\n", file=sys.stderr)
        raise
    log.info("done")
    faulthandler.cancel_dump_traceback_later()


def _config_hash(raw: Any) -> str:
    """Hash of the configuration as the report shows it, or that it cannot be read."""
    try:
        return config_hash(load_config(raw))
    except VitAtlasError:
        return "not valid"


def end_if_hanging(minutes: float | None, path: str) -> None:
    """End this process after its resource `runtime`; where it hung stands in its log.

    On a cluster the scheduler does the same; on one machine nobody else would.
    """
    if minutes:
        handle = open(path, "a")  # noqa: SIM115 (as long as the process)
        faulthandler.dump_traceback_later(60 * minutes, exit=True, file=handle)


def load_run_model(section: Model | Reference) -> VisionModel:
    """The model of a section of the configuration; untrained weights are the same in every job."""
    import torch

    from pipeline_lib.models import load_model

    torch.manual_seed(0)
    return load_model(section.id, weights=section.weights, **section.kwargs)


def store_folder(paths: Sequence[str]) -> Path:
    """Folder of the store in `store_inputs` or `feature_inputs`: that of the first path."""
    return Path(paths[0]).parent


def _facts(snakemake: Any, config: RunConfig) -> dict[str, Any]:
    """What every artifact of this job carries (`pipeline_lib.provenance.FIELDS`)."""
    names = dict(snakemake.wildcards.items())
    facts = {
        **code_facts(),
        "stage": {"rule": snakemake.rule, **names},
        "parameters": json.loads(json.dumps(dict(snakemake.params.items()), default=str)),
        "device": {"machine": platform.machine(), "gpu": gpu_present()},
        "seed": config.seed,
    }
    if names.get("model") in config.models:
        facts["model"] = config.models[names["model"]].id
        bases = config.folder / "contributions" / f"{names['model']}.bases.json"
        if bases.exists():
            facts["weight_hash"] = json.loads(bases.read_text())["weight_hash"]
    manifest = snakemake.input.get("manifest")
    if isinstance(manifest, str) and manifest.endswith("images.parquet"):
        facts["data"] = data_fingerprint(read_table("manifest", manifest))
    return facts


def _log_into(path: str, title: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    logging.basicConfig(
        filename=path,
        filemode="w",
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        force=True,
    )
    logging.captureWarnings(True)
    if sys.stderr.isatty():
        logging.getLogger("pipeline_lib.progress").addHandler(_Terminal(title))


class _Terminal(logging.Handler):
    """Shows progress on a terminal, one line every few seconds, as several jobs may share it."""

    def __init__(self, title: str, pause: float = 5.0) -> None:
        super().__init__()
        self.title, self.pause, self.last = title, pause, 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if record.created - self.last >= self.pause:
            self.last = record.created
            print(f"{self.title}: {record.getMessage()}", file=sys.stderr, flush=True)


def _use_threads(count: int) -> None:
    """Keep the numerical libraries to the threads that the rule was given."""
    os.environ.update({f"{name}_NUM_THREADS": str(count) for name in ("OMP", "MKL", "OPENBLAS")})
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
