"""Coverage: is every transformer family of timm and every image tower of open_clip decomposed?

    python -m benchmarks.coverage [--all] [--family NAME …] [--workers N] [--out FOLDER]
                                  [--docs FILE] [--again VERDICT …]

Every model is made without weights, given random values everywhere (`benchmarks.randomise`),
decomposed in float64 and float32, and compared with counts taken from its modules by hooks, which
know nothing of the decomposition. Each runs in a process of its own, under a limit of time and of
memory. Every model has a file of its own, so that a run that is stopped is continued where it was;
rows made by another state of the decomposition's code are made again.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import multiprocessing
import operator
import os
import re
import resource
import sys
import threading
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.families import Case, build, open_clip_cases, timm_cases
from benchmarks.randomise import randomise
from pipeline_lib import decomposition
from pipeline_lib.decomposition import Decomposition, Plan, decompose, plan_for
from pipeline_lib.decomposition.operations import module_path
from pipeline_lib.errors import VitAtlasError
from pipeline_lib.provenance import source_hash

log = logging.getLogger("coverage")

#: Bars of exactness: relative error of the sum, worst image.
EXACT = {"float64": 1e-10, "float32": 1e-5}

COLUMNS = (
    "library", "module", "family", "model", "variants", "verdict", "error64", "error32",
    "token_error", "components", "head", "mlp", "conv", "other", "attention_modules",
    "attention_blocks", "attention_pooled", "attention_missing", "heads_expected",
    "blocks", "blocks_missing", "cancellation", "width", "readout", "reduced", "input",
    "parameters", "seconds", "refusal", "token_refusal", "frozen", "columns",
    "single", "engine",
)  # fmt: skip


# ------------------------------------------------------------------ counts that know no engine

_ATTENTION = re.compile(r"attn|attention|selfatt", re.IGNORECASE)
_NO_ATTENTION = re.compile(
    r"bias|^convrelpos|(?<!conv)relpos(?!attention)|rotary|embed|mlp|norm|drop|proj|linear|conv2d"
    r"|identity|eca|squeeze|se_?module"
    r"|cluster_?attn",
    re.IGNORECASE,
)
_BLOCK = re.compile(r"block|(?<!conv)layer(?!norm|scale)|bottleneck", re.IGNORECASE)


class ModuleCounts:
    """Attention modules and blocks that run in one forward pass, found by their classes.

    An attention module is the innermost module whose class is named after attention or that has
    heads; a block the innermost module of a sequence of at least two whose class is named so.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        ran: dict[str, None] = {}
        handles = [
            module.register_forward_hook(lambda m, i, o, name=name: ran.setdefault(name))
            for name, module in model.named_modules()
        ]
        with torch.no_grad():
            image_tower(model)(images)
        for handle in handles:
            handle.remove()
        modules = dict(model.named_modules())
        self.attention = innermost(name for name in ran if _has_attention(modules[name]) and name)
        blocks = (n for n in ran if n and _BLOCK.search(type(modules[n]).__name__))
        self.blocks = innermost(n for n in blocks if n.rsplit(".", 1)[-1].isdigit())
        self.heads = {name: _heads(modules[name]) for name in self.attention}


def image_tower(model: nn.Module) -> nn.Module:
    """The part of a model that reads images."""
    return model.visual if hasattr(model, "encode_image") else model  # type: ignore[return-value]


def innermost(names: Iterable[str]) -> list[str]:
    """Names of modules of which none lies inside another."""
    found = list(names)
    return [n for n in found if not any(other.startswith(n + ".") for other in found)]


def _has_attention(module: nn.Module) -> bool:
    kind = type(module).__name__
    if _NO_ATTENTION.search(kind) or isinstance(module, (nn.Sequential, nn.ModuleList)):
        return False
    return bool(_ATTENTION.search(kind)) or hasattr(module, "num_heads")


def _heads(module: nn.Module) -> int:
    for name in ("num_heads", "n_heads", "heads", "nh"):
        value = getattr(module, name, None)
        if isinstance(value, int):
            return value
    return 1


def _inside(path: str, other: str) -> bool:
    return path == other or path.startswith(other + ".") or other.startswith(path + ".")


# ------------------------------------------------------------------ one model


def check(case: Case) -> dict[str, Any]:
    """Decompose one model every way and say how it went; no exception leaves but crashes."""
    begin = time.perf_counter()
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {k: getattr(case, k) for k in ("library", "module", "family", "model", "variants")}
    try:
        model, size, reduced = build(case)
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
        randomise(model)
        counts = ModuleCounts(model, images)
    except Exception as error:
        row["refusal"] = f"cannot be made: {type(error).__name__}: {first_line(error)}"
        row["verdict"] = "not made"
        row["seconds"] = time.perf_counter() - begin
        return row
    row["reduced"] = json.dumps(reduced)
    row["input"] = size
    row["parameters"] = sum(p.numel() for p in image_tower(model).parameters())
    try:
        _check_exactness(row, model.double(), images.double(), counts)
        row["error32"] = float(_parts(model.float(), images).error.max())
    except VitAtlasError as error:
        row["refusal"] = str(error)
    except Exception as error:
        row["refusal"] = f"BUG {type(error).__name__}: {first_line(error)} {_place(error)}"
    row["verdict"] = verdict(row)
    row["seconds"] = time.perf_counter() - begin
    return row


def _check_exactness(
    row: dict[str, Any], model: nn.Module, images: Tensor, counts: ModuleCounts
) -> None:
    plan = plan_for(model, images)
    parts = _parts(model, images)
    row["frozen"] = len(plan.frozen)
    row["single"] = any(
        isinstance(node.meta.get("val"), Tensor)
        and node.meta["val"].dtype == torch.float32
        and plan.facts.depends(node)
        for node in plan.facts.nodes
    )
    row["columns"] = parts.values.shape[2]
    kinds = parts.components["kind"].value_counts()
    row["error64"] = float(parts.error.max())
    row["components"] = len(parts.components)
    row |= {kind: int(kinds.get(kind, 0)) for kind in ("head", "mlp", "conv")}
    row["other"] = int(kinds.get("attention", 0))
    row["width"] = parts.representation.shape[1]
    row["readout"] = json.loads(row["reduced"]).get("read at", parts.readout)
    row["cancellation"] = float(
        (parts.values.norm(dim=2).sum(1) / parts.values.sum(1).norm(dim=1)).max()
    )
    table = plan.table
    pooled = list(table.loc[table["detail"] == "attention pooling", "module"])
    heads = parts.components[parts.components["kind"] == "head"]
    blocks = list(dict.fromkeys(heads["id"].str.split("/head").str[0]))
    paths = [_own_path(path) for path in dict.fromkeys(heads["module"])]
    missing = [
        name
        for name in counts.attention
        if not any(_inside(path, _own_path(name)) for path in [*paths, *map(_own_path, pooled)])
    ]
    row["attention_modules"] = len(counts.attention)
    row["attention_blocks"] = len(blocks)
    row["attention_pooled"] = len(pooled)
    row["attention_missing"] = " ".join(missing)
    row["heads_expected"] = sum(counts.heads.values())
    every = [_own_path(path) for path in parts.components["module"] if path]
    every += [_own_path(path) for path in [*pooled, *plan.frozen["module"], *_stem_paths(plan)]]
    lost = [name for name in counts.blocks if not any(_inside(p, _own_path(name)) for p in every)]
    row["blocks"] = len(counts.blocks)
    row["blocks_missing"] = " ".join(lost)
    _check_tokens(row, model, images)
    plan.weights = None  # its matrices in double precision


def _stem_paths(plan: Plan) -> set[str]:
    """Modules that ran before the stem's tensor, or that every component comes from."""
    facts = plan.facts
    bits = functools.reduce(operator.and_, (facts.upstream(leaf.node) for leaf in plan.leaves))
    for leaf in plan.stem:
        bits |= facts.upstream(leaf.node)
    return {path for node in facts.members(bits) if (path := module_path(node))}


def _directions(count: int, width: int, like: Tensor) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(2)).to(like)


def _parts(model: nn.Module, images: Tensor) -> Decomposition:
    """All of `z`; where that costs by the column (frozen gates), 16 random directions of it."""
    plan = plan_for(model, images)
    directions = _directions(16, plan.width, images) if plan.dense else None
    return decompose(model, images, directions=directions)


def _check_tokens(row: dict[str, Any], model: nn.Module, images: Tensor) -> None:
    directions = _directions(3, row["width"], images)
    try:
        tokens = decompose(model, images, per="token", directions=directions)
    except VitAtlasError as error:
        row["token_refusal"] = str(error)
        return
    except Exception as error:
        row["token_refusal"] = f"BUG {type(error).__name__}: {first_line(error)} {_place(error)}"
        return
    wanted = decompose(model, images, directions=directions).values
    row["token_error"] = float((tokens.values.sum(2) - wanted).abs().max() / wanted.abs().max())


def _own_path(path: str) -> str:
    return path.removeprefix("visual.")


def verdict(row: dict[str, Any]) -> str:
    """`exact`, `partial` (an attention module or a block is no component), `wrong`, `refused`."""
    if any("can't allocate memory" in str(row[key]) for key in ("refusal", "token_refusal")):
        return "out of memory"
    if row["error64"] is None:
        return "refused" if not str(row["refusal"]).startswith("BUG") else "crashed"
    if not row["error64"] <= (1e-6 if row["single"] else EXACT["float64"]):
        return "wrong"
    if row["error32"] is None or not row["error32"] <= EXACT["float32"]:
        return "wrong in float32"
    if row["attention_missing"] or row["blocks_missing"]:
        return "partial"
    if row["token_error"] is None or not row["token_error"] <= (
        1e-6 if row["single"] else EXACT["float64"]
    ):
        return "exact, tokens refused"
    return "exact in single precision" if row["single"] else "exact"


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else repr(error)


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    places = []
    while trace is not None:
        code = trace.tb_frame.f_code
        if "pipeline_lib" in code.co_filename:
            places.append(f"{Path(code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"({' < '.join(reversed(places[-3:]))})" if places else ""


# ------------------------------------------------------------------ many models


def _child(case: Case, memory: int, path: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        row = check(case)
    except MemoryError:
        row = {"verdict": "out of memory"}
    Path(path).write_text(json.dumps(row, default=str))


def check_apart(case: Case, *, seconds: float, memory: int, scratch: Path) -> dict[str, Any]:
    """`check` in a process of its own; a crash, a time-out or too much memory is a verdict."""
    path = scratch / f"{os.getpid()}-{threading.get_ident()}.json"
    path.unlink(missing_ok=True)
    worker = multiprocessing.get_context("fork").Process(
        target=_child, args=(case, memory, str(path))
    )
    begin = time.perf_counter()
    worker.start()
    # `join` would also wait for workers that were forked beside this one
    while worker.is_alive() and time.perf_counter() - begin < seconds:
        time.sleep(0.1)
    if worker.is_alive():
        worker.kill()
        worker.join()
        outcome: dict[str, Any] = {"verdict": "too slow", "refusal": f"more than {seconds:.0f} s"}
    elif path.is_file():
        outcome = json.loads(path.read_text())
    else:
        outcome = {"verdict": "crashed", "refusal": f"exit code {worker.exitcode}"}
    path.unlink(missing_ok=True)
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {k: getattr(case, k) for k in ("library", "module", "family", "model", "variants")}
    return row | {"seconds": time.perf_counter() - begin} | outcome | {"engine": engine_state()}


def engine_state() -> str:
    """Letters that stand for the decomposition's source."""
    return source_hash(Path(decomposition.__file__).parent)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--all", action="store_true", help="every variant, not one per family")
    parser.add_argument("--family", nargs="*", help="only families, modules or models named so")
    parser.add_argument("--out", type=Path, default=Path("results/coverage"), help="folder")
    parser.add_argument("--docs", type=Path, help="page to write, as docs/supported-models.md")
    parser.add_argument("--seconds", type=float, default=600, help="limit of time per model")
    parser.add_argument("--memory", type=float, default=12, help="limit of memory per model, GiB")
    parser.add_argument("--workers", type=int, default=1, help="models checked at a time")
    parser.add_argument("--again", nargs="*", default=[], help="do these verdicts again")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    engine_state()  # of the code that is loaded, not of what it may become during the run
    warnings.simplefilter("ignore")
    rows = options.out / ("rows-all" if options.all else "rows")
    rows.mkdir(parents=True, exist_ok=True)
    cases = timm_cases(
        options.out / "model-sizes.json", every=options.all, wanted=options.family or ()
    )
    cases += open_clip_cases(every=options.all)
    todo = [
        case
        for case in cases
        if _wanted(case, options.family) and not _done(_row_file(rows, case), options.again)
    ]
    with ThreadPoolExecutor(options.workers) as pool:
        for line in pool.map(lambda case: _checked(case, rows, options), todo):
            log.info("%s", line)
    frame = pd.DataFrame(
        [json.loads(path.read_text()) for path in sorted(rows.glob("*.json"))],
        columns=list(COLUMNS),
    )
    frame.to_parquet(options.out / ("coverage-all.parquet" if options.all else "coverage.parquet"))
    log.info("%s", frame["verdict"].value_counts().to_string())
    if options.docs is not None:
        from benchmarks.coverage_page import page

        options.docs.write_text(
            page(
                frame,
                every=options.all,
                families=len(cases),
                today=date.today(),
                engine=engine_state(),
            )
        )
    return 0


def _checked(case: Case, rows: Path, options: argparse.Namespace) -> str:
    row = check_apart(
        case, seconds=options.seconds, memory=int(options.memory * 2**30), scratch=options.out
    )
    _row_file(rows, case).write_text(json.dumps(row, default=str, indent=0))
    return _line(row)


def _row_file(rows: Path, case: Case) -> Path:
    name = f"{case.library}-{case.model}-{case.family}"
    return rows / f"{re.sub(r'[^A-Za-z0-9._-]', '-', name)}.json"


def _done(path: Path, again: list[str]) -> bool:
    if not path.is_file():
        return False
    row = json.loads(path.read_text())
    return row["verdict"] not in again and row.get("engine") == engine_state()


def _wanted(case: Case, wanted: list[str] | None) -> bool:
    return not wanted or any(name in (case.family, case.module, case.model) for name in wanted)


def _line(row: dict[str, Any]) -> str:
    def number(key: str) -> str:
        return "-" if row[key] is None else f"{float(row[key]):.1e}"

    return (
        f"{row['verdict']:22s} {row['family']:24s} {row['model']:38s} {number('error64'):>8s} "
        f"{number('error32'):>8s} tok {number('token_error'):>8s} heads {row['head']} "
        f"mlp {row['mlp']} conv {row['conv']} attn {row['attention_blocks']}+"
        f"{row['attention_pooled']}/{row['attention_modules']} {row['seconds']:.0f} s"
        + (f"\n    {row['refusal']}" if row["refusal"] else "")
        + (f"\n    tokens: {row['token_refusal']}" if row["token_refusal"] else "")
        + (
            f"\n    attention missing: {row['attention_missing'][:200]}"
            if row["attention_missing"]
            else ""
        )
        + (f"\n    blocks missing: {row['blocks_missing'][:200]}" if row["blocks_missing"] else "")
    )


if __name__ == "__main__":
    sys.exit(main())
